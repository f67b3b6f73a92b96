"""A small table that needs all its bits keeps them, and nothing else does."""

import numpy as np
import pytest
from weight_models import normal, waves

from onnxshrink.contract import Settings
from onnxshrink.graph.file.model import Model
from onnxshrink.options import build
from onnxshrink.pipeline import run
from onnxshrink.recipe import find_pass
from onnxshrink.runtime.worker import Worker


@pytest.mark.parametrize("name", ["to-float16", "quantize-weights", "quantize-rd"])
@pytest.mark.parametrize("shape", [(320,), (1, 320), (2, 160)])
def test_frequencies_stay_and_the_rest_does_not(
    name: str, shape: tuple[int, ...], worker: Worker
) -> None:
    proto, feeds = waves(normal(64, shape[-1]) / 64, *shape)
    result = run(
        [build(find_pass(name), {}, "here")], Model.from_proto(proto), Settings(feeds=feeds), worker
    )
    (step,) = result.report.steps
    assert step.status == "done"
    assert "w" in [change.what for change in step.changes]
    (reason,) = [skip.reason for skip in step.skips if skip.what == "table"]
    assert "bits" in reason or "tolerate" in reason
    stored = {one.name: one for one in result.model.to_proto().graph.initializer}
    before = {one.name: one for one in proto.graph.initializer}
    assert stored["table"].raw_data == before["table"].raw_data
    assert step.max_error is not None
    assert step.max_error < 0.03  # in float16 it is above 1
    assert np.isfinite(step.max_error)
