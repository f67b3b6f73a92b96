"""Passes, and the runner that holds them to their contract."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from onnxshrink.contract import Judge, Settings
from onnxshrink.errors import (
    InputsMissing,
    OutputError,
    RecipeError,
    ShrinkError,
    UnsupportedModel,
    internal,
)
from onnxshrink.fewer_weights import retreat
from onnxshrink.goal import Goal
from onnxshrink.options import amended, check, dump, nearest, option
from onnxshrink.progress import Progress, silent
from onnxshrink.reading import Reading
from onnxshrink.report import Change, Report, Skip, Step, size
from onnxshrink.select import SKIP, Select, unmatched
from onnxshrink.trials import Answers, Feeds, Reference

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.weights.views import WeightView
    from onnxshrink.kernels.metrics import OutputComparison
    from onnxshrink.kernels.observers import Need
    from onnxshrink.kernels.split import Split
    from onnxshrink.runtime.calibrate import Statistics
    from onnxshrink.runtime.worker import Worker

_log = logging.getLogger(__name__)
_EXACT = 1e-2  # the bound of passes that change no more than the order of sums is below this
_BY_ITSELF = (
    "there is one input, so what was fitted to it is judged by it, too: give two or more, or rows "
    "that can be taken apart"
)
_ALL_LOST = 1.0  # the relative error of an output of nothing but zeros


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One step of a recipe. Its fields are its options, its docstring is its help.

    Attributes:
        name: The command's name, taken from the module: ``quantize_weights.py`` is
            ``quantize-weights``.
        may_grow: Whether the step may make the file bigger.
        runs_models: Whether ``apply`` runs models on the context's worker.
        retreats: Whether a step that breaks the contract may stand on fewer of its ``weights``.
        saves: Whether fewer bytes are all that it is for.
        speeds: Whether it is for speed: then the run measures the latency.
        for_packing: Whether what it leaves is small only when it is packed.
        example: Options without which it does nothing, for the example in its help.
        inlines: Whether it sees functions inlined, where there are any, even if it asks for no
            statistics: no value of a function can be observed.
    """

    name: ClassVar[str] = ""
    example: ClassVar[str] = ""
    may_grow: ClassVar[bool] = False
    runs_models: ClassVar[bool] = False
    retreats: ClassVar[bool] = False
    inlines: ClassVar[bool] = False
    saves: ClassVar[bool] = False
    speeds: ClassVar[bool] = False
    for_packing: ClassVar[bool] = False

    max_error: float | None = option(
        None,
        help="roll the step back when an output changes by more than this (relative L2 error)",
        ge=0,
    )

    def __init_subclass__(cls) -> None:
        cls.name = cls.__module__.rpartition(".")[2].replace("_", "-")

    def __post_init__(self) -> None:
        check(self, self.name)

    @property
    def bound(self) -> float:
        """Largest relative output error that the step may cause unless ``max_error`` says."""
        return 1e-3

    def inputs(self, model: Model, feeds: Feeds) -> Feeds:
        """The inputs on which a run with this pass is held to its contract: all, unless it says.

        Args:
            model: The model before the first step.
            feeds: The inputs of the run.
        """
        return feeds

    def needs(self, model: Model) -> Iterable[Need]:
        """The statistics of the model's values that :meth:`apply` wants to find in its context."""
        return ()

    def apply(self, model: Model, ctx: Context) -> None:
        """Edit the model; report every change to ``ctx``, and everything left alone.

        Raises:
            ShrinkError: The pass cannot work on this model; the step is rolled back.
        """
        raise TypeError(f"{type(self).__name__} has no apply()")


def _idle_worker() -> Worker:
    from onnxshrink.runtime.worker import Worker

    return Worker()


