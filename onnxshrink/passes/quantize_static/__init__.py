"""Compute with integers: quantize weights and activations, with ranges from calibration inputs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from onnxshrink.errors import DataError, InputsMissing, RecipeError
from onnxshrink.options import build, dump, option
from onnxshrink.passes._rounding import CPU_HELP, Cpu
from onnxshrink.pipeline import Context, Pass
from onnxshrink.select import KEPT, SKIP, Named, Select, select, unmatched, variants

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.forms.integer_kernels import Candidate
    from onnxshrink.graph.forms.qdq import Placement, Value
    from onnxshrink.kernels.ranges import Grid
    from onnxshrink.passes.quantize_static.integers import Ranges, Work

_METHODS = {
    "MinMax": "minmax", "Entropy": "entropy", "Percentile": "percentile",
    "MovingAverage": "moving-average",
}  # fmt: skip
_ACTIVATIONS = {"QInt8": "int8", "QUInt8": "uint8", "QInt16": "int16", "QUInt16": "uint16"}
_WEIGHTS = {"QInt8": "int8", "QUInt8": "uint8", "QInt4": "int4"}
_LARGE_OPERAND = 2**14  # such as a table of positions


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

    method: Literal["mse", "minmax", "moving-average", "percentile", "entropy"] = option(
        "mse", help="range of activations: least squared error behind the activation function; "
        "all that was seen; means over inputs of the extremes; a share of the values; least "
        "information lost",
        also=("calibrate_method",), spellings=_METHODS,
    )  # fmt: skip
    percentile: float = option(
        99.99, help="share of values inside the range, in %, for method percentile", ge=50, le=100
    )
    activations: Literal["uint8", "int8", "uint16", "int16"] = option(
        "uint8", help="type of activations; ONNX Runtime has the most integer kernels for uint8",
        also=("activation_type",), spellings=_ACTIVATIONS,
    )  # fmt: skip
    dtype: Literal["int8", "uint8", "int4"] = option(
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
    weights: Select = select(min_size=64)

    runs_models = True
    retreats = True

    @property
    def bound(self) -> float:
        """As for other 8-bit weights, though every layer rounds what it hands on."""
        return 0.25

    def apply(self, model: Model, ctx: Context) -> None:
        """Prepare, calibrate, place, and store."""
        from onnxshrink.graph.forms import integer_kernels, qdq
        from onnxshrink.graph.rewrite import plain
        from onnxshrink.passes.quantize_static import integers, storing

        work = integers.Work(model, ctx)
        self._check_patterns(work)
        spelled = plain.spell_out(model)
        found = integer_kernels.find(model)
        if all(self._refusal(one) for one in found):
            for one in found:
                if one.kind == "product":
                    work.leave(one, self._refusal(one))
            self._store_others(work)
            return
        if not ctx.feeds or ctx.generated:
            raise InputsMissing(f"{self.name} needs real inputs: give --calibration DATA")
        if self.method == "moving-average" and len(ctx.feeds) < 2:
            raise DataError("moving-average needs two inputs or more; minmax takes one")
        done = [f"{spelled} fused operators spelled out"] * bool(spelled)
        done += work.raise_opset(self._opset()) + work.prepare()

        options_of, riders = {}, []
        for one in map(work.named, integer_kernels.find(model)):
            reason = self._refusal(one)
            reason = reason or storing.unfit(one)
            if not reason:
                options_of[one] = self._options(one)
            elif self._rides(one):
                riders.append(one)
            if reason and (one.kind == "product" or reason == KEPT):
                work.leave(one, reason)
        placed = partial(qdq.place, riders=riders, fold=not self.symmetric_activations)
        ranges = work.observe(placed(options_of), options_of)
        placement, grids, refused = integers.choose(placed, ranges, options_of)
        self._check_counts(ranges, len(grids))
        for one, reason in refused.items():
            work.leave(one, reason)
        self._store(work, placement, grids, options_of, ranges)
        if ctx.step.changes and done:
            ctx.changed("graph", 0, kind="model", note="; ".join(done))

    def _check_patterns(self, work: Work) -> None:
        """Refuse patterns that name nothing; report nodes that are asked for in vain.

        Raises:
            RecipeError: A pattern matches no node and no weight.
        """
        from onnxshrink.graph import weights
        from onnxshrink.graph.forms.integer_kernels import KERNELS, Candidate

        nodes = [Candidate(node, "whole", ()) for node in work.model.nodes]
        named: list[Named] = [*nodes, *weights.find(work.model)]
        if missing := unmatched(self.weights, named):
            raise RecipeError(f"{self.name}: nothing matches {', '.join(map(repr, missing))}")
        for one in nodes if self.weights.only else ():
            if one.op_type not in KERNELS and not self.weights.left_out(one):
                work.ctx.skip(one.name, f"ONNX Runtime has no integer kernel for {one.op_type}")

    def _check_counts(self, ranges: Ranges, values: int) -> None:
        """Refuse a method that has too few values everywhere.

        Raises:
            DataError: It says how many inputs it takes.
        """
        if values and len(ranges.short) >= values:
            least = min(ranges.short.values())
            raise DataError(
                f"{self.method} needs at least {least} inputs like these, not {ranges.feeds}; "
                "minmax takes any"
            )

    def _refusal(self, one: Candidate) -> str:
        """Why a node is not quantized for its own sake; empty when it is."""
        if one.weight is not None and one.size < self.weights.min_size:
            return f"fewer than {self.weights.min_size} elements"
        if reason := self.weights.left_out(one) or one.why_not:
            return reason
        if one.weight is not None or self.weights.only:
            return ""
        if one.kind == "product":
            return "multiplies two activations, which gains little; name it with 'only' to have it"
        return "between quantized values only"

    def _rides(self, one: Candidate) -> bool:
        """Whether a node may be quantized for its neighbours' sake."""
        if one.kind == "product" or one.why_not:
            return False
        if self.weights.only and one.kind == "function":
            return False
        return self.weights.left_out(one) != KEPT

    def _options(self, one: Candidate) -> QuantizeStatic:
        overrides = self.weights.overrides(one)
        if not overrides or overrides == SKIP:
            return self
        return build(type(self), {**dump(self), **overrides}, f"{self.name}: layers: {one.name}")

    def _opset(self) -> int:
        """The operator set that has these types, those of overrides included."""
        every = variants(self, self.weights)
        wide = any(o.activations.endswith("16") or o.dtype == "int4" for o in every)
        return 21 if wide else 13

    def _store(
        self, work: Work, placement: Placement, grids: dict[Value, Grid],
        options_of: dict[Candidate, QuantizeStatic], ranges: Ranges,
    ) -> None:  # fmt: skip
        """Put codes in the place of weights, then the nodes around them."""
        from onnxshrink.graph.forms import qdq
        from onnxshrink.kernels import affine
        from onnxshrink.passes.quantize_static import storing

        model, ctx = work.model, work.ctx
        emitter = qdq.Emitter(model)
        products = storing.Products(model, emitter, ranges.statistics)
        for done, one in enumerate(placement.sites.values()):
            ctx.progress(self.name, done, len(placement.sites))
            view = one.weight
            if view is None:
                if one in options_of:
                    products.store_constants(one, options_of[one])
                    ctx.changed(one.name, 0, kind=one.op_type, note="with integers")
                continue
            known = work.original(one.node, 1 - one.operands[0]) or (view.name, view.nbytes)
            stored = products.store(one, options_of[one], grids[placement.root(one.inputs[0])])
            if stored is not None:
                nbytes, codes, note = stored
                sqnr = affine.sqnr_db(view.array(), codes)
                ctx.changed(
                    known[0], nbytes, before=known[1], kind=one.op_type, note=note, sqnr_db=sqnr
                )
            view.release()
        if found := products.overflowing:
            worst = max(found, key=found.__getitem__)
            many = "1 weight" if len(found) == 1 else f"{len(found)} weights"
            ctx.warn(
                f"the file is for CPUs with VNNI: others would get {many} wrong, {worst!r} by "
                f"{found[worst]:.2g} of its outputs; 'cpu: any' is right on all"
            )
        emitter.emit(placement, grids)
        self._store_others(work)

    def _store_others(self, work: Work) -> None:
        """Weights that no integer kernel takes."""
        from onnxshrink.graph import weights
        from onnxshrink.passes.quantize_static import storing

        kept, known, reasons = [], {}, {}
        for view in weights.find(work.model):
            if not view.uses:
                if work.came_with(view.name):
                    work.ctx.skip(view, view.why_not)
                continue
            reason = self.weights.left_out(work.alias(view)) or view.locked
            if self.others == "keep":
                reason = reason or "no integer kernel takes it"
            least = self.weights.min_size
            if view.main.is_arithmetic:  # norms and biases: few bytes, much harm
                least = max(least, _LARGE_OPERAND)
            if view.size < least:
                reason = f"fewer than {least} elements"
            if reason:
                kept.append(view.name)
                work.ctx.skip(view, reason)
            known[view.name] = work.original(view.main.node, view.main.index)
            reasons[view.name] = work.why_stored(view)
        for row in storing.store_others(work.model, work.ctx, kept, self.weights.min_size):
            name, nbytes = known[row.what] or (row.what, row.before)
            note = row.note + f" ({reasons[row.what]})" * bool(reasons.get(row.what))
            work.ctx.changed(name, row.after, before=nbytes, kind=row.kind, note=note, **row.error)
