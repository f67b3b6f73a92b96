"""Draws without a seed are found, and a seeded copy answers the same every time."""

import numpy as np
import pytest
from answers import answers, normal
from onnx import parser

from onnxshrink.graph.analysis import noise
from onnxshrink.graph.file.model import Model

HEADER = '<ir_version: 8, opset_import: ["": 17]>'
DRAWS = {
    "normal": "y = RandomNormal <shape = [4, 8]> ()",
    "like": "y = RandomUniformLike (x)",
    "training": "r = Constant <value_float = 0.5> () t = Constant <value = bool {1}> () "
    "y = Dropout (x, r, t)",
}  # fmt: skip
STILL = {
    "seeded": "y = RandomNormal <shape = [4, 8], seed = 1.0> ()",
    "inference": "y = Dropout (x)",
    "plain": "y = Relu (x)",
}


def model_of(body: str) -> Model:
    text = f"{HEADER} g (float[4, 8] x) => (float[4, 8] y) {{ {body} }}"
    return Model.from_proto(parser.parse_model(text))


@pytest.mark.parametrize("name", DRAWS)
def test_a_seeded_copy_draws_the_same_and_the_model_stays(name: str) -> None:
    model, x = model_of(DRAWS[name]), np.abs(normal(4, 8)) + 1
    assert noise.is_random(model)
    before, first = model.digest(), noise.seeded(model)
    (once,), (again,) = answers(first, x=x), answers(noise.seeded(model.clone()), x=x)
    np.testing.assert_array_equal(once, again)
    assert len(np.unique(once)) > 1
    assert not noise.is_random(first)
    assert noise.is_random(model)
    assert model.digest() == before


@pytest.mark.parametrize("name", STILL)
def test_what_draws_nothing_or_has_a_seed(name: str) -> None:
    assert not noise.is_random(model_of(STILL[name]))


def test_two_draws_are_not_the_same_draw() -> None:
    body = "a = RandomNormalLike (x) b = RandomNormalLike (x) y = Sub (a, b)"
    (y,) = answers(noise.seeded(model_of(body)), x=normal(4, 8))
    assert np.abs(y).max() > 0
