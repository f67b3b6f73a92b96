"""How the codes of a weight are chosen on its grid: the methods that weight quantizers offer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from onnxshrink.pipeline import Context

if TYPE_CHECKING:
    import numpy as np

    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.forms.layout import Layout
    from onnxshrink.graph.weights.views import WeightView
    from onnxshrink.kernels.affine import Dtype, Quantized
    from onnxshrink.kernels.observers import Need

Rounding = Literal["rtn", "balanced", "mse", "hqq", "gptq", "adaround"]
Clip = Literal["auto", "minmax", "mse"]
#: CPUs that a file of integer products is for.
Cpu = Literal["any", "vnni"]
CPU_HELP = (
    "any: codes that every CPU computes rightly, as coarse as 16-bit sums of two products need it, "
    "or uint8 where that costs too much; vnni: the full range, for x86 CPUs with VNNI and Arm's"
)
CALIBRATED = ("gptq", "adaround")
_DB_OF_A_BIT = 6.02
_LEAST_BITS = 0.25  # an error that is a sixth lower; below it a weight keeps the simpler form
_ZERO_POINT_BYTES = 60  # of the node that takes zero points off, about
_COARSE_DB = 30.0  # weights that are off by 3 %
_GROUPS = 4  # runs of the model in which the layers of a sequential calibration are taken


def quantize(
    layout: Layout, dtype: Dtype, rounding: Rounding, ctx: Context, *,
    clip: Clip = "auto", symmetric: bool | None = True, short_scale: bool = False,
    signed_scale: bool = False,
) -> tuple[Quantized, Rounding]:  # fmt: skip
    """A weight's grid and codes.

    Args:
        layout: The weight, and which of its elements share a scale.
        dtype: Type of the codes.
        rounding: The method. Where it has no statistics to work with (or the type is a float) the
            codes are those of ``balanced``.
        ctx: Where the statistics are.
        clip: ``auto`` searches the range with the least squared error for types below 8 bits.
        symmetric: Whether zero is in the middle of the range; None: unless a zero point is worth
            its bytes.
        short_scale: Round scales to what float16 holds.
        signed_scale: Whether scales may be negative: then the largest weight that shares one may
            have the lowest code, whatever its sign. There is no positive one of that size.

    Returns:
        The codes, and the method that made them.

    Raises:
        ValueError: The weights cannot be quantized.
    """
    from onnxshrink.kernels import affine, hqq

    if rounding == "mse" or (clip == "auto" and affine.BITS[dtype] < 8 and rounding != "hqq"):
        clip = "mse"
    values = layout.values()
    signs = None
    # Codes of 8 bits have both signs of every size; adaround bounds weights by scales.
    signed_scale = signed_scale and rounding != "adaround" and affine.BITS[dtype] < 8
    if signed_scale and symmetric:
        signs = affine.signs(values, layout.axes)
        values = values * signs
    first, *others = [
        affine.quantize(
            values, dtype, layout.axes, symmetric=centred, short_scale=short_scale,
            clip="mse" if clip == "mse" else "minmax",
            rounding="rtn" if rounding in ("rtn", "mse") else "balanced",
        )
        for centred in ((True, False) if symmetric is None else (symmetric,))
    ]  # fmt: skip
    stored = first
    if others and _worth_a_zero_point(values, first, others[0]):
        stored = others[0]
    if rounding == "hqq" and not affine.is_float(dtype):
        stored = hqq.refit(values, stored, layout.axes, short=short_scale)
    if signs is not None:
        stored = replace(stored, scale=stored.scale * signs)
    if rounding == "hqq" and not affine.is_float(dtype):
        return stored, rounding
    if rounding in CALIBRATED and not affine.is_float(dtype):
        fitted = _fitted(layout, stored, rounding, ctx)
        return (stored, "balanced") if fitted is None else (fitted, rounding)
    return stored, "balanced" if rounding in (*CALIBRATED, "hqq") else rounding


def _worth_a_zero_point(values: np.ndarray, centred: Quantized, moved: Quantized) -> bool:
    """Whether a zero point cuts the error by more than its bytes would if they made codes finer.

    A bit more for every code halves the error.
    """
    from onnxshrink.kernels import affine

    gain = (affine.sqnr_db(values, moved) - affine.sqnr_db(values, centred)) / _DB_OF_A_BIT
    return gain > _LEAST_BITS and gain * values.size / 8 > _ZERO_POINT_BYTES + moved.scale.size


def coarser(layout: Layout, stored: Quantized, *, channels_last: bool = False) -> Quantized:
    """Codes that no CPU computes wrongly: as coarse as it takes that no sum of 16 bits overflows.

    The bound is exact and holds for all inputs: of two weights that are multiplied side by side,
    those of one sign add up to at most 128 (see ``kernels.saturation``). A large weight beside
    small ones keeps its 8 bits; 7 bits for all would be the worst case of it.

    Args:
        layout: The weight, and which of its elements share a scale.
        stored: Its codes, int8 without zero points.
        channels_last: Whether the channels of a convolution lie next to each other when it runs.
    """
    import numpy as np

    from onnxshrink.kernels import affine, saturation

    if not overflows(layout, stored, channels_last=channels_last):
        return stored
    view, order = layout.view, _side_by_side(layout.view, channels_last)

    def rows(values: np.ndarray) -> np.ndarray:
        return view.to_matrix(layout.spread(values))[:, order]

    values = layout.values()
    least = saturation.least_scale(rows(values))
    least = least.max() if stored.scale.size != least.size else least.reshape(stored.scale.shape)
    wanted = affine.usable(np.maximum(stored.scale, least), short=_is_short(stored.scale))
    stored = affine.rescaled(values, stored, wanted, "balanced")
    tamed = saturation.tamed(rows(stored.codes))[:, np.argsort(order)]
    return replace(stored, codes=layout.fold(view.from_matrix(tamed)))


def kept(layout: Layout, stored: Quantized, *, channels_last: bool = False) -> Quantized:
    """Codes that a weight came in, for products with uint8 on every CPU.

    They are the very ones where no sum can overflow, as coarse grids have them. Else the channels
    that would are rounded to coarser scales, or all move to uint8 where that costs too much.

    Args:
        layout: The weight, and which of its elements may share a scale at most.
        stored: Its codes.
        channels_last: See :func:`overflows`.
    """
    from onnxshrink.kernels import affine

    if stored.dtype != "int8" or not overflows(layout, stored, channels_last=channels_last):
        return stored
    if stored.centred:
        apart = affine.widened(stored, layout.axes)
        safe = coarser(layout, apart, channels_last=channels_last)
        if not is_too_coarse(layout, safe):
            return safe
    return affine.unsigned(stored)


def kept_note(stored: Quantized, safe: Quantized) -> str:
    """What :func:`kept` did, for a report."""
    if safe is stored:
        return "its codes kept"
    if safe.dtype != stored.dtype:
        return f"its codes kept as {safe.dtype}, for CPUs without VNNI"
    return "its codes kept, coarser in channels for CPUs without VNNI"


def overflows(layout: Layout, stored: Quantized, *, channels_last: bool = False) -> bool:
    """Whether some input would make a CPU that adds two products in 16 bits compute wrongly.

    Args:
        layout: The weight, and which of its elements share a scale.
        stored: Its codes, int8.
        channels_last: Whether the channels of a convolution lie next to each other when it runs.
    """
    from onnxshrink.kernels import saturation

    codes = layout.view.to_matrix(layout.spread(stored.codes))
    ordered = codes[:, _side_by_side(layout.view, channels_last)]
    return bool(saturation.can_saturate(ordered).any())


def _side_by_side(view: WeightView, channels_last: bool) -> np.ndarray:
    """The order in which the inputs of an output are multiplied, two by two."""
    import numpy as np

    order = np.arange(view.matrix.shape[1])
    if channels_last and len(view.shape) > 2:
        order = order.reshape(view.shape[1], -1).T.reshape(-1)
    return order


def _is_short(scale: np.ndarray) -> bool:
    return bool((scale.astype("float16").astype("float32") == scale).all())


def is_too_coarse(layout: Layout, stored: Quantized) -> bool:
    """Whether codes for every CPU lose so much that slower kernels are the better choice."""
    from onnxshrink.kernels import affine

    return affine.sqnr_db(layout.values(), stored) < _COARSE_DB


def lesser(view: WeightView, dtype: Dtype, wanted: Rounding, method: Rounding) -> str:
    """Why the codes of a weight are not by the method that was asked for; empty when they are."""
    from onnxshrink.graph.weights import second_moments
    from onnxshrink.kernels import affine

    if method == wanted or wanted not in CALIBRATED:
        return ""
    if affine.is_float(dtype):
        return f"no {wanted}: {dtype} has no steps of one size"
    return f"no {wanted}: {second_moments.unknown(view)}"


def _fitted(
    layout: Layout, stored: Quantized, rounding: Rounding, ctx: Context
) -> Quantized | None:
    """The same grid with codes fitted to the inputs; None where there is nothing to fit to."""
    import numpy as np

    from onnxshrink.graph.weights import second_moments
    from onnxshrink.kernels import affine

    zero = np.zeros(()) if stored.zero_point is None else stored.zero_point
    codes = second_moments.fitted(
        ctx.statistics, layout.view, layout.spread(stored.scale.astype(np.float32)),
        layout.spread(zero.astype(np.float32)), affine.RANGES[stored.dtype],  # type: ignore[index]
        "gptq" if rounding == "gptq" else "adaround",
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
