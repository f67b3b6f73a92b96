"""Weight passes keep what the one before them made: zeros, factors, codes and their tables."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from weight_passes import MIXED_FEEDS, MIXED_WEIGHTS, computed
from weight_passes import mixed as model

from onnxshrink.contract import Settings
from onnxshrink.graph.file.model import Model
from onnxshrink.pipeline import Pass, Result, run
from onnxshrink.recipe import find_pass
from onnxshrink.runtime.worker import Worker

#: Options with which a pass works on random weights and does them no more harm than it must.
PASSES: dict[str, dict[str, Any]] = {
    "clean": {},
    "prune-magnitude": {"ratio": 0.4, "scope": "weight"},
    "prune-sparsegpt": {"ratio": 0.4, "allocate": "uniform"},
    "prune-wanda": {"ratio": 0.4, "allocate": "uniform"},
    "quantize-weights": {},
    "reconstruct": {},
    "share-codebook": {"bits": 4},
    "split-lowrank": {"ratio": 0.9},
    "to-float16": {},
}


def steps(*names: str) -> list[Pass]:
    return [find_pass(name)(**PASSES[name], max_error=2.0) for name in names]


def compress(worker: Worker, *names: str) -> Result:
    return run(steps(*names), Model.from_proto(model()), Settings(feeds=MIXED_FEEDS), worker)


Alone = Callable[[str], dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def alone(worker: Worker) -> Alone:
    """The weights that ONNX Runtime computes with after one pass."""

    @functools.cache
    def after(name: str) -> dict[str, np.ndarray]:
        return computed(compress(worker, name))

    return after


@pytest.mark.parametrize(
    ("then", "options"),
    [
        ("quantize-weights", {}),
        ("quantize-weights", {"dtype": "int4", "rounding": "gptq"}),
        ("quantize-rd", {"bits_per_weight": 3.0}),
        ("share-codebook", {"bits": 4}),
        ("to-float16", {}),
        ("clean", {}),
    ],
    ids=["int8", "gptq", "rd", "codebook", "float16", "clean"],
)
@pytest.mark.parametrize("first", ["prune-magnitude", "prune-sparsegpt", "prune-wanda"])
def test_what_was_pruned_stays_zero(
    first: str, then: str, options: dict[str, Any], alone: Alone, worker: Worker
) -> None:
    pruned = MIXED_WEIGHTS if first == "prune-magnitude" else ("conv", "gemm", "last")
    before = alone(first)
    passes = [*steps(first), find_pass(then)(**options, max_error=2.0)]
    result = run(passes, Model.from_proto(model()), Settings(feeds=MIXED_FEEDS), worker)
    assert result.report.steps[1].status == ("nothing to do" if then == "clean" else "done")
    after = computed(result)
    assert set(after) == set(MIXED_WEIGHTS)
    for name in pruned:
        assert np.mean(before[name] == 0) == pytest.approx(0.4, abs=6e-3)
        assert (after[name][before[name] == 0] == 0).all()


@pytest.mark.parametrize("then", ["quantize-weights", "share-codebook", "to-float16"])
def test_thin_factors_are_compressed_further(then: str, worker: Worker) -> None:
    result = compress(worker, "split-lowrank", then)
    split, compressed = result.report.steps
    factors = [c.what for c in compressed.changes if c.what.endswith((".a", ".b"))]
    # One of the six has so few weights that a table would not make it smaller.
    assert len(split.changes) == 3
    assert len(factors) in (5, 6)


def test_codebooks_after_sparse_values_are_no_codebooks(worker: Worker) -> None:
    prune = find_pass("prune-magnitude")(ratio=0.8, store="sparse", max_error=2.0)  # type: ignore[call-arg]
    share = find_pass("share-codebook")(max_error=2.0)
    source = Model.from_proto(model())
    result = run([prune, share], source, Settings(feeds=MIXED_FEEDS), worker)
    one, two = result.report.steps
    assert one.status == "done"
    assert two.status == "nothing to do"
    assert any("lookup table" in skip.reason for skip in two.skips)
    assert any("table of a compressed weight" in skip.reason for skip in two.skips)
