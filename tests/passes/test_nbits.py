"""``form: nbits``: MatMulNBits and GatherBlockQuantized compute with what was stored."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from weight_models import Case, homes, normal, operators, parsed

from onnxshrink.contract import Settings
from onnxshrink.errors import RecipeError
from onnxshrink.graph import surgery, weights
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import dequantize, nbits, rebuild
from onnxshrink.kernels import affine
from onnxshrink.options import build
from onnxshrink.passes.quantize_weights import QuantizeWeights
from onnxshrink.pipeline import Result, run
from onnxshrink.runtime.session import SessionOptions
from onnxshrink.runtime.worker import Worker

LEVELS = [SessionOptions(optimization=level) for level in ("disable", "all")]


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, np.ndarray]]:
    """What the pass stores from now on, dequantized, in the shapes of the weights."""
    kept: dict[str, np.ndarray] = {}
    into_bits, into_nodes = nbits.stored, dequantize.dequantized

    def bits_spy(model: Any, view: Any, codes: affine.Quantized, *rest: Any) -> int:
        rows = affine.dequantize(codes).reshape(len(codes.codes), -1)
        kept[view.name] = view.from_matrix(rows[:, : view.size // len(rows)])
        return into_bits(model, view, codes, *rest)

    def nodes_spy(model: Any, view: Any, codes: affine.Quantized, *rest: Any) -> int:
        kept[view.name] = affine.dequantize(codes).reshape(view.shape)
        return into_nodes(model, view, codes, *rest)

    monkeypatch.setattr(nbits, "stored", bits_spy)
    monkeypatch.setattr(dequantize, "dequantized", nodes_spy)
    return kept


def quantized(model: onnx.ModelProto, folder: Path, **options: Any) -> Result:
    path = folder / "before.onnx"
    path.write_bytes(model.SerializeToString())
    given = {"form": "nbits", "accuracy_level": 0, "min_size": 0, "vectors": "keep", **options}
    step = build(QuantizeWeights, given, "quantize-weights")
    result = run([step], Model.load(path), Settings(check="off"))
    result.model.save(folder / "after.onnx")
    return result


def holds(
    case: Case, stored: dict[str, np.ndarray], worker: Worker, folder: Path, tolerance: float = 2e-6
) -> None:
    """The result answers what the original answers with the stored weights in its place."""
    model = Model.from_proto(case.model)
    for view in weights.find(model):
        if view.name in stored:
            surgery.set_constant(model, view.value, stored[view.name])
    model.save(folder / "reference.onnx")
    wanted = worker.run(folder / "reference.onnx", [case.feed], LEVELS[0]).outputs[0]
    worker.check(folder / "after.onnx")
    for options in LEVELS:
        found = worker.run(folder / "after.onnx", [case.feed], options).outputs[0]
        for y, exact in zip(found, wanted, strict=True):
            assert (y.dtype, y.shape) == (exact.dtype, exact.shape)
            assert np.linalg.norm(y - exact) <= tolerance * np.linalg.norm(exact)


def operators_of(folder: Path) -> set[str]:
    return {node.op_type for node in onnx.load(folder / "after.onnx").graph.node}


def one(name: str) -> Case:
    return next(case for case in operators() + homes() if case.name == name)


def matmul(k: int, n: int = 24, dtype: type = np.float32) -> Case:
    kind = np.dtype(dtype).name.replace("float32", "float")
    text = f"g ({kind}[2, 3, {k}] x) => ({kind} y) {{ y = MatMul(x, W) }}"
    feed = {"x": normal(2, 3, k, seed=1).astype(dtype)}
    return Case(f"{k}", parsed(text, W=normal(k, n).astype(dtype)), ("W",), feed)


@pytest.mark.parametrize("bits", [2, 4])
def test_the_largest_weight_of_a_block_has_the_lowest_code_whatever_its_sign(
    bits: int, worker: Worker, tmp_path: Path
) -> None:
    """Weights that are multiples of a step, 2 ** (bits - 1) the largest, are stored exactly."""
    case, rng = matmul(64), np.random.default_rng(3)
    middle = 1 << (bits - 1)
    steps = rng.integers(-middle, middle, (64, 24))
    steps[::32] = -middle
    weight = (0.25 * steps * rng.choice([-1, 1], 24)).astype(np.float32)
    proto = parsed("g (float[2, 3, 64] x) => (float y) { y = MatMul(x, W) }", W=weight)
    quantized(proto, tmp_path, bits=bits, block_size=32, rounding="rtn", max_error=1.0)
    (found,) = worker.run(tmp_path / "after.onnx", [case.feed], LEVELS[1]).outputs[0]
    np.testing.assert_allclose(found, case.feed["x"] @ weight, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("block_size", [16, 32, 64, 128])
@pytest.mark.parametrize("k", [128, 100])  # which no block size divides
@pytest.mark.parametrize("symmetric", [True, False])
def test_products_of_every_layout(
    bits: int, block_size: int, k: int, symmetric: bool,
    stored: dict[str, np.ndarray], worker: Worker, tmp_path: Path,
) -> None:  # fmt: skip
    case = matmul(k)
    result = quantized(
        case.model, tmp_path, bits=bits, block_size=block_size, symmetric=symmetric, max_error=1.0
    )
    holds(case, stored, worker, tmp_path)
    assert operators_of(tmp_path) - {"Cast"} == {"MatMulNBits"}
    (node,) = (n for n in onnx.load(tmp_path / "after.onnx").graph.node if n.domain)
    assert len(node.input) == (3 if symmetric else 4)
    blocks = -(-k // block_size)
    assert f"{24 * blocks} scales, nbits" in result.report.steps[0].changes[0].note
    sizes = {tuple(t.dims) for t in onnx.load(tmp_path / "after.onnx").graph.initializer}
    assert (24, blocks, block_size * bits // 8) in sizes


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("dtype", ["int", "uint"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("width", [64, 40])
def test_lookups(
    bits: int, dtype: str, symmetric: bool, width: int,
    stored: dict[str, np.ndarray], worker: Worker, tmp_path: Path,
) -> None:  # fmt: skip
    text = "g (int64[2, 5] x) => (float y) { y = Gather(W, x) }"
    feed = {"x": np.random.default_rng(1).integers(-50, 50, (2, 5))}
    case = Case("lookup", parsed(text, W=normal(50, width)), ("W",), feed)
    quantized(case.model, tmp_path, dtype=f"{dtype}{bits}", symmetric=symmetric, block_size=16)
    holds(case, stored, worker, tmp_path)
    assert operators_of(tmp_path) - {"Cast"} == {"GatherBlockQuantized"}


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    "head", ["t = Transpose<perm = [1, 0]>(W)  y = MatMul(h, t)", "y = Gemm<transB = 1>(h, W, b)"]
)
def test_a_table_and_a_head_share_their_bytes(
    head: str, bits: int, symmetric: bool, stored: dict[str, np.ndarray], worker: Worker,
    tmp_path: Path,
) -> None:  # fmt: skip
    text = f"g (int64[5] x) => (float y) {{ e = Gather(W, x)  h = Tanh(e)  {head} }}"
    arrays = {"W": normal(50, 64), "b": normal(50, seed=2)}
    feed = {"x": np.random.default_rng(1).integers(0, 50, 5)}
    used = arrays if "Gemm" in head else {"W": arrays["W"]}
    case = Case("tied", parsed(text, **used), ("W",), feed)
    quantized(case.model, tmp_path, bits=bits, symmetric=symmetric, block_size=32)
    holds(case, stored, worker, tmp_path)
    kinds = operators_of(tmp_path) - {"Add", "Cast"}
    assert kinds == {"Reshape", "GatherBlockQuantized", "Tanh", "MatMulNBits"}
    codes = [t for t in onnx.load(tmp_path / "after.onnx").graph.initializer if t.data_type == 2]
    assert max(len(t.raw_data) for t in codes) == 50 * 64 * bits // 8
    assert sum(len(t.raw_data) for t in codes) <= 50 * (64 * bits // 8 + 2)


@pytest.mark.parametrize(
    "case", [c for c in operators() if c.name.startswith(("Gemm", "MatMul"))] + homes(), ids=str
)
def test_every_product_and_home(
    case: Case, stored: dict[str, np.ndarray], worker: Worker, tmp_path: Path
) -> None:
    result = quantized(case.model, tmp_path, bits=8)
    (step,) = result.report.steps
    assert step.status == "done", step.reason
    model = Model.from_proto(case.model)
    wide = any(v.dtype.name != "FLOAT" for v in weights.find(model))
    holds(case, stored, worker, tmp_path, 3e-2 if wide else 1e-5)
    for change in step.changes:
        view = next(v for v in weights.find(model) if v.name == change.what)
        assert change.note.endswith("nbits") != bool(nbits.why_not(view, 8)), change.note


def test_a_gemm_keeps_its_factors_and_its_bias(
    stored: dict[str, np.ndarray], worker: Worker, tmp_path: Path
) -> None:
    text = (
        "g (float[64, 3] x) => (float y) "
        "{ y = Gemm<transA = 1, transB = 1, alpha = 0.5, beta = 2.5>(x, W, b) }"
    )
    case = Case(
        "Gemm", parsed(text, W=normal(40, 64), b=normal(3, 1, seed=3)), ("W",),
        {"x": normal(64, 3, seed=1)},
    )  # fmt: skip
    quantized(case.model, tmp_path, bits=4)
    assert "MatMulNBits" in operators_of(tmp_path)
    holds(case, stored, worker, tmp_path)


def test_float16_products(stored: dict[str, np.ndarray], worker: Worker, tmp_path: Path) -> None:
    case = matmul(64, dtype=np.float16)
    quantized(case.model, tmp_path, bits=4)
    assert operators_of(tmp_path) == {"MatMulNBits"}
    holds(case, stored, worker, tmp_path, 1e-3)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Conv 2-D", "is used by Conv"),
        ("MatMul left", "is the left operand of its product"),
        ("MatMul vector", "is a vector"),
        ("MatMul N-D weight", r"takes matrices, not \(4, 32, 20\)"),
        ("tied, turned", "is looked up, too, and 40 is no multiple of 32"),
        ("Gather axis 1 (32, 40)", "is used by Gather"),
        ("LSTM", "is used by LSTM"),
    ],
)
def test_what_does_not_fit_is_rebuilt_and_says_why(name: str, reason: str, tmp_path: Path) -> None:
    (step,) = quantized(one(name).model, tmp_path, bits=8).report.steps
    note = next(change.note for change in step.changes if change.what == "W")
    assert "cast-mul (" in note
    assert re.search(reason, note), note


def test_the_operator_set_is_raised_only_where_types_need_it(tmp_path: Path) -> None:
    header = '<ir_version: 8, opset_import: ["": 17]>'
    text = "g (float[3, 64] x) => (float[3, 40] y) { y = MatMul(x, W) }"
    quantized(parsed(text, header, W=normal(64, 40)), tmp_path, bits=4)
    after = onnx.load(tmp_path / "after.onnx")
    assert {o.domain: o.version for o in after.opset_import} == {"": 17, "com.microsoft": 1}
    quantized(parsed(text, header, W=normal(64, 40)), tmp_path, bits=4, form="dq")
    after = onnx.load(tmp_path / "after.onnx")
    assert {o.domain: o.version for o in after.opset_import} == {"": 21}


def test_the_accuracy_level_is_written(tmp_path: Path) -> None:
    for level in (0, 4):
        quantized(matmul(64).model, tmp_path, bits=4, accuracy_level=level)
        node = onnx.load(tmp_path / "after.onnx").graph.node[-1]
        assert {a.name: a.i for a in node.attribute}.get("accuracy_level", 0) == level


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"block_size": 24}, "form nbits takes a block_size of 16, 32, 64, 128, 256, not 24"),
        ({"dtype": "float8e5m2"}, "form nbits takes integers, not float8e5m2"),
        ({"accuracy_level": 5}, "'accuracy_level' must be at most 4"),
        ({"bits": 3}, "'dtype' takes one of int8, .*, not 3"),
        ({"bits": 4, "dtype": "int8"}, "'dtype' is given twice, as 'int4' and, by 'dtype', as"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        build(QuantizeWeights, {"form": "nbits", **options}, "quantize-weights")


@pytest.mark.parametrize("rounding", ["mse", "hqq", "gptq", "adaround"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_every_rounding_of_blocks_that_are_not_whole(
    rounding: str, symmetric: bool, stored: dict[str, np.ndarray], worker: Worker, tmp_path: Path
) -> None:
    case = matmul(100)
    path = tmp_path / "before.onnx"
    path.write_bytes(case.model.SerializeToString())
    given = {
        "form": "nbits", "accuracy_level": 0, "bits": 4, "rounding": rounding,
        "symmetric": symmetric, "min_size": 0, "vectors": "keep",
    }  # fmt: skip
    mixing = normal(100, 100, seed=7) / 10
    feeds = [{"x": normal(2, 3, 100, seed=seed) @ mixing} for seed in range(1, 64)]
    step = build(QuantizeWeights, given, "quantize-weights")
    result = run([step], Model.load(path), Settings(feeds=feeds), worker)
    result.model.save(tmp_path / "after.onnx")
    (change,) = result.report.steps[0].changes
    assert change.note == f"int4, {24 * 4} scales, nbits, {rounding}"
    holds(case, stored, worker, tmp_path)


def _large() -> onnx.ModelProto:
    """Enough scales that float16 would be worth a Cast."""
    return parsed("g (float[4, 64] x) => (float[4, 96] y) { y = MatMul(x, w) }",
                  w=normal(64, 96, seed=5))  # fmt: skip


@pytest.mark.parametrize("dtype", ["int8", "int4", "int2"])
def test_the_kernel_that_rounds_activations_is_right_without_optimizations(
    dtype: str, worker: Worker, tmp_path: Path
) -> None:
    quantized(_large(), tmp_path, dtype=dtype, accuracy_level=4)
    feed = {"x": normal(4, 64, seed=6)}
    plain, fast = (worker.run(tmp_path / "after.onnx", [feed], o).outputs[0][0] for o in LEVELS)
    np.testing.assert_allclose(plain, fast, rtol=1e-5, atol=1e-5)


def test_a_form_that_is_right_only_after_folding_is_refused(
    monkeypatch: pytest.MonkeyPatch, worker: Worker
) -> None:
    """Scales as float16 behind a Cast: the kernel finds no constant and answers zeros."""
    constant = rebuild.Rebuild.constant

    def behind_a_cast(self: rebuild.Rebuild, values: Any, suffix: str) -> Any:
        if suffix != "s":
            return constant(self, values, suffix)
        return self.node("Cast", [constant(self, values.astype(np.float16), "h")], "s", to=1)

    monkeypatch.setattr(rebuild.Rebuild, "constant", behind_a_cast)
    step = QuantizeWeights(form="nbits", dtype="int4", vectors="keep")
    feeds = [{"x": normal(4, 64, seed=6)}]
    report = run([step], Model.from_proto(_large()), Settings(feeds=feeds), worker).report
    assert report.steps[0].status == "rolled back"
    assert "without ONNX Runtime's optimizations" in report.steps[0].reason
