"""Codes in 2 to 5 bits each, rebuilt by looking up rows of tables: the coder of coded weights.

Every byte of a level is the number of a row of that level's table, and a row holds several codes.
One value of the table says "escape": the code stands in the next level. What is left after the last
level are plain bytes. Wide distributions lose nothing by keeping their lowest bits apart, as they
are. Every step back is a lookup, a running sum or a choice, which runtimes have operators for.
``docs/coded.md`` is the specification; ``coded_plan`` chooses the tables.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Level:
    """What the bytes of one level stand for.

    The rows are the leaves of a tree whose every node has a branch for escapes, so that any codes
    can be written.

    Attributes:
        table: [rows, width], at most 256 rows.
        escape: The value in it that stands for a code of the next level.
        rows: How the numbers of rows are written; None: as they are. Where codes take less than
            about two bits, rows are vectors of codes of which some are far more frequent than
            others.
    """

    table: Bytes
    escape: int
    rows: Book | None = None

    @property
    def width(self) -> int:
        """Codes in a byte."""
        return int(self.table.shape[1])


@dataclass(frozen=True)
class Book:
    """How codes are written.

    Attributes:
        levels: Tables, the first level first; none: plain bytes.
        low_bits: Lowest bits of a code that are kept apart: 0, 1, 2 or 4.
    """

    levels: tuple[Level, ...]
    low_bits: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the tables, that of the low bits included."""
        low = 256 * 8 // self.low_bits if self.low_bits else 0
        inner = sum(level.rows.nbytes for level in self.levels if level.rows is not None)
        return low + inner + sum(level.table.size for level in self.levels)


@dataclass(frozen=True)
class Coded:
    """Codes, written.

    Attributes:
        book: How.
        size: How many codes.
        streams: The numbers of rows of every level, written as its book says.
        escapes: How many every level has.
        rest: Codes of the last level's escapes.
        low: Lowest bits of the codes, the first code in the lowest bits of a byte.
    """

    book: Book
    size: int
    streams: tuple[Bytes | Coded, ...]
    escapes: tuple[int, ...]
    rest: Bytes
    low: Bytes

    @property
    def nbytes(self) -> int:
        """Bytes of the streams; the tables, which others may use too, are the book's."""
        return sum(stream.nbytes for stream in (*self.streams, self.rest, self.low))

    @property
    def longest(self) -> int:
        """Codes of its longest level, those that fill up its last row among them."""
        inner = [stream.longest for stream in self.streams if isinstance(stream, Coded)]
        own = [
            (stream.size if isinstance(stream, Coded) else len(stream)) * level.width
            for level, stream in zip(self.book.levels, self.streams, strict=True)
        ]
        return max([0, *inner, *own])


def encode(codes: Bytes, book: Book) -> Coded:
    """Write codes.

    Args:
        codes: Of any shape, in the order of memory; signed ones in two's complement.
        book: Any book: what suits other codes takes more bytes, but is right.
    """
    left = np.ascontiguousarray(codes).reshape(-1)
    size, low = left.size, np.zeros(0, np.uint8)
    if book.low_bits:
        mask = (1 << book.low_bits) - 1
        # As many codes as fill the rows of both: then neither has to be cut.
        unit = math.lcm(8 // book.low_bits, book.levels[0].width if book.levels else 1)
        left = np.append(left, np.zeros(-size % unit, np.uint8))
        low = pack(left, book.low_bits)
        left = left & np.uint8(255 - mask)
    streams: list[Bytes | Coded] = []
    escapes: list[int] = []
    for level in book.levels:
        rows, left = encode_level(left, level)
        streams.append(rows if level.rows is None else encode(rows, level.rows))
        escapes.append(left.size)
    return Coded(book, size, tuple(streams), tuple(escapes), left, low)


def decode(coded: Coded) -> Bytes:
    """The codes, flat."""
    left = coded.rest
    for level, rows in zip(coded.book.levels[::-1], coded.streams[::-1], strict=True):
        numbers = decode(rows) if isinstance(rows, Coded) else rows
        found = level.table[numbers].reshape(-1)
        escapes = found == level.escape
        found[escapes] = left[: np.count_nonzero(escapes)]
        left = found
    if bits := coded.book.low_bits:
        low = low_table(bits)[coded.low].reshape(-1)
        left = left[: low.size] | low
    return left[: coded.size]


def low_table(bits: int) -> Bytes:
    """What a byte of low bits stands for, [256, 8 / bits]."""
    shifts = np.arange(0, 8, bits)
    table: Bytes = (np.arange(256)[:, None] >> shifts & ((1 << bits) - 1)).astype(np.uint8)
    return table


def pack(values: Bytes, bits: int) -> Bytes:
    """The lowest bits of values, in bytes; see :func:`low_table`."""
    width = 8 // bits
    padded = np.zeros((-(-values.size // width), width), np.uint8)
    padded.reshape(-1)[: values.size] = values
    padded &= np.uint8((1 << bits) - 1)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    packed: Bytes = np.bitwise_or.reduce(padded << shifts, axis=1).astype(np.uint8)
    return packed


def encode_level(codes: Bytes, level: Level) -> tuple[Bytes, Bytes]:
    """Write codes as numbers of rows.

    Returns:
        The numbers, and the codes of the next level: one for every escape in the rows.
    """
    table, width = level.table, level.width
    filler = codes[-1] if codes.size else table[0, 0]
    padded = np.full((-(-codes.size // width), width), filler, np.uint8)
    padded.reshape(-1)[: codes.size] = codes
    node = np.zeros(len(padded), np.int64)
    prefix = np.zeros(len(table), np.int64)  # where each row of the table is in the tree
    for place in range(width):
        pairs, child = np.unique(prefix * 256 + table[:, place], return_inverse=True)
        step = np.full((int(prefix.max()) + 1, 256), -1, np.int64)
        step[pairs // 256, pairs % 256] = np.arange(pairs.size)
        step = np.where(step < 0, step[:, level.escape, None], step)
        # A code that is spelled like an escape can only be written as one.
        node, prefix = step[node, padded[:, place]], child
    rows = np.argsort(prefix).astype(np.uint8)[node]
    return rows, padded[table[rows] == level.escape]
