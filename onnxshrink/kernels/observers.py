"""What a calibration run adds up about the values of a model, one feed at a time.

A *statistic* says what is wanted of a value; it is plain data, so that two passes that want the
same share it. ``start`` gives its *sums*: a dataclass whose fields are arrays, which grows by
``add`` and never keeps an activation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxshrink.kernels import split
from onnxshrink.kernels.patches import Window, sample
from onnxshrink.kernels.rows import PLAIN, Rows, rows_of

Array = npt.NDArray[np.floating]
Floats64 = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

#: Rows (tokens, places of a convolution) of one feed that enter a second moment: at most so many
#: times their length, or so many.
ROWS_PER_WIDTH, LEAST_ROWS = 4, 1024
_MAGNITUDES = 4096


@dataclass(frozen=True)
class Extremes:
    """Smallest and largest values, means and norms; of the tensor, or of each channel.

    Attributes:
        axis: The axis of the channels; None for the tensor as a whole.
    """

    axis: int | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the sums, about."""
        return 0

    def start(self) -> ExtremeSums:
        """Empty sums."""
        return ExtremeSums()


@dataclass
class ExtremeSums:
    """See :class:`Extremes`. Every field has one element a channel, or one.

    Attributes:
        low: Smallest value.
        high: Largest value.
        low_sum: Sum over feeds of the smallest value, for averages.
        high_sum: Sum over feeds of the largest value.
        total: Sum of the values.
        square: Sum of their squares.
        count: Finite values of one channel.
        feeds: Feeds seen.
        spoiled: Values that are NaN or infinite; they enter nothing else.
    """

    low: Floats64 = field(default_factory=lambda: np.zeros(0))
    high: Floats64 = field(default_factory=lambda: np.zeros(0))
    low_sum: Floats64 = field(default_factory=lambda: np.zeros(0))
    high_sum: Floats64 = field(default_factory=lambda: np.zeros(0))
    total: Floats64 = field(default_factory=lambda: np.zeros(0))
    square: Floats64 = field(default_factory=lambda: np.zeros(0))
    count: Floats64 = field(default_factory=lambda: np.zeros(0))
    feeds: Any = 0
    spoiled: Any = 0

    def add(self, statistic: Extremes, array: Array, feed: int) -> None:
        """Take in one feed's values.

        Raises:
            ValueError: The number of channels changed.
        """
        if not array.size:
            return
        axis = statistic.axis
        rows = array.reshape(1, -1) if axis is None else np.moveaxis(array, axis, 0)
        rows = rows.reshape(len(rows), -1).astype(np.float64)
        finite = np.isfinite(rows)
        if not self.low.size:
            self.low, self.high = np.full(len(rows), np.inf), np.full(len(rows), -np.inf)
            for name in ("low_sum", "high_sum", "total", "square", "count"):
                setattr(self, name, np.zeros(len(rows)))
        elif len(self.low) != len(rows):
            raise ValueError(f"{len(rows)} channels, but {len(self.low)} before")
        self.spoiled += int(rows.size - np.count_nonzero(finite))
        low = np.where(finite, rows, np.inf).min(1)
        high = np.where(finite, rows, -np.inf).max(1)
        rows[~finite] = 0
        self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)
        self.low_sum += np.where(np.isfinite(low), low, 0)
        self.high_sum += np.where(np.isfinite(high), high, 0)
        self.total += rows.sum(1)
        self.square += np.einsum("ij,ij->i", rows, rows)
        self.count += np.count_nonzero(finite, axis=1)
        self.feeds += 1

    @property
    def mean(self) -> Floats64:
        """Mean of each channel; 0 where nothing was seen."""
        mean: Floats64 = self.total / np.maximum(self.count, 1)
        return mean

    @property
    def rms(self) -> Floats64:
        """Root mean square of each channel."""
        rms: Floats64 = np.sqrt(self.square / np.maximum(self.count, 1))
        return rms

    @property
    def average_range(self) -> tuple[Floats64, Floats64]:
        """Means over feeds of the smallest and largest value: ONNX Runtime's moving average."""
        feeds = max(int(self.feeds), 1)
        return self.low_sum / feeds, self.high_sum / feeds


