"""Where a result shall run: what is wrong or missing there is refused, and named."""

import numpy as np
import pytest
from hard_models import text

from onnxshrink.contract import Settings
from onnxshrink.graph.file.model import Model
from onnxshrink.options import build
from onnxshrink.pipeline import run
from onnxshrink.recipe import find_pass
from onnxshrink.runtime.worker import Worker
from onnxshrink.search.platform import PLATFORMS

TABLE = "g (int64[N, 6] x) => (float[N, 6, 32] y) { t = Gather(a, x) y = MatMul(t, b) }"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"form": "dq", "dtype": "int8"}, {}),
        (
            {"form": "dq", "dtype": "int8", "block_size": 32},
            {"openvino": "rows of a table with scales in blocks are wrong on openvino"},
        ),
        (
            {"form": "nbits", "dtype": "int4", "block_size": 32},
            {
                "openvino": "GatherBlockQuantized is not for openvino",
                "web": "GatherBlockQuantized is not for web",
                "mobile": "GatherBlockQuantized is not for mobile",
            },
        ),
    ],
)
def test_what_a_place_does_not_run(options, expected, worker: Worker):
    rng = np.random.default_rng(0)
    weights = {"a": rng.standard_normal((256, 64)), "b": rng.standard_normal((64, 32))}
    arrays = {name: array.astype(np.float32) for name, array in weights.items()}
    original = Model.from_proto(text(TABLE, **arrays))
    step = build(find_pass("quantize-weights"), {**options, "min_size": 0}, "test")
    settings = Settings(feeds=[{"x": np.zeros((1, 6), np.int64)}], check="off")
    result = run([step], original, settings, worker).model
    raised = result.opset > 19  # what needs a newer operator set than phones have
    for name, platform in PLATFORMS.items():
        said = platform.why_not(result, original)
        if name == "mobile" and raised and name not in expected:
            assert said == f"operator set {result.opset} is too new for mobile"
        else:
            assert said == expected.get(name, "")
