"""Lossless rearrangements of a tensor's bytes that make them cheap for a byte-wise Huffman coder.

A tensor is a run of *elements* of ``unit`` bits (2 to 64, by its dtype). It is cut into blocks that
are filtered on their own, so that blocks can be decoded in parallel, and so that changing one
weight changes only one block. The stages, each optional but the last:

1. **table**: elements become indices into a table of at most 256 distinct elements, the commonest
   first. Now they are *symbols* of 1, 2, 4 or 8 ``bits``; without a table ``bits == unit``.
2. **gaps**: symbol 0 is left out. ``mask``: one bit a symbol. ``runs``: the number of zeros (0 to
   255) before each kept symbol, the relative index of Deep Compression (Han et al., 2015), longer
   runs being bridged by a kept zero. ``joint``: that number and the symbol itself in one byte.
3. **bytes**: narrow symbols are packed, the first in the low bits; wide ones become one stream a
   byte (plane 0 the lowest), after ``rotate`` has moved the sign of a float to the bottom, which
   leaves the exponent alone in the top byte (as ZipNN does, Hershcovitch et al., 2024).

Everything here treats elements as bit patterns, so NaN payloads, -0.0 and padding nibbles survive.
Decoding trusts nothing: whatever the streams hold, it raises ValueError or returns exactly the
number of bytes that was asked for, and allocates no more than a small multiple of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxshrink.kernels import bits

Bytes: TypeAlias = NDArray[np.uint8]
Symbols: TypeAlias = NDArray[Any]  # unsigned, 8 to 64 bits wide
Gaps: TypeAlias = Literal["none", "mask", "runs", "joint"]

CHUNK = 1 << 18
"""The longest stream of one block, in bytes."""
MIN_BLOCK, MAX_BLOCK = 64, 1 << 21
"""Symbols of a block: a power of two in this range."""

_PART = 1 << 14  # symbols
_WORDS: dict[int, np.dtype[Any]] = {
    8: np.dtype("u1"),
    16: np.dtype("<u2"),
    32: np.dtype("<u4"),
    64: np.dtype("<u8"),
}


@dataclass(frozen=True)
class Filter:
    """Which stages are applied, and at what widths.

    Attributes:
        unit: Bits of an element as the tensor stores it: 2, 4, 8, 16, 32 or 64.
        bits: Bits of a symbol: ``unit``, or 1, 2, 4 or 8 when there is a table.
        gaps: How symbol 0 is left out.
        rotate: The top bit of a wide symbol is moved to the bottom.
        table: Elements are indices into a table.

    Raises:
        ValueError: The stages do not fit each other.
    """

    unit: int
    bits: int
    gaps: Gaps = "none"
    rotate: bool = False
    table: bool = False

    def __post_init__(self) -> None:
        fits = (
            self.unit in (2, 4, *_WORDS)
            and (
                self.bits in (1, 2, 4, 8) and self.bits <= self.unit
                if self.table
                else self.bits == self.unit
            )
            and self.gaps in ("none", "mask", "runs", "joint")
            and (self.gaps != "joint" or self.bits <= 4)
            and (not self.rotate or self.bits > 8)
        )
        if not fits:
            raise ValueError(f"not a filter: {self}")

    def __str__(self) -> str:
        stages = ["table"] * self.table + [self.gaps] * (self.gaps != "none")
        stages += ["rotate"] * self.rotate + [f"{self.bits}-bit" if self.bits <= 8 else "planes"]
        return "+".join(stages)

    @property
    def planes(self) -> int:
        """Streams that hold the symbols themselves."""
        return 0 if self.gaps == "joint" else max(1, self.bits // 8)

    @property
    def streams(self) -> int:
        """Streams of a block."""
        return self.planes + (self.gaps != "none")

    @property
    def entry_bytes(self) -> int:
        """Bytes of one element in the table."""
        return max(1, self.unit // 8)

    @property
    def longest_run(self) -> int:
        """Zeros that one token can skip."""
        return (1 << 8 - self.bits) - 1 if self.gaps == "joint" else 255

    def symbols_of(self, nbytes: int) -> int:
        """Elements in ``nbytes`` bytes of the tensor, padding included.

        Raises:
            ValueError: The bytes are not a whole number of elements.
        """
        if nbytes * 8 % self.unit:
            raise ValueError(f"{nbytes} bytes are not a whole number of {self.unit}-bit elements")
        return nbytes * 8 // self.unit

    def check_lengths(self, symbols: int, lengths: Sequence[int]) -> None:
        """Refuse stream lengths that no block of this many symbols can have.

        Args:
            symbols: Symbols of the block, at least 1.
            lengths: Bytes of each stream, in order.

        Raises:
            ValueError: A stream is missing, too short, too long, or at odds with the others.
        """
        if len(lengths) != self.streams:
            raise ValueError(f"{len(lengths)} streams instead of {self.streams}")
        values = lengths[self.streams - self.planes :]
        narrow = min(self.bits, 8)
        most = _ceil(symbols * narrow, 8)
        if self.gaps == "none":
            fits = all(length == most for length in values)
        elif self.gaps == "mask":
            fits = lengths[0] == _ceil(symbols, 8) and values[0] <= most
        else:
            tokens = lengths[0]
            fits = tokens <= symbols and all(v == _ceil(tokens * narrow, 8) for v in values)
        if not fits or len(set(values)) > 1:
            raise ValueError(f"streams of {list(lengths)} bytes cannot hold {symbols} symbols")

    def check_table(self, length: int) -> None:
        """Refuse a table of this many bytes, if it is empty, too long, or not whole elements.

        Raises:
            ValueError: So it is.
        """
        if not 0 < length <= self.entry_bytes << self.bits or length % self.entry_bytes:
            raise ValueError(f"a table of {length} bytes for {self.bits}-bit indices")


def encode(data: Bytes, how: Filter, table: Bytes | None = None) -> list[Bytes]:
    """Filter one block.

    Args:
        data: The bytes of the block, a whole number of elements.
        how: The stages.
        table: The bytes of the table, if ``how`` has one.

    Returns:
        ``how.streams`` arrays of bytes.

    Raises:
        ValueError: Not whole elements, or an element that is not in the table.
    """
    if how.gaps == "none" and not how.table and how.bits <= 8:
        return [data]
    symbols: Symbols = elements(data, how.unit)
    if how.table:
        symbols = _index(symbols, _entries(how, table))
    if how.gaps == "none":
        return _spread(symbols, how)
    if how.gaps == "mask":
        kept = symbols != 0
        values: Symbols = symbols[np.flatnonzero(kept)]
        return [np.packbits(kept, bitorder="little"), *_spread(values, how)]
    runs, values = _tokens(symbols, how.longest_run)
    if how.gaps == "joint":
        runs <<= how.bits
        runs |= values.astype(np.uint8)
        return [runs]
    return [runs, *_spread(values, how)]


def decode(
    streams: Sequence[Bytes],
    how: Filter,
    nbytes: int,
    table: Bytes | None = None,
    out: Bytes | None = None,
) -> Bytes:
    """Rebuild the bytes of one block: the inverse of ``encode``.

    Args:
        streams: ``how.streams`` arrays of bytes.
        how: The stages.
        nbytes: Bytes of the block.
        table: The bytes of the table, if ``how`` has one.
        out: Where to put them: ``nbytes`` long; by default a new array.

    Returns:
        ``nbytes`` bytes, in ``out`` if that is given. After an error, ``out`` may hold anything.

    Raises:
        ValueError: The streams were not made by ``encode`` from a block of this size.
    """
    count = how.symbols_of(nbytes)
    if not count:
        return np.zeros(0, np.uint8)
    how.check_lengths(count, [stream.size for stream in streams])
    if out is not None and how.gaps == "none" and not how.table and how.bits > 8:
        _gather(streams, how, count, out.view(_WORDS[how.bits]))
        return out
    whole = _decode(streams, how, count, table)
    if out is None:
        return whole
    out[:] = whole
    return out


def _decode(streams: Sequence[Bytes], how: Filter, count: int, table: Bytes | None) -> Bytes:
    """Rebuild a block of ``count`` symbols in a new array, or in the stream that holds it."""
    if how.gaps == "none" and not how.table and how.bits <= 8:
        return streams[0]
    symbols: Symbols
    values: Symbols
    if how.gaps == "none":
        symbols = _gather(streams, how, count)
    elif how.gaps == "mask":
        kept = np.unpackbits(streams[0], count=count, bitorder="little").view(np.bool_)
        at = np.flatnonzero(kept)  # to index by numbers is several times faster than by a mask
        values = _gather(streams[1:], how, at.size)
        symbols = np.zeros(count, values.dtype)
        symbols[at] = values
    else:
        if how.gaps == "joint":
            runs: Symbols = streams[0] >> how.bits
            values = streams[0] & ((1 << how.bits) - 1)
        else:
            runs, values = streams[0], _gather(streams[1:], how, streams[0].size)
        ends = np.cumsum(runs, dtype=np.int64) + np.arange(runs.size)
        if ends.size and ends[-1] >= count:
            raise ValueError(f"runs reach symbol {ends[-1]} of {count}")
        symbols = np.zeros(count, values.dtype)
        symbols[ends] = values
    if how.table:
        entries = _entries(how, table)
        if int(symbols.max()) >= entries.size:
            raise ValueError(f"index {symbols.max()} into a table of {entries.size}")
        symbols = entries[symbols]
    whole: Bytes = bits.pack(symbols, how.unit) if how.unit < 8 else symbols.view(np.uint8)
    return whole


def elements(data: Bytes, unit: int) -> Symbols:
    """The elements of a run of bytes, as unsigned integers; padding of the last byte included."""
    if unit < 8:
        return bits.unpack(data, unit, data.size * 8 // unit)
    return data.view(_WORDS[unit])


def _tokens(symbols: Symbols, longest: int) -> tuple[Bytes, Symbols]:
    """Zeros before each kept symbol, and the kept symbols; zeros at the end are left unsaid."""
    at = np.flatnonzero(symbols != 0)
    gaps = np.diff(at, prepend=-1) - 1
    bridges, rest = np.divmod(
        gaps, longest + 1
    )  # a bridge: `longest` zeros, then a zero that is kept
    ends = np.cumsum(bridges + 1) - 1
    total = int(ends[-1]) + 1 if ends.size else 0
    runs = np.full(total, longest, np.uint8)
    runs[ends] = rest
    values = np.zeros(total, symbols.dtype)
    values[ends] = symbols[at]
    return runs, values


def _spread(symbols: Symbols, how: Filter) -> list[Bytes]:
    """Symbols as streams of bytes."""
    if how.bits <= 8:
        return [bits.pack(symbols, how.bits)]
    if how.rotate:
        symbols = (symbols << 1) | (symbols >> (how.bits - 1))
    grid = symbols.view(np.uint8).reshape(-1, how.bits // 8)
    return [np.ascontiguousarray(grid[:, plane]) for plane in range(grid.shape[1])]


def _gather(
    streams: Sequence[Bytes], how: Filter, count: int, out: Symbols | None = None
) -> Symbols:
    """The inverse of ``_spread``; wide symbols are put into ``out``, if that is given."""
    if any(stream.size != _ceil(count * min(how.bits, 8), 8) for stream in streams):
        raise ValueError(f"{streams[0].size} bytes instead of {count} {how.bits}-bit symbols")
    if how.bits <= 8:
        return bits.unpack(streams[0], how.bits, count)
    symbols: Symbols = np.empty(count, _WORDS[how.bits]) if out is None else out
    # A part at a time: it stays in the cache, and no large array is made and thrown away.
    for start in range(0, count, _PART):
        part = symbols[start : start + _PART]
        part[:] = streams[-1][start : start + _PART]
        for stream in reversed(streams[:-1]):
            part <<= 8
            part |= stream[start : start + _PART]
        if how.rotate:
            signs = part << (how.bits - 1)
            part >>= 1
            part |= signs
    return symbols


def _entries(how: Filter, table: Bytes | None) -> Symbols:
    """The elements of a table.

    Raises:
        ValueError: No table, not whole elements, too many, or one wider than ``unit`` bits.
    """
    if table is None:
        raise ValueError(f"{how} needs a table")
    how.check_table(table.size)
    entries: Symbols = table.view(_WORDS[max(how.unit, 8)])
    if how.unit < 8 and int(entries.max()) >> how.unit:
        raise ValueError(f"an element of the table is wider than {how.unit} bits")
    return entries


def _index(symbols: Symbols, entries: Symbols) -> Bytes:
    """Where each symbol stands in the table."""
    order = np.argsort(entries, kind="stable")
    place = np.searchsorted(entries, symbols, sorter=order)
    indices: Bytes = order.astype(np.uint8)[np.minimum(place, entries.size - 1)]
    if not np.array_equal(entries[indices], symbols):
        raise ValueError("an element is not in the table")
    return indices


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
