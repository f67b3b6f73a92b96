import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxshrink.errors import DataError, ModelError, RecipeError, UnsupportedModel
from onnxshrink.runtime.session import (
    SessionOptions,
    as_array,
    as_taken,
    open_session,
    run_session,
)

SINE = "(float[N] x) => (float[N] y) { y = Sin(x) }"


def test_runs_what_numpy_runs(onnx_file):
    x = np.linspace(-3, 3, 7, dtype=np.float32)
    path = onnx_file(SINE)
    for model in (path, str(path), path.read_bytes()):
        (y,) = run_session(open_session(model), {"x": x})
        np.testing.assert_allclose(y, np.sin(x), rtol=1e-6)


def test_options_reach_the_session(onnx_file):
    session = open_session(onnx_file(SINE), SessionOptions(threads=2, optimization="basic"))
    options = session.get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.inter_op_num_threads == 1
    assert options.graph_optimization_level.name == "ORT_ENABLE_BASIC"
    assert options.log_severity_level == 3


def int8_matmul() -> tuple[onnx.ModelProto, np.ndarray]:
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (64, 32)).astype(np.int8)
    scale = rng.uniform(0.01, 0.02, 32).astype(np.float32)
    constants = {"w": weight, "s": scale, "z": np.zeros(32, np.int8)}
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", ["w", "s", "z"], ["f"], axis=1),
            helper.make_node("MatMul", ["x", "f"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 64])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 32])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    return model, weight * scale


def test_accuracy_level_0_computes_with_the_dequantized_weights():
    model, weight = int8_matmul()
    x = np.random.default_rng(1).normal(size=(5, 64)).astype(np.float32)
    expected = x.astype(np.float64) @ weight

    def error(options: SessionOptions) -> float:
        (y,) = run_session(open_session(model.SerializeToString(), options), {"x": x})
        return float(np.linalg.norm(y - expected) / np.linalg.norm(expected))

    assert error(SessionOptions(accuracy_level=0)) < 1e-6
    assert error(SessionOptions(optimization="disable")) < 1e-6
    assert error(SessionOptions(accuracy_level=4)) > 1e-4  # rounds activations to int8


def test_a_report_says_what_ran_where():
    report = SessionOptions(accuracy_level=0).describe()
    assert report["accuracy_level"] == 0
    assert report["threads"] == 1
    assert str(report["onnxruntime"]).count(".") == 2
    assert report["cpu"]
    assert isinstance(report["vnni"], bool)
    assert isinstance(report["amx"], bool)


def test_a_provider_that_is_not_installed_is_a_recipe_error(onnx_file):
    with pytest.raises(RecipeError, match=r"NoSuchProvider is not installed; .*CPUExecutionProv"):
        open_session(onnx_file(SINE), SessionOptions(provider="NoSuchProvider"))


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ("(float[2] x) => (float[2] y) { y = com.example.Foo(x) }", "com.example:Foo"),
        ("(float[2] x) => (float[2] y) { y = Foo(x) }", "operator Foo in opset 17"),
        ("(bfloat16[2] x) => (bfloat16[2] y) { y = Sin(x) }", r"tensor\(bfloat16\) Sin"),
        (
            "(double[1, 2, 3, 3] x) => (double[N, C, H, W] y) { y = LRN <size = 3> (x) }",
            "operator LRN",
        ),
        (
            '<ir_version: 8, opset_import: ["": 99]> g (float[2] x) => (float[2] y) { y = Sin(x) }',
            "opset 99",
        ),
        (
            '<ir_version: 99, opset_import: ["": 17]> g (float[2] x) => (float[2] y){ y = Sin(x) }',
            "IR version 99",
        ),
    ],
)
def test_what_onnx_runtime_lacks_is_named(onnx_file, model, named):
    with pytest.raises(UnsupportedModel, match=named):
        open_session(onnx_file(model))


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x08" * 50])
def test_a_file_that_is_no_model_is_a_model_error(tmp_path, content):
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"bad.onnx: ONNX Runtime does not load it"):
        open_session(path)


