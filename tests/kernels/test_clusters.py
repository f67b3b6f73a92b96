"""k-means: the best there is on the line, held against every other way to cut it."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.cluster.vq import kmeans2

from onnxshrink.kernels import clusters


def cost(points: np.ndarray, mass: np.ndarray, centres: np.ndarray) -> float:
    return float((mass * ((points[:, None] - centres) ** 2).min(1)).sum())


def least(points: np.ndarray, mass: np.ndarray, count: int) -> float:
    """The least cost of all ways to cut sorted points into so many intervals."""
    best = np.inf
    for cuts in itertools.combinations(range(1, len(points)), min(count, len(points)) - 1):
        ends = [0, *cuts, len(points)]
        parts = [slice(a, b) for a, b in itertools.pairwise(ends)]
        means = [np.average(points[p], weights=mass[p]) for p in parts]
        total = sum(
            (mass[p] * (points[p] - m) ** 2).sum() for p, m in zip(parts, means, strict=True)
        )
        best = min(best, float(total))
    return best


@given(st.lists(st.tuples(st.integers(-30, 30), st.integers(1, 9)), min_size=1, max_size=9),
       st.integers(2, 5))  # fmt: skip
def test_clusters_on_the_line_are_the_best_there_are(
    pairs: list[tuple[int, int]], count: int
) -> None:
    known = dict(pairs)
    points = np.array(sorted(known), float)
    mass = np.array([known[p] for p in points], float)
    centres = clusters.kmeans(points, mass, count)
    assert len(centres) == min(count, len(points))
    assert (np.diff(centres) > 0).all()
    assert cost(points, mass, centres) == pytest.approx(least(points, mass, count), abs=1e-9)


def test_sixteen_levels_of_a_normal_distribution_are_those_of_lloyd_and_max() -> None:
    """Max, 1960: distortion .009497 of 16 levels, .03454 of 8, .1175 of 4, .3634 of 2."""
    values = np.random.default_rng(0).standard_normal(2_000_000)
    points, mass = clusters.histogram(values, None)
    assert mass.sum() == values.size
    for count, distortion in ((16, 0.009497), (8, 0.03454), (4, 0.1175), (2, 0.3634)):
        centres = clusters.kmeans(points, mass, count)
        assert cost(points, mass, centres) / mass.sum() == pytest.approx(distortion, rel=0.01)
    # Beyond what dynamic programming affords; the bound of Panter and Dite is 2.7 / count**2.
    centres = clusters.kmeans(points, mass, 256)
    assert len(centres) == 256
    assert cost(points, mass, centres) / mass.sum() < 2.8 / 256**2


def test_it_is_no_worse_than_scipy() -> None:
    values = np.random.default_rng(1).standard_t(3, 5000)
    points, mass = clusters.histogram(values, None)
    ours = cost(points, mass, clusters.kmeans(points, mass, 16))
    for seed in range(5):
        centres, _ = kmeans2(values[:, None], 16, minit="++", rng=seed)
        assert ours <= cost(points, mass, np.unique(centres)) * (1 + 1e-9)


def test_importance_moves_the_centres() -> None:
    values = np.array([0.0, 1.0, 10.0, 12.0])
    weight = np.array([1.0, 3.0, 1.0, 0.0])
    points, mass = clusters.histogram(values, weight)
    np.testing.assert_array_equal(points, [0, 1, 10])  # what counts nothing is not there
    np.testing.assert_allclose(clusters.kmeans(points, mass, 2), [0.75, 10], rtol=1e-12)
    # Where nothing counts, all do.
    assert clusters.histogram(values, np.zeros(4))[1].tolist() == [1, 1, 1, 1]


def test_a_pinned_centre_stays() -> None:
    points, mass = np.array([-2.0, -1.0, 0.0, 3.0, 4.0]), np.ones(5)
    np.testing.assert_allclose(clusters.kmeans(points, mass, 3, pin=0.0), [-1.5, 0, 3.5])
    np.testing.assert_allclose(clusters.kmeans(points, mass, 2, pin=0.0), [0, 3.5])
    np.testing.assert_array_equal(clusters.kmeans(points, mass, 8, pin=7.0), [-2, -1, 0, 3, 4, 7])


def test_histograms_of_few_and_of_many_values() -> None:
    many = np.full(100_000, 2.5, np.float32)
    assert [x.tolist() for x in clusters.histogram(many, None)] == [[2.5], [100_000]]
    many[:50_000] = -1
    points, mass = clusters.histogram(many, None)
    assert (points.tolist(), mass.tolist()) == ([-1, 2.5], [50_000, 50_000])
    np.testing.assert_array_equal(clusters.histogram(np.array([3, 1, 3.0]), None), [[1, 3], [1, 2]])


def test_clusters_of_vectors() -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((12, 3)).astype(np.float32) * 10
    truth = rng.integers(0, 12, 50_000)
    vectors = centres[truth] + rng.standard_normal((50_000, 3)).astype(np.float32) * 0.01
    found, means = clusters.kmeans_vectors(vectors, 12, np.random.default_rng(1))
    for cluster in range(12):
        np.testing.assert_allclose(
            means[cluster], vectors[found == cluster].astype(np.float64).mean(0), atol=1e-5
        )
    assert np.linalg.norm(vectors - means[found]) < 0.02 * np.sqrt(vectors.size)
    # The same seed, the same clusters; no more clusters than vectors.
    again, _ = clusters.kmeans_vectors(vectors, 12, np.random.default_rng(1))
    np.testing.assert_array_equal(found, again)
    few, table = clusters.kmeans_vectors(vectors[:2], 8, rng)
    np.testing.assert_array_equal(table[few], vectors[:2])
