#!/usr/bin/env python3
"""What `shrink` makes of models: bytes of the coded file, the task metric on TEST, time.

    python tools/bench_shrink.py [models/vision_cnn ...]

A folder holds `model.onnx`, `calibration.npz` and `test.npz`, as those of `models/` do.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from model_files import MODELS
from model_metrics import metric, run_batches, test_inputs

from onnxshrink import BudgetMissed, Options, Report, shrink


def shrunk(folder: Path, out: Path) -> Report:
    """The report of a run with defaults, the goal missed or not."""
    options = Options(calibration=str(folder / "calibration.npz"))
    try:
        return shrink(folder / "model.onnx", out, options)
    except BudgetMissed as missed:
        report = missed.report
    if not isinstance(report, Report):
        raise TypeError("a missed budget comes with its report")
    return report


def main() -> None:
    """Print a row for every folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    every = sorted(file.parent for file in MODELS.glob("*/model.onnx"))
    parser.add_argument("folders", nargs="*", type=Path, default=every)
    print("| model | bytes | smaller | metric | seconds | taken | promise |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for folder in parser.parse_args().folders:
        with tempfile.TemporaryDirectory() as place:
            out, started = Path(place, "out.onnx"), time.perf_counter()
            report = shrunk(folder, out)
            seconds = time.perf_counter() - started
            before, after = (
                metric(folder, run_batches(model, test_inputs(folder)))
                for model in (folder / "model.onnx", out)
            )
            taken = next((one.recipe for one in report.tried if one.taken), "-")
            print(
                f"| {folder.name} | {report.bytes_after} | {report.ratio:.2f}x | "
                f"{before:.4f} -> {after:.4f} | {seconds:.0f} | {taken} | "
                f"{'; '.join(report.promises)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
