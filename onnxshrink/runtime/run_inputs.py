"""Run a model on inputs from a file, wherever there are Python, numpy and a runtime.

This file needs nothing else of the package: copy it to the device or into the environment that
has the runtime, run it there, and bring the answers back to ``onnxshrink compare --results``.

    python run_inputs.py MODEL INPUTS ANSWERS [--engine onnxruntime] [--provider NAME] [--fallback]

Inputs and answers are JSON: ``about``, and ``rows`` of ``{name: {type, dims, data}}`` with the
bytes of each array, little endian, in base64 (strings as a list).
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

FORMAT = "onnxshrink values 1"
ENGINES = ("onnxruntime", "openvino", "reference")
CPU = "CPUExecutionProvider"
ACCURACY_LEVEL = "session.qdq_matmulnbits_accuracy_level"

Row = dict[str, np.ndarray]
_RUNS, _SECONDS = 50, 0.3  # that are timed, at most


class Refusal(Exception):
    """Why a model cannot be run here, for people."""


def write(path: str, rows: list[Row], about: dict[str, Any]) -> None:
    """Write rows of named arrays."""
    text = json.dumps({"format": FORMAT, "about": about, "rows": [_encode(row) for row in rows]})
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def read(path: str) -> tuple[list[Row], dict[str, Any]]:
    """Read what :func:`write` wrote.

    Raises:
        Refusal: The file is something else, or damaged.
    """
    try:
        with open(path, encoding="ascii") as file:
            found = json.load(file)
        if found["format"] != FORMAT:
            raise ValueError(f"its format is {found['format']!r}")
        return [_decode(row) for row in found["rows"]], dict(found["about"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refusal(f"{path}: not a file of inputs or answers ({error})") from error


def digest(path: str) -> str:
    """SHA-256 of a file."""
    sums = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            sums.update(block)
    return sums.hexdigest()


def _encode(row: Row) -> dict[str, Any]:
    return {name: _encode_array(np.asarray(array)) for name, array in row.items()}


def _encode_array(array: np.ndarray) -> dict[str, Any]:
    dims = list(array.shape)
    if array.dtype.kind in "OSU":
        return {"type": "string", "dims": dims, "data": [str(text) for text in array.ravel()]}
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    data = base64.b64encode(little.tobytes()).decode("ascii")
    return {"type": array.dtype.name, "dims": dims, "data": data}


def _decode(row: dict[str, Any]) -> Row:
    return {name: _decode_array(**stored) for name, stored in row.items()}


def _decode_array(type: str, dims: list[int], data: Any) -> np.ndarray:
    if type == "string":
        return np.array(data, dtype=object).reshape(dims)
    dtype = np.dtype(type).newbyteorder("<")
    return np.frombuffer(base64.b64decode(data), dtype).astype(type).reshape(dims)


def run(
    model: str, rows: list[Row], engine: str, provider: str = CPU, fallback: bool = False,
    accuracy_level: int | None = None,
) -> tuple[list[Row], dict[str, Any]]:  # fmt: skip
    """The answers of a model file to some inputs, and what gave them.

    Args:
        model: The model file.
        rows: Inputs by name.
        engine: One of :data:`ENGINES`.
        provider: ONNX Runtime's execution provider.
        fallback: Whether its CPU provider may run the nodes that ``provider`` does not take.
        accuracy_level: ONNX Runtime's for MatMulNBits; 0 is exact, None its default.

    Raises:
        Refusal: The engine or the provider is not here, or does not run this model.
    """
    if engine == "onnxruntime":
        answers, about = _onnxruntime(model, rows, provider, fallback, accuracy_level)
    else:
        answers, about = (_openvino if engine == "openvino" else _reference)(model, rows)
    return answers, {"engine": engine, **about}


def _timed(run: Callable[[Row], Row], rows: list[Row]) -> tuple[list[Row], float]:
    """Answers, and the median seconds of a run; the first runs, which make ready, do not count."""
    answers = [run(row) for row in rows]
    seconds: list[float] = []
    end = time.perf_counter() + _SECONDS
    while rows and (not seconds or (time.perf_counter() < end and len(seconds) < _RUNS)):
        start = time.perf_counter()
        run(rows[len(seconds) % len(rows)])
        seconds.append(time.perf_counter() - start)
    return answers, statistics.median(seconds or [0.0])


def _told(error: object) -> str:
    """What an error says, in one line; of a long one the beginning and the end, the reason."""
    line = " ".join(str(error).split())
    return line if len(line) <= 400 else f"{line[:100]} ... {line[-300:]}"


def _onnxruntime(
    model: str, rows: list[Row], provider: str, fallback: bool, accuracy_level: int | None
) -> tuple[list[Row], dict[str, Any]]:
    try:
        import onnxruntime
    except ImportError as error:
        raise Refusal(f"onnxruntime is not installed here: {error}") from error
    installed = onnxruntime.get_available_providers()
    if provider not in installed:
        raise Refusal(
            f"provider {provider} is not installed here; installed: {', '.join(installed)}"
        )
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    if provider != CPU and not fallback:
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if accuracy_level is not None:
        settings.add_session_config_entry(ACCURACY_LEVEL, str(accuracy_level))
    with tempfile.TemporaryDirectory() as folder:
        settings.enable_profiling = provider != CPU  # it knows which provider ran which node
        settings.profile_file_prefix = os.path.join(folder, "profile")
        try:
            session = onnxruntime.InferenceSession(model, settings, providers=[provider])
            if provider not in session.get_providers():
                raise Refusal(f"provider {provider} is installed here, but does not start")
            names = [output.name for output in session.get_outputs()]
            answers, seconds = _timed(
                lambda row: dict(zip(names, session.run(names, row), strict=True)), rows
            )
        except Refusal:
            raise
        except Exception as error:  # ONNX Runtime's exceptions share no class of their own
            raise Refusal(_told(error)) from error
        others = _elsewhere(session.end_profiling(), provider) if provider != CPU else {}
    about = {"version": onnxruntime.__version__, "provider": provider, "seconds": seconds}
    return answers, {**about, "elsewhere": others}


def _elsewhere(profile: str, provider: str) -> dict[str, list[str]]:
    """The operators that other providers ran, by provider, from ONNX Runtime's profile."""
    with open(profile, encoding="utf-8") as file:
        events = json.load(file)
    found: dict[str, set[tuple[str, str]]] = {}
    for event in events:
        known = event.get("args", {})
        if event.get("cat") == "Node" and known.get("provider", provider) != provider:
            named = event["name"].removesuffix("_kernel_time"), known.get("op_name", "?")
            found.setdefault(known["provider"], set()).add(named)
    return {other: sorted(op for _, op in nodes) for other, nodes in found.items()}


