"""What comes of one recipe: its bytes as they will be stored, what is lost, how long it runs.

Searches ask here and nowhere else, so that what they compare is the same: a recipe is run under the
contract on the inputs that may be seen, and held against those that no step sees.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from onnxshrink.budget import spending
from onnxshrink.contract import Settings
from onnxshrink.errors import ModelError
from onnxshrink.goal import Goal, Promise
from onnxshrink.options import build, dump
from onnxshrink.passes._training import OUT_OF_TIME
from onnxshrink.pipeline import Pass, Result, run
from onnxshrink.recipe import Recipe, Storage
from onnxshrink.report import Attempt
from onnxshrink.search.platform import PLATFORMS, Platform

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model
    from onnxshrink.report import Step
    from onnxshrink.runtime.worker import Worker
    from onnxshrink.trials import Answers

_log = logging.getLogger(__name__)

_TOLD = ("lam", "bits", "dtype", "ratio")  # options that tell one recipe from another
_WHERE = "the search"
TUNING = "tune"
NARROWING = "to-float16"


@dataclass
class Tried:
    """A recipe, and what came of it.

    Attributes:
        recipe: The recipe, cleaning included; it has no options that a step chooses for itself.
        nbytes: Bytes of the file, stored as asked for.
        seen: Share of what may be lost that is lost on inputs that steps have seen, with care; see
            :meth:`Goal.strain`.
        error: Largest relative error of an output; on unseen inputs once they were asked.
        misses: What it does not keep for certain: a metric, or running at all.
        spend: What quantize-rd spends in it; None where it is not part of it.
        promises: What unseen inputs say; empty before they are asked, and where there are none.
        errors: The errors on each of the unseen inputs; see :meth:`Answers.errors`.
        latency: Time of the model over that of the original; None where it was not measured.
        memory: Bytes at its peak, while it was loaded and first run; None likewise.
        moved: Weights that are kept at a higher precision than others, and at which.
        result: The model and its report; None once others are better: it can be made again.
    """

    recipe: Recipe
    nbytes: int
    seen: float
    error: float
    misses: list[str]
    spend: float | None = None
    promises: list[Promise] = field(default_factory=list)
    errors: list[list[float]] = field(default_factory=list)
    latency: float | None = None
    memory: int | None = None
    moved: dict[str, str] = field(default_factory=dict)
    result: Result | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The steps behind the cleaning, with what was chosen."""
        return named(self.recipe.steps)

    @property
    def eased(self) -> float:
        """What tuning has left of the error that it found; 1 without it."""
        rows = [] if self.result is None else self.result.report.steps
        for row in rows:
            if row.name == TUNING:
                return row.chosen["error_after"] / row.chosen["error_before"]
        return 1.0

    @property
    def strain(self) -> float:
        """The share of what may be lost that is lost: unseen inputs decide where they can tell."""
        told = [promise.strain for promise in self.promises]
        if self.misses or (told and all(map(math.isfinite, told))):
            return math.inf if self.misses else max(told)
        return max([self.seen, *filter(math.isfinite, told)])

    @property
    def keeps(self) -> bool:
        """Whether the goal is kept as far as is known."""
        return self.strain <= 1

    def attempt(self, verdict: str, *, taken: bool) -> Attempt:
        """The same for a report.

        Args:
            verdict: What became of it.
            taken: Whether it is the result.
        """
        return Attempt(
            self.name, self.nbytes, self.strain, verdict, self.error, self.latency,
            self.keeps and not self.refused, taken,
        )  # fmt: skip

    @property
    def refused(self) -> bool:
        """Whether unseen inputs say that it is not kept."""
        return any(promise.refuses for promise in self.promises)


