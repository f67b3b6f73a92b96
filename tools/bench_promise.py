#!/usr/bin/env python3
"""How often TEST misses the budget that `shrink` says is kept, and what its caution costs.

    python tools/bench_promise.py [--inputs 16 64] [--seeds 3] [models/vision_cnn ...]

A folder holds `model.onnx`, `calibration.npz` and `test.npz`, in any form that `--calibration`
takes. Every run gets other calibration inputs. It misses where answers to TEST, which no run has
seen, are outside what was asked for. The oracle is the same search with all calibration inputs to
fit to, which is told what TEST says.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from model_files import MODELS

from onnxshrink import BudgetMissed, Goal, Model, Options, shrink
from onnxshrink.contract import Settings
from onnxshrink.recipe import find_pass
from onnxshrink.runtime.inputs import load_inputs
from onnxshrink.runtime.worker import Worker
from onnxshrink.search.evaluation import Evaluator
from onnxshrink.search.smallest import Search
from onnxshrink.trials import answers

Feeds = list[dict[str, Any]]
_EVERY = 10**6
_BATCH = 8


def load(folder: Path) -> tuple[Feeds, Feeds]:
    """Inputs for calibration and for TEST; stacked rows in batches of eight."""
    model = Model.load(folder / "model.onnx")
    found = []
    for name in ("calibration.npz", "test.npz"):
        with np.load(folder / name) as stored:
            keys = [key for key in stored.files if key != "truth"]
            if any("|" in key for key in keys):
                found.append(load_inputs(str(folder / name), model, limit=_EVERY))
                continue
            count = len(stored[keys[0]])
            found.append(
                [
                    {key: stored[key][i : i + _BATCH] for key in keys}
                    for i in range(0, count, _BATCH)
                ]
            )
    return found[0], found[1]


def oracle(folder: Path, calibration: Feeds, test: Feeds, worker: Worker) -> int:
    """Bytes of the smallest that keeps the budget on TEST, told what TEST says."""
    model, goal = Model.load(folder / "model.onnx"), Goal(confidence=0.5)
    settings = Settings(feeds=calibration[:64], unseen=test, storage="coded", keep_names=True)
    ask = Evaluator(model, [find_pass("clean")()], settings, goal, worker, "coded")
    return Search(ask).run().best.nbytes


def misses(folder: Path, feeds: Feeds, test: Feeds, worker: Worker) -> tuple[int, list[str]]:
    """Bytes that a model became, and what its answers to TEST do not keep."""
    goal, source = Goal(), folder / "model.onnx"
    with tempfile.TemporaryDirectory() as place:
        out = Path(place, "out.onnx")
        try:
            report = shrink(source, out, Options(calibration=feeds, keep_names=True), goal=goal)
        except BudgetMissed as missed:
            print("   says so:", *missed.report.missed)  # type: ignore[attr-defined]
            return out.stat().st_size, []
        before, after = (answers(Model.load(path), test, worker) for path in (source, out))
        return report.bytes_after, goal.misses(before.figures(after), before, after)


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive numbers."""
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def main() -> None:
    """Print a row for every run, and the share that misses."""
    parser = argparse.ArgumentParser(description=__doc__)
    every = sorted(file.parent for file in MODELS.glob("*/model.onnx"))
    parser.add_argument("folders", nargs="*", type=Path, default=every)
    parser.add_argument("--inputs", nargs="+", type=int, default=[16, 64])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--no-oracle", action="store_true")
    asked = parser.parse_args()
    missed, bytes_over = [], []
    for folder in asked.folders:
        calibration, test = load(folder)
        with Worker() as worker:
            best = 0 if asked.no_oracle else oracle(folder, calibration, test, worker)
            print(f"{folder.name}: {best} bytes by the oracle", flush=True)
            for count in asked.inputs:
                for seed in range(asked.seeds):
                    drawn = np.random.default_rng(seed).permutation(len(calibration))[:count]
                    started = time.perf_counter()
                    nbytes, lines = misses(folder, [calibration[i] for i in drawn], test, worker)
                    missed.append(bool(lines))
                    bytes_over += [nbytes / best] if best else []
                    print(
                        f"{folder.name}, {len(drawn)} inputs, seed {seed}: {nbytes} bytes, "
                        f"{time.perf_counter() - started:.0f} s", *lines, flush=True,
                    )  # fmt: skip
    print(f"{sum(missed)} of {len(missed)} runs miss on TEST ({100 * np.mean(missed):.0f} %)")
    if bytes_over:
        print(f"bytes over the oracle's: {geometric_mean(bytes_over):.2f} times")


if __name__ == "__main__":
    main()
