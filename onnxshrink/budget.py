"""A result held to what its answers must keep, on inputs that no step has seen."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from onnxshrink.errors import BudgetMissed, ModelError, ShrinkError
from onnxshrink.options import build, dump
from onnxshrink.pipeline import Pass, Result, run
from onnxshrink.report import InputError, Report, size

if TYPE_CHECKING:
    from onnxshrink.contract import Settings
    from onnxshrink.goal import Goal, Promise
    from onnxshrink.graph.file.model import Model
    from onnxshrink.runtime.worker import Worker

_log = logging.getLogger(__name__)

#: By which a loss grows with the squared error that is spent, before two of them tell.
POWER = 0.5
_LEAST = 4  # inputs of which one can be held back
_AIM = 0.96  # of what may be lost
_LEAP = 8.0  # the factor by which what is spent changes at most
_SURELY = 0.7  # times what was spent, where that was too much
_HELPED = 0.9  # times what was lost before: else it is not codes that lose it
_TURNS = 3  # of steps that choose what they spend
_DECIDES = (
    "the model rounds or picks, and goes on from there: rare inputs on which that falls otherwise, "
    "and that were not among these, are not promised"
)
_GOALS = ("lam", "bits_per_weight", "target_ratio", "min_fidelity")  # options that choose for them


def kept(
    steps: Sequence[Pass], model: Model, settings: Settings, goal: Goal | None, worker: Worker
) -> tuple[Result, Sequence[Pass], list[str]]:
    """The result of some steps, held to a goal.

    A step that chooses what to spend has judged it on inputs of its own. Where unseen inputs refuse
    the result all the same, such steps spend less, a few times; the interval of what is promised
    then allows for as often as these inputs were asked.

    Args:
        steps: What to run.
        model: What to run them on.
        settings: How to check them; its ``unseen`` are what no step has seen.
        goal: What the answers must keep; None leaves the result to the contracts of its steps.
        worker: Where to run models.

    Returns:
        The result, steps that make the same of the same inputs without any goal, and what it misses
        beside the goal.
    """
    result, missed = best(steps, model, settings, worker)
    chosen = [None] * len(steps) if missed else spent(steps, result.report)
    first = _told(steps, chosen)
    if goal is None:
        return result, first, missed
    blind = not any(sees(step, model) for step in steps)
    strain = judge(result, model, settings, goal, worker, blind=blind)
    spend, before = 1.0, math.inf
    for looks in range(2, _TURNS + 2):
        if strain <= 1 or not any(chosen) or strain > _HELPED * before:
            break
        before, spend = strain, spend * cutback(strain)
        _log.info("unseen inputs refuse it: %.2g times what was spent", spend)
        finer = _told(steps, [None if lam is None else spend * lam for lam in chosen])
        tried = run(finer, model, settings, worker)
        strain = judge(tried, model, settings, goal, worker, blind=blind, looks=looks)
        if not tried.report.missed:
            return tried, finer, missed
    return result, first, missed


def spent(steps: Sequence[Pass], report: Report) -> list[float | None]:
    """What each step has chosen to spend; None of those that were told, or do not choose."""
    return [row.chosen.get("lam") if not any(dump(step).get(name) is not None for name in _GOALS)
            else None for step, row in zip(steps, report.steps, strict=True)]  # fmt: skip


def spending(step: Pass, lam: float) -> Pass:
    """A step with another squared error of the outputs to spend; other steps as they are."""
    if not hasattr(step, "lam"):
        return step
    return build(type(step), {**dump(step), "lam": lam}, step.name)


def _told(steps: Sequence[Pass], spends: Sequence[float | None]) -> list[Pass]:
    """Steps that are told what to spend, where that is not None."""
    return [step if lam is None else spending(step, lam)
            for step, lam in zip(steps, spends, strict=True)]  # fmt: skip


def factor(strain: float, power: float = POWER) -> float:
    """By how much more to spend, where a share of what may be lost is lost.

    Args:
        strain: The share; above 1 too much is lost, and less is to be spent.
        power: By which a loss grows with what is spent.
    """
    if not strain:
        return _LEAP
    if math.isinf(strain):
        return 1 / _LEAP
    return min(max(math.exp(math.log(_AIM / strain) / power), 1 / _LEAP), _LEAP)


def cutback(strain: float) -> float:
    """What to multiply with what was spent, where that was refused: surely less."""
    return min(factor(strain), _SURELY)


def judge(
    result: Result, model: Model, settings: Settings, goal: Goal, worker: Worker, *, blind: bool,
    looks: int = 1,
) -> float:  # fmt: skip
    """Put into the report what a result promises, and what it misses.

    Nothing is judged on inputs that are made up, or without a difference to see.

    Args:
        result: What came of some steps.
        model: The model before them.
        settings: How they were checked; its ``unseen`` are what no step has seen.
        goal: What the answers must keep.
        worker: Where to run models.
        blind: Whether no step has asked for inputs, so that all are unseen.
        looks: How many results these inputs have judged, this one included.

    Returns:
        How many times what may be lost is lost on unseen inputs; 0 where none tell.
    """
    from onnxshrink.trials import answers

    report = result.report
    if settings.generated or report.unproven or not result.answers or not result.answers[0].outputs:
        return 0.0
    seen, after = result.answers
    if goal.by_metric:
        tell(report, result, goal, [], settings)
        report.missed += goal.misses(result.effect, seen, after)
        return 0.0
    before, others = seen, []
    if not settings.unseen and not blind:
        tell(report, result, goal, [], settings)
        if (strain := goal.strain(seen)(after.outputs)) > 1:
            report.missed.append(f"{strain:.3g} times what may be lost is lost")
        return 0.0
    if settings.unseen:
        before = answers(model, settings.unseen, worker, folder=settings.folder)
        others = seen.outputs
        try:
            after = answers(result.model, settings.unseen, worker, folder=settings.folder)
        except ModelError as error:
            report.missed.append(f"the result does not run on unseen inputs: {error}")
            return 0.0
    promises = goal.promises(before, after, looks, others)
    tell(report, result, goal, promises, settings)
    if settings.unseen:
        report.unseen = named(before.errors(after), settings)
    return max((promise.strain for promise in promises if promise.refuses), default=0.0)


def tell(
    report: Report, result: Result, goal: Goal, promises: Sequence[Promise], settings: Settings
) -> None:
    """Put into the report what outputs are held to, and what is promised of them, or not."""
    from onnxshrink.graph.analysis.ranked import deciding

    if result.answers is not None:
        kinds = goal.kinds(result.answers[0])
        report.measures = {name: f"{known.kind}: {known.why}" for name, known in kinds.items()}
    report.promises = [str(promise) for promise in promises]
    report.missed += [str(promise) for promise in promises if promise.refuses]
    if settings.unseen or promises:
        if result.report.changed and deciding(result.model):
            report.warnings.append(_DECIDES)
        return
    why = f"{len(settings.feeds)} inputs are too few to hold any back; give at least {_LEAST}"
    if goal.metric is not None:
        why = "--metric needs the answers to all inputs"
    report.warnings.append(f"nothing is promised for unseen inputs: {why}")


def named(errors: Sequence[Sequence[float]], settings: Settings) -> list[InputError]:
    """The errors on unseen inputs, the largest first, with where these were found.

    Args:
        errors: For each input and each of its rows.
        settings: Knows the places.
    """
    found = []
    for number, rows in enumerate(errors):
        places = settings.unseen_places
        place = places[number] if number < len(places) else f"input {number}"
        for row, error in enumerate(rows):
            found.append(InputError(f"{place}, row {row}" if len(rows) > 1 else place, error))
    return sorted(found, key=lambda one: -one.error)


def blind(goal: Goal, model: Model, settings: Settings, worker: Worker) -> str:
    """Why a metric cannot judge a model; empty where it may.

    It must rate the answers of the original higher than the same answers dealt to other inputs.
    """
    from onnxshrink.trials import answers

    if goal.metric is None or len(settings.feeds) < 2:
        return ""
    outputs = answers(model, settings.feeds, worker, folder=settings.folder).outputs
    dealt = [*outputs[1:], outputs[0]]
    if any(
        x.shape != y.shape
        for a, b in zip(outputs, dealt, strict=True)
        for x, y in zip(a, b, strict=True)
    ):
        return ""
    own, others = goal.metric(outputs), goal.metric(dealt)
    if own > others:
        return ""
    return (
        f"the metric rates answers to other inputs as high ({others:.4g}) as the model's own "
        f"({own:.4g}): it cannot tell right from wrong, so outputs are held to what they are"
    )


def sees(step: Pass, model: Model) -> bool:
    """Whether a step asks for inputs: what comes of it must be judged by others."""
    try:
        return step.runs_models or any(True for _ in step.needs(model))
    except ShrinkError:  # the run will say why it cannot stand
        return True


def best(
    steps: Sequence[Pass], model: Model, settings: Settings, worker: Worker
) -> tuple[Result, list[str]]:
    """The result of some steps, and what it misses.

    Of a single step that cannot be as small as it is asked to be, it is what it finds by itself.
    """
    result = run(steps, model, settings, worker)
    if len(steps) != 1:
        return result, []
    only, row = steps[-1], result.report.steps[-1]
    wanted = dump(only).get("target_ratio")
    if wanted is None or row.status != "rolled back":
        return result, []
    less = build(type(only), {**dump(only), "target_ratio": None}, only.name)
    return run([less], model, settings, worker), [f"--target-ratio {wanted:g}: {row.reason}"]


def held(
    report: Report, out: str | os.PathLike[str], max_size: int | None, target_ratio: float | None,
    put_back: Callable[[], bool] | None = None,
) -> Report:  # fmt: skip
    """The report of a result that is written.

    Args:
        report: Of the run.
        out: Where the result is.
        max_size: Bytes that it must not exceed.
        target_ratio: How many times smaller it must be.
        put_back: Puts what stood there back, where the result misses something.

    Raises:
        BudgetMissed: It misses something.
    """
    report.missed += _too_big(report, max_size, target_ratio)
    if not report.missed:
        return report
    report.written = put_back is None or not put_back()
    done = f"written, {report.ratio:.2f}x smaller" if report.written else "left as it was"
    way_out = "" if report.written else "; --keep-best writes the best result over it"
    missed = "; ".join(report.missed)
    raise BudgetMissed(f"{out}: {done}, but the goal was missed: {missed}{way_out}", report)


def sizes_asked(
    max_size: int | None, target_ratio: float | None, time_limit: float | None = None
) -> dict[str, Any]:
    """What is asked for beside what the answers must keep, for the report: by option."""
    values = {
        "max_size": None if max_size is None else size(max_size), "target_ratio": target_ratio,
        "time_limit": None if time_limit is None else f"{time_limit:g} s",
    }  # fmt: skip
    return {name: value for name, value in values.items() if value is not None}


def _too_big(report: Report, max_size: int | None, target_ratio: float | None) -> list[str]:
    lines = []
    if max_size is not None and not report.bytes_after <= max_size:
        lines.append(f"{size(report.bytes_after)} is more than {size(max_size)}")
    if target_ratio is not None and not report.ratio >= target_ratio:
        lines.append(f"{report.ratio:.2f}x is less than {target_ratio:g}x")
    return lines
