"""Made-up inputs that a model accepts: the last resort when there are no real ones.

They show that a model runs and that two models compute the same; how good either is at its task
they cannot show.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxshrink import files
from onnxshrink.errors import DataError
from onnxshrink.options import nearest
from onnxshrink.report import printable
from onnxshrink.runtime.inputs import Feed, Port, ports
from onnxshrink.runtime.worker import Worker

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxshrink.graph.file.model import Model

Shapes = Mapping[str, tuple[int, ...]]

# Sizes of (batch, sequence, image side) for free dimensions, tried in this order.
_SIZES = (
    (1, 16, 224), (1, 32, 32), (1, 8, 48), (1, 64, 64), (1, 128, 128), (1, 256, 256),
    (1, 512, 299), (1, 576, 320), (1, 1024, 384), (1, 1, 512), (2, 16, 224), (1, 16000, 640),
)  # fmt: skip
_TIMEOUT = 120.0
_FARTHEST = 10_000
_LARGEST_PARAMETER = 65_536
_MOST_ELEMENTS = 2**27  # of one feed: 1 GB while they are drawn


@dataclass
class _InputUse:
    """What the graph does with an input's values.

    Attributes:
        sizes: For each column (index of the last axis; None for all of them), the lengths of the
            tables that it indexes, less what is added on the way.
        choices: Constants that the values are compared with.
    """

    sizes: dict[int | None, list[int]] = field(default_factory=dict)
    choices: list[Any] = field(default_factory=list)

    def index(self, column: int | None, size: int) -> None:
        """Note a table; one that no value can index was met on a path that is not taken."""
        if size > 0:
            self.sizes.setdefault(column, []).append(size)

    def limits(self, columns: int) -> np.ndarray:
        """For each column, the number of entries of its smallest table."""
        smallest = min(size for sizes in self.sizes.values() for size in sizes)
        limits = []
        for column in range(columns):
            names = (None, column, column - columns)
            sizes = [size for name in names for size in self.sizes.get(name, ())]
            limits.append(min(sizes, default=smallest))
        return np.asarray(limits)


def generated_inputs(
    model: Model,
    count: int,
    seed: int,
    *,
    shapes: Shapes | None = None,
    worker: Worker | None = None,
) -> list[Feed]:
    """Make inputs of valid types, shapes and index ranges, and try them on the model.

    Floats are standard normal; masks are ones, then zeros; integers stay inside the tables that
    the graph looks them up in, or are among the constants that it compares them with.

    Args:
        model: The model to feed.
        count: How many feeds.
        seed: Same seed, same feeds.
        shapes: Shapes of some inputs; a symbol that they fix is fixed everywhere.
        worker: Where to try them; without one, a process is started for it.

    Raises:
        DataError: ``shapes`` do not fit the model, or ONNX Runtime takes no guess.
        ModelError: ONNX Runtime does not load the model.
    """
    from onnxshrink.runtime.decoding import rolling

    wanted = ports(model)
    if not wanted:
        return [{}]
    _check_shapes(shapes or {}, wanted)
    with contextlib.ExitStack() as stack:
        trial = worker or stack.enter_context(Worker(timeout=_TIMEOUT))
        if found := rolling.made_up(model, count, seed, shapes or {}, trial):
            return found
    uses = {value.name or "": _uses(value, model) for value in model.inputs}
    guesses: dict[tuple[object, ...], dict[str, tuple[int, ...]]] = {}
    for sizes in _SIZES:
        guess = _guess(wanted, shapes or {}, *sizes)
        guesses.setdefault(tuple(guess.items()), guess)

    def make(guess: Mapping[str, tuple[int, ...]], index: int) -> Feed:
        rng = np.random.default_rng([seed, index])
        return {n: _values(port, guess[n], uses[n], rng) for n, port in wanted.items()}

    candidates = [guess for guess in guesses.values() if _elements(guess) <= _MOST_ELEMENTS]
    if not candidates:
        least = min(map(_elements, guesses.values()))
        raise DataError(
            f"{model.label}: generated inputs would hold {least:,} numbers; give real data, or "
            "smaller sizes with --shape"
        )
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(on_disk(model))
        worker = worker or stack.enter_context(Worker(timeout=_TIMEOUT))
        refusals = worker.refusals(path, (make(guess, 0) for guess in candidates))
    if refusals[-1] is not None:
        example = " ".join(f"--shape {printable(n)}:{_commas(s)}" for n, s in candidates[0].items())
        raise DataError(
            f"{model.label}: takes none of {len(candidates)} generated inputs. The first was "
            f"refused: {refusals[0]}. Give real data, or the right sizes in place of: {example}"
        )
    return [make(candidates[len(refusals) - 1], index) for index in range(count)]


@contextlib.contextmanager
def on_disk(model: Model) -> Iterator[Path]:
    """The file of a model, or one that holds it for as long as this lasts."""
    if model.path is not None:
        yield model.path
        return
    with files.scratch() as folder:
        path = folder / "model.onnx"
        model.save(path)
        yield path


def _elements(shapes: Shapes) -> int:
    # Also of an empty array: numpy makes none whose other axes are too long.
    return sum(math.prod(max(size, 1) for size in shape) for shape in shapes.values())


def _commas(shape: tuple[int, ...]) -> str:
    return ",".join(map(str, shape))


# -------------------------------------------------------------------------- shapes


def _check_shapes(shapes: Shapes, wanted: Mapping[str, Port]) -> None:
    for name, shape in shapes.items():
        if name not in wanted:
            names = ", ".join(wanted)
            hint = nearest(name, wanted) or f"; it has {names}"
            raise DataError(f"--shape {name}: the model has no such input{hint}")
        dims = wanted[name].dims
        fits = dims is None or (
            len(dims) == len(shape)
            and all(not isinstance(d, int) or d == n for d, n in zip(dims, shape, strict=True))
        )
        if not fits:
            declared = ",".join("?" if d is None else str(d) for d in dims or ())
            raise DataError(f"--shape {name}:{_commas(shape)}: the model takes {declared}")


def _guess(
    wanted: Mapping[str, Port], shapes: Shapes, batch: int, sequence: int, side: int
) -> dict[str, tuple[int, ...]]:
    """A shape for each input; the same symbol gets the same size."""
    symbols: dict[str, int] = {}
    for name, shape in shapes.items():
        for dim, size in zip(wanted[name].dims or (), shape, strict=False):
            if isinstance(dim, str):
                symbols[dim] = size
    guess = {}
    for name, port in wanted.items():
        dims = port.dims
        if name in shapes or dims is None:
            guess[name] = shapes.get(name, (batch,))
            continue
        likely = [_size(dims, axis, batch, sequence, side) for axis in range(len(dims))]
        guess[name] = tuple(
            symbols.setdefault(dim, size) if isinstance(dim, str) else size
            for dim, size in zip(dims, likely, strict=True)
        )
    return guess


def _size(
    dims: tuple[int | str | None, ...], axis: int, batch: int, sequence: int, side: int
) -> int:
    """The size of one dimension: a likely one where it is free."""
    declared = dims[axis]
    if isinstance(declared, int):
        return declared
    symbol = (declared or "").lower()
    if "past" in symbol or "cache" in symbol:
        return 1
    if "batch" in symbol or axis == 0:
        return batch
    if "seq" in symbol or "len" in symbol or len(dims) < 4:
        # The second of two free axes behind the batch is as often the batch of a state.
        return batch if axis == 1 and isinstance(dims[0], int) and len(dims) == 3 else sequence
    channels_last = dims[-1] in (1, 3, 4)
    if axis == 1 and not channels_last:
        return 3
    return side


# -------------------------------------------------------------------------- values


def _values(
    port: Port, shape: tuple[int, ...], use: _InputUse, rng: np.random.Generator
) -> np.ndarray:
    dtype = port.dtype
    if use.sizes:
        limits = use.limits(shape[-1]) if shape else use.limits(1)[0]
        return np.asarray(rng.integers(0, limits, shape)).astype(dtype)
    if dtype.kind == "b" or "mask" in port.name.lower():
        return _mask(shape, rng).astype(dtype)
    if dtype.kind == "O":
        return np.asarray(rng.choice(["a", "b", "some words"], shape)).astype(object)
    if set(use.choices) - {0, 1}:  # a comparison with 0 or 1 alone tells nothing
        return np.asarray(rng.choice(use.choices, shape)).astype(dtype)
    if dtype.kind in "iu" or dtype.name.startswith(("int", "uint")):
        return np.asarray(rng.integers(0, 256 if dtype == np.uint8 else 2, shape)).astype(dtype)
    return np.asarray(rng.standard_normal(shape)).astype(dtype)


def _mask(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Ones, then zeros, along the last axis; some of each, whichever the model calls padding."""
    if not shape:
        return np.asarray(1)
    length = shape[-1]
    ones = rng.integers(min(1, length), max(length, 2), (*shape[:-1], 1))
    return np.broadcast_to(np.arange(length) < ones, shape)