@dataclass
class Context:
    """What a pass sees of the run.

    Attributes:
        step: The report of this step.
        feeds: Calibration inputs, possibly none.
        generated: Whether they are made up rather than real.
        statistics: What the pass needs, as far as it can be observed; empty without feeds.
        original: The model before the first step, not to be edited; None outside a run.
        worker: The process to run models in. It starts when it is first asked for something; a
            context without a run has one of its own.
        seed: For the pass's own random numbers.
        progress: To be told what is done, how much of it, and out of how much.
        storage: How the result will be stored.
        goal: What the answers must keep in the end.
        memo: What was found out of the model before the step, for when the pass is applied to it
            once more, on fewer of its weights.
        findings: What steps found out about models on these inputs, by a key of their own; it is
            theirs to make sure that the model is the same.
        reading: How the feeds became inputs.
        verify: Why a model half-way through the step breaks the contract, or an empty text; for
            passes that try something and can do without. Takes a bound of its own, if wanted.
    """

    step: Step
    feeds: Feeds = ()
    generated: bool = False
    statistics: Mapping[Need, Any] = field(default_factory=dict)
    original: Model | None = None
    worker: Worker = field(default_factory=_idle_worker)
    seed: int = 0
    progress: Progress = silent
    storage: str = "auto"
    goal: Goal = field(default_factory=Goal)
    memo: dict[str, Any] = field(default_factory=dict)
    findings: dict[Any, Any] = field(default_factory=dict)
    reading: Reading = field(default_factory=Reading)
    verify: Callable[..., str] = field(default=lambda model, bound=0.0: "")

    @property
    def split(self) -> Split:
        """Which of the inputs a fit sees, and which judge it. Where they are the same, says so."""
        from onnxshrink.kernels.split import Split

        found = Split(len(self.feeds))
        if found.by_itself:
            self.warn(_BY_ITSELF)
        return found

    def reference(self, model: Model, feeds: Feeds | None = None) -> Reference:
        """What a model answers to the inputs, or to some of them: what others are compared with."""
        return Reference(model, self.feeds if feeds is None else feeds, self.worker)

    def changed(
        self, what: WeightView | str, after: int, *, note: str = "", before: int = 0,
        kind: str = "", elements: float = 0, coded: float = 0, **error: float,
    ) -> None:  # fmt: skip
        """Report something that became ``after`` bytes, with error figures by name.

        Args:
            what: A weight, or the name of something else.
            after: Bytes that it takes now.
            note: How.
            before: Bytes that it took; of a weight only if these are not those of its values.
            kind: What it is; of a weight the operator that uses it.
            elements: How many numbers it holds; of a weight that is given as such it is known.
            coded: Bytes that it takes entropy-coded, where that is known.
            error: Figures by name.
        """
        if not isinstance(what, str):
            kind, before, elements = what.op_type, before or what.nbytes, what.size
            what = what.name
        row = Change(what, kind, before, after, note, error, int(elements), int(coded))
        self.step.changes.append(row)

    def check_halves(self) -> None:
        """Refuse to fit without real inputs of which one half can be fitted to and one can judge.

        Raises:
            InputsMissing: There are fewer than two.
        """
        if len(self.feeds) < 2 or self.generated:
            raise InputsMissing(
                f"{self.step.name} fits to one half of real inputs and judges by the other: give "
                "--calibration DATA with two or more"
            )

    def skip(self, what: WeightView | str, reason: str) -> None:
        """Report something that was left alone, and why."""
        if isinstance(what, str):
            self.step.skips.append(Skip(what, reason))
        else:
            row = Skip(what.name, reason, what.op_type, what.nbytes, what.size)
            self.step.skips.append(row)

    def warn(self, what: str) -> None:
        """Say something that a reader of the report must know, once."""
        if what not in self.step.warnings:
            self.step.warnings.append(what)

    def each(
        self, owner: Any, views: Iterable[WeightView], *, any_role: bool = False
    ) -> Iterator[tuple[WeightView, Any]]:
        """The weights that a pass may touch, each with the pass's options for it.

        Args:
            owner: A pass with a field ``weights`` of type ``Select``.
            views: All weights; those that the selection leaves out become skip rows.
            any_role: Whether constants will do that no known operator multiplies with.

        Raises:
            RecipeError: An override in ``layers`` does not fit the pass, or a pattern matches
                nothing.
        """
        select: Select = owner.weights
        views = list(views)
        if missing := unmatched(select, views):
            known = [word for view in views for word in (view.op_type, view.name)]
            said = f"no weight matches {', '.join(map(repr, missing))}"
            raise RecipeError(f"{owner.name}: {said}{nearest(missing[0], known)}")
        chosen = []
        for view in views:
            reason = select.why_not(view, any_role=any_role)
            if reason:
                self.skip(view, reason)
            else:
                chosen.append(view)
        for done, view in enumerate(chosen):
            self.progress(owner.name, done, len(chosen))
            where = f"{owner.name}: layers: {view.name}"
            changes = [row for row in select.matching(view) if row != SKIP]
            yield view, amended(owner, changes, where) if changes else owner
            view.release()
        self.progress(owner.name, len(chosen), len(chosen))


@dataclass
class Result:
    """The model after a run, and what happened.

    Attributes:
        effect: Figures for every output against the original model; empty when not checked.
        answers: What the original and the result answer; None when not checked.
        collected: The newest statistics of the model, by what they are of, for runs that begin
            with it.
    """

    model: Model
    report: Report
    effect: tuple[OutputComparison, ...] = ()
    answers: tuple[Answers, Answers] | None = None
    collected: dict[tuple[Need, ...], Statistics] = field(default_factory=dict)


