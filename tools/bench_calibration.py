"""Memory and time of calibration: ours, and ONNX Runtime's percentiles of the same values.

Each runs in a process of its own, which reports the peaks of its resident memory (with that of the
worker that runs the model) and the seconds that it took.

    python tools/bench_calibration.py model.onnx inputs.npz [--inputs 64]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from onnxshrink.graph import weights
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.weights import second_moments
from onnxshrink.kernels.observers import Histogram, Need
from onnxshrink.runtime.calibrate import calibrate
from onnxshrink.runtime.inputs import load_inputs
from onnxshrink.runtime.worker import Worker

MEGABYTE = 1e6
#: What is usually quantized. With all operators ONNX Runtime's histograms raise on constant values.
OPERATORS = ["MatMul", "Gemm", "Conv"]


def peak(process: str = "self") -> float:
    """The most resident memory that a process has had, in MB (Linux)."""
    status = Path("/proc", process, "status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / MEGABYTE


def rows(model: Model, data: str, count: int) -> list[dict[str, np.ndarray]]:
    """Inputs of one row each, the first ``count`` of the data."""
    feeds = load_inputs(data, model)
    found = [{name: array[i : i + 1] for name, array in feed.items()}
             for feed in feeds for i in range(len(next(iter(feed.values()))))]  # fmt: skip
    if len(found) < count:
        raise SystemExit(f"{data}: {len(found)} inputs, {count} are needed")
    return found[:count]


def observed(path: str) -> list[str]:
    """The values that ONNX Runtime calibrates."""
    from onnxruntime.quantization.calibrate import CalibraterBase

    calibrator = CalibraterBase(path, op_types_to_calibrate=OPERATORS)
    names, _ = calibrator.select_tensors_to_calibrate(calibrator.model)
    return sorted(names)


def ours(path: str, data: str, count: int, *, moments: bool) -> tuple[float, float]:
    """Histograms of those values, or second moments of the inputs of all weights."""
    model = Model.load(path)
    feeds = rows(model, data, count)
    if not moments:
        # In a process of its own: this one should not hold ONNX Runtime.
        names = subprocess.check_output([sys.executable, __file__, path, data, "--names"])
        needs = [Need(name, Histogram()) for name in json.loads(names)]
    else:
        needs = [
            need for view in weights.find(model) if view.uses for need in second_moments.needs(view)
        ]
    started = time.perf_counter()
    with Worker() as worker:
        found = calibrate(model, needs, feeds, worker)
        seconds = time.perf_counter() - started
        assert worker._child is not None
        total = peak() + peak(str(worker._child.pid))
    if not moments:
        for need in found:
            found[need].percentile(0.99999)
    return total, seconds


def theirs(path: str, data: str, count: int) -> tuple[float, float]:
    """ONNX Runtime's percentile calibration."""
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    model = Model.load(path)
    feeds: Iterator[Any] = iter(rows(model, data, count))

    class Reader:
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(feeds, None)

    with tempfile.TemporaryDirectory() as folder:
        augmented = str(Path(folder, "augmented.onnx"))
        started = time.perf_counter()
        calibrator = create_calibrator(
            path,
            OPERATORS,
            augmented,
            CalibrationMethod.Percentile,
            extra_options={"symmetric": True},
        )
        calibrator.collect_data(Reader())
        calibrator.compute_data()
        return peak(), time.perf_counter() - started


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--inputs", type=int, default=64)
    parser.add_argument("--names", action="store_true", help="print what ONNX Runtime calibrates")
    parser.add_argument("--only", choices=["histograms", "moments", "onnxruntime"])
    arguments = parser.parse_args()
    if arguments.names:
        print(json.dumps(observed(arguments.model)))
        return
    given = arguments.model, arguments.data, arguments.inputs
    if arguments.only:
        if arguments.only == "onnxruntime":
            found = theirs(*given)
        else:
            found = ours(*given, moments=arguments.only == "moments")
        print(json.dumps(found))
        return
    bound = 2 * Path(arguments.model).stat().st_size / MEGABYTE + 200
    print(f"bound: {bound:.0f} MB (twice the model and 200 MB)\n")
    print("| calibration | peak MB | seconds |\n| --- | --- | --- |")
    for name in ("histograms", "moments", "onnxruntime"):
        command = [sys.executable, __file__, *map(str, given[:2]), "--inputs", str(given[2])]
        done = subprocess.run([*command, "--only", name], check=True, capture_output=True)
        memory, seconds = json.loads(done.stdout.splitlines()[-1])
        print(f"| {name} | {memory:.0f} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
