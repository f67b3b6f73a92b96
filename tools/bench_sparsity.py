#!/usr/bin/env python3
"""What pruning leaves of a model's answers: by magnitude, Wanda and SparseGPT, at equal sparsity.

    python tools/bench_sparsity.py FOLDER [--ratios 0.3 0.5 0.7] [--patterns 2:4] [--inputs 40]

FOLDER has a `model.onnx` and an `evaluate.py` with `load_inputs("calibration" or "test")`, a list
of inputs by name, and `metric(outputs)` of the test inputs, higher is better. Inputs of the test
are never calibrated with. Lookups stay whole, since only magnitude could prune them.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import onnxshrink
from onnxshrink.graph import weights
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import packed
from onnxshrink.kernels.metrics import Agreement
from onnxshrink.options import build
from onnxshrink.recipe import Recipe, find_pass
from onnxshrink.runtime.worker import Worker

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "magnitude, LAMP": ("prune-magnitude", {}),
    "magnitude, rows": ("prune-magnitude", {"scope": "row"}),
    "Wanda, uniform": ("prune-wanda", {"allocate": "uniform"}),
    "Wanda": ("prune-wanda", {}),
    "SparseGPT, uniform": ("prune-sparsegpt", {"allocate": "uniform"}),
    "SparseGPT": ("prune-sparsegpt", {}),
    "SparseGPT, int8": ("prune-sparsegpt", {"quantize": "int8"}),
    "SparseGPT, int4": ("prune-sparsegpt", {"quantize": "int4", "block_size": 32}),
}
FREE = ("magnitude, LAMP", "Wanda", "SparseGPT")  # those that no pattern fixes the shares of


def evaluation(folder: Path) -> ModuleType:
    """The module `evaluate.py` of a folder."""
    sys.path.insert(0, str(folder.parent))
    spec = importlib.util.spec_from_file_location("evaluate", folder / "evaluate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(before: list[list[np.ndarray]], after: list[list[np.ndarray]], test: Any) -> str:
    """Figures of the last output, and the metric if all test inputs were run."""
    agreement = Agreement()
    for x, y in zip(before, after, strict=True):
        agreement.add(x[-1], y[-1])
    top1 = "-" if agreement.top1 is None else f"{agreement.top1:.4f}"
    metric = f"{float(test.metric(after)):.4f}" if len(after) == len(test.all) else "-"
    return f"{agreement.relative_error:.4f} | {agreement.cosine:.4f} | {top1} | {metric}"


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ratios", type=float, nargs="*", default=[0.3, 0.5, 0.7])
    parser.add_argument("--patterns", nargs="*", default=["2:4"])
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--inputs", type=int, help="test inputs; by default all")
    arguments = parser.parse_args()
    test, source = evaluation(arguments.folder), arguments.folder / "model.onnx"
    model = Model.load(source)
    names = {value.name for value in model.inputs}

    def feeds(split: str) -> list[dict[str, np.ndarray]]:
        return [
            {name: array for name, array in feed.items() if name in names}
            for feed in test.load_inputs(split)
        ]

    test.all = feeds("test")  # type: ignore[attr-defined]
    inputs, calibration = test.all[: arguments.inputs], feeds("calibration")[:64]
    lookups = any(view.op_type == "Gather" for view in weights.find(model))
    keep = {"keep": ["Gather"]} if lookups else {}
    print(f"{arguments.folder.name}: {len(calibration)} calibration, {len(inputs)} test inputs\n")
    print("| what goes | method | zeros | relative error | cosine | top-1 | metric | packed | s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder, Worker() as worker:
        out, small = Path(folder, "out.onnx"), Path(folder, "packed.onnx")
        before = worker.run(source, inputs).outputs
        size = packed.save(Model.load(source), small)
        print(f"| nothing | | 0 | {row(before, before, test)} | {size} | |")
        goals: dict[str, dict[str, Any]] = {f"{r:.0%}": {"ratio": r} for r in arguments.ratios}
        goals |= {pattern: {"pattern": pattern} for pattern in arguments.patterns}
        for goal, wanted in goals.items():
            for method in arguments.methods:
                if method in FREE and "pattern" in wanted:
                    continue
                name, own = METHODS[method]
                options = {**own, **wanted, **keep, "max_error": 1e9}
                recipe = Recipe((build(find_pass(name), options, name),))
                started = time.perf_counter()
                report = onnxshrink.apply_recipe(
                    recipe, source, out, onnxshrink.Options(calibration=calibration, check="off")
                )
                seconds = time.perf_counter() - started
                changes = [c for c in report.steps[0].changes if "sparsity" in c.error]
                zeros = sum(c.error["sparsity"] * c.before for c in changes)
                zeros /= max(sum(c.before for c in changes), 1)
                after = worker.run(out, inputs).outputs
                size = packed.save(Model.load(out), small)
                figures = row(before, after, test)
                line = f"| {goal} | {method} | {zeros:.3f} | {figures} | {size} | {seconds:.1f} |"
                print(line, flush=True)


if __name__ == "__main__":
    main()
