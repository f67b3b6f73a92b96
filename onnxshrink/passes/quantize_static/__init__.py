"""Compute with integers: quantize weights and activations, with ranges from calibration inputs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from onnxshrink.errors import DataError, InputsMissing
from onnxshrink.options import build, dump, option, picked
from onnxshrink.passes._rounding import CPU_HELP, Cpu
from onnxshrink.passes.quantize_static.scheme import Activations, Method, StaticScheme, Weights
from onnxshrink.pipeline import Context, Pass
from onnxshrink.select import KEPT, SKIP, Select, select, variants

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.forms.integer_kernels import IntegerCandidate

_METHODS = {
    "MinMax": "minmax", "Entropy": "entropy", "Percentile": "percentile",
    "MovingAverage": "moving-average",
}  # fmt: skip
_ACTIVATIONS = {"QInt8": "int8", "QUInt8": "uint8", "QInt16": "int16", "QUInt16": "uint16"}
_WEIGHTS = {"QInt8": "int8", "QUInt8": "uint8", "QInt4": "int4"}


@dataclass(frozen=True, kw_only=True)
class QuantizeStatic(Pass):
    """Compute with integers: quantize weights and activations, with ranges from calibration inputs.

    Smaller and faster. Convolutions, MatMul and Gemm with weights, and what lies between them
    without rounding anything once more, run on ONNX Runtime's integer kernels; the rest stays in
    floating point. The model is prepared first: constants, normalizations, scales and paddings are
    folded into the convolutions beside them.

    Activations whose values 8 bits cannot hold stay in float, with a row in the report that says
    so. Weights of operators without an integer kernel (LSTM, ConvTranspose, lookups) are stored as
    integers and rebuilt when the model is loaded. Needs real inputs, some ten to a hundred.
    """

    method: Method = option(
        "mse", help="range of activations: least squared error behind the activation function; "
        "all that was seen; means over inputs of the extremes; a share of the values; least "
        "information lost",
        also=("calibrate_method",), spellings=_METHODS,
    )  # fmt: skip
    percentile: float = option(
        99.99, help="share of values inside the range, in %, for method percentile", ge=50, le=100
    )
    activations: Activations = option(
        "uint8", help="type of activations; ONNX Runtime has the most integer kernels for uint8",
        also=("activation_type",), spellings=_ACTIVATIONS,
    )  # fmt: skip
    dtype: Weights = option(
        "int8", help="type of weights; ONNX Runtime's CPU kernels take 8 bits",
        also=("weight_type",), spellings=_WEIGHTS,
    )  # fmt: skip
    per_channel: bool = option(
        True, help="one scale for each output channel instead of one for each tensor"
    )
    symmetric: bool = option(True, help="weights have zero in the middle of their range")
    symmetric_activations: bool = option(
        False, help="activations too, which keeps Relu out of the kernels",
    )  # fmt: skip
    correct_bias: bool = option(
        True, help="take what rounding the weights adds to the mean of each output from its bias"
    )
    cpu: Cpu = option("any", help=CPU_HELP)
    reduce_range: bool = option(False, help="7 bits for all weights, as other tools write them")
    least_sqnr: float = option(
        15.0, help="leave nodes in float whose activations would keep fewer dB"
    )
    others: Literal["int8", "keep"] = option(
        "int8", help="weights that no integer kernel takes: stored as int8, or kept"
    )
    faster_only: bool = option(
        False, help="leave in float what is not measured to be faster: fits the machine at hand"
    )
    weights: Select = select(min_size=64)

    runs_models = True
    retreats = True
    speeds = True

    @property
    def bound(self) -> float:
        """As for other 8-bit weights, though every layer rounds what it hands on."""
        return 0.25

    def apply(self, model: Model, ctx: Context) -> None:
        """Prepare, calibrate, place, and store."""
        from onnxshrink.graph.forms import integer_kernels, qdq
        from onnxshrink.graph.rewrite import plain
        from onnxshrink.passes.quantize_static import asking, grids, storing
        from onnxshrink.passes.quantize_static.preparing import Preparation

        work = Preparation(model, ctx)
        asking.check_patterns(self.weights, work)
        spelled = plain.spell_out(model)
        found = integer_kernels.find(model)
        if all(asking.refusal(self.weights, one) for one in found):
            for one in found:
                if one.kind == "product":
                    work.leave(one, asking.refusal(self.weights, one))
            storing.store_others(work, self.weights, self.others)
            return
        if not ctx.feeds or ctx.generated:
            raise InputsMissing(f"{self.name} needs real inputs: give --calibration DATA")
        if self.method == "moving-average" and len(ctx.feeds) < 2:
            raise DataError("moving-average needs two inputs or more; minmax takes one")
        done = [f"{spelled} fused operators spelled out"] * bool(spelled)
        done += work.raise_opset(self._opset()) + work.prepare()

        schemes, riders = {}, []
        for one in map(work.named, integer_kernels.find(model)):
            reason = asking.refusal(self.weights, one) or asking.unfit(one)
            if not reason:
                schemes[one] = self._scheme(one)
            elif asking.rides(self.weights, one):
                riders.append(one)
            if reason and (one.kind == "product" or reason == KEPT):
                work.leave(one, reason)
        placed = partial(qdq.place, riders=riders, fold=not self.symmetric_activations)
        ranges = grids.observe(placed(schemes), schemes, model, ctx)
        placement, chosen, refused = grids.choose(placed, ranges, schemes)
        ranges.check({value.name or "" for value in chosen}, self.method)
        for one, reason in refused.items():
            work.leave(one, reason)
        storing.store(work, placement, chosen, schemes, ranges.statistics)
        storing.store_others(work, self.weights, self.others)
        if ctx.step.changes and done:
            ctx.changed("graph", 0, kind="model", note="; ".join(done))

    def _scheme(self, one: IntegerCandidate) -> StaticScheme:
        """How a node is computed, what ``layers`` says of it included."""
        overrides, own = self.weights.overrides(one), self
        if overrides and overrides != SKIP:
            where = f"{self.name}: layers: {one.name}"
            own = build(type(self), {**dump(self), **overrides}, where)
        return picked(StaticScheme, own)

    def _opset(self) -> int:
        """The operator set that has these types, those of overrides included."""
        every = variants(self, self.weights)
        wide = any(o.activations.endswith("16") or o.dtype == "int4" for o in every)
        return 21 if wide else 13
