"""Operators that take the numbers of a weight one by one: one class of rows for each kind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from onnxshrink.graph.operators.rows import Axes, Row

SHORT_ROW = 32  # numbers: a scale for every row that is shorter would cost more than it gains


@dataclass(frozen=True)
class OneByOne(Row):
    """Takes the numbers of a weight one by one: no sum goes over them."""

    def rows(self, shape: Sequence[int]) -> Axes | None:
        """Which numbers of a weight are read as one row: those of its last axes, or its longest.

        None of a vector, however many axes of length 1 it has.
        """
        rank, long = len(shape), [axis for axis, size in enumerate(shape) if size > 1]
        if len(long) < 2:
            return None
        for first in long[:0:-1]:
            if math.prod(shape[first:]) >= SHORT_ROW:
                return Axes.split(rank, range(first, rank))
        return Axes.split(rank, [max(long, key=shape.__getitem__)])


@dataclass(frozen=True)
class Arithmetic(OneByOne):
    """One number of each of two operands makes one of the result.

    Attributes:
        scales: Whether they are multiplied, rather than added.
        inverse: Whether the second is taken away, or divided by.
    """

    scales: bool = False
    inverse: bool = False

    @property
    def weights(self) -> Mapping[int, int | None]:
        """Either operand, by itself; of a quotient the parts play different roles."""
        return {} if self.scales and self.inverse else {0: None, 1: None}


@dataclass(frozen=True)
class Choice(OneByOne):
    """Takes each number from one operand or from the other."""

    @property
    def weights(self) -> Mapping[int, int | None]:
        """Either operand, by itself."""
        return {1: None, 2: None}


@dataclass(frozen=True)
class Elementwise(OneByOne):
    """A function of single numbers, or of those at several places of one channel.

    Attributes:
        factors: Whether f(s x) = s f(x) for s > 0.
        means: Whether the mean of each channel stays what it is.
        places: Whether a result is made of several places of a channel.
        positive: Whether what is below zero becomes zero, and nothing else changes.
        trains: The input that makes it draw numbers, as in training.
        slope: The input that holds what numbers below zero are multiplied with.
    """

    factors: bool = False
    means: bool = False
    places: bool = False
    positive: bool = False
    trains: int | None = None
    slope: int | None = None

    @property
    def weights(self) -> Mapping[int, int | None]:
        """The slopes, by themselves."""
        return {} if self.slope is None else {self.slope: None}


@dataclass(frozen=True)
class Movement(OneByOne):
    """Hands numbers on as they are: elsewhere, in another type, or only some of them.

    Attributes:
        how: ``copies``; ``converts``: in another type; ``permutes``: axes in another order;
            ``squeezes`` and ``unsqueezes``: axes of size 1 go or come; ``reshapes``; ``flattens``:
            all axes before one and all others become one each; ``parts``: some of the numbers;
            ``pads``: more around them; ``joins``: those of several values.
    """

    how: Literal[
        "copies", "converts", "permutes", "squeezes", "unsqueezes", "reshapes", "flattens", "parts",
        "pads", "joins",
    ]  # fmt: skip

    @property
    def weights(self) -> Mapping[int, int | None]:
        """What is moved, by itself, where that says little of what becomes of it."""
        return {0: None} if self.how in ("reshapes", "flattens", "joins") else {}

    def takes(self, index: int) -> bool:
        """Any of the values that are joined."""
        return self.how == "joins" or super().takes(index)


@dataclass(frozen=True)
class Norm(OneByOne):
    """Brings values to a common size, multiplies each channel with a gain and adds a shift.

    Attributes:
        gain: The input that holds the gains.
        shift: The input that holds the shifts; None where there are none.
        channels: The axis of the channels. -1: it normalises over the axes from ``axis`` on, and
            has a gain for each of their places.
        sums: Inputs that are added up before.
        fixed: Inputs that say what the size is, mean and variance, where it is not computed.
        grouped: Whether it may have one gain for each of its groups, rather than of its channels.
    """

    gain: int
    shift: int | None
    channels: int = -1
    sums: tuple[int, ...] = (0,)
    fixed: tuple[int, ...] = ()
    grouped: bool = False

    @property
    def weights(self) -> Mapping[int, int | None]:
        """Gains and shifts, by themselves."""
        return {index: None for index in (self.gain, self.shift) if index is not None}


@dataclass(frozen=True)
class Scatter(OneByOne):
    """Its first input with some numbers replaced.

    Attributes:
        places: The input that says where.
    """

    places: int = 1

    @property
    def weights(self) -> Mapping[int, int | None]:
        """What some numbers are replaced in, by itself."""
        return {0: None}


@dataclass(frozen=True)
class Repetition(OneByOne):
    """Hands numbers on as they are, again and again."""

    @property
    def weights(self) -> Mapping[int, int | None]:
        """What is repeated, by itself."""
        return {0: None}
