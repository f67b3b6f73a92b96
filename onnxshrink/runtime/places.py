"""The same model in other places: execution providers, other Pythons, JavaScript, an oracle.

Every place is a process of its own that reads inputs from a file and writes its answers to
another: ``run_inputs.py`` and ``readers/run_inputs.mjs`` are all that a place needs of us. So a
provider that lives in another environment, or on another machine, is a place like any other.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxshrink.errors import DataError, RecipeError
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import packed
from onnxshrink.kernels.metrics import compare_outputs
from onnxshrink.runtime import run_inputs
from onnxshrink.runtime.compare import Comparison, PathLike, check_thresholds
from onnxshrink.runtime.session import DEFAULT_OPTIONS, SessionOptions, as_taken
from onnxshrink.runtime.worker import DEFAULT_TIMEOUT, Worker

SCRIPT = Path(run_inputs.__file__)
_JAVASCRIPT = SCRIPT.parent.parent / "readers" / "run_inputs.mjs"
_REFUSED = 3  # the exit code of both scripts when they say why
_PROVIDER = "ExecutionProvider"
#: What ``--providers`` takes beside ONNX Runtime's providers: engines of their own.
_ENGINES = {"reference": "reference", "openvino-native": "openvino"}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a model runs.

    Attributes:
        label: What reports call it.
        program: The start of the command line; MODEL INPUTS ANSWERS follow.
        options: What follows these.
        falls_back: Whether ONNX Runtime could run what the provider does not take on the CPU.
        with_data: Whether the files that hold the model's weights are named, too.
    """

    label: str
    program: tuple[str, ...]
    options: tuple[str, ...] = ()
    falls_back: bool = False
    with_data: bool = False


