"""Codebooks: a table of few values, and for every weight the number of its entry (1510.00149).

In one dimension k-means is solved, not approached: the best clusters of sorted values are
intervals, and dynamic programming finds them. Tensors beyond 65,536 values are first counted into
as many bins, so the cost hardly grows with their size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from onnxshrink.kernels.clusters import closest, histogram, kmeans, kmeans_vectors
from onnxshrink.kernels.obs import Grid

Method = Literal["kmeans", "uniform", "unique", "nf4", "pow2"]
Array = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]

#: The quantiles of a normal distribution, scaled to [-1, 1] and with an exact 0 (QLoRA,
#: 2305.14314, appendix E).
NF4 = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip

#: Sizes of tables that fill a byte with as many codes as possible: 256 >= size ** codes.
BASES = (2, 3, 4, 6, 16, 256)

_CHUNK = 2**20
_ZEROS = 0.01  # with a larger share of exact zeros, zero is an entry: they were put there


@dataclass(frozen=True)
class Codebook:
    """Weights as numbers of table entries.

    Attributes:
        codes: [groups, vectors].
        table: [groups, entries, width]; every group of weights has a table of its own, and every
            entry stands for ``width`` weights side by side.
    """

    codes: Codes
    table: Array

    @property
    def entries(self) -> int:
        """Entries of a table."""
        return int(self.table.shape[1])

    @property
    def width(self) -> int:
        """Weights that an entry stands for."""
        return int(self.table.shape[2])

    @property
    def nbytes(self) -> int:
        """Bytes of the packed codes and of the tables in float32, padded as they are stored."""
        groups, vectors = self.codes.shape
        entries = groups * base(self.entries) * self.width
        return int(groups * -(-vectors // codes_per_byte(self.entries)) + 4 * entries)

    def decode(self) -> Array:
        """The weights that a runtime computes with, [groups, vectors * width]."""
        groups = np.arange(len(self.codes))[:, None]
        return self.table[groups, self.codes].reshape(len(self.codes), -1)


def encode(
    weights: npt.NDArray[np.floating],
    method: Method,
    entries: int,
    *,
    width: int = 1,
    importance: npt.NDArray[np.floating] | None = None,
    rng: np.random.Generator | None = None,
) -> Codebook:
    """Replace weights by entries of a table for each group.

    Weights that are exactly zero stay so when more than 1 % are and ``width`` is 1.

    Args:
        weights: [groups, weights], finite.
        method: ``kmeans`` has the least squared error; ``uniform`` puts entries at equal distances
            from the smallest to the largest weight; ``unique`` keeps every value; ``nf4`` and
            ``pow2`` scale a fixed table (normal quantiles, powers of two) to the largest weight.
        entries: Most entries of a table, 2 to 256; ``nf4`` has 16 whatever this says.
        width: Weights side by side that make one entry; above 1 only for ``kmeans``.
        importance: What a squared error of each weight counts; like ``weights``.
        rng: Seeds the clusters of vectors.

    Raises:
        ValueError: No weights, NaN or infinity, more distinct values than ``unique`` may keep, or
            a width that does not divide the weights of a group.
    """
    weights = np.asarray(weights)
    if weights.size == 0:
        raise ValueError("no weights to share")
    if not np.isfinite(weights).all():
        raise ValueError("holds NaN or infinity")
    if width > 1:
        return _encode_vectors(weights, entries, width, importance, rng)
    if method == "unique":
        return _encode_unique(weights, entries)
    tables = []
    for at, row in enumerate(weights):
        counts = None if importance is None else importance[at]
        tables.append(_table(row, method, entries, counts))
    table = np.stack([_padded(one, max(map(len, tables))) for one in tables])
    codes = np.stack([assign(row, one) for row, one in zip(weights, tables, strict=True)])
    return Codebook(codes, table[:, :, None])


def _table(
    row: npt.NDArray[np.floating],
    method: Method,
    entries: int,
    importance: npt.NDArray[np.floating] | None,
) -> Array:
    """The entries for one group of weights, ascending and distinct."""
    if method == "kmeans":
        zero = np.count_nonzero(row == 0) > _ZEROS * row.size
        found = kmeans(*histogram(row, importance), entries, pin=0.0 if zero else None)
    elif method == "uniform":
        found = _uniform(float(row.min()), float(row.max()), entries, bool((row == 0).any()))
    elif method == "nf4":
        found = NF4.astype(np.float64) * float(np.abs(row).max())
    else:
        found = _powers(row, entries)
    return np.unique(found.astype(np.float32))


def _uniform(low: float, high: float, entries: int, zero: bool) -> npt.NDArray[np.float64]:
    """Entries at equal distances; one of them is 0 where weights are."""
    step = (high - low) / (entries - 1)
    if zero and step > 0:
        low = step * round(low / step)
    return low + step * np.arange(entries, dtype=np.float64)


def _powers(row: npt.NDArray[np.floating], entries: int) -> npt.NDArray[np.float64]:
    """0 and +-2**e, from the largest power that pays downwards (INQ, 1702.03044)."""
    largest = float(np.abs(row).max())
    if largest == 0:
        return np.zeros(1)
    top = int(np.rint(np.log2(largest)))
    best, least = np.zeros(1), np.inf
    points, mass = histogram(row, None)
    for exponent in (top - 1, top, top + 1):
        powers = 2.0 ** (exponent - np.arange(entries // 2))
        # An even number of entries has no room for the smallest power on both sides of 0.
        found = np.unique(np.concatenate([-powers[: (entries - 1) // 2], [0.0], powers]))
        found = found[-entries:]
        error = float(mass @ (found[_nearest(points, found)] - points) ** 2)
        if error < least:
            best, least = found, error
    return best


def _encode_unique(weights: npt.NDArray[np.floating], entries: int) -> Codebook:
    # Compared by their bits, so that -0.0 stays what it is.
    values = np.ascontiguousarray(weights, np.float32)
    bits = values.view(np.uint32)
    tables = []
    for row in bits:
        found = np.unique(row)
        if len(found) > entries:
            raise ValueError(f"has {len(found):,} distinct values, more than {entries}")
        tables.append(found)
    codes = [np.searchsorted(t, row) for t, row in zip(tables, bits, strict=True)]
    longest = max(map(len, tables))
    table = np.stack([_padded(one.view(np.float32), longest) for one in tables])
    return Codebook(np.stack(codes).astype(np.uint8), table[:, :, None])


def _encode_vectors(
    weights: npt.NDArray[np.floating],
    entries: int,
    width: int,
    importance: npt.NDArray[np.floating] | None,
    rng: np.random.Generator | None,
) -> Codebook:
    count = weights.shape[1]
    if count % width:
        raise ValueError(f"{count:,} weights cannot be taken {width} at a time")
    rng = np.random.default_rng(0) if rng is None else rng
    found = []
    for at, row in enumerate(weights):
        vectors = row.reshape(-1, width).astype(np.float32)
        counts = None if importance is None else importance[at].reshape(-1, width).mean(1)
        found.append(kmeans_vectors(vectors, entries, rng, counts))
    longest = max(len(table) for _, table in found)
    table = np.stack([_padded(table, longest) for _, table in found])
    codes = np.stack([codes for codes, _ in found])
    return Codebook(codes.astype(np.uint8), table)


def _padded(table: Array, entries: int) -> Array:
    """A table with its last entry repeated."""
    return np.concatenate([table, np.repeat(table[-1:], entries - len(table), axis=0)])


def _nearest(
    values: npt.NDArray[np.floating], table: npt.NDArray[np.floating]
) -> npt.NDArray[np.intp]:
    # Halved before they are added: the sum of two large entries may overflow.
    return np.searchsorted(table[1:] / 2 + table[:-1] / 2, values)


def assign(values: npt.NDArray[np.floating], table: npt.NDArray[np.floating]) -> Codes:
    """The number of the nearest entry for each value; ``table`` ascends, up to 256 entries."""
    flat = values.reshape(-1)
    codes = np.empty(flat.size, np.uint8)
    for at in range(0, flat.size, _CHUNK):
        codes[at : at + _CHUNK] = _nearest(flat[at : at + _CHUNK].astype(table.dtype), table)
    return codes.reshape(values.shape)


def nearest(weights: npt.NDArray[np.floating], table: Array) -> Codes:
    """Codes of weights for a table that is given.

    Args:
        weights: [groups, weights].
        table: [entries, width], ascending where the width is 1.

    Raises:
        ValueError: The width does not divide the weights of a group.
    """
    width = table.shape[1]
    if weights.shape[1] % width:
        raise ValueError(f"{weights.shape[1]:,} weights cannot be taken {width} at a time")
    if width == 1:
        return assign(weights, table[:, 0])
    vectors = weights.reshape(-1, width).astype(np.float32)
    return closest(vectors, table).reshape(len(weights), -1).astype(np.uint8)


def balance(weights: npt.NDArray[np.floating], codes: Codes, table: Array) -> Codes:
    """Move the closest calls to the next entry until the errors of each row about cancel.

    Inputs with a mean, such as those behind a ReLU, then do not shift the output (the channel
    step of SQuant, 2202.07471, for entries at unequal distances).

    Args:
        weights: [rows, weights]; those that are zero keep their code.
        codes: Of the nearest entries; like ``weights``.
        table: Ascending entries.

    Returns:
        Codes with which each row's errors sum up to at most half of what one move would change.
    """
    found: Codes = codes.copy()
    rows = max(1, _CHUNK // weights.shape[1])
    for at in range(0, len(codes), rows):
        exact, now = weights[at : at + rows].astype(np.float32), codes[at : at + rows]
        error = table[now] - exact
        total = error.sum(1, keepdims=True)
        direction = -np.sign(total).astype(np.int64)
        other = now + direction
        free = (other >= 0) & (other < len(table)) & (exact != 0) & (direction != 0)
        other = np.where(free, other, now)
        step = np.abs(table[other] - table[now])
        # What a move adds to the squared error for each unit that it takes off the sum.
        price = np.where(free, step + 2 * direction * error, np.inf)
        order = np.argsort(price, axis=1, kind="stable")
        step = np.take_along_axis(step, order, 1)
        wanted = np.cumsum(step, axis=1, dtype=np.float64) - step / 2 <= np.abs(total)
        moved = np.zeros(now.shape, bool)
        np.put_along_axis(moved, order, wanted, 1)
        found[at : at + rows] = np.where(moved & free, other, now)
    return found


def grid(
    tables: npt.NDArray[np.floating], group: npt.NDArray[np.int64],
    scale: npt.NDArray[np.floating] | None = None, zero: npt.NDArray[np.bool_] | None = None,
) -> Grid:  # fmt: skip
    """Rounding to the nearest entry, for error feedback; see ``obs.quantize``.

    Args:
        tables: [groups, entries], ascending.
        group: The table of each row, [rows].
        scale: Multiplies the entries of each row, [rows].
        zero: Weights that stay zero, [rows, columns].
    """
    low, high = float(tables.min()), float(tables.max())
    # One ascending line for all tables: each is moved behind the one before.
    apart = 2 * (high - low) + 1
    place = np.arange(len(tables))[:, None] * apart
    middles = ((tables[:, 1:].astype(np.float64) + tables[:, :-1]) / 2 + place).ravel()
    entries = tables.astype(np.float32).ravel()
    factor = np.ones(len(group), np.float32) if scale is None else scale.astype(np.float32)
    shift = group * apart

    def rounded(values: npt.NDArray[np.float32], column: int) -> npt.NDArray[np.float32]:
        exact = np.clip(values.astype(np.float64) / factor, low, high) + shift
        # So many middles, of its own table and of those before, lie below; each table has one less.
        found: npt.NDArray[np.float32] = entries[np.searchsorted(middles, exact) + group] * factor
        if zero is not None:
            found[zero[:, column]] = 0
        return found

    return rounded


# ------------------------------------------------------------------------------------- packing


def base(entries: int) -> int:
    """The smallest table size of ``BASES`` that holds so many entries."""
    return next(size for size in BASES if size >= entries)


def codes_per_byte(entries: int) -> int:
    """How many codes share a byte: 8 of 2 entries, 5 of 3, 4 of 4, 3 of 6, 2 of 16, else 1."""
    size, count = base(entries), 1
    while size ** (count + 1) <= 256:
        count += 1
    return count


def pack(codes: Codes, entries: int) -> Codes:
    """Write codes as digits of bytes, the first in the lowest place; see :func:`digits`.

    Args:
        codes: [groups, codes], each below ``entries``.
        entries: Decides the base.

    Returns:
        [groups, ceil(codes / codes_per_byte)]; the last byte is filled up with code 0.
    """
    places, size = codes_per_byte(entries), base(entries)
    padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % places)))
    lanes = padded.reshape(len(codes), -1, places)
    packed = np.zeros(lanes.shape[:2], np.uint8)
    for place in range(places):
        packed += lanes[:, :, place] * np.uint8(size**place)
    return packed


def digits(entries: int) -> Codes:
    """The codes that every possible byte stands for, [base ** places, places]."""
    places, size = codes_per_byte(entries), base(entries)
    every = np.arange(size**places)
    return np.stack([every // size**place % size for place in range(places)], 1).astype(np.uint8)


# --------------------------------------------------------------------------------------- scales


def scales(weights: npt.NDArray[np.floating], axes: tuple[int, ...], method: Method) -> Array:
    """What to divide each channel by, so that all can share a table.

    Args:
        weights: Any shape.
        axes: Axes that share a scale.
        method: k-means takes the root mean square, the others the largest weight.

    Returns:
        float32 with size 1 along ``axes``, rounded to what float16 holds where that is precise;
        1 for channels of zeros.
    """
    values = weights.astype(np.float32)
    if method == "kmeans":
        found = np.sqrt(np.square(values, dtype=np.float64).mean(axes, keepdims=True))
    else:
        found = np.abs(values).max(axes, keepdims=True).astype(np.float64)
    return rounded_scales(found)


def refit_scales(
    weights: npt.NDArray[np.floating],
    shared: npt.NDArray[np.floating],
    axes: tuple[int, ...],
    importance: npt.NDArray[np.floating] | None = None,
) -> Array:
    """Scales with the least squared error of ``shared * scale`` to ``weights``.

    Args:
        weights: Any shape.
        shared: What the scales multiply; like ``weights``.
        axes: Axes that share a scale.
        importance: What a squared error of each weight counts; like ``weights``.
    """
    counted = shared if importance is None else shared * importance
    power = np.multiply(shared, counted, dtype=np.float64).sum(axes, keepdims=True)
    product = np.multiply(counted, weights, dtype=np.float64).sum(axes, keepdims=True)
    return rounded_scales(np.divide(product, power, out=np.zeros_like(power), where=power > 0))


def rounded_scales(scale: npt.NDArray[np.float64]) -> Array:
    """Scales that float16 stores exactly where it does so to 11 bits; 0 becomes 1."""
    usable = np.where(np.abs(scale) < np.finfo(np.float32).tiny, 1.0, scale)
    held = (usable >= 2.0**-14) & (usable <= 2.0**15)
    short = np.where(held, usable, 1.0).astype(np.float16).astype(np.float32)
    return np.where(held, short, usable.astype(np.float32))


# -------------------------------------------------------------------------------------- hashing

#: Positions are hashed by ``(factor * position + offset) % prime % entries``.
PRIME = 2**31 - 1


def hash_parameters(rng: np.random.Generator) -> tuple[int, int]:
    """A factor and an offset, drawn."""
    return int(rng.integers(1, PRIME)), int(rng.integers(0, PRIME))


def hash_positions(count: int, factor: int, offset: int, entries: int) -> npt.NDArray[np.int64]:
    """The table entry of each position; consecutive ones land far apart (universal hashing)."""
    return (np.arange(count, dtype=np.int64) * factor + offset) % PRIME % entries


def hash_table(weights: npt.NDArray[np.floating], factor: int, offset: int, entries: int) -> Array:
    """The table with the least squared error: each entry is the mean of what hashes to it.

    HashedNets (1504.04788) train the table; this one is fitted to given weights.
    """
    where = hash_positions(weights.size, factor, offset, entries)
    total = np.bincount(where, weights.reshape(-1), minlength=entries)
    return (total / np.maximum(np.bincount(where, minlength=entries), 1)).astype(np.float32)


# --------------------------------------------------------------------------------------- errors


def sqnr_db(weights: npt.NDArray[np.floating], shared: npt.NDArray[np.floating]) -> float:
    """Signal to noise ratio in dB; infinite for equal arrays."""
    signal = noise = 0.0
    for exact, near in _pieces(weights, shared):
        signal += float(np.vdot(exact, exact))
        difference = exact - near
        noise += float(np.vdot(difference, difference))
    if noise == 0:
        return float("inf")
    return float(10 * np.log10(signal / noise)) if signal else float("-inf")


def _pieces(
    *arrays: npt.NDArray[np.floating],
) -> Iterator[tuple[npt.NDArray[np.float64], ...]]:
    """The arrays a piece at a time, in float64."""
    flat = [array.reshape(-1) for array in arrays]
    for at in range(0, flat[0].size, _CHUNK):
        yield tuple(array[at : at + _CHUNK].astype(np.float64) for array in flat)
