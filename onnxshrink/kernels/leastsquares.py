"""Least squares of what a layer is made of, from sums over samples alone.

A layer multiplies rows x with a matrix W and adds a constant: ``y = W x + b``. All that the squared
error against wanted outputs needs is the sums of ``x x^T``, ``y x^T`` and ``y^2``, with a 1 behind
x for the constant. W itself is made of *numbers*: kept weights, scales of integer codes, entries of
a table; each of its elements is one number times a coefficient, so the numbers are found by least
squares as well. They are drawn towards what they were by a ridge, since few samples show little of
a wide layer, and how strongly is decided on samples that were not fitted to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from onnxshrink.kernels import moments

Array = npt.NDArray[np.float64]

#: Shares of the mean square of the inputs that the ridge may be.
DAMPINGS = (1e-3, 1e-2, 1e-1, 1.0)
_ITERATIONS, _EXPECTED = 200, 20


@dataclass(frozen=True)
class Seen:
    """Sums over samples of a layer's inputs and the outputs that are wanted of it.

    Attributes:
        xx: [groups, width + 1, width + 1], of the inputs with a 1 behind them.
        xy: [groups, outputs, width + 1], of outputs times inputs.
        yy: [groups, outputs], of the squared outputs.
    """

    xx: Array
    xy: Array
    yy: Array

    def __add__(self, other: Seen) -> Seen:
        return Seen(self.xx + other.xx, self.xy + other.xy, self.yy + other.yy)

    def some(self, outputs: npt.NDArray[np.int64]) -> Seen:
        """Of some outputs of each group only."""
        return Seen(self.xx, self.xy[:, outputs], self.yy[:, outputs])

    @property
    def samples(self) -> float:
        """How many there were."""
        return float(self.xx[0, -1, -1])


@dataclass(frozen=True)
class Affine:
    """A layer.

    Attributes:
        matrix: [groups, outputs, width].
        shift: [groups, outputs], added to the outputs.
    """

    matrix: Array
    shift: Array

    def some(self, outputs: npt.NDArray[np.int64]) -> Affine:
        """Some outputs of each group only."""
        return Affine(self.matrix[:, outputs], self.shift[:, outputs])

    def loss(self, seen: Seen) -> float:
        """Squared error of all outputs, summed over the samples."""
        full = np.concatenate([self.matrix, self.shift[..., None]], axis=2)
        gradient = full @ seen.xx - 2 * seen.xy
        return float(np.einsum("goi,goi->", full, gradient) + seen.yy.sum())

    def shifted(self, seen: Seen) -> Affine:
        """The same matrix with the constants that suit it best."""
        count = max(seen.samples, 1.0)
        means = seen.xx[:, :-1, -1] / count
        wanted = seen.xy[:, :, -1] / count
        return replace(self, shift=wanted - np.einsum("goi,gi->go", self.matrix, means))


@dataclass(frozen=True)
class Linear:
    """How a matrix is made of numbers: each element is one of them times a coefficient.

    Attributes:
        coefficient: [groups, outputs, width].
        index: Which number, in the same shape.
    """

    coefficient: Array
    index: npt.NDArray[np.int64]

    def some(self, outputs: npt.NDArray[np.int64]) -> Linear:
        """Some outputs of each group only, of the same numbers."""
        return Linear(self.coefficient[:, outputs], self.index[:, outputs])

    def expand(self, numbers: Array) -> Array:
        """The matrix that these numbers make."""
        made: Array = self.coefficient * numbers[self.index]
        return made

    def reduce(self, gradient: Array, count: int) -> Array:
        """For each of ``count`` numbers, the sum over the elements that it makes."""
        weights = (self.coefficient * gradient).ravel()
        return np.bincount(self.index.ravel(), weights, count).astype(np.float64, copy=False)

    def owners(self, count: int) -> npt.NDArray[np.int64]:
        """For each number the row that it alone belongs to; all 0 where rows share numbers."""
        places = np.flatnonzero(self.coefficient)
        rows, index = places // self.index.shape[-1], self.index.ravel()[places]
        owner = np.zeros(count, np.int64)
        owner[index] = rows
        return owner if np.array_equal(owner[index], rows) else np.zeros_like(owner)


def _centred(seen: Seen, *, shift: bool) -> tuple[Array, Array]:
    """Second moments of the inputs, and of outputs and inputs; about the means if shifts are free.

    Means over the samples.
    """
    count = max(seen.samples, 1.0)
    h, cross = seen.xx[:, :-1, :-1] / count, seen.xy[:, :, :-1] / count
    if shift:
        x, y = seen.xx[:, :-1, -1] / count, seen.xy[:, :, -1] / count
        h = h - x[:, :, None] * x[:, None, :]
        cross = cross - y[:, :, None] * x[:, None, :]
    return h, cross


def solve(
    linear: Linear, numbers: Array, held: Affine, seen: Seen, damping: float, *, shift: bool,
    tolerance: float = 1e-5,
) -> tuple[Array, Affine]:  # fmt: skip
    """The numbers whose layer comes closest to the outputs that are wanted.

    Minimises ``E ||W(n) x + b - y||^2 + damping * m ||W(n) - W(start)||^2``, m the mean square of
    the inputs: by elimination, row by row, where every element has a number of its own; otherwise,
    and where rows are very wide, by conjugate gradients.

    Args:
        linear: How the matrix is made of numbers.
        numbers: To start from. Those that are zero stay zero, because they were pruned.
        held: The layer as it is.
        seen: What to fit to.
        damping: Strength of the ridge.
        shift: Whether the constants are free.
        tolerance: Of the residual, in share of what it was.

    Returns:
        The numbers, and the layer that they make.
    """
    from scipy.linalg import cho_solve

    h, cross = _centred(seen, shift=shift)
    damped = moments.damped(h, damping)
    target = cross - held.matrix @ h
    if not shift:
        target -= held.shift[..., None] * (seen.xx[:, None, -1, :-1] / max(seen.samples, 1.0))
    free = numbers != 0
    kept = (linear.coefficient != 0) & free[linear.index]
    alone = np.bincount(linear.index[kept], minlength=len(numbers)).max(initial=0) <= 1
    work = np.power(kept.sum(2), 3.0).sum() / 3  # of elimination; next to it that of iterations
    if alone and work <= _EXPECTED * kept.size * kept.shape[2]:
        change = np.zeros_like(target)
        if kept.all():
            for group, gradient in enumerate(target):
                factor = _factor(damped[group])
                change[group] = cho_solve((factor, True), gradient.T, check_finite=False).T
        else:
            _eliminate(kept, target, damped, change)
        found = numbers.copy()
        found[linear.index[kept]] += change[kept] / linear.coefficient[kept]
    else:
        found = numbers + _conjugate_gradients(linear, target, damped, free, tolerance)
    made = replace(held, matrix=linear.expand(found))
    return found, made.shifted(seen) if shift else made


def _eliminate(kept: npt.NDArray[np.bool_], target: Array, damped: Array, change: Array) -> None:
    """The change of the kept elements of every row, from the gradient of the matrix."""
    from scipy.linalg import cho_solve

    for group, row in np.ndindex(kept.shape[:2]):
        at = np.flatnonzero(kept[group, row])
        if at.size:
            factor = _factor(damped[group][np.ix_(at, at)])
            change[group, row, at] = cho_solve(
                (factor, True), target[group, row, at], check_finite=False
            )


def _factor(matrix: Array) -> Array:
    """The lower Cholesky factor of a damped second moment.

    Where means are large beside the spread, sums in single precision leave something that is not
    positive definite once they are taken off. It is damped until it is: by more than its error.
    """
    from scipy.linalg import LinAlgError, cholesky

    ridge = 1e-3 * float(np.abs(np.diagonal(matrix)).max()) or 1.0
    found: Array
    while True:
        try:
            found = cholesky(matrix, lower=True, check_finite=False)
        except LinAlgError:
            if not np.isfinite(ridge):
                raise
            matrix = matrix + ridge * np.eye(len(matrix))
            ridge *= 10
        else:
            return found


def _conjugate_gradients(
    linear: Linear, target: Array, damped: Array, free: npt.NDArray[np.bool_], tolerance: float
) -> Array:
    """The change of the free numbers, from the gradient of the matrix."""
    count = len(free)
    owner = linear.owners(count)

    def dot(a: Array, b: Array) -> Array:
        return np.bincount(owner, a * b, count).astype(np.float64, copy=False)

    def step(above: Array, below: Array) -> Array:
        ratio = np.divide(above, below, out=np.zeros(count), where=below > 0)
        return ratio[owner]

    diagonal = np.diagonal(damped, axis1=1, axis2=2)[:, None, :]
    curvature = linear.reduce(linear.coefficient * diagonal, count)
    usable = free & (curvature > 0)
    inverse = np.divide(1.0, curvature, out=np.zeros(count), where=usable)
    residual = np.where(usable, linear.reduce(target, count), 0.0)
    found, direction = np.zeros(count), inverse * residual
    energy = first = dot(residual, direction)
    for _ in range(_ITERATIONS):
        if not (energy > tolerance**2 * first).any():
            break
        image = linear.reduce(linear.expand(direction) @ damped, count)
        image[~usable] = 0.0
        length = step(energy, dot(direction, image))
        found += length * direction
        residual -= length * image
        scaled = inverse * residual
        before, energy = energy, dot(residual, scaled)
        direction = scaled + step(energy, before) * direction
    return found


def reduced_rank(
    held: Affine, rank: int, seen: Seen, damping: float, *, shift: bool
) -> tuple[Array, Array, Affine]:
    """The two factors whose product comes closest to the outputs that are wanted.

    Reduced-rank regression (Izenman, 1975) with a ridge towards the layer as it is: the free
    solution, cut to its largest singular values as the inputs weigh them.

    Args:
        held: The layer as it is, in one group.
        rank: Of the product.
        seen: What to fit to.
        damping: Strength of the ridge.
        shift: Whether the constants are free.

    Returns:
        [outputs, rank], [rank, width], and the layer that their product makes.
    """
    h, cross = _centred(seen, shift=shift)
    damped = moments.damped(h, damping)
    if not shift:
        cross = cross - held.shift[..., None] * (seen.xx[:, None, -1, :-1] / seen.samples)
    pull = cross + held.matrix @ (damped - h)
    factor = _factor(damped[0])  # damped = factor factor^T
    weighed = np.linalg.solve(factor, pull[0].T).T
    left, values, right = np.linalg.svd(weighed, full_matrices=False)
    root = np.sqrt(values[:rank])
    first = np.linalg.solve(factor.T, (root[:, None] * right[:rank]).T).T
    second = left[:, :rank] * root
    made = replace(held, matrix=(second @ first)[None])
    return second, first, made.shifted(seen) if shift else made


@dataclass(frozen=True)
class Verdict:
    """What samples that were not fitted to say of a fit.

    Attributes:
        damping: The ridge that is best on them.
        before: Squared error of the layer as it is, in share of the outputs' squares.
        after: The same of the fit.
    """

    damping: float
    before: float
    after: float


def judge(
    held: Affine, halves: tuple[Seen, Seen], fit: Callable[[Seen, float], Affine],
    dampings: Sequence[float] = DAMPINGS,
) -> Verdict:  # fmt: skip
    """Fit to each half of the samples, and judge by the other one.

    Args:
        held: The layer as it is.
        halves: The samples.
        fit: Makes a layer from samples and a damping.
        dampings: What to try.
    """
    total = max(sum(float(half.yy.sum()) for half in halves), np.finfo(np.float64).tiny)
    before = sum(held.loss(half) for half in halves)
    errors = {
        damping: fit(halves[0], damping).loss(halves[1]) + fit(halves[1], damping).loss(halves[0])
        for damping in dampings
    }
    best = min(errors, key=lambda damping: errors[damping])
    return Verdict(best, max(before / total, 0.0), max(errors[best] / total, 0.0))
