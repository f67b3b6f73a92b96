"""Figures of inspect against numbers worked out by hand, or by numpy."""

import json
import math
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import shares
from onnx import TensorProto, helper, numpy_helper, parser

from onnxshrink.errors import DataError, ModelError, RecipeError
from onnxshrink.graph import weights
from onnxshrink.graph.analysis import shape_rules, shapes
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import dequantize
from onnxshrink.graph.inspect.statistics import compare_models, inspect_model, layer_table
from onnxshrink.kernels import affine

RNG = np.random.default_rng(7)


def one_node(
    op_type, inputs, constants=(), *, domain="", outputs=1, rank=None, opset=18, **attributes
):
    """A model of one node; ``inputs`` are shapes, ``constants`` arrays or (type, shape)."""
    names, feeds, stored = [], [], []
    for number, shape in enumerate(inputs):
        names.append("" if shape is None else f"x{number}")
        if shape is not None:
            kind = TensorProto.FLOAT
            if isinstance(shape, np.ndarray):
                kind, shape = helper.np_dtype_to_tensor_dtype(shape.dtype), shape.shape
            feeds.append(helper.make_tensor_value_info(f"x{number}", kind, shape))
    for number, array in enumerate(constants):
        names.append("" if array is None else f"w{number}")
        if array is not None:
            stored.append(numpy_helper.from_array(array, f"w{number}"))
    made = [f"y{number}" for number in range(outputs)]
    node = helper.make_node(op_type, names, made, name="it", domain=domain, **attributes)
    result = helper.make_tensor_value_info("y0", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "g", feeds, [result], stored)
    opsets = [helper.make_opsetid("", opset)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    return Model.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=9))


