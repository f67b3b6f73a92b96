"""What the command line does, for Python: shrink a model, apply a recipe.

Both load, run the passes under their contract, and write the result in one go.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxshrink.contract import Judge, Level, Progress, Settings
from onnxshrink.errors import BudgetMissed, RecipeError
from onnxshrink.pipeline import Pass, Result, run
from onnxshrink.recipe import Recipe, Storage, find_pass
from onnxshrink.report import Report, size

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model
    from onnxshrink.runtime.worker import Worker
    from onnxshrink.search.ladder import Goal

_GENERATED = 4
_CALIBRATION = 64
_WORTH_LOWERING = 256  # fewer coefficients take less room than the nodes in their place
_HARDLY = 1.1  # times smaller

StrPath = str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to run, apart from what to do.

    Attributes:
        calibration: Real inputs in any form that ``runtime.inputs.load_inputs`` takes; None
            generates some, and the report warns of it.
        shapes: Shapes for generated inputs by input name.
        check: ``full``, ``quick`` or ``off``.
        seed: For generated inputs and for passes that draw random numbers.
        storage: ``auto``, ``single`` file, ``external`` data, or ``packed``: entropy-coded in a
            sidecar, see :func:`session`.
        calibration_cache: A file for the statistics of calibration runs, to be used again by later
            runs on the same model and inputs.
        progress: Called with what is done, how much of it, and out of how much (0: unknown).
    """

    calibration: Any = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    check: Level = "full"
    seed: int = 0
    storage: Storage | None = None
    calibration_cache: StrPath | None = None
    progress: Progress = field(default=lambda what, done, total: None)


def apply_recipe(
    recipe: Recipe, source: StrPath, out: StrPath, options: Options | None = None
) -> Report:
    """Apply a recipe to a model file and write the result.

    The result is written even when every step was rolled back: it then equals the input.

    Args:
        recipe: The passes.
        source: The model file; never modified.
        out: Where the result goes.
        options: How to run.

    Raises:
        ShrinkError: Whatever is wrong with the recipe, the model, the inputs or the output;
            nothing is written then.
    """
    from onnxshrink.runtime.worker import Worker

    options = options or Options()
    with Worker() as worker:
        worker.start()  # it imports ONNX Runtime while this process reads the model
        model, settings = _prepare(source, out, options, worker)
        return _write(run(recipe.steps, model, settings, worker), out, options, recipe.storage)


def shrink(
    source: StrPath,
    out: StrPath,
    options: Options | None = None,
    *,
    goal: Goal | None = None,
    max_size: int | None = None,
    target_ratio: float | None = None,
    recipe_out: StrPath | None = None,
) -> Report:
    """Find the smallest weight-only form of a model that keeps its answers, and write it.

    With calibration inputs the search goes down to 4 bits and keeps the layers that hurt at a
    higher precision. Without them it stays at 8 bits, which needs no data to be safe.

    Args:
        source: The model file; never modified.
        out: Where the result goes.
        options: How to run.
        goal: What the answers must keep; see :class:`onnxshrink.search.ladder.Goal`.
        max_size: Bytes that the result must not exceed.
        target_ratio: How many times smaller it must be.
        recipe_out: Where to write the recipe; ``apply_recipe`` of it gives the same bytes.

    Raises:
        BudgetMissed: The best result was written, but is too big or strays too far.
        ShrinkError: As for :func:`apply_recipe`.
    """
    from onnxshrink.graph.file.model import atomic_write
    from onnxshrink.runtime.worker import Worker
    from onnxshrink.search import ladder

    options = options or Options()
    goal = goal or ladder.Goal()
    with Worker() as worker:
        worker.start()
        model, settings = _prepare(source, out, options, worker)
        first = _cleaning(model)
        misses: list[str] = []
        moved: dict[str, str] = {}
        if options.calibration is None or options.check == "off":
            steps: tuple[Pass, ...] = (find_pass("quantize-weights")(),)
        else:
            cleaned = run(first, model, settings, worker).model
            judge = Judge(model, settings, worker)
            if judge.proves_nothing:
                steps = (find_pass("quantize-weights")(),)
            else:
                found = ladder.find_recipe(cleaned, judge, goal, options.progress)
                steps, moved, misses = found.recipe.steps, found.moved, found.misses
        recipe = Recipe((*first, *steps))
        result = run(recipe.steps, model, settings, worker)
        result.report.moved = moved
        report = _write(result, out, options)
    if report.ratio < _HARDLY and options.storage != "packed":
        report.warnings.append(
            "hardly any smaller; --storage packed codes what the weights are, without loss"
        )
    if recipe_out is not None:
        with atomic_write(Path(recipe_out)) as file:
            file.write(recipe.to_yaml().encode())
    misses += _too_big(report, max_size, target_ratio)
    if misses:
        report.missed = misses
        raise BudgetMissed(
            f"{out}: written, {report.ratio:.2f}x smaller, but the goal was missed: "
            + "; ".join(misses),
            report,
        )
    return report


