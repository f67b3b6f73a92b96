"""Weights that are stored as codes times scale, whoever wrote them: read, taken out, put back.

Cast and Mul, with or without a Sub; DequantizeLinear, also of a constant that QuantizeLinear
rounds; codebooks whose entries are whole multiples of one step. A pass that can use the codes takes
the weight out as plain floats, which every finder sees, and keeps the codes beside it: a
preparation that multiplies channels changes scales, and codes not at all. What it does not use goes
back as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxshrink.graph import operators, read, surgery
from onnxshrink.graph.file import tensors
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import dequantize
from onnxshrink.graph.operators import Arithmetic, Scatter
from onnxshrink.graph.surgery import Recorder
from onnxshrink.graph.weights.views import WeightView
from onnxshrink.kernels import affine
from onnxshrink.kernels.affine import Quantized

Array = npt.NDArray[Any]

_TYPES = {
    ir.DataType.INT8: "int8", ir.DataType.UINT8: "uint8", ir.DataType.INT16: "int16",
    ir.DataType.INT4: "int4", ir.DataType.UINT4: "uint4",
    ir.DataType.INT2: "int2", ir.DataType.UINT2: "uint2",
}  # fmt: skip
_EXACT = 1e-6  # of the largest weight of a channel: what rounding a product to float32 may move
_REACH = 127  # of the codes of a codebook


@dataclass(frozen=True)
class Codes:
    """A weight as integers that stand for floats.

    Attributes:
        stored: Codes of the weight's shape, scales and zero points.
        form: The nodes that it came in: ``dq`` or ``cast-mul``.
        nbytes: Bytes that its constants took.
    """

    stored: Quantized
    form: dequantize.Form
    nbytes: int

    def eight_bits(self) -> Quantized | None:
        """The codes for integer kernels, in 8 bits or fewer; None where these do not hold them."""
        if self.stored.bits <= 8:
            return self.stored
        codes, zero = self.stored.codes, self.stored.zero_point
        if codes.size and (codes.min() < -128 or codes.max() > 127):
            return None
        zero = None if zero is None else zero.astype(np.int8)
        return Quantized(codes.astype(np.int8), self.stored.scale, zero, "int8")

    @property
    def numbers(self) -> Array:
        """What the file holds of it, but for scales."""
        return self.stored.codes

    @property
    def values(self) -> Array:
        """The weight that the codes stand for, in float32."""
        return affine.dequantize(self.stored)

    def put_back(self, model: Model, view: WeightView) -> None:
        """Store the weight in these codes again."""
        wide = sum(dim > 1 for dim in self.stored.scale.shape)
        dequantize.dequantized(model, view, self.stored, self.form if wide < 2 else "cast-mul")

    def of(self, view: WeightView) -> Codes | None:
        """These codes for a weight whose channels were multiplied since; None for any other.

        Args:
            view: The weight as it is now, a constant of floats.
        """
        now, stored = view.array(), self.stored
        if now.shape != stored.codes.shape:
            return None
        if np.array_equal(affine.dequantize(stored).astype(now.dtype), now):
            return self
        axes = view.axes.out if len(view.axes.out) == 1 else ()
        rest = tuple(axis for axis in range(now.ndim) if axis not in axes)
        scaled = _multiplied(stored, now.astype(np.float64), rest)
        return None if scaled is None else replace(self, stored=scaled)


def _multiplied(stored: Quantized, now: Array, rest: tuple[int, ...]) -> Quantized | None:
    """Codes with the scales that make these values of them, one for each channel."""
    zero = 0 if stored.zero_point is None else stored.zero_point.astype(np.int32)
    codes = stored.codes.astype(np.int32) - zero
    power = np.square(codes, dtype=np.float64).sum(rest, keepdims=True)
    scale = (codes * now).sum(rest, keepdims=True) / np.where(power, power, 1)
    most = np.abs(now).max(rest, keepdims=True)
    if (np.abs(codes * scale - now) > _EXACT * most).any():
        return None
    if (scale < 0).any():  # a norm may turn channels round, and scales are positive
        if stored.zero_point is not None or stored.codes.min(initial=0) < -_REACH:
            return None
        codes = np.where(scale < 0, -codes, codes)
        stored = replace(stored, codes=codes.astype(stored.codes.dtype))
    if (scale == 0).any():  # such as a channel that its norm puts out
        if stored.zero_point is not None:
            return None
        kept = np.where(scale == 0, 0, stored.codes).astype(stored.codes.dtype)
        stored = replace(stored, codes=kept)
    zeros = stored.zero_point
    if zeros is not None:
        zeros = np.broadcast_to(zeros, scale.shape) if zeros.size == 1 else zeros
        if zeros.shape != scale.shape:
            return None
    usable = affine.usable(np.abs(scale).astype(np.float32), short=False)
    return replace(stored, scale=usable, zero_point=zeros)


@dataclass(frozen=True)
class Halves:
    """A weight that is stored in float16 and computed with in float32.

    Attributes:
        values: The weight.
        nbytes: Bytes that it takes in the file.
    """

    values: Array
    nbytes: int

    @property
    def numbers(self) -> Array:
        """What the file holds of it."""
        return self.values.astype(np.float16).view(np.int16)

    def eight_bits(self) -> Quantized | None:
        """None: it has no codes."""
        return None

    def of(self, view: WeightView) -> Halves | None:
        """The same for what the weight is now; None where float16 does not hold that."""
        now = view.array()
        with np.errstate(over="ignore"):
            exact = np.array_equal(now.astype(np.float16).astype(now.dtype), now)
        return Halves(now, now.size * 2) if exact else None

    def put_back(self, model: Model, view: WeightView) -> None:
        """Store the weight in float16 again."""
        dequantize.stored_as(model, view, self.values.astype(np.float16))


#: A weight that was taken out, in the form in which it came, by the name that it has.
Taken = Mapping[str, Codes | Halves]


# ---------------------------------------------------------------------------------- reading


def of(value: ir.Value | None) -> Codes | None:
    """The codes and scales that a value is made of; None for any other value.

    Scales in blocks of a channel do not count: no integer kernel has them.
    """
    node = None if value is None else value.producer()
    if value is None or node is None or node.domain:
        return None
    found = _READERS.get(node.op_type, _nothing)(node)
    if found is None:
        return None
    shape = None if value.shape is None else value.shape
    if shape is not None and not shape.is_dynamic() and shape.numpy() != found.stored.codes.shape:
        return None
    return found


def wide_bytes(model: Model) -> int:
    """Bytes of constants of 16 bits, such as codes that 8 bits do not hold."""
    stored = (value.const_value for scope in model.scopes for value in _constants(scope))
    return sum(t.nbytes for t in stored if t is not None and t.dtype == ir.DataType.INT16)


def _constants(scope: ir.Graph | ir.Function) -> Iterable[ir.Value]:
    return scope.initializers.values() if isinstance(scope, ir.Graph) else ()


def names(model: Model, among: Collection[str]) -> set[str]:
    """Those of some names that are weights stored as codes times scale."""
    read_ = {value for node in model.nodes for value in node.inputs if value is not None}
    return {value.name or "" for value in read_ if value.name in among and of(value) is not None}


def _nothing(node: ir.Node) -> Codes | None:
    return None


def _transposed(node: ir.Node) -> Codes | None:
    found = of(node.inputs[0])
    if found is None:
        return None
    stored, rank = found.stored, found.stored.codes.ndim
    order = read.integers(node, "perm") or tuple(reversed(range(rank)))

    def turned(array: Array) -> Array:
        return np.ascontiguousarray(array.transpose(order))

    zero = None if stored.zero_point is None else turned(stored.zero_point)
    turned_ = Quantized(turned(stored.codes), turned(stored.scale), zero, stored.dtype)
    return replace(found, stored=turned_)


def _reshaped(node: ir.Node) -> Codes | None:
    found, sizes = of(node.inputs[0]), read.integer_list(read.input(node, 1))
    if found is None or sizes is None or 0 in sizes or found.stored.scale.size != 1:
        return None
    codes = found.stored.codes.reshape(sizes)
    ones = (1,) * codes.ndim
    zero = found.stored.zero_point
    if zero is not None and zero.size != 1:
        return None
    zero = None if zero is None else zero.reshape(ones)
    scale = found.stored.scale.reshape(ones)
    return replace(found, stored=Quantized(codes, scale, zero, found.stored.dtype))


def _dequantized(node: ir.Node) -> Codes | None:
    if read.integer(node, "block_size", 0):
        return None
    scale, zero = _array(read.input(node, 1)), read.input(node, 2)
    zeros = _array(zero)
    if scale is None or scale.dtype != np.float32 or (zero is not None and zeros is None):
        return None
    tensor = read.constant(node.inputs[0])
    if tensor is not None and tensor.dtype in _TYPES:
        codes, kind = _copied(tensor), _TYPES[tensor.dtype]
        nbytes = tensor.nbytes
    else:
        rounded = _rounded(node)
        if rounded is None:
            return None
        codes, nbytes = rounded
        kind = str(codes.dtype)
    if scale.ndim == 0 or scale.size == 1:
        shape: tuple[int, ...] = (1,) * codes.ndim
    else:
        axis = read.integer(node, "axis", 1) % codes.ndim
        if scale.ndim != 1 or scale.size != codes.shape[axis]:
            return None
        shape = tuple(-1 if at == axis else 1 for at in range(codes.ndim))
    if zeros is not None:
        zeros = _wide(zeros).reshape(shape) if zeros.any() else None
    stored = Quantized(_wide(codes), scale.reshape(shape), zeros, kind)  # type: ignore[arg-type]
    return Codes(stored, "dq", nbytes + scale.nbytes)


def _halves(value: ir.Value) -> Halves | None:
    values, node = floats(value), value.producer()
    if values is None or node is None or read.is_constant(node):
        return None
    return Halves(values, values.size * 2)


def _rounded(node: ir.Node) -> tuple[Array, int] | None:
    """The codes that QuantizeLinear makes of a constant with the scales of its counterpart."""
    maker = node.inputs[0].producer() if node.inputs[0] is not None else None
    if maker is None or maker.domain or not operators.quantizes(maker):
        return None
    values = read.constant(maker.inputs[0])
    if values is None or values.dtype != ir.DataType.FLOAT or not same_grid(maker, node):
        return None
    scale, zero = _array(maker.inputs[1]), _array(read.input(maker, 2))
    kind = np.dtype(np.uint8) if zero is None else zero.dtype
    if scale is None or kind not in (np.int8, np.uint8):
        return None
    array, axis = _copied(values), read.integer(maker, "axis", 1)
    shape = [1] * array.ndim
    if scale.size > 1:
        shape[axis % array.ndim] = -1
    first, last = np.iinfo(kind).min, np.iinfo(kind).max
    exact = np.rint(array / scale.reshape(shape)) + (0 if zero is None else zero.reshape(shape))
    return np.clip(exact, first, last).astype(kind), values.nbytes


def same_grid(quantize: ir.Node, dequantize: ir.Node) -> bool:
    """Whether a QuantizeLinear and a DequantizeLinear have equal scales and zero points."""
    if read.integer(quantize, "axis", 1) != read.integer(dequantize, "axis", 1):
        return False
    for index in (1, 2):
        one, other = read.input(quantize, index), read.input(dequantize, index)
        if one is other:
            continue
        first, second = _array(one), _array(other)
        if first is None or second is None or not np.array_equal(first, second):
            return False
    return True


def _multiplied_codes(node: ir.Node) -> Codes | None:
    for codes, factor in (tuple(node.inputs), tuple(node.inputs)[::-1]):
        scale, found = floats(factor), _whole(codes)
        if scale is not None and found is not None:
            numbers, zero, kind, nbytes = found
            shape = np.broadcast_shapes(numbers.shape, scale.shape)
            if shape != numbers.shape or (scale < 0).any():
                return None
            wide = scale.reshape((1,) * (numbers.ndim - scale.ndim) + scale.shape)
            stored = Quantized(numbers, wide.astype(np.float32), zero, kind)  # type: ignore[arg-type]
            return Codes(stored, "cast-mul", nbytes + scale.nbytes)
    return None


def floats(value: ir.Value | None) -> Array | None:
    """A constant in float32, or one in float16 behind a Cast; None for any other value."""
    node = None if value is None else value.producer()
    cast = node is not None and operators.moves(node) == "converts"
    tensor = read.constant(node.inputs[0] if cast and node is not None else value)
    if tensor is None or tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return None
    if not cast and tensor.dtype != ir.DataType.FLOAT:
        return None
    return _copied(tensor).astype(np.float32, copy=False)


def _whole(value: ir.Value | None) -> tuple[Array, Array | None, str, int] | None:
    """Codes, zero points, type and bytes of a value that is whole numbers in float32."""
    node = None if value is None else value.producer()
    if node is None or node.domain:
        return None
    if operators.moves(node) == "converts":
        tensor = read.constant(node.inputs[0])
        if read.integer(node, "to", 0) != ir.DataType.FLOAT or tensor is None:
            return None
        if tensor.dtype not in _TYPES:
            return None
        return _wide(_copied(tensor)), None, _TYPES[tensor.dtype], tensor.nbytes
    if operators.of(node, Arithmetic) == Arithmetic(inverse=True):
        found, zero = _whole(node.inputs[0]), _zeros(node.inputs[1])
        if found is None or found[1] is not None or zero is None or zero.ndim > found[0].ndim:
            return None
        codes, _, kind, nbytes = found
        wide = zero.reshape((1,) * (codes.ndim - zero.ndim) + zero.shape)
        if (wide != wide.astype(codes.dtype)).any():
            return None
        return codes, wide.astype(codes.dtype), kind, nbytes + zero.size
    if operators.moves(node) == "reshapes":  # codes of which the large ones are put back
        shape = read.integer_list(read.input(node, 1))
        scattered = _scattered(node.inputs[0])
        if shape is None or scattered is None:
            return None
        return scattered[0].reshape(shape), None, "int16", scattered[1]
    return None


def _scattered(value: ir.Value | None) -> tuple[Array, int] | None:
    """Codes in one row with some replaced by large ones, as ``dequantize`` writes them."""
    node = None if value is None else value.producer()
    if operators.of(node, Scatter) is None or node is None or read.integer(node, "axis", 0):
        return None
    flat = None if node.inputs[0] is None else node.inputs[0].producer()
    if flat is None or operators.moves(flat) != "reshapes":
        return None
    codes = _whole(flat.inputs[0])
    places, large = _array(node.inputs[1]), _whole(node.inputs[2])
    if codes is None or places is None or large is None or codes[1] is not None:
        return None
    row = codes[0].reshape(-1).astype(np.int16)
    row[places] = large[0]
    return row, codes[3] + places.nbytes + large[3]


def _zeros(value: ir.Value | None) -> Array | None:
    found = _whole(value)
    if found is not None:
        return found[0] if found[1] is None else None
    return floats(value)


def _array(value: ir.Value | None) -> Array | None:
    """The contents of a constant, for good; None for any other value."""
    tensor = read.constant(value)
    return None if tensor is None else _copied(tensor)


def _copied(tensor: ir.TensorProtocol) -> Array:
    """The contents of a tensor, without holding on to the file behind it."""
    found = np.array(tensor.numpy())
    tensors.release(tensor)
    return found


def _wide(array: Array) -> Array:
    """Codes of narrow types in 8 bits."""
    array = np.asarray(array)
    if array.dtype in (np.int8, np.uint8, np.int16):
        return array
    return array.astype(np.uint8 if array.dtype.name.startswith("u") else np.int8)


_READERS: dict[str, Callable[[ir.Node], Codes | None]] = {
    "Transpose": _transposed,
    "Reshape": _reshaped,
    "DequantizeLinear": _dequantized,
    "Mul": _multiplied_codes,
}


# ------------------------------------------------------------------------- out, and in again


def take_out(
    model: Model, wanted: Callable[[ir.Node, int], bool], *, halves: bool = False
) -> Taken:
    """Put floats in place of weights that are codes times scale.

    Args:
        model: The model, which is edited.
        wanted: Whether the codes are wanted as this input of this node.
        halves: Also weights in float16 that are computed with in float32.

    Returns:
        The codes, by the name of the weight.
    """
    taken: dict[str, Codes | Halves] = {}
    found: Codes | Halves | None
    for value in dict.fromkeys(_asked(model, wanted)):
        found, maker = of(value), value.producer()
        if found is None and halves:
            found = _halves(value)
        if found is None or maker is None or maker.graph is None or value.is_graph_output():
            continue
        recorder = Recorder(model, maker.graph)
        plain = recorder.constant(found.values, f"{value.name}.f")
        recorder.put_before(maker)
        above = [source for source in maker.inputs if source is not None]
        surgery.replace_node(model, maker, [plain])
        forget(model, above)
        if isinstance(found, Halves) and not above[0].uses():  # known by the name of its constant
            surgery.rename(model, plain, above[0].name or "")
        taken[plain.name or ""] = found
    return taken


def is_weight(node: ir.Node, index: int) -> bool:
    """Whether an input of a node is what products multiply with, or what rows are looked up in."""
    return operators.product(node, index) is not None or (operators.looks_up(node) and not index)


def _asked(model: Model, wanted: Callable[[ir.Node, int], bool]) -> Iterator[ir.Value]:
    for node in list(model.nodes):
        for index, value in enumerate(node.inputs):
            if value is not None and value.producer() is not None and wanted(node, index):
                yield value


def forget(model: Model, values: Iterable[ir.Value]) -> None:
    """Take values out that nothing uses any more, with all that only they are made of."""
    for value in values:
        node = value.producer()
        if value.uses() or value.is_graph_output():
            continue
        if node is None or read.is_constant(node):
            surgery.forget(model, value)
        elif not any(output.uses() or output.is_graph_output() for output in node.outputs):
            above = [source for source in node.inputs if source is not None]
            surgery.remove(model, node)
            forget(model, above)


def put_back(model: Model, views: Iterable[WeightView], taken: Taken) -> list[str]:
    """Store weights that were taken out, and are floats still, in the form in which they came.

    Args:
        model: The model, which is edited.
        views: Its weights.
        taken: See :func:`take_out`.

    Returns:
        The names of those that were put back.
    """
    back = []
    for view in views:
        known = taken.get(view.name)
        found = None if known is None or not view.uses else known.of(view)
        if found is not None:
            found.put_back(model, view)
            back.append(view.name)
    return back
