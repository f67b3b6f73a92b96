"""What tune and distill share: which numbers move, on which inputs, and what was won."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from onnxshrink.errors import DataError
from onnxshrink.options import option
from onnxshrink.passes._training import Objective, Outcome, Schedule, Student, Training, stored
from onnxshrink.pipeline import Context, Pass
from onnxshrink.select import check_patterns, left_out
from onnxshrink.trials import Answers, answers

if TYPE_CHECKING:
    import numpy as np

    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.gradients import Aim
    from onnxshrink.graph.layers.parameters import Kind, Parameter
    from onnxshrink.kernels.split import Split

_ALIKE = 0.2  # losses of the model as it is tuned and as it will run
_SAME = 1e-10  # a loss below this is rounding


@dataclass(frozen=True, kw_only=True)
class Tuning(Pass, ABC):
    """A pass that moves numbers against gradients. Those that inherit say towards what."""

    runs_models: ClassVar[bool] = True

    steps: int = option(200, help="steps at most", ge=1)
    rate: float | None = option(
        None,
        help="what the first steps change, in share of the numbers' size; unset: a twentieth of "
        "the outputs' relative error",
        ge=1e-6,
        le=1,
    )
    batch: int = option(16, help="inputs of a step; of a stack of inputs every one counts", ge=1)
    time_limit: float | None = option(
        None, help="seconds that it may take: as many steps as fit into them", ge=0
    )
    reference: str = option(
        "", help="file of the original model; empty: the model before the first step"
    )
    only: tuple[str, ...] = option(
        (), help="move numbers of these only: operator types, names of weights, or patterns"
    )
    keep: tuple[str, ...] = option((), help="leave the numbers of these alone")

    @property
    def bound(self) -> float:
        """Any: outputs may go as far as they had strayed. They are held to the original's here."""
        return math.inf

    @abstractmethod
    def kinds(self) -> Sequence[Kind]:
        """What may change."""

    def examples(self, model: Model, ctx: Context) -> Context:
        """The context with the inputs to train on: those of the run, unless it says."""
        return ctx

    def parts(self, split: Split) -> tuple[Sequence[int], Sequence[int]]:
        """Numbers of the inputs to fit to, and of those that judge."""
        return split.fit, split.judge

    @abstractmethod
    def goal(self, model: Model, original: Model, ctx: Context) -> Objective:
        """What the model is held to.

        Args:
            model: The model.
            original: The one that it is to be like.
            ctx: Inputs, and where to run models.
        """

    def apply(self, model: Model, ctx: Context) -> None:
        """Train, and keep what is closer to its goal on the inputs that judge."""
        from onnxshrink.graph.analysis import noise
        from onnxshrink.graph.forms import coded_read
        from onnxshrink.graph.layers import parameters

        start = time.monotonic()
        original = coded_read.load(self.reference)[0] if self.reference else ctx.original
        if original is None:
            raise DataError(f"{self.name} needs the original model: name it with 'reference'")
        found = list(parameters.find(model))
        names = [each.names for each in found]
        check_patterns((*self.only, *self.keep), names, self.name, "constant")
        chosen = []
        for parameter in found:
            if reason := self._why_not(parameter):
                ctx.skip(parameter.owner or parameter.name, reason)
            else:
                chosen.append(parameter)
        if not chosen:
            return
        if noise.is_random(model):
            ctx.skip("model", "draws random numbers: no two runs of it can be compared")
            return
        ctx = self.examples(model, ctx)
        ctx.check_halves()
        fit, judge = self.parts(ctx.split)
        goal = self.goal(model, original, ctx)
        if not goal.aims:
            ctx.skip("model", "has no output of floating-point numbers that are not all zero")
            return
        end = None if self.time_limit is None else start + self.time_limit
        schedule = Schedule(self.rate, self.steps, self.batch, end, ctx.seed)
        train(model, goal, chosen, schedule, fit, judge, ctx)

    def _why_not(self, parameter: Parameter) -> str:
        if parameter.kind not in self.kinds():
            return f"{parameter.kind} are not among what may change"
        return left_out(self.only, self.keep, parameter.names) or parameter.fixed


