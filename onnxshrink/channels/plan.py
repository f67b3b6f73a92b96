"""What to remove: groups that may go, how their units rank, and tables that say so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from onnxshrink.channels import groups as grouping
from onnxshrink.channels.groups import Group, Removed
from onnxshrink.channels.labels import Walk, describe
from onnxshrink.errors import RecipeError
from onnxshrink.graph import read
from onnxshrink.kernels.importance import Array, Indices
from onnxshrink.report import Table, size

_COSTS = {"parameters": "parameters", "nbytes": "bytes", "macs": "multiply-accumulates"}


@dataclass(frozen=True)
class Plan:
    """A choice of units.

    Attributes:
        walk: The labelled model.
        groups: Its groups.
        scores: For each group, a score for each unit.
        choice: For each group, the units that go.
        held: Why a group stays whole, by its name.
    """

    walk: Walk
    groups: Sequence[Group]
    scores: Sequence[Array]
    choice: Sequence[Indices]
    held: Mapping[str, str]

    @property
    def removed(self) -> Removed:
        """Flags of the atoms that go."""
        removed = grouping.removed_atoms(self.walk, self.groups, self.choice)
        return spared(self.walk, removed)

    def table(self) -> Table:
        """One row for each group."""
        table = Table(
            "groups", ("group", "kind", "units", "removed", "score", "parameters", "note")
        )
        for group, scores, choice in zip(self.groups, self.scores, self.choice, strict=True):
            spread = f"{scores.min():.2f} .. {scores.max():.2f}" if len(scores) else ""
            table.add(
                group.name, group.kind, len(group), len(choice), spread,
                round(parameters_per_unit(group) * len(group)), self.held.get(group.name, ""),
            )  # fmt: skip
        return table

    def tables(self) -> list[Table]:
        """The groups, what the whole model costs, and what blocks the rest."""
        before, after = grouping.cost(self.walk), grouping.cost(self.walk, self.removed)
        costs = Table("cost", ("", "before", "after", "left"))
        for name, was in vars(before).items():
            now = vars(after)[name]
            costs.add(_COSTS[name], was, now, f"{now / was:.3f}" if was else "")
        return [self.table(), costs, self.blocked()]

    def blocked(self) -> Table:
        """What keeps the channels of weights, and how many weights it keeps."""
        table = Table("blocked", ("reason", "weights"))
        for reason, count in blocked(self.walk).most_common():
            table.add(reason, count)
        return table

    def to_dict(self) -> dict[str, Any]:
        """The plan for JSON."""
        before, after = grouping.cost(self.walk), grouping.cost(self.walk, self.removed)
        return {
            "groups": [
                {
                    "name": group.name, "kind": group.kind, "units": len(group),
                    "removed": [int(unit) for unit in choice],
                    "scores": [round(float(s), 6) for s in scores],
                    "held": self.held.get(group.name, ""),
                }
                for group, scores, choice in zip(
                    self.groups, self.scores, self.choice, strict=True
                )
            ],
            "blocked": dict(blocked(self.walk)),
            "before": vars(before), "after": vars(after),
        }  # fmt: skip


def parameters_per_unit(group: Group) -> float:
    """How many weights go with one unit of a group."""
    total = 0.0
    for member in group.members:
        tensor = read.constant(member.value)
        if tensor is not None:
            total += tensor.size / read.shape(tensor)[member.axis] * len(member.positions)
    return total / len(group)


def blocked(walk: Walk) -> Counter[str]:
    """Reasons why indices of weights stay, with the number of weights each keeps."""
    reasons: Counter[str] = Counter()
    for slot, axis, labels in grouping.constant_axes(walk):
        value = slot[0] if isinstance(slot, tuple) else slot
        tensor = read.constant(value)
        if tensor is None or len(read.shape(tensor)) < 2:
            continue
        frozen = walk.atoms.is_frozen(labels)
        for atom, times in Counter(walk.atoms.find(labels[frozen]).tolist()).items():
            reason = walk.atoms.reason(atom)
            if not reason.endswith(("a kernel axis", "of length 1")):
                reasons[reason] += times * tensor.size // read.shape(tensor)[axis]
    return reasons


def spared(walk: Walk, removed: Removed) -> Removed:
    """The same removal, less what would empty an axis or unbalance a grouped convolution."""
    removed = removed.copy()
    changed = True
    while changed:
        changed = _balance(walk, removed)
        changed |= _spare(walk, removed)
    return removed


def _balance(walk: Walk, removed: Removed) -> bool:
    """Keep all channels of a grouped convolution whose groups would lose different numbers."""
    changed = False
    for parts in walk.balanced:
        if len({int(walk.atoms.kept(part, removed).sum()) for part in parts}) > 1:
            for part in parts:
                removed[walk.atoms.incidence(part)[1]] = False
            changed = True
    return changed


def _spare(walk: Walk, removed: Removed) -> bool:
    changed = False
    for axes in walk.labels.values():
        for labels in axes:
            if labels is None or not len(labels) or walk.atoms.kept(labels, removed).any():
                continue
            positions, atoms = walk.atoms.incidence(labels)
            removed[atoms[positions == 0]] = False
            changed = True
    return changed


# ---------------------------------------------------------------------- selection


def held(
    groups: Sequence[Group], keep: Iterable[str], kinds: Sequence[str], *, names: Iterable[str],
    option: str = "keep",
) -> dict[str, str]:  # fmt: skip
    """Which groups stay whole, and why.

    Args:
        groups: All groups.
        keep: Patterns of constants, nodes or groups to leave alone.
        kinds: Kinds of units that may go; none given: all, but of two factors of one axis only
            the one with more units, so that a ratio is the share that the axis loses.
        names: Every name that a pattern may mean.
        option: Where the patterns come from.

    Raises:
        RecipeError: A pattern matches nothing.
    """
    reasons: dict[str, str] = {}
    known = {name for group in groups for name in names_of(group)} | set(names)
    for pattern in keep:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise RecipeError(f"prune-channels: {option}: nothing matches {pattern!r}")
    for group in groups:
        if any(fnmatchcase(name, pattern) for pattern in keep for name in names_of(group)):
            reasons[group.name] = "kept as asked"
        elif kinds and group.kind not in kinds:
            reasons[group.name] = "not among the units asked for"
    if not kinds:
        for name in _coarser_factors([g for g in groups if g.name not in reasons]):
            reasons[name] = "the other factor of its axis goes"
    return reasons


def names_of(group: Group) -> set[str]:
    """Names by which people may mean a group: its own, its constants', their nodes'."""
    found = {group.name}
    for member in group.members:
        found.add(member.value.name or "")
        for use in member.value.uses():
            found |= {use.node.name or "", use.node.op_type}
    return found - {""}


def _coarser_factors(groups: Sequence[Group]) -> set[str]:
    """Groups that decide over the same indices as another group with more units."""
    places: dict[tuple[Any, int], list[tuple[Group, set[int]]]] = {}
    for group in groups:
        for member in group.members:
            own = (group, set(member.positions.tolist()))
            places.setdefault((member.slot, member.axis), []).append(own)
    rivals: dict[str, set[str]] = {}
    for present in places.values():
        for index, (one, positions) in enumerate(present):
            for other, others in present[index + 1 :]:
                if positions & others:
                    rivals.setdefault(one.name, set()).add(other.name)
                    rivals.setdefault(other.name, set()).add(one.name)
    chosen: set[str] = set()
    for group in sorted(groups, key=lambda g: -len(g)):
        if not rivals.get(group.name, set()) & chosen:
            chosen.add(group.name)
    return {group.name for group in groups} - chosen


# ---------------------------------------------------------------------- explaining


def explain(walk: Walk, groups: Sequence[Group], what: str) -> list[Table]:
    """Everything that goes together with a node, constant or group, and what blocks it.

    Args:
        walk: The labelled model.
        groups: Its groups.
        what: A pattern for the name of a node, a constant, any value, or a group.

    Raises:
        RecipeError: Nothing has this name.
    """
    tables = []
    for group in groups:
        if any(fnmatchcase(name, what) for name in names_of(group)):
            tables.append(_coupled(walk, group))
    table = Table("blocked", ("value", "axis", "indices", "reason"))
    for slot, axes in walk.labels.items():
        value = slot[0] if isinstance(slot, tuple) else slot
        nodes = {use.node.name or "" for use in value.uses()}
        producer = value.producer()
        if producer is not None:
            nodes.add(producer.name or "")
        if not any(fnmatchcase(name, what) for name in {value.name or "", *nodes} - {""}):
            continue
        for axis, labels in enumerate(axes):
            if labels is None:
                table.add(value.name, axis, "", "its length varies")
                continue
            frozen = walk.atoms.is_frozen(labels)
            reasons = Counter(walk.atoms.reason(int(atom)) for atom in labels[frozen])
            for reason, count in reasons.most_common():
                table.add(value.name, axis, count, reason)
    if table.rows:
        tables.append(table)
    if not tables:
        raise RecipeError(f"prune-channels: explain: the model has no {what!r}")
    return tables


def _coupled(walk: Walk, group: Group) -> Table:
    """Every constant and value that a group reaches."""
    table = Table(
        f"{group.name}: {len(group)} {group.kind}",
        ("value", "axis", "indices", "size", "operators"),
    )
    own = np.zeros(walk.atoms.count, bool)
    own[group.atoms] = True
    for slot, axes in walk.labels.items():
        value = slot[0] if isinstance(slot, tuple) else slot
        for axis, labels in enumerate(axes):
            if labels is None or not len(labels):
                continue
            positions, atoms = walk.atoms.incidence(labels)
            reached = len(np.unique(positions[own[atoms]]))
            if reached:
                tensor, producer = read.constant(value), value.producer()
                users = [slot[1]] if isinstance(slot, tuple) else [u.node for u in value.uses()]
                made = [] if producer is None or tensor is not None else [producer]
                table.add(
                    value.name, axis, f"{reached} of {len(labels)}",
                    size(tensor.nbytes) if tensor is not None else "",
                    ", ".join(describe(node) for node in (*made, *users)),
                )  # fmt: skip
    return table
