"""Whole architectures against the oracle: those of ``tools/export_architectures.py``, and ours."""

from __future__ import annotations

from pathlib import Path

import channel_oracle as oracle
import pytest

from onnxshrink.graph.model import Model
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
