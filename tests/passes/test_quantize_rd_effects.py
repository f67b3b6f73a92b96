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
