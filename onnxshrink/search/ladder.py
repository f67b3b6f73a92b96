"""The smallest weight-only recipe whose answers stay inside a budget.

The ladder's rungs: int4 in blocks, int8 per channel, int8 in blocks, float16, float32. Every weight
starts on the lowest, vectors on float16. While the answers are outside the budget, the weights that
hurt most for the bytes they save are moved up a rung; how many is found by bisection. A table that
large numbers are multiplied with may be the only one that does not bear float16: it is found first.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from onnxshrink.contract import Judge
from onnxshrink.errors import ModelError
from onnxshrink.goal import Goal
from onnxshrink.kernels.bisection import fewest
from onnxshrink.options import build
from onnxshrink.pipeline import Context, Pass
from onnxshrink.progress import Progress
from onnxshrink.recipe import Recipe, find_pass
from onnxshrink.report import Step
from onnxshrink.select import SKIP, Select
from onnxshrink.trials import Answers, distance

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.weights.views import WeightView
    from onnxshrink.kernels.metrics import OutputComparison

_log = logging.getLogger(__name__)

Rungs = Sequence[Mapping[str, Any]]

#: Options of quantize-weights for each rung below float.
_RUNGS: tuple[dict[str, Any], ...] = (
    {"dtype": "int4", "block_size": 32},
    {"dtype": "int8", "block_size": 0},
    {"dtype": "int8", "block_size": 32},
)
#: The same in operators that take codes as they are, which keeps them small in memory.
BLOCKS: Rungs = (
    {"dtype": "int4", "block_size": 32, "form": "nbits", "rounding": "hqq"},
    {"dtype": "int8", "block_size": 32, "form": "nbits"},
)
#: Weights whose effect is measured one by one; the rest, being small, move up first.
_MEASURED = 64
#: An order needs fewer inputs than a verdict.
_RANKING_FEEDS = 8
_WHERE = "the search"
_DOING = "trying precisions"
_VERDICTS = 3  # of whole models on each rung, beside those of the bisection


@dataclass(frozen=True)
class FoundRecipe:
    """The outcome of a search.

    Attributes:
        recipe: What to run.
        moved: Weights that could not stay on the lowest rung in use: name -> where they went.
        misses: What the best result still misses; empty when the goal is met.
    """

    recipe: Recipe
    moved: dict[str, str]
    misses: list[str]


def find_recipe(
    model: Model, judge: Judge, goal: Goal, progress: Progress, kinds: Rungs = _RUNGS
) -> FoundRecipe:
    """Search the ladder.

    Args:
        model: The model to shrink, cleaned already.
        judge: Holds the original's answers on real inputs.
        goal: What must be kept.
        progress: Told of every model that was tried.
        kinds: Options of quantize-weights for each rung below float.

    Returns:
        The recipe without the cleaning.
    """
    search = _LadderSearch(model, judge, goal, progress, kinds)
    start = rungs = search.start
    misses = search.misses(rungs)
    if misses:
        rungs = search.vectors_first(rungs)
        misses = search.misses(rungs)
    for rung in range(search.float32):
        if misses and rung in rungs.values():
            rungs, misses = search.move_up(rungs, rung)
    search.end()
    lowest = min(rungs.values(), default=0)
    moved = {
        name: _rung_name(rung, kinds)
        for name, rung in rungs.items()
        if rung > max(lowest, start[name])
    }
    return FoundRecipe(Recipe(search.allowed(rungs)), moved, misses)


def _rung_name(rung: int, kinds: Rungs) -> str:
    if rung >= len(kinds):
        return "float16" if rung == len(kinds) else "float32"
    blocks = kinds[rung]["block_size"]
    return f"{kinds[rung]['dtype']}" + (f" in blocks of {blocks}" if blocks else "")


class _LadderSearch:
    def __init__(self, model: Model, judge: Judge, goal: Goal, progress: Progress, kinds: Rungs):
        from onnxshrink.graph import weights

        self._model, self._judge, self._goal, self._progress = model, judge, goal, progress
        self._tried, self._kinds = 0, kinds
        self._float16 = len(kinds)  # to-float16, which also keeps weights that it would harm
        self.float32 = self._float16 + 1  # as they are
        assert judge.original is not None
        self._before = judge.original
        select: Select = find_pass("quantize-weights")().weights  # type: ignore[attr-defined]
        self._views: dict[str, WeightView] = {
            view.name: view
            for view in weights.find(model)
            if not select.why_not(view, any_role=True) and (view.uses or view.is_vector)
        }
        self.start = {name: 0 if view.uses else self._float16 for name, view in self._views.items()}
        self._worst: dict[tuple[int, ...], float] = {}
        each = min(len(self.start), _MEASURED) + len(self.start).bit_length() + _VERDICTS
        self._most = 2 + (self.float32 + 1) * each

    def end(self) -> None:
        """Tell that it is over."""
        self._progress(_DOING, self._most, self._most)

    def steps(self, rungs: Mapping[str, int]) -> tuple[Pass, ...]:
        """The passes that put every weight on its rung."""
        quantize, narrow = find_pass("quantize-weights"), find_pass("to-float16")
        low = min(rungs.values(), default=self.float32)
        if low == self.float32:
            return ()
        if low == self._float16:
            kept = [name for name, rung in rungs.items() if rung == self.float32]
            return (build(narrow, {"keep": kept}, _WHERE),)
        layers: dict[str, Any] = {}
        for name, rung in rungs.items():
            if rung > max(low, self.start[name]):
                # An override says all that differs from the step's own options.
                layers[name] = SKIP if rung >= self._float16 else self._kinds[rung]
        step = build(quantize, {**self._kinds[low], "layers": layers}, _WHERE)
        floats = [name for name in layers if rungs[name] == self._float16]
        return (step, build(narrow, {"only": floats}, _WHERE)) if floats else (step,)

    def misses(self, rungs: Mapping[str, int]) -> list[str]:
        """What the model on these rungs does not keep."""
        try:
            effect, answers = self._effect(self.steps(rungs))
        except ModelError as failure:  # for instance an operator set that ONNX Runtime gets wrong
            _log.info("%s", failure)
            self._worst[tuple(rungs.values())] = 0
            return [f"the result does not run: {failure}"]
        self._worst[tuple(rungs.values())] = max((row.worst for row in effect), default=0)
        return self._goal.misses(effect, self._before, answers)

    def allowed(self, rungs: Mapping[str, int]) -> tuple[Pass, ...]:
        """The passes for rungs that were tried, none with a bound below what was measured then.

        What the goal accepts must not be rolled back because a pass expects to do better. Only
        float16 keeps its own bound: what is beyond it is a weight that needs its range.
        """
        worst = 1.1 * self._worst[tuple(rungs.values())]
        return tuple(
            step
            if worst <= step.bound or step.name == "to-float16"
            else replace(step, max_error=worst)
            for step in self.steps(rungs)
        )

    def _effect(
        self, steps: Sequence[Pass], feeds: int | None = None
    ) -> tuple[tuple[OutputComparison, ...], Answers]:
        trial = self._model.clone()
        for step in steps:
            step.apply(trial, Context(Step(step.name)))
        self._tried += 1
        self._progress(_DOING, min(self._tried, self._most), self._most)
        return self._judge.effect(trial, feeds)

    def vectors_first(self, rungs: dict[str, int]) -> dict[str, int]:
        """The same, but for vectors that float16 loses too much of, even beside exact weights.

        Else every weight would be moved up for their sake, and in vain.
        """
        exact = {
            name: self.float32 if rung < self._float16 else rung for name, rung in rungs.items()
        }
        if not self.misses(exact):
            return rungs
        moved, _ = self.move_up(exact, self._float16)
        return {
            name: moved[name] if rung == self._float16 else rung for name, rung in rungs.items()
        }

    def move_up(self, rungs: dict[str, int], rung: int) -> tuple[dict[str, int], list[str]]:
        """Move the fewest weights from one rung to the next, or all when nothing helps.

        Where the next rung is not enough for some, those that move are found as if they moved to
        the top: the others can stay, and it is for the next rung to tell the movers apart.

        Returns:
            The rungs, and what they may still miss.
        """
        names = [name for name in rungs if rungs[name] == rung]
        top, target = self.float32, rung + 1
        misses = self.misses({**rungs, **dict.fromkeys(names, target)})
        if misses:
            if target == top or self.misses({**rungs, **dict.fromkeys(names, top)}):
                return {**rungs, **dict.fromkeys(names, target)}, misses
            target = top
        order = self._by_harm(names, rung)

        def moved_up(count: int, to: int) -> dict[str, int]:
            return {**rungs, **dict.fromkeys(order[:count], to)}

        count = fewest(len(order), lambda count: not self.misses(moved_up(count, target)))
        moved = moved_up(count, rung + 1)
        return moved, self.misses(moved) if misses else []

    def _by_harm(self, names: Sequence[str], rung: int) -> list[str]:
        """Weights by the output error that each alone causes for every byte that it saves."""
        step_type, base = find_pass("to-float16"), {}
        if rung < self._float16:
            step_type = find_pass("quantize-weights")
            base = {**self._kinds[rung], "vectors": "keep"}
        large = sorted(names, key=lambda name: -self._views[name].nbytes)[:_MEASURED]
        harm: dict[str, float] = {}
        for name in large:
            step = build(step_type, {**base, "only": [name]}, _WHERE)
            try:
                effect, _ = self._effect([step], _RANKING_FEEDS)
                error = distance(effect) ** 2
            except ModelError as failure:
                _log.info("%s cannot be quantized: %s", name, failure)
                error = float("inf")
            harm[name] = error / self._views[name].nbytes
        small = [name for name in names if name not in harm]
        return small + sorted(harm, key=lambda name: -harm[name])
