"""What pruning by the inputs of weights adds: the inputs, and how much each weight can lose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from onnxshrink.errors import InputsMissing
from onnxshrink.options import option
from onnxshrink.passes._pruning import Pruning, matrix_of, obstacle
from onnxshrink.pipeline import Context
from onnxshrink.progress import counted
from onnxshrink.trials import Exchange

if TYPE_CHECKING:
    import numpy as np

    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.weights.views import WeightView
    from onnxshrink.kernels.moments import InputMoments
    from onnxshrink.kernels.observers import Need

_MOST = 0.95  # of a weight may go to spare others: no layer is emptied
_PROBES = 4  # inputs, not fitted to, on which the effect of each weight is measured


@dataclass(frozen=True, kw_only=True)
class CalibratedPruning(Pruning):
    """Pruning by what the inputs of a weight are. Lookups have none, and stay whole."""

    runs_models: ClassVar[bool] = True

    scope: Literal["row", "weight"] = option(
        "row", help="take the share of each output channel, or of the weight as a whole"
    )
    allocate: Literal["sensitivity", "uniform"] = option(
        "sensitivity",
        help="more of the weights whose loss moves the outputs less, or the same share of each",
    )

    @property
    def by_row(self) -> bool:
        """As asked for."""
        return self.scope == "row"

    def needs(self, model: Model) -> Iterator[Need]:
        """Second moments of what each selected weight is multiplied with."""
        from onnxshrink.graph import weights
        from onnxshrink.graph.weights import second_moments

        for view in weights.find(model):
            if not self.weights.why_not(view) and not obstacle(view):
                yield from second_moments.needs(view)

    def tried(self, view: WeightView, ctx: Context) -> tuple[np.ndarray, np.ndarray]:
        """Scores, and the weights left; quick to find, and without a look at odd feeds to fit to.

        Raises:
            ValueError: Why the weight must stay as it is.
        """
        return self.scores(view, ctx), self.pruned(view, self.ratio, ctx)

    def shares(
        self, model: Model, views: Sequence[WeightView], ctx: Context
    ) -> Mapping[WeightView, float]:
        """The share of each weight: so that what the outputs lose is least, as far as it adds up.

        A weight's scores add up to what its own outputs lose. What this does to the outputs of the
        model is measured by pruning one weight at a time; the mean (of logarithms) of that and of
        the loss relative to the weight's own outputs makes the scores comparable. The measurement
        alone would trust a few inputs too much. Both are taken on feeds with odd numbers, after
        a fit to the even ones: a wide layer that saw few rows fits those at any sparsity.

        Raises:
            InputsMissing: There are none.
        """
        from onnxshrink.kernels import masks

        if not ctx.feeds or ctx.generated:
            raise InputsMissing(f"{self.name} needs real inputs: give --calibration DATA")
        views = [view for view in views if self.in_common(view)]
        if self.allocate == "uniform" or len(views) < 2 or not 0 < self.ratio < 1:
            return {}
        scores = self._comparable(model, views, ctx)
        most = max(_MOST, self.ratio)
        return dict(zip(scores, masks.shares(list(scores.values()), self.ratio, most), strict=True))

    def figures(self, view: WeightView, matrix: np.ndarray, ctx: Context) -> dict[str, float]:
        """The relative error of the weight's own outputs."""
        return {"output_error": _relative_loss(view, matrix, inputs_of(view, ctx)) ** 0.5}

    def _comparable(
        self, model: Model, views: Sequence[WeightView], ctx: Context
    ) -> dict[WeightView, np.ndarray]:
        """Scores of what is removed together, in units that all weights share."""
        import numpy as np

        found: dict[WeightView, np.ndarray] = {}
        names = Counter(view.name for view in views)
        split = ctx.split
        with closing(Exchange(model, names, ctx.worker, whole=True)) as exchange:
            probes = split.of(ctx.feeds, split.judge)[:_PROBES]
            reference = ctx.goal.holder(exchange.answers(probes))
            for view in counted(ctx.progress, "measuring sensitivities", views):
                if view.name in exchange.refused or names[view.name] > 1:
                    continue  # keeps the common share
                try:
                    scores, matrix = self.tried(view, ctx)
                except ValueError:  # reported when its turn comes
                    continue
                values = view.from_matrix(matrix).astype(view.dtype.numpy())
                changed = exchange.answers(probes, {view.name: values})
                effect = reference.distortion(changed.outputs)
                share = float(np.square(scores[matrix == 0], dtype=np.float64).sum())
                lost = _relative_loss(view, matrix, inputs_of(view, ctx), 1)
                view.release()
                if np.isfinite(effect) and share > 0 and lost > 0:
                    found[view] = self.units(scores) * (effect * lost) ** 0.25 / share**0.5
        return found


def inputs_of(view: WeightView, ctx: Context) -> InputMoments:
    """Second moments of a weight's inputs.

    Raises:
        ValueError: They were not observed.
    """
    from onnxshrink.graph.weights import second_moments

    found = second_moments.of(ctx.statistics, view)
    if found is None:
        reason = second_moments.why_not(view) or "no input reached it"
        raise ValueError(f"its inputs cannot be observed ({reason}); prune-magnitude does without")
    return found


def _relative_loss(
    view: WeightView, matrix: np.ndarray, known: InputMoments, half: int | None = None
) -> float:
    """Squared error of a weight's outputs with other values, as a share of their power."""
    before = matrix_of(view)
    wrong, whole = (known.loss(one, half) for one in (before - matrix, before))
    return wrong / whole if whole else 0.0