def f32(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def u8(*shape):
    return RNG.integers(0, 255, shape).astype(np.uint8)


one, zero = np.array(1, np.float32), np.array(0, np.uint8)

MACS = {
    # the stem of ResNet-50: 112 * 112 * 64 outputs, each 3 * 7 * 7
    "conv": (one_node("Conv", [(1, 3, 224, 224)], [f32(64, 3, 7, 7)], strides=[2, 2],
                      pads=[3, 3, 3, 3]), 118_013_952),
    "conv batch 4": (one_node("Conv", [(4, 8, 5, 5)], [f32(6, 8, 1, 1)]), 4 * 25 * 6 * 8),
    "grouped": (one_node("Conv", [(1, 32, 14, 14)], [f32(64, 8, 3, 3)], group=4,
                         pads=[1, 1, 1, 1]), 14 * 14 * 64 * 8 * 9),
    "depthwise": (one_node("Conv", [(1, 96, 28, 28)], [f32(96, 1, 5, 5)], group=96,
                           pads=[2, 2, 2, 2]), 28 * 28 * 96 * 25),
    "conv 1-d": (one_node("Conv", [(2, 4, 10)], [f32(8, 4, 3)]), 2 * 8 * 8 * 12),
    "conv transpose": (one_node("ConvTranspose", [(1, 16, 7, 7)], [f32(16, 4, 2, 2)], group=2,
                                strides=[2, 2]), 7 * 7 * 16 * 4 * 4),
    "matmul": (one_node("MatMul", [(2, 5, 7)], [f32(7, 3)]), 2 * 5 * 7 * 3),
    "matmul broadcast": (one_node("MatMul", [(2, 1, 5, 7), (3, 7, 4)]), 2 * 3 * 5 * 7 * 4),
    "matmul vectors": (one_node("MatMul", [(7,), (7,)]), 7),
    "matmul left": (one_node("MatMul", [(7,), (2, 7, 4)]), 2 * 7 * 4),
    "gemm": (one_node("Gemm", [(7, 5)], [f32(3, 7)], transA=1, transB=1), 5 * 7 * 3),
    "lstm": (one_node("LSTM", [(6, 2, 10)], [f32(2, 32, 10), f32(2, 32, 8)], hidden_size=8,
                      direction="bidirectional"), 6 * 2 * 2 * (4 * 8) * (10 + 8)),
    "gru": (one_node("GRU", [(6, 2, 10)], [f32(1, 24, 10), f32(1, 24, 8)], hidden_size=8),
            6 * 2 * (3 * 8) * (10 + 8)),
    "rnn": (one_node("RNN", [(6, 2, 10)], [f32(1, 8, 10), f32(1, 8, 8)], hidden_size=8),
            6 * 2 * 8 * (10 + 8)),
    "einsum": (one_node("Einsum", [(2, 3, 4, 5)], [f32(5, 4, 6)], equation="bthd,dhk->btk"),
               2 * 3 * 4 * 5 * 6),
    "einsum dots": (one_node("Einsum", [(2, 3, 4, 5)], [f32(5, 6)], equation="...i,io->...o"),
                    2 * 3 * 4 * 5 * 6),
    "einsum sum": (one_node("Einsum", [(2, 3)], equation="ij->j"), 0),
    "conv integer": (one_node("ConvInteger", [np.zeros((1, 4, 6, 6), np.uint8)],
                              [u8(8, 4, 3, 3)]), 16 * 8 * 36),
    "matmul integer": (one_node("MatMulInteger", [np.zeros((5, 7), np.uint8)], [u8(7, 3)]), 105),
    "qlinear conv": (one_node("QLinearConv", [np.zeros((1, 4, 6, 6), np.uint8)],
                              [one, zero, u8(8, 4, 3, 3), one, zero, one, zero]), 16 * 8 * 36),
    "qlinear matmul": (one_node("QLinearMatMul", [np.zeros((5, 7), np.uint8)],
                                [one, zero, u8(7, 3), one, zero, one, zero]), 105),
    "nbits": (one_node("MatMulNBits", [(2, 5, 64)], [u8(16, 2, 16), f32(32)],
                       domain="com.microsoft", K=64, N=16, bits=4, block_size=32),
              2 * 5 * 64 * 16),
    "fused matmul": (one_node("FusedMatMul", [(2, 7, 5)], [f32(3, 7)], domain="com.microsoft",
                              transA=1, transB=1), 2 * 5 * 7 * 3),
    "fused conv": (one_node("FusedConv", [(1, 4, 6, 6)], [f32(8, 4, 3, 3)],
                            domain="com.microsoft", activation="Relu"), 16 * 8 * 36),
    "quantized lstm": (one_node("DynamicQuantizeLSTM", [(6, 2, 10)],
                                [u8(1, 10, 32), u8(1, 8, 32)], domain="com.microsoft",
                                hidden_size=8), 6 * 2 * 32 * 18),
    # [2, 5, 12] x [12, 36], then 3 heads of 4: 5 x 5 x 12 twice
    "fused attention": (one_node("Attention", [(2, 5, 12)], [f32(12, 36), f32(36)],
                                 domain="com.microsoft", num_heads=3),
                        2 * (5 * 12 * 36 + 2 * 5 * 5 * 12)),
    "attention 4-d": (one_node("Attention", [(2, 4, 5, 8), (2, 2, 7, 8), (2, 2, 7, 6)], opset=23),
                      2 * 4 * 5 * 7 * (8 + 6)),
    "attention 3-d": (one_node("Attention", [(2, 5, 32), (2, 7, 16), (2, 7, 12)], opset=23,
                               q_num_heads=4, kv_num_heads=2), 2 * 4 * 5 * 7 * (8 + 6)),
    "linear": (one_node("LinearRegressor", [(9, 4)], domain="ai.onnx.ml", targets=3,
                        coefficients=[0.5] * 12), 9 * 12),
    "relu": (one_node("Relu", [(9, 4)]), 0),
}  # fmt: skip


def test_macs_of_a_real_network_against_onnx_shape_inference():
    path = Path(__file__).parents[3] / "models/vision_cnn/model.onnx"
    proto = onnx.load(path)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    made = {
        value.name: math.prod(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in (*inferred.value_info, *inferred.output)
    }
    stored = {tensor.name: tensor.dims for tensor in proto.graph.initializer}
    expected = 0
    for node in proto.graph.node:
        if node.op_type == "Conv":
            expected += made[node.output[0]] * math.prod(stored[node.input[1]][1:])
        elif node.op_type == "Gemm":
            expected += math.prod(stored[node.input[1]])
    found = inspect_model(Model.load(path))
    assert found.macs == expected > 10**6
    assert found.parameters == sum(map(math.prod, stored.values()))


@pytest.mark.oracle
@pytest.mark.xdist_group("oracle")
def test_inferred_shapes_are_those_that_run():
    """Node cases of the onnx wheel: a known shape is the shape of the expected output."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, from the reference implementations
        from onnx.backend.test.case.node import collect_testcases

        found = [case for case in collect_testcases(None) if case.model is not None]
    cases = [case for case in found if shares.chosen(case.name)]
    agreed = 0
    for case in cases:
        model = Model.from_proto(case.model)
        inspect_model(model).tables()
        known = shapes.walk(model).shapes
        for value, array in zip(model.ir.graph.outputs, case.data_sets[0][1], strict=False):
            shape = shape_rules.static(known.get(value))
            if shape is not None and isinstance(array, np.ndarray):
                assert shape == array.shape, case.name
                agreed += 1
    assert agreed > 0.9 * len(cases)


@pytest.mark.parametrize("case", MACS)
def test_macs(case):
    model, expected = MACS[case]
    found = inspect_model(model, weights=False)
    assert found.unknown_macs == 0
    assert found.macs == expected


def test_shapes_pass_through_operators_of_onnx_runtime():
    model = Model.from_proto(
        parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 18, "com.microsoft" : 1]>
        g (float[batch, 5, 12] x, float[12, 36] w, float[36] b, float[12, 7] v)
          => (float[1, 5, 7] y)
        { a = com.microsoft.Attention <num_heads = 3> (x, w, b)
          c = com.microsoft.QuickGelu (a)
          d = com.microsoft.FusedMatMul (c, v)
          y = com.microsoft.FastGelu (d) }
        """)
    )
    walked = shapes.walk(model)
    named = {value.name: shape for value, shape in walked.shapes.items()}
    assert named["a"] == named["c"] == (1, 5, 12)
    assert named["y"] == (1, 5, 7)
    assert inspect_model(model).macs == 5 * 12 * 36 + 2 * 5 * 5 * 12 + 5 * 12 * 7