def apply_excluding(
    step: Pass,
    source: StrPath,
    out: StrPath,
    options: Options | None = None,
    *,
    goal: Goal | None = None,
    recipe_out: StrPath | None = None,
) -> Report:
    """Apply a pass to all weights but those that would keep the answers from a goal.

    Args:
        step: A pass that selects weights.
        source: The model file; never modified.
        out: Where the result goes.
        options: How to run; with calibration inputs.
        goal: What the answers must keep; see :class:`onnxshrink.search.ladder.Goal`.
        recipe_out: Where to write the step with what it leaves alone.

    Raises:
        RecipeError: There are no calibration inputs, or nothing is to be checked.
        ShrinkError: As for :func:`apply_recipe`.
    """
    from onnxshrink.graph.file.model import atomic_write
    from onnxshrink.runtime.worker import Worker
    from onnxshrink.search import exclude, ladder
    from onnxshrink.search.partial_step import Parts

    options = options or Options()
    if options.calibration is None or options.check == "off":
        raise RecipeError(f"{step.name}: what to leave alone is found on --calibration inputs")
    with Worker() as worker:
        worker.start()
        model, settings = _prepare(source, out, options, worker)
        parts = Parts(model, step, settings, worker)
        found = exclude.find_exclusions(parts, goal or ladder.Goal(), options.progress)
        result = run(found.recipe.steps, model, settings, worker)
        result.report.moved = found.moved
        report = _write(result, out, options)
    if recipe_out is not None:
        with atomic_write(Path(recipe_out)) as file:
            file.write(found.recipe.to_yaml().encode())
    return report


def load(source: StrPath, options: Options | None = None) -> tuple[Model, list[dict[str, Any]]]:
    """A model file, and inputs for it: those that the options name, or generated ones.

    Raises:
        ShrinkError: The model or the inputs cannot be read.
    """
    from onnxshrink.graph.file.model import Model

    model = Model.load(source)
    return model, _feeds(model, options or Options(), None)


def bench_pair(source: StrPath, out: StrPath, options: Options) -> dict[str, Any]:
    """Latency of a result against its source: median ratio with its 95 % interval."""
    from onnxshrink.graph.file.model import Model
    from onnxshrink.runtime.bench import FEWEST_ROUNDS, bench

    feeds = _feeds(Model.load(source), options, None)
    first, second = bench([source, out], feeds[:4], rounds=FEWEST_ROUNDS + 3).models
    return {
        "ratio": second.ratio, "low": second.ratio_low, "high": second.ratio_high,
        "before_ms": first.seconds * 1e3, "after_ms": second.seconds * 1e3,
    }  # fmt: skip


def _cleaning(model: Model) -> tuple[Pass, ...]:
    """The passes that change no answers: clean, and lower-ml where there is something to gain."""
    steps = [find_pass("clean")()]
    stored = [node.attributes.get("coefficients") for node in model.nodes]
    numbers = [found.as_floats() for found in stored if found is not None and not found.is_ref()]
    if any(len(each) >= _WORTH_LOWERING for each in numbers):
        steps.append(find_pass("lower-ml")())
    return tuple(steps)


def _too_big(report: Report, max_size: int | None, target_ratio: float | None) -> list[str]:
    lines = []
    if max_size is not None and not report.bytes_after <= max_size:
        lines.append(f"{size(report.bytes_after)} is more than {size(max_size)}")
    if target_ratio is not None and not report.ratio >= target_ratio:
        lines.append(f"{report.ratio:.2f}x is less than {target_ratio:g}x")
    return lines


def _prepare(
    source: StrPath, out: StrPath, options: Options, worker: Worker
) -> tuple[Model, Settings]:
    """Load the model and its inputs; find out now whether the result could be written."""
    from onnxshrink.graph.file.model import Model
    from onnxshrink.runtime.calibration_cache import CalibrationCache

    model = Model.load(source)
    model.check_output(Path(out))
    cache = None
    if options.calibration_cache is not None:
        cache = CalibrationCache(Path(options.calibration_cache))
    feeds: list[dict[str, Any]] = []
    left = 0
    if options.calibration is not None or options.check != "off":
        feeds, left = _chosen(model, options, worker)
    return model, Settings(
        check=options.check, feeds=feeds, generated=options.calibration is None,
        seed=options.seed, folder=Path(out).absolute().parent, progress=options.progress,
        cache=cache, left=left,
    )  # fmt: skip


def _feeds(model: Model, options: Options, worker: Worker | None) -> list[dict[str, Any]]:
    return _chosen(model, options, worker)[0]


def _chosen(
    model: Model, options: Options, worker: Worker | None
) -> tuple[list[dict[str, Any]], int]:
    """Inputs, real or generated, and how many more were given."""
    from onnxshrink.runtime.generate import generated_inputs
    from onnxshrink.runtime.inputs import choose_inputs

    if options.calibration is not None:
        return choose_inputs(options.calibration, model, limit=_CALIBRATION)
    made = generated_inputs(model, _GENERATED, options.seed, shapes=options.shapes, worker=worker)
    return made, 0


def _write(result: Result, out: StrPath, options: Options, storage: Storage = "auto") -> Report:
    report = result.report
    report.result = str(out)
    storage = options.storage or storage
    if storage != "packed":
        report.bytes_after = result.model.save(out, storage)
        return report
    from onnxshrink.graph.forms import packed

    try:
        report.bytes_after = packed.save(result.model, out)
    except BudgetMissed as error:
        report.warnings.append(f"stored as one plain file: {error}")
        report.bytes_after = result.model.save(out)
    return report
