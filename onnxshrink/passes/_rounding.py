"""How the codes of a weight are chosen on its grid: the methods that weight quantizers offer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from onnxshrink.pipeline import Context

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.forms.layout import Layout
    from onnxshrink.graph.weights.views import WeightView
    from onnxshrink.kernels.affine import Dtype, Quantized
    from onnxshrink.kernels.observers import Need

Rounding = Literal["rtn", "balanced", "mse", "hqq", "gptq", "adaround"]
Clip = Literal["auto", "minmax", "mse"]
CALIBRATED = ("gptq", "adaround")
_GROUPS = 4  # runs of the model in which the layers of a sequential calibration are taken


def quantize(
    layout: Layout, dtype: Dtype, rounding: Rounding, ctx: Context, *,
    clip: Clip = "auto", symmetric: bool = True, short_scale: bool = False,
) -> tuple[Quantized, Rounding]:  # fmt: skip
    """A weight's grid and codes.

    Args:
        layout: The weight, and which of its elements share a scale.
        dtype: Type of the codes.
        rounding: The method. Where it has no statistics to work with (or the type is a float) the
            codes are those of ``balanced``.
        ctx: Where the statistics are.
        clip: ``auto`` searches the range with the least squared error for types below 8 bits.
        symmetric: Whether zero is in the middle of the range.
        short_scale: Round scales to what float16 holds.

    Returns:
        The codes, and the method that made them.

    Raises:
        ValueError: The weights cannot be quantized.
    """
    from onnxshrink.kernels import affine, hqq

    if rounding == "mse" or (clip == "auto" and affine.BITS[dtype] < 8 and rounding != "hqq"):
        clip = "mse"
    values = layout.values()
    stored = affine.quantize(
        values, dtype, layout.axes, symmetric=symmetric, clip="mse" if clip == "mse" else "minmax",
        short_scale=short_scale, rounding="rtn" if rounding in ("rtn", "mse") else "balanced",
    )  # fmt: skip
    if rounding == "hqq" and not affine.is_float(dtype):
        return hqq.refit(values, stored, layout.axes, short=short_scale), rounding
    if rounding in CALIBRATED and not affine.is_float(dtype):
        fitted = _fitted(layout, stored, rounding, ctx)
        return (stored, "balanced") if fitted is None else (fitted, rounding)
    return stored, "balanced" if rounding in (*CALIBRATED, "hqq") else rounding


def lesser(view: WeightView, dtype: Dtype, wanted: Rounding, method: Rounding) -> str:
    """Why the codes of a weight are not by the method that was asked for; empty when they are."""
    from onnxshrink.graph.weights import second_moments
    from onnxshrink.kernels import affine

    if method == wanted or wanted not in CALIBRATED:
        return ""
    if affine.is_float(dtype):
        return f"no {wanted}: {dtype} has no steps of one size"
    return f"no {wanted}: {second_moments.why_not(view) or 'its inputs were not observed'}"


def _fitted(
    layout: Layout, stored: Quantized, rounding: Rounding, ctx: Context
) -> Quantized | None:
    """The same grid with codes fitted to the inputs; None where there is nothing to fit to."""
    import numpy as np

    from onnxshrink.graph.weights import second_moments
    from onnxshrink.kernels import affine

    zero = np.zeros(()) if stored.zero_point is None else stored.zero_point
    method = second_moments.fed_back if rounding == "gptq" else second_moments.adarounded
    codes = method(
        ctx.statistics, layout.view, layout.spread(stored.scale.astype(np.float32)),
        layout.spread(zero.astype(np.float32)), affine.RANGES[stored.dtype],  # type: ignore[index]
    )  # fmt: skip
    if codes is None:
        return None
    return replace(stored, codes=layout.fold(codes).astype(stored.codes.dtype))


def needs(views: Iterable[WeightView]) -> Iterator[Need]:
    """What the methods in ``CALIBRATED`` want to know of the inputs of some weights."""
    from onnxshrink.graph.weights import second_moments

    for view in views:
        yield from second_moments.needs(view)


def groups(model: Model, views: Sequence[WeightView]) -> list[list[WeightView]]:
    """Weights in the order in which the model uses them, a few layers at a time."""
    place = {node: number for number, node in enumerate(model.nodes)}
    used = [view for view in views if view.uses]
    used.sort(key=lambda view: place.get(view.main.node, 0))
    size = max(1, -(-len(used) // _GROUPS))
    return [used[at : at + size] for at in range(0, len(used), size)]


def recalibrated(
    pairs: Iterable[tuple[WeightView, Any]], parts: Sequence[Sequence[WeightView]],
    model: Model, ctx: Context,
) -> Iterator[tuple[WeightView, Any]]:  # fmt: skip
    """Weights with their options, the statistics of each group taken from the model as it is then.

    So each layer is fitted to the inputs that the layers before it will really give it, rounded as
    they are, and makes up for some of their error. What the first group needs is there already.

    Args:
        pairs: Weights in the order of the groups, with their options.
        parts: The groups.
        model: The model while it is edited.
        ctx: Feeds, the worker, and the statistics, which are exchanged.
    """
    from onnxshrink.runtime.calibrate import calibrate

    group = {view: number for number, part in enumerate(parts) for view in part}
    last = 0
    for view, options in pairs:
        number = group.get(view, last)
        if number > last:
            last = number
            found = needs(parts[number])
            ctx.statistics = calibrate(model, found, ctx.feeds, ctx.worker, ctx.progress)
        yield view, options
