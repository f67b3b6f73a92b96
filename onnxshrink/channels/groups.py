"""Units that can be removed, in groups whose members are alike and can be ranked together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxshrink.channels.atoms import Labels
from onnxshrink.channels.labels import Axis, Slot, Walk
from onnxshrink.channels.request import Units
from onnxshrink.graph import operators, read

#: Removed atoms, one flag for every atom of a walk.
Removed = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Member:
    """One axis of a constant that a group reaches.

    Attributes:
        slot: The constant, or one use of it.
        axis: Which axis.
        positions: Indices of the axis that a unit of the group decides over.
        units: For each of them, which unit.
    """

    slot: Slot
    axis: int
    positions: Labels
    units: Labels

    @property
    def value(self) -> ir.Value:
        """The constant."""
        return self.slot[0] if isinstance(self.slot, tuple) else self.slot


@dataclass(frozen=True)
class Group:
    """Units that reach the same axes.

    Attributes:
        name: Its first constant, and the axis; with a number where several begin there.
        kind: What a unit is: a channel or neuron; a head; a dimension that all heads share; an
            index of the width that embeddings have and norms run along.
        atoms: The atom of each unit.
        members: The axes of constants that it reaches.
        step: How many indices of its densest axis go with a unit, at the least.
        bond: Groups of the same bond, if not negative, must lose the same share: they are parts of
            the channels of grouped convolutions.
    """

    name: str
    kind: Units
    atoms: Labels
    members: tuple[Member, ...]
    step: int
    bond: int = -1

    def __len__(self) -> int:
        """How many units it has."""
        return len(self.atoms)

    def granule(self, round_to: int) -> int:
        """Units to be kept in multiples of this, for axes in multiples of ``round_to``."""
        return round_to // math.gcd(round_to, self.step)


def find(walk: Walk) -> list[Group]:
    """All groups of a labelled model, in the order in which its nodes use them."""
    atoms = walk.atoms
    signature = np.zeros(atoms.count, np.uint64)
    rng = np.random.default_rng(0)
    reached: list[tuple[Slot, int, Labels, Labels]] = []
    for slot, axis, labels in constant_axes(walk):
        positions, found = atoms.incidence(labels)
        if len(found):
            reached.append((slot, axis, positions, found))
            times = np.bincount(found, minlength=atoms.count).astype(np.uint64)
            signature += times * rng.integers(1, 2**63, dtype=np.uint64)
    for parts in walk.balanced:
        for part in parts:
            found = atoms.incidence(part)[1]
            times = np.bincount(found, minlength=atoms.count).astype(np.uint64)
            signature += times * rng.integers(1, 2**63, dtype=np.uint64)
    everything = np.unique(np.concatenate([r[3] for r in reached])) if reached else np.empty(0, int)
    kinds, group_of = np.unique(signature[everything], return_inverse=True)
    place = np.full(atoms.count, -1)
    place[everything] = group_of
    unit = np.zeros(atoms.count, np.int64)
    members: list[list[Member]] = [[] for _ in kinds]
    units = [everything[group_of == index] for index in range(len(kinds))]
    for own in units:
        unit[own] = np.arange(len(own))
    for slot, axis, positions, found in reached:
        groups = place[found]
        for index in np.unique(groups).tolist():
            mine = groups == index
            members[index].append(Member(slot, axis, positions[mine], unit[found[mine]]))
    normed = np.zeros(atoms.count, bool)
    for labels in walk.streams:
        normed[atoms.incidence(labels)[1]] = True
    order = sorted(range(len(kinds)), key=lambda index: int(units[index][0]))
    bonds = _bonds(walk, place, len(kinds))
    found_groups: list[Group] = []
    for index in order:
        group = _group(walk, units[index], tuple(members[index]))
        if normed[units[index]].any():
            group = replace(group, kind="width")
        if bonds[index] >= 0:  # the axis has as many units of each of its bond
            group = replace(group, bond=bonds[index], step=bonds.count(bonds[index]))
        namesakes = sum(other.name.partition("#")[0] == group.name for other in found_groups)
        name = f"{group.name}#{namesakes + 1}" if namesakes else group.name
        found_groups.append(replace(group, name=name))
    return found_groups


def _bonds(walk: Walk, place: Labels, count: int) -> list[int]:
    """For each group, the first of those that it must stay in balance with, or -1."""
    bonds = [-1] * count
    for parts in walk.balanced:
        atoms = np.concatenate([walk.atoms.incidence(part)[1] for part in parts])
        touched = [index for index in np.unique(place[atoms]).tolist() if index >= 0]
        old = {bonds[index] for index in touched if bonds[index] >= 0}
        first = min([*touched, *old], default=-1)
        for index in range(count):
            if index in touched or bonds[index] in old:
                bonds[index] = first
    return bonds


def constant_axes(walk: Walk) -> Iterator[tuple[Slot, int, Labels]]:
    """Every labelled axis of every constant."""
    for slot, axes in walk.labels.items():
        value = slot[0] if isinstance(slot, tuple) else slot
        if read.constant(value) is not None:
            for axis, labels in enumerate(axes):
                if labels is not None and len(labels):
                    yield slot, axis, labels


def _group(walk: Walk, atoms: Labels, members: tuple[Member, ...]) -> Group:
    wide = [m for m in members if len(walk.labels[m.slot]) > 1] or list(members)
    name = f"{wide[0].value.name}[{wide[0].axis}]"
    repeats = [len(m.positions) // len(atoms) for m in wide]
    return Group(name, _kind(wide, min(repeats)), atoms, members, max(min(repeats), 1))


def _kind(members: Sequence[Member], repeats: int) -> Units:
    for member in members:
        for use in member.value.uses():
            looked_up = operators.looks_up(use.node) and use.idx == 0
            if looked_up and member.axis == 1 and len(use.node.outputs[0].uses()):
                return "width"
    if repeats < 2:
        return "channels"
    first = members[0].positions[members[0].units == members[0].units[0]]
    return "heads" if (np.diff(first) == 1).any() else "head-dimensions"


# --------------------------------------------------------------------------- sizes


def removed_atoms(walk: Walk, groups: Sequence[Group], choice: Sequence[Labels]) -> Removed:
    """Flags of removed atoms, from the units that go from each group."""
    removed = np.zeros(walk.atoms.count, bool)
    for group, units in zip(groups, choice, strict=True):
        removed[group.atoms[units]] = True
    return removed


def left(walk: Walk, axes: Sequence[Axis], removed: Removed) -> list[int | None]:
    """Lengths of axes when atoms are removed; None where they vary."""
    return [None if a is None else int(walk.atoms.kept(a, removed).sum()) for a in axes]


@dataclass(frozen=True)
class Cost:
    """What a model costs.

    Attributes:
        parameters: Numbers in its constants.
        nbytes: Bytes of its constants.
        macs: Multiply-accumulates of one run on the probing input, where bodies run once; without
            nodes whose count is unknown.
    """

    parameters: int
    nbytes: int
    macs: int


def cost(walk: Walk, removed: Removed | None = None) -> Cost:
    """What the model costs after a removal, without doing it."""
    from onnxshrink.graph.analysis import macs
    from onnxshrink.graph.analysis.shapes import Call

    removed = np.zeros(walk.atoms.count, bool) if removed is None else removed
    shapes: dict[Slot, tuple[int, ...]] = {}
    for slot, axes in walk.labels.items():
        value = slot[0] if isinstance(slot, tuple) else slot
        sizes = walk.facts.sizes(value)
        if sizes is not None:
            lengths = zip(left(walk, axes, removed), sizes, strict=True)
            shapes[slot] = tuple(size[0] if n is None else n for n, size in lengths)
    for value, labels in walk.narrowed.items():
        kept = int(walk.atoms.kept(labels, removed).sum())
        shape = shapes[value]
        shapes[value] = (shape[0], shape[1] * kept // len(labels), *shape[2:])
    for (value, axis), digits in walk.digits.items():
        shape = shapes[value]
        for labels in (digit.labels for digit in digits if digit.labels is not None):
            kept = int(walk.atoms.kept(labels, removed).sum())
            shape = (*shape[:axis], shape[axis] * kept // len(labels), *shape[axis + 1 :])
        shapes[value] = shape
    parameters = nbytes = 0
    counted: set[tuple[ir.Value, tuple[int, ...]]] = set()
    for slot, shape in shapes.items():
        value = slot[0] if isinstance(slot, tuple) else slot
        tensor = read.constant(value)
        if tensor is None or (value, shape) in counted:
            continue
        counted.add((value, shape))
        parameters += math.prod(shape)
        nbytes += tensor.nbytes * math.prod(shape) // max(tensor.size, 1)
    total = 0
    for node in walk.model.ir.graph.all_nodes():
        inputs = tuple(
            None if v is None else shapes.get(walk.slot(v, node, i), _seen(walk, v))
            for i, v in enumerate(node.inputs)
        )
        outputs = tuple(shapes.get(v, _seen(walk, v)) for v in node.outputs)
        attributes = {a.name: a.value for a in node.attributes.values() if not a.is_ref()}
        total += macs.count(Call(node, attributes, inputs, outputs)) or 0
    return Cost(parameters, nbytes, total)


def _seen(walk: Walk, value: ir.Value) -> tuple[int, ...] | None:
    sizes = walk.facts.sizes(value)
    return None if sizes is None else tuple(a for a, _ in sizes)
