"""A step that is too much for the outputs stands on as many of its weights as they tolerate.

What it is too much for takes a finer form, where the step has one, before it is left alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from onnxshrink.errors import ShrinkError
from onnxshrink.kernels.bisection import most_tolerated
from onnxshrink.options import dump
from onnxshrink.report import Step
from onnxshrink.select import KEPT, SKIP, Select

if TYPE_CHECKING:
    from onnxshrink.contract import Judge
    from onnxshrink.graph.file.model import Model
    from onnxshrink.pipeline import Context

_TRIES = 16  # models that are tried
_FEWER = 6  # tries: both halves, and all quarters
_FINER = 6  # models that are tried with each finer form
_NO_LESS = 0.5  # of the error of all weights: what a quarter of them makes where each adds its own
_WHY = "the outputs tolerate a relative error of {:g}; --max-error allows more"
_SLOW = "what it would do there is not faster on this machine"


def retreat(
    pass_: Any, model: Model, ctx: Context, judge: Judge, bound: float, *, saves: bool = False
) -> Model | None:
    """The model after a refused step on fewer weights; the step's report becomes that of it.

    Args:
        pass_: The pass, with a field ``weights`` of type ``Select``, and perhaps ``finer``: options
            that differ, each row finer than the one before, for weights that need it.
        model: The model before the step.
        ctx: What the step saw; its report says what was changed in vain.
        judge: Holds the answers of the step before.
        bound: Largest relative error of an output.
        saves: Whether it is there to save bytes, so that the last few of them are not worth a try.

    Returns:
        None when the outputs tolerate none of the weights.
    """
    step, selection = ctx.step, pass_.weights
    savings = _savings(step, model)
    order, faster = list(savings), bool(getattr(pass_, "faster_only", False))
    last: tuple[Model, Step] | None = None
    stands: dict[str, Mapping[str, Any]] = {}  # by weight, the options that differ
    reasons: dict[str, str] = {}
    whole = math.inf if step.max_error is None else step.max_error
    errors: list[float] = []

    def hopeless() -> bool:
        """Whether it makes no difference how many weights are changed: outputs are chaotic."""
        tried = last is None and len(errors) >= _FEWER
        return tried and min(errors) >= _NO_LESS * whole

    def tolerated(chosen: Sequence[str], form: Mapping[str, Any] = {}) -> bool:
        nonlocal last
        fewer = _without(pass_, order, {**stands, **dict.fromkeys(chosen, form)})
        trial = model.clone()
        row = Step(step.name, dump(fewer), bytes_before=step.bytes_before)
        try:
            fewer.apply(trial, replace(ctx, step=row))
        except ShrinkError:
            return False
        if not row.changes:
            return False
        if judge.verify(trial, bound):
            errors.append(judge.worst)
            return False
        if faster:
            latency = judge.latency(last[0] if last else model, trial)
            if latency is not None and not latency.median < 1:
                reasons.update(dict.fromkeys(chosen, _SLOW))
                return False
        last = trial, row
        return True

    def tell(tries: int) -> None:
        ctx.progress("trying fewer weights", tries, _TRIES)

    def worth(left: Sequence[str]) -> bool:
        if hopeless():
            return False
        return not saves or sum(savings[name] for name in left) >= judge.least_saving(step)

    if faster and len(order) == 1:  # it is not too much: only its time is to be seen
        taken = order if tolerated(order) else []
    else:
        taken = most_tolerated(order, tolerated, _TRIES, tell, worth)
        tell(_TRIES)
    stands |= {name: {} for name in taken}
    for form in () if faster else getattr(pass_, "finer", ()):
        left = [name for name in order if name not in stands]
        every = partial(tolerated, form=form)
        if left and worth(left) and every(left):
            taken = left
        else:
            taken = most_tolerated(left, every, _FINER, worth=worth)
        stands |= dict.fromkeys(taken, form)
    if last is None:
        return None
    trial, row = last  # of all that were taken
    if judge.refusal(trial, bound, pass_.may_grow or row.may_grow, row, saves=saves):
        return None
    gone = set(order) - set(stands)
    _explain(row, gone, selection, reasons, bound)
    if finer := sum(bool(form) for form in stands.values()):
        row.warnings.append(
            f"{finer} of {len(order)} weights are stored finer than asked: {_WHY.format(bound)}"
        )
    slow = sum(reasons.get(name) == _SLOW for name in gone)
    if slow:
        row.warnings.append(f"{slow} of {len(order)} weights are left alone: {_SLOW}")
    if len(gone) > slow:
        row.warnings.append(
            f"{len(gone) - slow} of {len(order)} weights are left alone: {_WHY.format(bound)}"
        )
    vars(step).update(vars(row))
    return trial


def _savings(step: Step, model: Model) -> dict[str, int]:
    """The weights that a step made smaller, by name, and the bytes: those that save most first.

    What was integers already comes last: it got faster. Behind that comes what decides: a little
    noise of one such weight may turn as much as that of all.
    """
    from onnxshrink.graph import weights
    from onnxshrink.graph.analysis.ranked import deciding
    from onnxshrink.graph.forms import codes

    coded = codes.names(model, {change.what for change in step.changes})
    known = coded | {view.name for view in weights.find(model)}
    saved: Counter[str] = Counter()
    for change in step.changes:
        if change.what in known:
            saved[change.what] += change.before - change.after
    decides = deciding(model)
    order = sorted(saved.most_common(), key=lambda one: one[0] in decides)
    return {name: many for name, many in order if many > 0 or name in coded}


def _without(pass_: Any, order: Sequence[str], chosen: Mapping[str, Mapping[str, Any]]) -> Any:
    """The pass, leaving alone what is not chosen, and with the options of what is."""
    asked = pass_.weights
    left = [name for name in order if name not in chosen]
    rows = {name: form for name, form in chosen.items() if form}
    return replace(
        pass_, weights=replace(asked, keep=(*asked.keep, *left), layers={**asked.layers, **rows})
    )


def _explain(
    row: Step, left: set[str], selection: Select, reasons: Mapping[str, str], bound: float
) -> None:
    """Say of weights that were left alone for this that nobody asked for it."""
    usual = f"beyond what the outputs tolerate (relative error {bound:g}; --max-error allows more)"
    if left and all(reasons.get(name) == _SLOW for name in left):
        usual = _SLOW
    asked = selection.keep or SKIP in selection.layers.values()
    row.skips = [
        replace(skip, reason=reasons.get(skip.what, usual))
        if skip.reason == KEPT and (skip.what in left or not asked)
        else skip
        for skip in row.skips
    ]
