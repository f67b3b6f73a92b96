"""quantize-weights: ONNX Runtime must compute with exactly the weights that were stored."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import shares
from weight_models import Case, homes, normal, operators, parsed

from onnxshrink.contract import Settings
from onnxshrink.errors import RecipeError
from onnxshrink.graph import weights
from onnxshrink.graph.file import round_trip
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import dequantize
from onnxshrink.kernels import affine
from onnxshrink.options import build
from onnxshrink.passes.quantize_weights import QuantizeWeights, storing
from onnxshrink.pipeline import Result, run
from onnxshrink.runtime.session import SessionOptions
from onnxshrink.runtime.worker import Worker
from onnxshrink.select import Select

EVERY = Select(min_size=0)
EXACT = [SessionOptions(optimization=level, accuracy_level=0) for level in ("disable", "all")]
VARIANTS: dict[str, dict[str, Any]] = {
    "int8": {},
    "int8 per tensor": {"per_channel": False},
    "uint8": {"dtype": "uint8", "symmetric": False, "clip": "mse"},
    "int4 blocks": {"dtype": "int4", "block_size": 16},
    "uint4 asymmetric blocks": {"dtype": "uint4", "block_size": 8, "symmetric": False},
    "uint4": {"dtype": "uint4", "symmetric": False, "rounding": "rtn"},
    "int2 asymmetric blocks": {"bits": 2, "block_size": 16, "symmetric": False, "clip": "mse"},
    "uint2": {"dtype": "uint2"},
    "float8e4m3fn": {"dtype": "float8e4m3fn"},
    "float8e5m2 blocks": {"dtype": "float8e5m2", "block_size": 16, "clip": "mse"},
}
# Half of the last place: a weight is rebuilt as code * scale in its own type, and rounded once
# (twice with a scale that float16 does not hold), and so are the products.
TOLERANCE = {ir.DataType.FLOAT16: 3e-3, ir.DataType.BFLOAT16: 3e-2}


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, np.ndarray]]:
    """What passes store from now on, dequantized, by the name of the weight."""
    kept: dict[str, np.ndarray] = {}

    def spy(name: str, *, turned: bool) -> None:
        original = getattr(dequantize, name)

        def replacement(model: Any, view: Any, codes: affine.Quantized, *rest: Any) -> int:
            values = affine.dequantize(codes)
            shape = view.shape[::-1] if turned else view.shape
            kept[view.name] = values.reshape(shape).T if turned else values.reshape(shape)
            return original(model, view, codes, *rest)  # type: ignore[no-any-return]

        monkeypatch.setattr(dequantize, name, replacement)

    spy("dequantized", turned=False)
    spy("dequantized_gemm", turned=True)
    return kept


def with_weights(model: onnx.ModelProto, arrays: dict[str, np.ndarray]) -> onnx.ModelProto:
    """The same model with other values in some of its weights, by numpy and the proto alone."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    left = dict(arrays)
    for graph in round_trip.graphs(copy):
        for tensor in graph.initializer:
            if tensor.name in left:
                _fill(tensor, left.pop(tensor.name))
    for nodes in round_trip.node_lists(copy):
        for node in nodes:
            if node.op_type == "Constant" and node.output[0] in left:
                _fill(node.attribute[0].t, left.pop(node.output[0]))
    assert not left
    return copy


def _fill(tensor: onnx.TensorProto, array: np.ndarray) -> None:
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    name = tensor.name
    tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(kind), name))


def quantized(case: Case, folder: Path, **options: Any) -> Result:
    path = folder / "before.onnx"
    path.write_bytes(case.model.SerializeToString())
    given = {"min_size": 0, "vectors": "keep", "max_error": 1.0, **options}
    step = build(QuantizeWeights, given, "quantize-weights")
    result = run([step], Model.load(path), Settings(check="off"))
    result.model.save(folder / "after.onnx")
    return result


