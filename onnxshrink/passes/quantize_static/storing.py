"""How quantize-static stores weights: as operands of integer kernels, or rebuilt at load."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from onnxshrink.kernels.observers import Extremes, Need, SecondMoment, SomeRows
from onnxshrink.pipeline import Context

if TYPE_CHECKING:
    import numpy as np

    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.forms.integer_kernels import Candidate
    from onnxshrink.graph.forms.layout import Layout
    from onnxshrink.graph.forms.qdq import Emitter
    from onnxshrink.graph.weights.views import WeightView
    from onnxshrink.kernels.affine import Quantized
    from onnxshrink.kernels.ranges import Grid
    from onnxshrink.passes.quantize_static import QuantizeStatic

_DAMAGE = 0.005  # of the outputs of a product: below it 7 bits would do more harm
_ANY_PAIR = 64  # two codes so large do not overflow 16 bits, whichever they are
_LARGEST_BIAS = 2.0**30
_FINEST_BIAS = 2.0**20


@dataclass
class Products:
    """Stores the weights of products, each once.

    Attributes:
        emitter: Puts nodes in.
        statistics: Means and rows of what weights are multiplied with.
        model: The model.
        overflowing: Weights that CPUs without VNNI would compute wrongly, and by how much.
    """

    model: Model
    emitter: Emitter
    statistics: Mapping[Need, Any]
    overflowing: dict[str, float] = field(default_factory=dict)
    _stored: dict[Any, Quantized] = field(default_factory=dict)

    def store(
        self, candidate: Candidate, options: QuantizeStatic, on: Grid
    ) -> tuple[int, Quantized, str] | None:
        """Put codes in the place of a product's weight and bias.

        Args:
            candidate: The product; its weight may be in place already, for another product.
            options: How.
            on: The grid of its activation.

        Returns:
            Bytes that the weight takes now, about; its codes; and a note. None where that was done
            for another product.

        Raises:
            ValueError: The weight holds NaN, infinity, or values too large.
        """
        import numpy as np

        from onnxshrink.graph.forms import dequantize

        view = candidate.weight
        assert view is not None
        first = view.value not in self._stored
        note = ""
        if first:
            self._stored[view.value], note = self._codes(candidate, options, on)
        stored = self._stored[view.value]
        bias = None if candidate.bias is None else candidate.bias.numpy().astype(np.float64)
        bias = None if bias is None else bias.reshape(-1)
        need = means(candidate)
        if options.correct_bias and need is not None and need in self.statistics:
            moved = shift(candidate, stored, self.statistics[need].mean)
            bias = -moved if bias is None else bias - moved
        if bias is not None and first:
            stored = widened(view, stored, bias, on.scale)
            if options.cpu == "any":  # rounding anew may take a pair of codes one too far
                stored = for_any_cpu(candidate, options, stored, on)
            self._stored[view.value] = stored
        nbytes = dequantize.dequantized(self.model, view, stored, "dq") if first else 0
        if bias is not None:
            scale = (stored.scale.astype(np.float32) * np.float32(on.scale)).reshape(-1)
            if scale.size != bias.size:
                scale = scale[:1].reshape(())
            exact = np.clip(np.rint(bias / scale), -(2**31), 2**31 - 1).astype(np.int32)
            zero = np.zeros(scale.shape, np.int32)
            self.emitter.store(candidate.node, 2, exact, scale, zero)
        return (nbytes, stored, note) if first else None

    def store_constants(self, candidate: Candidate, options: QuantizeStatic) -> None:
        """Put codes in the place of what a function such as Add takes beside activations."""
        import numpy as np

        from onnxshrink.graph.read import constant
        from onnxshrink.kernels import ranges

        for index in candidate.constants:
            value = candidate.node.inputs[index]
            tensor = None if value is None else constant(value)
            assert tensor is not None
            array = tensor.numpy()
            on = ranges.grid(float(array.min()), float(array.max()), options.activations)
            scale, zero = np.array(on.scale, np.float32), np.array(on.zero, on.dtype)
            self.emitter.store(candidate.node, index, on.codes(array), scale, zero)

    def _codes(
        self, candidate: Candidate, options: QuantizeStatic, on: Grid
    ) -> tuple[Quantized, str]:
        note = f"{options.dtype} with {on.dtype}"
        if options.reduce_range:
            return quantized(candidate, options, bits=7), note + ", 7 bits"
        stored = quantized(candidate, options)
        if options.cpu == "any":
            return self._for_any(candidate, options, stored, on)
        need = some_rows(candidate)
        if need is None or need not in self.statistics:
            return stored, note
        damage = saturation(candidate, stored, self.statistics[need].rows, on)
        if damage > _DAMAGE and candidate.weight is not None:
            self.overflowing[candidate.weight.name] = damage
        return stored, note

    def _for_any(
        self, candidate: Candidate, options: QuantizeStatic, stored: Quantized, on: Grid
    ) -> tuple[Quantized, str]:
        """Codes that CPUs without VNNI compute rightly too, and a note."""
        from onnxshrink.passes import _rounding

        safe = for_any_cpu(candidate, options, stored, on)
        note = f"{options.dtype} with {on.dtype}"
        if safe is stored:
            return stored, note
        if on.dtype == "uint8" and _rounding.is_too_coarse(layout(candidate, options), safe):
            wider = replace(options, dtype="uint8")
            return quantized(candidate, wider), f"uint8 with {on.dtype}, for CPUs without VNNI"
        return safe, note + ", coarser for CPUs without VNNI"


def unfit(candidate: Candidate) -> str:
    """Why a product's constants cannot be quantized; empty when they can."""
    import numpy as np

    from onnxshrink.graph.read import constant

    view, bias = candidate.weight, candidate.bias
    if view is None:
        arrays = [constant(v) for i in candidate.constants if (v := candidate.node.inputs[i])]
        fits = all(np.isfinite(a.numpy()).all() and a.size for a in arrays if a is not None)
        return "" if fits else "holds NaN or infinity"
    finite = np.isfinite(view.array()).all()
    if bias is not None and not np.isfinite(bias.numpy()).all():
        finite = np.False_
    view.release()
    return "" if finite else "holds NaN or infinity"


