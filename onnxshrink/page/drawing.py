"""What plots share: axes on a logarithmic scale, their ticks, and the frame of a picture."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path

from onnxshrink.report import printable

_FEW, _MANY = 3, 7  # ticks of an axis


def plain(text: object) -> str:
    """A text in which nothing is markup: names may hold any character."""
    return escape(printable(str(text)))


def style(name: str) -> str:
    """A style sheet of the page."""
    return (Path(__file__).parent / f"{name}.css").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis.

    Attributes:
        low: The value at its start; above zero.
        high: The value at its end; above ``low``.
        start: Where it starts, in pixels.
        end: Where it ends.
    """

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def over(cls, values: Iterable[float], start: float, end: float, room: float = 0.06) -> Axis:
        """One that holds some values, all of them above zero, with room at both ends."""
        known = [math.log(value) for value in values]
        low, high = min(known, default=0.0), max(known, default=0.0)
        beside = max(room * (high - low), 0.1)
        return cls(math.exp(low - beside), math.exp(high + beside), start, end)

    def place(self, value: float) -> float:
        """Where a value is, in pixels; at an end where it is beyond it."""
        span = math.log(self.high / self.low)
        share = math.log(max(value, self.low) / self.low) / span
        return self.start + min(share, 1.0) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round numbers along the axis: 1, 2 and 5 of each decade, or fewer, or more."""
        found: list[float] = []
        for steps in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), tuple(range(10, 100))):
            decades = range(math.floor(math.log10(self.low)) - 1, math.ceil(math.log10(self.high)))
            found = [step * 10.0**decade for decade in decades for step in steps]
            found = [tick for tick in found if self.low <= tick <= self.high]
            if len(found) >= _FEW:
                break
        return found[:: -(-len(found) // _MANY)] if found else []


def picture(title: str, text: str, width: int, height: int, rows: Iterable[str]) -> str:
    """The rows of a plot as SVG, with what those hear who do not see it.

    Args:
        title: What it is.
        text: What it shows.
        width: In pixels of its own.
        height: Likewise.
        rows: Its elements.
    """
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" aria-label="{plain(title)}">',
            f"<title>{plain(title)}</title>",
            f"<desc>{plain(text)}</desc>",
            *rows,
            "</svg>",
        ]
    )


def alone(svg: str) -> str:
    """A plot as a file of its own: with its style, and on a ground."""
    head, _, rest = svg.partition("\n")
    ground = '<rect class="ground" width="100%" height="100%"/>'
    return f"{head}\n<style>{style('plot')}</style>\n{ground}\n{rest}\n"
