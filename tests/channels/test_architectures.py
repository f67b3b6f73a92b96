"""Whole architectures against the oracle: those of ``tools/export_architectures.py``, and ours."""

from __future__ import annotations

from pathlib import Path

import channel_oracle as oracle
import pytest

from onnxshrink.graph.file.model import Model
from onnxshrink.runtime.generate import generated_inputs

_ROOT = Path(__file__).parents[2]
_EXPORTS = sorted((_ROOT / ".cache" / "architectures").glob("*.onnx"))
_OWN = sorted((_ROOT / "models").glob("*/model.onnx"))


def _check(path, ratio, worker):
    model = Model.load(path)
    feed, *_ = generated_inputs(model, 1, 0, worker=worker)
    verdict = oracle.prune(model, feed, worker, ratio, seed=1)
    assert verdict.error < 1e-4, verdict.where
    return verdict


@pytest.mark.parametrize("path", _OWN, ids=lambda p: p.parent.name)
def test_own_models(path, worker):
    verdict = _check(path, 0.3, worker)
    if path.parent.name != "logistic_regression":
        assert verdict.after.parameters < 0.75 * verdict.before.parameters


@pytest.mark.e2e
@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("path", _EXPORTS, ids=lambda p: p.stem)
def test_exports(path, ratio, worker):
    verdict = _check(path, ratio, worker)
    assert not verdict.walk.barriers
    assert verdict.after.parameters < verdict.before.parameters


@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["session", "transformers"])
@pytest.mark.parametrize("name", ["bert", "gpt", "swin", "vit", "whisper", "resnet18"])
def test_exports_as_onnxruntime_rewrites_them(name, how, worker, tmp_path):
    """Attention, SkipLayerNormalization, BiasGelu, FusedMatMul, FusedConv as they are met."""
    import onnxruntime

    path, out = _ROOT / ".cache" / "architectures" / f"{name}.onnx", tmp_path / "model.onnx"
    if not path.exists():
        pytest.skip("no export of it")
    if how == "session":
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(out)
        level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.graph_optimization_level = level
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    else:
        from onnxruntime.transformers import optimizer

        heads, width = {"vit": (3, 192)}.get(name, (4, 128))
        optimizer.optimize_model(
            str(path), "bert", num_heads=heads, hidden_size=width, opt_level=0
        ).save_model_to_file(str(out))
    verdict = _check(out, 0.3, worker)
    assert not verdict.walk.barriers
    assert verdict.after.parameters < 0.6 * verdict.before.parameters
