"""Axes of length zero are legal: the first run of a decoder, a picture without boxes, no text."""

from collections.abc import Callable

import decoders
import numpy as np
import onnx
import pytest
from hard_models import text, weight

from onnxshrink.graph.file.model import Model
from onnxshrink.pipeline import Settings, run
from onnxshrink.recipe import find_pass
from onnxshrink.runtime.inputs import Feed
from onnxshrink.runtime.worker import Worker


def _decoder() -> tuple[onnx.ModelProto, list[Feed]]:
    lengths = [(5, 0), (1, 5), (7, 0), (3, 2), (1, 8), (4, 0)]
    feeds = [decoders.genai_feed(*pair, seed=seed, layers=1) for seed, pair in enumerate(lengths)]
    return decoders.genai(layers=1), feeds


def _texts_and_boxes() -> tuple[onnx.ModelProto, list[Feed]]:
    proto = text(
        """g (int64[n, t] ids, float[n, m, 8] boxes) => (float[n, t, 12] y, float[n, m, 4] z) {
            looked = Gather(table, ids)  hidden = MatMul(looked, w1)  active = Relu(hidden)
            normed = LayerNormalization <axis = -1> (active, gain)  y = MatMul(normed, w2)
            moved = MatMul(boxes, w3)  gated = Sigmoid(moved)  scores = MatMul(gated, w4)
            z = Softmax(scores)
        }""",
        table=5 * weight(1, 50, 32), w1=weight(2, 64, 32).T, gain=np.ones(64, np.float32),
        w2=weight(3, 12, 64).T, w3=weight(4, 64, 8).T, w4=weight(5, 4, 64).T,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    sizes = [(1, 0, 5), (1, 4, 0), (2, 3, 3), (0, 4, 2), (1, 3, 0), (1, 5, 4)]
    feeds = [
        {"ids": rng.integers(0, 50, (n, t)),
         "boxes": rng.standard_normal((n, m, 8)).astype(np.float32)}
        for n, t, m in sizes
    ]  # fmt: skip
    return proto, feeds


@pytest.mark.parametrize(
    ("made", "names"),
    [
        (_decoder, ("prune-channels",)),
        (_texts_and_boxes, ("prune-channels", "prune-wanda", "prune-sparsegpt", "quantize-rd",
                            "quantize-static", "share-codebook", "split-lowrank", "smooth")),
    ],
)  # fmt: skip
def test_passes_take_inputs_without_a_value(
    made: Callable[[], tuple[onnx.ModelProto, list[Feed]]], names: tuple[str, ...], worker: Worker
) -> None:
    """Those that resize, repeat, cut, divide, fit or rank by what inputs hold."""
    proto, feeds = made()
    for name in names:
        loose = find_pass(name)(max_error=10.0)
        (row,) = run((loose,), Model.from_proto(proto), Settings(feeds=feeds), worker).report.steps
        assert row.status in ("done", "nothing to do") or "times what may" in row.reason, row
