"""The entropy coder of the sidecar: which filter suits a tensor, and raw deflate behind it.

Deflate made with ``Z_HUFFMAN_ONLY`` is dynamic Huffman coding of bytes, a new table every 32768
symbols, in a format that every platform can already decode. After the right filter it comes within
a percent of the order-0 entropy of a model's weights, where general compressors, which look for
repeats that weights do not have, lose up to a quarter.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from onnxshrink.kernels.filters import (
    CHUNK,
    MAX_BLOCK,
    Bytes,
    Filter,
    Gaps,
    Symbols,
    elements,
    encode,
)

MAX_RATIO = 1032
"""Deflate cannot say more than 258 bytes in 2 bits: a longer claim is a lie."""

_WORTH = 0.99  # a code must save this much, else the bytes are stored and can be mapped
_PROBE = 1 << 14  # bytes on which the search for repeats is tried
_QUICK = 6  # a level that looks for repeats in a tenth of the time of the highest,
_HOPELESS = 1.12  # and whose result times this share is out of its reach, too
_SAMPLE, _SLICES = 1 << 16, 8  # elements on which filters are compared, from this many places
_DEALT_ROWS, _PARTS = 256, 8  # rows of a table that may be dealt to parts, and how many
_CLOSE = 1.05  # estimates within this are settled by coding the whole tensor


class Filtering(NamedTuple):
    """A filter, and the table that it needs."""

    how: Filter
    table: Bytes | None = None


def order0_bits(data: Bytes, unit: int) -> float:
    """Order-0 entropy of a tensor: what an ideal coder that knows the histogram would need.

    Args:
        data: The tensor's bytes.
        unit: Bits of an element, 2 to 64.

    Returns:
        Bits an element; 0 when there are none.
    """
    symbols = elements(data, unit)
    if unit <= 8:
        counts = np.bincount(symbols, minlength=1)
    else:
        counts = np.unique(symbols, return_counts=True)[1]
    share = counts[counts > 0] / max(symbols.size, 1)
    return float(-(share * np.log2(share)).sum()) + 0.0


def ideal_bits(data: Bytes, how: Filter) -> float:
    """What an ideal order-0 coder would need for a tensor: the mark that a filter is held against.

    Narrow elements, and those in a table, are coded whole. Wide ones hardly ever repeat, and their
    histogram would be as long as they are, so each of their bytes is coded on its own, and whether
    an element is zero before them.

    Args:
        data: The tensor's bytes.
        how: Its filter; only the width of elements, the table and the rotation matter.

    Returns:
        Bits for the whole tensor.
    """
    symbols = elements(data, how.unit)
    if how.unit <= 8 or how.table:
        return symbols.size * order0_bits(data, how.unit)
    kept = symbols != 0
    values: Symbols = symbols[kept]
    planes = encode(values.view(np.uint8), Filter(how.unit, how.unit, rotate=how.rotate))
    zeros: float = kept.size * order0_bits(kept.view(np.uint8), 8)
    return float(zeros + sum(plane.size * order0_bits(plane, 8) for plane in planes))


def deflate(raw: Bytes) -> bytes | None:
    """Code bytes as raw deflate.

    Huffman codes alone, unless a probe shows repeats (masks, position tables, constants).

    Args:
        raw: The bytes.

    Returns:
        The stream, or None if it would save less than one percent.
    """
    probe = raw[:_PROBE]
    single = _coded(probe, zlib.Z_HUFFMAN_ONLY)
    shortest = min(len(single), probe.size)
    quick = len(_coded(probe, zlib.Z_DEFAULT_STRATEGY, _QUICK))
    repeats = b""
    if quick <= _HOPELESS * shortest:
        repeats = _coded(probe, zlib.Z_DEFAULT_STRATEGY)
    if repeats and len(repeats) < 0.95 * shortest:
        coded = repeats if raw.size == probe.size else _coded(raw, zlib.Z_DEFAULT_STRATEGY)
    elif raw.size == probe.size:
        coded = single
    elif order0_bits(raw, 8) > 8 * _WORTH:
        return None
    else:
        coded = _coded(raw, zlib.Z_HUFFMAN_ONLY)
    return coded if len(coded) < _WORTH * raw.size else None


def inflate(payload: bytes, length: int) -> bytes:
    """Decode raw deflate to a length that is known.

    Args:
        payload: The stream, and nothing after it.
        length: Bytes that it must hold; no more than this and one are ever allocated.

    Returns:
        ``length`` bytes.

    Raises:
        ValueError: The stream is damaged, does not end, holds another length, or has a tail.
    """
    decoder, error = _inflater()
    stream = decoder(wbits=-15)
    try:
        raw: bytes = stream.decompress(payload, length + 1)
    except error as cause:
        raise ValueError(f"damaged deflate stream: {cause}") from cause
    if len(raw) != length or not stream.eof or stream.unused_data:
        raise ValueError(f"the deflate stream does not hold exactly {length} bytes")
    return raw


def choose(data: Bytes, unit: int, *, floating: bool) -> list[Filtering]:
    """The filters that may make this tensor smallest.

    Every filter that the values allow codes a sample; those within 5 % of the best are returned,
    for the caller to code the whole tensor with each. A sample can mislead: if the result is longer
    than the tensor, the caller should use ``plain``, whose streams can be stored.

    Args:
        data: The tensor's bytes.
        unit: Bits of an element, 2 to 64.
        floating: Elements are floats: their sign is the top bit and their exponent follows it.

    Returns:
        One or two choices, the likely best first.
    """
    choices = list(_candidates(data, unit, floating))
    if len(choices) == 1:
        return choices
    sample = _sample(data, unit)
    sizes = [_size(sample, choice) for choice in choices]
    ranked = sorted(zip(sizes, range(len(choices)), strict=True))[:2]
    return [choices[i] for size, i in ranked if size <= _CLOSE * ranked[0][0]]


def plain(unit: int, *, floating: bool) -> Filtering:
    """The filter that needs nothing of the values, and never makes a tensor longer."""
    return Filtering(Filter(unit, unit, rotate=floating and unit > 8))


def block_symbols(data: Bytes, choice: Filtering) -> int:
    """How many symbols a block should have, so that its longest stream is nearly ``CHUNK`` bytes.

    Args:
        data: The tensor's bytes.
        choice: The filter to be used.

    Returns:
        A power of two for which every block's streams fit ``CHUNK``.
    """
    how, table = choice
    dense = CHUNK * 8 // min(how.bits, 8)
    if how.gaps == "none":
        return dense
    zero = 0 if table is None else int(elements(table[: how.entry_bytes], max(how.unit, 8))[0])
    kept = np.array([np.count_nonzero(part != zero) for part in _parts(data, how.unit, CHUNK)])
    symbols = MAX_BLOCK
    while symbols > CHUNK:
        step = symbols // CHUNK
        tokens = np.add.reduceat(kept, np.arange(0, kept.size, step)).max(initial=0)
        bridges = 0 if how.gaps == "mask" else symbols // (how.longest_run + 1)
        if tokens + bridges <= CHUNK:
            break
        symbols //= 2
    return symbols


def deal(data: Bytes, unit: int, rows: int) -> Bytes | None:
    """Deal the rows of a table to parts whose rows are alike, where that promises to gain.

    Rows whose elements are alike common go together: rows that were rounded with one step do.

    Args:
        data: The table's bytes.
        unit: Bits of an element.
        rows: How many rows it has.

    Returns:
        The part of each row; None where rows are few or short, have more than 256 distinct
        elements, or are alike as they are.
    """
    if rows < _DEALT_ROWS or unit not in (8, 16) or data.size < 16 * rows or data.size % rows:
        return None
    census = _census(data, unit)
    if census is None:
        return None
    values, counts = census
    bits = -np.log2(counts / counts.sum())
    step = max(1, CHUNK // (data.size // rows))
    table = elements(data, unit).reshape(rows, -1)
    cost = np.concatenate(
        [
            bits[np.searchsorted(values, table[start : start + step])].mean(axis=1)
            for start in range(0, rows, step)
        ]
    )
    edges = np.quantile(cost, np.linspace(0, 1, _PARTS + 1)[1:-1])
    dealt = np.unique(np.searchsorted(edges, cost), return_inverse=True)[1].astype(np.uint8)
    apart = sum(
        table[dealt == part].size * order0_bits(_bytes_of(table[dealt == part]), unit)
        for part in range(int(dealt.max()) + 1)
    )
    worth = apart + rows * np.log2(_PARTS) < _WORTH * float((bits * counts).sum())
    return dealt if worth else None


def _bytes_of(symbols: Symbols) -> Bytes:
    whole: Bytes = symbols.reshape(-1).view(np.uint8)
    return whole


def _candidates(data: Bytes, unit: int, floating: bool) -> Iterator[Filtering]:
    """Filters that the values of this tensor allow and that could gain."""
    dense = plain(unit, floating=floating)
    yield dense
    if not data.size:
        return
    census = _census(data, unit)
    if census is None:
        symbols = elements(_sample(data, unit), unit)
        zeros = 1 - float(np.count_nonzero(symbols)) / symbols.size
    else:
        values, counts = census
        zeros = float(counts[values == 0].sum() / counts.sum())
        mode = int(counts.argmax())
        common = float(counts[mode] / counts.sum())
        bits = next(b for b in (1, 2, 4, 8) if values.size <= 1 << b)
        if bits < unit or (values[mode] != 0 and common > 0.3):
            table = np.concatenate((values[mode : mode + 1], np.delete(values, mode)))
            tabled = Filtering(Filter(unit, min(bits, unit), table=True), table.view(np.uint8))
            yield tabled
            yield from _gapped(tabled, common)
    yield from _gapped(dense, zeros)


def _gapped(choice: Filtering, zeros: float) -> Iterator[Filtering]:
    """The same filter with its zeros left out, where there are enough of them to gain."""
    how, table = choice
    ways: tuple[Gaps, ...] = ("mask", "runs")
    if how.bits <= 4:
        ways = ("joint", "mask", "runs") if how.bits > 1 else ("joint",)
    if zeros > (0.3 if how.bits <= 8 else 0.03):
        for gaps in ways:
            yield Filtering(Filter(how.unit, how.bits, gaps, how.rotate, how.table), table)


def _census(data: Bytes, unit: int) -> tuple[Symbols, np.ndarray[Any, np.dtype[np.int64]]] | None:
    """The distinct elements, ascending, and how often each occurs; None if more than 256."""
    values: Symbols = np.zeros(0, elements(data[:0], unit).dtype)
    for part in _parts(data, unit, CHUNK):
        values = np.union1d(values, part)
        if values.size > 256:
            return None
    counts = np.zeros(values.size, np.int64)
    for part in _parts(data, unit, CHUNK):
        counts += np.bincount(np.searchsorted(values, part), minlength=values.size)
    return values, counts


def _parts(data: Bytes, unit: int, symbols: int) -> Iterator[Symbols]:
    """The elements, this many at a time."""
    step = symbols * unit // 8
    for start in range(0, data.size, step):
        yield elements(data[start : start + step], unit)


def _sample(data: Bytes, unit: int) -> Bytes:
    """Bytes of evenly spaced runs of elements, or all of a small tensor."""
    run = _SAMPLE // _SLICES * unit // 8
    if data.size <= run * _SLICES:
        return data
    words = max(1, unit // 8)
    starts = np.linspace(0, (data.size - run) // words, _SLICES, dtype=np.int64) * words
    return np.concatenate([data[start : start + run] for start in starts])


def _size(sample: Bytes, choice: Filtering) -> int:
    """Bytes that the sample takes with this filter."""
    streams = encode(sample, choice.how, choice.table)
    table = 0 if choice.table is None else choice.table.size
    return table + sum(len(deflate(stream) or stream) for stream in streams)


def _coded(raw: Bytes, strategy: int, level: int = 9) -> bytes:
    coder = zlib.compressobj(level, zlib.DEFLATED, -15, 9, strategy)
    return coder.compress(raw.data) + coder.flush()


@lru_cache(maxsize=1)
def _inflater() -> tuple[Any, tuple[type[Exception], ...]]:
    """The decoder and its errors: isal's, where ``onnxshrink[fast]`` is installed, else zlib's."""
    try:
        isal = importlib.import_module("isal.isal_zlib")
    except ImportError:
        return zlib.decompressobj, (zlib.error,)
    return isal.decompressobj, (zlib.error, isal.error)
