"""Grids of integers for activations, chosen from what calibration saw of them.

A grid has one scale and one zero point: ``value = (code - zero) * scale``. A wide range makes
coarse steps, a narrow one clips; the methods differ in how they weigh the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from onnxshrink.kernels.observers import HistogramSums

Integer = Literal["int8", "uint8", "int16", "uint16"]
Floats = npt.NDArray[np.float64]
#: What becomes of a value further on: the results behind it, from an array of its values.
Behind = Callable[[Floats], Sequence[Floats]]

LIMITS: dict[Integer, tuple[int, int]] = {
    "int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "uint16": (0, 65535)
}  # fmt: skip
_ENDS = np.concatenate((np.linspace(1, 0.5, 26), np.geomspace(0.5, 1e-3, 31)[1:], [0]))
_ROUNDS = 3


@dataclass(frozen=True)
class Grid:
    """The numbers that codes stand for.

    Attributes:
        scale: Distance between two of them, a float32.
        zero: The code of 0.
        dtype: The codes' type.
    """

    scale: float
    zero: int
    dtype: Integer

    @property
    def low(self) -> float:
        """The smallest number."""
        return (LIMITS[self.dtype][0] - self.zero) * self.scale

    @property
    def high(self) -> float:
        """The largest number."""
        return (LIMITS[self.dtype][1] - self.zero) * self.scale

    def codes(self, values: npt.NDArray[np.floating]) -> npt.NDArray[np.integer]:
        """The codes of values, as QuantizeLinear computes them: to nearest, ties to even."""
        rounded = np.rint(values.astype(np.float32) / np.float32(self.scale)) + self.zero
        found: npt.NDArray[np.integer] = np.clip(rounded, *LIMITS[self.dtype]).astype(self.dtype)
        return found

    def values(self, codes: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
        """What codes stand for, as DequantizeLinear computes it."""
        found: npt.NDArray[np.float32] = (codes.astype(np.int32) - self.zero).astype(np.float32)
        found *= np.float32(self.scale)
        return found

    def rounded(self, values: Floats) -> Floats:
        """Values on the grid, in float64."""
        many = _rounded(values, np.array([self.scale]), np.array([self.zero]), self.dtype)
        found: Floats = many[0]
        return found


def grid(low: float, high: float, dtype: Integer, *, symmetric: bool = False) -> Grid:
    """The finest grid over a range; it holds 0 exactly, so a range without 0 is widened to it.

    Args:
        low: Smallest value.
        high: Largest value.
        dtype: Type of the codes.
        symmetric: Whether the code of 0 is the middle one.
    """
    scale, zero = _parameters(np.array([low]), np.array([high]), dtype, symmetric)
    return Grid(float(scale[0]), int(zero[0]), dtype)


def _parameters(
    low: Floats, high: Floats, dtype: Integer, symmetric: bool
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Scales, rounded to float32, and zero points of many ranges."""
    first, last = LIMITS[dtype]
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    if symmetric:
        middle = (first + last + 1) // 2
        scale = _usable(np.maximum(-low, high) / (last - middle))
        return scale, np.full(scale.shape, middle)
    scale = _usable((high - low) / (last - first))
    return scale, np.clip(np.rint(first - low / scale), first, last).astype(np.int64)


def _usable(scale: Floats) -> Floats:
    """Scales that can be divided by; that of a range of nothing but 0 does not matter."""
    tiny, most = np.finfo(np.float32).tiny, np.finfo(np.float32).max
    clipped = np.minimum(np.where(scale < tiny, 1, scale), most).astype(np.float32)
    usable: Floats = clipped.astype(np.float64)
    return usable


def _rounded(values: Floats, scale: Floats, zero: npt.NDArray[np.int64], dtype: Integer) -> Floats:
    """Values on many grids, [grids, values]."""
    first, last = LIMITS[dtype]
    codes = values / scale[:, None]
    np.rint(codes, out=codes)
    np.clip(codes, (first - zero)[:, None], (last - zero)[:, None], out=codes)
    codes *= scale[:, None]
    return codes


class Sample:
    """A histogram as weighted values, and how well a grid holds them.

    Args:
        sums: The histogram.
        behind: What errors are judged by: the results that depend on each value alone, such as
            the activation function behind a convolution. What such a function flattens needs no
            codes. Without it the values themselves count.
    """

    def __init__(self, sums: HistogramSums, behind: Behind | None = None):
        full = np.flatnonzero(sums.counts)
        # A place of its own in each bin: values in the middle of bins may all be on a grid.
        place = (full * 0.6180339887) % 1
        edges = sums.edges
        low, high = edges[full], edges[full + 1]
        values = np.clip(low + place * (high - low), float(sums.low), float(sums.high))
        self.values: Floats = np.where((low <= 0) & (high > 0) & (sums.low <= 0), 0.0, values)
        self.weights: Floats = sums.counts[full] / max(float(sums.counts.sum()), 1.0)
        self._behind: Behind = behind or (lambda found: [found])
        self._exact = [np.asarray(result) for result in self._behind(self.values)]
        self._power = [
            float(self.weights @ np.square(result - self.weights @ result))
            for result in self._exact
        ]

    def noise(self, scale: Floats, zero: npt.NDArray[np.int64], dtype: Integer) -> Floats:
        """Mean squared error over variance behind each of many grids, summed over results."""
        total = np.zeros(scale.shape)
        results = self._behind(_rounded(self.values, scale, zero, dtype))
        for exact, power, result in zip(self._exact, self._power, results, strict=True):
            if power > 0:
                total += np.square(result - exact) @ self.weights / power
        return total

    def sqnr_db(self, on: Grid) -> float:
        """Signal to quantization noise behind one grid."""
        noise = float(self.noise(np.array([on.scale]), np.array([on.zero]), on.dtype)[0])
        return -10 * math.log10(noise) if noise > 0 else math.inf

    def least_squares(
        self, low: float, high: float, dtype: Integer, *, symmetric: bool = False
    ) -> tuple[float, float]:
        """The part of a range whose grid has the least squared error.

        The two ends are moved in turns, each over fractions of its extreme.
        """
        best = (min(low, 0.0), max(high, 0.0))
        for _ in range(_ROUNDS):
            before = best
            for end in (0, 1):
                fixed = np.full(_ENDS.shape, best[1 - end])
                tried = _ENDS * (low, high)[end]
                lows, highs = (tried, fixed) if end == 0 else (fixed, tried)
                noise = self.noise(*_parameters(lows, highs, dtype, symmetric), dtype)
                pick = int(np.argmin(noise))
                best = float(lows[pick]), float(highs[pick])
            if best == before:
                break
        return best
