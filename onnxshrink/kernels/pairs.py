"""What a calibration run adds up about two models at once: one's values beside the other's.

Like ``observers``, but a statistic here is of a value x of the model at hand and a value y of the
original one, on the same feed: enough to find the layer that makes y of x by least squares.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxshrink.kernels import split
from onnxshrink.kernels.leastsquares import Seen
from onnxshrink.kernels.observers import LEAST_ROWS, ROWS_PER_WIDTH
from onnxshrink.kernels.patches import Window, sample, spread
from onnxshrink.kernels.rows import Rows, rows_of

Array = npt.NDArray[np.floating]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ChannelPairs:
    """Each channel of x beside the same channel of y, and no other.

    Attributes:
        axis: The axis of the channels.
    """

    axis: int


@dataclass(frozen=True)
class Regression:
    """Sums for the least squares of y on x: see ``leastsquares.Seen``.

    Feeds with even and odd numbers are summed apart, so that what was fitted to one half can be
    judged by the other.

    Attributes:
        groups: Parts of x that are multiplied with matrices of their own.
        width: Length of a row of x in a group.
        outputs: Length of a row of y in a group.
        layout: How the values of x make rows.
        axis: The axis of y that holds the outputs.
        picked: Which indices of that axis (of that of the channels, where those are paired) are
            meant; all, if none are given.
    """

    groups: int
    width: int
    outputs: int
    layout: Rows | Window | ChannelPairs
    axis: int = -1
    picked: tuple[int, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of the sums."""
        rows = (self.width + 1) + self.outputs
        return 16 * self.groups * rows * (self.width + 1)

    def start(self) -> RegressionSums:
        """Empty sums."""
        one = self.width + 1
        return RegressionSums(
            np.zeros((2, self.groups, one, one)),
            np.zeros((2, self.groups, self.outputs, one)),
            np.zeros((2, self.groups, self.outputs)),
        )


@dataclass
class RegressionSums:
    """See :class:`Regression`.

    Attributes:
        xx: [half, groups, width + 1, width + 1].
        xy: [half, groups, outputs, width + 1].
        yy: [half, groups, outputs].
        spoiled: Rows with NaN or infinity; they are left out.
    """

    xx: npt.NDArray[np.float64]
    xy: npt.NDArray[np.float64]
    yy: npt.NDArray[np.float64]
    spoiled: Any = 0

    def add(self, statistic: Regression, x: Array, y: Array, feed: int) -> None:
        """Take in one feed's values.

        Raises:
            ValueError: The values do not have the shapes that the statistic was made for.
        """
        if not x.size or not y.size:
            return
        half = split.half(feed)
        for a, b in _parts(statistic, x, y, feed):
            rows, groups = len(a), statistic.groups
            expected = (rows, groups, statistic.width), (rows, groups, statistic.outputs)
            if (a.shape, b.shape) != expected:
                raise ValueError(f"values of shapes {x.shape} and {y.shape} do not fit the layer")
            finite = np.isfinite(a).all((1, 2)) & np.isfinite(b).all((1, 2))
            if not finite.all():
                self.spoiled += int(len(a) - np.count_nonzero(finite))
                a, b = a[finite], b[finite]
            ones = np.ones((len(a), statistic.groups, 1), np.float32)
            inputs = np.concatenate([a, ones], 2).transpose(1, 0, 2)
            outputs = np.ascontiguousarray(b.transpose(1, 2, 0))
            self.xx[half] += inputs.transpose(0, 2, 1) @ inputs
            self.xy[half] += outputs @ inputs
            self.yy[half] += np.einsum("gon,gon->go", outputs, outputs)

    @property
    def halves(self) -> tuple[Seen, Seen]:
        """The sums over feeds with even and with odd numbers."""
        first, second = (Seen(self.xx[i], self.xy[i], self.yy[i]) for i in (0, 1))
        return first, second


def _parts(statistic: Regression, x: Array, y: Array, feed: int) -> Iterator[tuple[Floats, Floats]]:
    """Rows of x, [rows, groups, width], and those of y at the same places, some at a time."""
    layout = statistic.layout
    most = max(ROWS_PER_WIDTH * statistic.width, LEAST_ROWS)
    if statistic.picked:
        y = y.take(
            statistic.picked, layout.axis if isinstance(layout, ChannelPairs) else statistic.axis
        )
    if isinstance(layout, ChannelPairs):
        if x.shape != y.shape:
            raise ValueError(f"values of shapes {x.shape} and {y.shape} do not fit together")
        both = (np.moveaxis(v, layout.axis, -1).reshape(-1, v.shape[layout.axis]) for v in (x, y))
        a, b = (v[spread(len(v), most, feed)].astype(np.float32)[..., None] for v in both)
        yield a, b
        return
    if isinstance(layout, Window):
        wanted = np.moveaxis(y, statistic.axis, -1).reshape(-1, statistic.groups, statistic.outputs)
        places, start = spread(len(wanted), most, feed), 0
        for part in sample(x, layout, most, feed):
            yield part, wanted[places[start : start + len(part)]].astype(np.float32)
            start += len(part)
        return
    rows = Rows(statistic.axis, layout.batch)
    yield from zip(rows_of(x, layout, most, feed), rows_of(y, rows, most, feed), strict=True)


@dataclass(frozen=True)
class PairNeed:
    """A statistic of two values, as a pass asks for it.

    Attributes:
        value: Name of y in the original model.
        source: Name of x in the model at hand.
        statistic: What is wanted of them.
    """

    value: str
    source: str
    statistic: Regression

    @property
    def values(self) -> tuple[str, ...]:
        """The names of the original's values: one."""
        return (self.value,)
