#!/usr/bin/env python3
"""What `shrink --preset balanced` makes of models, in other places than where it was made.

    python tools/bench_providers.py FOLDER ... [--openvino PYTHON] [--javascript FOLDER]

Folders are those of `tools/benchmark`; inputs are of its `test`, which no step has seen. PYTHON has
onnxruntime-openvino and openvino, FOLDER onnxruntime-node and -web (`tests/readers/js/install`).
Each cell is the largest relative error of an output against the original on ONNX Runtime's CPU
provider: of the result, and of the original itself in the same place; then what the place left to
another. Invalid are places where the result gives no answers, or numbers that are none, and the
original does; silent are those whose answers came from elsewhere unsaid.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import numpy as np

from onnxshrink.graph.file.model import Model
from onnxshrink.runtime.places import Finding, Place, compare_places, javascript, providers
from onnxshrink.runtime.session import SessionOptions

ROOT = Path(__file__).resolve().parent.parent


def _benchmark() -> Any:
    """The script that knows the folders; it has no suffix."""
    loader = SourceFileLoader("benchmark", str(ROOT / "tools" / "benchmark"))
    spec = importlib.util.spec_from_loader("benchmark", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmark"] = module
    loader.exec_module(module)
    return module


def places(asked: argparse.Namespace) -> list[Place]:
    """Where models run."""
    found = providers(["CPU"], accuracy_level=0)
    if asked.openvino:
        found += providers(["OpenVINO", "openvino-native"], asked.openvino, accuracy_level=0)
    if asked.javascript:
        runtimes = ("onnxruntime-node", "onnxruntime-web")
        found += [javascript(name, asked.javascript, accuracy_level=0) for name in runtimes]
    return found


def shrunk(model: Path, data: Path, out: Path, target: str, seconds: float) -> None:
    """The result of `shrink`, whose budget may be missed."""
    words = [sys.executable, "-m", "onnxshrink", "shrink", str(model), str(out), "--no-bench"]
    words += ["--calibration", str(data), "--preset", "balanced", "--time-limit", f"{seconds:g}"]
    done = subprocess.run([*words, "--target", target], capture_output=True, text=True)
    if not out.exists():
        raise SystemExit(f"{model}: {done.stderr}")


def error(found: Finding) -> float | None:
    """The largest relative error of an output; None without answers."""
    return None if found.comparison is None else found.comparison.relative_error


def cell(original: Finding, result: Finding) -> str:
    """What a place says of both."""
    mine, floats = error(result), error(original)
    words = [
        "refused" if mine is None else f"{mine:.2g}",
        "float refused" if floats is None else f"float {floats:.1g}",
        result.elsewhere,
    ]
    return "; ".join(filter(None, words)).replace("|", "\\|")


def invalid(original: Sequence[Finding], result: Sequence[Finding]) -> int:
    """Places where the result gives no answer, or numbers that are none, and the original does."""
    pairs = zip(map(error, original), map(error, result), strict=True)
    return sum(
        before is not None and (after is None or not np.isfinite(after)) for before, after in pairs
    )


def silent(found: Sequence[Finding], asked: Sequence[Place]) -> int:
    """Places whose answers come from somewhere else, unsaid."""
    count = 0
    for finding, place in zip(found, asked, strict=True):
        wanted = dict(zip(place.options[::2], place.options[1::2], strict=False))
        if finding.comparison is not None and "--provider" in wanted:
            count += finding.comparison.options_b["provider"] != wanted["--provider"]
    return count


def main() -> None:
    """Print a row for every folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--openvino", metavar="PYTHON")
    parser.add_argument("--javascript", metavar="FOLDER")
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--time-limit", type=float, default=60.0)
    parser.add_argument("--count", type=int, default=16, help="inputs")
    asked = parser.parse_args()
    benchmark, where = _benchmark(), places(asked)
    print(f"| model | smaller | {' | '.join(place.label for place in where)} | invalid | silent |")
    print("|" + " --- |" * (len(where) + 4))
    for folder in asked.folders:
        case = benchmark.load(folder.resolve())
        wanted = {port.name for port in Model.load(case.model).inputs}
        spread = case.test[:: max(len(case.test) // asked.count, 1)][: asked.count]
        feeds = [{name: feed[name] for name in feed if name in wanted} for feed in spread]
        with tempfile.TemporaryDirectory() as scratch:
            data, out = Path(scratch, "inputs.npz"), Path(scratch, "small.onnx")
            benchmark.write_inputs(case.calibration[: benchmark.INPUTS], data)
            shrunk(case.model, data, out, asked.target, asked.time_limit)
            exact = SessionOptions(accuracy_level=0)
            original = compare_places(case.model, case.model, feeds, where, options_a=exact)
            result = compare_places(case.model, out, feeds, where, options_a=exact)
            ratio = case.model.stat().st_size / out.stat().st_size
        cells = map(cell, original, result)
        print(
            f"| {case.name} | {ratio:.2f}x | {' | '.join(cells)} | {invalid(original, result)} "
            f"| {silent(result, where)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
