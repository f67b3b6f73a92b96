"""The fewest weights that a step must leave alone so that the answers keep a goal."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from onnxshrink.errors import ModelError
from onnxshrink.goal import Goal
from onnxshrink.kernels.bisection import fewest
from onnxshrink.recipe import Recipe
from onnxshrink.search import sensitivity
from onnxshrink.search.ladder import FoundRecipe
from onnxshrink.search.partial_step import PartialStep
from onnxshrink.trials import told

if TYPE_CHECKING:
    from onnxshrink.progress import Progress

_log = logging.getLogger(__name__)

#: Of the weights that are left alone, so many are tried again: the largest, for the bytes.
_GIVEN_BACK = 16
_DOING = "trying which weights to leave alone"


def find_exclusions(parts: PartialStep, goal: Goal, progress: Progress) -> FoundRecipe:
    """Order the weights by the harm that each does alone, and bisect on how many stay in float.

    Then the largest of them are given back to the step, one by one, where the goal stands that.
    At worst all stay: a step that does nothing keeps every goal.

    Args:
        parts: The step and its model.
        goal: What the answers must keep.
        progress: Told of every model that was tried.

    Returns:
        The step with the names of all that it must leave alone.
    """
    search = _ExclusionSearch(parts, goal, progress)
    if search.keeps(()):
        return search.found(())
    order = search.by_harm()
    kept = order[: fewest(len(order), lambda count: search.keeps(order[:count]))]
    largest = sorted(kept[:-1], key=lambda name: -parts.changes[name].before)
    for name in largest[:_GIVEN_BACK]:
        fewer = [other for other in kept if other != name]
        if search.keeps(fewer):
            kept = fewer
    return search.found(kept)


class _ExclusionSearch:
    def __init__(self, parts: PartialStep, goal: Goal, progress: Progress):
        self._parts, self._goal, self._progress = parts, goal, progress
        weights = len(parts.changes)  # each alone, a bisection of all, those that are given back
        self._tried, self._most = 0, 1 + weights + weights.bit_length() + min(weights, _GIVEN_BACK)
        self._worst: dict[frozenset[str], float] = {}

    def _tell(self) -> None:
        self._tried += 1
        self._progress(_DOING, min(self._tried, self._most), self._most)

    def keeps(self, kept: Sequence[str]) -> bool:
        """Whether the goal is kept when the step leaves these weights alone."""
        self._tell()
        try:
            effect, answers = self._parts.effect(self._parts.without(kept)[1])
        except ModelError as failure:
            _log.info("without %s: %s", ", ".join(kept), failure)
            return False
        self._worst[frozenset(kept)] = max((row.worst for row in effect if told(row)), default=0.0)
        return not self._goal.misses(effect, self._parts.original, answers)

    def by_harm(self) -> list[str]:
        """The weights by the error that each causes alone, the most harmful first."""
        harm = {}
        with sensitivity.exchange(self._parts) as measuring:
            for name in self._parts.changes:
                self._tell()
                harm[name] = measuring.figures([name]).relative_error
        return sorted(harm, key=lambda name: -harm[name])

    def found(self, kept: Sequence[str]) -> FoundRecipe:
        """The recipe; what the goal accepts must not be rolled back by a tighter bound."""
        self._progress(_DOING, self._most, self._most)
        step = self._parts.without(kept)[0]
        worst = 1.1 * self._worst.get(frozenset(kept), 0.0)
        if worst > (step.bound if step.max_error is None else step.max_error):
            step = replace(step, max_error=worst)
        return FoundRecipe(Recipe((step,)), dict.fromkeys(kept, "float"), [])