def check(
    case: Case, result: Result, stored: dict[str, np.ndarray], worker: Worker, folder: Path
) -> None:
    """Hold a result against the weights that were stored, and against its own report."""
    (step,) = result.report.steps
    assert step.status == "done", step.reason
    changed = {change.what for change in step.changes} - {"opset"}
    assert changed == set(stored) >= set(case.weights)
    worker.check(folder / "after.onnx")
    (folder / "reference.onnx").write_bytes(with_weights(case.model, stored).SerializeToString())
    expected = worker.run(folder / "reference.onnx", [case.feed], EXACT[0]).outputs[0]
    views = {view.name: view for view in weights.find(Model.from_proto(case.model))}
    tolerance = max(TOLERANCE.get(views[name].dtype, 1e-5) for name in changed)
    for options in EXACT:
        found = worker.run(folder / "after.onnx", [case.feed], options).outputs[0]
        for y, wanted in zip(found, expected, strict=True):
            assert y.dtype == wanted.dtype
            assert y.shape == wanted.shape
            assert np.linalg.norm(y - wanted) <= tolerance * np.linalg.norm(wanted)
    size = (folder / "after.onnx").stat().st_size
    assert step.bytes_after == result.report.bytes_after == size
    # The old floats are gone, wherever they were.
    content = (folder / "after.onnx").read_bytes()
    for name in changed:
        assert views[name].array().tobytes()[:64] not in content
        assert not [
            t for t in round_trip.tensors(onnx.load(folder / "after.onnx")) if t.name == name
        ]
    # The rows agree with the file: their savings are the file's, up to a few bytes of headers.
    saved = sum(change.before - change.after for change in step.changes)
    if "opset" not in {change.what for change in step.changes}:
        assert abs((step.bytes_before - size) - saved) <= 120 * len(changed)


def few(case: Case) -> bool:
    """The operators on which every variant is tried by default, and not only two."""
    return case.name in ("MatMul right", "Gemm transB", "Conv grouped", "ConvTranspose grouped")


FEW = [
    ("int8", "auto"), ("uint4 asymmetric blocks", "auto"), ("uint4 asymmetric blocks", "dq"),
    ("int2 asymmetric blocks", "dq"), ("float8e4m3fn", "auto"),
]  # fmt: skip
OPERATORS = [
    pytest.param(case, variant, form, id=f"{case}-{variant}-{form}")
    for case in operators()
    for variant in VARIANTS
    for form in ("auto", "dq")
    if (variant, form) == FEW[0]
    or few(case)
    or ((variant, form) in FEW and shares.chosen(f"{case}-{variant}-{form}", 3))
    or shares.EVERYTHING
]
HOMES = [
    pytest.param(case, variant, form, id=f"{case}-{variant}-{form}")
    for case in homes()
    for variant in VARIANTS
    for form in ("auto", "dq")
    if shares.EVERYTHING or (variant, form) in (("int8", "auto"), ("int4 blocks", "dq"))
    if not (variant.startswith(("int2", "uint2")) and case.name.startswith("function"))
]


@pytest.mark.parametrize(("case", "variant", "form"), OPERATORS + HOMES)
def test_the_runtime_computes_with_what_was_stored(
    case: Case,
    variant: str,
    form: str,
    stored: dict[str, np.ndarray],
    worker: Worker,
    tmp_path: Path,
) -> None:
    result = quantized(case, tmp_path, form=form, **VARIANTS[variant])
    check(case, result, stored, worker, tmp_path)


# ---------------------------------------------------------------------------- what is written


def one(name: str) -> Case:
    return next(case for case in operators() + homes() if case.name == name)


def note(result: Result, name: str = "W") -> str:
    return next(change.note for change in result.report.steps[0].changes if change.what == name)


