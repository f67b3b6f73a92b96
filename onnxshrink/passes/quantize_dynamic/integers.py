"""How quantize-dynamic lets integer operators use one weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from onnxshrink.passes import _rounding
from onnxshrink.passes._rounding import Clip, Cpu, Rounding
from onnxshrink.pipeline import Context

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.forms.codes import Taken
    from onnxshrink.graph.forms.dynamic import Activations
    from onnxshrink.graph.weights.views import WeightView
    from onnxshrink.kernels.affine import Dtype, Quantized

_OVERHEAD = 250  # bytes of the names and nodes of an integer product
_FOR_VNNI = (
    "the file is for CPUs with VNNI or Arm's dot products: others may add up wrongly; 'cpu: any' "
    "is right on all"
)
_SLOW = "ConvInteger is slow: on most CPUs slower than the float convolution"


@dataclass(frozen=True, kw_only=True)
class DynamicScheme:
    """The options of one weight; the pass's options of the same names say what they mean."""

    dtype: Literal["int8", "uint8"]
    per_channel: bool
    symmetric: bool
    cpu: Cpu
    reduce_range: bool
    clip: Clip
    rounding: Rounding
    convs: bool

    def store(
        self, view: WeightView, views: Sequence[WeightView], left_out: Callable[[WeightView], str],
        model: Model, activations: Activations, ctx: Context, taken: Taken,
    ) -> set[WeightView]:  # fmt: skip
        """Let an integer operator use a weight; the weights that are done with it.

        Args:
            view: The weight.
            views: All weights: an LSTM takes two together.
            left_out: Why a weight must be left alone; empty when it need not.
            model: The model, which is edited.
            activations: Those that are quantized already.
            ctx: The statistics, and where to report.
            taken: How weights were stored that were no floats, by name.

        Raises:
            ValueError: Why it cannot.
        """
        from onnxshrink.graph.forms import dynamic

        product = view.main.product
        if product is not None and product.recurs:
            pair = dynamic.recurrent(view, views)
            for other in pair:
                if reason := left_out(other):
                    raise ValueError(f"the other weight of its LSTM: {reason}")
            rounded = [self._rounded(part, ctx, taken, signed=True) for part in pair]
            sizes = dynamic.integer_lstm(model, pair, [each.codes for each in rounded])
            for part, each, after in zip(pair, rounded, sizes, strict=True):
                _report(part, each, after, "DynamicQuantizeLSTM", ctx, taken)
            return set(pair)
        is_conv = product is not None and product.convolves
        if is_conv and not self.convs:
            raise ValueError("convolutions stay in floating point")
        if reason := dynamic.why_not_conv(view) if is_conv else dynamic.why_not(view):
            raise ValueError(reason)
        chosen = self._rounded(view, ctx, taken, signed=is_conv)
        emit = dynamic.integer_conv if is_conv else dynamic.integer_products
        after = emit(model, view, chosen.codes, activations)
        _report(view, chosen, after, "ConvInteger" if is_conv else "MatMulInteger", ctx, taken)
        if is_conv:
            ctx.warn(_SLOW)
        return {view}

    def _rounded(self, view: WeightView, ctx: Context, taken: Taken, *, signed: bool) -> _Rounded:
        """A weight in the layout of its operator.

        Args:
            view: The weight.
            ctx: Where the statistics are.
            taken: How weights were stored that were no floats, by name.
            signed: Whether the operator takes only symmetric int8.

        Raises:
            ValueError: It cannot be quantized, or would not be smaller.
        """
        from onnxshrink.graph.forms import dynamic
        from onnxshrink.kernels import affine

        kind: Dtype = "int8" if signed else self.dtype
        if (known := self._kept(view, taken, signed=signed)) is not None:
            return known
        asked = kind
        layout = dynamic.layout(view, per_channel=self.per_channel)
        centred = signed or self.symmetric
        # A coarser scale would undo what was fitted to the finer one, and products that see the
        # weight transposed have other neighbours: 7 bits from the start then.
        alike = len({use.axes.contract for use in view.uses}) == 1
        free = centred and alike and self.rounding in ("rtn", "balanced", "mse")
        narrow = self.reduce_range or (self.cpu == "any" and kind == "int8" and not free)

        def rounded(kind: Dtype) -> tuple[Quantized, Rounding]:
            return _rounding.quantize(
                layout, kind, self.rounding, ctx,
                clip=self.clip, symmetric=centred, short_scale=True,
            )  # fmt: skip

        seven: dict[Dtype, Dtype] = {"int8": "int7", "uint8": "uint7"}
        codes, method = rounded(seven[kind] if narrow else kind)
        whys = [f"its kernel takes no {self.dtype}"] * (signed and self.dtype != "int8")
        if narrow and not self.reduce_range:
            whys.append("7 bits, for CPUs without VNNI")
        elif kind == "int8" and not narrow and _rounding.overflows(layout, codes):
            if self.cpu == "vnni":
                ctx.warn(_FOR_VNNI)
            else:
                codes = _rounding.coarser(layout, codes)
                whys.append("coarser for CPUs without VNNI")
                if not signed and _rounding.is_too_coarse(layout, codes):
                    kind, whys = "uint8", ["for CPUs without VNNI"]
                    codes, method = rounded(kind)
        if codes.nbytes + _OVERHEAD >= view.nbytes:
            raise ValueError(f"would not be smaller as {asked}")
        whys.append(_rounding.lesser(view, kind, self.rounding, method))
        why = "; ".join(filter(None, whys))
        sqnr = affine.sqnr_db(layout.values(), codes)
        return _Rounded(replace(codes, dtype=kind), method, sqnr, why)

    def _kept(self, view: WeightView, taken: Taken, *, signed: bool) -> _Rounded | None:
        """The codes that a weight came in; None where it did not, or its operator takes others."""
        from onnxshrink.graph.forms import dynamic
        from onnxshrink.kernels import affine
        from onnxshrink.passes import _rounding

        known = taken.get(view.name)
        known = None if known is None else known.of(view)
        stored = None if known is None else known.eight_bits()
        if stored is None:
            return None
        layout = dynamic.layout(view, per_channel=True)
        codes = layout.arranged(stored)
        if codes is None or (signed and not (codes.dtype == "int8" and codes.zero_point is None)):
            return None
        safe = codes
        if self.cpu == "any":
            safe = _rounding.kept(layout, codes)
            if signed and safe.dtype != "int8":
                return None
        sqnr = affine.sqnr_db(layout.values(), safe)
        return _Rounded(safe, "", sqnr, _rounding.kept_note(codes, safe), kept=True)


def _report(
    view: WeightView, rounded: _Rounded, after: int, operator: str, ctx: Context, taken: Taken
) -> None:
    """A row for a weight that an integer operator takes now."""
    import math

    error = {"sqnr_db": rounded.sqnr_db} if math.isfinite(rounded.sqnr_db) else {}
    before = taken[view.name].nbytes if view.name in taken else view.nbytes
    note = rounded.note(operator)
    ctx.changed(view, after, note=note, before=before, kind=view.op_type, **error)
    if rounded.kept:  # it was integers already: an operator of integers takes more nodes
        ctx.step.may_grow = True


@dataclass(frozen=True)
class _Rounded:
    """A weight's codes, what chose them and why not another, their signal to noise in dB."""

    codes: Quantized
    method: str
    sqnr_db: float
    why: str
    kept: bool = False

    def note(self, operator: str) -> str:
        """What the weight became."""
        fitted = f", {self.method}" * (self.method not in ("", "rtn", "balanced"))
        why = f" ({self.why})" * bool(self.why)
        return f"{self.codes.dtype}, {self.codes.scale.size} scales, {operator}{fitted}{why}"