def run(
    steps: Iterable[Pass],
    model: Model,
    settings: Settings | None = None,
    worker: Worker | None = None,
    *,
    begun: Result | None = None,
) -> Result:
    """Apply passes in order; each stands only if it keeps the contract.

    A bug in one of several steps is a step that is rolled back, and is said; in a single one it is
    raised.

    Args:
        steps: The passes.
        model: Left as it is; the result is another model.
        settings: How to check.
        worker: The process to check in, when the caller has one already.
        begun: What came of earlier passes on the same model with the same settings: these go on
            from there, as if all had been given.

    Raises:
        ModelError: The input model itself is invalid or does not run.
        UnsupportedModel: ONNX Runtime lacks an operator of the input model.
        RecipeError: An option does not fit the model, for instance a pattern that matches nothing.
        InputsMissing: The only step measures on real inputs, and there are none. Among others such
            a step is left out, with a warning.
        OutputError: There is no room for the models on trial.
    """
    from onnxshrink.runtime.worker import Worker

    settings, steps = settings or Settings(), tuple(steps)
    alone = len(steps) == 1 and begun is None
    given = settings.feeds
    for pass_ in steps:
        settings = replace(settings, feeds=pass_.inputs(model, settings.feeds))
    collected = {} if begun is None or settings.feeds is not given else begun.collected
    report = Report(source=model.label if model.path else "")
    report.bytes_before, report.bytes_after = model.stored_bytes(), model.nbytes()
    with contextlib.ExitStack() as stack:
        worker = worker or stack.enter_context(Worker())
        original, judge = model, Judge(model, settings, worker)
        report.checks = judge.describe()
        report.warnings = [*model.repairs, *judge.warnings]
        if begun is not None:
            model, report.bytes_after = begun.model, begun.report.bytes_after
            report.steps += [replace(step) for step in begun.report.steps]
            report.warnings += [
                f"{s.name}: {warning}" for s in report.steps for warning in s.warnings
            ]
            judge.go_on(begun.answers)
        for pass_ in steps:
            now = report.bytes_after
            step = Step(pass_.name, dump(pass_), bytes_before=now, bytes_after=now)
            report.steps.append(step)
            started = time.perf_counter()
            try:
                before = model
                model = _step(pass_, model, original, step, settings, judge, worker, collected)
                if model is not before:
                    collected = {}
            except InputsMissing as error:
                if alone:
                    raise
                _undo(step, str(error))
                step.warnings.append("left out: it needs real inputs")
            except ShrinkError:
                raise
            except Exception as error:
                if alone:
                    raise
                _log.debug("%s:", step.name, exc_info=True)
                _undo(step, reason := internal(error))
                step.warnings.append(f"{reason}; the step was left out")
                _log.error("%s: %s", step.name, reason)
            step.seconds = round(time.perf_counter() - started, 3)
            report.bytes_after = step.bytes_after
            report.warnings += [f"{step.name}: {warning}" for warning in step.warnings]
            _log.info(
                "%s: %s, %s -> %s in %.1f s", step.name, step.status, size(step.bytes_before),
                size(step.bytes_after), step.seconds,
            )  # fmt: skip
        effect = judge.total_effect()
        report.warnings += judge.silences
        report.unproven = judge.proves_nothing and not settings.generated
        report.outputs = {row.name: row.to_dict() for row in effect}
        report.matched = judge.answers and judge.answers[0].matched(judge.answers[1])
    return Result(model, report, effect, judge.answers)


def _bound(pass_: Pass, settings: Settings) -> float:
    """Largest relative output error that a step may cause."""
    if pass_.max_error is not None:
        return pass_.max_error
    if settings.generated and pass_.bound > _EXACT:
        # On noise a detector answers next to nothing, and small absolute errors are large relative
        # ones: made-up inputs can show that a model is broken, not how good it is.
        return max(pass_.bound, _ALL_LOST)
    return pass_.bound


