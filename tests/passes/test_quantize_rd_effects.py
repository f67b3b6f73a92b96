"""What gradients say of the noise in weights, against what numpy says of the same network."""

import itertools

import numpy as np
import pytest
from weight_models import parsed

from onnxshrink.goal import Goal
from onnxshrink.graph import weights
from onnxshrink.graph.file.model import Model
from onnxshrink.passes.quantize_rd.effects import by_gradients
from onnxshrink.runtime.worker import Worker

SIZES = (7, 6, 5, 4, 1)
NAMES = ("a", "b", "c", "d")


def network(last: str = "y = Identity(z)", kind: str = "float") -> tuple[Model, list[np.ndarray]]:
    """Four products with Tanh between them, one number, and what makes the answer of it."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in itertools.pairwise(SIZES)]
    text = f"""g (float[1, 7] x) => ({kind}[1, 1] y) {{
        h0 = MatMul(x, a)  t0 = Tanh(h0)
        h1 = MatMul(t0, b)  t1 = Tanh(h1)
        h2 = MatMul(t1, c)  t2 = Tanh(h2)
        z = MatMul(t2, d)
        {last}
    }}"""
    return Model.from_proto(parsed(text, **dict(zip(NAMES, arrays, strict=True)))), arrays


def inputs() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((1, 7)).astype(np.float32)} for _ in range(3)]


def told(model: Model, noise: dict[str, np.ndarray], worker: Worker) -> dict[str, float]:
    views = {view.name: view for view in weights.find(model)}
    by_view = {views[name]: views[name].to_matrix(array) for name, array in noise.items()}
    return by_gradients(model, by_view, inputs(), Goal(), "auto", worker)


def test_the_effect_of_each_row_is_that_of_its_derivative(worker: Worker) -> None:
    model, arrays = network()
    rng = np.random.default_rng(2)
    noise = {
        name: rng.standard_normal(array.shape).astype(np.float32)
        for name, array in zip(NAMES, arrays, strict=True)
    }
    wanted, power = dict.fromkeys(NAMES, 0.0), 0.0
    for feed in inputs():
        values = [feed["x"].astype(np.float64)]
        for array in arrays[:-1]:
            values.append(np.tanh(values[-1] @ array))
        power += float(np.square(values[-1] @ arrays[-1]).sum())
        back = np.ones((1, 1))
        for place in reversed(range(4)):
            moved = (values[place] @ noise[NAMES[place]]) * back
            wanted[NAMES[place]] += float(np.square(moved).sum())
            back = (back @ arrays[place].T) * (1 - np.square(values[place]))
    found = told(model, noise, worker)
    assert found == pytest.approx({name: total / power for name, total in wanted.items()}, rel=1e-4)


def test_weights_behind_a_stop_are_not_told(worker: Worker) -> None:
    model, arrays = network("r = Round(z)  s = ReduceSum <keepdims = 1> (t2)  y = Add(r, s)")
    assert told(model, dict(zip(NAMES, arrays, strict=True)), worker) == {}


def test_integers_only_tell_nothing(worker: Worker) -> None:
    model, arrays = network("y = Cast <to = 7> (z)", "int64")
    assert told(model, dict(zip(NAMES, arrays, strict=True)), worker) == {}


def test_weights_on_which_a_decision_depends_are_not_told(worker: Worker) -> None:
    model, arrays = network("r = Round(z)  k = Add(r, z)  y = Mul(k, k)")
    noise = dict(zip(NAMES, arrays, strict=True))
    assert set(told(model, noise, worker)) == set()  # the Round's own slope is none
    proto = model.to_proto()
    text = """g (float[1, 7] x) => (float[1, 4] y) {
        h0 = MatMul(x, a)  r = Round(h0)  h1 = MatMul(r, b)  t1 = Tanh(h1)  h2 = MatMul(t1, c)
        d1 = Tanh(h2)  z = MatMul(d1, e)  t3 = Tanh(z)  y = MatMul(t3, f)
    }"""
    more = {"e": arrays[2].T @ arrays[2], "f": arrays[2].T @ arrays[2]}
    known = dict(zip("abc", arrays, strict=False)) | more
    model = Model.from_proto(parsed(text, **known))
    assert proto.graph.node
    assert set(told(model, known, worker)) == {*"bcef"}


def test_a_model_that_draws_is_told_by_its_first_draws(worker: Worker) -> None:
    """How many rows the answer has follows from the draw."""
    rng = np.random.default_rng(4)
    arrays = [rng.standard_normal((7, 7)).astype(np.float32) for _ in range(4)]
    text = """g (float[1, 7] x) => (float[n, 7] y) {
        u = RandomUniformLike <low = 1.0, high = 9.0> (x)  whole = Cast <to = 7> (u)
        count = ReduceMax <keepdims = 0> (whole)  one = Constant <value = int64[1] {1}> ()
        first = Reshape(count, one)  shape = Concat <axis = 0> (first, one)
        h = MatMul(x, a)  rows = Expand(h, shape)  s = Tanh(rows)  t = MatMul(s, b)  v = Tanh(t)
        w = MatMul(v, c)  z = Tanh(w)  y = MatMul(z, d)
    }"""
    known = dict(zip(NAMES, arrays, strict=True))
    assert set(told(Model.from_proto(parsed(text, **known)), known, worker)) == {*NAMES}