@dataclass(frozen=True)
class Histogram:
    """How often values occur, in bins that widen as larger values come.

    Attributes:
        bins: Most bins that are kept.
    """

    bins: int = 4096

    @property
    def nbytes(self) -> int:
        """Bytes of the sums."""
        return 8 * self.bins

    def start(self) -> HistogramSums:
        """Empty sums."""
        return HistogramSums()


@dataclass
class HistogramSums:
    """See :class:`Histogram`.

    Bin i holds the values in ``[(first + i) w, (first + i + 1) w)`` with ``w = 2 ** exponent``.
    Widths and edges are powers of two and their multiples, so that widening merges pairs of bins
    exactly: the counts do not depend on the order in which values came.

    Attributes:
        counts: Values in each bin.
        first: Number of the first bin.
        exponent: Of the bins' width.
        low: Smallest value.
        high: Largest value.
        spoiled: Values that are NaN or infinite; they enter nothing else.
    """

    counts: Counts = field(default_factory=lambda: np.zeros(0, np.int64))
    first: Any = 0
    exponent: Any = 0
    low: Any = math.inf
    high: Any = -math.inf
    spoiled: Any = 0

    def add(self, statistic: Histogram, array: Array, feed: int) -> None:
        """Take in one feed's values."""
        values = array.reshape(-1).astype(np.float64)
        finite = np.isfinite(values)
        if not finite.all():
            self.spoiled += int(values.size - np.count_nonzero(finite))
            values = values[finite]
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        self.low, self.high = min(float(self.low), low), max(float(self.high), high)
        if not self.counts.size:
            reach = (high - low) or max(abs(high), 2.0**-100) * 2.0**-10
            self.exponent = math.ceil(math.log2(reach / statistic.bins))
        while self._bin(self.high) - self._bin(self.low) >= statistic.bins:
            self._widen()
        start, stop = self._bin(self.low), self._bin(self.high) + 1
        if not self.counts.size:
            self.first = start
        before = max(int(self.first) - start, 0)
        after = max(stop - int(self.first) - self.counts.size, 0)
        self.counts = np.pad(self.counts, (before, after))
        self.first = int(self.first) - before
        numbers = np.floor(np.ldexp(values, -int(self.exponent))).astype(np.int64) - self.first
        self.counts += np.bincount(numbers, minlength=self.counts.size)

    def _bin(self, value: float) -> int:
        return math.floor(math.ldexp(value, -int(self.exponent)))

    def _widen(self) -> None:
        self.exponent = int(self.exponent) + 1
        if self.counts.size:
            numbers = (int(self.first) + np.arange(self.counts.size)) // 2
            self.first = int(numbers[0])
            self.counts = np.bincount(numbers - self.first, self.counts).astype(np.int64)

    @property
    def edges(self) -> Floats64:
        """The bins' limits, one more than there are bins."""
        numbers = int(self.first) + np.arange(self.counts.size + 1)
        return np.ldexp(numbers.astype(np.float64), int(self.exponent))

    def percentile(self, share: float) -> tuple[float, float]:
        """The range that holds this share of the values (0 to 1), the same beyond either end."""
        if not self.counts.size:
            return 0.0, 0.0
        cumulative = np.concatenate(([0], np.cumsum(self.counts))) / self.counts.sum()
        low, high = np.interp([(1 - share) / 2, (1 + share) / 2], cumulative, self.edges)
        held = np.clip([low, high], float(self.low), float(self.high))
        return float(held[0]), float(held[1])

    def entropy(self, levels: int = 128) -> float:
        """The largest magnitude to keep, so that ``levels`` steps lose the least information.

        TensorRT's calibration (Migacz, 2017): for every threshold, the Kullback-Leibler divergence
        of the magnitudes, those above it clipped, from the same in ``levels`` equal steps.
        """
        magnitudes, width = self._magnitudes()
        best, least = magnitudes.size, math.inf
        for stop in range(min(levels, magnitudes.size), magnitudes.size + 1):
            kept = magnitudes[:stop].astype(np.float64)
            group = np.arange(stop) * min(levels, stop) // stop
            filled = np.bincount(group, kept > 0)
            level = np.bincount(group, kept) / np.maximum(filled, 1)
            coarse = np.where(kept > 0, level[group], 0)
            kept[-1] += magnitudes[stop:].sum()
            coarse[-1] = max(coarse[-1], 1e-12 * kept[-1])
            seen = kept > 0
            p, q = kept[seen] / kept.sum(), coarse[seen] / coarse.sum()
            divergence = float((p * np.log(p / q)).sum())
            if divergence < least:
                best, least = stop, divergence
        return min(best * width, max(abs(float(self.low)), abs(float(self.high))))

    def least_squares(self, levels: int = 128) -> float:
        """The largest magnitude to keep, so that ``levels`` steps have the least squared error."""
        magnitudes, width = self._magnitudes()
        centres = (np.arange(magnitudes.size) + 0.5) * width
        best, least = magnitudes.size * width, math.inf
        for fraction in np.linspace(0.02, 1, 99):
            reach = magnitudes.size * width * fraction
            step = reach / levels
            rounded = np.minimum(np.rint(centres / step), levels) * step
            error = float(magnitudes @ np.square(rounded - centres))
            if error < least:
                best, least = reach, error
        return min(best, max(abs(float(self.low)), abs(float(self.high))))

    def _magnitudes(self) -> tuple[Counts, float]:
        """Counts of the absolute values in a few thousand bins from zero, and their width."""
        numbers = int(self.first) + np.arange(self.counts.size)
        folded = np.where(numbers < 0, -1 - numbers, numbers)
        exponent = int(self.exponent)
        while folded.max(initial=0) >= _MAGNITUDES:  # values far from zero, close together
            folded, exponent = folded // 2, exponent + 1
        counts = np.bincount(folded, self.counts) if folded.size else np.zeros(1)
        return counts.astype(np.int64), math.ldexp(1.0, exponent)


