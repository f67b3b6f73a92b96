"""Every pass after every other on one small model: it composes, or says why not.

Passes that compress weights are checked on top, as a user has it.
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from weight_passes import MIXED_FEEDS, MIXED_WEIGHTS, computed, mixed

from onnxshrink.contract import Settings
from onnxshrink.graph import weights
from onnxshrink.graph.file.model import Model
from onnxshrink.pipeline import Result, run
from onnxshrink.recipe import find_pass, pass_names
from onnxshrink.runtime.worker import Worker

#: Options with which a pass has something to do here.
OPTIONS: dict[str, dict[str, Any]] = {
    "prune-channels": {"ratio": 0.1},
    "prune-magnitude": {"ratio": 0.4},
    "prune-sparsegpt": {"ratio": 0.4},
    "prune-wanda": {"ratio": 0.4},
    "quantize-rd": {"bits_per_weight": 4.0},
    "share-codebook": {"bits": 4},
    "specialize": {"shapes": {"x": [2, 8, 6, 6]}},
    "split-lowrank": {"ratio": 0.9},
    "surgeon": {"function": f"{__file__}:untouched"},
}
#: Passes that only compress weights. Their pairs are worth a run of each, and leave codes alone.
COMPRESSING = (
    "clean", "prune-magnitude", "prune-sparsegpt", "prune-wanda", "quantize-weights", "reconstruct",
    "share-codebook", "split-lowrank", "to-float16",
)  # fmt: skip
#: What stores weights as integers times scales, and what computes with such integers.
CODES = ("quantize-rd", "quantize-weights")
INTEGERS = {"quantize-dynamic": ("gemm", "last"), "quantize-static": ("conv", "gemm", "last")}


def untouched(graph: Any) -> Any:
    """What ``surgeon`` calls."""
    return graph


def step(name: str, source: Model, worker: Worker, *, check: bool = False) -> Result:
    pass_ = find_pass(name)(**OPTIONS.get(name, {}), max_error=0.7 if check else 1.0)
    settings = Settings(feeds=MIXED_FEEDS, check="full" if check else "off")
    return run([pass_], source, settings, worker)


@pytest.fixture(scope="module")
def seen() -> set[bytes]:
    """Models that were tried already: passes that find nothing to do leave the same one."""
    return set()


@pytest.mark.parametrize("first", pass_names())
def test_every_pass_after(first: str, seen: set[bytes], worker: Worker, tmp_path: Path) -> None:
    before = step(first, Model.from_proto(mixed()), worker)
    assert before.report.steps[0].status in ("done", "nothing to do")
    path = tmp_path / "first.onnx"
    before.model.save(path, durable=False)
    known, stored = path.read_bytes() in seen, onnx.load(path)
    seen.add(path.read_bytes())
    codes = computed(before) if first in ("quantize-weights", "share-codebook") else {}
    coded = {change.what for change in before.report.steps[0].changes} & set(MIXED_WEIGHTS)
    for second in () if known else pass_names():
        both = {first, second} <= set(COMPRESSING)
        result = step(second, Model.from_proto(copy.deepcopy(stored)), worker, check=both)
        (row,) = result.report.steps
        pair = f"{second} after {first}: {row.reason}"
        assert row.status in ("done", "nothing to do"), pair
        assert row.changes or row.skips, pair
        assert all(skip.reason for skip in row.skips), pair
        if not (row.may_grow or find_pass(second).may_grow):
            assert row.bytes_after <= row.bytes_before, pair
        result.model.save(path, durable=False)
        assert path.stat().st_size == row.bytes_after, pair
        if both and codes and second != "reconstruct":  # codes are the last word on a weight
            after = computed(result)
            for name in coded & set(after):
                np.testing.assert_array_equal(after[name], codes[name], err_msg=pair)
            # Nor are scales and tables taken for weights, which they would be by their shapes.
            assert not {change.what for change in row.changes} & coded, pair
            assert not {c.what for c in row.changes if c.what.startswith("w")}, pair
            locked = [view.why_not for view in weights.find(result.model)]
            assert sum("already quantized" in why for why in locked) >= 3, pair
        if first in CODES and second in INTEGERS:
            taken = {change.what: change.note for change in row.changes}
            for name in INTEGERS[second]:
                assert "its codes kept" in taken[name], pair
                assert np.isfinite(row.max_error or 0)