def quantized(candidate: Candidate, options: QuantizeStatic, *, bits: int = 8) -> Quantized:
    """The codes of a product's weight; one scale where it is the left operand of MatMul.

    Raises:
        ValueError: It holds NaN, infinity, or values too large.
    """
    from onnxshrink.kernels import affine

    laid = layout(candidate, options)
    kind: Any = options.dtype.replace("8", str(bits))
    stored = affine.quantize(
        laid.values(), kind, laid.axes, symmetric=options.symmetric, rounding="balanced"
    )
    return replace(stored, dtype=options.dtype)


def layout(candidate: Candidate, options: QuantizeStatic) -> Layout:
    """Which elements of a product's weight share a scale."""
    from onnxshrink.graph.forms.layout import Layout

    view = candidate.weight
    assert view is not None
    axes = tuple(range(len(view.shape)))
    one_channel = options.per_channel and candidate.operands == (0,) and len(view.axes.out) == 1
    return Layout(view, view.shape, view.axes.contract if one_channel and _agreed(view) else axes)


def _agreed(view: WeightView) -> bool:
    """Whether all uses of a weight see its axes alike: some may see it transposed."""
    return len({use.axes.out for use in view.uses}) == 1


def for_any_cpu(
    candidate: Candidate, options: QuantizeStatic, stored: Quantized, on: Grid
) -> Quantized:
    """The same weight in codes that CPUs without VNNI compute rightly too.

    They are the very ones where that is so already: of types whose products are not added up in 16
    bits, of left operands, and of depthwise convolutions, which have a kernel of their own.
    """
    import numpy as np

    from onnxshrink.passes import _rounding

    view, group = candidate.weight, candidate.node.attributes.get("group")
    assert view is not None
    depthwise = group is not None and group.as_int() == view.shape[0] > 1 and view.shape[1] == 1
    if stored.dtype != "int8" or on.dtype not in ("int8", "uint8") or depthwise:
        return stored
    if candidate.operands != (0,):
        return stored
    if np.abs(stored.codes.astype(np.int16)).max() <= _ANY_PAIR:
        return stored
    if not stored.centred or not _agreed(view):
        return quantized(candidate, options, bits=7)
    channels_last = candidate.op_type == "Conv"
    return _rounding.coarser(layout(candidate, options), stored, channels_last=channels_last)


def means(candidate: Candidate) -> Need | None:
    """The mean of each channel of what a product with a bias multiplies; None for others."""
    way = candidate.way
    if candidate.weight is None or way is None or not way.takes_bias:
        return None
    return Need(candidate.inputs[0].name or "", Extremes(1))


def some_rows(candidate: Candidate) -> Need | None:
    """A few rows that a weight is multiplied with; None where sums are never of 16 bits."""
    from onnxshrink.graph.weights import second_moments

    if candidate.weight is None or candidate.operands != (0,):
        return None
    for need in second_moments.needs(candidate.weight):
        if need.value == candidate.inputs[0].name and isinstance(need.statistic, SecondMoment):
            return Need(need.value, SomeRows(need.statistic.layout))
    return None