RESHAPED = """
<ir_version: 9, opset_import: ["" : 18]>
g (float[batch, length, 8] x, float[batch, length, 8] z) => (float[batch, length, 6] y)
<int64[2] size = {4, 6}, int64[1] four = {4}, int64[1] at = {1}>
{ minus = Neg (at)
  w = ConstantOfShape <value: tensor = float[1] {2.0}> (size)
  s = Shape <start = 0, end = 2> (x)
  t = Concat <axis = 0> (s, minus, four)
  r = Reshape (x, t)
  m = MatMul (r, w)
  y = ReduceSum <keepdims = 0> (m, at) }
"""


def test_shape_computed_in_the_graph_is_followed():
    found = inspect_model(Model.from_proto(parser.parse_model(RESHAPED)), shapes={"x": (3, 10, 8)})
    assert (found.macs, found.unknown_macs) == (3 * 10 * 2 * 4 * 6, 0)


def test_unknown_is_said_and_never_zero():
    model = Model.from_proto(parser.parse_model(RESHAPED))
    found = inspect_model(model)
    assert (found.macs, found.unknown_macs) == (0, 1)
    assert [(node.op_type, node.macs) for node in found.node_macs] == [("MatMul", None)]
    assert found.notes[0] == "taken as 1: batch of x"
    assert "x [batch,length,8]" in found.notes[-1]
    rows = {row[0]: row for table in found.tables() for row in table.rows}
    assert rows["MatMul"][4] == "1 unknown"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"input": (1, 2, 8)}, "no input 'input'; its inputs: x, z"),
        ({"x": (1, 8)}, r"'x' takes \[batch,length,8\], not \[1, 8\]"),
        ({"x": (1, 2, 9)}, "'x' takes"),
        ({"x": (1, 2, 8), "z": (1, 3, 8)}, "'z' takes"),
    ],
)
def test_shapes_that_do_not_fit(given, message):
    with pytest.raises(DataError, match=message):
        inspect_model(Model.from_proto(parser.parse_model(RESHAPED)), shapes=given)


