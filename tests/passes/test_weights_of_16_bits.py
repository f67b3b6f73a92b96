"""Weights of float16 are rebuilt when a model is loaded, not at every run.

CPUs have no kernel for products of float16, so ONNX Runtime cannot fold these.
"""

import collections
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hard_models import text

from onnxshrink.contract import Settings
from onnxshrink.graph.file.model import Model
from onnxshrink.options import build
from onnxshrink.pipeline import run
from onnxshrink.recipe import find_pass
from onnxshrink.runtime.worker import Worker

CASES = [
    ("quantize-weights", {"dtype": "int8"}),
    ("quantize-weights", {"dtype": "int8", "symmetric": False}),
    ("quantize-weights", {"dtype": "int8", "block_size": 32}),
    ("quantize-rd", {"lam": 0.01}),
    ("share-codebook", {"bits": 4, "scale": "none"}),
    ("share-codebook", {"bits": 4, "scale": "channel"}),
    ("split-lowrank", {"rank": 8, "residual": "int4", "force": True}),
]


def operators_of(path: Path, folder: Path) -> collections.Counter[str]:
    """What ONNX Runtime runs."""
    options = ort.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 3, str(folder / "run.onnx")
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return collections.Counter(node.op_type for node in onnx.load(folder / "run.onnx").graph.node)


@pytest.mark.parametrize(("step", "options"), CASES)
def test_they_are_rebuilt_at_load(
    step: str, options: dict[str, Any], worker: Worker, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    weights = {name: (rng.standard_normal((64, 64)) / 8).astype(np.float16) for name in "wv"}
    graph = """g (float16[n, 64] x) => (float16[n, 64] y) {
        t = MatMul(x, w)  u = Relu(t)  y = MatMul(u, v)
    }"""
    onnx.save(text(graph, **weights), tmp_path / "before.onnx")
    feeds = [{"x": rng.standard_normal((4, 64)).astype(np.float16)} for _ in range(4)]
    passes = [build(find_pass(step), {**options, "max_error": 1.0}, step)]
    model = Model.load(tmp_path / "before.onnx")
    done = run(passes, model, Settings(feeds=feeds), worker)
    assert done.report.steps[0].status == "done"
    done.model.save(tmp_path / "after.onnx")
    found = [operators_of(tmp_path / f"{name}.onnx", tmp_path) for name in ("before", "after")]
    assert found[1] == found[0]
