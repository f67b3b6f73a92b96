"""Measure what tuning saves: packed bytes at the same error on inputs that no step has seen.

Every folder of the zoo holds ``model.onnx`` and ``evaluate.py``, a module with
``load_inputs(split)`` and ``metric(outputs)``; at most 64 inputs of the split ``calibration`` are
used, and answers are compared on the split ``test``.

    python tools/bench_tuning.py ZOO [folder ...] [--steps 60] [--error E]

quantize-rd runs as it would by itself, which gives an error; then at coarser steps, with and
without ``tune`` behind it. Between these runs the logarithms of sizes and errors are interpolated,
to find the bytes of both at the error of the first, or at one that is given.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

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
COARSER = (1, 2, 4, 8, 16, 32)  # times what quantize-rd spends by itself


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
            module(folder), scratch, worker, steps,
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
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.zoo))  # what the evaluate.py share lies there
    print(
        "| model | metric | error | bytes | tuned | saved | errors at each step | seconds, both |"
    )
    print("|" + " --- |" * 8)
    with tempfile.TemporaryDirectory(prefix="onnxshrink-bench-") as scratch, Worker() as worker:
        for name in arguments.folders or FOLDERS:
            bench = Bench(arguments.zoo / name, Path(scratch), worker, arguments.steps)
            print(bench.row(arguments.error), flush=True)


if __name__ == "__main__":
    main()
