"""Whole graphs: ways that meet, operators that stop gradients, and what cannot be asked."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from weight_models import normal, parsed

from onnxshrink.errors import DataError
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.gradients import Derivative, Stop, differentiate
from onnxshrink.runtime.session import open_session, run_session

_W, _V = normal(3, 4), normal(4, 3, seed=1)


def run(made: Derivative, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    proto = made.model.to_proto()
    onnx.checker.check_model(proto)
    session = open_session(proto.SerializeToString())
    names = [port.name for port in session.get_outputs()]
    return dict(zip(names, run_session(session, feeds), strict=True))


def test_gradients_of_a_net_with_ways_that_meet() -> None:
    """Reverse mode by hand: t = x W, h = tanh(t), y = (h + t) V, W also scales z."""
    model = Model.from_proto(parsed(
        """g (float[N, 3] x) => (float[N, 3] y, float[3, 4] z) {
            t = MatMul(x, w)  h = Tanh(t)  u = Add(h, t)  y = MatMul(u, v)  z = Mul(w, w)
        }""", w=_W, v=_V))  # fmt: skip
    before = model.digest()
    made = differentiate(model, ["y", "z"], ["x", "w", "v", "u"])
    assert model.digest() == before
    x, dy, dz = normal(5, 3, seed=2), normal(5, 3, seed=3), normal(3, 4, seed=4)
    found = run(made, **{"x": x, made.seeds["y"]: dy, made.seeds["z"]: dz})
    t = x @ _W
    du = dy @ _V.T
    dt = du * (2 - np.tanh(t) ** 2)
    slopes = {"u": du, "v": (np.tanh(t) + t).T @ dy, "w": x.T @ dt + 2 * _W * dz, "x": dt @ _W.T}
    for name, slope in slopes.items():
        np.testing.assert_allclose(found[made.gradients[name]], slope, rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(found["z"], _W * _W)


def test_gradients_go_around_what_stops_them() -> None:
    model = Model.from_proto(parsed(
        """g (float[N, 3] x) => (float[N, 4] y) {
            t = MatMul(x, w)  r = Round(t)  s = Mul(r, k)  y = Add(s, b)
        }""", w=_W, k=normal(4), b=normal(4, seed=1)))  # fmt: skip
    made = differentiate(model, ["y"], ["w", "k", "b", "x"])
    assert set(made.gradients) == {"k", "b"}
    reason = "is a function of steps, whose slope is 0"
    assert made.stops == (Stop("r", "Round", reason, frozenset({"w", "x"})),)
    x, dy = normal(2, 3, seed=2), normal(2, 4, seed=3)
    found = run(made, **{"x": x, made.seeds["y"]: dy})
    np.testing.assert_allclose(
        found[made.gradients["k"]], (np.round(x @ _W) * dy).sum(0), rtol=1e-6
    )


def test_what_is_an_output_itself_has_the_seed_for_a_gradient() -> None:
    model = Model.from_proto(parsed("g (float[N] x) => (float[N] y) { y = Identity(x) }"))
    made = differentiate(model, ["y"], ["y", "x"])
    found = run(made, **{"x": np.ones(2, np.float32), made.seeds["y"]: normal(2)})
    assert [found[made.gradients[name]].tolist() for name in ("y", "x")] == [normal(2).tolist()] * 2


def test_a_value_that_is_not_there_is_named() -> None:
    model = Model.from_proto(parsed("g (float[N] x) => (float[N] y) { y = Neg(x) }"))
    with pytest.raises(DataError, match="has no value 'w' to differentiate"):
        differentiate(model, ["y"], ["w"])


def test_gradients_of_16_bits_are_added_up_in_32() -> None:
    """Rows that are looked up a thousand times; in float16 256 + .1 is 256."""
    model = Model.from_proto(parsed(
        """g (int64[N] i, int64[N, 4] j) => (float16[N, 4] y) {
            r = Gather(w, i)  e = GatherElements<axis = 0>(w, j)  y = Add(r, e)
        }""", w=normal(5, 4).astype(np.float16)))  # fmt: skip
    made = differentiate(model, ["y"], ["w"])
    rows = np.repeat(np.arange(3), 1000)
    seed = np.full((3000, 4), 0.1, np.float16)
    found = run(made, i=rows, j=np.full((3000, 4), 4), **{made.seeds["y"]: seed})
    wanted = np.repeat([[100.0], [100], [100], [0], [300]], 4, axis=1)
    np.testing.assert_allclose(found[made.gradients["w"]], wanted, rtol=1e-3)


def test_noise_of_the_same_shape_stops_nothing() -> None:
    """Of what it is shaped like it takes no numbers."""
    model = Model.from_proto(parsed(
        """g (float[N, 3] x) => (float[N, 4] y) {
            t = MatMul(x, w)  noise = RandomNormalLike <seed = 1.0> (t)  y = Add(t, noise)
        }""", w=_W))  # fmt: skip
    made = differentiate(model, ["y"], ["w"])
    assert made.stops == ()
    x, dy = normal(5, 3, seed=2), normal(5, 4, seed=3)
    found = run(made, **{"x": x, made.seeds["y"]: dy})
    np.testing.assert_allclose(found[made.gradients["w"]], x.T @ dy, rtol=1e-5, atol=1e-6)
