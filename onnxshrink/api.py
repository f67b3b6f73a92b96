"""What the command line does, for Python: shrink a model, apply a recipe.

Both load, run the passes under their contract, and write the result in one go.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxshrink import budget, files, provenance
from onnxshrink.contract import Judge, Level, Settings
from onnxshrink.errors import BudgetMissed, RecipeError
from onnxshrink.files import output
from onnxshrink.options import build, dump
from onnxshrink.pipeline import Pass, Result, run
from onnxshrink.progress import Progress, silent
from onnxshrink.reading import Reading
from onnxshrink.recipe import Recipe, Storage, find_pass, pass_names
from onnxshrink.report import Report, size

if TYPE_CHECKING:
    from onnxshrink.goal import Aim, Goal
    from onnxshrink.graph.file.model import Model
    from onnxshrink.runtime.inputs import Chosen
    from onnxshrink.runtime.worker import Worker
    from onnxshrink.search.front import Point

_GENERATED = 4
_CALIBRATION = 64
_WORTH_LOWERING = 256  # fewer coefficients take less room than the nodes in their place
_WORTH = 0.03  # of a file: what coding must save to be done, or at least spoken of
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
        storage: ``auto``, ``single`` file, ``external`` data, ``packed``: entropy-coded in one
            file for readers, see :func:`session`; or ``coded``: entropy-coded in one plain file
            that runtimes open as it is.
        calibration_cache: A file for the statistics of calibration runs, to be used again by later
            runs on the same model and inputs.
        keep_names: Whether names of values and nodes stay that nobody outside asks for; else they
            are shortened where that makes the file clearly smaller.
        max_opset: The operator set up to which steps may raise the model's.
        progress: Called with what is done, how much of it, and out of how much; see
            :mod:`onnxshrink.progress`.
        reading: How pictures, sentences, sounds and tables among the inputs become numbers.
        data_limit: Bytes that one array of a compressed file of inputs may unpack to; 4 GiB by
            default.
        worker: For ``runtime.worker.Worker``: ``timeout``, ``memory_limit``, ``custom_ops``.
        compare_at: Names of values that are compared in place of the outputs behind them, where a
            model ranks or picks; what the graph itself says of that needs no names.
        reads: Other files that the caller reads for this run: its recipe, say. None is written to.
        writes: Other files that the caller will write: its report, say.
        certificate: Whether to write a certificate beside the result; see
            :mod:`onnxshrink.certificate`.
        sign: A file with an Ed25519 private key in PEM to sign the certificate with.
        command: What was typed for this run, for its report.
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
    progress: Progress = silent
    data_limit: int | None = None
    reading: Reading = field(default_factory=Reading)
    worker: Mapping[str, Any] = field(default_factory=dict)
    reads: tuple[StrPath, ...] = ()
    writes: tuple[StrPath, ...] = ()
    certificate: bool = False
    sign: StrPath | None = None
    command: str = ""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise RecipeError(f"seed takes a whole number of at least 0, not {self.seed}")

    @classmethod
    def of(cls, given: Options | None) -> Options:
        """What a function was given; all as by default where that is nothing.

        Raises:
            RecipeError: It is something else: the inputs themselves, most likely.
        """
        if not isinstance(given, cls | None):
            kind = type(given).__name__
            raise RecipeError(f"options takes onnxshrink.Options(calibration=...), not a {kind}")
        return given or cls()


def apply_recipe(
    recipe: Recipe | StrPath, source: StrPath, out: StrPath, options: Options | None = None, *,
    goal: Goal | None = None, max_size: int | None = None, target_ratio: float | None = None,
) -> Report:  # fmt: skip
    """Apply a recipe to a model file and write the result.

    The result is written even when every step was rolled back: it then equals the input.

    Args:
        recipe: The passes; or the name of a recipe of the package, or a recipe file.
        source: The model file; never modified.
        out: Where the result goes.
        options: How to run.
        goal: What the answers must keep, on real inputs that no step sees: where one of them asks
            for inputs, every fourth is held back. None holds the result to nothing but the
            contracts of its steps.
        max_size: Bytes that the result must not exceed.
        target_ratio: How many times smaller it must be.

    Raises:
        BudgetMissed: The result was written, but is too big or strays too far.
        ShrinkError: Whatever is wrong with the recipe, the model, the inputs or the output;
            nothing is written then.
    """
    from onnxshrink.runtime.worker import Worker

    options = Options.of(options)
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.find(os.fspath(recipe))
    with Worker(**options.worker) as worker:
        worker.start()  # it imports ONNX Runtime while this process reads the model
        reads: list[StrPath] = [*recipe.reads, *_files_of(recipe.steps)]
        model, settings = prepare(
            source, out, options, worker, reads, storage=recipe.storage, held_back=recipe.held_back,
            goal=goal, steps=recipe.steps,
        )  # fmt: skip
        result, steps, missed = budget.kept(recipe.steps, model, settings, goal, worker)
        held_back = recipe.held_back or bool(settings.unseen)
        recipe = replace(recipe, steps=tuple(steps), held_back=held_back)
        if goal is not None:
            result.report.asked = {**goal.asks, **budget.sizes_asked(max_size, target_ratio)}
        report = write(result, recipe, out, options, recipe.storage)
    provenance.trace(report, settings, options.command)
    _certify(report, settings, options)
    report.missed += missed
    return budget.held(report, out, max_size, target_ratio)


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
    aim: Aim = "size",
    target: str = "cpu",
    pareto: StrPath | None = None,
    keep_best: bool = False,
    keep_metadata: bool = False,
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
        aim: ``size``; or ``latency`` or ``memory``, measured on this machine: the least of that
            which keeps the answers, and of those the smallest file.
        target: Where the result shall run: ``cpu``, ``cpu-vnni``, ``web``, ``mobile`` or
            ``openvino``. It says what the result may have that the model did not.
        pareto: A folder for models from near-lossless to smallest, with a table and a plot.
        keep_best: Whether a result that misses something takes the place of an older one, too.
        keep_metadata: Whether what exporters note at nodes stays, which no runtime reads.

    Raises:
        BudgetMissed: The best result is too big or strays too far. It was written where nothing
            stood at ``out``, or where ``keep_best`` says so.
        ShrinkError: As for :func:`apply_recipe`.
    """
    from onnxshrink import certificate
    from onnxshrink.goal import Goal
    from onnxshrink.graph.file.data_files import kept
    from onnxshrink.runtime.worker import Worker
    from onnxshrink.search import front, telling
    from onnxshrink.search.evaluation import Evaluator
    from onnxshrink.search.platform import PLATFORMS
    from onnxshrink.search.smallest import Search

    options = Options.of(options)
    goal = goal or Goal()
    if target not in PLATFORMS:
        raise RecipeError(f"target takes one of {', '.join(PLATFORMS)}, not {target!r}")
    storage = options.storage or "coded"
    deadline = None if time_limit is None else time.monotonic() + time_limit
    with Worker(**options.worker) as worker:
        worker.start()
        # A metric is about all inputs in their order: it would not know what to make of a part.
        parts = goal.metric is None
        model, settings = prepare(
            source, out, options, worker, (), recipe_out, storage, held_back=parts
        )
        first = cleaning(model, keep_metadata)
        known = options.calibration is not None and options.check != "off"
        warnings = []
        if (
            known
            and goal.metric is not None
            and (why := budget.blind(goal, model, settings, worker))
        ):
            goal, warnings = replace(goal, metric=None, max_drop=None), [why]
        points: list[Point] = []
        if known and not Judge(model, settings, worker).proves_nothing:
            where = PLATFORMS[target]
            ask = Evaluator(model, first, settings, goal, worker, storage, where)
            found = Search(ask, aim, deadline).run()
            recipe, result = found.best.recipe, found.result
            telling.tell(result, found, goal, settings, aim)
            if pareto is not None:
                points = front.write(ask, found, Path(pareto))
        else:
            recipe = Recipe((*first, find_pass("quantize-weights")()))
            result = run(recipe.steps, model, settings, worker)
            if pareto is not None:
                raise RecipeError("--pareto takes --calibration inputs that the outputs answer to")
    with kept(Path(out), [certificate.path_of(out)]) as put_back:
        report = write(result, recipe, out, options, storage)
        report.asked = {
            "goal": aim, "target": target, **goal.asks,
            **budget.sizes_asked(max_size, target_ratio, time_limit),
        }  # fmt: skip
        provenance.trace(report, settings, options.command)
        _certify(report, settings, options)
        report.warnings += warnings
        if points:
            report.front = front.table(points, report.bytes_before)
            report.tried = front.merged(report.tried, points)
        if report.ratio < _HARDLY and storage not in ("packed", "coded"):
            report.warnings.append(
                "hardly any smaller; --storage packed codes what the weights are, without loss"
            )
        if recipe_out is not None:
            with output(Path(recipe_out)) as file:
                file.write(replace(recipe, storage=storage).to_yaml().encode())
        older = None if keep_best else put_back
        return budget.held(report, out, max_size, target_ratio, older)


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
    from onnxshrink.search.partial_step import PartialStep

    options = Options.of(options)
    if options.calibration is None or options.check == "off":
        raise RecipeError(f"{step.name}: what to leave alone is found on --calibration inputs")
    with Worker(**options.worker) as worker:
        worker.start()
        model, settings = prepare(source, out, options, worker, _files_of([step]), recipe_out)
        parts = PartialStep(model, step, settings, worker)
        found = exclude.find_exclusions(parts, goal or Goal(), options.progress)
        result = run(found.recipe.steps, model, settings, worker)
        result.report.moved = found.moved
        report = write(result, found.recipe, out, options)
    provenance.trace(report, settings, options.command)
    _certify(report, settings, options)
    if recipe_out is not None:
        with output(Path(recipe_out)) as file:
            file.write(found.recipe.to_yaml().encode())
    return report