@dataclass(frozen=True, kw_only=True)
class PlaceAnswers:
    """What a place gave.

    Attributes:
        label: The place.
        rows: For each feed, the outputs by name.
        about: The engine, its version and provider, and the operators that ran ``elsewhere``.
        refusal: Why it gave nothing; else empty.
    """

    label: str
    rows: Sequence[Mapping[str, np.ndarray]] = ()
    about: Mapping[str, object] = field(default_factory=dict)
    refusal: str = ""

    @property
    def elsewhere(self) -> str:
        """The operators that another provider ran, for a table; empty where there is none."""
        found = self.about.get("elsewhere")
        lines = found.items() if isinstance(found, dict) else ()
        return "; ".join(
            f"{len(ops)} on {provider.removesuffix(_PROVIDER)}: {', '.join(sorted(set(ops)))}"
            for provider, ops in lines
        )


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One place, held against the reference.

    Attributes:
        label: The place.
        comparison: How far its answers are from the reference's; None where it gave none.
        refusal: Why it gave none; else empty.
        elsewhere: The operators that it left to another provider; else empty.
    """

    label: str
    comparison: Comparison | None = None
    refusal: str = ""
    elsewhere: str = ""

    @property
    def seconds(self) -> float:
        """The median of its runs; 0 where there were none."""
        seconds = {} if self.comparison is None else self.comparison.options_b
        return float(str(seconds.get("seconds", 0.0)))

    @property
    def missed(self) -> list[str]:
        """What is wrong here, one line each."""
        if self.comparison is None:
            return [f"{self.label}: {self.refusal}"]
        return [f"{self.label}: {line}" for line in self.comparison.missed]

    def to_dict(self) -> dict[str, object]:
        """Everything, for JSON."""
        found = None if self.comparison is None else self.comparison.to_dict()
        return {
            "place": self.label, "refusal": self.refusal, "elsewhere": self.elsewhere,
            "comparison": found,
        }  # fmt: skip


def providers(
    names: Sequence[str], python: str | None = None, accuracy_level: int | None = None
) -> list[Place]:
    """Places for execution providers (``CPU``, ``OpenVINO``), ``reference``, ``openvino-native``.

    Args:
        names: Case does not matter; ``ExecutionProvider`` may follow.
        python: The interpreter that has them; by default this one.
        accuracy_level: ONNX Runtime's for MatMulNBits; 0 is exact, None its default.

    Raises:
        RecipeError: ONNX Runtime has no such provider, or the interpreter is not there.
    """
    import onnxruntime

    program = (python or sys.executable, str(SCRIPT))
    if python is not None and not os.access(python, os.X_OK):
        raise RecipeError(f"--python {python}: there is no such program")
    known = {name.removesuffix(_PROVIDER).lower(): name for name in onnxruntime.get_all_providers()}
    found = []
    for name in names:
        short = name.strip().removesuffix(_PROVIDER).lower()
        if short in _ENGINES:
            options = ("--engine", _ENGINES[short])
            found.append(Place(label=short, program=program, options=options))
        elif short in known:
            label = known[short].removesuffix(_PROVIDER)
            options = ("--provider", known[short], *_level(accuracy_level))
            falls_back = known[short] != run_inputs.CPU
            found.append(
                Place(label=label, program=program, options=options, falls_back=falls_back)
            )
        else:
            listed = ", ".join(sorted([*known, *_ENGINES]))
            raise RecipeError(f"--providers: {name!r} is none; there are {listed}")
    return found


def _level(accuracy_level: int | None) -> tuple[str, ...]:
    return () if accuracy_level is None else ("--accuracy-level", str(accuracy_level))


def javascript(runtime: str, folder: PathLike, accuracy_level: int | None = None) -> Place:
    """A place for onnxruntime-node or onnxruntime-web, run by Node.

    Args:
        runtime: ``onnxruntime-node`` or ``onnxruntime-web``.
        folder: Where npm has installed it: the folder with ``node_modules``.
        accuracy_level: As for :func:`providers`.

    Raises:
        RecipeError: It is not installed there.
    """
    if not (Path(folder) / "node_modules" / runtime).is_dir():
        raise RecipeError(
            f"{folder}: has no node_modules/{runtime}; 'npm install {runtime}' there first"
        )
    node = shutil.which("node")
    if node is None:
        raise RecipeError(f"{runtime} is run by Node, and there is no program 'node'")
    program = (node, str(_JAVASCRIPT), os.path.abspath(folder), runtime)
    return Place(
        label=runtime.removeprefix("onnxruntime-"), program=program, with_data=True,
        options=_level(accuracy_level),
    )  # fmt: skip


def compare_places(
    a: PathLike, b: PathLike, feeds: Sequence[Mapping[str, np.ndarray]], places: Sequence[Place],
    results: Sequence[PathLike] = (), *, options_a: SessionOptions = DEFAULT_OPTIONS,
    fallback: bool = True, worker: Worker | None = None, timeout: float | None = DEFAULT_TIMEOUT,
    **thresholds: float | None,
) -> list[Finding]:  # fmt: skip
    """Hold a model in several places against a reference in ONNX Runtime on the CPU.

    Args:
        a: The reference.
        b: The model that runs in the places.
        feeds: Inputs that both take.
        places: Where ``b`` runs.
        results: Files of answers that ``run_inputs.py`` wrote elsewhere, to the same inputs.
        options_a: How to run ``a``.
        fallback: Whether a provider that does not take all nodes is tried with the CPU's help.
        worker: Where to run ``a``.
        timeout: Seconds that each place may take.
        thresholds: See :class:`~onnxshrink.runtime.compare.Comparison`.

    Raises:
        ModelError: ``a`` does not load or run.
        DataError: There are no feeds, or the answers of ``results`` are to other inputs, or of
            another model.
    """
    check_thresholds(thresholds)
    held: dict[str, Any] = dict(thresholds)
    if not feeds:
        raise DataError("there are no inputs to compare the models on")
    with contextlib.ExitStack() as stack:
        worker = worker or stack.enter_context(Worker(timeout=timeout))
        asked = worker.run(a, feeds, options_a)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="onnxshrink-places-"))
        inputs = os.path.join(folder, "inputs.json")
        copy = packed.load(b) if packed.is_packed(b) else None  # others read no packs
        taken = (copy or Model.load(b)).inputs
        types = {v.name or "": f"tensor({v.dtype.name.lower()})" for v in taken if v.dtype}
        save_inputs(inputs, [as_taken(feed, types) for feed in feeds])
        known = [_read_results(path, b, inputs) for path in results]
        file = b if copy is None or copy.path is None else copy.path
        found = [_ask_place(place, file, inputs, fallback, timeout) for place in places]
    names, findings = asked.output_names, []
    for answers in (*found, *known):
        refusal = answers.refusal or _unlike(names, len(feeds), answers)
        if refusal:
            findings.append(Finding(label=answers.label, refusal=refusal))
            continue
        given = ([row[name] for name in names] for row in answers.rows)
        atol, rtol = (thresholds.get(name) or 0.0 for name in ("atol", "rtol"))
        comparison = Comparison(
            a=os.fspath(a), b=os.fspath(b), feeds=len(feeds),
            outputs=compare_outputs(names, asked.outputs, given, atol=atol, rtol=rtol),
            options_a=options_a.describe(), options_b=dict(answers.about), **held,
        )  # fmt: skip
        findings.append(
            Finding(label=answers.label, comparison=comparison, elsewhere=answers.elsewhere)
        )
    return findings


def save_inputs(path: PathLike, feeds: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Write the inputs that ``run_inputs.py`` reads."""
    run_inputs.write(os.fspath(path), [dict(feed) for feed in feeds], {"rows": len(feeds)})


