"""Set the smallest weights to zero: a share, below a threshold, N of every M, or in blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from onnxshrink.errors import RecipeError
from onnxshrink.options import option
from onnxshrink.passes._pruning import Pruning, matrix_of
from onnxshrink.pipeline import Context

if TYPE_CHECKING:
    import numpy as np

    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.weights.views import WeightView


@dataclass(frozen=True, kw_only=True)
class PruneMagnitude(Pruning):
    """Set the smallest weights to zero.

    The file stays as large as it was: the zeros save space once something uses them. ``onnxshrink
    pack`` does, share-codebook keeps them (a table of few values packs best), and ``store: sparse``
    writes the others only, each with a bit for its place, where that is smaller: from about 5 %
    zeros on. Neither saves memory or time: ONNX Runtime computes with zeros as with other numbers,
    and loading a sparse model takes 5 times as long, at a peak of 7 times the float model's memory.
    A ``pattern`` of 2:4 is what NVIDIA's sparse tensor cores skip; it is noted in the tensor's
    metadata as ``onnxshrink.sparsity``.

    Without data, at most 20 to 30 % is harmless on most models; with inputs, prune-sparsegpt
    removes twice as much at the same error.
    """

    threshold: float | None = option(
        None, help="instead of a share: every weight below this magnitude", ge=0
    )
    scope: Literal["model", "weight", "row"] = option(
        "model",
        help="take that share of the model as a whole (by LAMP scores, which never empty a layer),"
        " of each weight, or of each output channel",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold is not None and (self.pattern or self.block):
            raise RecipeError(f"{self.name}: use one of 'threshold', 'pattern' and 'block'")

    @property
    def by_row(self) -> bool:
        """As asked for."""
        return self.scope == "row"

    def scores(self, view: WeightView, ctx: Context) -> np.ndarray:
        """Magnitudes."""
        import numpy as np

        scores: np.ndarray = np.abs(matrix_of(view))
        return scores

    def kept(
        self, view: WeightView, scores: np.ndarray, ratio: float, part: float = 1.0
    ) -> np.ndarray:
        """What to keep: also by the threshold."""
        if self.threshold is None:
            return super().kept(view, scores, ratio, part)
        kept: np.ndarray = scores >= self.threshold
        return kept

    def shares(
        self, model: Model, views: Sequence[WeightView], ctx: Context
    ) -> Mapping[WeightView, float]:
        """The share of each weight by LAMP scores, which make layers comparable."""
        from onnxshrink.kernels import masks

        found = {}
        alone = self.scope != "model" or self.threshold is not None
        for view in () if alone else views:
            if self.in_common(view):
                try:
                    found[view] = masks.lamp(self.units(self.scores(view, ctx)))
                except ValueError:  # reported when its turn comes
                    continue
                view.release()
        return dict(zip(found, masks.shares(list(found.values()), self.ratio), strict=True))
