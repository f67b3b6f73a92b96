"""What the command line does, for Python: shrink a model, apply a recipe.

Both load, run the passes under their contract, and write the result in one go.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxshrink import files
from onnxshrink.contract import Judge, Level, Progress, Settings
from onnxshrink.errors import BudgetMissed, RecipeError
from onnxshrink.files import output
from onnxshrink.options import dump
from onnxshrink.pipeline import Pass, Result, run
from onnxshrink.recipe import Recipe, Storage, find_pass, pass_names
from onnxshrink.report import Report, size

if TYPE_CHECKING:
    from onnxshrink.goal import Goal
    from onnxshrink.graph.file.model import Model
    from onnxshrink.runtime.worker import Worker
    from onnxshrink.search.smallest import Found

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
        storage: ``auto``, ``single`` file, ``external`` data, ``packed``: entropy-coded in a
            sidecar, see :func:`session`; or ``coded``: entropy-coded in one plain file that
            runtimes open as it is.
        calibration_cache: A file for the statistics of calibration runs, to be used again by later
            runs on the same model and inputs.
        keep_names: Whether names of values and nodes stay that nobody outside asks for; else they
            are shortened where that makes the file clearly smaller.
        max_opset: The operator set up to which steps may raise the model's.
        progress: Called with what is done, how much of it, and out of how much (0: unknown).
        data_limit: Bytes that one array of a compressed file of inputs may unpack to; 4 GiB by
            default.
        worker: What ``runtime.worker.Worker`` is made with: ``timeout``, ``memory_limit``.
        compare_at: Names of values that are compared in place of the outputs behind them, where a
            model ranks or picks; what the graph itself says of that needs no names.
        reads: Other files that the caller reads for this run: its recipe, say. None is written to.
        writes: Other files that the caller will write: its report, say.
    """

    calibration: Any = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    check: Level = "full"
    seed: int = 0
    storage: Storage | None = None
    calibration_cache: StrPath | None = None
    max_opset: int | None = None
    keep_names: bool = False
    compare_at: tuple[str, ...] = ()
    progress: Progress = field(default=lambda what, done, total: None)
    data_limit: int | None = None
    worker: Mapping[str, Any] = field(default_factory=dict)
    reads: tuple[StrPath, ...] = ()
    writes: tuple[StrPath, ...] = ()

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise RecipeError(f"seed takes a whole number of at least 0, not {self.seed}")


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
    with Worker(**options.worker) as worker:
        worker.start()  # it imports ONNX Runtime while this process reads the model
        reads: list[StrPath] = [*recipe.reads, *_files_of(recipe.steps)]
        model, settings = _prepare(
            source, out, options, worker, reads, storage=recipe.storage, held_back=recipe.held_back
        )
        result = run(recipe.steps, model, settings, worker)
        return _write(result, recipe.steps, out, options, recipe.storage)


def shrink(
    source: StrPath,
    out: StrPath,
    options: Options | None = None,
    *,
    goal: Goal | None = None,
    max_size: int | None = None,
    target_ratio: float | None = None,
    recipe_out: StrPath | None = None,
    time_limit: float | None = None,
) -> Report:
    """Find the smallest form of a model that keeps its answers and its speed, and write it.

    With calibration inputs the search tries every way to store weights, and has the last word from
    inputs that it has not seen. Without them it stays at 8 bits, which needs no data to be safe.
    The result is one file with coded weights, unless ``options.storage`` says otherwise.

    Args:
        source: The model file; never modified.
        out: Where the result goes.
        options: How to run.
        goal: What the answers must keep; see :class:`onnxshrink.goal.Goal`.
        max_size: Bytes that the result must not exceed.
        target_ratio: How many times smaller it must be.
        recipe_out: Where to write the recipe; ``apply_recipe`` of it gives the same bytes.
        time_limit: Seconds after which no further recipe is tried.

    Raises:
        BudgetMissed: The best result was written, but is too big or strays too far.
        ShrinkError: As for :func:`apply_recipe`.
    """
    from onnxshrink.goal import Goal
    from onnxshrink.runtime.worker import Worker
    from onnxshrink.search.smallest import Search

    options = options or Options()
    goal = goal or Goal()
    storage = options.storage or "coded"
    deadline = None if time_limit is None else time.monotonic() + time_limit
    with Worker(**options.worker) as worker:
        worker.start()
        # A metric is about all inputs in their order: it would not know what to make of a part.
        parts = goal.metric is None
        model, settings = _prepare(
            source, out, options, worker, (), recipe_out, storage, held_back=parts
        )
        first = _cleaning(model)
        known = options.calibration is not None and options.check != "off"
        if known and not Judge(model, settings, worker).proves_nothing:
            found = Search(model, first, settings, goal, worker, storage, deadline).run()
            recipe, result = found.best.recipe, found.best.result
            _tell(result.report, found, goal, settings)
        else:
            recipe = Recipe((*first, find_pass("quantize-weights")()))
            result = run(recipe.steps, model, settings, worker)
        report = _write(result, recipe.steps, out, options, storage)
    if report.ratio < _HARDLY and storage not in ("packed", "coded"):
        report.warnings.append(
            "hardly any smaller; --storage packed codes what the weights are, without loss"
        )
    if recipe_out is not None:
        with output(Path(recipe_out)) as file:
            file.write(replace(recipe, storage=storage).to_yaml().encode())
    report.missed += _too_big(report, max_size, target_ratio)
    if report.missed:
        raise BudgetMissed(
            f"{out}: written, {report.ratio:.2f}x smaller, but the goal was missed: "
            + "; ".join(report.missed),
            report,
        )
    return report


