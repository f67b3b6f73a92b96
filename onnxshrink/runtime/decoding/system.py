"""What the inputs of a model with a state are to each other."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxshrink.graph import operators
from onnxshrink.graph.analysis.states import State, states
from onnxshrink.kernels.perplexity import UNKNOWN
from onnxshrink.runtime.decoding.lengths import Lengths, evaluated, solved
from onnxshrink.runtime.inputs import Feed, Port, ports

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxshrink.graph.file.model import Model


@dataclass(frozen=True)
class Decoder:
    """What the inputs of a model are to each other.

    Attributes:
        states: What goes on to the next run.
        tokens: The input of new tokens (or their embeddings); empty for nets with replaced states
            only.
        lengths: How long the axes of inputs are, as terms of batch, new tokens and past.
        masks: Inputs over the past and the new tokens.
        places: Inputs that number the new tokens.
        branch: The input that says whether there is a past, and what it says then.
        words: The number of tokens that there are.
    """

    ports: Mapping[str, Port]
    states: tuple[State, ...]
    tokens: str = ""
    lengths: Mapping[str, Lengths] = field(default_factory=dict)
    masks: frozenset[str] = frozenset()
    places: frozenset[str] = frozenset()
    branch: tuple[str, bool] = ("", True)
    words: int = 0

    @property
    def derived(self) -> set[str]:
        """Inputs that follow from the others."""
        found = {state.input for state in self.states} | self.masks | self.places
        return found | ({self.branch[0]} if self.branch[0] else set())

    def carried(self) -> dict[str, str]:
        """Input -> the output that it becomes."""
        return {state.input: state.output for state in self.states}

    def feed(
        self, given: Mapping[str, np.ndarray], state: Mapping[str, np.ndarray], past: int,
        end: int,
    ) -> Feed:  # fmt: skip
        """The feed for the tokens from ``past`` to ``end`` of what was given.

        Args:
            given: Whole texts, and whatever else the model takes.
            state: From the run before; empty at the start.
            past: How many tokens have been read.
            end: Where the new ones end.
        """
        batch = len(given[self.tokens]) if given[self.tokens].ndim > 1 else 1
        known = solved(
            {name: self.lengths[name] for name in given if name in self.lengths},
            {name: given[name].shape for name in given if name not in self.masks},
        )
        known.update({"batch": batch, "new": end - past, "past": past, "whole": end})
        made: Feed = {}
        mask = next((given[name] for name in self.masks if name in given), None)
        for name, port in self.ports.items():
            if name in state:
                made[name] = state[name]
            elif name in given:
                made[name] = self._part(name, given[name], past, end)
            elif name == self.branch[0]:
                said = self.branch[1] if past else not self.branch[1]
                made[name] = np.full(evaluated(self.lengths[name], known), said, port.dtype)
            elif name in self.masks:
                made[name] = _seen(evaluated(self.lengths[name], known), end, port.dtype)
            elif name in self.places:
                made[name] = _numbered(
                    evaluated(self.lengths[name], known), past, end, mask, port.dtype
                )
            elif name in {state.input for state in self.states}:
                made[name] = np.zeros(evaluated(self.lengths[name], known), port.dtype)
        return made

    def following(self, given: Mapping[str, np.ndarray], past: int, end: int) -> np.ndarray | None:
        """What follows each token from ``past`` to ``end``; None where tokens are embeddings."""
        ids = given[self.tokens]
        if ids.dtype.kind not in "iu":
            return None
        mask = next((given[name] for name in self.masks if name in given), None)
        if mask is not None and mask.shape == ids.shape:  # nobody says anything behind the end
            ids = np.where(mask != 0, ids, UNKNOWN)
        after = np.full((*ids.shape[:-1], 1), UNKNOWN, np.int64)
        shifted: np.ndarray = np.concatenate([ids[..., 1:].astype(np.int64), after], -1)
        return shifted[..., past:end]

    def _part(self, name: str, array: np.ndarray, past: int, end: int) -> np.ndarray:
        """What was given, as far as these tokens reach."""
        terms = self.lengths.get(name, ())
        for axis, term in enumerate(terms[: array.ndim]):
            if term == "new":
                array = np.take(array, np.arange(past, end), axis)
            elif term == "whole" and array.shape[axis] > end:
                array = np.take(array, np.arange(end), axis)
        return array


def _seen(shape: tuple[int, ...], end: int, dtype: np.dtype[Any]) -> np.ndarray:
    """A mask under which all that has been read is seen; one of four axes is added to scores."""
    if len(shape) == 4 and dtype.kind == "f":
        return np.zeros(shape, dtype)
    mask = np.ones(shape, dtype)
    if shape:
        mask[..., end:] = 0
    return mask


def _numbered(
    shape: tuple[int, ...], past: int, end: int, mask: np.ndarray | None, dtype: np.dtype[Any]
) -> np.ndarray:
    """The numbers of the new tokens; padding in front does not count."""
    if mask is not None and mask.ndim == 2 == len(shape) and mask.shape[1] >= end:
        numbers = np.maximum(np.cumsum(mask != 0, 1) - 1, 0)[:, past:end]
    else:
        numbers = np.broadcast_to(np.arange(past, end), shape)
    return np.asarray(numbers, dtype)


def find(model: Model) -> Decoder | None:
    """What the inputs of a model are to each other; None where it has no state."""
    found = states(model)
    if not found:
        return None
    wanted = _completed(ports(model), found, model)
    kept = {state.input for state in found}
    past = {
        dim
        for state in found
        if state.grows is not None
        for dims in [wanted[state.input].dims]
        if dims is not None and isinstance(dim := dims[state.grows], str)
    }
    values = {value.name or "": value for value in model.inputs}
    free = {name: port for name, port in wanted.items() if name not in kept and port.dims}
    tokens, words = (
        _tokens(model, free, values) if past or _fixed_caches(found, wanted) else ("", 0)
    )
    if not tokens:
        return Decoder(wanted, found)
    dims = wanted[tokens].dims or ()
    symbols: dict[str, str] = dict.fromkeys(past, "past")
    axes = ("new",) if len(dims) == 1 else ("batch", "new")
    symbols.update(
        {dim: name for dim, name in zip(dims, axes, strict=False) if isinstance(dim, str)}
    )
    branch = _branch(model, values, kept)
    masks, places = set(), set()
    for name, port in free.items():
        if name in (tokens, branch[0]) or port.dtype.kind == "O":
            continue
        last = (port.dims or (None,))[-1]
        long = symbols.get(str(last), "") != "new"
        if _says(name, "encoder"):
            continue
        whole_numbers = port.dtype.kind in "iu"
        if whole_numbers and not _says(name, "mask") and (not long or _numbers(values[name])):
            places.add(name)
        elif _says(name, "mask") or (port.dtype.kind in "iub" and len(port.dims or ()) > 1):
            masks.add(name)
    lengths = {}
    for name, port in wanted.items():
        grows = next((s.grows for s in found if s.input == name), None)
        lengths[name] = tuple(
            _term(dim, axis, len(port.dims or ()), name, symbols, grows, tokens, masks, places)
            for axis, dim in enumerate(port.dims or ())
        )
    return Decoder(
        wanted, found, tokens, lengths, frozenset(masks), frozenset(places), branch, words
    )


def _completed(wanted: Mapping[str, Port], found: Sequence[State], model: Model) -> dict[str, Port]:
    """Inputs with lengths of states that a file leaves open although its graph knows them."""
    free = [state for state in found if _open_axes(wanted[state.input], state)]
    if not free:
        return dict(wanted)
    from onnxshrink.graph.analysis.shapes import walk

    shapes = {value.name: shape for value, shape in walk(model, open_batch=True).shapes.items()}
    completed = dict(wanted)
    for state in free:
        port, shape = wanted[state.input], shapes.get(state.output)
        dims = list(port.dims or ())
        for axis in _open_axes(port, state) if shape and len(shape) == len(dims) else ():
            dims[axis] = dims[axis] if shape is None or shape[axis] is None else shape[axis]
        completed[state.input] = replace(port, dims=tuple(dims))
    return completed


def _open_axes(port: Port, state: State) -> list[int]:
    """The axes without a number behind the first one, but for that which grows."""
    dims = port.dims or ()
    return [n for n, d in enumerate(dims) if n and n != state.grows and not isinstance(d, int)]


def _term(
    dim: int | str | None, axis: int, rank: int, name: str, symbols: Mapping[str, str],
    grows: int | None, tokens: str, masks: set[str], places: set[str],
) -> int | str:  # fmt: skip
    """The length of an axis as a term; symbols that nothing is known of keep their names."""
    if isinstance(dim, int):
        return dim
    last = axis == rank - 1
    if dim is not None and dim in symbols:
        return "whole" if name in masks and last and symbols[dim] != "past" else symbols[dim]
    if grows == axis:
        return "past"
    if name in masks and last:
        return "whole"
    if name == tokens or name in masks | places:
        return "new" if (last and name != tokens) or (axis == min(1, rank - 1)) else "batch"
    if dim is None:
        return "batch" if axis == 0 else f"{name}.{axis}"
    if not dim.isidentifier():
        dim = re.sub(r"[^\W\d]\w*", lambda found: symbols.get(found[0], found[0]), dim)
    return "batch" if axis == 0 and dim.isidentifier() and "batch" in dim.lower() else dim


def _fixed_caches(found: Sequence[State], wanted: Mapping[str, Port]) -> bool:
    """Whether states are caches that are written to in place: [B, H, P, D] of fixed P."""
    return all(len(wanted[state.input].dims or ()) == 4 for state in found)


def _tokens(
    model: Model, free: Mapping[str, Port], values: Mapping[str, ir.Value]
) -> tuple[str, int]:
    """The input of tokens and how many there are; else that of embeddings; else nothing."""
    from onnxshrink.runtime.generate import table_sizes

    scores = {value.shape[-1] for value in model.ir.graph.outputs if value.shape is not None
              and len(value.shape) > 1}  # fmt: skip
    ranked = []
    for name, port in free.items():
        if port.dtype.kind in "iu" and len(port.dims or ()) <= 2:
            sizes = table_sizes(values[name], model)
            if sizes:
                ranked.append((min(sizes) in scores, not _numbers(values[name]), min(sizes), name))
    if ranked:
        *_, words, name = max(ranked)
        return name, words
    floats = [name for name, port in free.items() if port.dtype.kind == "f"
              and len(port.dims or ()) == 3 and not _says(name, "encoder")]  # fmt: skip
    return (floats[0], 0) if floats else ("", 0)


def _numbers(value: ir.Value) -> bool:
    """Whether values are places: angles are computed of them, or they say where to write."""
    ahead, seen = [value], set()
    while ahead:
        value = ahead.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        for node, position in value.uses():
            if _reads_places(node, position) or (_masks(node) and len(seen) > 1):
                return True
            if _passes(node) and position == 0:
                ahead.extend(node.outputs)
    return "position" in (value.name or "")


def _reads_places(node: ir.Node, position: int) -> bool:
    """Whether an input says where to write, how far to turn, or where to start counting."""
    row = operators.row(node)
    if isinstance(row, operators.Rotary | operators.Scatter):
        return position == row.places
    return isinstance(row, operators.Series) and position == 0


def _masks(node: ir.Node) -> bool:
    """Whether a node compares as masks of what came before do: each sees itself."""
    row = operators.of(node, operators.Relation)
    return row is not None and row.orders and row.equal


def _passes(node: ir.Node) -> bool:
    """Whether a node hands on all numbers that it gets, in some shape and type."""
    repeats = operators.of(node, operators.Repetition) is not None
    return repeats or operators.moves(node) not in ("", "parts", "pads", "joins")


def _says(name: str, word: str) -> bool:
    return word in name.lower()


def _branch(model: Model, values: Mapping[str, ir.Value], kept: set[str]) -> tuple[str, bool]:
    """The input that an If asks for whether there is a past, and what it says if there is."""
    for name, value in values.items():
        ahead = [value]
        while ahead:
            for node, _ in ahead.pop().uses():
                if operators.branches(node):
                    inside = node.attributes["then_branch"].as_graph()
                    uses = {v.name for n in inside.all_nodes() for v in n.inputs if v is not None}
                    return name, bool(uses & kept)
                logic = operators.of(node, operators.Logic)
                if _passes(node) or (logic is not None and logic.negates):
                    ahead.extend(node.outputs)
    return "", True
