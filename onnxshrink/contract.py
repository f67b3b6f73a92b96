"""The contract of a pass: a step that breaks the model, or makes it bigger or wrong, is refused.

The model must pass the checker, load and run in ONNX Runtime, keep its inputs and outputs, answer
within the step's bound of what it answered before the step, and not have grown. All of it runs in
a child process, so that a model that crashes the runtime is refused like any other.
"""

from __future__ import annotations

import math
import re
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from onnxshrink import heap
from onnxshrink.errors import DataError, ModelError, RecipeError
from onnxshrink.goal import Goal
from onnxshrink.options import nearest
from onnxshrink.progress import Progress, silent
from onnxshrink.reading import Reading
from onnxshrink.report import Step, size
from onnxshrink.trials import Answers, Feeds, answers, told

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model
    from onnxshrink.kernels.metrics import OutputComparison
    from onnxshrink.runtime.bench import Ratio
    from onnxshrink.runtime.calibration_cache import CalibrationCache
    from onnxshrink.runtime.session import SessionOptions
    from onnxshrink.runtime.worker import Worker

Level = Literal["full", "quick", "off"]

_QUICK_FEEDS = 2
_LEAST_SAVING = 0.03  # of the file, for a step that changes answers by more than this:
_ROUNDING = 1e-3
_ONE_INPUT = 2.0  # times the bound of all: what a single input may be off
_SWAPPED = " (the model ranks: rows whose scores are close swap places, which counts as an error)"
_FULL_FEEDS = 64
_RANDOM = (
    "this model is random: two runs of it on the same input differ in {}, of which distributions "
    "are compared, not values"
)
_NOISE = 2.0  # times the distance of two runs of the original: what may be added to a bound


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run is checked, apart from what it does.

    Attributes:
        check: ``full``: up to 64 feeds; ``quick``: the first two; ``off``: not at all, and the
            report warns of it.
        feeds: Inputs to check on, and for passes that calibrate.
        unseen: Inputs that no step sees, for the last word on the result.
        unseen_places: Where each of these was found.
        generated: Whether ``feeds`` are made up rather than real.
        seed: For passes that draw random numbers.
        folder: Where intermediate models are written; None is the system's temporary folder.
        left: How many more inputs were given than are used.
        notes: What a reader of the report must know of how the inputs were read.
        progress: Called with what is done, how much of it, and out of how much.
        cache: Statistics of earlier runs.
        storage: How the result will be stored, for passes that steer by its bytes.
        keep_names: Whether no name is shortened where the result is written.
        goal: What the answers must keep in the end, for passes that steer by them.
        findings: What steps found out about models on these inputs, for later runs on them.
        compare_at: Names of values that are compared in place of the outputs behind them.
        reading: How ``feeds`` became inputs, for steps that read more of them.
    """

    check: Level = "full"
    feeds: Feeds = ()
    unseen: Feeds = ()
    unseen_places: tuple[str, ...] = ()
    generated: bool = False
    seed: int = 0
    folder: Path | None = None
    left: int = 0
    notes: tuple[str, ...] = ()
    progress: Progress = silent
    cache: CalibrationCache | None = None
    storage: str = "auto"
    keep_names: bool = False
    goal: Goal = field(default_factory=Goal)
    findings: dict[Any, Any] = field(default_factory=dict)
    compare_at: tuple[str, ...] = ()
    reading: Reading = field(default_factory=Reading)


class Judge:
    """Holds what the model answered so far, and decides whether a step may stand.

    Args:
        model: The input model.
        settings: How to check.
        worker: The process to run models in.
    """

    def __init__(self, model: Model, settings: Settings, worker: Worker):
        from onnxshrink.graph import operators
        from onnxshrink.graph.analysis.noise import is_random
        from onnxshrink.graph.analysis.ranked import entering

        self._settings = settings
        self._worker = worker
        made = {value.name or "" for node in model.ir.graph for value in node.outputs}
        if unknown := [name for name in settings.compare_at if name not in made]:
            hint = nearest(unknown[0], made)
            raise RecipeError(f"--compare-at {unknown[0]}: the model has no such value{hint}")
        self._signature = _signature(model)
        self._kernels = _own_kernels(model)
        self._random = is_random(model)
        ranks = any(operators.of(node, operators.Ranking) is not None for node in model.nodes)
        self._ranks = ranks and not entering(model, settings.compare_at).values
        limit = _QUICK_FEEDS if settings.check == "quick" else _FULL_FEEDS
        self._feeds = () if settings.check == "off" else settings.feeds[:limit]
        self._first: Future[Answers | None] = Future()
        self._compared: tuple[Answers, Answers, tuple[OutputComparison, ...]] | None = None
        if model.path is not None and model.untouched and not self._random:
            # It runs while the first pass is at work here: nobody needs its answers before. The
            # thread reads the file only, never the graph.
            threading.Thread(target=self._observe_first, args=[model], daemon=True).start()
        else:
            self._observe_first(model)
        self._newest: Answers | None = None
        self.worst = math.inf  # error of an output in what was verified last

    @property
    def original(self) -> Answers | None:
        """What the input model answers; None when nothing is checked.

        Waits for them; until then nothing else may use the worker.

        Raises:
            ModelError: The input model is invalid or does not run.
            UnsupportedModel: ONNX Runtime lacks an operator that it needs.
        """
        return self._first.result()

    def settle(self) -> None:
        """Wait until the worker is free for others."""
        self._first.exception()

    def _observe_first(self, model: Model) -> None:
        try:
            answers = self._observe(model)
            if self._random and answers is not None and answers.outputs:
                answers = _with_noise(answers, self._observe(model))
            self._first.set_result(answers)
        except BaseException as error:  # whoever asks for the answers gets it
            self._first.set_exception(error)

    def go_on(self, answers: tuple[Answers, Answers] | None) -> None:
        """Judge from what an earlier run on the same model ended with."""
        self._newest = None if answers is None else answers[1]

    @property
    def _last(self) -> Answers | None:
        """What the model answered after the last step that stood."""
        return self.original if self._newest is None else self._newest

    @property
    def warnings(self) -> list[str]:
        """What a reader of the report must know about the checks."""
        if self._settings.check == "off":
            return [*self._settings.notes, "the outputs were not checked (--check off)"]
        if not self._feeds:
            return ["the outputs were not compared: there were no inputs"]
        original = self.original if self._random else None  # else it may not be known yet
        random = () if original is None else original.random
        noisy = [*self._settings.notes]
        noisy += [_RANDOM.format(", ".join(map(repr, random)))] if random else []
        if self._settings.generated:
            return [
                *noisy,
                "checked on generated inputs only; pass --calibration with real inputs to prove it",
            ]
        return noisy

    @property
    def proves_nothing(self) -> bool:
        """Whether there were inputs, and no output on which they could show a difference."""
        original = self.original
        if original is None or not original.outputs:
            return False
        return len(original.silent) == len(original.judged)

    @property
    def silences(self) -> list[str]:
        """What a reader must know of outputs that cannot show a difference on the given inputs."""
        original = self.original
        if original is None:
            return []
        lines = [
            f"output {name!r} {reason} on these inputs, so that comparing it proves nothing"
            for name, reason in original.silent.items()
        ]
        if self.proves_nothing:
            worth = "an unchecked one" if self._settings.generated else "one on generated inputs"
            lines.append(
                f"no output shows a difference: this run is worth no more than {worth}; give "
                "inputs that the model has something to say to"
            )
        return lines

    def describe(self) -> dict[str, Any]:
        """How the checks were done."""
        from onnxshrink.runtime.session import SessionOptions

        if self._settings.check == "off":
            return {"level": "off"}
        return {
            "level": self._settings.check,
            "inputs": "generated" if self._settings.generated else "given",
            "feeds": len(self._feeds),
            "left": self._settings.left,
            **SessionOptions().describe(),
        }

    def verify(self, trial: Model, bound: float) -> str:
        """Why a model half-way through a step does not do; empty when it does."""
        before, self.worst = self._last, math.inf
        try:
            figures = self._compare(before, self._observe(trial))
        except (ModelError, DataError) as error:
            return f"the result does not run: {error}"
        self.worst = max((row.worst for row in figures), default=0.0)
        return self._excess(figures, bound, before)

    def refusal(
        self, trial: Model, bound: float, may_grow: bool, step: Step, *, saves: bool = False
    ) -> str:
        """Why a step may not stand; empty when it may, and then it is the next one's reference.

        Args:
            trial: The model after the step.
            bound: Largest relative L2 error that an output may have against the step's input.
            may_grow: Whether the file may become bigger.
            step: Receives the size and the figures for every output.
            saves: Whether it is there to save bytes, so that next to none are no reason to change
                answers.
        """
        now = _signature(trial)
        if now not in (self._signature, _in_half(self._signature) if step.retyped else ""):
            return f"inputs or outputs changed: {now} instead of {self._signature}"
        step.bytes_after = trial.nbytes()
        if step.bytes_after > step.bytes_before and not may_grow:
            grown = step.bytes_after - step.bytes_before
            return f"the file would be {size(grown)} bigger ({size(step.bytes_after)})"
        before = self._last
        heap.give_back()  # what the step has left is room for the model
        try:
            answers = self._observe(trial)
        except (ModelError, DataError) as error:
            return f"the result does not run: {error}"
        figures = self._compare(before, answers)
        step.outputs = {row.name: row.to_dict() for row in figures}
        step.max_error = max((row.worst for row in figures), default=None)
        reason = self._excess(figures, bound, before) or self._unoptimized(trial, answers, bound)
        if saves and not reason:
            reason = _in_vain(step)
        if not reason:
            self._signature = now
            if answers is not None:
                self._newest = replace(answers, random=before.random) if before else answers
        return reason

    def least_saving(self, step: Step) -> float:
        """Bytes that a step which changes answers, and is there to save, must save."""
        return _LEAST_SAVING * step.bytes_before

    def latency(self, model: Model, trial: Model) -> Ratio | None:
        """The latency of a model after a step over that before it; None where nothing is run."""
        from onnxshrink.runtime.bench import ratio
        from onnxshrink.trials import on_disk

        if self._settings.check == "off" or not self._feeds:
            return None
        self.settle()
        folder = self._settings.folder
        with on_disk(model, folder) as before, on_disk(trial, folder) as after:
            return ratio(before, after, self._feeds[0], self._worker)

    def asks_too_much(self, reason: str) -> bool:
        """Whether a refusal is for what the outputs tolerate, of which fewer weights ask less."""
        return reason.startswith("output ")

    def _unoptimized(self, trial: Model, answers: Answers | None, bound: float) -> str:
        """Why new operators of ONNX Runtime's own do not do as the file has them; or nothing.

        Optimizations can hide that a kernel cannot be used as it is written: one that repacks a
        constant when it loads finds none behind a Cast that is not folded.
        """
        from onnxshrink.runtime.session import SessionOptions

        if _own_kernels(trial) <= self._kernels:
            return ""
        try:
            plain = self._observe(trial, _QUICK_FEEDS, SessionOptions(optimization="disable"))
        except (ModelError, DataError) as error:
            return f"the result does not run without optimizations: {error}"
        reason = self._excess(self._compare(answers, plain), bound, answers)
        return reason and f"without ONNX Runtime's optimizations, {reason}"

    def _excess(
        self, figures: tuple[OutputComparison, ...], usual: float, before: Answers | None
    ) -> str:
        for row in figures:
            noise = 0.0 if before is None else before.random.get(row.name, 0.0)
            bound = usual + _NOISE * noise
            # An output that is zero throughout has no relative error; its rounding is no harm.
            if math.isinf(row.relative_error) and not told(row):
                continue
            if row.reshaped:
                return (
                    f"output {row.name!r} changed its shape, {row.reshaped}: values decide on it, "
                    "so that it cannot be compared; --check off does without"
                )
            if not row.worst <= bound:  # also when it is NaN
                of_slice = f" {row.slice}" if row.slice else ""
                return (
                    f"output {row.name!r}{of_slice} changed by {row.worst:.3g} (relative), "
                    f"more than {bound:g}; --max-error allows more" + self._ranks * _SWAPPED
                )
            if row.worst_input > _ONE_INPUT * bound:
                return (
                    f"output {row.name!r} changed by {row.worst_input:.3g} (relative) on one "
                    f"input, more than {_ONE_INPUT:g} times {bound:g}; --max-error allows more"
                )
        return ""

    def effect(
        self, model: Model, feeds: int | None = None
    ) -> tuple[tuple[OutputComparison, ...], Answers]:
        """Figures for every output of any model against the original, and its answers.

        Args:
            model: Any model with the original's inputs and outputs.
            feeds: Use only so many of the inputs.

        Raises:
            ModelError: The model does not load or run.
        """
        original, answers = self.original, self._observe(model, feeds)
        return self._compare(original, answers), answers or Answers((), [])

    @property
    def answers(self) -> tuple[Answers, Answers] | None:
        """What the original and the present model answer; None when nothing is checked."""
        before, after = self.original, self._last
        if before is None or after is None:
            return None
        return (before, after) if before.names == after.names else (before.plain, after.plain)

    def total_effect(self) -> tuple[OutputComparison, ...]:
        """Figures for every output of the present model against the original."""
        return self._compare(self.original, self._last)

    def _observe(
        self, model: Model, feeds: int | None = None, options: SessionOptions | None = None
    ) -> Answers | None:
        """Check, load and run a model; what it answers."""
        if self._settings.check == "off":
            return None
        chosen, folder = self._feeds[:feeds], self._settings.folder
        return answers(
            model, chosen, self._worker, check=True, folder=folder, options=options,
            at=self._settings.compare_at,
        )  # fmt: skip

    def _compare(
        self, reference: Answers | None, other: Answers | None
    ) -> tuple[OutputComparison, ...]:
        if reference is None or other is None:
            return ()
        known = self._compared
        if known is None or known[0] is not reference or known[1] is not other:
            self._compared = known = reference, other, reference.figures(other)
        return known[2]


def _with_noise(answers: Answers, again: Answers | None) -> Answers:
    """The answers of a model, and how far those of another run of it are from them, if they are."""
    if again is None:
        return answers
    from onnxshrink.kernels.metrics import differing

    found = differing(answers.names, answers.outputs, again.outputs)
    return replace(answers, random=found)


def _in_vain(step: Step) -> str:
    """Why a step changes answers for next to nothing; empty where it does not."""
    saved, error = step.bytes_before - step.bytes_after, step.max_error or 0.0
    if saved >= _LEAST_SAVING * step.bytes_before or error <= _ROUNDING:
        return ""
    return (
        f"saves {size(saved)} of {size(step.bytes_before)} only, for which answers would change by "
        f"{error:.2g}; --max-error or --only takes it all the same"
    )


def _own_kernels(model: Model) -> int:
    """How many operators a model has that are ONNX Runtime's own."""
    return sum(node.domain == "com.microsoft" for node in model.nodes)


def _signature(model: Model) -> str:
    """The inputs and the outputs, each with its name and type."""
    sides = (model.inputs, model.ir.graph.outputs)
    return " -> ".join(f"({', '.join(f'{v.name} {v.type}' for v in side)})" for side in sides)


def _in_half(signature: str) -> str:
    """The same with float16 for float32."""
    return re.sub(r"(?<=[ (])FLOAT(?=[,)])", "FLOAT16", signature)