def _unlike(names: Sequence[str], feeds: int, answers: PlaceAnswers) -> str:
    """Why answers cannot be held against a reference; empty where they can."""
    if len(answers.rows) != feeds:
        return f"gives {len(answers.rows)} answers to {feeds} inputs"
    missing = [name for name in names if any(name not in row for row in answers.rows)]
    return f"gives no output {', '.join(missing)}" if missing else ""


def _ask_place(
    place: Place, model: PathLike, inputs: str, fallback: bool, timeout: float | None
) -> PlaceAnswers:
    answers = _run(place, model, inputs, timeout)
    if answers.refusal and place.falls_back and fallback:
        # Not all of it runs there. How far is it from the reference with the CPU's help?
        helped = replace(place, options=(*place.options, "--fallback"))
        return _run(helped, model, inputs, timeout)
    return answers


def _run(place: Place, model: PathLike, inputs: str, timeout: float | None) -> PlaceAnswers:
    from onnxshrink.graph.file.data_files import data_files

    path = os.path.join(os.path.dirname(inputs), "answers.json")
    data = sorted(map(str, data_files(Path(model)))) if place.with_data else []
    command = [*place.program, os.path.abspath(model), inputs, path, *data, *place.options]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return PlaceAnswers(label=place.label, refusal=f"took longer than {timeout:g} s")
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no word why"]
        said = last[0].removeprefix("error: ")
        if done.returncode != _REFUSED:
            said = f"ended with exit code {done.returncode}: {said}"
        return PlaceAnswers(label=place.label, refusal=said)
    rows, about = run_inputs.read(path)
    return PlaceAnswers(label=place.label, rows=rows, about=about)


def _read_results(path: PathLike, model: PathLike, inputs: str) -> PlaceAnswers:
    """Answers from elsewhere, if they are to these inputs and of this model."""
    try:
        rows, about = run_inputs.read(os.fspath(path))
    except (run_inputs.Refusal, OSError) as error:
        raise DataError(f"--results {path}: {error}") from error
    if about.get("inputs") != run_inputs.digest(inputs):
        raise DataError(f"--results {path}: the answers are to other inputs than these")
    if about.get("model") != run_inputs.digest(os.fspath(model)):
        raise DataError(f"--results {path}: the answers are of another model than {model}")
    return PlaceAnswers(label=f"{about.get('provider')} in {path}", rows=rows, about=about)
