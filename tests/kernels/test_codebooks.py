"""Codebooks: what is decoded, what it costs, and what stays zero."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxshrink.kernels import codebooks, obs

FLOATS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 40)),
    elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False),
)
METHODS = ("kmeans", "uniform", "nf4", "pow2")


@given(FLOATS, st.sampled_from(METHODS), st.integers(2, 256))
def test_every_weight_gets_the_nearest_entry(
    weights: np.ndarray, method: codebooks.Method, entries: int
) -> None:
    stored = codebooks.encode(weights, method, entries)
    assert stored.entries <= (16 if method == "nf4" else entries)
    shared = stored.decode().astype(np.float64)
    for row, table, near in zip(weights, stored.table[:, :, 0], shared, strict=True):
        distances = np.abs(row[:, None].astype(np.float64) - table.astype(np.float64))
        # Up to what float32 makes of the middle between two entries.
        slack = 1e-6 * np.abs(table).max()
        assert (np.abs(row - near) <= distances.min(1) + slack).all()


@given(FLOATS, st.integers(2, 256))
def test_few_values_are_kept_exactly(weights: np.ndarray, entries: int) -> None:
    most = max(len(np.unique(row.view(np.uint32))) for row in weights)
    if most > entries:
        with pytest.raises(ValueError, match=f"more than {entries}"):
            codebooks.encode(weights, "unique", entries)
        return
    stored = codebooks.encode(weights, "unique", entries)
    np.testing.assert_array_equal(stored.decode().view(np.uint32), weights.view(np.uint32))
    # k-means has nothing to lose either.
    np.testing.assert_array_equal(codebooks.encode(weights, "kmeans", entries).decode(), weights)


@given(st.integers(2, 256), st.integers(1, 50), st.integers(1, 3), st.randoms())
def test_packing_is_undone_by_its_digits(entries: int, count: int, groups: int, random) -> None:
    codes = np.array(
        [[random.randrange(entries) for _ in range(count)] for _ in range(groups)], np.uint8
    )
    packed = codebooks.pack(codes, entries)
    places = codebooks.codes_per_byte(entries)
    assert packed.shape == (groups, math.ceil(count / places))
    assert codebooks.base(entries) ** places <= 256 < codebooks.base(entries) ** (places + 1)
    every = codebooks.digits(entries)
    np.testing.assert_array_equal(every[packed].reshape(groups, -1)[:, :count], codes)


def test_how_many_codes_fit_a_byte() -> None:
    known = {2: 8, 3: 5, 4: 4, 5: 3, 6: 3, 7: 2, 16: 2, 17: 1, 256: 1}
    assert {entries: codebooks.codes_per_byte(entries) for entries in known} == known


@pytest.mark.parametrize("method", METHODS)
def test_zeros_that_were_put_there_stay(method: codebooks.Method) -> None:
    weights = np.random.default_rng(0).standard_normal((1, 4000)).astype(np.float32) + 0.3
    weights[:, ::20] = 0
    shared = codebooks.encode(weights, method, 8).decode()
    assert (shared[:, ::20] == 0).all()


def test_tables_that_are_known_beforehand() -> None:
    weights = np.linspace(-3, 3, 301, dtype=np.float32)[None]
    table = codebooks.encode(weights, "nf4", 16).table[0, :, 0]
    np.testing.assert_allclose(table, codebooks.NF4 * 3, rtol=1e-6)
    table = codebooks.encode(weights, "uniform", 7).table[0, :, 0]
    np.testing.assert_allclose(table, np.arange(-3, 4), atol=1e-6)
    table = codebooks.encode(weights, "pow2", 6).table[0, :, 0]
    assert set(np.abs(table[table != 0])) <= {2.0**e for e in range(-3, 3)}
    assert len(table) == 6


def test_scales_have_the_least_error() -> None:
    rng = np.random.default_rng(0)
    weights = (rng.standard_normal((6, 50)) * 10.0 ** np.arange(-3, 3)[:, None]).astype(np.float32)
    weights[2] = 0
    scale = codebooks.scales(weights, (1,), "kmeans")
    assert scale.shape == (6, 1)
    assert scale[2] == 1
    expected = np.sqrt((weights.astype(np.float64) ** 2).mean(1, keepdims=True))
    np.testing.assert_allclose(np.delete(scale, 2), np.delete(expected, 2), rtol=2.0**-11)
    shared = codebooks.encode((weights / scale).reshape(1, -1), "kmeans", 8).decode()
    shared = shared.reshape(weights.shape)
    refit = codebooks.refit_scales(weights, shared, (1,))
    for row in (0, 1, 3, 4, 5):
        best = np.linalg.lstsq(shared[row][:, None], weights[row], rcond=None)[0][0]
        assert refit[row, 0] == pytest.approx(best, rel=2.0**-11)
    held = refit[(refit >= 2.0**-14) & (refit <= 2.0**15)]
    np.testing.assert_array_equal(held.astype(np.float16).astype(np.float32), held)


@given(st.integers(0, 2**32 - 1), st.integers(2, 16), st.integers(2, 60))
@settings(max_examples=50)
def test_balanced_errors_cancel_in_each_row(seed: int, entries: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((5, count)).astype(np.float32)
    weights[rng.random(weights.shape) < 0.2] = 0
    stored = codebooks.encode(weights.reshape(1, -1), "kmeans", entries)
    table, codes = stored.table[0, :, 0], stored.codes.reshape(weights.shape)
    moved = codebooks.balance(weights, codes, table)
    np.testing.assert_array_equal(moved[weights == 0], codes[weights == 0])
    assert np.abs(moved.astype(int) - codes).max() <= 1
    before = np.abs((table[codes].astype(np.float64) - weights).sum(1))
    after = np.abs((table[moved].astype(np.float64) - weights).sum(1))
    assert (after <= before + 1e-5).all()


def test_hashed_positions_and_their_table() -> None:
    rng = np.random.default_rng(3)
    weights = rng.standard_normal(5000).astype(np.float32)
    factor, offset = codebooks.hash_parameters(rng)
    places = codebooks.hash_positions(5000, factor, offset, 700)
    # In whole numbers of any size.
    assert places[4321] == (4321 * factor + offset) % (2**31 - 1) % 700
    table = codebooks.hash_table(weights, factor, offset, 700)
    design = np.zeros((5000, 700))
    design[np.arange(5000), places] = 1
    best = np.linalg.lstsq(design, weights.astype(np.float64), rcond=None)[0]
    np.testing.assert_allclose(table, best, atol=1e-6)
    # As good as averaging 7 at a time must be: it keeps 1/7 of the variance.
    assert np.bincount(places, minlength=700).max() < 25


def test_vectors_and_given_tables() -> None:
    weights = np.random.default_rng(0).standard_normal((2, 96)).astype(np.float32)
    stored = codebooks.encode(weights, "kmeans", 16, width=4, rng=np.random.default_rng(0))
    assert stored.codes.shape == (2, 24)
    assert stored.table.shape == (2, 16, 4)
    codes = codebooks.nearest(weights[:1], stored.table[0])
    np.testing.assert_array_equal(codes, stored.codes[:1])
    with pytest.raises(ValueError, match="96 weights cannot be taken 5 at a time"):
        codebooks.encode(weights, "kmeans", 16, width=5)
    with pytest.raises(ValueError, match="cannot be taken 5 at a time"):
        codebooks.nearest(weights, np.zeros((4, 5), np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_has_no_neighbours_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        codebooks.encode(np.array([[1.0, bad]]), "kmeans", 4)
    with pytest.raises(ValueError, match="no weights"):
        codebooks.encode(np.zeros((1, 0)), "kmeans", 4)


def test_figures_of_noise() -> None:
    exact, near = np.array([3.0, 4.0]), np.array([3.0, 3.5])
    assert codebooks.sqnr_db(exact, near) == pytest.approx(20)
    assert codebooks.sqnr_db(exact, exact) == math.inf
    assert codebooks.sqnr_db(np.zeros(2), near) == -math.inf


# --------------------------------------------------------------------------------- feedback


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(2, 9))
@settings(max_examples=50)
def test_a_grid_of_tables_rounds_each_row_to_its_own(seed: int, groups: int, entries: int) -> None:
    rng = np.random.default_rng(seed)
    tables = np.sort(rng.standard_normal((groups, entries)), 1).astype(np.float32)
    tables[:, -1] = tables[:, -2]  # a table with fewer entries repeats its last
    rows = rng.integers(0, groups, 12)
    scale = rng.uniform(0.5, 2, 12).astype(np.float32)
    zero = rng.random((12, 3)) < 0.2
    values = (3 * rng.standard_normal(12)).astype(np.float32)
    found = codebooks.grid(tables, rows, scale, zero)(values, 1)
    own = tables[rows] * scale[:, None]
    best = np.abs(own - values[:, None]).min(1)
    stays = zero[:, 1]
    np.testing.assert_array_equal(found[stays], 0)
    assert (np.abs(found - values)[~stays] <= best[~stays] + 1e-5).all()
    assert all(f in row for f, row in zip(found[~stays], own[~stays], strict=True))


@given(st.integers(0, 2**32 - 1), st.integers(2, 6))
@settings(max_examples=40)
def test_feedback_is_never_worse_than_nearest_and_close_to_the_best_pair(
    seed: int, entries: int
) -> None:
    """Two columns: the first is rounded to nearest, the second is the best there is after it."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((8, 2)).astype(np.float32)
    mix = rng.standard_normal((2, 2))
    moment = mix @ mix.T + 0.05 * np.eye(2)
    table = np.sort(rng.standard_normal(entries)).astype(np.float32)
    known = obs.factor(moment, damping=0.0)
    found = obs.quantize(weights, known, codebooks.grid(table[None], np.zeros(8, np.int64)))
    near = table[codebooks.assign(weights, table)]
    _, second = known.order

    def cost(rounded: np.ndarray) -> np.ndarray:
        error = rounded.astype(np.float64) - weights
        return np.einsum("ri,ij,rj->r", error, moment, error)

    fixed = np.repeat(near[:, None, :], entries, 1)
    fixed[:, :, second] = table
    best = np.min([cost(fixed[:, k]) for k in range(entries)], axis=0)
    assert (cost(found) <= cost(near) * (1 + 1e-5) + 1e-9).all()
    np.testing.assert_allclose(cost(found), best, rtol=1e-3, atol=1e-6)


def test_scales_count_what_matters() -> None:
    weights, shared = np.array([[1.0, 4.0]]), np.array([[1.0, 2.0]])
    alone = codebooks.refit_scales(weights, shared, (1,), np.array([[1.0, 0.0]]))
    np.testing.assert_array_equal(alone, [[1.0]])
    np.testing.assert_array_equal(
        codebooks.refit_scales(weights, shared, (1,), np.array([[0.0, 7.0]])), [[2.0]]
    )