def _step(
    pass_: Pass, model: Model, original: Model, step: Step, settings: Settings, judge: Judge,
    worker: Worker, collected: dict[tuple[Need, ...], Statistics],
) -> Model:  # fmt: skip
    """The model after one pass, or as it was when the pass is refused."""
    from onnxshrink.kernels.observers import SecondMoment
    from onnxshrink.runtime.calibrate import calibrate

    bound = _bound(pass_, settings)
    ctx = Context(
        step, settings.feeds, settings.generated, original=original, worker=worker,
        seed=settings.seed, progress=settings.progress, storage=settings.storage,
        goal=settings.goal, findings=settings.findings, reading=settings.reading,
        verify=lambda half_way, limit=bound: judge.verify(half_way, limit),
    )  # fmt: skip
    try:
        before, calls = _inlined(pass_, model, ctx.feeds)
        before, computed = _computed(pass_, before)
        trial = before.clone()
        needs = tuple(pass_.needs(trial))
        fits = any(isinstance(need.statistic, SecondMoment) for need in needs)
        if needs:
            judge.settle()  # the worker may be busy with the original
            if needs not in collected:
                collected.clear()  # they take room on disk
                collected[needs] = calibrate(
                    trial, needs, settings.feeds, worker, settings.progress, settings.cache
                )
            ctx.statistics = collected[needs]
        if pass_.runs_models:
            judge.settle()
        pass_.apply(trial, ctx)
        if calls and step.changes:
            ctx.changed("functions", 0, kind="model", note=f"{calls} calls inlined")
        freed = step.bytes_before - trial.nbytes() if computed and not step.changes else 0
        if computed and (step.changes or freed >= judge.least_saving(step)):
            note = f"{computed} were computed from constants"
            ctx.changed("weights", 0, kind="model", before=max(freed, 0), note=note)
        reason, may_grow = "", pass_.may_grow or step.may_grow
        saves = pass_.saves and not may_grow and pass_.max_error is None and not _asked(pass_)
        if step.changes:
            reason = judge.refusal(trial, bound, may_grow, step, saves=saves)
        faster = bool(getattr(pass_, "faster_only", False) and step.changes and not reason)
        if faster or (pass_.retreats and judge.asks_too_much(reason)):
            fewer = retreat(pass_, before, ctx, judge, bound, saves=saves)
            if fewer is not None:
                trial, reason = fewer, ""
            elif faster:
                reason = "nothing that it does is faster on this machine"
        if pass_.speeds and step.changes and not reason:
            _time(judge, before, trial, step)
        if fits and step.changes and not ctx.generated:
            ctx.split  # noqa: B018  (says so if what was fitted is judged by itself)
    except (RecipeError, InputsMissing, OutputError):  # no fault of the step: what it was given
        judge.settle()
        raise
    except Exception as error:
        judge.original  # noqa: B018  (a model that was broken to begin with is told as such)
        if not isinstance(error, ShrinkError):
            raise
        reason = str(error)
    if reason:
        _undo(step, reason)
    elif step.changes:
        return trial
    else:
        step.status = "nothing to do"
        if not step.skips:
            ctx.skip("model", "holds nothing that this step works on")
    return model


def _time(judge: Judge, before: Model, trial: Model, step: Step) -> None:
    """Measure what a step that is for speed did to it."""
    found = judge.latency(before, trial)
    if found is None:
        return
    step.latency = {"ratio": found.median, "low": found.low, "high": found.high}
    if not found.median < 1:
        step.warnings.append(
            f"not faster on this machine: {found.median:.2f} times the latency before "
            f"({found.low:.2f} to {found.high:.2f}); --faster-only keeps in float what is slower"
        )


def _asked(pass_: Pass) -> bool:
    """Whether somebody named the weights to work on, or gave some of them other options."""
    selection = getattr(pass_, "weights", None)
    return isinstance(selection, Select) and bool(selection.only or selection.layers)


def _inlined(pass_: Pass, model: Model, feeds: Feeds) -> tuple[Model, int]:
    """The model as a pass wants to see it, and how many calls of functions were inlined for it."""
    from onnxshrink.graph.rewrite.inline import inline_functions

    if not model.ir.functions:
        return model, 0
    if not (
        pass_.inlines or pass_.runs_models or (feeds and any(True for _ in pass_.needs(model)))
    ):
        return model, 0
    trial = model.clone()
    try:
        return trial, inline_functions(trial)
    except UnsupportedModel:  # the pass reports what it cannot observe or change
        return model, 0


def _computed(pass_: Pass, model: Model) -> tuple[Model, int]:
    """The model with its weights stored, for a pass on weights, and how many were computed."""
    from onnxshrink.graph.rewrite.computed import fold_weights

    if not hasattr(pass_, "weights"):
        return model, 0
    trial = model.clone()
    computed = fold_weights(trial, moved=False)
    return (trial, computed) if computed else (model, 0)


def _undo(step: Step, reason: str) -> None:
    _log.warning("%s rolled back: %s", step.name, reason)
    step.status, step.reason, step.bytes_after = "rolled back", reason, step.bytes_before
    step.changes.clear()
    step.warnings.clear()
