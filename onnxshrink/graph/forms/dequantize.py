"""A weight as integer codes or in a narrower type, and the nodes that turn it back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from onnxshrink.graph import read
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms.layout import Layout
from onnxshrink.graph.forms.rebuild import Rebuild, has_initializers
from onnxshrink.graph.weights.views import WeightView
from onnxshrink.kernels import bits, rate
from onnxshrink.kernels.affine import Quantized

#: ``dq``: DequantizeLinear, which ONNX Runtime fuses into integer MatMul kernels. ``cast-mul``:
#: Cast and Mul, which it folds once at load. ``gather``: rows are rebuilt after the lookup.
#: ``nbits``: operators that take the codes as they are (see ``nbits``). ``wide-dq``:
#: DequantizeLinear of codes in 8 bits, which a Cast makes of narrower ones as the model is loaded,
#: for integer kernels, which take no others.
Form = Literal["dq", "cast-mul", "gather", "nbits", "wide-dq"]

#: Bytes that a Cast behind a constant costs, about.
CAST_OVERHEAD = 50
_SCATTER_ELEMENTS = 11  # the operator set that has it
_SHORT_SCALES = 48  # fewer are not worth a Cast


def can_gather(model: Model, view: WeightView) -> bool:
    """Whether ``gather`` can be used: lookups of whole rows are all that happens to the weight."""
    return (
        has_initializers(model, view)
        and not view.others
        and all(use.picks_rows for use in view.uses)
    )


def can_dequantize(layout: Layout, nbits: int) -> bool:
    """Whether ``dq`` can be used: a float type that DequantizeLinear makes, scales along one axis.

    Args:
        layout: How the weight is quantized.
        nbits: Bits of a code.
    """
    view, shape, shared = layout.view, layout.shape, layout.axes
    if nbits == 2 and (shape[-1] % 4 or not all(use.direct for use in view.uses)):
        # ONNX Runtime 1.32 fails to load 2-bit codes in front of a Transpose, and computes
        # something else at every load with rows that do not fill their last byte.
        return False
    if view.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return False
    if shape == view.shape:
        return sum(dim > 1 for axis, dim in enumerate(shape) if axis not in shared) <= 1
    return len(shape) == len(view.shape) + 1  # one axis is cut into blocks


def stored_bytes(stored: Quantized, form: Form) -> int:
    """Bytes that codes take in a form, scales and zero points included, nodes and names not."""
    short = form in ("cast-mul", "gather") and stored.scale.size >= _SHORT_SCALES
    return stored.nbytes - short * (stored.scale.nbytes // 2 - CAST_OVERHEAD)


def code_tensor(stored: Quantized, shape: Sequence[int]) -> np.ndarray | ir.TensorProtocol:
    """Codes as the tensor to store, of a given shape."""
    kind = ir.DataType[stored.dtype.upper()]
    if stored.bits < 8:
        return ir.PackedTensor(bits.pack(stored.codes, stored.bits), kind, shape=ir.Shape(shape))
    # Not ascontiguousarray, which makes a vector of a scalar.
    return ir.Tensor(np.asarray(stored.codes.reshape(shape), order="C"), dtype=kind)


def dequantized(model: Model, view: WeightView, stored: Quantized, form: Form) -> int:
    """Replace a weight by integer codes and the nodes that turn them back into it.

    Args:
        model: The model, whose journal is kept.
        view: The weight.
        stored: Its codes, in the stored shape or with one axis split into blocks.
        form: How the codes are turned back; ``dq`` takes scales per tensor, per axis, or per
            block of one axis, ``cast-mul`` any, ``gather`` one scale per row of the first axis.

    Returns:
        Bytes that it takes now, about.
    """
    rebuild = Rebuild(model, view)
    if form == "gather":
        _gathered(rebuild, stored)
    elif form in ("dq", "wide-dq"):
        wide = form == "wide-dq" and stored.bits < 8
        rebuild.finish(_dequantize_linear(rebuild, stored, view.shape, wide=wide))
    else:
        rebuild.finish(cast_mul(rebuild, stored))
    return rebuild.nbytes


def dequantized_gemm(model: Model, view: WeightView, stored: Quantized) -> int:
    """Replace the weight of one Gemm by DequantizeLinear of its transpose, and turn the Gemm.

    ONNX Runtime fuses DequantizeLinear with a Gemm only where ``transB`` is 0.

    Args:
        model: The model, whose journal is kept.
        view: A weight with one use, the second input of a Gemm.
        stored: Codes of the *transposed* weight.

    Returns:
        Bytes that it takes now, about.
    """
    node = view.main.node
    node.attributes["transB"] = ir.AttrInt64("transB", 1 - read.integer(node, "transB", 0))
    model.touch_node(node)
    rebuild = Rebuild(model, view)
    rebuild.finish(_dequantize_linear(rebuild, stored, view.shape[::-1]))
    return rebuild.nbytes


def cast_mul(
    rebuild: Rebuild, stored: Quantized, result_type: ir.DataType | None = None
) -> ir.Value:
    """Integer codes turned into the weight by Cast and Mul, which runtimes fold at load.

    Args:
        rebuild: Where the nodes go.
        stored: The codes.
        result_type: The type to compute, if not the weight's own.
    """
    view = rebuild.view
    wanted = result_type or view.dtype
    working = multiplied_in(wanted)
    shape = stored.codes.shape
    large = None
    if stored.codes.dtype == np.int16 and rebuild.model.opset >= _SCATTER_ELEMENTS:
        large = rate.escaped(stored.codes)
    codes = code_tensor(stored, shape) if large is None else large.codes
    result = rebuild.node("Cast", [rebuild.constant(codes, "q")], "c", to=working.value)
    if large is not None:
        result = _with_large(rebuild, result, large, working)
    if stored.zero_point is not None:
        result = rebuild.node("Sub", [result, _zero(rebuild, stored, working)], "d")
    scale = factor(rebuild, trimmed(stored.scale, len(shape)), working)
    result = rebuild.node("Mul", [result, scale], "w")
    if shape != view.shape:
        target = rebuild.constant(np.array(view.shape, np.int64), "n")
        result = rebuild.node("Reshape", [result, target], "r")
    if working != wanted:
        result = rebuild.node("Cast", [result], "t", to=wanted.value)
    return result


def multiplied_in(dtype: ir.DataType) -> ir.DataType:
    """The type in which what rebuilds a weight is multiplied; a Cast makes the weight's of it.

    CPUs have no kernels for products of 16 bits: a runtime could not fold these at load, and would
    compute the weight at every run.
    """
    short = dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    return ir.DataType.FLOAT if short else dtype


def _with_large(
    rebuild: Rebuild, result: ir.Value, large: rate.Escaped, dtype: ir.DataType
) -> ir.Value:
    """Codes with the large ones put back in their places."""
    flat = rebuild.constant(np.array([-1], np.int64), "l")
    places, values = rebuild.constant(large.places, "p"), rebuild.constant(large.large, "v")
    values = rebuild.node("Cast", [values], "y", to=dtype.value)
    result = rebuild.node("Reshape", [result, flat], "e")
    result = rebuild.node("ScatterElements", [result, places, values], "g", axis=0)
    shape = rebuild.constant(np.array(large.codes.shape, np.int64), "o")
    return rebuild.node("Reshape", [result, shape], "a")


def _zero(rebuild: Rebuild, stored: Quantized, dtype: ir.DataType) -> ir.Value:
    """Zero points in the type that they are taken off in, stored as codes where there are many."""
    assert stored.zero_point is not None
    zero = trimmed(stored.zero_point, stored.zero_point.ndim)
    if (zero == zero.flat[0]).all():
        zero = np.asarray(zero.flat[0])
    if zero.size < _SHORT_SCALES:
        return rebuild.constant(zero.astype(dtype.numpy()), "z")
    packed = rebuild.constant(code_tensor(replace(stored, codes=zero), zero.shape), "z")
    return rebuild.node("Cast", [packed], "y", to=dtype.value)


def factor(rebuild: Rebuild, scale: np.ndarray, dtype: ir.DataType) -> ir.Value:
    """A scale in the type that it is multiplied in, stored as float16 where that saves bytes."""
    short = _short(scale, dtype)
    if short is None:
        return rebuild.constant(scale.astype(dtype.numpy()), "s")
    return rebuild.node("Cast", [rebuild.constant(short, "s")], "f", to=dtype.value)


def _short(scale: np.ndarray, dtype: ir.DataType) -> np.ndarray | None:
    """The scale as float16, if that is exact and saves more than the Cast costs."""
    if dtype == ir.DataType.FLOAT16 or scale.size < _SHORT_SCALES:
        return None
    with np.errstate(over="ignore"):
        short = scale.astype(np.float16)
    return short if np.array_equal(short.astype(scale.dtype), scale) else None


def trimmed(array: np.ndarray, rank: int) -> np.ndarray:
    """The same array without leading axes of size 1, which broadcasting supplies."""
    lead = next((i for i, dim in enumerate(array.shape) if dim > 1), rank)
    return array.reshape(array.shape[lead:])


def _dequantize_linear(
    rebuild: Rebuild, stored: Quantized, shape: tuple[int, ...], *, wide: bool = False
) -> ir.Value:
    attributes, scale_shape = _placement(stored, shape)
    kind = rebuild.view.dtype.numpy()
    codes = rebuild.constant(code_tensor(stored, shape), "q")
    scale = rebuild.constant(stored.scale.reshape(scale_shape).astype(kind), "s")
    zeros = stored.zero_point
    if zeros is None:
        # Written even when all are zero: some runtimes refuse a signed DQ without it.
        zeros = np.zeros(stored.scale.shape, stored.codes.dtype)
    if wide:
        codes = rebuild.node(
            "Cast", [codes], "c", to=ir.DataType[stored.codes.dtype.name.upper()].value
        )
        stored = replace(stored, dtype="int8" if stored.codes.dtype == np.int8 else "uint8")
    packed = code_tensor(replace(stored, codes=zeros), scale_shape)
    zero = rebuild.constant(packed, "z")
    return rebuild.node("DequantizeLinear", [codes, scale, zero], "w", **attributes)


def _placement(stored: Quantized, shape: tuple[int, ...]) -> tuple[dict[str, Any], tuple[int, ...]]:
    """DequantizeLinear's attributes and the shape of its scale."""
    scale = stored.scale.shape
    if stored.codes.shape != shape:  # [.., K / block, block, ..]: one axis is split in two
        axis = next(a for a, dim in enumerate(shape) if stored.codes.shape[a] != dim)
        block = stored.codes.shape[axis + 1]
        return {"axis": axis, "block_size": block}, scale[: axis + 1] + scale[axis + 2 :]
    wide = [axis for axis, dim in enumerate(scale) if dim > 1]
    if len(wide) > 1:
        raise ValueError("DequantizeLinear has scales along one axis only")
    return ({"axis": wide[0]}, (scale[wide[0]],)) if wide else ({}, ())