def _openvino(model: str, rows: list[Row]) -> tuple[list[Row], dict[str, Any]]:
    try:
        import openvino  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise Refusal(f"openvino is not installed here: {error}") from error
    try:
        # By itself it computes with bfloat16 where the CPU can.
        exact = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(model, "CPU", exact)
        # OpenVINO knows a port by several names; ONNX's is among them.
        names = [(name, output) for output in compiled.outputs for name in output.get_names()]

        def one(row: Row) -> Row:
            found = compiled(row)
            return {name: np.array(found[output]) for name, output in names}

        answers, seconds = _timed(one, rows)
    except Exception as error:  # nor do OpenVINO's
        raise Refusal(_told(error)) from error
    about = {"version": openvino.__version__, "provider": "CPU", "seconds": seconds}
    return answers, {**about, "elsewhere": {}}


def _reference(model: str, rows: list[Row]) -> tuple[list[Row], dict[str, Any]]:
    try:
        import onnx
        from onnx.reference import ReferenceEvaluator
    except ImportError as error:
        raise Refusal(f"onnx is not installed here: {error}") from error
    try:
        evaluator = ReferenceEvaluator(model)
        names = evaluator.output_names
        answers, seconds = _timed(
            lambda row: dict(zip(names, evaluator.run(None, row), strict=True)), rows
        )
    except Exception as error:  # whatever an operator's Python raises
        raise Refusal(_told(f"{type(error).__name__}: {error}")) from error
    about = {"version": onnx.__version__, "provider": "reference", "seconds": seconds}
    return answers, {**about, "elsewhere": {}}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Run a model on inputs from a file.")
    parser.add_argument("model")
    parser.add_argument("inputs", help="a file that 'onnxshrink run-inputs --save-inputs' wrote")
    parser.add_argument("answers", help="the file to write")
    parser.add_argument("--engine", choices=ENGINES, default="onnxruntime")
    parser.add_argument("--provider", default=CPU, help="ONNX Runtime's execution provider")
    parser.add_argument("--fallback", action="store_true", help="let the CPU run the rest")
    parser.add_argument(
        "--accuracy-level", type=int, default=0, help="for MatMulNBits; 0 (the default) is exact"
    )
    asked = parser.parse_args()
    try:
        rows, _ = read(asked.inputs)
        answers, about = run(
            asked.model, rows, asked.engine, asked.provider, asked.fallback, asked.accuracy_level
        )
    except (Refusal, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(3)
    about |= {"model": digest(asked.model), "inputs": digest(asked.inputs)}
    write(asked.answers, answers, about)


if __name__ == "__main__":
    main()