def test_sequence_first_is_no_batch():
    model = Model.from_proto(
        parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 18]>
        g (float[seq_len, 2, 4] x, float[4, 6] w) => (float[seq_len, 2, 6] y) { y = MatMul (x, w) }
        """)
    )
    assert inspect_model(model).unknown_macs == 1
    assert inspect_model(model, shapes={"x": (5, 2, 4)}).macs == 5 * 2 * 4 * 6


BRANCHES = """
<ir_version: 9, opset_import: ["" : 18]>
g (bool c, float[1, 4] x) => (float[n, 6] y)
{ y = If (c) <
    then_branch = t () => (float[1, 6] a) <float[4, 6] w = {%s}> { a = MatMul (x, w) },
    else_branch = e () => (float[2, 6] b) <float[8, 6] v = {%s}, int64[2] s = {2, 2}>
      { z = Reshape (x, s)  zz = Concat <axis = 1> (z, z, z, z)  b = MatMul (zz, v) } > }
"""


def branches():
    text = BRANCHES % (", ".join(["1"] * 24), ", ".join(["2"] * 48))
    return parser.parse_model(text)


def test_both_branches_are_counted_with_a_note():
    found = inspect_model(Model.from_proto(branches()))
    assert found.macs == 1 * 4 * 6 + 2 * 8 * 6
    assert found.parameters == 24 + 48
    assert "both branches of If are counted, although one of them runs" in found.notes


def test_a_branch_that_is_never_taken_counts_no_macs():
    proto = branches()
    del proto.graph.input[0]
    proto.graph.initializer.append(numpy_helper.from_array(np.array(False), "c"))
    found = inspect_model(Model.from_proto(proto))
    assert found.macs == 2 * 8 * 6
    assert found.parameters == 24 + 48


def test_loop_body_is_counted_once():
    body = parser.parse_graph("""
        b (int64 i, bool go, float[1, 4] s) => (bool go2, float[1, 4] s2, float[1, 4] out)
        { go2 = Identity (go)  s2 = MatMul (s, w)  out = Identity (s2) }
    """)
    proto = parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 18]>
        g (int64 n, bool c, float[1, 4] x, float[4, 4] w) => (float[1, 4] y, float[n, 1, 4] all)
        { y, all = Loop (n, c, x) }
    """)
    attribute = helper.make_attribute("body", body)
    proto.graph.node[0].attribute.append(attribute)
    walked = shapes.walk(Model.from_proto(proto))
    named = {value.name: shape for value, shape in walked.shapes.items()}
    assert named["all"] == (None, 1, 4)
    found = inspect_model(Model.from_proto(proto))
    assert found.macs == 16
    assert "bodies of Loop and Scan are counted once, however often they run" in found.notes


