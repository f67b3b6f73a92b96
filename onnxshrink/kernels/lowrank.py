"""Low rank: a matrix as the product of a tall and a flat one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxshrink.kernels.moments import damped

Array64 = npt.NDArray[np.float64]

_DAMPING = 0.02
_LEAST = 1e-12  # of the largest singular value: what is below has no direction


@dataclass(frozen=True)
class Spectrum:
    """The singular values of a [rows, columns] matrix, seen as its outputs see it.

    Attributes:
        left: [rows, k], orthonormal columns times the singular values.
        right: [k, columns]; orthonormal rows, but for a matrix that was whitened.
        values: [k] singular values, descending; k is the smaller side.
    """

    left: Array64
    right: Array64
    values: Array64

    def factors(self, rank: int) -> tuple[Array64, Array64]:
        """The closest product of [rows, rank] and [rank, columns] (Eckart and Young, 1936).

        Each column of the one and its row of the other have the same norm, so that neither has
        entries of a size of its own when it is quantized.
        """
        left, right = self.left[:, :rank], self.right[:rank]
        tall, flat = np.linalg.norm(left, axis=0), np.linalg.norm(right, axis=1)
        both = np.sqrt(tall) * np.sqrt(flat)
        share = np.divide(both, tall, out=np.zeros_like(both), where=tall > 0)
        other = np.divide(both, flat, out=np.zeros_like(both), where=flat > 0)
        return left * share, right * other[:, None]

    def errors(self) -> Array64:
        """Relative error of the outputs at rank 0, 1, .. k; of the matrix if not whitened."""
        squares = np.square(self.values / (self.values[:1].max(initial=0.0) or 1.0))
        tails = np.concatenate([np.cumsum(squares[::-1])[::-1], [0.0]])
        return np.asarray(np.sqrt(tails / (tails[0] or 1.0)))

    def error(self, rank: int) -> float:
        """Relative error of the factors of that rank."""
        return float(self.errors()[rank])

    def rank_of_energy(self, energy: float) -> int:
        """The smallest rank, from 1 on, whose squares hold a share ``energy`` of all."""
        squares = np.square(self.values)
        if energy >= 1 or not squares.any():
            return len(squares) if squares.any() else 1
        held = np.cumsum(squares) / squares.sum()
        return int(np.searchsorted(held, energy)) + 1


def decompose(
    matrix: npt.NDArray[np.floating],
    moment: npt.NDArray[np.floating] | None = None,
    damping: float = _DAMPING,
) -> Spectrum:
    """Singular values and vectors, from the eigenvectors of the smaller Gram matrix.

    In float64, that is several times faster than an SVD and precise to 1e-8 of the largest
    singular value: more than float32 weights hold.

    With the second moment ``H = S S^T`` of the inputs the outputs' error of a matrix E is the
    Frobenius norm of ``E S``, so it is ``matrix S`` that is decomposed, and ``S^-1`` taken out of
    the right side again (SVD-LLM, 2403.07378): no product of that rank has a smaller error of the
    outputs.

    Args:
        matrix: [rows, columns]; a row makes one output.
        moment: [columns, columns], of what the rows are multiplied with; None counts every input
            alike.
        damping: Share of the mean of the moment's diagonal to add to the diagonal: directions that
            few inputs showed must not be free.

    Raises:
        ValueError: NaN or infinity.
    """
    if not np.isfinite(matrix).all():
        raise ValueError("holds NaN or infinity")
    exact = matrix.astype(np.float64)
    # Scaled, so that no square leaves float64.
    largest = float(np.abs(exact).max(initial=0.0))
    exact = exact / (largest or 1.0)
    root = None if moment is None else whitening(moment, damping)
    if root is not None:
        exact = exact @ root
    wide = exact.shape[0] <= exact.shape[1]
    gram = exact @ exact.T if wide else exact.T @ exact
    power, vectors = np.linalg.eigh(gram)
    values = np.sqrt(np.maximum(power[::-1], 0))
    vectors = vectors[:, ::-1]
    if wide:
        held = values > _LEAST * values[:1]
        share = np.divide(1, values, out=np.zeros_like(values), where=held)
        left, right = vectors * (values * largest), (vectors.T @ exact) * share[:, None]
    else:
        left, right = exact @ vectors * largest, vectors.T
    if root is not None:
        right = _without(right, root)
    return Spectrum(left, right, values * largest)


def whitening(moment: npt.NDArray[np.floating], damping: float = _DAMPING) -> Array64 | None:
    """S with ``S S^T = H``, lower triangular, of a damped second moment; None where it is 0.

    The moment is scaled to a mean diagonal of 1.

    Raises:
        ValueError: It is not finite, or not positive semidefinite.
    """
    h = damped(moment, damping)
    mean = float(np.trace(moment)) / max(len(moment), 1)
    if mean <= 0:
        return None
    try:
        root = np.linalg.cholesky(h / mean)
    except np.linalg.LinAlgError as error:
        raise ValueError("the second moment is not positive definite; damp it more") from error
    return np.asarray(root)


def _without(right: Array64, root: Array64) -> Array64:
    """``right root^-1``."""
    from scipy.linalg import solve_triangular

    turned: Array64 = solve_triangular(root, right.T, lower=True, trans="T", check_finite=False)
    return np.ascontiguousarray(turned.T)


def columns_moment(moment: npt.NDArray[np.floating], width: int) -> Array64:
    """The second moment of one column of windows, its mean over the ``width`` columns.

    Args:
        moment: Of windows with their columns last: [rest * width, rest * width].
        width: Columns of a window.
    """
    rest = len(moment) // width
    split = np.asarray(moment, np.float64).reshape(rest, width, rest, width)
    mean: Array64 = np.einsum("awbw->ab", split) / width
    return mean


def refit_columns(
    weights: npt.NDArray[np.floating],
    first: npt.NDArray[np.floating],
    moment: npt.NDArray[np.floating],
    damping: float = _DAMPING,
) -> Array64:
    """The second of two convolutions by least squares, when the first sees one column at a time.

    Args:
        weights: [outputs, rest * width], of the convolution to be split, columns last.
        first: [rank, rest], of the first of the two.
        moment: [rest * width, rest * width], of the windows.
        damping: As in :func:`decompose`.

    Returns:
        [outputs, rank, width].
    """
    rank, rest = first.shape
    width = len(moment) // rest
    by_column = damped(moment, damping).reshape(rest, width, rest, width)
    seen = np.tensordot(first, by_column, (1, 0))  # [rank, width, rest, width]
    gram = np.tensordot(seen, first, (2, 1)).transpose(0, 1, 3, 2)  # [rank, width] twice
    target = np.tensordot(np.asarray(weights, np.float64), seen.reshape(rank * width, -1), (1, 1))
    gram = gram.reshape(rank * width, rank * width)
    # Of less than full rank where the first one is.
    solved = np.linalg.lstsq((gram + gram.T) / 2, target.T, rcond=_LEAST)[0]
    return np.asarray(solved.T.reshape(len(weights), rank, width))


def output_error(
    weights: npt.NDArray[np.floating],
    other: npt.NDArray[np.floating],
    moment: npt.NDArray[np.floating] | None,
) -> float:
    """Relative error of the outputs of other weights, [rows, columns]; 0 where there are none."""
    exact = np.asarray(weights, np.float64)
    change = exact - np.asarray(other, np.float64)
    if moment is None:
        total, wrong = float(np.vdot(exact, exact)), float(np.vdot(change, change))
    else:
        total = float(np.vdot(exact @ moment, exact))
        wrong = float(np.vdot(change @ moment, change))
    return float(np.sqrt(max(wrong, 0.0) / total)) if total > 0 else 0.0