@dataclass(frozen=True)
class SecondMoment:
    """Sum of X^T X over the rows X that a weight is multiplied with.

    Feeds with even and odd numbers are summed apart, so that what was fitted to one half can be
    judged by the other.

    Attributes:
        width: Length of a row: the inputs of one output.
        layout: How the activation's values make rows.
    """

    width: int
    layout: Rows | Window = PLAIN

    @property
    def nbytes(self) -> int:
        """Bytes of the sums."""
        return 8 * self.layout.groups * self.width**2

    def start(self) -> MomentSums:
        """Empty sums."""
        shape = (2, self.layout.groups, self.width, self.width)
        return MomentSums(np.zeros(shape, np.float32), np.zeros(2))


@dataclass
class MomentSums:
    """See :class:`SecondMoment`.

    Attributes:
        sums: [half, groups, width, width].
        rows: Rows in each half.
        spoiled: Rows with NaN or infinity; they are left out.
    """

    sums: npt.NDArray[np.float32]
    rows: Floats64
    spoiled: Any = 0

    def add(self, statistic: SecondMoment, array: Array, feed: int) -> None:
        """Take in one feed's values.

        Raises:
            ValueError: The activation has not the shape that the statistic was made for.
        """
        if not array.size:
            return
        layout, half = statistic.layout, split.half(feed)
        most = max(ROWS_PER_WIDTH * statistic.width, LEAST_ROWS)
        if isinstance(layout, Window):
            parts = sample(array, layout, most, feed)
        else:
            parts = rows_of(array, layout, most, feed)
        for part in parts:
            if part.shape[1:] != self.sums.shape[1:3]:
                raise ValueError(f"an activation of shape {array.shape} for {statistic}")
            finite = np.isfinite(part).all((1, 2))
            if not finite.all():
                self.spoiled += int(len(part) - np.count_nonzero(finite))
                part = part[finite]
            for group in range(part.shape[1]):
                rows = np.ascontiguousarray(part[:, group])
                self.sums[half, group] += rows.T @ rows
            self.rows[half] += len(part)

    def mean(
        self, half: int | None = None, kind: type[np.floating] = np.float64
    ) -> npt.NDArray[Any]:
        """E[x x^T] of every group, [groups, width, width], of all feeds or of one half.

        A half without rows gives that of the other.

        Args:
            half: 0 or 1; None: both.
            kind: The type to compute it in; the sums are float32.
        """
        chosen = [0, 1] if half is None or not self.rows[half] else [half]
        total: npt.NDArray[Any] = self.sums[chosen[0]].astype(kind)
        for other in chosen[1:]:
            total += self.sums[other]
        total /= max(float(self.rows[chosen].sum()), 1)
        return total


