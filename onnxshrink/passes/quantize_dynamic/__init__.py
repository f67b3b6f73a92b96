"""Integer products whose activations are quantized when the model runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from onnxshrink.options import option, picked
from onnxshrink.passes import _rounding
from onnxshrink.passes._rounding import CPU_HELP, Clip, Cpu, Rounding
from onnxshrink.passes.quantize_dynamic.integers import DynamicScheme
from onnxshrink.pipeline import Context, Pass
from onnxshrink.select import Select, select, variants

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.weights.views import WeightView
    from onnxshrink.kernels.observers import Need

_OPSET = 11  # DynamicQuantizeLinear


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
    faster_only: bool = option(
        False, help="leave in float what is not measured to be faster: fits the machine at hand"
    )
    weights: Select = select(min_size=64)

    retreats = True
    speeds = True

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
        from onnxshrink.graph.forms import codes, dynamic
        from onnxshrink.graph.rewrite import clean, opset
        from onnxshrink.passes.to_float16 import narrow_beside

        taken = codes.take_out(model, dynamic.wants_codes)
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
                if options.vectors == "float16" and view.is_vector:
                    vectors.append(view)  # a bias, or a norm's parameters
                else:
                    ctx.skip(view, view.why_not)
                continue
            try:
                left_out = options.weights.why_not
                done |= options._scheme.store(view, views, left_out, model, activations, ctx, taken)
            except ValueError as error:
                if view.name in taken:  # goes back as it came, below
                    ctx.skip(view, str(error))
                else:
                    options._otherwise(view, str(error), model, ctx)
        codes.put_back(model, list(weights.find(model)), taken)
        if not ctx.step.changes:
            return  # in a model whose weights stay as they are, so do its vectors
        if model.opset > before:
            ctx.changed("opset", 0, kind="model", note=opset.needs(before, model))
        narrow_beside(vectors, model, ctx)

    @property
    def _scheme(self) -> DynamicScheme:
        return picked(DynamicScheme, self)

    def _otherwise(self, view: WeightView, reason: str, model: Model, ctx: Context) -> None:
        """Store a weight that no integer operator takes, or report why it is left alone."""
        from onnxshrink.passes.quantize_weights import QuantizeWeights

        if self.others == "keep":
            ctx.skip(view, reason)
        else:
            scheme = QuantizeWeights(clip=self.clip, rounding=self.rounding).scheme
            scheme.store(view, model, ctx, reason)
