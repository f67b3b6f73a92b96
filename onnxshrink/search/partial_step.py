"""A step applied to some of the weights that it would change, and what that does to the outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from onnxshrink.contract import Judge, Settings
from onnxshrink.errors import RecipeError
from onnxshrink.pipeline import Context, Pass
from onnxshrink.report import Change, Step
from onnxshrink.trials import Answers

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model
    from onnxshrink.kernels.metrics import OutputComparison
    from onnxshrink.runtime.worker import Worker


class PartialStep:
    """A step that can be applied to a part of the weights.

    Args:
        model: The model; it is left as it is.
        step: A pass that selects weights.
        settings: How to check; its inputs calibrate, too.
        worker: Where to run.

    Attributes:
        whole: The model after the whole step.
        changes: The weights that the whole step changes: name -> row of the report.
        original: The answers of the model.
        feeds: The inputs that they answer.

    Raises:
        RecipeError: The step does not select weights.
        ShrinkError: The step cannot work on this model.
    """

    def __init__(self, model: Model, step: Pass, settings: Settings, worker: Worker):
        from onnxshrink.graph import weights
        from onnxshrink.runtime.calibrate import calibrate

        if not hasattr(step, "weights"):
            raise RecipeError(f"{step.name}: does not work weight by weight")
        self.model, self.step, self.settings, self.worker = model, step, settings, worker
        self._judge = Judge(model, settings, worker)
        self.original = (self._judge.original or Answers((), [])).plain
        self.feeds = settings.feeds[: len(self.original.outputs)]
        needs = tuple(step.needs(model))
        self._statistics: Any = {}
        if needs:
            self._statistics = calibrate(
                model, needs, settings.feeds, worker, settings.progress, settings.cache
            )
        self.whole, report = self.apply(step)
        names = {view.name for view in weights.find(model)}
        self.changes = {row.what: row for row in report.changes if row.what in names}

    def only(self, names: Sequence[str]) -> Model:
        """The model with only these weights changed."""
        return self.apply(self._select(only=tuple(names)))[0]

    def without(self, names: Sequence[str]) -> tuple[Pass, Model]:
        """The step that leaves these weights alone, and the model after it."""
        if not names:
            return self.step, self.whole
        kept: tuple[str, ...] = self.step.weights.keep
        step = self._select(keep=(*kept, *names))
        return step, self.apply(step)[0]

    def effect(self, model: Model) -> tuple[tuple[OutputComparison, ...], Answers]:
        """Figures for every output against the original, and the answers.

        Raises:
            ModelError: The model does not run.
        """
        figures, answers = self._judge.effect(model)
        if answers.entering:
            answers = answers.plain
            figures = self.original.figures(answers)
        return figures, answers

    def _select(self, **options: Any) -> Pass:
        selection = replace(self.step.weights, **options)
        step: Pass = replace(self.step, weights=selection)  # type: ignore[call-arg]
        return step

    def apply(self, step: Pass) -> tuple[Model, Step]:
        """The model after a step that needs no other statistics than the whole one, and its row."""
        row = Step(step.name)
        trial = self.model.clone()
        settings = self.settings
        step.apply(
            trial,
            Context(
                row, settings.feeds, settings.generated, statistics=self._statistics,
                original=self.model, worker=self.worker, seed=settings.seed,
            ),
        )  # fmt: skip
        return trial, row


def total(changes: Sequence[Change]) -> tuple[int, int]:
    """Bytes before and after."""
    return sum(row.before for row in changes), sum(row.after for row in changes)
