#!/usr/bin/env python3
"""How often TEST misses the budget that `shrink` says is kept.

    python tools/bench_promise.py [--rows 64 256] [--seeds 3] [models/vision_cnn ...]

Every run gets other calibration inputs, drawn from `calibration.npz`. It misses where answers to
`test.npz`, which no run has seen, are outside what was asked for.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from model_files import MODELS
from model_metrics import test_inputs

from onnxshrink import BudgetMissed, Goal, Model, Options, shrink
from onnxshrink.runtime.worker import Worker
from onnxshrink.trials import answers

_BATCHES = 8


def misses(folder: Path, rows: int, seed: int) -> tuple[float, list[str]]:
    """How many times smaller a model became, and what its answers to TEST do not keep."""
    with np.load(folder / "calibration.npz") as stored:
        every = {name: stored[name] for name in stored.files}
    count = len(next(iter(every.values())))
    drawn = np.random.default_rng(seed).permutation(count)[:rows]
    parts = np.array_split(drawn, min(_BATCHES, len(drawn)))
    feeds = [{name: array[part] for name, array in every.items()} for part in parts]
    with tempfile.TemporaryDirectory() as place, Worker() as worker:
        out, goal = Path(place, "out.onnx"), Goal()
        try:
            report = shrink(folder / "model.onnx", out, Options(calibration=feeds), goal=goal)
        except BudgetMissed:
            return 1.0, []  # it says so
        test = [test_inputs(folder)]
        before, after = (
            answers(Model.load(path), test, worker) for path in (folder / "model.onnx", out)
        )
        return report.ratio, goal.misses(before.figures(after), before, after)


def main() -> None:
    """Print a row for every run, and the share that misses."""
    parser = argparse.ArgumentParser(description=__doc__)
    every = sorted(file.parent for file in MODELS.glob("*/model.onnx"))
    parser.add_argument("folders", nargs="*", type=Path, default=every)
    parser.add_argument("--rows", nargs="+", type=int, default=[64, 256])
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    runs = [
        (folder, rows, seed)
        for folder in asked.folders for rows in asked.rows for seed in range(asked.seeds)
    ]  # fmt: skip
    missed = 0
    for folder, rows, seed in runs:
        ratio, lines = misses(folder, rows, seed)
        missed += bool(lines)
        print(f"{folder.name}, {rows} rows, seed {seed}: {ratio:.2f}x", *lines, flush=True)
    print(f"{missed} of {len(runs)} runs miss on TEST ({100 * missed / len(runs):.0f} %)")


if __name__ == "__main__":
    main()
