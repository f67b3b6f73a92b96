#!/usr/bin/env python3
"""quantize-static beside ONNX Runtime's own quantize_static, on models with data and a metric.

    python tools/bench_static.py ZOO [--models fashion_cnn ...] [--rounds 25]

`ZOO` holds a folder for each model: `model.onnx`, and `evaluate.py` with `load_inputs(split)` for
`calibration` and `test`, and `metric(outputs)`, higher is better. Both quantize with nothing but
the calibration inputs. ONNX Runtime's gets the model prepared: constants and norms folded, the
operator set raised, constants moved out of nodes. Latencies are medians of ratios to the float
model of runs that take turns. Prints one Markdown row for each model and result.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from onnxshrink.contract import Settings
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.rewrite import hoist, opset
from onnxshrink.passes.clean import Clean
from onnxshrink.passes.quantize_static import QuantizeStatic
from onnxshrink.pipeline import run
from onnxshrink.runtime.bench import bench
from onnxshrink.runtime.worker import Worker

MODELS = ("efficientnet_lite0", "ppocr_rec_v4", "fashion_cnn", "magika_v3_3")
Feeds = list[dict[str, np.ndarray]]
Outputs = list[list[np.ndarray]]


def evaluation(folder: Path) -> ModuleType:
    """The module `evaluate.py` of a folder."""
    sys.path.insert(0, str(folder.parent))
    spec = importlib.util.spec_from_file_location(f"{folder.name}_evaluate", folder / "evaluate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ours(source: Path, feeds: Feeds, out: Path) -> None:
    """What quantize-static makes of a model as it is."""
    result = run([QuantizeStatic()], Model.load(source), Settings(feeds=feeds))
    step = result.report.steps[0]
    if step.status != "done":
        raise RuntimeError(f"{source}: {step.status}: {step.reason}")
    result.model.save(out)


def theirs(**options: Any) -> Callable[[Path, Feeds, Path], None]:
    """What ONNX Runtime's quantize_static makes of a model that was prepared for it."""

    def quantize(source: Path, feeds: Feeds, out: Path) -> None:
        from onnxruntime import quantization

        class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self._feeds: Iterator[dict[str, np.ndarray]] = iter(feeds)

            def get_next(self) -> dict[str, np.ndarray] | None:
                return next(self._feeds, None)

        prepared = run([Clean()], Model.load(source), Settings(feeds=feeds)).model
        opset.raise_opset(prepared, 13)
        hoist.hoist_constants(prepared, 0)
        path = out.with_suffix(".prepared.onnx")
        prepared.save(path)
        methods = quantization.CalibrationMethod
        quantization.quantize_static(
            path, out, Reader(), per_channel=True,
            activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
            **{**options, "calibrate_method": getattr(methods, options["calibrate_method"])},
        )  # fmt: skip

    return quantize


WAYS: dict[str, Callable[[Path, Feeds, Path], None]] = {
    "quantize-static": ours,
    "ORT, its defaults": theirs(calibrate_method="MinMax"),
    "ORT, Conv MatMul Gemm": theirs(
        calibrate_method="MinMax", op_types_to_quantize=["Conv", "MatMul", "Gemm"]
    ),
    "ORT, Conv MatMul Gemm, percentile": theirs(
        calibrate_method="Percentile", op_types_to_quantize=["Conv", "MatMul", "Gemm"]
    ),
}


def agreement(before: Outputs, after: Outputs) -> float:
    """Share of the rows of the first output whose largest value stays at its place."""
    same = [
        (x[0].argmax(-1) == y[0].argmax(-1)).ravel() for x, y in zip(before, after, strict=True)
    ]
    return float(np.concatenate(same).mean())


def error(before: Outputs, after: Outputs) -> float:
    """Relative L2 error of the first output."""
    pairs = [(x[0].astype(np.float64), y[0]) for x, y in zip(before, after, strict=True)]
    missing = sum(float(np.square(x - y).sum()) for x, y in pairs)
    return float((missing / sum(float(np.square(x).sum()) for x, _ in pairs)) ** 0.5)


def rows(folder: Path, rounds: int, worker: Worker) -> Iterator[str]:
    """A Markdown row for the model itself and for each way to quantize it."""
    module, source = evaluation(folder), folder / "model.onnx"
    test, feeds = module.load_inputs("test"), module.load_inputs("calibration")
    before = worker.run(source, test).outputs
    size = source.stat().st_size
    yield f"| {folder.name} | float | {module.metric(before):.4f} | | | {size:,} | 1 |"
    with tempfile.TemporaryDirectory() as scratch:
        made: dict[str, Path] = {}
        for number, (name, way) in enumerate(WAYS.items()):
            out = Path(scratch, f"{number}.onnx")
            try:
                way(source, feeds, out)
            except Exception as failure:  # the rival's, on models that it cannot take
                yield f"| {folder.name} | {name} | {type(failure).__name__} | | | | |"
            else:
                made[name] = out
        timed = bench([source, *made.values()], test[:8], rounds=rounds).models[1:]
        for (name, out), cost in zip(made.items(), timed, strict=True):
            after = worker.run(out, test).outputs
            yield (
                f"| {folder.name} | {name} | {module.metric(after):.4f} | "
                f"{agreement(before, after):.4f} | {error(before, after):.4f} | "
                f"{out.stat().st_size:,} | {cost.ratio:.2f} "
                f"({cost.ratio_low:.2f} to {cost.ratio_high:.2f}) |"
            )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("zoo", type=Path)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--rounds", type=int, default=25)
    arguments = parser.parse_args()
    print("| model | result | metric | agreement | error | bytes | latency |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with Worker() as worker:
        for name in arguments.models:
            for row in rows(arguments.zoo / name, arguments.rounds, worker):
                print(row, flush=True)


if __name__ == "__main__":
    main()
