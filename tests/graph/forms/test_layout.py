"""Layouts: which weights share a scale, and the way back."""

import numpy as np
import pytest
from answers import normal, view_of
from hard_models import text
from onnx import parser

from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import layout
from onnxshrink.graph.weights.views import WeightView


def product(op: str, *shape: int) -> WeightView:
    source = f"g (float[2, 8] x) => (float[2, n] y) {{ y = {op}(x, w) }}"
    return view_of(Model.from_proto(text(source, w=normal(*shape))), "w")


@pytest.mark.parametrize(
    ("op", "settings", "shape", "axes"),
    [
        ("MatMul", {}, (8, 6), (0,)),
        ("MatMul", {"per_channel": False}, (8, 6), (0, 1)),
        ("MatMul", {"block_size": 4}, (2, 4, 6), (1,)),
        ("MatMul", {"block_size": 3}, (8, 6), (0,)),  # it does not divide a channel
        ("MatMul", {"turned": True}, (6, 8), (1,)),
        ("MatMul", {"turned": True, "block_size": 4}, (6, 2, 4), (2,)),
    ],
)
def test_rows_and_blocks(op, settings, shape, axes) -> None:
    view = product(op, 8, 6)
    found = layout.of(view, **settings)
    assert (found.shape, found.axes) == (shape, axes)
    values = found.values()
    assert values.shape == shape
    np.testing.assert_array_equal(found.spread(values), view.array())


def test_inputs_that_lie_apart_are_not_cut_in_blocks() -> None:
    """A kernel of a transposed convolution has its outputs between its inputs and its places."""
    source = "g (float[1, 8, 4, 4] x) => (float y) { y = ConvTranspose(x, w) }"
    view = view_of(Model.from_proto(text(source, w=normal(8, 6, 3, 3))), "w")
    found = layout.of(view, block_size=4)
    assert (found.shape, found.axes) == ((8, 6, 3, 3), (0, 2, 3))


@pytest.mark.parametrize(("width", "axes"), [(31, (0,)), (32, (1,))])
def test_short_rows_of_a_lookup_share_their_scales(width: int, axes: tuple[int, ...]) -> None:
    source = "g (int64[2] i) => (float[2, n] y) { y = Gather(w, i) }"
    view = view_of(Model.from_proto(text(source, w=normal(10, width))), "w")
    assert layout.of(view).axes == axes


def test_blocks_of_rows_are_filled_up_with_zeros() -> None:
    view = product("MatMul", 8, 6)
    found = layout.blocks(view, 5)
    assert found.shape == (6, 2, 5)
    values = found.values()
    np.testing.assert_array_equal(values.reshape(6, 10)[:, :8], view.array().T)
    assert not values.reshape(6, 10)[:, 8:].any()
    np.testing.assert_array_equal(found.spread(values), view.array())


def test_only_the_transpose_of_one_gemm_can_turn() -> None:
    assert layout.can_turn(product("Gemm <transB = 1>", 6, 8))
    assert not layout.can_turn(product("Gemm", 8, 6))
    assert not layout.can_turn(product("MatMul", 8, 6))
    read = "g (float[2, 8] x) => (float y, float z) { y = Gemm <transB = 1> (x, w)  z = Neg(w) }"
    assert not layout.can_turn(view_of(Model.from_proto(text(read, w=normal(6, 8))), "w"))
    proto = parser.parse_model(
        """<ir_version: 10, opset_import: ["": 21, "f": 1]>
        g (float[2, 8] x) => (float[2, 6] y) { y = f.fc <t: int = 1> (x) }
        <domain: "f", opset_import: ["": 21]> fc <t> (x) => (y) {
            w = Constant <value = float[2, 2] {1, 2, 3, 4}> ()
            y = Gemm <transB: int = @t> (x, w)
        }"""
    )
    assert not layout.can_turn(view_of(Model.from_proto(proto), "w"))
