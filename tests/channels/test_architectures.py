"""Whole architectures against the oracle: ours, and those of ``tools/export_architectures.py``."""

from __future__ import annotations

from pathlib import Path

import channel_oracle as oracle
import pytest

from onnxshrink.graph.file.model import Model
from onnxshrink.runtime.generate import generated_inputs

_ROOT = Path(__file__).parents[2]
_EXPORTS = sorted((_ROOT / ".cache" / "architectures").glob("*.onnx"))
_OWN = {"logistic_regression": 1.0, "recommender": 0.75, "vision_cnn": 0.75}  # the first has none
#: How much of the model is cut, and the share of parameters that is left at most.
_CASES = [
    *(
        pytest.param(_ROOT / "models" / name / "model.onnx", 0.3, left, id=name)
        for name, left in _OWN.items()
    ),
    *(
        pytest.param(path, ratio, 1.0, id=f"{path.stem}-{ratio}", marks=pytest.mark.e2e)
        for path in _EXPORTS
        for ratio in (0.1, 0.3, 0.5, 0.7)
    ),
]
_REWRITTEN = [
    *(case.values[0] for case in _CASES[1 : len(_OWN)]),
    *(p for p in _EXPORTS if p.stem in ("bert", "gpt", "swin", "vit", "whisper", "resnet18")),
]


def _check(path, ratio, worker):
    model = Model.load(path)
    feed, *_ = generated_inputs(model, 1, 0, worker=worker)
    verdict = oracle.prune(model, feed, worker, ratio, seed=1)
    assert verdict.error < 1e-4, verdict.where
    return verdict


@pytest.mark.parametrize(("path", "ratio", "left"), _CASES)
def test_models(path, ratio, left, worker):
    verdict = _check(path, ratio, worker)
    assert verdict.after.parameters <= left * verdict.before.parameters
    if path in _EXPORTS:
        assert not verdict.walk.barriers
        assert verdict.after.parameters < verdict.before.parameters


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["session", "transformers"])
@pytest.mark.parametrize("path", _REWRITTEN, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_models_as_onnxruntime_rewrites_them(path, how, worker, tmp_path):
    """Attention, SkipLayerNormalization, BiasGelu, FusedMatMul, FusedConv as they are met."""
    import onnxruntime

    out = tmp_path / "model.onnx"
    if how == "session":
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(out)
        level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.graph_optimization_level = level
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    else:
        from onnxruntime.transformers import optimizer

        heads, width = {"vit": (3, 192)}.get(path.stem, (4, 128))
        optimizer.optimize_model(
            str(path), "bert", num_heads=heads, hidden_size=width, opt_level=0
        ).save_model_to_file(str(out))
    verdict = _check(out, 0.3, worker)
    assert not verdict.walk.barriers
    assert verdict.after.parameters < 0.75 * verdict.before.parameters