def _tell(report: Report, found: Found, goal: Goal, settings: Settings) -> None:
    """Put what a search has found out into the report."""
    best = found.best
    if best.result.answers is not None:
        kinds = goal.kinds(best.result.answers[0])
        report.measures = {name: f"{known.kind}: {known.why}" for name, known in kinds.items()}
    report.moved = best.moved
    report.tried, report.missed = found.rows, list(best.misses)
    report.promises = [str(promise) for promise in best.promises or ()]
    report.missed += [str(promise) for promise in best.promises or () if promise.refuses]
    if best.strain > 1:
        report.missed.append(f"{best.strain:.3g} times what may be lost is lost")
    if found.looks > 1:
        report.promises.append(
            f"{found.looks} results were held against these inputs, which the intervals allow for"
        )
    if not settings.unseen:
        why = "--metric needs the answers to all inputs" if goal.metric else (
            f"{len(settings.feeds)} inputs are too few to hold any back; give at least 4"
        )  # fmt: skip
        report.warnings.append(f"nothing is promised for unseen inputs: {why}")
    if found.stopped:
        report.warnings.append(f"{found.stopped}: this is the best that had been found")


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
        goal: What the answers must keep; see :class:`onnxshrink.goal.Goal`.
        recipe_out: Where to write the step with what it leaves alone.

    Raises:
        RecipeError: There are no calibration inputs, or nothing is to be checked.
        ShrinkError: As for :func:`apply_recipe`.
    """
    from onnxshrink.goal import Goal
    from onnxshrink.runtime.worker import Worker
    from onnxshrink.search import exclude
    from onnxshrink.search.partial_step import Parts

    options = options or Options()
    if options.calibration is None or options.check == "off":
        raise RecipeError(f"{step.name}: what to leave alone is found on --calibration inputs")
    with Worker(**options.worker) as worker:
        worker.start()
        model, settings = _prepare(source, out, options, worker, _files_of([step]), recipe_out)
        parts = Parts(model, step, settings, worker)
        found = exclude.find_exclusions(parts, goal or Goal(), options.progress)
        result = run(found.recipe.steps, model, settings, worker)
        result.report.moved = found.moved
        report = _write(result, found.recipe.steps, out, options)
    if recipe_out is not None:
        with output(Path(recipe_out)) as file:
            file.write(found.recipe.to_yaml().encode())
    return report


def load(source: StrPath, options: Options | None = None) -> tuple[Model, list[dict[str, Any]]]:
    """A model file, and inputs for it: those that the options name, or generated ones.

    Raises:
        ShrinkError: The model or the inputs cannot be read.
    """
    from onnxshrink.graph.forms import coded_read

    options = options or Options()
    model, _ = coded_read.load(source)
    return model, _feeds(model, options, None)


def bench_pair(source: StrPath, out: StrPath, options: Options) -> dict[str, Any]:
    """Latency of a result against its source: median ratio with its 95 % interval."""
    from onnxshrink.runtime.bench import FEWEST_ROUNDS, bench

    _, feeds = load(source, options)
    first, second = bench([source, out], feeds[:4], rounds=FEWEST_ROUNDS + 3).models
    return {
        "ratio": second.ratio, "low": second.ratio_low, "high": second.ratio_high,
        "before_ms": first.seconds * 1e3, "after_ms": second.seconds * 1e3,
    }  # fmt: skip


def _cleaning(model: Model) -> tuple[Pass, ...]:
    """The passes that change no answers: clean, and those of ai.onnx.ml where that gains."""
    steps = [find_pass("clean")()]
    if any(node.op_type.startswith("TreeEnsemble") for node in model.nodes):
        steps.append(find_pass("merge-trees")())
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


def _selected(steps: Iterable[Pass]) -> Iterator[str]:
    """The names and patterns by which options of some passes select."""
    for values in map(dump, steps):
        for name in ("only", "among", "keep", "layers"):
            yield from map(str, values.get(name, ()))


def _files_of(steps: Iterable[Pass]) -> list[str]:
    """The files that options of some passes name: they are read."""
    return files.likely(value for step in steps for value in dump(step).values())


def _prepare(
    source: StrPath, out: StrPath, options: Options, worker: Worker,
    reads: Iterable[StrPath] = (), recipe_out: StrPath | None = None, storage: Storage = "auto",
    held_back: bool = False,
) -> tuple[Model, Settings]:  # fmt: skip
    """Load the model and its inputs; find out now whether the results could be written."""
    from onnxshrink.graph.forms import coded_read
    from onnxshrink.kernels.split import Split, hold_back
    from onnxshrink.runtime.calibration_cache import CalibrationCache
    from onnxshrink.runtime.inputs import source_files
    from onnxshrink.runtime.worker import blamed

    model, _ = coded_read.load(source)
    model.max_opset = options.max_opset
    also = (file for file in (recipe_out, options.calibration_cache) if file is not None)
    inputs: set[StrPath] = {*model.own_files, *source_files(options.calibration)}
    files.check([*inputs, *options.reads, *reads], [out, *options.writes, *also])
    cache = None
    if options.calibration_cache is not None:
        cache = CalibrationCache(Path(options.calibration_cache))
    feeds: list[dict[str, Any]] = []
    left = 0
    if options.calibration is not None or options.check != "off":
        with blamed(source):
            feeds, left = _chosen(model, options, worker, 2 if held_back else 1)
    seen, unseen = hold_back(len(feeds), _CALIBRATION) if held_back else (range(len(feeds)), ())
    return model, Settings(
        check=options.check, feeds=Split.of(feeds, seen), unseen=Split.of(feeds, unseen),
        generated=options.calibration is None, seed=options.seed, cache=cache, left=left,
        folder=Path(out).absolute().parent, progress=options.progress,
        storage=options.storage or storage, compare_at=options.compare_at,
    )  # fmt: skip


def _feeds(model: Model, options: Options, worker: Worker | None) -> list[dict[str, Any]]:
    return _chosen(model, options, worker)[0]


def _chosen(
    model: Model, options: Options, worker: Worker | None, times: int = 1
) -> tuple[list[dict[str, Any]], int]:
    """Inputs, real or generated, and how many more were given."""
    from onnxshrink.runtime.generate import generated_inputs
    from onnxshrink.runtime.inputs import choose_inputs

    if options.calibration is not None:
        return choose_inputs(
            options.calibration, model, limit=times * _CALIBRATION, most_bytes=options.data_limit
        )
    made = generated_inputs(model, _GENERATED, options.seed, shapes=options.shapes, worker=worker)
    return made, 0


def _write(
    result: Result, steps: Iterable[Pass], out: StrPath, options: Options, storage: Storage = "auto"
) -> Report:
    from onnxshrink.graph.file.data_files import data_files
    from onnxshrink.graph.forms import coded, coded_read, packed

    report = result.report
    report.result = str(out)
    names = None
    if report.changed and not options.keep_names:
        names = result.model.shorten_names(list(_selected(steps)))
    storage = options.storage or storage
    if was := coded_read.names(report.source):
        storage = "coded" if storage == "auto" else storage
        report.warnings.append(f"the input's {len(was)} coded tensors were made plain to work on")
    link, old = os.path.islink(out), data_files(Path(out))
    try:
        if storage == "packed":
            report.bytes_after = packed.save(result.model, out)
        elif storage == "coded":
            report.bytes_after, coding = coded.save(result.model, out)
            report.warnings += coding.warnings()
    except BudgetMissed as error:
        report.warnings.append(f"stored as one plain file: {error}")
        storage = "auto"
    if storage != "packed" and storage != "coded":
        report.bytes_after = result.model.save(out, storage)
        done = (step.name for step in report.steps if step.status == "done")
        report.warnings += [
            f"{name}: its codes are small only where they are coded: --storage coded or packed"
            for name in done if name in pass_names() and find_pass(name).for_packing
        ]  # fmt: skip
    report.renamed = {} if names is None else names.given
    report.bytes_gzip = files.gzip_bytes({Path(out), *data_files(Path(out))})
    if link:
        report.warnings.append(f"{out} was a link; it is a file now, and its target is as it was")
    gone = sorted(file.name for file in old if not file.exists())
    report.warnings += [f"removed {name}, which the model there had its data in" for name in gone]
    return report
