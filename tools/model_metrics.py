#!/usr/bin/env python3
"""The task metric of the models in `models/`, of the model itself or of a smaller one.

    python tools/model_metrics.py models/vision_cnn [other.onnx]

prints one line of JSON. Needs numpy and onnxruntime only.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

TOP = {"recommender": 5, "vision_cnn": 1, "logistic_regression": 1}
"""How many of the best-scored answers may hold the true one, by folder name."""


def top_hits(scores: np.ndarray, truth: np.ndarray, top: int) -> float:
    """Share of rows whose true class is among the `top` best scores.

    Args:
        scores: `[rows, classes]`.
        truth: Class numbers, `[rows]`.
        top: 1 is accuracy; more is a recommender's hit rate.
    """
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    return float((best == truth[:, None]).any(axis=1).mean())


def metric(folder: Path, outputs: list[np.ndarray]) -> float:
    """Score the outputs of a model on the test inputs of `folder`; higher is better.

    Args:
        folder: One of the folders of `models/`.
        outputs: One array per model output, the rows in the order of `test.npz`. The scores per
            class are the last.
    """
    with np.load(folder / "test.npz") as test:
        return top_hits(outputs[-1], test["truth"], TOP[folder.name])


def test_inputs(folder: Path) -> dict[str, np.ndarray]:
    """Load the test inputs of `folder` by input name, without the truth."""
    with np.load(folder / "test.npz") as test:
        return {name: test[name] for name in test.files if name != "truth"}


def run_batches(model: Path, inputs: Mapping[str, np.ndarray], size: int = 250) -> list[np.ndarray]:
    """Run a model in batches of at most `size` rows; one array per output, rows in order."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    count = len(next(iter(inputs.values())))
    batches = [
        session.run(None, {name: array[i : i + size] for name, array in inputs.items()})
        for i in range(0, count, size)
    ]
    return [np.concatenate(output) for output in zip(*batches, strict=True)]


def main() -> None:
    """Print the metric of a folder's model, or of another model on the folder's data."""
    parser = argparse.ArgumentParser(description="Print a model's task metric as JSON.")
    parser.add_argument("folder", type=Path, help="a folder of models/")
    parser.add_argument("model", type=Path, nargs="?", help="default: FOLDER/model.onnx")
    args = parser.parse_args()
    folder = args.folder.resolve()
    model = args.model or folder / "model.onnx"
    value = metric(folder, run_batches(model, test_inputs(folder)))
    row = {"folder": folder.name, "metric": round(value, 5), "bytes": model.stat().st_size}
    print(json.dumps(row))


if __name__ == "__main__":
    main()
