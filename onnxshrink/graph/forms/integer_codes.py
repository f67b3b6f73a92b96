"""Codes that integer kernels take as they are, stored in fewer bits and rebuilt as the model loads.

``MatMulInteger(x, B)`` with a B of 8 bits becomes the same node over a B that is computed from
codes of 4 bits: whole steps of the old codes, so that every one of them is met exactly, and neither
the kernel nor its scales change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxshrink.graph import read
from onnxshrink.graph.file import tensors
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import dequantize
from onnxshrink.graph.forms.rebuild import Rebuild
from onnxshrink.graph.weights.views import WeightView
from onnxshrink.kernels import affine
from onnxshrink.kernels.affine import Clip, Dtype, Quantized, Rounding

Array = npt.NDArray[Any]

_OURS = "com.microsoft"
_CONV, _LAST = 0, -1  # the axis of the output channels
# Of each kernel: the inputs that are codes of a weight, where the zero point of each is, the axis.
_KERNELS: dict[tuple[str, str], tuple[dict[int, int], int]] = {
    ("", "ConvInteger"): ({1: 3}, _CONV),
    ("", "MatMulInteger"): ({1: 3}, _LAST),
    ("", "QLinearConv"): ({3: 5}, _CONV),
    ("", "QLinearMatMul"): ({3: 5}, _LAST),
    (_OURS, "DynamicQuantizeLSTM"): ({1: 9, 2: 11}, _LAST),
    (_OURS, "DynamicQuantizeMatMul"): ({1: 3}, _LAST),
    (_OURS, "MatMulIntegerToFloat"): ({1: 5}, _LAST),
    (_OURS, "QLinearConv"): ({3: 5}, _CONV),
}
_BYTES = {ir.DataType.INT8, ir.DataType.UINT8}


@dataclass(frozen=True)
class Coarser:
    """Codes of fewer bits for a weight that is codes.

    Attributes:
        stored: The codes; their scales are whole steps of the codes that the kernel takes.
        zero: The zero point of these, which the kernel takes off.
        sqnr: Signal to what the coarser codes add as noise, in dB.
    """

    stored: Quantized
    zero: Array
    sqnr: float


def unlocked(views: Iterable[WeightView]) -> Iterator[WeightView]:
    """Weights with those free to change that :func:`coarser` takes."""
    for view in views:
        yield view if _grid(view) is None else replace(view, locked="")


def takes(view: WeightView) -> bool:
    """Whether a weight is codes, free to change."""
    return view.tensor.dtype in _BYTES and not view.locked


def _known(view: WeightView) -> tuple[Array, int]:
    grid = _grid(view)
    assert grid is not None  # a weight of unlocked()
    return grid


def _grid(view: WeightView) -> tuple[Array, int] | None:
    """The zero point of a weight's codes, to be broadcast, and their axis of channels.

    None for what is no constant of a kernel alone, and where its users disagree.
    """
    if view.tensor.dtype not in _BYTES or view.value.is_graph_output():
        return None
    found: list[tuple[Array, int]] = []
    for node, index in view.value.uses():
        places, axis = _KERNELS.get((node.domain, node.op_type), ({}, 0))
        if index not in places:
            return None
        zero, rank = read.input(node, places[index]), len(view.shape)
        tensor = read.constant(zero)
        if zero is not None and tensor is None:
            return None
        values = np.zeros(1, np.int32) if tensor is None else np.array(tensor.numpy(), np.int32)
        if values.size == 1:
            values = values.reshape((1,) * rank)
        elif axis == _CONV:
            values = values.reshape(-1, *(1,) * (rank - 1))
        elif node.op_type == "DynamicQuantizeLSTM":  # [directions] or [directions, channels]
            values = values.reshape(view.shape[0], 1, -1)
        found.append((values, axis))
    first = found[0] if found else None
    if first is None or any(a != first[1] or not np.array_equal(z, first[0]) for z, a in found):
        return None
    return first


@dataclass(frozen=True)
class Whole:
    """What the codes of a kernel stand for: whole numbers, before the kernel's scales.

    Attributes:
        values: The codes less their zero point, in float32.
        zero: The zero point, to be broadcast.
        dtype: The kernel's type.
    """

    values: Array
    zero: Array
    dtype: np.dtype[Any]

    @property
    def limits(self) -> tuple[Array, Array]:
        """The least and the largest number that the kernel's type holds."""
        kind = np.iinfo(self.dtype)
        return kind.min - self.zero, kind.max - self.zero

    @classmethod
    def of(cls, view: WeightView) -> Whole:
        """What a weight of :func:`unlocked` stands for."""
        zero, _ = _known(view)
        codes = np.array(view.tensor.numpy(), np.float32)
        tensors.release(view.tensor)
        return cls(codes - zero.astype(np.float32), zero, view.tensor.dtype.numpy())

    def codes(self, values: Array) -> Array:
        """The kernel's codes for other numbers within the limits, in the weight's shape."""
        return (values.reshape(self.values.shape) + self.zero).astype(self.dtype)


def coarser(
    view: WeightView, dtype: Dtype, *, symmetric: bool, clip: Clip, rounding: Rounding
) -> Coarser:
    """Codes of fewer bits for a weight of :func:`unlocked`; the arguments are those of affine."""
    whole, axis = Whole.of(view), _known(view)[1]
    values = whole.values
    along = tuple(range(1, values.ndim)) if axis == _CONV else (values.ndim - 2,)
    fine = affine.quantize(values, dtype, along, symmetric=symmetric, clip=clip, rounding=rounding)
    steps = np.maximum(np.rint(fine.scale), 1)
    stored = affine.rescaled(values, fine, steps, rounding)
    # A product beyond the kernel's type would wrap round.
    middle = 0 if stored.zero_point is None else stored.zero_point.astype(np.int32)
    lowest, highest = whole.limits
    within = np.clip(
        stored.codes, np.ceil(lowest / steps) + middle, np.floor(highest / steps) + middle
    )
    return on_grid(view, replace(stored, codes=within.astype(stored.codes.dtype)))


def on_grid(view: WeightView, stored: Quantized) -> Coarser:
    """Codes that stand for whole numbers of a weight of :func:`unlocked`, and what they lose."""
    whole = Whole.of(view)
    return Coarser(stored, whole.zero, affine.sqnr_db(whole.values, stored))


def put_in_place(model: Model, view: WeightView, found: Coarser) -> int:
    """Store the coarser codes, and rebuild the kernel's from them.

    Returns:
        Bytes that it takes now, about.
    """
    rebuild = Rebuild(model, view)
    result = dequantize.cast_mul(rebuild, found.stored, ir.DataType.FLOAT)
    if found.zero.any():
        offset = rebuild.constant(found.zero.astype(np.float32), "o")
        result = rebuild.node("Add", [result, offset], "a")
    rebuild.finish(rebuild.node("Cast", [result], "t", to=view.dtype.value))
    return rebuild.nbytes
