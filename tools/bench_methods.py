#!/usr/bin/env python3
"""Measure the ways to make weights smaller at equal size: codebooks, pruning, low rank, integers.

Every folder of the zoo holds ``model.onnx`` and ``evaluate.py``, a module with
``load_inputs(split)`` and ``metric(outputs)``; at most 64 inputs of the split ``calibration`` are
used, and answers are compared on the split ``test``. Sizes are those of the packed model.

    python tools/bench_methods.py ZOO [--recipes] [--latency] [folder ...]

No two methods give the same size. So quantize-rd runs at several sizes first, and the last column
says how large a method's output error is next to that of quantize-rd at the method's own size,
between whose runs logarithms are interpolated; above 1 quantize-rd is closer.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench_rate import MOST_INPUTS, answers, module

from onnxshrink.contract import Settings
from onnxshrink.errors import BudgetMissed
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import packed
from onnxshrink.kernels.metrics import compare_outputs
from onnxshrink.pipeline import run
from onnxshrink.recipe import Recipe, recipe_names
from onnxshrink.runtime.bench import bench
from onnxshrink.runtime.worker import Worker

FOLDERS = ("paraphrase_minilm_l3", "fashion_cnn", "magika_v3_3", "ppocr_rec_v4")
RATIOS = (5, 8, 12, 16)
HALF = "{ratio: 0.5, scope: weight, max_error: 99}"
BYTE = "{quantize-weights: {max_error: 99}}"
METHODS: dict[str, str] = {
    **{f"quantize-rd {r}x": f"{{quantize-rd: {{target_ratio: {r}, max_error: 99}}}}"
       for r in RATIOS},
    "int8": BYTE,
    "int4 in blocks of 32": "{quantize-weights: {dtype: int4, block_size: 32, max_error: 99}}",
    "codebook of 16": "{share-codebook: {bits: 4, max_error: 99}}",
    "codebook of 16, reconstruct": "{share-codebook: {bits: 4, max_error: 99}}, reconstruct",
    "codebook of 8": "{share-codebook: {bits: 3, max_error: 99}}",
    "codebook of 8, reconstruct": "{share-codebook: {bits: 3, max_error: 99}}, reconstruct",
    "magnitude 50 %, int8": f"{{prune-magnitude: {HALF}}}, {BYTE}",
    "magnitude 50 %, reconstruct, int8": f"{{prune-magnitude: {HALF}}}, reconstruct, {BYTE}",
    "Wanda 50 %, int8": f"{{prune-wanda: {{ratio: 0.5, max_error: 99}}}}, {BYTE}",
    "SparseGPT 50 %, int8": f"{{prune-sparsegpt: {{ratio: 0.5, max_error: 99}}}}, {BYTE}",
    "low rank 0.5, int8": f"{{split-lowrank: {{ratio: 0.5, max_error: 99}}}}, {BYTE}",
    "low rank 0.5, reconstruct, int8":
        f"{{split-lowrank: {{ratio: 0.5, max_error: 99}}}}, reconstruct, {BYTE}",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One method on one model."""

    plain: int
    packed: int
    error: float
    top1: float
    metric: float
    seconds: float
    latency: float


def measure(
    recipe: Recipe, folder: Path, task: Any, scratch: Path, worker: Worker, latency: bool
) -> Row:
    """Run a recipe and look at what comes out."""
    source, small = folder / "model.onnx", scratch / "small.onnx"
    model = Model.load(source)
    taken = set(model.signature[0])
    calibration = [
        {name: array for name, array in feed.items() if name in taken}
        for feed in task.load_inputs("calibration")[:MOST_INPUTS]
    ]
    started = time.perf_counter()
    result = run(recipe.steps, model, Settings(check="quick", feeds=calibration), worker)
    seconds = time.perf_counter() - started
    lost = [step.reason for step in result.report.steps if step.status == "rolled back"]
    if lost:
        raise RuntimeError(f"{folder.name}: {'; '.join(lost)}")
    plain = result.model.save(small)
    try:
        size = packed.save(Model.load(small), scratch / "packed.onnx")
    except BudgetMissed:
        size = plain
    feeds = task.load_inputs("test")
    (names, before), (_, after) = answers(source, feeds), answers(small, feeds)
    rows = compare_outputs(names, before, after)
    ratio = float("nan")
    if latency:
        ratio = bench([source, small], calibration[:4]).models[1].ratio
    return Row(
        plain, size, max(row.relative_error for row in rows),
        min((row.top1 for row in rows if row.top1 is not None), default=float("nan")),
        task.metric(after), seconds, ratio,
    )  # fmt: skip


def at_equal_size(row: Row, curve: Sequence[Row]) -> float:
    """A method's error next to that of quantize-rd at its size; NaN beyond its runs."""
    known = sorted((one.packed, one.error) for one in curve)
    if len(known) < 2 or not known[0][0] <= row.packed <= known[-1][0]:
        return float("nan")
    sizes, errors = np.log(np.array(known).T)
    return float(row.error / np.exp(np.interp(np.log(row.packed), sizes, errors)))


def table(folder: Path, methods: Mapping[str, Recipe], latency: bool, scratch: Path) -> None:
    """Print the rows of one model."""
    task, before = module(folder), (folder / "model.onnx").stat().st_size
    curve: list[Row] = []
    with Worker() as worker:
        for name, recipe in methods.items():
            try:
                row = measure(recipe, folder, task, scratch, worker, latency)
            except RuntimeError as error:
                print(f"| {folder.name} | {name} | {error} |", flush=True)
                continue
            if name.startswith("quantize-rd"):
                curve.append(row)
            print(
                f"| {folder.name} | {name} | {row.plain:,} | {row.packed:,} "
                f"| {before / row.packed:.2f} | {row.error:.4f} | {row.top1:.4f} "
                f"| {row.metric:.4f} | {row.latency:.2f} | {row.seconds:.0f} "
                f"| {at_equal_size(row, curve):.2f} |",
                flush=True,
            )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("zoo", type=Path, help="a folder of folders")
    parser.add_argument("folders", nargs="*", default=FOLDERS, help="some of them")
    parser.add_argument("--recipes", action="store_true", help="measure those of the package")
    parser.add_argument("--latency", action="store_true", help="measure latency too")
    parser.add_argument("--only", action="append", default=[], help="methods by name")
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.zoo))  # what the evaluate.py share lies there
    if arguments.recipes:
        methods = {name: Recipe.find(name) for name in recipe_names()}
    else:
        methods = {
            name: Recipe.parse(f"version: 1\nsteps: [clean, {steps}]")
            for name, steps in METHODS.items()
        }
    methods = {n: r for n, r in methods.items() if not arguments.only or n in arguments.only}
    print(
        "| model | method | plain | packed | ratio | error | top-1 | metric | latency | s | vs rd |"
    )
    print("|" + " --- |" * 11)
    with tempfile.TemporaryDirectory(prefix="onnxshrink-bench-") as scratch:
        for name in arguments.folders:
            table(arguments.zoo / name, methods, arguments.latency, Path(scratch))


if __name__ == "__main__":
    main()
