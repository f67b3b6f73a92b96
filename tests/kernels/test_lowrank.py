"""Low rank, against scipy's singular values."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxshrink.kernels import lowrank


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1), st.integers(0, 12),
       st.sampled_from([1e-30, 1.0, 1e30]))  # fmt: skip
@settings(deadline=None)
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
