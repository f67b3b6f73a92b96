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
from onnxshrink.search.platform import FULL_RANGE, PLATFORMS, TARGETS, profile

TABLE = "g (int64[N, 6] x) => (float[N, 6, 32] y) { t = Gather(a, x) y = MatMul(t, b) }"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"form": "dq", "dtype": "int8"}, {}),
        (
            {"form": "dq", "dtype": "int8", "block_size": 32},
            {"openvino": "Gather of DequantizeLinear<int8, blocks> is not for openvino: wrong: "},
        ),
        (
            {"form": "nbits", "dtype": "int4", "block_size": 32},
            {
                "openvino": "com.microsoft.GatherBlockQuantized of uint8 is not for openvino: "
                "helped: 1 on CPU: GatherBlockQuantized",
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
            assert said.startswith(expected.get(name, "")), said
            assert bool(said) == (name in expected)


def test_profiles_are_of_what_passes_write():
    """Every probed form and operator has a verdict, and what is avoided is right nowhere."""
    probed = {name: profile(name) for name, place in PLATFORMS.items() if place.probed}
    assert set(probed) == {file.stem for file in TARGETS.glob("*.json")}
    forms = {name: {*found.forms} for name, found in probed.items()}
    assert len({*map(frozenset, forms.values())}) == 1, forms
    for found in probed.values():
        words = {said for row in found.forms.values() for said in row.values()}
        assert {*found.avoid.values()} <= {said for said in words if not said.startswith("right")}
        assert found.forms["float"].keys() == found.forms["int8 dq"].keys()
        assert all(said.startswith("right") for said in found.forms["float"].values())


def test_which_cpu_codes_are_for():
    """The full range of int8 is wrong on CPUs without VNNI, as they were probed."""
    found = {name: [*profile(name).forms.items()] for name in ("cpu", "cpu-vnni")}
    wrong = {
        name: {form for form, row in forms if any("wrong" in said for said in row.values())}
        for name, forms in found.items()
    }
    assert wrong == {"cpu": {*FULL_RANGE}, "cpu-vnni": set()}
    assert {name for name, place in PLATFORMS.items() if place.cpu == "vnni"} == {"cpu-vnni"}
