"""Masks: exactly as many weights as asked for, and the right ones."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxshrink.kernels import masks

# Small whole numbers: many are equal.
SCORES = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 8), st.integers(1, 12)), elements=st.integers(0, 5)
)


@given(SCORES, st.floats(0, 1))
def test_the_share_that_is_asked_for(scores: np.ndarray, ratio: float) -> None:
    mask = masks.by_ratio(scores, ratio)
    assert mask.shape == scores.shape
    assert np.count_nonzero(~mask) == round(ratio * scores.size)
    if 0 < np.count_nonzero(mask) < mask.size:
        assert scores[~mask].max() <= scores[mask].min()


@given(SCORES, st.integers(1, 4), st.integers(1, 4))
def test_n_of_every_m(scores: np.ndarray, n: int, more: int) -> None:
    m = n + more
    scores = np.tile(scores, (1, m))
    groups, kept = scores.reshape(-1, m), masks.n_of_m(scores, n, m).reshape(-1, m)
    assert (kept.sum(1) == n).all()
    for row, keep in zip(groups, kept, strict=True):
        assert row[~keep].max() <= row[keep].min()


def test_a_pattern_that_does_not_divide() -> None:
    with pytest.raises(ValueError, match="6 inputs cannot be taken 4 at a time"):
        masks.n_of_m(np.ones((2, 6)), 2, 4)


@given(SCORES, st.integers(1, 9), st.integers(1, 13))
def test_blocks_and_their_spread(scores: np.ndarray, height: int, width: int) -> None:
    found = masks.blocks(scores, (height, width))
    rows, columns = scores.shape
    assert found.shape == (math.ceil(rows / height), math.ceil(columns / width))
    for i, j in np.ndindex(*found.shape):
        part = scores[i * height : (i + 1) * height, j * width : (j + 1) * width]
        assert found[i, j] == pytest.approx(np.sqrt((part.astype(float) ** 2).mean()))
    marked = masks.spread(found > 2, (height, width), scores.shape)
    for i, j in np.ndindex(rows, columns):
        assert marked[i, j] == (found[i // height, j // width] > 2)


@given(SCORES)
def test_lamp_is_what_a_layer_loses(scores: np.ndarray) -> None:
    found = masks.lamp(scores)
    flat, values = scores.ravel().astype(float), found.ravel()
    order = np.argsort(flat, kind="stable")
    for at, place in enumerate(order):
        larger = (flat[order[at:]] ** 2).sum()
        expected = flat[place] ** 2 / larger if larger else 0
        assert values[place] == pytest.approx(expected, rel=1e-6)
    if scores.any():
        assert found.max() == 1  # a layer is never emptied


@given(st.lists(SCORES, min_size=1, max_size=4), st.floats(0, 1))
def test_a_limit_for_all_layers(layers: list[np.ndarray], ratio: float) -> None:
    # Distinct scores, so that the share can be met exactly.
    rng = np.random.default_rng(0)
    distinct = [rng.permutation(a.size).reshape(a.shape) + 0.5 + 1000 * i
                for i, a in enumerate(layers)]  # fmt: skip
    limit = masks.limit(distinct, ratio)
    gone = sum(int(np.count_nonzero(scores < limit)) for scores in distinct)
    assert gone == round(ratio * sum(a.size for a in layers))


@given(st.integers(0, 2**31), st.integers(1, 20), st.integers(1, 30), st.floats(0, 1))
def test_every_row_loses_the_same(seed: int, rows: int, columns: int, ratio: float) -> None:
    scores = np.random.default_rng(seed).integers(0, 9, (rows, columns)).astype(np.float32)
    mask = masks.by_row(scores, ratio)
    for row, kept in zip(scores, mask, strict=True):
        np.testing.assert_array_equal(kept, masks.by_ratio(row, ratio))


@given(st.lists(st.integers(1, 200), min_size=1, max_size=5), st.floats(0, 1), st.floats(0, 1))
def test_shares_add_up(sizes: list[int], ratio: float, most: float) -> None:
    rng = np.random.default_rng(len(sizes))
    scores = [rng.random(size) * 4**i for i, size in enumerate(sizes)]
    found = masks.shares(scores, ratio, max(most, ratio))
    assert all(0 <= share <= max(most, ratio) + 1e-12 for share in found)
    lost = sum(share * size for share, size in zip(found, sizes, strict=True))
    assert abs(lost - ratio * sum(sizes)) <= 0.5 + 1e-6
    if most == 1:
        bound = masks.limit(scores, ratio)
        assert found == [np.mean(score < bound) for score in scores]


def test_what_a_tensor_is_spared_the_others_lose() -> None:
    scores = [np.arange(100.0), 1000 + np.arange(100.0)]
    assert masks.shares(scores, 0.5) == [1.0, 0.0]
    assert masks.shares(scores, 0.5, most=0.75) == [0.75, 0.25]
    assert masks.shares([], 0.5) == []