def train(
    model: Model, goal: Objective, parameters: Sequence[Parameter], schedule: Schedule,
    fit: Sequence[int], judge: Sequence[int], ctx: Context,
) -> None:  # fmt: skip
    """Move numbers of a model towards a goal, where others inputs than those of the fit agree.

    Args:
        model: The model, whose constants are changed if that helps.
        goal: What it is held to.
        parameters: The numbers that may change.
        schedule: How long, how fast.
        fit: Numbers of the inputs to fit to.
        judge: Of those that judge.
        ctx: Inputs, where to run models, and where to report.
    """
    before = loss(model, goal, judge, ctx)
    if before < _SAME:
        ctx.skip("model", "answers as it should")
        return
    student = Student(model, goal.aims, parameters, ctx.worker)
    owners = {each.name: each.owner or each.name for each in parameters}
    for name, reason in student.unreached.items():
        ctx.skip(owners[name], reason)
    try:
        if not student.parameters:
            return
        training = Training(student, ctx.feeds, goal, ctx.progress, ctx.step.name)
        outcome = training.run(schedule, fit, judge)
    finally:
        student.close()
    if not math.isclose(outcome.before, before, rel_tol=_ALIKE):
        reason = "ONNX Runtime answers otherwise when the numbers can be exchanged: the loss is "
        ctx.skip("model", f"{reason}{outcome.before:.3g} then, not {before:.3g}")
        return
    for note in outcome.notes:
        ctx.warn(note)
    trial = model.clone()
    _put(trial, student.parameters, outcome)
    after = loss(trial, goal, judge, ctx)
    errors = {"error_before": math.sqrt(before), "error_after": math.sqrt(max(after, 0.0))}
    if not after < before:
        if outcome.after < outcome.before:
            moved = f"from {errors['error_before']:.3g} to {errors['error_after']:.3g}"
            reason = f"would take the error on inputs that were not fitted to {moved}"
        else:
            error = errors["error_before"]
            reason = (
                f"no step brought the error on inputs that were not fitted to below {error:.3g}"
            )
        ctx.skip("model", reason)
        return
    model.adopt(trial)
    ctx.step.chosen |= {"steps": outcome.planned, "taken": outcome.steps, **errors}
    _report(student.parameters, outcome, ctx)


def loss(model: Model, goal: Objective, inputs: Sequence[int], ctx: Context) -> float:
    """The weighted loss of a model as it runs, for some of the inputs, in share of all."""
    from onnxshrink.graph.gradients import with_losses

    made = with_losses(model, goal.aims)
    feeds = [
        {**ctx.feeds[number], **{made.targets[n]: t for n, t in goal.targets[number].items()}}
        for number in inputs
    ]
    found = answers(made.model, feeds, ctx.worker)
    called = {output: name for name, output in made.losses.items()}
    weights = [goal.weights[called[output]] for output in found.names]
    total = math.fsum(
        weight * float(value)
        for outputs in found.outputs
        for weight, value in zip(weights, outputs, strict=True)
    )
    return total / len(inputs)


def _put(model: Model, parameters: Sequence[Parameter], outcome: Outcome) -> None:
    """Give the constants of a model the numbers that were found."""
    from onnxshrink.graph import surgery
    from onnxshrink.graph.analysis.operands import constants_of

    found = stored(parameters, outcome.numbers)
    for value, _ in list(constants_of(model.ir.graph)):
        if (numbers := found.get(value.name or "")) is not None:
            surgery.set_constant(model, value, numbers)


def _report(parameters: Sequence[Parameter], outcome: Outcome, ctx: Context) -> None:
    """A row for every parameter that changed."""
    import numpy as np

    for each in parameters:
        old, new = each.numbers(), outcome.numbers[each.name]
        size = float(np.sqrt(np.mean(np.square(old)))) or 1.0
        moved = float(np.sqrt(np.mean(np.square(new - old)))) / size
        if moved:
            ctx.changed(
                each.owner or each.name, each.tensor.nbytes, before=each.tensor.nbytes,
                kind=each.node.op_type, note=f"{each.kind} tuned", moved=moved,
            )  # fmt: skip


def wanted(
    model: Model, original: Model, ctx: Context
) -> tuple[Answers, dict[str, Sequence[np.ndarray]]]:
    """What the original answers, and that by value of the model that should be so.

    Values that enter a tail that ranks stand for what is behind it: that has no gradients, and
    other shapes with every change.

    Args:
        model: The model that is trained.
        original: The one that it is to be like.
        ctx: Inputs, and where to run.
    """
    from onnxshrink.graph.analysis.ranked import deciding, entering

    found = answers(original, ctx.feeds, ctx.worker)
    values = dict(zip(found.names, zip(*found.outputs, strict=True), strict=True))
    if found.entering:
        ours, behind = entering(model).values, entering(original).outputs
        inner = [values.pop(name) for name in found.names[-found.entering :]]
        values = {name: arrays for name, arrays in values.items() if name not in behind}
        if len(ours) == len(inner):
            values |= zip(ours, inner, strict=True)
    if deciding(original):
        own = answers(model, ctx.feeds, ctx.worker)
        columns = zip(*own.outputs, strict=True)
        for name, column in zip(own.names, columns, strict=True):
            if name in values and any(
                a.shape != b.shape for a, b in zip(column, values[name], strict=True)
            ):
                ctx.skip(name, "has another shape than the original's: a decision fell otherwise")
                del values[name]
    return found, values


def squares(
    values: Mapping[str, Sequence[np.ndarray]], judge: Sequence[int]
) -> tuple[dict[str, Aim], dict[str, float]]:
    """Relative errors of values as a loss: what has none is left out.

    Args:
        values: By name what is wanted of each value, for every input.
        judge: Numbers of the inputs whose errors they are relative to.

    Returns:
        The losses and their weights.
    """
    import numpy as np

    from onnxshrink.graph.gradients import Aim, Squares

    weights = {}
    for name, arrays in values.items():
        if all(np.issubdtype(array.dtype, np.floating) for array in arrays):
            sums = [np.sum(np.square(arrays[at], dtype=np.float64)) for at in judge]
            if 0 < (power := float(np.mean(sums))) < math.inf:
                weights[name] = 1 / power
    return {name: Aim(name, Squares()) for name in weights}, weights
