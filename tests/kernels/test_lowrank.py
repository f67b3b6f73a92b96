"""Low rank, against scipy's singular values."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

from onnxshrink.kernels import lowrank


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1), st.integers(0, 12),
       st.sampled_from([1e-30, 1.0, 1e30]))  # fmt: skip
def test_the_error_is_the_tail_of_the_spectrum(
    rows: int, columns: int, seed: int, inner: int, size: float
) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((rows, columns))
    if inner:
        matrix = rng.standard_normal((rows, inner)) @ rng.standard_normal((inner, columns))
    matrix *= size
    found = lowrank.decompose(matrix)
    exact = scipy.linalg.svdvals(matrix)
    np.testing.assert_allclose(found.values, exact, atol=2e-7 * exact[0])
    total = np.linalg.norm(matrix)
    for rank in range(1, len(exact) + 1):
        left, right = found.factors(rank)
        assert left.shape == (rows, rank)
        assert right.shape == (rank, columns)
        error = np.linalg.norm(left @ right - matrix) / total
        assert error == pytest.approx(np.linalg.norm(exact[rank:]) / total, abs=1e-7)
        assert found.error(rank) == pytest.approx(error, abs=1e-6)
        # Both factors are of the same size.
        assert np.linalg.norm(left) == pytest.approx(np.linalg.norm(right), rel=1e-5)


def test_ranks_by_energy() -> None:
    found = lowrank.decompose(np.diag([4.0, 3.0, 0.0, 0.0]))
    assert [found.rank_of_energy(e) for e in (0, 0.6, 0.64, 0.65, 0.999)] == [1, 1, 1, 2, 2]
    assert found.rank_of_energy(1) == 4
    nothing = lowrank.decompose(np.zeros((3, 5)))
    assert nothing.rank_of_energy(0.9) == 1
    assert nothing.error(1) == 0
    left, right = nothing.factors(2)
    np.testing.assert_array_equal(left @ right, np.zeros((3, 5)))


def test_what_has_no_rank_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        lowrank.decompose(np.array([[np.nan]]))


# --------------------------------------------------------------------------------- whitened


def spread(rng: np.random.Generator, width: int, rows: int = 400) -> np.ndarray:
    """The second moment of inputs with a few strong directions."""
    x = rng.standard_normal((rows, width)) @ (rng.standard_normal((width, width)) ** 3)
    return x.T @ x / rows


@given(st.integers(1, 10), st.integers(1, 10), st.integers(0, 2**32 - 1))
def test_no_product_of_that_rank_has_a_smaller_error_of_the_outputs(
    rows: int, columns: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    matrix, moment = rng.standard_normal((rows, columns)), spread(rng, columns)
    damped = moment + 0.02 * np.trace(moment) / columns * np.eye(columns)
    found = lowrank.decompose(matrix, moment)
    exact = scipy.linalg.svdvals(matrix @ scipy.linalg.sqrtm(damped).real)
    for rank in range(len(exact) + 1):
        left, right = found.factors(rank)
        error = lowrank.output_error(matrix, left @ right, damped)
        best = np.linalg.norm(exact[rank:]) / np.linalg.norm(exact)
        assert error == pytest.approx(best, abs=1e-6)
        assert found.error(rank) == pytest.approx(best, abs=1e-6)
        plain = np.matmul(*lowrank.decompose(matrix).factors(rank))
        assert error <= lowrank.output_error(matrix, plain, damped) + 1e-6
        # Every column of the one side has the norm of its row of the other.
        norms = np.linalg.norm(left, axis=0), np.linalg.norm(right, axis=1)
        np.testing.assert_allclose(*norms, rtol=1e-6, atol=1e-9)


def test_moments_that_say_little() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((6, 5))
    plain = np.matmul(*lowrank.decompose(matrix).factors(2))
    for nothing in (np.zeros((5, 5)), np.eye(5) * 1e-30, np.eye(5) * 1e30):
        np.testing.assert_allclose(
            np.matmul(*lowrank.decompose(matrix, nothing).factors(2)), plain, atol=1e-9
        )
    one = rng.standard_normal((1, 5))  # a single row, so four directions were never seen
    found = lowrank.decompose(matrix, one.T @ one)
    left, right = found.factors(5)
    np.testing.assert_allclose(left @ right, matrix, atol=1e-9)
    left, right = found.factors(1)
    assert lowrank.output_error(matrix, left @ right, one.T @ one) < 0.01
    for values in 10.0 ** np.array([[0, -4, -8, -12, -16], [8, 4, 0, -4, -300]]):
        factors = lowrank.decompose(matrix, np.diag(values)).factors(3)
        assert all(np.isfinite(side).all() for side in factors)
    with pytest.raises(ValueError, match="not finite"):
        lowrank.decompose(matrix, np.full((5, 5), np.nan))
    with pytest.raises(ValueError, match="not positive definite"):
        lowrank.decompose(matrix, np.diag([1.0, 1, 1, 1, -1]))


def test_the_second_of_two_convolutions_by_least_squares() -> None:
    rng = np.random.default_rng(1)
    rest, width, rank, outputs = 6, 3, 2, 5
    x = rng.standard_normal((300, rest * width)) @ rng.standard_normal((18, 18))
    weights = rng.standard_normal((outputs, rest * width))
    moment = x.T @ x / len(x)
    columns = x.reshape(300, rest, width)
    each = np.einsum("naw,nbw->ab", columns, columns) / 300 / width
    np.testing.assert_allclose(lowrank.columns_moment(moment, width), each)
    first = rng.standard_normal((rank, rest))
    second = lowrank.refit_columns(weights, first, moment, damping=0)
    seen = np.einsum("ra,naw->nrw", first, columns).reshape(300, -1)
    best = np.linalg.lstsq(seen, x @ weights.T, rcond=None)[0].T
    np.testing.assert_allclose(second.reshape(outputs, -1), best, atol=1e-9)
    # A first one of rank 1 twice over has no single best second one, but a finite one.
    twice = lowrank.refit_columns(weights, np.repeat(first[:1], 2, 0), moment)
    assert np.isfinite(twice).all()


def test_errors_of_outputs() -> None:
    exact, near = np.eye(2), np.diag([1.0, 0.5])
    assert lowrank.output_error(exact, near, None) == pytest.approx(0.5 / 2**0.5)
    assert lowrank.output_error(exact, near, np.diag([1.0, 0.0])) == 0
    assert lowrank.output_error(exact, near, np.diag([0.0, 3.0])) == 0.5
    assert lowrank.output_error(np.zeros((2, 2)), near, None) == 0