def test_carried_shape_that_grows_is_unknown():
    body = parser.parse_graph("""
        b (int64 i, bool go, float[p, 4] s) => (bool go2, float[q, 4] s2, float[a, c] out)
        { go2 = Identity (go)  n = Shape (s)  out = Reshape (s, n)
          m = MatMul (s, w)  s2 = Concat <axis = 0> (m, s) }
    """)
    proto = parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 18]>
        g (int64 n, bool c, float[1, 4] x, float[4, 4] w) => (float[r, 4] y, float[n, s, t] all)
        { y, all = Loop (n, c, x) }
    """)
    proto.graph.node[0].attribute.append(helper.make_attribute("body", body))
    model = Model.from_proto(proto)
    named = {value.name: shape for value, shape in shapes.walk(model).shapes.items()}
    assert named["y"] == (None, 4)
    assert named["all"][1] is None  # not 1, as in the first turn
    assert inspect_model(model).unknown_macs == 1


FUNCTION = """
<ir_version: 9, opset_import: ["" : 18, "own" : 1]>
g (float[2, 4] x, float[4, 4] w) => (float[2, 4] y)
{ a = own.twice <flip = 1> (x, w)  y = own.twice <flip = 0> (a, w) }
<domain: "own", opset_import: ["" : 18]>
twice <flip> (p, q) => (r) { t = Gemm <transB: int = @flip> (p, q)  r = Relu (t) }
"""


def test_function_is_counted_at_every_call():
    found = inspect_model(Model.from_proto(parser.parse_model(FUNCTION)))
    counted = {row.op_type: (row.count, row.macs) for row in found.operators}
    assert counted["Gemm"] == (1, 2 * (2 * 4 * 4))
    assert counted["own.twice"] == (2, 0)
    assert found.notes == ("the nodes of functions are counted at every call",)


def test_function_that_calls_itself_is_refused():
    proto = parser.parse_model(FUNCTION)
    proto.functions[0].opset_import.append(helper.make_opsetid("own", 1))
    proto.functions[0].node[1].CopyFrom(helper.make_node("twice", ["t", "q"], ["r"], domain="own"))
    with pytest.raises(ModelError, match="'twice' calls itself"):
        inspect_model(Model.from_proto(proto))


# ------------------------------------------------------------------------------ weights


def conv_and_matmul():
    """A Conv of 6 x 4 x 3 x 3 and a MatMul of 150 x 40."""
    proto = parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[n, 4, 7, 7] x) => (float[n, 40] y)
        { c = Conv (x, conv_w, conv_b)  f = Flatten (c)  y = MatMul (f, fc) }
    """)
    rng = np.random.default_rng(3)
    sizes = {"conv_w": (6, 4, 3, 3), "conv_b": (6,), "fc": (150, 40)}
    arrays = {n: rng.standard_normal(shape).astype(np.float32) for n, shape in sizes.items()}
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
    return proto, arrays


def test_distribution_and_estimates_against_numpy():
    proto, arrays = conv_and_matmul()
    array = arrays["fc"]
    array[:75] = 0
    array[75, 0] = 0.5
    proto.graph.initializer[2].CopyFrom(numpy_helper.from_array(array, "fc"))
    weight = inspect_model(Model.from_proto(proto)).weights[0]
    assert (weight.name, weight.op_type, weight.shape) == ("fc", "MatMul", (150, 40))
    assert (weight.dtype, weight.nbytes, weight.left_alone) == ("float32", 24_000, "")
    values = weight.values
    assert values.minimum == array.min()
    assert values.maximum == array.max()
    assert values.mean == pytest.approx(array.mean(dtype=float), rel=1e-12, abs=1e-15)
    assert values.std == pytest.approx(array.std(dtype=float), rel=1e-12)
    assert values.zeros == 0.5
    assert values.unique == np.unique(array).size
    scale = np.abs(array).max(0) / 127
    _, counts = np.unique(np.rint(array / scale), return_counts=True)
    bits = -(counts / 6000 * np.log2(counts / 6000)).sum()
    assert weight.entropy_bits == pytest.approx(bits, rel=1e-12)
    assert weight.estimates == {
        "float16": 12_000,
        "int8 per channel": 6_000 + 4 * 40,
        "int4 block 32": 3_000 + 4 * 40 * math.ceil(150 / 32),
        "int8 entropy-coded": math.ceil(6000 * bits / 8) + 4 * 40,
    }


def test_not_finite_weights_are_counted_not_hidden():
    proto, arrays = conv_and_matmul()
    array = arrays["fc"].copy()
    array[0, :3] = np.nan, np.inf, -np.inf
    proto.graph.initializer[2].CopyFrom(numpy_helper.from_array(array, "fc"))
    found = inspect_model(Model.from_proto(proto))
    weight = found.weights[0]
    assert weight.values.not_finite == 3
    assert weight.values.minimum == array[np.isfinite(array)].min()
    assert weight.entropy_bits is None
    assert weight.estimates == {}
    json.dumps(found.to_dict(), allow_nan=False)


def quantized(form, dtype="int8"):
    proto, _ = conv_and_matmul()
    model = Model.from_proto(proto)
    for view in list(weights.find(model)):
        if view.uses and len(view.shape) > 1:
            direct = form if view.op_type == "MatMul" or form == "cast-mul" else "dq"
            stored = affine.quantize(view.array(), dtype, view.axes.contract)
            dequantize.dequantized(model, view, stored, direct)
    return Model.from_proto(model.to_proto())


