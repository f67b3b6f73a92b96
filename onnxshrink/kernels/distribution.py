"""How the values of one weight are distributed, and how few bits would hold them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

#: Unique values are counted exactly up to here; a codebook of more is of no use.
MOST_UNIQUE = 65536

_CHUNK = 2**20
_BARS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True)
class Distribution:
    """Statistics of the finite values of an array.

    Attributes:
        minimum: The smallest value; NaN when none is finite, like the next three.
        maximum: The largest value.
        mean: The mean.
        std: The standard deviation of the population.
        zeros: Share of values that are zero, or the code that stands for zero.
        unique: Number of different values, at most ``MOST_UNIQUE + 1``, which says: more.
        not_finite: Number of NaN and infinite values, which the others leave out.
    """

    minimum: float
    maximum: float
    mean: float
    std: float
    zeros: float
    unique: int
    not_finite: int = 0


def describe(values: npt.NDArray[Any], zero: float = 0.0) -> Distribution:
    """Statistics of an array of floats or integers; temporary memory stays small.

    Args:
        values: Numbers of any type and shape.
        zero: The value that counts as zero, for instance the zero point of codes.
    """
    flat = values.reshape(-1)
    low, high, mean, scatter = np.inf, -np.inf, 0.0, 0.0
    count = zeros = 0
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK].astype(np.float64)
        part = part[np.isfinite(part)]
        if part.size == 0:
            continue
        low, high = min(low, part.min()), max(high, part.max())
        zeros += part.size - int(np.count_nonzero(part - zero))
        # Chan, Golub and LeVeque (1983): merge the mean and scatter of two parts without
        # subtracting large squares.
        with np.errstate(over="ignore"):  # float64 beyond 1e154 has an infinite deviation
            delta, share = part.mean() - mean, part.size / (count + part.size)
            scatter += ((part - part.mean()) ** 2).sum() + delta**2 * count * share
        mean += delta * share
        count += part.size
    blank = count == 0
    return Distribution(
        minimum=float("nan") if blank else float(low),
        maximum=float("nan") if blank else float(high),
        mean=float("nan") if blank else float(mean),
        std=float("nan") if blank else float(np.sqrt(scatter / count)),
        zeros=zeros / max(flat.size, 1),
        unique=count_unique(flat),
        not_finite=flat.size - count,
    )


def count_unique(values: npt.NDArray[Any]) -> int:
    """Number of different bit patterns, at most ``MOST_UNIQUE + 1``, which says: more.

    Floats are compared by their bits, so 0 and -0 are two values.
    """
    size = values.dtype.itemsize
    flat = values.reshape(-1)
    if size <= 2:
        bits = flat.view(np.uint8 if size == 1 else np.uint16)
        seen = np.zeros(1 << 8 * size, bool)
        seen[bits] = True
        return int(np.count_nonzero(seen))
    bits = flat.view(np.uint32 if size == 4 else np.uint64)
    found: npt.NDArray[Any] = bits[:0]
    for start in range(0, bits.size, 2 * MOST_UNIQUE):
        part = bits[start : start + 2 * MOST_UNIQUE]
        new = part[~np.isin(part, found)] if found.size else part
        if new.size:
            found = _distinct(np.concatenate([found, _distinct(new)]))
        if found.size > MOST_UNIQUE:
            return MOST_UNIQUE + 1
    return int(found.size)


def _distinct(bits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Sorted and without repeats; several times faster than the hash table of numpy.unique."""
    ordered = np.sort(bits)
    first = np.ones(ordered.size, bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return ordered[first]


def entropy(codes: npt.NDArray[Any]) -> float:
    """Order-0 entropy in bits a value of 8 or 16-bit values, taken by their bits."""
    flat = codes.reshape(-1)
    counts: npt.NDArray[np.int64] = np.zeros(1 << 8 * flat.dtype.itemsize, np.int64)
    for start in range(0, flat.size, _CHUNK):  # bincount makes eight bytes of each code
        part = flat[start : start + _CHUNK].view(f"u{flat.dtype.itemsize}")
        counts += np.bincount(part, minlength=counts.size)
    share = counts[counts > 0] / max(flat.size, 1)
    return float(-(share * np.log2(share)).sum()) + 0.0


def histogram(
    values: npt.NDArray[Any], bins: int = 16, width: int = 40
) -> list[tuple[float, float, int, str]]:
    """A histogram for a terminal.

    Args:
        values: Numbers; NaN and infinite ones are left out.
        bins: Number of equal intervals between the smallest and the largest value.
        width: Characters of the longest bar.

    Returns:
        For each interval its ends, how many values lie in it, and a bar of that length in eighths
        of a character. Any count but 0 has a visible bar.
    """
    flat = values.reshape(-1).astype(np.float64)
    flat = flat[np.isfinite(flat)]
    if flat.size == 0:
        return []
    counts, edges = np.histogram(flat, bins)
    return [
        (float(edges[i]), float(edges[i + 1]), int(n), _bar(int(n), int(counts.max()), width))
        for i, n in enumerate(counts)
    ]


def _bar(count: int, most: int, width: int) -> str:
    eighths = max(round(8 * width * count / most), int(count > 0))
    return _BARS[8] * (eighths // 8) + _BARS[eighths % 8].strip()