def test_messages_are_free_of_codes_and_source_paths(onnx_file):
    with pytest.raises(ModelError) as caught:
        open_session(onnx_file("(float[2] x) => (float[2] y) { y = Add(x, z) }"))
    assert "'z' is not a graph input" in str(caught.value)
    assert "ONNXRuntimeError" not in str(caught.value)
    assert "/onnxruntime" not in str(caught.value)


@pytest.mark.parametrize(
    "feed",
    [
        {},
        {"z": np.ones(2, np.float32)},
        {"x": np.ones((2, 2), np.float32)},
        {"x": np.ones(2, np.float64)},
    ],
)
def test_a_feed_that_does_not_fit_is_a_data_error(onnx_file, feed):
    with pytest.raises(DataError, match="do not fit"):
        run_session(open_session(onnx_file(SINE)), feed)


def test_a_node_that_fails_is_a_model_error(onnx_file):
    model = "(int64[N] i) => (float[N] y) <float[3] t = {1, 2, 3}> { y = Gather(t, i) }"
    session = open_session(onnx_file(model))
    with pytest.raises(ModelError, match=r"model.onnx: .*Gather.*out of data bounds"):
        run_session(session, {"i": np.array([7])}, "model.onnx")


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_narrow_floats_go_in_and_come_out(onnx_file, dtype):
    name = {"float8_e4m3fn": "float8e4m3fn", "float8_e5m2": "float8e5m2"}.get(dtype, dtype)
    model = (
        f'<ir_version: 9, opset_import: ["": 19]> g ({name}[2, N] x, float[N] b) '
        f"=> ({name}[2, N] y, float[N] c) {{ y = Identity(x) c = Neg(b) }}"
    )
    x = np.array([[1, 1.5, -2], [0, 4, 8]], getattr(ml_dtypes, dtype))
    y, c = run_session(open_session(onnx_file(model)), {"x": x, "b": np.ones(3, np.float32)})
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y.astype(np.float32), x.astype(np.float32))
    np.testing.assert_array_equal(c, [-1, -1, -1])


def test_maps_and_sequences_become_arrays():
    np.testing.assert_array_equal(
        as_array([{2: 0.5, 1: 0.25}, {1: 3.0, 2: 4.0}]), [[0.25, 0.5], [3, 4]]
    )
    np.testing.assert_array_equal(as_array([np.ones(2), np.zeros(2)]), [[1, 1], [0, 0]])
    np.testing.assert_array_equal(as_array([np.ones(2), np.zeros((1, 1))]), [1, 1, 0])
    assert as_array([]).shape == as_array(None).shape == (0,)


def test_zip_map_gives_rows_in_the_order_of_its_keys():
    graph = helper.make_graph(
        [helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[7, 3])],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 2])],
        [
            helper.make_value_info(
                "y",
                helper.make_sequence_type_proto(
                    helper.make_map_type_proto(
                        onnx.TensorProto.INT64,
                        helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, []),
                    )
                ),
            )
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, ir_version=8, opset_imports=opsets)
    x = np.array([[0.1, 0.9], [0.6, 0.4], [0.5, 0.5]], np.float32)
    (y,) = run_session(open_session(model.SerializeToString()), {"x": x})
    np.testing.assert_array_equal(y.astype(np.float32), x[:, ::-1])


def test_only_floats_of_the_other_width_are_copied() -> None:
    x, ids = np.ones(3, np.float32), np.arange(3)
    types = {"x": "tensor(float)", "ids": "tensor(int64)"}
    same = as_taken({"x": x, "ids": ids}, types)
    assert same["x"] is x
    assert same["ids"] is ids
    half = as_taken({"x": x, "ids": ids}, {**types, "x": "tensor(float16)"})
    assert half["x"].dtype == np.float16
    assert half["ids"] is ids
    assert (
        as_taken({"x": x.astype(np.float64)}, types)["x"].dtype == np.float64
    )  # no such feed fits