def load(
    source: StrPath, options: Options | None = None, worker: Worker | None = None
) -> tuple[Model, list[dict[str, Any]]]:
    """A model file, and inputs for it: those that the options name, or generated ones.

    Args:
        source: The model file.
        options: How to run.
        worker: Where generated inputs are tried; without one, a process is started for it.

    Raises:
        ShrinkError: The model or the inputs cannot be read.
    """
    from onnxshrink.graph.forms import coded_read

    options = Options.of(options)
    model, _ = coded_read.load(source)
    return model, _feeds(model, options, worker)


def cleaning(model: Model, keep_metadata: bool = False) -> tuple[Pass, ...]:
    """The passes that change no answers: clean, and those of ai.onnx.ml where that gains."""
    from onnxshrink.graph.rewrite import trees

    steps = [build(find_pass("clean"), {"keep_metadata": keep_metadata}, "cleaning")]
    if any(map(trees.merges, model.nodes)):
        steps.append(find_pass("merge-trees")())
    stored = [node.attributes.get("coefficients") for node in model.nodes]
    numbers = [found.as_floats() for found in stored if found is not None and not found.is_ref()]
    if any(len(each) >= _WORTH_LOWERING for each in numbers):
        steps.append(find_pass("lower-ml")())
    return tuple(steps)