class Evaluator:
    """Evaluates recipes on one model.

    Args:
        model: The model; it is left as it is.
        first: Steps that change no answer, in front of every recipe.
        settings: How to check; its ``feeds`` may be seen, its ``unseen`` not.
        goal: What the answers must keep.
        worker: Where to run.
        storage: How the result will be stored.
        platform: Where the result shall run.

    Attributes:
        why_not: Why the last recipe that did not stand did not.
    """

    def __init__(
        self, model: Model, first: Sequence[Pass], settings: Settings, goal: Goal, worker: Worker,
        storage: Storage, platform: Platform = PLATFORMS["cpu"],
    ):  # fmt: skip
        self.model, self.first, self.worker = model, tuple(first), worker
        self.settings = replace(settings, goal=goal, storage=storage)
        self.goal, self.storage, self.platform = goal, storage, platform
        self.why_not = ""
        self._unseen: Answers | None = None
        self._begun: Result | None = None

    def evaluate(
        self, steps: Sequence[Pass], *, looks: int = 0, known: Tried | None = None
    ) -> Tried | None:  # fmt: skip
        """Run a recipe and measure it; None where a step did not stand, or nothing changed.

        Args:
            steps: The steps behind the first ones.
            looks: How many kinds of recipes the unseen inputs have judged, this one included; 0
                leaves them unasked.
            known: What came of a recipe that these steps begin with: they go on from there.
        """
        from onnxshrink.search.stored import stored_bytes

        recipe = Recipe((*self.first, *steps), held_back=bool(self.settings.unseen))
        result = self._run(steps, known)
        rows = result.report.steps[len(self.first) :]
        self.why_not = "nothing was changed"
        if any(row.status == "rolled back" for row in rows):
            self.why_not = next(f"{row.name}: {row.reason}" for row in rows if row.reason)
            _log.info("%s", self.why_not)
            return None
        if steps and not any(row.status == "done" for row in rows):
            return None
        if why_not := self.platform.why_not(result.model, self.model):
            self.why_not = why_not
            _log.info("%s: %s", " + ".join(step.name for step in steps), why_not)
            return None
        chosen, spend = [], None
        for step, row in zip(steps, rows, strict=True):
            if "lam" in row.chosen:
                spend = row.chosen["lam"]
                step = spending(step, spend)
            if step.name in (TUNING, NARROWING) and row.status != "done":
                result.report.steps.remove(row)  # it had nothing to give, and takes time
                continue
            if step.name == TUNING:
                if any(OUT_OF_TIME in note for note in row.warnings):  # no run repeats that
                    _log.info("%s: takes too long", step.name)
                    return None
                step = build(type(step), {**dump(step), "time_limit": None} | _taken(row), _WHERE)
            row.options = dump(step)
            chosen.append(step)
        seen, misses = self._seen(result)
        recipe = replace(recipe, steps=(*self.first, *chosen))
        stay = None if self.settings.keep_names else recipe.selected
        one = Tried(
            recipe, stored_bytes(result.model, self.storage, stay), seen,
            max((row.worst for row in result.effect), default=0.0), misses, spend, result=result,
        )  # fmt: skip
        if looks:
            self.look(one, looks)
        _log.info("%s: %d bytes, %.3f of what may be lost", one.name, one.nbytes, one.strain)
        return one

    def again(self, one: Tried, spend: float, looks: int = 0) -> Tried | None:
        """The same recipe, with another squared error to spend."""
        return self.evaluate([spending(step, spend) for step in self.behind(one)], looks=looks)

    def behind(self, one: Tried) -> tuple[Pass, ...]:
        """The steps of a recipe behind the first ones."""
        return one.recipe.steps[len(self.first) :]

    def result(self, one: Tried) -> Result:
        """The model and the report of a recipe, made again where they were let go."""
        if one.result is None:
            one.result = self._run(self.behind(one))
        return one.result

    def _run(self, steps: Sequence[Pass], known: Tried | None = None) -> Result:
        """Run steps behind the first ones, which are run once for all, as those of ``known``."""
        if self._begun is None:
            self._begun = run(self.first, self.model, self.settings, self.worker)
        begun = self._begun
        if known is not None:
            begun, steps = self.result(known), steps[len(self.behind(known)) :]
        return run(steps, self.model, self.settings, self.worker, begun=begun)

    def look(self, one: Tried, looks: int) -> None:
        """Hold a recipe against the inputs that no step has seen."""
        from onnxshrink.trials import answers

        feeds, folder = self.settings.unseen, self.settings.folder
        if not feeds:
            return
        if self._unseen is None:
            self._unseen = answers(self.model, feeds, self.worker, folder=folder)
        result = self.result(one)
        try:
            after = answers(result.model, feeds, self.worker, folder=folder)
        except ModelError as error:
            one.misses = [f"the result does not run on unseen inputs: {error}"]
            return
        one.error = max((row.worst for row in self._unseen.figures(after)), default=0.0)
        others = result.answers[0].outputs if result.answers else []
        one.errors = self._unseen.errors(after)
        one.promises = self.goal.promises(self._unseen, after, looks, others)
        for promise in one.promises:
            _log.info("%s: %s", one.name, promise)

    def _seen(self, result: Result) -> tuple[float, list[str]]:
        """The share of what may be lost that is lost on the judging half, and what is missed."""
        from onnxshrink.kernels.split import Split

        if result.answers is None or not result.answers[0].outputs:
            return 0.0, []
        before, after = result.answers
        if self.goal.by_metric:
            misses = self.goal.misses(result.effect, before, after)
            return math.inf if misses else self.goal.metric_strain(before, after), misses
        split = Split(len(before.outputs))
        seen, judged = before.part(split.judge), after.part(split.judge)
        others = () if split.by_itself else before.part(split.fit).outputs
        return self.goal.strain(seen, others)(judged.outputs), []


def _taken(row: Step) -> dict[str, int]:
    """The steps that a tuning had planned in the time it had."""
    return {"steps": round(row.chosen["steps"])}


def named(steps: Sequence[Pass]) -> str:
    """Steps in one line: those behind the cleaning, with what was chosen."""
    names = []
    for step in steps:
        told = [f"{value:.2g}" if key == "lam" else str(value)
                for key, value in dump(step).items() if key in _TOLD]  # fmt: skip
        if step.name not in ("clean", "lower-ml"):
            names.append(" ".join([step.name, *told]))
    return " + ".join(names) or "lossless coding"