def _uses(value: ir.Value, model: Model) -> _InputUse:
    """Follow an input's values to the tables and constants that they meet."""
    from onnxshrink.graph import operators

    found = _InputUse()
    seen: set[tuple[object, ...]] = set()
    # Where the values are, what was added to them, the one column that they are (None: all), and
    # whether the last axis still has the input's columns.
    ahead: list[tuple[ir.Value, int, int | None, bool]] = [(value, 0, None, True)]
    while ahead and len(seen) < _FARTHEST:
        value, offset, column, intact = place = ahead.pop()
        if place in seen:
            continue
        seen.add(place)
        for node, position in value.uses():
            if (table := operators.picks(node, position)) is not None:
                found.index(column, _table_size(node, *table) - offset)
            one_hot = operators.of(node, operators.OneHot)
            others = [other for i, other in enumerate(node.inputs) if i != position]
            constant = next((c for v in others if (c := _constant(v)) is not None), np.zeros(0))
            function = model.ir.functions.get(node.op_identifier())
            if function is not None:
                ahead.append((function.inputs[position], offset, column, intact))
            elif (asks := operators.of(node, operators.Relation)) and not asks.orders:
                found.choices.extend(constant.ravel().tolist())
            elif one_hot is not None and position == 0:
                depth = _constant(node.inputs[one_hot.depth])
                known = [] if depth is None else depth.ravel()[:1].tolist()
                found.index(column, int(known[0]) - offset if known else 0)
            elif operators.looks_up(node) and position == 0:
                last = value.shape is not None and _axis(node) in (-1, len(value.shape) - 1)
                picked = int(constant.item()) if intact and last and constant.size == 1 else column
                ahead.append((node.outputs[0], offset, picked, False))
            elif operators.multiplies(node) and constant.size and constant.max() > 1:
                continue  # part of a computed index: how large it may be depends on the rest
            elif carried := operators.carries(node):
                adds = operators.adds(node) and constant.size
                moved = offset + int(constant.max()) if adds else offset
                intact_after = intact and carried == "columns"
                ahead.extend((output, moved, column, intact_after) for output in node.outputs)
    return found


