"""Integer products whose activations are quantized when the model runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from onnxshrink.options import option
from onnxshrink.passes import _rounding
from onnxshrink.passes._rounding import CPU_HELP, Clip, Cpu, Rounding
from onnxshrink.pipeline import Context, Pass
from onnxshrink.select import Select, select, variants

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.forms.dynamic import Activations
    from onnxshrink.graph.weights.views import WeightView
    from onnxshrink.kernels.affine import Dtype, Quantized
    from onnxshrink.kernels.observers import Need

_OVERHEAD = 250  # bytes of the names and nodes of an integer product
_OPSET = 11  # DynamicQuantizeLinear
_SLOW = "ConvInteger is slow: on most CPUs slower than the float convolution"


@dataclass(frozen=True, kw_only=True)
class QuantizeDynamic(Pass):
    """Multiply in integers: weights stored as 8 bits, activations rounded to 8 bits at run time.

    Needs no calibration. MatMul and Gemm become MatMulInteger, which ONNX Runtime fuses with what
    is around it, and LSTM its DynamicQuantizeLSTM: transformers run about twice as fast on CPUs
    with VNNI or dot products of int8. Activations that several products read are quantized once.

    Other weights (embeddings, convolutions, GRU) are stored as ``quantize-weights`` does, which
    costs no time: ``others: keep`` leaves them. ``convs`` makes ConvInteger of convolutions, which
    is slow, and there for comparison. Convolutional networks want static quantization.
    """

    dtype: Literal["int8", "uint8"] = option(
        "int8", help="stored type of the weights", also=("weight_type",),
        spellings={"QInt8": "int8", "QUInt8": "uint8"},
    )  # fmt: skip
    per_channel: bool = option(
        True, help="one scale for each output channel instead of one for each tensor"
    )
    symmetric: bool = option(
        True, help="zero in the middle of the range, as LSTM and Conv need it; false: a zero point"
    )
    cpu: Cpu = option("any", help=CPU_HELP)
    reduce_range: bool = option(False, help="7 bits for all weights, as other tools write them")
    clip: Clip = option(
        "minmax", help="range of codes: every weight, or the one with the least squared error"
    )
    rounding: Rounding = option(
        "balanced", help="how codes are chosen: see quantize-weights; gptq and adaround need inputs"
    )
    convs: bool = option(False, help="also convolutions, as ConvInteger, which is slow")
    others: Literal["int8", "keep"] = option(
        "int8", help="how to store weights without an integer operator: as quantize-weights, or not"
    )
    vectors: Literal["float16", "keep"] = option(
        "float16", help="how to store long biases and norm parameters, which stay exact to 11 bits"
    )
    weights: Select = select(min_size=64)

    retreats = True

    @property
    def bound(self) -> float:
        """As for other 8-bit weights: rounding activations too costs about as much again."""
        return 0.25

    def needs(self, model: Model) -> Iterator[Need]:
        """For ``gptq`` and ``adaround``: second moments of the selected weights' inputs."""
        from onnxshrink.graph import weights

        if any(v.rounding in _rounding.CALIBRATED for v in variants(self, self.weights)):
            views = [view for view in weights.find(model) if not self.weights.why_not(view)]
            yield from _rounding.needs(views)

    def apply(self, model: Model, ctx: Context) -> None:
        """Quantize every selected weight, the largest first; then narrow the long vectors."""
        from onnxshrink.graph import weights
        from onnxshrink.graph.forms import dynamic
        from onnxshrink.graph.rewrite import clean, opset
        from onnxshrink.passes.to_float16 import narrow_beside

        views, before = list(weights.find(model)), model.opset
        if any(not self.weights.why_not(view) for view in views):
            clean.forward_constants(model)
            opset.raise_opset(model, _OPSET)
            views = list(weights.find(model))
        activations = dynamic.Activations(model)
        vectors: list[WeightView] = []
        done: set[WeightView] = set()
        for view, options in ctx.each(self, views, any_role=True):
            if view in done:
                continue  # with the other weight of its LSTM
            if not view.uses:
                if options.vectors == "float16" and len(view.shape) == 1:
                    vectors.append(view)  # a bias, or a norm's parameters
                else:
                    ctx.skip(view, view.why_not)
                continue
            try:
                done |= options._integers(view, views, model, activations, ctx)
            except ValueError as error:
                options._otherwise(view, str(error), model, ctx)
        if not ctx.step.changes:
            return  # in a model whose weights stay as they are, so do its vectors
        if model.opset > before:
            ctx.changed("opset", 0, kind="model", note=opset.needs(before, model))
        narrow_beside(vectors, model, ctx)

    def _integers(
        self, view: WeightView, views: Sequence[WeightView], model: Model,
        activations: Activations, ctx: Context,
    ) -> set[WeightView]:  # fmt: skip
        """Let an integer operator use a weight; the weights that are done with it.

        Raises:
            ValueError: Why it cannot.
        """
        from onnxshrink.graph.forms import dynamic

        product = view.main.product
        if product is not None and product.recurs:
            pair = dynamic.recurrent(view, views)
            for other in pair:
                if reason := self.weights.why_not(other):
                    raise ValueError(f"the other weight of its LSTM: {reason}")
            rounded = [self._rounded(part, ctx, signed=True) for part in pair]
            sizes = dynamic.integer_lstm(model, pair, [each.codes for each in rounded])
            for part, each, after in zip(pair, rounded, sizes, strict=True):
                note = each.note("DynamicQuantizeLSTM")
                ctx.changed(part, after, note=note, sqnr_db=each.sqnr_db)
            return set(pair)
        is_conv = product is not None and product.convolves
        if is_conv and not self.convs:
            raise ValueError("convolutions stay in floating point")
        if reason := dynamic.why_not_conv(view) if is_conv else dynamic.why_not(view):
            raise ValueError(reason)
        chosen = self._rounded(view, ctx, signed=is_conv)
        emit = dynamic.integer_conv if is_conv else dynamic.integer_products
        after = emit(model, view, chosen.codes, activations)
        note = chosen.note("ConvInteger" if is_conv else "MatMulInteger")
        ctx.changed(view, after, note=note, sqnr_db=chosen.sqnr_db)
        if is_conv:
            ctx.warn(_SLOW)
        return {view}

    def _rounded(self, view: WeightView, ctx: Context, *, signed: bool) -> _Rounded:
        """A weight in the layout of its operator.

        Args:
            view: The weight.
            ctx: Where the statistics are.
            signed: Whether the operator takes only symmetric int8.

        Raises:
            ValueError: It cannot be quantized, or would not be smaller.
        """
        from onnxshrink.graph.forms import dynamic
        from onnxshrink.kernels import affine

        kind: Dtype = "int8" if signed else self.dtype
        layout = dynamic.layout(view, per_channel=self.per_channel)
        centred = signed or self.symmetric
        # A coarser scale would undo what was fitted to the finer one: 7 bits from the start then.
        free = centred and self.rounding in ("rtn", "balanced", "mse")
        narrow = self.reduce_range or (self.cpu == "any" and kind == "int8" and not free)

        def rounded(kind: Dtype) -> tuple[Quantized, Rounding]:
            return _rounding.quantize(
                layout, kind, self.rounding, ctx,
                clip=self.clip, symmetric=centred, short_scale=True,
            )  # fmt: skip

        seven: dict[Dtype, Dtype] = {"int8": "int7", "uint8": "uint7"}
        codes, method = rounded(seven[kind] if narrow else kind)
        if self.cpu == "any" and kind == "int8" and not narrow:
            codes = _rounding.coarser(layout, codes)
            if not signed and _rounding.is_too_coarse(layout, codes):
                kind = "uint8"
                codes, method = rounded(kind)
        if codes.nbytes + _OVERHEAD >= view.nbytes:
            raise ValueError(f"would not be smaller as {kind}")
        why = _rounding.lesser(view, kind, self.rounding, method)
        sqnr = affine.sqnr_db(layout.values(), codes)
        return _Rounded(replace(codes, dtype=kind), method, sqnr, why)

    def _otherwise(self, view: WeightView, reason: str, model: Model, ctx: Context) -> None:
        """Store a weight that no integer operator takes, or report why it is left alone."""
        from onnxshrink.passes.quantize_weights import QuantizeWeights

        if self.others == "keep":
            ctx.skip(view, reason)
        else:
            QuantizeWeights(clip=self.clip, rounding=self.rounding).store(view, model, ctx, reason)


@dataclass(frozen=True)
class _Rounded:
    """A weight's codes, what chose them and why not another, their signal to noise in dB."""

    codes: Quantized
    method: str
    sqnr_db: float
    why: str

    def note(self, operator: str) -> str:
        """What the weight became."""
        fitted = f", {self.method}" * (self.method not in ("rtn", "balanced"))
        why = f" ({self.why})" * bool(self.why)
        return f"{self.codes.dtype}, {self.codes.scale.size} scales, {operator}{fitted}{why}"