@pytest.mark.parametrize(
    ("name", "channels", "blocks"),
    [
        ("MatMul right", 40, 160),
        ("MatMul left", 40, 160),
        ("MatMul N-D weight", 80, 160),
        ("MatMul N-D weight left", 80, 160),
        ("MatMul vector", 1, 32),
        ("Gemm transB", 40, 160),
        ("Conv 2-D", 16, 72),  # 72 weights a channel are not cut in 16s, but in 8s below
        ("Conv depthwise", 64, 64),
        ("ConvTranspose 2-D", 16, 16),  # its contraction axes do not lie side by side
        ("Einsum heads", 80, 160),
        ("Gather axis 0 (40, 32)", 40, 80),
        ("Gather axis 1 (32, 40)", 40, 80),
        ("Gather axis 0 (300, 8)", 8, 8),  # rows too short for a scale each
        ("LSTM", 40, 40),
    ],
)  # fmt: skip
def test_how_many_weights_share_a_scale(
    name: str, channels: int, blocks: int, worker: Worker, tmp_path: Path
) -> None:
    case = one(name)
    assert note(quantized(case, tmp_path)) == f"int8, {channels} scales, cast-mul"
    assert ", 1 scales" in note(quantized(case, tmp_path, per_channel=False))
    size = 8 if name == "Conv 2-D" else 16
    expected = 144 if name == "Conv 2-D" else blocks
    cut = note(quantized(case, tmp_path, dtype="int4", block_size=size))
    assert cut == f"int4, {expected} scales, cast-mul"


