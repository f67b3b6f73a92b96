"""Codes written as rows of tables: nothing is lost, and how much it takes over the entropy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from onnxshrink.kernels import coded, coded_plan
from onnxshrink.kernels.coded import Book, Coded, Level

LEVEL_BYTES = 400


def stream_bytes(written):
    """Every byte of a coded tensor, counted where it lies."""
    streams = [each for each in written.streams if not isinstance(each, Coded)]
    inner = sum(stream_bytes(each) for each in written.streams if isinstance(each, Coded))
    return inner + sum(len(each.tobytes()) for each in (*streams, written.rest, written.low))


def two_sided(theta, size, seed=0):
    """Two-sided geometric codes, which the codes of trained weights nearly are."""
    values = np.arange(-127, 128)
    share = theta ** np.abs(values).astype(float)
    rng = np.random.default_rng(seed)
    return rng.choice(values, size, p=share / share.sum()).astype(np.int8).view(np.uint8)


@settings(max_examples=15, deadline=None)
@given(
    codes=arrays.arrays(
        np.uint8,
        st.integers(0, 700),
        elements=st.one_of(st.integers(0, 3), st.integers(0, 255)),
    ),
    overhead=st.sampled_from([0, 20]),
)
def test_whatever_is_written_is_read_again(codes, overhead):
    book = coded_plan.plan(codes, overhead)
    written = coded.encode(codes, book)
    assert np.array_equal(coded.decode(written), codes)
    assert written.nbytes == stream_bytes(written)


@settings(max_examples=10, deadline=None)
@given(codes=arrays.arrays(np.uint8, st.integers(0, 300)), low_bits=st.sampled_from([0, 1, 2, 4]))
def test_a_book_for_other_codes_is_right_too(codes, low_bits):
    inner = coded_plan.plan(two_sided(0.3, 5000), 10)
    vectors = Level(np.array([[0, 0], [0, 7], [7, 0], [7, 7]], np.uint8), 7, rows=inner)
    book = Book((vectors, *inner.levels), low_bits)
    assert np.array_equal(coded.decode(coded.encode(codes, book)), codes)


@pytest.mark.parametrize(
    ("theta", "most"),
    [(0.08, 1.2), (0.2, 1.08), (0.3, 1.08), (0.6, 1.08), (0.9, 1.08)],
)
def test_bytes_are_close_to_the_entropy_tables_and_nodes_included(theta, most):
    codes = two_sided(theta, 4_000_000)
    book = coded_plan.plan(codes[:500_000], LEVEL_BYTES // 8)
    written = coded.encode(codes, book)
    levels = bool(book.low_bits) + sum(
        1 + len(level.rows.levels if level.rows else ()) for level in book.levels
    )
    total = written.nbytes + book.nbytes + LEVEL_BYTES * levels
    assert total <= most * coded_plan.entropy_bytes(np.bincount(codes, minlength=256))
    assert np.array_equal(coded.decode(written), codes)


def test_codes_spread_evenly_stay_as_they_are():
    codes = np.random.default_rng(0).integers(0, 256, 100_000).astype(np.uint8)
    assert coded_plan.plan(codes, LEVEL_BYTES) == Book(())


def test_every_row_can_be_told_from_every_other_and_some_row_is_all_escapes():
    book = coded_plan.plan(two_sided(0.4, 50_000), LEVEL_BYTES)
    for level in book.levels:
        assert len(np.unique(level.table, axis=0)) == len(level.table) <= 256
        assert (level.table == level.escape).all(1).any()


@pytest.mark.parametrize("shape", [(64, 40), (3, 64, 40), (2, 3, 20, 64)])
def test_differences_add_up_again(shape):
    waves = np.cumsum(np.random.default_rng(0).integers(-1, 2, shape), axis=-1)
    values = np.clip(waves, -128, 127).astype(np.int8)
    found = coded_plan.differences(values, 100)
    assert found is not None
    axis, codes = found
    assert axis == len(shape) - 1
    sums = np.cumsum(codes.view(np.int8).reshape(shape), axis, dtype=int)
    np.testing.assert_array_equal(sums, values)
    noise = np.random.default_rng(1).integers(-20, 20, shape).astype(np.int8)
    assert coded_plan.differences(noise, 100) is None
    assert coded_plan.differences(values.reshape(-1), 100) is None


def test_differences_that_are_no_bytes_are_none():
    steep = np.tile(np.array([[-128], [127]], np.int8), (64, 64))
    assert coded_plan.differences(steep, 0) is None or coded_plan.differences(steep, 0)[0] == 1
    both = np.where(np.add.outer(np.arange(64), np.arange(64)) % 2, 127, -128).astype(np.int8)
    assert coded_plan.differences(both, 0) is None