def _files_of(steps: Iterable[Pass]) -> list[str]:
    """The files that options of some passes name: they are read."""
    return files.likely(value for step in steps for value in dump(step).values())


def prepare(
    source: StrPath, out: StrPath, options: Options, worker: Worker,
    reads: Iterable[StrPath] = (), recipe_out: StrPath | None = None, storage: Storage = "auto",
    held_back: bool = False, goal: Goal | None = None, steps: Sequence[Pass] = (),
) -> tuple[Model, Settings]:  # fmt: skip
    """Load the model and its inputs; find out now whether the results could be written."""
    from onnxshrink.goal import Goal
    from onnxshrink.graph.forms import coded_read
    from onnxshrink.kernels.split import Split, hold_back
    from onnxshrink.runtime.calibration_cache import CalibrationCache, data_digest
    from onnxshrink.runtime.inputs import source_files
    from onnxshrink.runtime.worker import blamed

    model, _ = coded_read.load(source)
    model.max_opset = options.max_opset
    if goal is not None and goal.metric is None and options.calibration is not None:
        held_back = held_back or any(budget.sees(step, model) for step in steps)
    also = (file for file in (recipe_out, options.calibration_cache) if file is not None)
    inputs: set[StrPath] = {*model.own_files, *source_files(options.calibration)}
    files.check(
        [*inputs, *options.reading.files, *options.reads, *reads], [out, *options.writes, *also]
    )
    cache = None
    if options.calibration_cache is not None:
        cache = CalibrationCache(Path(options.calibration_cache))
    feeds: list[dict[str, Any]] = []
    left, notes, places = 0, tuple[str, ...](), tuple[str, ...]()
    if options.calibration is not None or options.check != "off":
        with blamed(source, worker):
            feeds, left, notes, places = _chosen(model, options, worker, 2 if held_back else 1)
        if held_back:  # what equals an input that a step has seen is not unseen
            known = reversed([*zip(feeds, places or map(str, range(len(feeds))), strict=True)])
            different = {data_digest([feed]): (feed, place) for feed, place in known}
            left += len(feeds) - len(different)
            feeds = [feed for feed, _ in different.values()][::-1]
            places = tuple(place for _, place in different.values())[::-1]
    seen, unseen = hold_back(len(feeds), _CALIBRATION) if held_back else (range(len(feeds)), ())
    return model, Settings(
        check=options.check, feeds=Split.of(feeds, seen), unseen=Split.of(feeds, unseen),
        unseen_places=tuple(Split.of(places, unseen)) if places else (),
        generated=options.calibration is None, seed=options.seed, cache=cache, left=left,
        notes=notes, folder=Path(out).absolute().parent, progress=options.progress,
        storage=options.storage or storage, goal=goal or Goal(), compare_at=options.compare_at,
        reading=options.reading, keep_names=options.keep_names,
    )  # fmt: skip


