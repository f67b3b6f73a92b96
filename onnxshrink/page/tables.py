"""Tables of a page: cells of text, of figures and of bars; long ones are folded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from onnxshrink.page.drawing import plain

_MARKS = re.compile(r"(?<![<])([/._])(?=\w)")


class Cell(NamedTuple):
    """A cell.

    Attributes:
        html: What it holds, escaped.
        look: The class of its style.
    """

    html: str
    look: str = ""


def cell(text: object, below: str = "") -> Cell:
    """A text, with a smaller one below."""
    more = f"<br><small>{plain(below)}</small>" if below else ""
    return Cell(f"{plain(text)}{more}")


def name(text: str, below: str = "") -> Cell:
    """A name, which breaks at its marks where it is too long for a line."""
    found = cell(text, below)
    return found._replace(html=_MARKS.sub(r"\1<wbr>", found.html))


def number(text: str) -> Cell:
    """A figure."""
    return Cell(plain(text), "number")


def bar(text: str, share: float) -> Cell:
    """A figure over a bar of a share of the width."""
    return Cell(f"{plain(text)}{_svg(_rect('after', share))}", "bar")


def two_bars(text: str, before: float, after: float) -> Cell:
    """A text over a bar of what is left, in front of one of what there was."""
    return Cell(f"{plain(text)}{_svg(_rect('before', before) + _rect('after', after))}", "bar")


def table(
    title: str, heads: Sequence[str], rows: Sequence[Sequence[Cell]], *, figures: int = 0,
    numbers_from: int = 1, taken: Sequence[bool] = (), shown: int = 0,
) -> str:  # fmt: skip
    """A table that scrolls by itself where it is wider than the page.

    Args:
        title: Its caption.
        heads: Its columns.
        rows: Its rows; the first cell of each is its head.
        figures: How many columns are figures.
        numbers_from: The first of these.
        taken: Which rows are marked.
        shown: Rows that are seen at once, the rest being folded; 0 for all.
    """
    made = [_row(row, at < len(taken) and taken[at]) for at, row in enumerate(rows)]
    first = made[:shown] if shown else made
    found = _table(title, heads, first, figures, numbers_from)
    if rest := made[len(first) :]:
        more = _table(f"{title}, the rest", heads, rest, figures, numbers_from)
        found = f"<div>{found}<details><summary>{len(rest)} more</summary>{more}</details></div>"
    return found


def _table(
    title: str, heads: Sequence[str], rows: Sequence[str], figures: int, numbers_from: int
) -> str:
    columns = "".join(
        f'<th scope="col"{_class("number")}>{plain(head)}</th>'
        if numbers_from <= at < numbers_from + figures
        else f'<th scope="col">{plain(head)}</th>'
        for at, head in enumerate(heads)
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{plain(title)}"><table>'
        f"<caption>{plain(title)}</caption><thead><tr>{columns}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row(row: Sequence[Cell], taken: bool) -> str:
    head, *others = row
    cells = "".join(f"<td{_class(one.look)}>{one.html}</td>" for one in others)
    return f'<tr{_class("taken" if taken else "")}><th scope="row">{head.html}</th>{cells}</tr>'


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _svg(inside: str) -> str:
    return (
        '<svg class="plot" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        f"{inside}</svg>"
    )


def _rect(look: str, share: float) -> str:
    width = 100 * min(max(share, 0.0), 1.0)
    return f'<rect class="{look}" width="{max(width, 0.4 if share > 0 else 0):.2f}" height="8"/>'
