"""Pruning with least squares: the weights that stay make up for those that go.

For inputs with second moment H, a row of errors e costs ``e H e^T``. Removing weight j costs
``w_j^2 / [H^-1]_jj`` once all others make up for it (Optimal Brain Surgeon), which is the score of
SparseGPT (2301.00774). SparseGPT decides one block of columns after the other, and only columns
that come later make up for a removed one. Here whole rows are decided, in a few steps of growing
sparsity, and after each step *every* weight left is solved for anew: a least squares problem for
each row, done for all rows at once by conjugate gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from onnxshrink.kernels import obs
from onnxshrink.kernels.moments import damped, loss

Floats = npt.NDArray[np.float32]
Floats64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
#: What to keep by scores of [rows, width], when this part of all that shall go is to be gone.
Keep = Callable[[npt.NDArray[np.floating], float], Mask]

STEPS = 4
#: To choose from. The largest is for layers that saw fewer rows than they have inputs.
DAMPINGS = (*obs.DAMPINGS, 3.2)
_ROUNDS = 20  # of conjugate gradients; 60 changed no output by more than one part in a thousand
_EARLY_ROUNDS = 8  # where more weights are to go
_TOLERANCE = 1e-4
_CHUNK = 2**21  # weights that are solved for together
_TRIED_GROUPS, _TRIED_ROWS = 8, 48


def scores(weights: npt.NDArray[np.floating], moments: npt.NDArray[np.floating]) -> Floats64:
    """What removing each weight alone costs the outputs once the others make up for it.

    Args:
        weights: [groups, rows, width].
        moments: H of each group, damped, [groups, width, width].

    Returns:
        Square roots of the costs, [groups, rows, width].

    Raises:
        ValueError: H is not positive definite.
    """
    cost: Floats64 = np.abs(weights) * _alone(moments)
    return cost


def _alone(moments: npt.NDArray[np.floating]) -> Floats64:
    """``1 / sqrt([H^-1]_jj)`` of each input: how much of it the others cannot make up for."""
    from scipy.linalg import LinAlgError, cholesky
    from scipy.linalg.lapack import dtrtri

    found = np.empty((len(moments), 1, moments.shape[-1]))
    for h, row in zip(moments, found, strict=True):
        try:
            lower = cholesky(h, lower=True, check_finite=False)
        except LinAlgError as error:
            raise ValueError("the second moment is not positive definite; damp it more") from error
        inverse, _ = dtrtri(lower, lower=1)
        row[0] = 1 / np.sqrt(np.einsum("ij,ij->j", inverse, inverse))
    return found


def refit(
    weights: npt.NDArray[np.floating],
    kept: Mask,
    moments: npt.NDArray[np.floating],
    rounds: int = _ROUNDS,
) -> Floats:
    """The weights on the kept places whose outputs come closest to those of all weights.

    The error never exceeds that of the kept weights as they are: the search begins there.

    Args:
        weights: [groups, rows, width].
        kept: Which may differ from zero, in the same shape.
        moments: H of each group, damped, [groups, width, width].
        rounds: Most rounds of conjugate gradients.
    """
    groups, rows, width = weights.shape
    # With a diagonal of ones, and rows of about one, single precision is enough for any H.
    root = np.sqrt(np.diagonal(moments, axis1=1, axis2=2))
    even = (moments / root[:, :, None] / root[:, None, :]).astype(np.float32)
    unit = root[:, None] / root.max(1)[:, None, None]
    size = np.abs(weights).max(2, keepdims=True, initial=0).astype(np.float64)
    size[size == 0] = 1
    found = np.zeros(weights.shape, np.float32)
    step = max(1, _CHUNK // (groups * width))
    for start in range(0, rows, step):
        cut = np.s_[:, start : start + step]
        target = (weights[cut] / size[cut] * unit).astype(np.float32)
        change = _solve(target, kept[cut], even, rounds) / unit * size[cut]
        found[cut] = np.where(kept[cut], weights[cut] + change, 0)
    return found


def _solve(target: Floats, kept: Mask, moments: Floats, rounds: int) -> Floats:
    """What to add to the kept weights: conjugate gradients, each row on its own."""
    change = np.zeros_like(target)
    rest = np.where(kept, np.where(kept, np.float32(0), target) @ moments, np.float32(0))
    direction = rest.copy()
    norm = np.einsum("gij,gij->gi", rest, rest)[..., None]
    least = norm * np.float32(_TOLERANCE**2)
    for _ in range(rounds):
        if (norm <= least).all():
            break
        curved = direction @ moments
        curvature = np.einsum("gij,gij->gi", direction, curved)[..., None]
        active = (norm > least) & (curvature > 0)
        length = np.divide(norm, curvature, out=np.zeros_like(norm), where=active)
        change += length * direction
        curved *= length
        rest -= np.where(kept, curved, np.float32(0))
        before, norm = norm, np.einsum("gij,gij->gi", rest, rest)[..., None]
        direction *= np.divide(norm, before, out=np.zeros_like(norm), where=active)
        direction += rest
    return change


def prune(
    weights: npt.NDArray[np.floating],
    moments: npt.NDArray[np.floating],
    keep: Keep,
    damping: float = 0.1,
    steps: int = STEPS,
) -> Floats:
    """Set weights to zero, and solve for the others.

    Args:
        weights: [groups, rows, width].
        moments: H of each group, [groups, width, width]; inputs that are always zero cost nothing.
        keep: Decides by scores of [groups * rows, width].
        damping: Share of the mean of H's diagonal to add to the diagonal.
        steps: Steps of growing sparsity; each is as much work as the first.

    Returns:
        The new weights, in the shape of the old.

    Raises:
        ValueError: H is not finite, or not positive semidefinite.
    """
    h = damped(moments, damping)
    alone, found = _alone(h), np.asarray(weights, np.float32)
    for step in range(1, steps + 1):
        # Most goes in the first steps, where there is least to lose.
        part = 1 - (1 - step / steps) ** 2
        worth = (np.abs(found) * alone).reshape(-1, weights.shape[2])
        kept = keep(worth, part).reshape(weights.shape)
        found = refit(weights, kept, h, _ROUNDS if step == steps else _EARLY_ROUNDS)
    return found


def choose_damping(
    weights: npt.NDArray[np.floating],
    seen: npt.NDArray[np.floating],
    unseen: npt.NDArray[np.floating],
    keep: Keep,
    candidates: Sequence[float] = DAMPINGS,
) -> float:
    """The damping with which weights pruned for some inputs do best on others.

    Args:
        weights: [groups, rows, width]; a sample of groups and rows decides.
        seen: Second moments of the inputs to prune for.
        unseen: Second moments of the inputs that judge.
        keep: As in :func:`prune`.
        candidates: What to try.
    """
    groups, rows, _ = weights.shape
    chosen = np.unique(np.linspace(0, groups - 1, _TRIED_GROUPS).astype(np.int64))
    some = weights[chosen][:, np.unique(np.linspace(0, rows - 1, _TRIED_ROWS).astype(np.int64))]

    # Which weights go depends little on the damping, so they may be found by what is quick to tell.
    power = np.sqrt(np.diagonal(seen[chosen], axis1=1, axis2=2))[:, None]
    kept = keep((np.abs(some) * power).reshape(-1, some.shape[2]), 1.0).reshape(some.shape)

    def error(damping: float) -> float:
        fitted = refit(some, kept, damped(seen[chosen], damping))
        return loss(some - fitted, unseen[chosen])

    return min(candidates, key=error)
