"""Set to zero the weights that matter least for the inputs that they see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxshrink.passes._calibrated_pruning import CalibratedPruning, inputs_of
from onnxshrink.passes._pruning import matrix_of
from onnxshrink.pipeline import Context

if TYPE_CHECKING:
    import numpy as np

    from onnxshrink.graph.weights.views import WeightView


@dataclass(frozen=True, kw_only=True)
class PruneWanda(CalibratedPruning):
    """Set to zero the weights that matter least for the inputs that they see.

    A weight is worth its magnitude times the norm of the input that it is multiplied with (Wanda,
    2306.11695), and each output channel loses the same share. The others stay as they are, so it
    takes little more time than the calibration run; prune-sparsegpt also adjusts them, which is
    several times closer to the original.

    It needs real inputs, 16 or more. What is looked up rather than multiplied stays whole:
    prune-magnitude is for those. Zeros save space once something uses them, as prune-magnitude
    explains.
    """

    def scores(self, view: WeightView, ctx: Context) -> np.ndarray:
        """Magnitudes times the root mean squares of the inputs."""
        import numpy as np

        known, matrix = inputs_of(view, ctx), matrix_of(view)
        norms = np.sqrt(np.diagonal(known.mean(), axis1=1, axis2=2)).astype(np.float32)
        if not np.isfinite(norms).all():
            raise ValueError("the second moment is not finite")
        folded = known.fold(np.abs(matrix))
        scores: np.ndarray = (folded * norms[:, None]).reshape(matrix.shape)
        return scores
