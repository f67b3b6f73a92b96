"""Means that BatchNormalization promises, against those of many normal numbers."""

import numpy as np
import pytest
from answers import normal
from onnx import numpy_helper, parser

from onnxshrink.graph.file.model import Model
from onnxshrink.graph.layers.means import means

GAMMA, BETA = np.array([1.5, -0.5, 2.0], np.float32), np.array([0.3, -0.2, 1.0], np.float32)
FACTORS = {"g": GAMMA, "b": BETA, "m": np.zeros(3, np.float32), "v": np.ones(3, np.float32)}


def found(body: str) -> dict[str, np.ndarray]:
    proto = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[n, 3, 4, 4] x, float[n, 3, 4, 4] u) => (y) {{
        c = BatchNormalization (x, g, b, m, v) {body} }}"""
    )
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in FACTORS.items())
    return means(Model.from_proto(proto))


def test_the_shift_is_the_mean_and_pooling_keeps_it() -> None:
    kept = found("p = GlobalAveragePool (c)  i = Identity (p)  y = Flatten (i)")
    for name in ("c", "p", "i", "y"):
        np.testing.assert_array_equal(kept[name], BETA)


@pytest.mark.parametrize(
    ("cut", "low", "high"),
    [
        ("y = Relu (c)", 0, np.inf),
        ("l = Constant <value_float = 0.0> () h = Constant <value_float = 1.2> () "
         "y = Clip (c, l, h)", 0, 1.2),
    ],
)  # fmt: skip
def test_what_is_cut_has_the_mean_of_cut_normal_numbers(cut: str, low: float, high: float) -> None:
    drawn = normal(400_000, 3).astype(np.float64) * GAMMA + BETA
    np.testing.assert_allclose(found(cut)["y"], drawn.clip(low, high).mean(0), atol=6e-3)


def test_of_other_values_nothing_is_said() -> None:
    """Not of what is cut twice, added to something, or did not come from a norm."""
    known = found("a = Add (c, u)  r = Relu (a)  s = Relu (u)  q = Relu (c)  y = Sigmoid (q)")
    assert set(known) == {"c", "q"}
