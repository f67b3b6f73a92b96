"""The commands that look at models, hold them against each other or store them, for Python.

They run no pass and change no weight; what makes a model smaller is in :mod:`onnxshrink.api`, and
one function for each pass in :mod:`onnxshrink.steps`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from onnxshrink import api, files
from onnxshrink.api import Options
from onnxshrink.errors import RecipeError

if TYPE_CHECKING:
    from onnxshrink.graph.inspect.packs import PackInspection
    from onnxshrink.graph.inspect.statistics import Inspection
    from onnxshrink.runtime.bench import BenchResult
    from onnxshrink.runtime.compare import Comparison
    from onnxshrink.runtime.places import Place
    from onnxshrink.runtime.session import SessionOptions
    from onnxshrink.runtime.worker import Worker
    from onnxshrink.search.sensitivity import Sensitivity

StrPath = str | os.PathLike[str]
Feeds = list[dict[str, Any]]

_BENCHED = 8  # inputs that models take turns with
_GENERATED = 4
_log = logging.getLogger(__name__)


def inputs_for(
    model: StrPath, options: Options, count: int, worker: Worker,
    say: Callable[[str], None] = _log.warning,
) -> Feeds:  # fmt: skip
    """Real inputs for a model where the options name some, else generated ones.

    Args:
        model: The model file.
        options: Where inputs are, and how they are read.
        count: Use at most this many.
        worker: Where the model is run to find out what it takes.
        say: Told what the user must know of them.

    Raises:
        ShrinkError: The model or the inputs cannot be read, or do not fit.
    """
    from onnxshrink.graph.forms import coded_read
    from onnxshrink.runtime.generate import generated_inputs
    from onnxshrink.runtime.inputs import choose_inputs
    from onnxshrink.runtime.worker import blamed

    worker.start()
    loaded, _ = coded_read.load(model)
    if options.calibration is not None:
        chosen = choose_inputs(
            options.calibration, loaded, limit=count, most_bytes=options.data_limit,
            reading=options.reading,
        )  # fmt: skip
        for note in chosen.notes:
            say(note)
        return chosen.feeds
    say("inputs are generated; pass --calibration")
    with blamed(model, worker):
        return generated_inputs(
            loaded, _GENERATED, options.seed, shapes=options.shapes, worker=worker
        )


def compare(
    reference: StrPath, other: StrPath, options: Options | None = None, *, count: int = 64,
    atol: float | None = None, rtol: float | None = None, min_agreement: float | None = None,
    max_error: float | None = None, max_kl: float | None = None,
    max_perplexity_rise: float | None = None, session: SessionOptions | None = None,
    provider: str | None = None,
    say: Callable[[str], None] = _log.warning,
) -> Comparison:  # fmt: skip
    """Run two models on the same inputs and compare their outputs, by name.

    Args:
        reference: The model that is right.
        other: The model that is held against it.
        options: Where inputs are; without any, some are generated.
        count: Use at most this many inputs.
        atol: Absolute difference allowed for every value.
        rtol: Relative difference allowed for every value.
        min_agreement: Least top-1 agreement, 0 to 1.
        max_error: Largest relative L2 error of an output.
        max_kl: Largest mean divergence of rows of classes, in nats.
        max_perplexity_rise: How much higher, relatively, the perplexity of tokens may be.
        session: How the models run; see :class:`onnxshrink.runtime.session.SessionOptions`.
        provider: The execution provider of the other, where it is not that of the reference.
        say: Told what the user must know of the inputs.

    Returns:
        The figures; its ``missed`` says which thresholds do not hold.

    Raises:
        ShrinkError: A model or an input cannot be read or run.
    """
    from onnxshrink.runtime.compare import compare as run_compare
    from onnxshrink.runtime.session import DEFAULT_OPTIONS
    from onnxshrink.runtime.worker import Worker

    options = Options.of(options)
    first = session or DEFAULT_OPTIONS
    second = first if provider is None else replace(first, provider=provider)
    with Worker(**options.worker) as worker:
        feeds = inputs_for(reference, options, count, worker, say)
        return run_compare(
            reference, other, feeds, options_a=first, options_b=second, atol=atol, rtol=rtol,
            min_agreement=min_agreement, max_error=max_error, max_kl=max_kl,
            max_perplexity_rise=max_perplexity_rise, worker=worker,
        )  # fmt: skip


def bench(
    models: Sequence[StrPath], options: Options | None = None, *, rounds: int = 25,
    operators: bool = False, session: SessionOptions | None = None,
    say: Callable[[str], None] = _log.warning,
) -> BenchResult:  # fmt: skip
    """Measure size, latency, load time and memory of models, which take turns.

    Args:
        models: The models; ratios are to the first.
        options: Where inputs are; without any, some are generated.
        rounds: How often each is timed.
        operators: Whether to measure, too, what each operator takes.
        session: How they run; see :class:`onnxshrink.runtime.session.SessionOptions`.
        say: Told what the user must know of the inputs.

    Raises:
        ShrinkError: A model or an input cannot be read or run, or there are too few rounds.
    """
    from onnxshrink.runtime.bench import bench as run_bench
    from onnxshrink.runtime.session import DEFAULT_OPTIONS
    from onnxshrink.runtime.worker import Worker

    options = Options.of(options)
    if not models:
        raise RecipeError("bench takes one model or more")
    with Worker(**options.worker) as worker:
        feeds = inputs_for(models[0], options, _BENCHED, worker, say)
        worker.release()
        return run_bench(
            models, feeds, session or DEFAULT_OPTIONS, rounds, seed=options.seed, worker=worker,
            operators=operators,
        )  # fmt: skip


def bench_pair(source: StrPath, out: StrPath, options: Options) -> dict[str, Any]:
    """Latency of a result against its source: median ratio with its 95 % interval."""
    from onnxshrink.runtime.bench import FEWEST_ROUNDS, bench
    from onnxshrink.runtime.worker import Worker

    with Worker(**options.worker) as worker:
        _, feeds = api.load(source, options, worker)
        worker.release()
        found = bench([source, out], feeds[:4], rounds=FEWEST_ROUNDS + 3, worker=worker)
    first, second = found.models
    return {
        "ratio": second.ratio, "low": second.ratio_low, "high": second.ratio_high,
        "before_ms": first.seconds * 1e3, "after_ms": second.seconds * 1e3,
    }  # fmt: skip


def inspect(
    model: StrPath, *, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> Inspection | PackInspection:
    """What a model is made of: operators, weights, types, multiply-accumulates, bits a weight.

    Args:
        model: A model, plain, coded or packed.
        shapes: Shapes of inputs by name, for the multiply-accumulates of a plain one.

    Raises:
        ModelError: It cannot be read.
    """
    from onnxshrink.graph.forms.packed import is_packed
    from onnxshrink.graph.inspect.coded_file import inspect_file
    from onnxshrink.graph.inspect.packs import inspect_pack
    from onnxshrink.runtime.worker import blamed

    # Nobody has checked what is walked here: a walk that fails asks the checker.
    with blamed(model):
        if is_packed(model):
            return inspect_pack(model)
        return inspect_file(model, shapes or {})


@dataclass(frozen=True)
class Stored:
    """A model that was stored in another form.

    Attributes:
        result: Where it is.
        bytes_before: What the input took on the disk, data included.
        bytes_after: What the result takes.
        warnings: What was not stored as it was asked for.
    """

    result: str
    bytes_before: int
    bytes_after: int
    warnings: tuple[str, ...] = ()


def pack(
    source: StrPath, out: StrPath, *, form: Literal["sidecar", "graph"] = "sidecar",
    base: StrPath | None = None, readers: Sequence[Literal["c", "js"]] = (),
) -> Stored:  # fmt: skip
    """Code a model's weights without loss: for readers of packs, or in the graph.

    Args:
        source: The model; never modified.
        out: Where the result goes, one file.
        form: ``sidecar``: smallest, for readers of packs; ``graph``: a plain .onnx that every
            runtime opens.
        base: A packed model whose tensors need not be stored again.
        readers: Which readers to write beside ``out``.

    Raises:
        BudgetMissed: It would not get smaller; nothing is written.
        ShrinkError: The model cannot be read, or the result not be written.
    """
    from onnxshrink.graph.forms import coded, coded_read, packed
    from onnxshrink.runtime.worker import blamed

    if form == "graph" and (base is not None or readers):
        raise RecipeError("a base and readers are for packs, not for weights coded in the graph")
    model, _ = coded_read.load(source)
    before = model.stored_bytes()
    beside = [packed.reader_path(kind, Path(out).parent) for kind in readers]
    bases = [] if base is None else [Path(base), packed.base_path(base)]
    files.check([*model.own_files, *bases], [Path(out), *beside])
    warnings: tuple[str, ...] = ()
    with blamed(source):  # nobody has checked the graph
        if form == "graph":
            after, coding = coded.save(model, out)
            warnings = tuple(coding.warnings())
        else:
            after = packed.save(model, out, base=base)
    for kind in readers:
        packed.write_reader(kind, Path(out).parent)
    return Stored(str(out), before, after, warnings)


def unpack(
    source: StrPath, out: StrPath, *, base: StrPath | None = None, limit: int | None = None,
    storage: Literal["auto", "single", "external"] = "auto",
) -> Stored:  # fmt: skip
    """Turn a packed or coded model into a plain one, bit for bit.

    Args:
        source: The packed or coded model.
        out: Where the plain one goes.
        base: The pack that a packed one updates, if it does.
        limit: Bytes that it may unpack to; 16 GiB by default.
        storage: One file, external data beside it, or external above 2 GB only.

    Raises:
        ModelError: It is neither, or damaged.
        OutputError: The result cannot be written.
    """
    from onnxshrink.graph.forms import coded_read, packed

    if not packed.is_packed(source) and coded_read.names(source):
        model, _ = coded_read.load(source)
        return Stored(str(out), model.stored_bytes(), model.save(out, storage))
    after = packed.unpack(source, out, storage, base=base, limit=limit)
    return Stored(str(out), packed.stored_bytes(source), after)


@dataclass(frozen=True)
class Verified:
    """What was found right about a model.

    Attributes:
        tensors: How many coded or packed tensors have the right checksum.
        certificate: The certificate that its files fit, if there is one.
        signed: Whether the certificate is signed; only a ``key`` tells by whom.
        feeds: How many inputs were measured again.
        latency: The time of a run over that of the original, measured again and certified; it is a
            figure of the machine.
        files: How many files of a bundle are as its manifest says.
        where: What holds the tensors.
    """

    tensors: int = 0
    certificate: Path | None = None
    signed: bool = False
    feeds: int = 0
    latency: tuple[float, float] | None = None
    files: int = 0
    where: str = ""


def verify(
    source: StrPath, options: Options | None = None, *, base: StrPath | None = None,
    limit: int | None = None, certificate: StrPath | None = None, key: StrPath | None = None,
    original: StrPath | None = None, places: Sequence[Place] = (),
) -> Verified:  # fmt: skip
    """Check every checksum of a packed or coded model, its certificate, or a bundle.

    Args:
        source: The model, or the folder of a bundle.
        options: With inputs and ``original``: certified figures are measured again.
        base: The pack that this one updates, if it does.
        limit: Bytes that it may unpack to; 16 GiB by default.
        certificate: By default the file beside the model, where that is there.
        key: The public key (Ed25519, PEM) that must fit.
        original: The model that the certified one was made from.
        places: Other places of which the figures are measured again, too.

    Raises:
        ModelError: A checksum is wrong, or the files are not the certified ones.
        BudgetMissed: A figure is worse than certified.
        RecipeError: The options do not go together.
    """
    from onnxshrink.certificate import check_files, path_of, read, stored
    from onnxshrink.graph.forms import coded_read, packed
    from onnxshrink.reproducing import recheck

    options = Options.of(options)
    if Path(source).is_dir():
        from onnxshrink import bundling

        return Verified(files=bundling.verify(source, key), signed=key is not None)
    if (original is None) != (options.calibration is None) or (places and original is None):
        raise RecipeError("--original and --calibration go together: figures need both")
    certified = certificate is not None or path_of(source).exists()
    if not certified and (key is not None or original is not None):
        raise RecipeError(f"{path_of(source)}: is not there; name the --certificate")
    done = Verified()
    if certified:
        found = read(certificate or path_of(source), key)
        check_files(found, stored(source))
        signed = bool(found.content.get("signature"))
        done = replace(done, certificate=Path(found.path), signed=signed)
        if original is not None:
            measured = recheck(found, original, source, options, places)
            latency = found.content["figures"]["latency"]
            done = replace(
                done, feeds=measured.comparison.feeds,
                latency=(measured.latency.median, latency["median"]),
            )  # fmt: skip
    if not packed.is_packed(source):
        if coded_read.names(source):
            return replace(done, tensors=coded_read.verify(source), where=str(source))
        if certified:
            return done
    with packed.open_pack(source, base=base, limit=limit) as opened:
        opened.verify()
        return replace(done, tensors=len(opened), where=str(opened.path))


def sensitivity(
    model: StrPath, step: str = "quantize-weights", options: Options | None = None, *,
    settings: Mapping[str, Any] | None = None, count: int = 16,
    by: Literal["weight", "node"] = "weight", say: Callable[[str], None] = _log.warning,
) -> Sensitivity:  # fmt: skip
    """Measure what a step does to the outputs, weight by weight, alone and with others.

    Args:
        model: The model; never modified.
        step: The name of any pass that selects weights.
        options: Where inputs are; without any, some are generated.
        settings: Options of the step, as in a recipe.
        count: Use at most this many inputs.
        by: Measure every weight, or all of one operator as one.
        say: Told what the user must know of the inputs.

    Raises:
        ShrinkError: The model or the inputs cannot be read, or there is no such step.
    """
    from onnxshrink.contract import Settings
    from onnxshrink.graph.forms import coded_read
    from onnxshrink.options import build
    from onnxshrink.recipe import find_pass
    from onnxshrink.runtime.worker import Worker
    from onnxshrink.search import sensitivity as search
    from onnxshrink.search.partial_step import PartialStep

    options = Options.of(options)
    pass_ = build(find_pass(step, "--step"), settings or {}, step)
    loaded, _ = coded_read.load(model)
    with Worker(**options.worker) as worker:
        feeds = inputs_for(model, options, count, worker, say)
        how = Settings(
            feeds=feeds, generated=options.calibration is None, seed=options.seed,
            progress=options.progress,
        )  # fmt: skip
        return search.measure(PartialStep(loaded, pass_, how, worker), by, options.progress)