def operators_of(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def test_a_gemm_is_turned_so_that_the_runtime_fuses_it(
    stored: dict[str, np.ndarray], worker: Worker, tmp_path: Path
) -> None:
    quantized(one("Gemm transB"), tmp_path, form="dq")
    after = onnx.load(tmp_path / "after.onnx")
    assert operators_of(tmp_path / "after.onnx") == ["DequantizeLinear", "Gemm"]
    (codes,) = (t for t in after.graph.initializer if len(t.dims) == 2)
    assert (codes.data_type, list(codes.dims)) == (onnx.TensorProto.INT8, [64, 40])
    assert next(a.i for a in after.graph.node[1].attribute if a.name == "transB") == 0


def test_large_tables_are_looked_up_as_integers(
    stored: dict[str, np.ndarray], worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storing, "_LOOKED_UP", 0)
    for name in ("Gather axis 0 (40, 32)", "Gather axis 0 (300, 8)"):
        case = one(name)
        result = quantized(case, tmp_path)
        assert note(result).endswith("gather")
        check(case, result, stored, worker, tmp_path)
        assert operators_of(tmp_path / "after.onnx").count("Gather") in (1, 2)
        stored.clear()
    for name in ("tied, turned", "Gather axis 1 (32, 40)"):
        assert note(quantized(one(name), tmp_path)).endswith("cast-mul")


def test_nothing_else_changes(worker: Worker, tmp_path: Path) -> None:
    case = Case(
        "two layers",
        parsed(
            "g (float[3, 64] x) => (float[3, 20] y) "
            "{ h = MatMul(x, W) b = Add(h, bias) r = Relu(b) y = MatMul(r, kept) }",
            W=normal(64, 40), bias=normal(40), kept=normal(40, 20), shape=np.arange(300),
        ),
        ("W",), {"x": normal(3, 64, seed=1)},
    )  # fmt: skip
    case.model.graph.node[1].doc_string = "kept"
    quantized(case, tmp_path)
    path = tmp_path / "before.onnx"
    step = QuantizeWeights(weights=Select(min_size=0, keep=("kept",)), vectors="keep")
    result = run([step], Model.load(path), Settings(feeds=[case.feed]), worker)
    result.model.save(tmp_path / "after.onnx")
    after = onnx.load(tmp_path / "after.onnx")
    for name in ("bias", "kept", "shape"):
        before = next(t for t in case.model.graph.initializer if t.name == name)
        assert next(t for t in after.graph.initializer if t.name == name) == before
    assert list(after.graph.node)[-4:] == list(case.model.graph.node)
    skipped = {skip.what: skip.reason for skip in result.report.steps[0].skips}
    assert skipped["kept"] == "kept as asked"
    assert "smaller" in skipped["bias"] or "not a weight" in skipped["bias"]


def test_the_same_run_gives_the_same_bytes(worker: Worker, tmp_path: Path) -> None:
    contents = []
    for _ in range(2):
        quantized(one("LSTM"), tmp_path, dtype="uint4", symmetric=False)
        contents.append((tmp_path / "after.onnx").read_bytes())
    assert contents[0] == contents[1]


def test_long_vectors_become_float16(worker: Worker, tmp_path: Path) -> None:
    bias = normal(256, seed=4)
    model = parsed(
        "g (float[3, 64] x) => (float[3, 256] y) { h = MatMul(x, W) y = Add(h, bias) }",
        W=normal(64, 256), bias=bias,
    )  # fmt: skip
    path = tmp_path / "before.onnx"
    path.write_bytes(model.SerializeToString())
    feed = {"x": np.zeros((3, 64), np.float32)}
    result = run([QuantizeWeights()], Model.load(path), Settings(feeds=[feed]), worker)
    assert {c.what: c.note for c in result.report.steps[0].changes}["bias"].startswith("float16")
    result.model.save(tmp_path / "after.onnx")
    (y,) = worker.run(tmp_path / "after.onnx", [feed]).outputs[0]
    np.testing.assert_array_equal(y[0], bias.astype(np.float16).astype(np.float32))


def test_what_cannot_be_quantized_is_skipped_with_a_reason(worker: Worker, tmp_path: Path) -> None:
    broken = normal(64, 64)
    broken[3, 3] = np.nan
    model = parsed(
        "g (float[3, 64] x) => (float[3, 20] y) "
        "{ h = MatMul(x, W) k = MatMul(h, V) y = MatMul(k, U) }",
        W=broken, V=normal(64, 6), U=normal(6, 20),
    )  # fmt: skip
    path = tmp_path / "before.onnx"
    path.write_bytes(model.SerializeToString())
    step = QuantizeWeights(weights=Select(min_size=200))
    result = run([step], Model.load(path), Settings(check="off"))
    (row,) = result.report.steps
    assert {change.what for change in row.changes} == {"V"}
    reasons = {skip.what: skip.reason for skip in row.skips}
    assert reasons == {"W": "holds NaN or infinity", "U": "fewer than 200 elements"}


def test_a_pattern_without_a_match_is_an_error(worker: Worker, tmp_path: Path) -> None:
    path = tmp_path / "before.onnx"
    path.write_bytes(one("MatMul right").model.SerializeToString())
    step = QuantizeWeights(weights=Select(keep=("V*",)))
    with pytest.raises(RecipeError, match=r"V\*"):
        run([step], Model.load(path), Settings(check="off"))


def test_options_for_one_layer(worker: Worker, tmp_path: Path) -> None:
    path = tmp_path / "before.onnx"
    path.write_bytes(one("LSTM").model.SerializeToString())
    layers = {"LSTM": {"dtype": "uint8"}, "R": {"dtype": "int4"}}
    step = QuantizeWeights(weights=Select(min_size=0, layers=layers))
    result = run([step], Model.load(path), Settings(check="off"))
    assert note(result, "W").startswith("uint8")
    assert note(result, "R").startswith("int4")


@pytest.mark.parametrize("columns", [40, 10])
def test_two_bits_that_do_not_fill_their_bytes_are_not_fused(
    columns: int, worker: Worker, tmp_path: Path
) -> None:
    """ONNX Runtime 1.32 multiplies with other weights at every load, where it fuses these."""
    model = parsed(
        f"g (float[3, 64] x) => (float[3, {columns}] y) {{ y = MatMul(x, W) }}",
        W=normal(64, columns),
    )
    case = Case("two bits", model, ("W",), {"x": normal(3, 64, seed=1)})
    form = "dq" if columns % 4 == 0 else "cast-mul"
    assert note(quantized(case, tmp_path, bits=2, form="dq")).endswith(form)


def test_functions_are_inlined_where_the_operator_set_is_raised(
    worker: Worker, tmp_path: Path
) -> None:
    case = one("function body")
    result = quantized(case, tmp_path, bits=2)
    (step,) = result.report.steps
    assert step.status == "done"
    assert (result.model.opset, len(result.model.ir.functions)) == (25, 0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype": "float8e5m2", "symmetric": False}, "float8e5m2 has no zero point"),
        ({"dtype": "float4"}, "'dtype' takes one of int8"),
        ({"bits": 16}, "'dtype' takes one of int8, .*, not 16"),
    ],
)
def test_types_that_do_not_fit(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        build(QuantizeWeights, options, "here")


def test_float8_is_rounded_to_nearest_whatever_is_asked(
    stored: dict[str, np.ndarray], worker: Worker, tmp_path: Path
) -> None:
    case = one("MatMul right")
    found = {}
    for rounding in ("rtn", "balanced"):
        quantized(case, tmp_path, dtype="float8e4m3fn", rounding=rounding)
        found[rounding] = stored.pop("W")
    np.testing.assert_array_equal(found["rtn"], found["balanced"])


@pytest.mark.parametrize(("shift", "moved"), [(0.0, False), (0.9, True)])
def test_a_zero_point_is_taken_where_it_is_worth_its_bytes(
    shift: float, moved: bool, stored: dict[str, np.ndarray], worker: Worker, tmp_path: Path
) -> None:
    """Weights around zero stay symmetric; those that lie to one side of it do not."""
    w = np.random.default_rng(4).uniform(shift - 1, shift + 1, (64, 96)).astype(np.float32)
    feed = {"x": np.random.default_rng(5).standard_normal((3, 64)).astype(np.float32)}
    text = "g (float[3, 64] x) => (float[3, 96] y) { y = MatMul(x, w) }"
    case = Case("one sided", parsed(text, w=w), ("w",), feed)
    result = quantized(case, tmp_path)
    check(case, result, stored, worker, tmp_path)
    (change,) = result.report.steps[0].changes
    assert ("zero points" in change.note) == moved
    error = np.abs(stored["w"] - w).max()
    kept = quantized(case, tmp_path, symmetric=True)
    gain = np.abs(stored["w"] - w).max() / error
    assert (gain > 1.6) if moved else gain == 1
    assert result.model.nbytes() - kept.model.nbytes() < (64 + 96 * 2 + 80 if moved else 1)


def test_vectors_of_a_model_of_integers_stay(tmp_path: Path) -> None:
    """One small weight is left to quantize; long biases would save more, and cost exactness."""
    rng = np.random.default_rng(6)
    arrays = {
        "q": rng.integers(-127, 128, (64, 2048)).astype(np.int8), "s": np.float32(0.01),
        "b": rng.standard_normal(2048).astype(np.float32),
        "w": rng.standard_normal((8, 64)).astype(np.float32),
    }  # fmt: skip
    text = """g (float[3, 8] x) => (float[3, 2048] y) { a = MatMul(x, w)
        v = DequantizeLinear(q, s)  h = MatMul(a, v)  y = Add(h, b) }"""
    case = Case("integers", parsed(text, **arrays), ("w",), {"x": normal(3, 8)})
    (step,) = quantized(case, tmp_path, vectors="float16").report.steps
    assert [change.what for change in step.changes] == ["w"]
    reasons = {skip.what: skip.reason for skip in step.skips}
    assert reasons["b"] == "the weights next to it are small already: it keeps them exact"


def test_scales_count_as_the_file_has_them(worker: Worker) -> None:
    """Four weights of float16 to a scale: with scales of float32 there would be no saving."""
    w = np.random.default_rng(0).standard_normal((512, 4)).astype(np.float16)
    model = parsed("g (float16[n, 4] x) => (float16[n, 512] y) { y = Gemm<transB = 1>(x, w) }", w=w)
    feeds = [{"x": np.random.default_rng(1).standard_normal((8, 4)).astype(np.float16)}]
    step, before = QuantizeWeights(), Model.from_proto(model)
    report = run([step], before, Settings(feeds=feeds), worker).report
    (change,) = report.steps[0].changes
    assert change.what == "w"
    assert report.bytes_after < report.bytes_before - 500