@pytest.mark.parametrize("form", ["cast-mul", "dq"])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int4"])
def test_rebuilt_weights_count_to_the_operator_that_uses_them(form, dtype):
    proto, arrays = conv_and_matmul()
    before = inspect_model(Model.from_proto(proto))
    after = inspect_model(quantized(form, dtype))
    assert after.parameters == before.parameters == 216 + 6 + 6000
    assert after.macs == before.macs == 25 * 6 * 36 + 6000
    found = {weight.name: weight for weight in after.weights}
    assert set(found) == {"conv_w", "conv_b", "fc"}
    for name, op_type in (("conv_w", "Conv"), ("fc", "MatMul")):
        weight = found[name]
        assert (weight.op_type, weight.shape, weight.dtype) == (op_type, arrays[name].shape, dtype)
        assert weight.left_alone.startswith("already quantized")
        assert "Cast" in weight.form or "DequantizeLinear" in weight.form
    by_type = {row.op_type: row.nbytes for row in after.operators}
    assert by_type["Mul" if form == "cast-mul" else "DequantizeLinear"] == 0
    assert by_type["MatMul"] == found["fc"].nbytes < 24_000 / 3.5
    codes = affine.quantize(arrays["fc"], dtype, (0,))
    middle = 0 if codes.zero_point is None else int(codes.zero_point.reshape(-1)[0])
    assert found["fc"].values.zeros == (codes.codes == middle).mean()
    _, counts = np.unique(codes.codes, return_counts=True)
    share = counts / counts.sum()
    assert found["fc"].entropy_bits == pytest.approx(-(share * np.log2(share)).sum(), rel=1e-12)


def test_rebuilt_lookup():
    table = f32(100, 16)
    proto = parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 18]>
        g (int64[n] i) => (float[n, 16] y) { y = Gather (table, i) }
    """)
    proto.graph.initializer.append(numpy_helper.from_array(table, "table"))
    model = Model.from_proto(proto)
    for view in list(weights.find(model)):
        dequantize.dequantized(model, view, affine.quantize(table, "int8", (1,)), "cast-mul")
    weight = inspect_model(model).weights[0]
    assert (weight.name, weight.op_type, weight.shape) == ("table", "Gather", (100, 16))
    assert weight.nbytes == 1600 + 400


def test_scales_of_looked_up_rows_are_no_parameters():
    table = f32(100, 16)
    proto = parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 18]>
        g (int64[n] i) => (float[n, 16] y) { y = Gather (table, i) }
    """)
    proto.graph.initializer.append(numpy_helper.from_array(table, "table"))
    for short in (False, True):
        model = Model.from_proto(proto)
        for view in list(weights.find(model)):
            stored = affine.quantize(table, "int8", (1,), short_scale=short)
            dequantize.dequantized(model, view, stored, "gather")
        found = inspect_model(Model.from_proto(model.to_proto()))
        assert found.parameters == 1600
        assert {row.op_type: row.nbytes for row in found.operators}["Gather"] == (
            1600 + (200 if short else 400)
        )


def test_float16_storage_keeps_name_and_operator():
    proto, arrays = conv_and_matmul()
    model = Model.from_proto(proto)
    view = next(view for view in weights.find(model) if view.name == "fc")
    dequantize.stored_as(model, view, arrays["fc"].astype(np.float16))
    weight = inspect_model(model).weights[0]
    assert (weight.name, weight.op_type, weight.dtype) == ("fc", "MatMul", "float16")
    assert (weight.nbytes, weight.form, weight.left_alone) == (12_000, "Cast", "")
    assert inspect_model(model).by_dtype == {"float16": (6000, 12_000), "float32": (222, 888)}


def test_scales_and_zero_points_are_no_parameters():
    model, _ = MACS["qlinear conv"]
    found = inspect_model(model)
    assert found.parameters == 8 * 4 * 9
    assert found.constant_bytes == 8 * 4 * 9 + 3 * 5
    model, _ = MACS["nbits"]
    weight = inspect_model(model).weights[0]
    assert (weight.parameters, weight.shape, weight.dtype) == (1024, (64, 16), "uint4 in uint8")


