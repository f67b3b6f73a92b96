"""The work of tune: losses of the outputs, training, and what it was worth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from onnxshrink.passes._training import Outcome, Schedule, Student, Training, stored
from onnxshrink.trials import Answers, Reference, answers

if TYPE_CHECKING:
    import numpy as np

    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.layers.parameters import Parameter
    from onnxshrink.pipeline import Context

__all__ = ["Schedule", "tune"]

_ALIKE = 0.1  # errors of the model as it is tuned and as it will run
_SAME = 1e-5  # an error below this is rounding


def tune(
    model: Model, original: Model, parameters: Sequence[Parameter], schedule: Schedule,
    ctx: Context,
) -> None:  # fmt: skip
    """Tune numbers of a model to the outputs of another one.

    Args:
        model: The model, whose constants are changed if that helps.
        original: What it is held against.
        parameters: The numbers that may change.
        schedule: How long, how fast.
        ctx: Inputs, where to run models, and where to report.
    """
    from onnxshrink.graph.gradients import Squares

    split, worker = ctx.split, ctx.worker
    judging = split.of(ctx.feeds, split.judge)
    wanted = answers(original, ctx.feeds, worker)
    weights = _weights(wanted.part(split.judge))
    if not weights:
        ctx.skip("model", "has no output of floating-point numbers that are not all zero")
        return
    reference = Reference(original, judging, worker)
    before = reference.distance(model)
    if before < _SAME:
        ctx.skip("model", "answers as the original does")
        return
    student = Student(model, dict.fromkeys(weights, Squares()), parameters, worker)
    owners = {each.name: each.owner or each.name for each in parameters}
    for name, reason in student.unreached.items():
        ctx.skip(owners[name], reason)
    if not student.parameters:
        return
    try:
        training = Training(student, ctx.feeds, _targets(wanted, weights), weights, ctx.progress,
                            ctx.step.name)  # fmt: skip
        outcome = training.run(schedule, split.fit, split.judge)
    finally:
        student.close()
    if not math.isclose(math.sqrt(outcome.before), before, rel_tol=_ALIKE):
        reason = "ONNX Runtime answers otherwise when the numbers can be exchanged: the error is "
        ctx.skip("model", f"{reason}{math.sqrt(outcome.before):.3g} then, not {before:.3g}")
        return
    for note in outcome.notes:
        ctx.warn(note)
    trial = model.clone()
    put(trial, student.parameters, outcome)
    after = reference.distance(trial)
    if not after < before:
        ctx.skip("model", f"would take the error of the outputs from {before:.3g} to {after:.3g}")
        return
    model.adopt(trial)
    ctx.step.chosen |= {"steps": outcome.steps, "error_before": before, "error_after": after}
    report(student.parameters, outcome, ctx)


def _weights(wanted: Answers) -> dict[str, float]:
    """Of each output that has a relative error what makes squares of differences its square."""
    import numpy as np

    found = {}
    for place, name in enumerate(wanted.names):
        arrays = [outputs[place] for outputs in wanted.outputs]
        if all(np.issubdtype(array.dtype, np.floating) for array in arrays):
            power = float(np.mean([np.sum(np.square(array, dtype=np.float64)) for array in arrays]))
            if power > 0 and np.isfinite(power):
                found[name] = 1 / power
    return found


def _targets(wanted: Answers, weights: Mapping[str, float]) -> list[dict[str, np.ndarray]]:
    return [
        {name: array for name, array in zip(wanted.names, outputs, strict=True) if name in weights}
        for outputs in wanted.outputs
    ]


def put(model: Model, parameters: Sequence[Parameter], outcome: Outcome) -> None:
    """Give the constants of a model the numbers that were found."""
    from onnxshrink.graph import surgery
    from onnxshrink.graph.analysis.operands import constants_of

    found = stored(parameters, outcome.numbers)
    for value, _ in list(constants_of(model.ir.graph)):
        if (numbers := found.get(value.name or "")) is not None:
            surgery.set_constant(model, value, numbers)


def report(parameters: Sequence[Parameter], outcome: Outcome, ctx: Context) -> None:
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
