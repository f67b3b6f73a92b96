"""From near-lossless to smallest: what each byte costs, as models to choose from."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from onnxshrink.page import pareto
from onnxshrink.page.drawing import alone
from onnxshrink.progress import counted
from onnxshrink.report import Attempt, Table, size, times

if TYPE_CHECKING:
    from onnxshrink.search.evaluation import Evaluator, Tried
    from onnxshrink.search.smallest import Found

_SPENDS = (1 / 64, 1 / 16, 1 / 4, 1.0, 4.0, 16.0)  # of what the best one spends
_ROW = re.compile(r"^\| (\d+-[\d.]+x\.onnx) \|", re.MULTILINE)
_LEAST_STEP = 0.98  # of the bytes, between neighbours


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
        taken: Whether it is the one that the search would take.
    """

    path: Path
    name: str
    nbytes: int
    error: float
    strain: float
    latency: float
    taken: bool = False

    @property
    def attempt(self) -> Attempt:
        """The same for a report."""
        return Attempt(
            self.name, self.nbytes, self.strain, f"in the front as {self.path.name}", self.error,
            self.latency, self.strain <= 1, self.taken,
        )  # fmt: skip


def write(ask: Evaluator, found: Found, folder: Path) -> list[Point]:
    """Write a front: its models, ``front.md`` and ``front.svg``.

    Args:
        ask: Evaluates recipes.
        found: What a search has found.
        folder: Where to; it is made where it is not there.

    Raises:
        OutputError: It cannot be written.
    """
    return write_models(ask, candidates(ask, found.tried, found.best), found.best, folder)


def write_models(ask: Evaluator, chosen: Sequence[Tried], best: Tried, folder: Path) -> list[Point]:
    """Write models, ``front.md`` and ``front.svg``.

    Args:
        ask: Makes the models.
        chosen: Their recipes, the largest first.
        best: The one that is taken; its model is kept in memory.
        folder: Where to; it is made where it is not there.

    Raises:
        OutputError: It cannot be written.
    """
    from onnxshrink import files
    from onnxshrink.search import measured

    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    before = ask.model.stored_bytes()
    paths, sizes = [], []
    for number, one in enumerate(chosen):
        paths.append(folder / f"{number}-{times(before, one.nbytes)}.onnx")
        sizes.append(measured.save(ask, one, paths[-1]))
        if one is not best:
            one.result = None
    costs = measured.against_original(ask, paths)
    points = [
        Point(path, one.name, nbytes, one.error, one.strain, cost.ratio, one is best)
        for path, one, nbytes, cost in zip(paths, chosen, sizes, costs, strict=True)
    ]
    for name in _listed(folder) - {path.name for path in paths}:  # of an earlier front
        (folder / name).unlink(missing_ok=True)
    with files.output(folder / "front.md") as file:
        file.write(table(points, before).to_markdown().encode() + b"\n")
    with files.output(folder / "front.svg") as file:
        drawn = pareto.plot([point.attempt for point in points], ask.model.label)
        file.write(alone(drawn).encode())
    return points


def _listed(folder: Path) -> set[str]:
    """The models that an earlier front has left in a folder, by its own table."""
    table = folder / "front.md"
    if not table.is_file():
        return set()
    return {*_ROW.findall(table.read_text(encoding="utf-8", errors="replace"))}


def candidates(ask: Evaluator, tried: Sequence[Tried], best: Tried) -> list[Tried]:
    """Recipes from the best one on, finer and coarser: none is bigger and worse than another.

    Args:
        ask: Evaluates the recipes.
        tried: What a search has tried already.
        best: What it found.
    """
    found = list(tried)
    if best.spend is not None:
        for share in counted(ask.settings.progress, "trying what each byte costs", _SPENDS):
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


def merged(tried: Sequence[Attempt], points: Sequence[Point]) -> list[Attempt]:
    """What a search tried with the models of a front, the largest first.

    Args:
        tried: For a report; those that are in the front get its latency.
        points: The front.
    """
    latency = {point.name: point.latency for point in points}
    known = {one.recipe for one in tried}
    found = [replace(one, latency=latency.get(one.recipe, one.latency)) for one in tried]
    found += [point.attempt for point in points if point.name not in known]
    return sorted(found, key=lambda one: -one.nbytes)