def test_tied_weight_counts_once():
    model = Model.from_proto(
        parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 18]>
        g (int64[3] i) => (float[3, 2] y)
        <float[2, 4] w = {1, 2, 3, 4, 5, 6, 7, 8}>
        { t = Transpose (w)  e = Gather (w, i)  y = MatMul (e, t) }
        """)
    )
    found = inspect_model(model)
    assert [(w.name, w.op_type, w.parameters) for w in found.weights] == [("w", "MatMul", 8)]
    assert len(found.weights[0].nodes) == 2


def test_weights_in_attributes():
    model, _ = MACS["linear"]
    weight = inspect_model(model).weights[0]
    assert (weight.name, weight.parameters, weight.nbytes) == ("it.coefficients", 12, 48)
    assert weight.left_alone == "lies in an attribute; lower-ml makes it a tensor"
    assert weight.values.unique == 1


def test_external_data_count_to_the_file(tmp_path):
    proto, _ = conv_and_matmul()
    path = tmp_path / "model.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="data.bin", size_threshold=0)
    found = inspect_model(Model.load(path), weights=False)
    assert found.file_bytes == path.stat().st_size + (tmp_path / "data.bin").stat().st_size
    assert found.constant_bytes == 4 * (216 + 6 + 6000)
    assert found.weights[0].values is None


def test_streamed_weights_are_read_and_let_go(tmp_path):
    proto, arrays = conv_and_matmul()
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    model = Model.load(path)
    weight = inspect_model(model).weights[0]
    assert weight.values.maximum == arrays["fc"].max()
    assert model.ir.graph.initializers["fc"].const_value.raw is None


# -------------------------------------------------------------------------------- views


def test_inspection_leaves_the_model_alone():
    model = quantized("dq")
    before = model.digest()
    inspect_model(model)
    layer_table(model, "fc")
    assert model.digest() == before


def test_tables_and_json():
    found = inspect_model(Model.from_proto(conv_and_matmul()[0]))
    titles = [table.title for table in found.tables()]
    assert titles == [
        "model", "operators", "MACs by node", "weights", "values", "estimated bytes", "notes",
    ]  # fmt: skip
    short = {table.title: table for table in found.tables(rows=1)}
    assert short["weights"].rows[-1][0] == "2 more"
    assert short["estimated bytes"].rows[-1][:3] == ("total", "24.9 kB", "12.4 kB")
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["parameters"] == 6222
    assert plain["macs"] == 25 * 6 * 36 + 6000
    assert plain["weights"][0]["values"]["unique"] == 6000


def test_comparison_side_by_side():
    before, after = inspect_model(Model.from_proto(conv_and_matmul()[0])), inspect_model(
        quantized("dq")
    )  # fmt: skip
    totals, table, dtypes = compare_models([before, after])
    rows = {row[0]: row for row in table.rows}
    stored = next(w.nbytes for w in after.weights if w.name == "fc")
    assert rows["MatMul"][1:3] == ("1", "1")
    assert rows["MatMul"][3:5] == ("24.0 kB", f"{stored / 1000:.1f} kB")
    assert rows["MatMul"][-1] == f"{24_000 / stored:.2f}x"
    assert rows["DequantizeLinear"][1:3] == ("-", "2")
    assert {row[0]: row for row in totals.rows}["MACs"][-1] == "1.00x"
    assert [row[0] for row in dtypes.rows] == ["float32", "int8"]
    assert table.to_markdown().count("\n") == len(table.rows) + 1


def test_layer_table():
    model = Model.from_proto(conv_and_matmul()[0])
    facts, bars = layer_table(model, "fc")
    rows = dict(facts.rows)
    assert rows["shape"] == "150 x 40"
    assert rows["as float16"] == "12.0 kB (2.00x)"
    assert sum(int(row[2]) for row in bars.rows) == 6000
    assert max(len(row[4]) for row in bars.rows) == 40
    assert len(layer_table(model, "c")) == 4  # by node: its filters and its bias
    with pytest.raises(RecipeError, match=r"layer 'conv_c': .* did you mean 'conv_[wb]'"):
        layer_table(model, "conv_c")