def _feeds(model: Model, options: Options, worker: Worker | None) -> list[dict[str, Any]]:
    return _chosen(model, options, worker).feeds


def _chosen(model: Model, options: Options, worker: Worker | None, times: int = 1) -> Chosen:
    """Inputs, real or generated, and what is to be known of them."""
    from onnxshrink.runtime.generate import generated_inputs
    from onnxshrink.runtime.inputs import Chosen, choose_inputs

    if options.calibration is not None:
        return choose_inputs(
            options.calibration, model, limit=times * _CALIBRATION, most_bytes=options.data_limit,
            reading=options.reading,
        )  # fmt: skip
    made = generated_inputs(model, _GENERATED, options.seed, shapes=options.shapes, worker=worker)
    return Chosen(made, 0)


def write(
    result: Result, recipe: Recipe, out: StrPath, options: Options, storage: Storage = "auto"
) -> Report:
    """Write a result in the storage that is asked for; its report, with what came of it."""
    from onnxshrink import certificate
    from onnxshrink.graph.file.data_files import data_files, superseded
    from onnxshrink.graph.forms import coded, coded_read, codes, packed
    from onnxshrink.graph.rewrite.opset import first_runtime

    report = result.report
    report.result = str(out)
    done = [step.name for step in report.steps if step.status == "done"]
    packing = [n for n in done if n in pass_names() and find_pass(n).for_packing]
    names = None
    cleans = any(step.name == "clean" for step in report.steps)
    if (report.changed or cleans) and not options.keep_names:
        names = result.model.shorten_names(recipe.selected)
    asked = storage = options.storage or storage
    form, was = coded_read.form_of(report.source)
    if form:
        storage = form if storage == "auto" else storage
        report.warnings.append(f"{was} made plain to work on")
    instead = ""
    if packing and storage == "auto" and options.storage is None:
        beyond, plain = codes.wide_bytes(result.model) // 2, result.model.nbytes()
        if beyond > _WORTH * plain:  # as plain integers they are larger than int8 would be
            storage = "coded"
            instead = (
                f"stored with coded weights: as 16-bit integers they would take {size(plain)}, "
                f"where 8 bits take {size(plain - beyond)}; --storage single writes these"
            )
    if options.certificate:
        decide = {name: getattr(options, name) for name in certificate.OPTIONS}
        note = certificate.origin(replace(recipe, storage=asked), report.source, decide)
        result.model.ir.metadata_props[certificate.KEY] = json.dumps(note, separators=(",", ":"))
        report.origin = note
    link, old, coding_missed = os.path.islink(out), data_files(Path(out)), False
    try:
        if storage == "packed":
            report.bytes_after = packed.save(result.model, out)
        elif storage == "coded":
            report.bytes_after, coding = coded.save(result.model, out)
            report.warnings += [*coding.warnings(), *filter(None, [instead])]
    except BudgetMissed as error:
        report.warnings.append(f"stored as one plain file: {error}")
        storage, coding_missed = "auto", True
    if storage != "packed" and storage != "coded":
        whole = report.bytes_after = result.model.save(out, storage)
        report.warnings += [
            f"{step.name}: in a plain file its codes take whole bytes, {size(whole)} in all; "
            f"--storage packed makes about {size(whole - step.coding_saves)} of it, for readers of "
            "packs, and --storage coded a little more, for any runtime"
            for step in report.steps
            if step.name in packing and step.coding_saves > _WORTH * whole and not coding_missed
        ]
    report.renamed = {} if names is None else names.given
    if report.renamed and not report.changed:
        report.shortened("clean")
    written = {Path(out), *data_files(Path(out))}
    report.bytes_gzip, report.bytes_brotli = files.sent_bytes(written)
    report.storage = storage
    report.runtime, report.packed = first_runtime(result.model), storage == "packed"
    if link:
        report.warnings.append(f"{out} was a link; it is a file now, and its target is as it was")
    report.warnings += superseded(old, Path(out))
    return report


def _certify(report: Report, settings: Settings, options: Options) -> None:
    """Measure a result on inputs that no step has seen, where there are some, and certify it."""
    if options.certificate:
        from onnxshrink import certificate

        certificate.issue(report, settings, options.worker, options.sign)
