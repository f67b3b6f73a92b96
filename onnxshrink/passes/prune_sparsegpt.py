"""Set weights to zero, and let the others make up for them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from onnxshrink.errors import RecipeError
from onnxshrink.options import build, dump, option
from onnxshrink.passes._calibrated_pruning import CalibratedPruning, inputs_of
from onnxshrink.passes._pruning import matrix_of
from onnxshrink.pipeline import Context
from onnxshrink.report import Step

if TYPE_CHECKING:
    import numpy as np

    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.weights.views import WeightView
    from onnxshrink.kernels.sparsegpt import Keep

_DAMPING = 0.1  # where it is not worth a choice


@dataclass(frozen=True, kw_only=True)
class PruneSparsegpt(CalibratedPruning):
    """Set weights to zero, and let the others make up for them.

    Weights go where that costs the outputs least (SparseGPT, 2301.00774), in a few steps; after
    each, all weights left of an output channel are solved for anew by least squares on the
    calibration inputs. Where the inputs repeat each other, half of the weights can go.

    ``quantize`` rounds what is left to 8 or 4 bits in the same run, with error feedback, as
    quantize-weights stores it; zeros stay zeros.

    It needs real inputs, 16 or more: the more, the better the others can make up. What is looked
    up rather than multiplied stays whole: prune-magnitude is for those. Zeros save space once
    something uses them, as prune-magnitude explains.
    """

    steps: int = option(4, help="steps in which weights go; more are slower and better", ge=1)
    damping: float | None = option(
        None,
        help="share of the mean power of the inputs that is added to each, so that few inputs are "
        "not trusted too much; if not given, what is best on the half of the inputs not fitted to",
        ge=1e-6, le=100,
    )  # fmt: skip
    quantize: Literal["none", "int8", "int4"] = option("none", help="how to round what is left")
    block_size: int = option(
        0, help="weights that share a scale when they are quantized; 0: the whole channel", ge=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.quantize != "none" and self.store == "sparse":
            raise RecipeError(f"{self.name}: 'store: sparse' is for weights that stay floats")

    def apply(self, model: Model, ctx: Context) -> None:
        """Prune every selected weight, the largest first; then quantize, if asked for."""
        super().apply(model, ctx)
        self._quantize(model, ctx)

    def tried(self, view: WeightView, ctx: Context) -> tuple[np.ndarray, np.ndarray]:
        """Scores, and what one step leaves that is fitted to the feeds with even numbers only."""
        damping = self._damping(view, self.ratio, ctx)
        quick = replace(self, steps=1, damping=damping)
        matrix = quick._solved(view, self.ratio, inputs_of(view, ctx).mean(0), damping)
        return quick.scores(view, ctx), matrix

    def scores(self, view: WeightView, ctx: Context) -> np.ndarray:
        """What each weight costs once the others make up for it."""
        from onnxshrink.kernels import sparsegpt

        known, matrix = inputs_of(view, ctx), matrix_of(view)
        h = known.damped(self.damping or _DAMPING)
        return sparsegpt.scores(known.fold(matrix), h).reshape(matrix.shape)

    def pruned(self, view: WeightView, ratio: float, ctx: Context) -> np.ndarray:
        """The weights left, solved for."""
        damping = self._damping(view, ratio, ctx)
        return self._solved(view, ratio, inputs_of(view, ctx).mean(), damping)

    def _damping(self, view: WeightView, ratio: float, ctx: Context) -> float:
        """What was asked for, or what does best on the feeds that were not fitted to."""
        from onnxshrink.kernels import sparsegpt

        if self.damping is not None:
            return self.damping
        known = inputs_of(view, ctx)
        seen, unseen = known.mean(0), known.mean(1)
        folded, keep = self._problem(view, ratio, len(seen))
        return sparsegpt.choose_damping(folded, seen, unseen, keep)

    def _solved(
        self, view: WeightView, ratio: float, moment: np.ndarray, damping: float
    ) -> np.ndarray:
        """The weights left for inputs with this second moment, [outputs, inputs]."""
        from onnxshrink.kernels import sparsegpt

        folded, keep = self._problem(view, ratio, len(moment))
        found = sparsegpt.prune(folded, moment, keep, damping, self.steps)
        return found.reshape(-1, folded.shape[-1])

    def _problem(self, view: WeightView, ratio: float, groups: int) -> tuple[np.ndarray, Keep]:
        """The weights as [groups, rows, width], and what to keep of them."""
        matrix = matrix_of(view)
        folded = matrix.reshape(groups, -1, matrix.shape[1])
        return folded, lambda scores, part: self.kept(view, scores, ratio, part)

    def _quantize(self, model: Model, ctx: Context) -> None:
        """Round the weights that were pruned with quantize-weights, and report both as one."""
        from onnxshrink.graph import weights
        from onnxshrink.passes.quantize_weights import QuantizeWeights
        from onnxshrink.select import SKIP, Select

        rows = {}
        pruned = {change.what: at for at, change in enumerate(ctx.step.changes)}
        for view in weights.find(model):
            if view.name in pruned and not view.why_not:
                overrides = self.weights.overrides(view)
                assert overrides != SKIP
                own = build(type(self), {**dump(self), **overrides}, self.name)
                if own.quantize != "none":
                    rows[view.name] = {"dtype": own.quantize, "block_size": own.block_size}
        if not rows:
            return
        selection = Select(min_size=0, only=tuple(rows), layers=rows)
        quantizer = QuantizeWeights(rounding="gptq", vectors="keep", weights=selection)
        step = Step(quantizer.name)
        quantizer.apply(model, replace(ctx, step=step))
        for change in step.changes:
            if change.what not in pruned:
                ctx.step.changes.append(change)
                continue
            at = pruned[change.what]
            before = ctx.step.changes[at]
            ctx.step.changes[at] = replace(
                before, after=change.after, error={**before.error, **change.error},
                note=f"{before.note.partition(';')[0]}; {change.note}",
            )  # fmt: skip
