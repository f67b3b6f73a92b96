"""Paddings that convolutions take over, and sums that MatMul does: the same answers."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hard_models import text, weight

from onnxshrink.graph.file.model import Model
from onnxshrink.graph.rewrite import clean, fold


def folded(proto: onnx.ModelProto, folder: Path) -> tuple[list[str], float]:
    """The operators that are left, and by how much answers differ."""
    onnx.save(proto, folder / "before.onnx")
    model = Model.load(folder / "before.onnx")
    fold.fold_pads(model)
    model.save(folder / "after.onnx")
    onnx.checker.check_model(folder / "after.onnx")
    feed = {"x": np.random.default_rng(0).normal(size=(2, 4, 9, 8)).astype(np.float32)}
    before, after = (
        ort.InferenceSession(folder / name, providers=["CPUExecutionProvider"]).run(None, feed)[0]
        for name in ("before.onnx", "after.onnx")
    )
    return [node.op_type for node in model.ir.graph], float(np.abs(before - after).max())


def padded(pads: list[int], conv: str = "", more: str = "", **constants: np.ndarray) -> str:
    return (
        "g (float[n, 4, 9, 8] x) => (float[n, c, h, k] y) "
        f"{{ p = Pad{more}  y = Conv{conv}(p, w) }}"
    )


W = weight(1, 6, 4, 3, 3)
PADS = np.array([0, 0, 1, 2, 0, 0, 0, 1])


@pytest.mark.parametrize("conv", ["", "<pads = [1, 0, 2, 1]>", '<auto_pad = "VALID">'])
def test_pads_add_up(conv: str, tmp_path: Path) -> None:
    proto = text(padded([], conv, "(x, pads)"), w=W, pads=PADS)
    assert folded(proto, tmp_path) == (["Conv"], 0.0)
    (node,) = onnx.load(tmp_path / "after.onnx").graph.node
    own = [1, 0, 2, 1] if "pads" in conv else [0] * 4
    assert list(node.attribute[0].ints) == [a + b for a, b in zip(own, [1, 2, 0, 1], strict=True)]


def test_one_pad_for_two_convolutions(tmp_path: Path) -> None:
    proto = text(
        """g (float[n, 4, 9, 8] x) => (float[n, c, h, k] y) {
            p = Pad(x, pads, zero)  a = Conv(p, w)  b = Conv(p, v)  y = Add(a, b)
        }""",
        w=W, v=weight(2, 6, 4, 3, 3), pads=PADS, zero=np.array(0, np.float32),
    )  # fmt: skip
    assert folded(proto, tmp_path) == (["Conv", "Conv", "Add"], 0.0)


@pytest.mark.parametrize(
    ("more", "pads", "zero"),
    [
        ("(x, pads, zero)", PADS, 1.0),  # not zeros
        ('<mode = "reflect">(x, pads)', PADS, 0.0),
        ("(x, pads)", np.array([1, 0, 1, 2, 0, 0, 0, 1]), 0.0),  # the batch
        ("(x, pads)", np.array([0, 0, -1, 2, 0, 0, 0, 1]), 0.0),  # cuts
    ],
)
def test_other_paddings_stay(more: str, pads: np.ndarray, zero: float, tmp_path: Path) -> None:
    constants = {"zero": np.array(zero, np.float32)} if "zero" in more else {}
    proto = text(padded([], "", more), w=W, pads=pads, **constants)
    assert folded(proto, tmp_path) == (["Pad", "Conv"], 0.0)


def test_a_padding_of_axes_in_another_order_stays(tmp_path: Path) -> None:
    source = '<ir_version: 10, opset_import: ["": 21]> ' + padded([], "", "(x, pads, zero, axes)")
    zero, axes = np.array(0, np.float32), np.array([0, 1, 3, 2])
    proto = text(source, w=W, pads=PADS, zero=zero, axes=axes)
    assert folded(proto, tmp_path) == (["Pad", "Conv"], 0.0)


def test_a_padding_with_other_users_stays(tmp_path: Path) -> None:
    proto = text(
        """g (float[n, 4, 9, 8] x) => (float[n, c, h, k] y, float[n, 4, a, b] p) {
            p = Pad(x, pads)  y = Conv(p, w)
        }""",
        w=W, pads=PADS,
    )  # fmt: skip
    assert folded(proto, tmp_path) == (["Pad", "Conv"], 0.0)


def test_constants_of_a_shape_are_folded(tmp_path: Path) -> None:
    """As exporters write paddings: with ConstantOfShape, which would hide the rest."""
    proto = text(
        """g (float[n, 4, 9, 8] x) => (float[n, c, h, k] y) {
            zeros = ConstantOfShape<value = int64[1] {0}>(four)
            pads = Concat<axis = 0>(zeros, rest)  p = Pad(x, pads)  y = Conv(p, w)
        }""",
        w=W, four=np.array([4]), rest=np.array([0, 0, 1, 1]),
    )  # fmt: skip
    model = Model.from_proto(proto)
    clean.fold_constants(model)
    fold.fold_pads(model)
    assert [node.op_type for node in model.ir.graph if node.op_type != "Constant"] == ["Conv"]


@pytest.mark.parametrize("shape", [(32,), (1, 32)])
def test_a_sum_behind_matmul(shape: tuple[int, ...], tmp_path: Path) -> None:
    proto = text(
        "g (float[n, 64] x) => (float[n, 32] y) { a = MatMul(x, w)  y = Add(b, a) }",
        w=weight(3, 64, 32), b=weight(4, *shape),
    )  # fmt: skip
    onnx.save(proto, tmp_path / "before.onnx")
    model = Model.load(tmp_path / "before.onnx")
    fold.fold_biases(model)
    model.save(tmp_path / "after.onnx")
    onnx.checker.check_model(tmp_path / "after.onnx")
    (node,) = onnx.load(tmp_path / "after.onnx").graph.node
    assert (node.op_type, list(node.input), list(node.output)) == ("Gemm", ["x", "w", "b"], ["y"])
    feed = {"x": np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)}
    before, after = (
        ort.InferenceSession(tmp_path / name, providers=["CPUExecutionProvider"]).run(None, feed)[0]
        for name in ("before.onnx", "after.onnx")
    )
    np.testing.assert_allclose(after, before, atol=1e-6)


SUMS = {
    "a stack": ("float[n, 4, 64] x) => (float[n, 4, 32] y)", "Add", (32,)),
    "a matrix is added": ("float[n, 64] x) => (float[n, 32] y)", "Add", (4, 32)),
    "one number": ("float[n, 64] x) => (float[n, 32] y)", "Add", (1,)),
    "a product": ("float[n, 64] x) => (float[n, 32] y)", "Mul", (32,)),
}


@pytest.mark.parametrize("case", SUMS)
def test_other_sums_stay(case: str) -> None:
    signature, op, shape = SUMS[case]
    source = f"g ({signature} {{ a = MatMul(x, w)  y = {op}(a, b) }}"
    model = Model.from_proto(text(source, w=weight(5, 64, 32), b=weight(6, *shape)))
    fold.fold_biases(model)
    assert next(iter(model.ir.graph)).op_type == "MatMul"
