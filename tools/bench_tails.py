#!/usr/bin/env python3
"""Detectors and a voice through shrink: bytes, and what is found and heard of unseen inputs.

    python tools/bench_tails.py FOLDER [NAME ...]

FOLDER is one that tools/build_tails.py wrote. Prints the table of docs/measurements.md.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import onnxruntime

from onnxshrink import shrink
from onnxshrink.api import Options
from onnxshrink.errors import BudgetMissed
from onnxshrink.graph.file.model import Model
from onnxshrink.kernels import detections
from onnxshrink.report import Report, Table
from onnxshrink.runtime.compare import compare
from onnxshrink.runtime.inputs import load_inputs

NAMES = ("nms", "topk", "voice")
INPUTS = {"nms": "pictures.{}.npz", "topk": "pictures.{}.npz", "voice": "texts.{}"}

Answers = Sequence[Sequence[np.ndarray]]


def answers(path: Path, pictures: np.ndarray) -> Answers:
    """What a detector says of each picture."""
    session = onnxruntime.InferenceSession(path)
    return [session.run(None, {"image": picture}) for picture in pictures]


def truth(folder: Path) -> Answers:
    """What a perfect detector would say."""
    with np.load(folder / "truth.npz") as known:
        ends = np.cumsum(known["counts"])[:-1]
        boxes, kinds = (np.split(known[name], ends) for name in ("boxes", "kinds"))
    return [
        [box, np.ones(len(box), np.float32), kind[:, None]]
        for box, kind in zip(boxes, kinds, strict=True)
    ]


def found(folder: Path, source: Path, out: Path) -> str:
    """Which boxes of the original are found again, and which true ones by both."""
    pictures = np.load(folder / "pictures.test.npz")["image"]
    before, after = answers(source, pictures), answers(out, pictures)
    where = detections.layout(before)
    assert where is not None
    again, all_ = detections.matched(before, after, where)
    text = f"{again} of {all_} boxes found again"
    if before[0][0].ndim == 2:  # as many as there are: beside the truth, not ten of each
        shares = [
            hits / count
            for hits, count in (
                detections.matched(truth(folder), each, where) for each in (before, after)
            )
        ]
        text += f"; of the true ones {shares[0]:.3f} -> {shares[1]:.3f}"
    return text


def heard(folder: Path, source: Path, out: Path) -> str:
    """How far the sound is from the original's, and from itself where its noise differs."""
    feeds = load_inputs(folder / "texts.test", Model.load(source))
    (row,) = compare(source, out, feeds).outputs
    return (
        f"spectrum {row.spectrum_db:.2f} dB, error {row.relative_error:.3f}, "
        f"length {row.drift:.1%} off at most"
    )


def made(source: Path, out: Path, data: Path) -> Report:
    """Shrink a model; what came of it."""
    try:
        return shrink(source, out, Options(calibration=data))
    except BudgetMissed as missed:
        return cast("Report", missed.report)


def main() -> None:
    """Shrink each model, and hold it against the original."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", default=NAMES)
    given = parser.parse_args()
    columns = ("model", "bytes", "shrunk", "smaller", "recipe", "unseen inputs", "kept", "seconds")
    table = Table("Detectors and a voice", columns)
    with tempfile.TemporaryDirectory() as folder:
        for name in given.names:
            source, out = given.folder / f"{name}.onnx", Path(folder) / f"{name}.onnx"
            data = given.folder / INPUTS[name].format("cal")
            start = time.perf_counter()
            report = made(source, out, data)
            seconds = time.perf_counter() - start
            judge = heard if name == "voice" else found
            steps = [step.name for step in report.steps if step.status == "done"]
            table.add(
                name, f"{report.bytes_before:,}", f"{report.bytes_after:,}", f"{report.ratio:.2f}x",
                ", ".join(step for step in steps if step != "clean"),
                judge(given.folder, source, out), "no" if report.missed else "yes",
                f"{seconds:.0f}",
            )  # fmt: skip
    print(table.to_markdown())


if __name__ == "__main__":
    main()
