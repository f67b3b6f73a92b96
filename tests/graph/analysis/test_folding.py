"""What is computed in advance costs no more than 2^24 elements, whatever a model asks for."""

import numpy as np
import pytest

from onnxshrink.graph.analysis.folding import affordable

MOST = 2**24


def integers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@pytest.mark.parametrize(
    ("op_type", "inputs"),
    [
        ("ConstantOfShape", lambda n: [integers(n - 1)]),
        ("Expand", lambda n: [np.ones(1), integers(n - 1)]),
        ("Tile", lambda n: [np.ones(4), integers(n // 4 - 1)]),
        ("Pad", lambda n: [np.ones(2), integers(0, n // 2 - 1)]),
        ("Resize", lambda n: [np.ones(1), None, integers(n - 1)]),
        ("Range", lambda n: [integers(0), integers(n), integers(1)]),
        ("Range", lambda n: [np.array(0.0), np.array(-n / 2), np.array(-0.5)]),
    ],
)
def test_the_limit(op_type: str, inputs) -> None:
    assert affordable(op_type, (), inputs(MOST))
    assert not affordable(op_type, (), inputs(MOST + 4))


def test_attributes_count_and_so_do_their_signs() -> None:
    image = np.ones((1, 1, 8, 8))
    assert affordable("MaxPool", (2, 2), [image])
    assert not affordable("MaxPool", (-(2**31),), [image])
    assert not affordable("AveragePool", (2**12, 2**12), [image])


def test_what_is_bounded_by_its_inputs_may_always_be() -> None:
    assert affordable("Transpose", (2**62,), [np.ones(3)])
    assert affordable("Add", (), [np.ones(3), None])


def test_a_range_that_never_ends() -> None:
    assert not affordable("Range", (), [integers(0), integers(5), integers(0)])