def _gathered(rebuild: Rebuild, stored: Quantized) -> None:
    """Look up codes and scales, and multiply only the rows that were asked for."""
    view = rebuild.view
    codes = rebuild.constant(code_tensor(stored, view.shape), "q")
    per_row = stored.scale.shape[0] > 1
    short = _short(stored.scale, view.dtype) if per_row else None
    if per_row:
        values = stored.scale.astype(view.dtype.numpy()) if short is None else short
        scale = rebuild.constant(values, "s")
    else:
        scale = factor(rebuild, trimmed(stored.scale, len(view.shape)), view.dtype)
    for use in view.uses:
        indices = use.node.inputs[1]
        assert indices is not None
        picked = rebuild.node("Gather", [codes, indices], "q", axis=0)
        rows = rebuild.node("Cast", [picked], "c", to=view.dtype.value)
        factors = scale
        if per_row:
            factors = rebuild.node("Gather", [scale, indices], "s", axis=0)
        if short is not None:
            factors = rebuild.node("Cast", [factors], "f", to=view.dtype.value)
        result = rebuild.node("Mul", [rows, factors], "w")
        rebuild.put_in_place(use.node, [result])
    rebuild.drop()


def stored_as(model: Model, view: WeightView, values: np.ndarray) -> None:
    """Replace a constant by the same values in another type, and a Cast back.

    Args:
        model: The model, whose journal is kept.
        view: The constant.
        values: Its values in the type to store them in.
    """
    rebuild = Rebuild(model, view)
    narrow = rebuild.constant(values, "h")
    rebuild.finish(rebuild.node("Cast", [narrow], "w", to=view.dtype.value))
