"""From near-lossless to smallest: what each byte costs, as models to choose from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onnxshrink.report import Table, printable, size, times

if TYPE_CHECKING:
    from onnxshrink.search.evaluation import Evaluator, Tried
    from onnxshrink.search.smallest import Found

_SPENDS = (1 / 64, 1 / 16, 1 / 4, 1.0, 4.0, 16.0)  # of what the best one spends
_LEAST_STEP = 0.98  # of the bytes, between neighbours
_WIDTH, _HEIGHT, _MARGIN = 640, 420, 70


@dataclass(frozen=True)
class Point:
    """One model of a front.

    Attributes:
        path: Its file.
        name: How it was made.
        nbytes: Of the file.
        error: Largest relative error of an output on unseen inputs; of those seen where none are.
        strain: Share of the budget that is used.
        latency: Time over the original's.
    """

    path: Path
    name: str
    nbytes: int
    error: float
    strain: float
    latency: float


def write(ask: Evaluator, found: Found, folder: Path) -> list[Point]:
    """Write a front: its models, ``front.md`` and ``front.svg``.

    Args:
        ask: Evaluates recipes.
        found: What a search has found.
        folder: Where to; it is made where it is not there.

    Raises:
        OutputError: It cannot be written.
    """
    from onnxshrink import files
    from onnxshrink.search import measured

    chosen = candidates(ask, found.tried, found.best)
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    before = ask.model.stored_bytes()
    paths, sizes = [], []
    for number, one in enumerate(chosen):
        paths.append(folder / f"{number}-{times(before, one.nbytes)}.onnx")
        sizes.append(measured.save(ask, one, paths[-1]))
        if one is not found.best:
            one.result = None
    costs = measured.against_original(ask, paths)
    points = [
        Point(path, one.name, nbytes, one.error, one.strain, cost.ratio)
        for path, one, nbytes, cost in zip(paths, chosen, sizes, costs, strict=True)
    ]
    with files.output(folder / "front.md") as file:
        file.write(table(points, before).to_markdown().encode() + b"\n")
    with files.output(folder / "front.svg") as file:
        file.write(plot(points, ask.model.label).encode())
    return points


def candidates(ask: Evaluator, tried: Sequence[Tried], best: Tried) -> list[Tried]:
    """Recipes from the best one on, finer and coarser: none is bigger and worse than another.

    Args:
        ask: Evaluates the recipes.
        tried: What a search has tried already.
        best: What it found.
    """
    found = list(tried)
    if best.spend is not None:
        for number, share in enumerate(_SPENDS):
            ask.settings.progress("trying what each byte costs", number, len(_SPENDS))
            if share != 1 and (one := ask.again(best, best.spend * share, 1)) is not None:
                one.result = None
                found.append(one)
    return best_of_each_size(found)


def best_of_each_size(tried: Sequence[Tried]) -> list[Tried]:
    """Those of which no smaller one loses less, from the largest to the smallest."""
    front: list[Tried] = []
    for one in sorted(tried, key=lambda one: (one.nbytes, one.error)):
        if not math.isfinite(one.error) or (front and one.error >= front[-1].error):
            continue
        if front and _LEAST_STEP * one.nbytes < front[-1].nbytes:
            front[-1] = one
        else:
            front.append(one)
    return front[::-1]


def table(points: Sequence[Point], before: int) -> Table:
    """The front, a row for each model.

    Args:
        points: The models.
        before: Bytes of the original.
    """
    found = Table(
        "size against error", ("file", "recipe", "size", "smaller", "error", "budget", "latency")
    )
    for point in points:
        found.add(
            point.path.name, point.name, size(point.nbytes), times(before, point.nbytes),
            f"{point.error:.2g}", f"{100 * point.strain:.0f} %", f"{point.latency:.2f}x",
        )  # fmt: skip
    return found


def plot(points: Sequence[Point], title: str) -> str:
    """Size against error as SVG, the latency as colour: blue is faster than the original."""
    from html import escape

    def place(value: float, low: float, high: float) -> float:
        return (math.log(value) - low) / max(high - low, 1e-9)

    errors = [max(point.error, 1e-6) for point in points]
    left, right = (math.log(end(p.nbytes for p in points)) for end in (min, max))
    low, high = math.log(min(errors)), math.log(max(errors))
    rows = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
        'font-family="system-ui,sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{_MARGIN}" y="24" font-weight="600">{escape(printable(title))}</text>',
        f'<path d="M{_MARGIN} 40V{_HEIGHT - 50}H{_WIDTH - 20}" fill="none" stroke="#999"/>',
        f'<text x="{_WIDTH - 20}" y="{_HEIGHT - 12}" text-anchor="end">bytes</text>',
        '<text x="8" y="36">relative error</text>',
    ]
    path = []
    for point, error in zip(points, errors, strict=True):
        x = _MARGIN + 20 + place(point.nbytes, left, right) * (_WIDTH - _MARGIN - 90)
        y = _HEIGHT - 70 - place(error, low, high) * (_HEIGHT - 130)
        path.append(f"{x:.1f} {y:.1f}")
        rows.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="7" fill="{_colour(point.latency)}">'
            f"<title>{escape(printable(point.name))}: latency {point.latency:.2f}x</title></circle>"
            f'<text x="{x + 10:.1f}" y="{y - 6:.1f}">{size(point.nbytes)}, {error:.2g}</text>'
        )
    rows.insert(6, f'<path d="M{"L".join(path)}" fill="none" stroke="#ccc"/>')
    return "\n".join([*rows, "</svg>\n"])


def _colour(latency: float) -> str:
    """From blue, half the time and less, over grey to red, twice the time."""
    share = min(max(math.log2(max(latency, 1e-3)), -1.0), 1.0)
    hue = 215 if share < 0 else 8
    return f"hsl({hue},{70 * abs(share):.0f}%,50%)"