def shift(candidate: Candidate, stored: Quantized, mean: np.ndarray) -> np.ndarray:
    """By how much rounding its weight moves the mean of each output of a product.

    Taken from the bias, it leaves errors without a mean (1906.04721, section 4.2). Paddings count
    as if they were values.

    Args:
        candidate: A Conv or Gemm.
        stored: Codes of its weight.
        mean: Of each channel of its input.
    """
    import numpy as np

    from onnxshrink.kernels import affine

    view = candidate.weight
    assert view is not None
    way = candidate.way
    assert way is not None
    error = affine.dequantize(stored).astype(np.float64) - view.array()
    if not way.convolves:
        axes = next(use.axes for use in view.uses if use.node is candidate.node)
        moved: np.ndarray = np.tensordot(error, mean, (axes.contract, (0,)))
        return moved
    taps = error.reshape(*error.shape[:2], -1).sum(2)
    groups = mean.size // taps.shape[1]
    by_group = taps.reshape(groups, -1, taps.shape[1])
    moved = np.einsum("goc,gc->go", by_group, mean.reshape(groups, -1))
    return moved.reshape(-1)


def widened(view: WeightView, stored: Quantized, bias: np.ndarray, scale: float) -> Quantized:
    """Codes with scales such that a bias counted in products of scales fits 32 bits.

    Args:
        view: The weight.
        stored: Its codes.
        bias: What is added, one number for each channel.
        scale: Of the activation.
    """
    import numpy as np

    from onnxshrink.kernels import affine

    axes = tuple(axis for axis, size in enumerate(stored.scale.shape) if size == 1)
    size = np.abs(bias) / scale
    if stored.scale.size == 1:
        size = size.max(keepdims=True)
    size = size.reshape(stored.scale.shape)
    # A channel of zeros may have any scale: one with which its bias keeps its digits.
    empty = np.abs(view.array()).max(axes, keepdims=True) == 0
    least = size / np.where(empty, _FINEST_BIAS, _LARGEST_BIAS)
    wanted = np.where(empty, least, np.maximum(stored.scale, least))
    return affine.rescaled(view.array(), stored, wanted)


def saturation(candidate: Candidate, stored: Quantized, rows: np.ndarray, on: Grid) -> float:
    """What a CPU without VNNI would get wrong of a product's outputs, relative to their size (L2).

    It is 0 for types whose products are not added up in 16 bits, and for depthwise convolutions,
    which have a kernel of their own.

    Args:
        candidate: The product.
        stored: Its weight.
        rows: Some of what it is multiplied with, [rows, groups, inputs].
        on: The grid of these.
    """
    import numpy as np

    from onnxshrink.kernels import affine
    from onnxshrink.kernels.saturation import lost

    view = candidate.weight
    assert view is not None
    single = rows.shape[1] > 1 and view.shape[1] == 1
    if stored.dtype != "int8" or on.dtype not in ("int8", "uint8") or single or not rows.size:
        return 0.0
    groups, width = rows.shape[1:]
    codes = on.codes(rows).astype(np.int16) + (128 if on.dtype == "int8" else 0)
    values = on.values(on.codes(rows))
    matrices = [view.to_matrix(array) for array in (
        stored.codes, affine.dequantize(stored), np.broadcast_to(stored.scale, stored.codes.shape),
    )]  # fmt: skip
    order = np.arange(width)
    way = candidate.way
    if way is not None and way.convolves and len(view.shape) > 2:  # channels lie next to each other
        order = order.reshape(view.shape[1], -1).T.reshape(-1)
    damage = power = 0.0
    for group in range(groups):
        own = [m.reshape(groups, -1, width)[group][:, order] for m in matrices]
        weights, exact, scale = own
        missing = lost(codes[:, group][:, order].astype(np.uint8), weights) * scale[:, 0]
        there = values[:, group][:, order]
        damage += float(np.square(missing * on.scale).sum())
        power += float(np.square(there @ exact.T).sum())
    return (damage / power) ** 0.5 if power else 0.0


def store_others(model: Model, ctx: Context, kept: Iterable[str], min_size: int) -> list[Any]:
    """Store as integers the weights that no integer kernel takes, rebuilt at load.

    Args:
        model: The model.
        ctx: For its progress and statistics; nothing is reported to it.
        kept: Names of weights to leave alone.
        min_size: Fewest elements.

    Returns:
        The rows of the report.
    """
    from onnxshrink.passes.quantize_weights import QuantizeWeights
    from onnxshrink.report import Step
    from onnxshrink.select import Select

    quiet = replace(ctx, step=Step("others"))
    select = Select(keep=tuple(kept), min_size=min_size)
    QuantizeWeights(vectors="keep", weights=select).apply(model, quiet)
    return quiet.step.changes
