"""A weight whose inputs cannot be observed gets a lesser method, and its row says why."""

from typing import Any

import numpy as np
import pytest
from hard_models import text, weight

from onnxshrink.contract import Settings
from onnxshrink.graph.file.model import Model
from onnxshrink.options import build
from onnxshrink.pipeline import run
from onnxshrink.recipe import find_pass
from onnxshrink.runtime.worker import Worker

_WHY = "Einsum: its equation is no product"


def _model() -> Model:
    """A product, and an Einsum that is none: the sum of an elementwise product."""
    net = (
        "g (float[n, 96] x) => (float[n, 96] y, float[n] z) "
        "{ y = MatMul(x, w)  c = Constant<value_ints = [96, 96]>()  e = Expand(x, c) "
        '  z = Einsum<equation = "ab,ab->a">(e, v) }'
    )
    return Model.from_proto(text(net, w=weight(1, 96, 96), v=weight(2, 96, 96)))


@pytest.mark.parametrize(
    ("name", "options", "lesser"),
    [
        ("share-codebook", {"bits": 4, "rounding": "gptq"}, "no gptq"),
        ("share-codebook", {"bits": 4, "importance": "true"}, "no importance"),
        ("quantize-rd", {"lam": 1e-3}, "to nearest (no gptq"),
        ("split-lowrank", {"residual": "int8", "rank": 2}, "not whitened"),
        ("quantize-weights", {"rounding": "gptq", "dtype": "int4"}, "no gptq"),
    ],
)
def test_its_row_says_so(name: str, options: dict[str, Any], lesser: str, worker: Worker) -> None:
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((1, 96)).astype(np.float32)} for _ in range(6)]
    step = build(find_pass(name), {**options, "max_error": 9}, name)
    (row,) = run([step], _model(), Settings(feeds=feeds), worker).report.steps
    notes = {change.what: change.note for change in row.changes}
    assert lesser in notes["v"], (notes, row)
    assert _WHY in notes["v"]
    assert lesser not in notes["w"]
