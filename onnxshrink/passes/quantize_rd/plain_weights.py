"""The weights that quantize-rd gives no grid of their own: which, and their codes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxshrink.graph.weights.views import WeightView
    from onnxshrink.kernels.affine import Quantized

MORE_BITS = 7  # than 8 at most, of weights without a grid: codes of 16 bits
_LEAST = 2048  # weights of fewer elements are not worth a search of their own


def kept_at_eight(view: WeightView) -> str:
    """Why a weight keeps 8 bits; empty when it need not."""
    from onnxshrink.graph import operators

    if view.size < _LEAST:
        return f"fewer than {_LEAST} elements"
    if not view.uses:
        return ""
    product = view.main.product
    if product is not None and product.convolves and view.size // view.shape[view.axes.out[0]] < 32:
        return "depthwise" if product.groups > 1 else ""
    source = view.activation.producer() if view.activation is not None else None
    return "reads a one-hot encoding" if operators.of(source, operators.OneHot) else ""


def eight_bits(view: WeightView) -> Quantized:
    """A weight in int8, each output with a scale of its own."""
    from onnxshrink.kernels import affine

    axes = view.axes.contract or tuple(range(len(view.shape)))
    quantized = affine.quantize(view.array(), "int8", axes, rounding="balanced", short_scale=True)
    view.release()
    return quantized


def finer(view: WeightView, stored: Quantized, more: int) -> Quantized:
    """A weight on the grid of its 8 bits, made finer by some bits."""
    import numpy as np

    from onnxshrink.kernels import affine, rate
    from onnxshrink.kernels.affine import Quantized

    if not more or stored.zero_point is not None:
        return stored
    scale = affine.usable(stored.scale / 2**more, short=True)
    codes = rate.stored(np.rint(view.array() / scale).astype(np.int32))
    view.release()
    return Quantized(codes, scale, None, "int8" if codes.itemsize == 1 else "int16")