@dataclass(frozen=True)
class Lookups:
    """How often each row of a table is looked up, by feeds with even and odd numbers apart.

    Attributes:
        size: Rows of the table.
    """

    size: int

    @property
    def nbytes(self) -> int:
        """Bytes of the sums."""
        return 8 * self.size

    def start(self) -> LookupSums:
        """Empty sums."""
        return LookupSums(np.zeros((2, self.size), np.int64))


@dataclass
class LookupSums:
    """See :class:`Lookups`.

    Attributes:
        halves: Lookups of each row, [half, rows]: of the feeds with even numbers, then of the odd.
    """

    halves: Counts

    def add(self, statistic: Lookups, array: npt.NDArray[Any], feed: int) -> None:
        """Take in one feed's indices; negative ones count from the end."""
        indices = array.reshape(-1).astype(np.int64) % statistic.size
        self.halves[split.half(feed)] += np.bincount(indices, minlength=statistic.size)

    @property
    def counts(self) -> Counts:
        """Lookups of each row by all feeds."""
        counts: Counts = self.halves.sum(0)
        return counts


@dataclass(frozen=True)
class SomeRows:
    """A few rows that a weight is multiplied with, from every feed.

    Attributes:
        layout: How the activation's values make rows.
        each: Rows of one feed, at most.
        most: Rows in all, at most.
    """

    layout: Rows | Window = PLAIN
    each: int = 8
    most: int = 128

    @property
    def nbytes(self) -> int:
        """Bytes of the sums, about: rows are as wide as the weight."""
        return 4096 * self.most

    def start(self) -> RowSums:
        """No rows."""
        return RowSums(np.zeros((0, 0, 0), np.float32))


@dataclass
class RowSums:
    """See :class:`SomeRows`.

    Attributes:
        rows: [rows, groups, width], those with NaN or infinity left out.
    """

    rows: npt.NDArray[np.float32]

    def add(self, statistic: SomeRows, array: Array, feed: int) -> None:
        """Take in one feed's values, until there are enough."""
        if not array.size or len(self.rows) >= statistic.most:
            return
        layout = statistic.layout
        if isinstance(layout, Window):
            parts = list(sample(array, layout, statistic.each, feed))
        else:
            parts = list(rows_of(array, layout, statistic.each, feed))
        found = np.concatenate(parts)
        found = found[np.isfinite(found).all((1, 2))]
        self.rows = np.concatenate([self.rows, found]) if self.rows.size else found


Statistic: TypeAlias = Extremes | Histogram | SecondMoment | Lookups | SomeRows
Sums: TypeAlias = ExtremeSums | HistogramSums | MomentSums | LookupSums | RowSums
SUMS: dict[type, type] = {
    Extremes: ExtremeSums, Histogram: HistogramSums, SecondMoment: MomentSums,
    Lookups: LookupSums, SomeRows: RowSums,
}  # fmt: skip


@dataclass(frozen=True)
class Need:
    """A statistic of one value, as a pass asks for it, or of several as if they were one.

    Attributes:
        value: The value's name in the model.
        statistic: What is wanted of it.
        others: Values that are added up with it, such as those of all steps of an unrolled loop.
    """

    value: str
    statistic: Statistic
    others: tuple[str, ...] = ()

    @property
    def values(self) -> tuple[str, ...]:
        """The names of all of them."""
        return self.value, *self.others
