"""Filters give back every bit, and refuse whatever they did not make."""

import itertools

import numpy as np
import pytest
import shares
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxshrink.kernels import filters
from onnxshrink.kernels.bits import pack as pack_bits
from onnxshrink.kernels.filters import CHUNK, Filter

GAPS = ("none", "mask", "runs", "joint")


def _valid():
    for unit, bits, gaps, rotate, table in itertools.product(
        (2, 4, 8, 16, 32, 64), (1, 2, 4, 8, 16, 32, 64), GAPS, (False, True), (False, True)
    ):
        try:
            yield Filter(unit, bits, gaps, rotate, table)
        except ValueError:
            continue


FILTERS = list(_valid())


def _bytes(values):
    return np.frombuffer(bytes(values), np.uint8)


@st.composite
def blocks(draw):
    """A filter, a block's bytes and the table, with zeros in runs around every limit."""
    how = draw(st.sampled_from(FILTERS))
    size = how.entry_bytes
    widest = 1 << min(how.unit, 8 * size)
    element = st.sampled_from([0, 1, widest - 1, widest // 2]) | st.integers(0, widest - 1)
    if how.table:
        entries = draw(st.lists(element, min_size=1, max_size=1 << how.bits, unique=True))
        table = _bytes(b"".join(e.to_bytes(size, "little") for e in entries))
        element = st.sampled_from(entries)
    else:
        entries, table = [0], None
    run = st.sampled_from([0, 1, 14, 15, 16, 17, 62, 63, 64, 127, 128, 254, 255, 256, 257, 600])
    pieces = draw(st.lists(st.tuples(run, st.lists(element, max_size=9)), max_size=8))
    symbols = [e for zeros, tail in pieces for e in [entries[0]] * zeros + tail]
    if how.unit < 8:
        symbols = symbols[: len(symbols) // (8 // how.unit) * (8 // how.unit)]
        data = pack_bits(np.array(symbols, np.uint8), how.unit)
    else:
        data = _bytes(b"".join(e.to_bytes(size, "little") for e in symbols))
    return how, data, table


@settings(max_examples=shares.EXAMPLES)
@given(blocks())
def test_decode_undoes_encode(case):
    how, data, table = case
    streams = filters.encode(data, how, table)
    assert len(streams) == how.streams
    if data.size:
        how.check_lengths(how.symbols_of(data.size), [s.size for s in streams])
    assert filters.decode(streams, how, data.size, table).tobytes() == data.tobytes()


@settings(max_examples=shares.EXAMPLES)
@given(st.sampled_from(FILTERS), st.data())
def test_decode_of_anything_gives_the_right_size_or_refuses(how, data):
    per_byte = max(1, 8 // how.unit)
    nbytes = data.draw(st.integers(0, 40)) * how.entry_bytes
    symbols = nbytes // how.entry_bytes * per_byte
    about = st.sampled_from([0, 1, symbols, -(-symbols // 8), -(-symbols // 2), symbols + 1])
    streams = [
        _bytes(data.draw(st.binary(min_size=n, max_size=n)))
        for n in data.draw(st.lists(about, min_size=how.streams, max_size=how.streams))
    ]
    table = _bytes(data.draw(st.binary(max_size=20))) if how.table else None
    try:
        out = filters.decode(streams, how, nbytes, table)
    except ValueError:
        return
    assert out.dtype == np.uint8
    assert out.size == nbytes


@pytest.mark.parametrize("how", FILTERS, ids=str)
def test_no_stream_outgrows_its_bound(how):
    """The worst block for gaps: nothing is zero, or every run needs a bridge."""
    symbols = 4096
    table = None
    if how.table:
        table = np.arange(1 << how.bits, dtype=np.uint64)
        table = table.astype(f"<u{how.entry_bytes}").view(np.uint8)
    for stride in (1, how.longest_run + 2):
        values = np.zeros(symbols, np.uint64)
        values[::stride] = 1
        data = (
            pack_bits(values.astype(np.uint8), how.unit)
            if how.unit < 8
            else values.astype(f"<u{how.unit // 8}").view(np.uint8)
        )
        streams = filters.encode(data, how, table)
        how.check_lengths(symbols, [s.size for s in streams])
        assert filters.decode(streams, how, data.size, table).tobytes() == data.tobytes()


def test_rotation_puts_the_exponent_of_a_float_in_one_plane():
    values = np.array([1.5, -1.5, 3.25e-5, -0.0, np.inf], np.float32)
    planes = filters.encode(values.view(np.uint8), Filter(32, 32, rotate=True))
    exponents = values.view(np.uint32) >> 23 & 255
    assert planes[3].tolist() == exponents.tolist()
    assert (planes[0] & 1).tolist() == [0, 1, 0, 1, 0]


def test_runs_are_the_relative_index_of_deep_compression():
    data = np.zeros(600, np.uint8)
    data[[2, 259, 599]] = 7, 8, 9
    runs, values = filters.encode(data, Filter(8, 8, "runs"))
    # 2 zeros, 7; 256 zeros need a bridge of 255 and a kept zero; 339 = 256 + 83
    assert runs.tolist() == [2, 255, 0, 255, 83]
    assert values.tolist() == [7, 0, 8, 0, 9]


@pytest.mark.parametrize(
    ("how", "streams", "nbytes", "table", "why"),
    [
        (Filter(8, 8, "runs"), [[255, 255], [1, 1]], 300, None, "runs reach symbol 511"),
        (Filter(4, 4, "joint"), [[0xF1, 0xF1]], 10, None, "runs reach symbol 31"),
        (Filter(8, 8, "runs"), [[0, 0], [1]], 300, None, "cannot hold"),
        (Filter(8, 8, "mask"), [[255], [1]], 8, None, "instead of 8"),
        (Filter(16, 16), [[0, 0], [0]], 4, None, "cannot hold"),
        (Filter(8, 8), [[0, 0]], 3, None, "cannot hold"),
        (Filter(8, 8), [[0], [0]], 1, None, "2 streams"),
        (Filter(16, 16), [[0], [0]], 3, None, "whole number"),
        (Filter(8, 8, table=True), [[2]], 1, [5, 6], "index 2 into a table of 2"),
        (Filter(16, 8, table=True), [[0]], 2, [5], "a table of 1 bytes"),
        (Filter(16, 8, table=True), [[0]], 2, None, "needs a table"),
        (Filter(4, 4, table=True), [[0]], 1, [16], "wider than 4 bits"),
    ],
)
def test_refuses(how, streams, nbytes, table, why):
    table = None if table is None else _bytes(table)
    with pytest.raises(ValueError, match=why):
        filters.decode([_bytes(s) for s in streams], how, nbytes, table)


@pytest.mark.parametrize(
    "stages",
    [(3, 3), (8, 4), (32, 32, "joint"), (8, 8, "none", True), (4, 8, "none", False, True)],
)
def test_stages_that_do_not_fit_are_no_filter(stages):
    with pytest.raises(ValueError, match="not a filter"):
        Filter(*stages)


def test_an_element_outside_the_table_is_refused():
    with pytest.raises(ValueError, match="not in the table"):
        filters.encode(_bytes([1, 2, 3]), Filter(8, 8, table=True), _bytes([1, 2]))


def test_the_longest_block_fits_a_chunk():
    assert -(-filters.MAX_BLOCK // 8) == CHUNK
