"""Measure what tuning saves: packed bytes at the same error on inputs that no step has seen.

Every folder of the zoo holds ``model.onnx`` and either ``evaluate.py``, a module with
``load_inputs(split)`` and ``metric(outputs)``, or the arrays of both splits as ``calibration.npz``
and ``test.npz``; at most 64 inputs of the split ``calibration`` are used, and answers are compared
on the split ``test``.

    python tools/bench_tuning.py ZOO [folder ...] [--steps 60] [--error E] [--bytes N]

quantize-rd runs as it would by itself, which gives an error; then at coarser steps, with and
without ``tune`` behind it. Between these runs the logarithms of sizes and errors are interpolated,
to find the bytes of both at the error of the first, or at one that is given. With ``--bytes`` it is
asked for packed models of that size, and the errors of both are told.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench_rate import MOST_INPUTS, answers, module

from onnxshrink.contract import Settings
from onnxshrink.errors import BudgetMissed
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import packed
from onnxshrink.kernels.metrics import compare_outputs
from onnxshrink.passes.quantize_rd import QuantizeRd
from onnxshrink.passes.tune import Tune
from onnxshrink.pipeline import Result, run
from onnxshrink.runtime.worker import Worker

FOLDERS = ("fashion_cnn", "mlp_tabular", "arabic_gru_decoder", "magika_v3_3", "ppocr_rec_v4")
_STACK = 8
COARSER = (1, 2, 4, 8, 16, 32)  # times what quantize-rd spends by itself


class Arrays:
    """Inputs in stacks, and the right classes of those for TEST: accuracy is the metric."""

    def __init__(self, folder: Path):
        self._folder = folder
        with np.load(folder / "test.npz") as stored:
            self._truth = stored["truth"]

    def load_inputs(self, split: str) -> list[dict[str, np.ndarray]]:
        """All of a split, in stacks of eight."""
        with np.load(self._folder / f"{split}.npz") as stored:
            arrays = {key: stored[key] for key in stored.files if key != "truth"}
        count = len(next(iter(arrays.values())))
        return [
            {key: array[at : at + _STACK] for key, array in arrays.items()}
            for at in range(0, count, _STACK)
        ]

    def metric(self, outputs: Sequence[Sequence[np.ndarray]]) -> float:
        """The share of classes that are right."""
        found = np.concatenate([row[0].argmax(-1) for row in outputs])
        return float((found == self._truth).mean())


def task(folder: Path) -> Any:
    """What loads the inputs of a folder and rates the answers to those for TEST."""
    return module(folder) if (folder / "evaluate.py").exists() else Arrays(folder)


def at_error(points: Sequence[tuple[int, float, float]], error: float) -> float:
    """The bytes at an error, between the runs that are next to it; NaN outside of all of them."""
    logs = np.log(np.array(sorted((point[:2] for point in points), key=lambda point: point[1])))
    if not logs[0, 1] <= np.log(error) <= logs[-1, 1]:
        return float("nan")
    return float(np.exp(np.interp(np.log(error), logs[:, 1], logs[:, 0])))


class Bench:
    """One model."""

    def __init__(self, folder: Path, scratch: Path, worker: Worker, steps: int):
        self._task, self._scratch, self._worker, self._steps = (
            task(folder), scratch, worker, steps,
        )  # fmt: skip
        self._name, source = folder.name, folder / "model.onnx"
        self._model = Model.load(source)
        taken = set(self._model.signature[0])
        self._feeds = [
            {name: array for name, array in feed.items() if name in taken}
            for feed in self._task.load_inputs("calibration")[:MOST_INPUTS]
        ]
        self._test = self._task.load_inputs("test")
        self._names, self._wanted = answers(source, self._test)

    def _figures(self, result: Result) -> tuple[int, float, float]:
        """Packed bytes, error and metric."""
        path = self._scratch / "small.onnx"
        result.model.save(path)
        try:
            size = packed.save(Model.load(path), self._scratch / "packed.onnx")
        except BudgetMissed:
            size = path.stat().st_size
        after = answers(path, self._test)[1]
        rows = compare_outputs(self._names, self._wanted, after)
        return size, max(row.relative_error for row in rows), self._task.metric(after)

    def _run(self, *steps: QuantizeRd | Tune) -> Result:
        settings = Settings(check="quick", feeds=self._feeds)
        return run(steps, self._model, settings, self._worker)

    def of_size(self, wanted: float) -> str:
        """The line of the table, for a packed model of so many bytes."""
        step = QuantizeRd(target_ratio=self._model.stored_bytes() / wanted, max_error=99)
        started = time.perf_counter()
        plain, tuned = (
            self._figures(self._run(*steps)) for steps in ((step,), (step, Tune(steps=self._steps)))
        )
        return (
            f"| {self._name} | {plain[0]:,} | {plain[1]:.4f} | {plain[2]:.4f} | {tuned[0]:,} "
            f"| {tuned[1]:.4f} | {tuned[2]:.4f} | {time.perf_counter() - started:.0f} |"
        )

    def row(self, error: float | None) -> str:
        """The line of the table."""
        first = self._run(QuantizeRd(max_error=99))
        spend = float(first.report.steps[0].chosen["lam"])
        plain, tuned, seconds = [self._figures(first)], [], 0.0
        wanted = error or plain[0][1]
        for times in COARSER:
            step = QuantizeRd(lam=times * spend, max_error=99)
            if times > 1:
                plain.append(self._figures(self._run(step)))
            started = time.perf_counter()
            both = self._run(step, Tune(steps=self._steps))
            seconds += time.perf_counter() - started
            tuned.append(self._figures(both))
            if min(plain[-1][1], tuned[-1][1]) > wanted:
                break
        before, after = (at_error(each, wanted) for each in (plain, tuned))
        errors = ", ".join(
            f"{one[1]:.3g} -> {two[1]:.3g}" for one, two in zip(plain, tuned, strict=True)
        )
        return (
            f"| {self._name} | {plain[0][2]:.4f} | {wanted:.4f} | {before:,.0f} | {after:,.0f} "
            f"| {100 * (after / before - 1):+.1f} % | {errors} | {seconds / len(tuned):.0f} |"
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("zoo", type=Path, help="a folder of folders")
    parser.add_argument("folders", nargs="*", help="default: some that are unlike each other")
    parser.add_argument("--steps", type=int, default=60, help="of tune")
    parser.add_argument("--error", type=float, help="at which bytes are told")
    parser.add_argument("--bytes", type=float, help="of a packed model, whose errors are told")
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.zoo))  # what the evaluate.py share lies there
    columns = "metric | error | bytes | tuned | saved | errors at each step | seconds, both"
    if arguments.bytes:
        columns = "bytes | error | metric | tuned | error | metric | seconds, both"
    print(f"| model | {columns} |")
    print("|" + " --- |" * (2 + columns.count("|")))
    with tempfile.TemporaryDirectory(prefix="onnxshrink-bench-") as scratch, Worker() as worker:
        for name in arguments.folders or FOLDERS:
            bench = Bench(arguments.zoo / name, Path(scratch), worker, arguments.steps)
            size = arguments.bytes
            print(bench.of_size(size) if size else bench.row(arguments.error), flush=True)


if __name__ == "__main__":
    main()
