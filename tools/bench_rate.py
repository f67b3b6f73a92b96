"""Measure quantize-rd as a user would run it: packed bytes, the task's metric, the answers.

Every folder of the zoo holds ``model.onnx`` and ``evaluate.py``, a module with
``load_inputs(split)`` and ``metric(outputs)``; at most 64 inputs of the split ``calibration`` are
used.

    python tools/bench_rate.py ZOO [folder ...]
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxshrink.graph.forms.packed import stored_bytes
from onnxshrink.kernels.metrics import compare_outputs

#: The goals that the figures are about, by folder; without any, quantize-rd chooses for itself.
GOALS: dict[str, tuple[tuple[str, ...], ...]] = {
    "paraphrase_minilm_l3": ((), ("--target-ratio", "11"), ("--target-ratio", "13")),
    "fashion_cnn": (("--measure", "agreement"), ("--target-ratio", "16")),
    "magika_v3_3": ((), ("--target-ratio", "8.5")),
    "ppocr_rec_v4": (("--target-ratio", "6.5"), ("--target-ratio", "9")),
    "efficientnet_lite0": ((), ("--target-ratio", "7")),
    "silero_vad": ((), ("--target-ratio", "6")),
    "arabic_gru_decoder": ((), ("--target-ratio", "8")),
    "mlp_tabular": ((), ("--target-ratio", "8")),
}
MOST_INPUTS = 64


def module(folder: Path) -> Any:
    """The folder's ``evaluate.py``."""
    spec = importlib.util.spec_from_file_location(folder.name, folder / "evaluate.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def answers(path: Path, feeds: Sequence[dict[str, np.ndarray]]) -> tuple[list[str], list[Any]]:
    """Names of the outputs, and what the model answers to every feed."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    taken = {value.name for value in session.get_inputs()}
    rows = [session.run(None, {k: v for k, v in feed.items() if k in taken}) for feed in feeds]
    return [value.name for value in session.get_outputs()], rows


def calibration(folder: Path, feeds: Sequence[dict[str, np.ndarray]], scratch: Path) -> Path:
    """A file with the inputs to calibrate on, as ``--calibration`` takes them."""
    path = scratch / f"{folder.name}.npz"
    kept = {f"{i:05d}|{k}": v for i, feed in enumerate(feeds) for k, v in feed.items()}
    np.savez(path, **kept)  # type: ignore[arg-type]
    return path


def measure(folder: Path, scratch: Path) -> None:
    """Print one line of the table for every goal."""
    task, source = module(folder), folder / "model.onnx"
    data = calibration(folder, task.load_inputs("calibration")[:MOST_INPUTS], scratch)
    feeds = task.load_inputs("test")
    names, before = answers(source, feeds)
    for goal in GOALS.get(folder.name, ((),)):
        small, packed = scratch / "small.onnx", scratch / "packed.onnx"
        command = [sys.executable, "-m", "onnxshrink"]
        shared = ["--calibration", str(data)]
        started = time.perf_counter()
        run = [*command, "quantize-rd", str(source), str(small), *shared, *goal]
        subprocess.run(run, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
        pack = [*command, "pack", str(small), str(packed)]
        subprocess.run(pack, check=True, stdout=subprocess.DEVNULL)
        total = stored_bytes(packed)
        after = answers(small, feeds)[1]
        rows = compare_outputs(names, before, after)
        cosine = min(row.cosine for row in rows)
        error = max(row.relative_error for row in rows)
        top1 = [row.top1 for row in rows if row.top1 is not None]
        print(
            f"| {folder.name} | {' '.join(goal) or 'none'} | {source.stat().st_size:,} | {total:,} "
            f"| {source.stat().st_size / total:.2f} | {task.metric(before):.4f} "
            f"| {task.metric(after):.4f} | {cosine:.4f} | {error:.3f} "
            f"| {min(top1, default=float('nan')):.4f} | {seconds:.0f} |",
            flush=True,
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("zoo", type=Path, help="a folder of folders")
    parser.add_argument("folders", nargs="*", help="default: those that have a goal")
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.zoo))  # what the evaluate.py share lies there
    print("| model | goal | bytes | packed | ratio | metric | after | cosine | error | top-1 | s |")
    print("|" + " --- |" * 11)
    with tempfile.TemporaryDirectory(prefix="onnxshrink-bench-") as scratch:
        for name in arguments.folders or GOALS:
            measure(arguments.zoo / name, Path(scratch))


if __name__ == "__main__":
    main()