def table_sizes(value: ir.Value, model: Model) -> list[int]:
    """The lengths of the tables that an input's values index."""
    return [size for sizes in _uses(value, model).sizes.values() for size in sizes]


def made_of(
    model: Model, port: Port, shape: tuple[int, ...], rng: np.random.Generator
) -> np.ndarray:
    """Values that an input takes."""
    value = next(value for value in model.inputs if value.name == port.name)
    return _values(port, shape, _uses(value, model), rng)


def _axis(node: ir.Node) -> int:
    return node.attributes["axis"].as_int() if "axis" in node.attributes else 0


def _table_size(node: ir.Node, position: int, any_axis: bool) -> int:
    """How many entries a lookup's indices can name; 0 when the graph does not tell."""
    table = node.inputs[position]
    dims = _dims(table) if table is not None else None
    if not dims:
        return 0
    sizes = dims if any_axis else dims[_axis(node) :][:1]  # none where the graph is wrong
    return min((size for size in sizes if isinstance(size, int)), default=0)


def _dims(value: ir.Value) -> list[Any] | None:
    from onnxshrink.graph import operators, read

    if (tensor := read.constant(value)) is not None:
        return list(tensor.shape)
    if value.shape is not None:
        return list(value.shape)
    producer = value.producer()
    if producer is None or not producer.inputs or producer.inputs[0] is None:
        return None
    if operators.dequantizes(producer) or operators.carries(producer) == "columns":
        return _dims(producer.inputs[0])
    if operators.moves(producer) == "permutes" and (dims := _dims(producer.inputs[0])):
        return [dims[axis] for axis in read.integers(producer, "perm") or range(len(dims))[::-1]]
    return None


def _constant(value: ir.Value | None) -> np.ndarray | None:
    """A stored value that is small enough to be a parameter."""
    from onnxshrink.graph import read

    tensor = read.constant(value)
    short = tensor is not None and tensor.size <= _LARGEST_PARAMETER
    return read.array(value) if short else None
