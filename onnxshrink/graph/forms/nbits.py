"""Weights in ONNX Runtime's own block-quantized operators, MatMulNBits and GatherBlockQuantized."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import products
from onnxshrink.graph.forms.rebuild import Rebuild
from onnxshrink.graph.rewrite import opset
from onnxshrink.graph.weights.views import WeightView
from onnxshrink.kernels import bits
from onnxshrink.kernels.affine import Quantized

_DOMAIN = "com.microsoft"


def why_not(view: WeightView, nbits: int, block_size: int = 32) -> str:
    """Why a weight cannot be one of these operators'; empty when it can.

    Args:
        view: The weight.
        nbits: Bits of a code.
        block_size: Weights of a row that share a scale.
    """
    if view.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return f"MatMulNBits takes float and float16, not {view.dtype.name.lower()}"
    lookups = products.lookups(view, turned=True)
    width = view.shape[-1] if not lookups else math.prod(view.shape[a] for a in view.axes.contract)
    if len(lookups) == len(view.uses) and not view.others:
        whole = width * nbits % 8 == 0
        return "" if whole else f"a row of {width} codes does not fill its last byte"
    try:
        products.of(view, but=lookups, turned=True)
    except ValueError as error:
        return str(error)
    if len(view.shape) != 2:
        return f"MatMulNBits takes matrices, not {view.shape}"
    if lookups and width % block_size:
        return f"is looked up, too, and {width} is no multiple of {block_size}"
    return ""


def stored(model: Model, view: WeightView, codes: Quantized, accuracy_level: int) -> int:
    """Put block-quantized operators in place of those that use a weight.

    Args:
        model: The model, whose journal is kept.
        view: A weight that :func:`why_not` says nothing against.
        codes: Codes of its blocks, [outputs, blocks, block].
        accuracy_level: MatMulNBits' own: 0 computes in the activations' type, 4 with activations
            rounded to 8 bits.

    Returns:
        Bytes that it takes now, about.
    """
    rebuild = Rebuild(model, view)
    rows, count, block_size = codes.codes.shape
    # The operators' codes are unsigned, with the zero point in the middle unless one is given.
    middle = 0 if codes.dtype.startswith("u") else 1 << (codes.bits - 1)
    numbers = codes.codes.astype(np.uint8)
    numbers += np.uint8(middle)
    lookups = products.lookups(view, turned=True)
    multiplied = products.of(view, but=lookups, turned=True)
    width = view.size // rows
    if not multiplied:  # products take every block whole
        numbers = numbers.reshape(rows, -1)[:, :width]
    form = (rows, count, -1) if multiplied else (rows, -1)
    data = rebuild.constant(bits.pack(numbers, codes.bits).reshape(form), "q")
    # Never as float16 behind a Cast: MatMulNBits repacks its scales when it loads, finds none there
    # with optimizations off, and answers zeros.
    scales = codes.scale.reshape(rows, count).astype(view.dtype.numpy())
    inputs = [rebuild.constant(scales, "s")]
    if codes.zero_point is not None:
        zeros = codes.zero_point.reshape(rows, count).astype(np.uint8) + np.uint8(middle)
        if (zeros != 1 << (codes.bits - 1)).any():
            whole = np.pad(zeros, ((0, 0), (0, -count % (8 // codes.bits))))
            inputs.append(rebuild.constant(bits.pack(whole, codes.bits).reshape(rows, -1), "z"))
    table = data
    if lookups and multiplied:  # the same bytes, as rows; folded at load
        shape = rebuild.constant(np.array([rows, -1], np.int64), "n")
        table = rebuild.node("Reshape", [data, shape], "r")
    rebuild.place()
    for use in lookups:
        looked_up, indices = use.node.inputs[:2]
        assert indices is not None
        opset.import_domain(model, use.node, _DOMAIN)
        result = rebuild.node(
            "GatherBlockQuantized", [table, indices, *inputs], "w", _DOMAIN,
            bits=codes.bits, block_size=block_size, gather_axis=0, quantize_axis=1,
        )  # fmt: skip
        rebuild.put_in_place(use.node, [result])
        products.forget_between(rebuild, looked_up)
    for product in multiplied:
        opset.import_domain(model, product.node, _DOMAIN)
        level = {"accuracy_level": accuracy_level} if accuracy_level else {}
        result = rebuild.node(
            "MatMulNBits", [product.rows(rebuild), data, *inputs], "m", _DOMAIN,
            K=width, N=rows, bits=codes.bits, block_size=block_size, **level,
        )  # fmt: skip
        products.replace(rebuild, product, result)
    rebuild.drop()
    return rebuild.nbytes
