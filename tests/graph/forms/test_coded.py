"""Coded weights: stock ONNX Runtime opens them, with the answers and the kernels of plain ones."""

from __future__ import annotations

import collections
from collections.abc import Callable
from pathlib import Path

import hard_models
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxshrink.errors import BudgetMissed, ModelError
from onnxshrink.graph.file import round_trip
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import coded, coded_read

RNG = np.random.default_rng(0)
WIDTH = 96


def codes(*shape: int, spread: float = 1.5, seed: int = 0) -> np.ndarray:
    return np.rint(np.random.default_rng(seed).laplace(0, spread, shape)).astype(np.int8)


def model_of(
    nodes: list[onnx.NodeProto], stored: dict[str, np.ndarray | onnx.TensorProto], *,
    shape: tuple[int, ...] = (3, WIDTH), opset: int = 17, ir_version: int = 8,
    outputs: tuple[str, ...] = ("y",), rank: int = 2, contrib: bool = False,
) -> onnx.ModelProto:  # fmt: skip
    tensors = [
        value if isinstance(value, onnx.TensorProto) else numpy_helper.from_array(value, name)
        for name, value in stored.items()
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    if ir_version < 4:
        inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors]
    dims = [None] * rank
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name in outputs]
    graph = helper.make_graph(nodes, "g", inputs, ends, tensors)
    sets = [helper.make_opsetid("", opset)]
    if contrib:
        sets.append(helper.make_opsetid("com.microsoft", 1))
    return helper.make_model(graph, opset_imports=sets, ir_version=ir_version)


def cast_mul() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Cast", ["q"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["c", "s"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    return model_of(nodes, {"q": codes(WIDTH, WIDTH), "s": np.float32(0.1).reshape(())})


def qdq(kind: str = "MatMul") -> onnx.ModelProto:
    """What a static quantizer writes: integer kernels form around it."""
    scale, zero = np.array(0.05, np.float32), np.array(128, np.uint8)
    weight = codes(WIDTH, WIDTH) if kind == "MatMul" else codes(32, 16, 3, 3)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["q", "xs", "wz"], ["w"]),
        helper.make_node(kind, ["xd", "w"], ["v"]),
        helper.make_node("QuantizeLinear", ["v", "xs", "xz"], ["vq"]),
        helper.make_node("DequantizeLinear", ["vq", "xs", "xz"], ["y"]),
    ]
    stored = {"xs": scale, "xz": zero, "wz": np.array(0, np.int8), "q": weight}
    shape = (3, WIDTH) if kind == "MatMul" else (2, 16, 8, 8)
    return model_of(nodes, stored, shape=shape, rank=len(shape))


def dynamic() -> onnx.ModelProto:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
        helper.make_node("MatMulInteger", ["xq", "q", "xz", "z"], ["i"]),
        helper.make_node("Cast", ["i"], ["y"], to=TensorProto.FLOAT),
    ]
    stored = {"q": (codes(WIDTH, WIDTH).astype(int) + 128).astype(np.uint8)}
    return model_of(nodes, {**stored, "z": np.array(128, np.uint8)})


def narrow(kind: str = "INT4") -> onnx.ModelProto:
    values = np.clip(codes(WIDTH, 8 * WIDTH, spread=0.6), *((-8, 7) if kind == "INT4" else (0, 15)))
    tensor = helper.make_tensor(
        "q", getattr(TensorProto, kind), values.shape, values.astype(int).reshape(-1).tolist()
    )
    zero = helper.make_tensor("z", getattr(TensorProto, kind), (), [0])
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    stored = {"q": tensor, "s": np.array(0.1, np.float32), "z": zero}
    return model_of(nodes, stored, opset=21, ir_version=10)


def nbits() -> onnx.ModelProto:
    packed = RNG.choice(
        np.array([0x88, 0x87, 0x78, 0x98], np.uint8), (256, 3, 16), p=[0.7, 0.1, 0.1, 0.1]
    )
    scales = np.full(256 * 3, 0.1, np.float32)
    node = helper.make_node(
        "MatMulNBits", ["x", "q", "s"], ["y"], domain="com.microsoft", K=WIDTH, N=256, bits=4,
        block_size=32,
    )  # fmt: skip
    return model_of([node], {"q": packed, "s": scales}, contrib=True)


def few_floats() -> onnx.ModelProto:
    values = (codes(WIDTH, WIDTH) * np.float32(0.1)).astype(np.float32)
    return model_of([helper.make_node("MatMul", ["x", "q"], ["y"])], {"q": values})


def few_short_floats() -> onnx.ModelProto:
    values = (codes(WIDTH, WIDTH) * np.float32(0.125)).astype(np.float32)
    short = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    tensor = helper.make_tensor("q", TensorProto.BFLOAT16, values.shape, short, raw=True)
    nodes = [
        helper.make_node("Cast", ["q"], ["w"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    return model_of(nodes, {"q": tensor})


def wide_codes(dtype: str) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Cast", ["q"], ["w"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    values = codes(WIDTH, WIDTH).astype(np.int64) * 300
    return model_of(nodes, {"q": np.abs(values).astype(dtype)})


def many_values(spread: float, opset: int, wide: int = 0) -> onnx.ModelProto:
    """16-bit codes of too many values for a table, some wider than what their bytes hold."""
    nodes = [
        helper.make_node("Cast", ["q"], ["w"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    values = np.rint(np.random.default_rng(1).laplace(0, spread, (WIDTH, 3 * WIDTH)))
    values[0, :wide] = 30_000
    return model_of(nodes, {"q": values.astype(np.int16)}, opset=opset)


def in_bodies() -> onnx.ModelProto:
    """One weight in a Constant node, one in a branch, one of them read by two nodes."""
    constant = helper.make_node(
        "Constant", [], ["c"], value=numpy_helper.from_array(codes(WIDTH, WIDTH), "c")
    )
    branch = helper.make_graph(
        [
            helper.make_node("Cast", ["b"], ["bf"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["h", "bf"], ["r"]),
        ],
        "then", [], [helper.make_tensor_value_info("r", TensorProto.FLOAT, [None, None])],
        [numpy_helper.from_array(codes(WIDTH, WIDTH, seed=1), "b")],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("Identity", ["h"], ["o"])],
        "else", [], [helper.make_tensor_value_info("o", TensorProto.FLOAT, [None, None])],
    )  # fmt: skip
    nodes = [
        constant,
        helper.make_node("Cast", ["c"], ["w"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "w"], ["g"]),
        helper.make_node("MatMul", ["g", "w"], ["h"]),
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Greater", ["m", "n"], ["yes"]),
        helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=other),
    ]
    return model_of(nodes, {"n": np.array(0, np.float32)})


def looked_up() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64),
        helper.make_node("Gather", ["q", "i"], ["r"]),
        helper.make_node("Cast", ["r"], ["y"], to=TensorProto.FLOAT),
    ]
    return model_of(nodes, {"q": codes(500, 40)}, rank=3)


def old() -> onnx.ModelProto:
    """IR 3: initializers are inputs; an operator set without CumSum, whose Split has attributes."""
    nodes = [
        helper.make_node("Cast", ["q"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "c"], ["y"]),
    ]
    stored = {"q": codes(WIDTH, WIDTH - 1), "k": codes(33, 233)}
    nodes += [
        helper.make_node("Cast", ["k"], ["kf"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["kf"], ["y2"], axes=[0]),
    ]
    return model_of(nodes, stored, opset=9, ir_version=3, outputs=("y", "y2"))


def places(kind: str, *, turned: bool = False, opset: int = 21) -> onnx.ModelProto:
    """Sines of places: next to equal from row to row, or from column to column."""
    waves = np.arange(512)[:, None] * np.geomspace(0.2, 1e-3, WIDTH)
    low, high = {"INT8": (-90, 90), "UINT8": (0, 180), "INT4": (-8, 7)}[kind]
    values = np.rint((np.sin(waves) + 1) / 2 * (high - low) + low).astype(int)
    values = values.T if turned else values
    tensor = helper.make_tensor(
        "q", getattr(TensorProto, kind), (1, *values.shape), values.reshape(-1).tolist()
    )
    nodes = [
        helper.make_node("Cast", ["q"], ["w"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "w"], ["y"]),
    ]
    return model_of(nodes, {"q": tensor}, shape=(1, *values.shape), rank=3, opset=opset)


def mask(dtype: type[np.generic]) -> onnx.ModelProto:
    """What a decoder must not look at: all that comes after."""
    ahead = np.triu(np.ones((WIDTH, 2 * WIDTH), bool), 1)
    values = np.where(ahead, np.finfo(np.float32).min, 0) if dtype is np.float32 else ahead
    stored = {"q": values.astype(dtype)[None], "zero": np.array(0, np.float32)}
    kinds = {np.float32: "Add", np.bool_: "Where"}
    inputs = {"Add": ["x", "q"], "Where": ["q", "zero", "x"]}[kinds[dtype]]
    node = helper.make_node(kinds[dtype], inputs, ["y"])
    return model_of([node], stored, shape=(1, WIDTH, 2 * WIDTH), rank=3)


def distances() -> onnx.ModelProto:
    """How far apart two places are, as attention looks it up: alike along diagonals."""
    apart = np.abs(np.subtract.outer(np.arange(WIDTH), np.arange(WIDTH))) + 7
    nodes = [
        helper.make_node("Gather", ["table", "q"], ["w"]),
        helper.make_node("Mul", ["x", "w"], ["y"]),
    ]
    table = RNG.standard_normal(2 * WIDTH).astype(np.float32)
    stored = {"q": apart.astype(np.int64), "table": table}
    return model_of(nodes, stored, shape=(WIDTH, WIDTH))


BUILT: dict[str, Callable[[], onnx.ModelProto]] = {
    "cast-mul": cast_mul,
    "static MatMul": qdq,
    "static Conv": lambda: qdq("Conv"),
    "dynamic": dynamic,
    "int4": narrow,
    "uint4": lambda: narrow("UINT4"),
    "MatMulNBits": nbits,
    "few floats": few_floats,
    "few bfloat16": few_short_floats,
    "int16": lambda: wide_codes("int16"),
    "int16, 0 bits apart": lambda: many_values(9, 17, wide=3),
    "int16, 4 bits apart": lambda: many_values(200, 17, wide=3),
    "int16, 4 bits apart, old set": lambda: many_values(200, 12),
    "int16, 8 bits apart": lambda: many_values(700, 17),
    "int16, old set": lambda: many_values(9, 12, wide=3),
    "uint32": lambda: wide_codes("uint32"),
    "uint64": lambda: wide_codes("uint64"),
    "bodies": in_bodies,
    "lookup": looked_up,
    "old": old,
    "places": lambda: places("INT8", opset=13),
    "places, uint8": lambda: places("UINT8", turned=True),
    "places, int4": lambda: places("INT4"),
    "distances": distances,
    "mask": lambda: mask(np.float32),
    "mask, bool": lambda: mask(np.bool_),
}


def session(path: Path, optimized: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def operators(path: Path) -> collections.Counter[str]:
    model = onnx.load(path)
    lists = list(round_trip.node_lists(model))
    return collections.Counter(node.op_type for nodes in lists for node in nodes)


@pytest.mark.parametrize("kind", BUILT)
def test_stock_runtime_answers_with_the_same_bits_and_the_same_kernels(
    kind: str, tmp_path: Path
) -> None:
    plain, small, back = (tmp_path / name for name in ("plain.onnx", "small.onnx", "back.onnx"))
    onnx.save(BUILT[kind](), plain)
    nbytes, coding = coded.save(Model.load(plain), small)
    onnx.checker.check_model(str(small), full_check=kind != "MatMulNBits")
    assert nbytes == small.stat().st_size < plain.stat().st_size
    assert coding.coded
    first = session(plain, tmp_path / "plain.opt.onnx")
    second = session(small, tmp_path / "small.opt.onnx")
    shape = first.get_inputs()[0].shape
    feed = {"x": RNG.uniform(0, 9, shape).astype(np.float32)}
    for expected, found in zip(first.run(None, feed), second.run(None, feed), strict=True):
        assert np.array_equal(expected, found)
    # Constants of bodies may now be folded where they were not; nothing is left of the chains.
    assert operators(tmp_path / "small.opt.onnx") <= operators(tmp_path / "plain.opt.onnx")

    assert coded_read.verify(small) == len(coding.coded)
    model, names = coded_read.load(small)
    assert list(names) == coding.coded
    model.save(back)
    originals = {t.name: t for t in round_trip.tensors(onnx.load(plain))}
    for tensor in onnx.load(back).graph.initializer:
        kept = originals[tensor.name]
        assert tensor.data_type == kept.data_type
        assert numpy_helper.to_array(tensor).tobytes() == numpy_helper.to_array(kept).tobytes()
    assert {name for name in names} <= {t.name for t in onnx.load(back).graph.initializer}
    assert not onnx.load(back).metadata_props
    assert not {"Range", "Compress", "ScatterElements", "CumSum"} & set(operators(back))


def test_what_changes_little_along_an_axis_is_coded_as_differences(tmp_path: Path) -> None:
    for kind in ("INT8", "UINT8", "INT4"):
        model = Model.from_proto(places(kind, turned=kind == "UINT8"))
        nbytes, coding = coded.save(model, tmp_path / f"{kind}.onnx")
        assert operators(tmp_path / f"{kind}.onnx")["CumSum"] == 1
        assert nbytes < 0.75 * coding.ideal
    for other in (cast_mul(), mask(np.float32), mask(np.bool_)):
        coded.save(Model.from_proto(other), tmp_path / "other.onnx")
        assert not operators(tmp_path / "other.onnx")["CumSum"]


def test_every_hard_model_answers_with_the_same_bits(tmp_path: Path) -> None:
    """Weights wherever they may live: inputs, bodies, functions, other files; also none at all."""
    left: dict[str, dict[str, str]] = {}
    for case, build in hard_models.HARD.items():
        folder = tmp_path / case
        folder.mkdir()
        hard = hard_models.coarse(build())
        plain, small = hard.save(folder), folder / "small.onnx"
        coding = coded.code(Model.load(plain))
        left[case] = coding.plain
        if not coding.coded:
            with pytest.raises(BudgetMissed, match="not coded"):
                coded.save(Model.load(plain), small)
            continue
        coded.save(Model.load(plain), small)
        assert coded_read.verify(small) == len(coding.coded), case
        first, second = session(plain), session(small)
        for feed in hard.feeds:
            for a, b in zip(first.run(None, feed), second.run(None, feed), strict=True):
                assert np.array_equal(a, b, equal_nan=True), case
    assert "input" in left["overridable"]["w"]
    assert not left["function"]
    reasons = {case: set(why.values()) for case, why in left.items() if why}
    assert reasons["quantized"] == {"would not get smaller"}
    assert reasons["bfloat16"] == {"has more than 256 different values"}


def test_a_report_says_what_stays_plain_in_inputs(tmp_path: Path) -> None:
    model = Model.from_proto(hard_models.coarse(hard_models.HARD["overridable"]()).proto)
    _, coding = coded.save(model, tmp_path / "small.onnx")
    (line,) = [line for line in coding.warnings() if line.startswith("left plain")]
    assert line.endswith(": w")


@pytest.mark.parametrize("wide", [0, 3])
def test_the_ideal_is_what_the_entropy_of_whole_values_says(wide: int) -> None:
    """Also where the bytes of large values are stored apart."""
    proto = many_values(200, 17, wide) if wide else wide_codes("int16")
    (tensor,) = proto.graph.initializer
    counts = np.unique(numpy_helper.to_array(tensor), return_counts=True)[1]
    bits = -(counts * np.log2(counts / counts.sum())).sum()
    assert coded.code(Model.from_proto(proto)).ideal == pytest.approx(bits / 8, rel=1e-9)


def test_constants_of_functions_that_call_each_other_are_coded(tmp_path: Path) -> None:
    """They become inputs, given from the main graph, once for all callers."""
    own = numpy_helper.from_array(codes(WIDTH, WIDTH).astype(np.float32), "w")
    inner = helper.make_function(
        "local", "Inner", ["a"], ["b"],
        [
            helper.make_node("Constant", [], ["w"], value=own),
            helper.make_node("MatMul", ["a", "w"], ["b"]),
        ],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    outer = helper.make_function(
        "local", "Outer", ["a"], ["c"],
        [
            helper.make_node("Inner", ["a"], ["b"], domain="local"),
            helper.make_node("Relu", ["b"], ["c"]),
        ],
        [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)],
    )  # fmt: skip
    calls = [("Outer", "x", "h"), ("Inner", "h", "i"), ("Outer", "i", "y")]
    model = model_of([helper.make_node(op, [a], [b], domain="local") for op, a, b in calls], {})
    model.functions.extend([inner, outer])
    model.opset_import.append(helper.make_opsetid("local", 1))
    onnx.save(model, tmp_path / "plain.onnx")
    nbytes, coding = coded.save(Model.load(tmp_path / "plain.onnx"), tmp_path / "small.onnx")
    assert coding.coded
    assert nbytes < (tmp_path / "plain.onnx").stat().st_size / 4
    onnx.checker.check_model(str(tmp_path / "small.onnx"), full_check=True)
    feed = {"x": RNG.uniform(0, 9, (3, WIDTH)).astype(np.float32)}
    (expected,) = session(tmp_path / "plain.onnx").run(None, feed)
    (found,) = session(tmp_path / "small.onnx", tmp_path / "opt.onnx").run(None, feed)
    assert np.array_equal(expected, found)
    assert not {"Compress", "Gather"} & set(operators(tmp_path / "opt.onnx"))
    assert coded_read.verify(tmp_path / "small.onnx") == len(coding.coded)


def test_tensors_of_one_chain_are_written_together(tmp_path: Path) -> None:
    """Many small tensors spread alike share tables and nodes."""
    stored, nodes = {}, []
    for at in range(12):
        stored[f"q{at}"] = codes(40, 41, seed=at)
        nodes.append(helper.make_node("Cast", [f"q{at}"], [f"c{at}"], to=TensorProto.FLOAT))
    nodes.append(helper.make_node("Sum", [f"c{at}" for at in range(12)], ["y"]))
    model = Model.from_proto(model_of(nodes, stored))
    _, coding = coded.save(model, tmp_path / "small.onnx")
    assert len(coding.coded) == 12
    found = onnx.load(tmp_path / "small.onnx").graph.node
    assert sum(node.op_type == "Split" for node in found) == 1
    assert sum(node.op_type == "Compress" for node in found) <= 6


def test_long_sequences_are_cut_into_chains_that_share_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No output may be so large that ONNX Runtime would not fold its node."""
    monkeypatch.setattr(coded, "_MOST", 9 * WIDTH * WIDTH)
    stored = {f"q{at}": codes(4 * WIDTH, WIDTH, seed=at) for at in range(3)}
    stored["large"] = codes(12 * WIDTH, WIDTH)
    nodes = [
        helper.make_node("Cast", [name], [f"c{name}"], to=TensorProto.FLOAT) for name in stored
    ]
    nodes += [helper.make_node("ReduceSum", [f"c{name}", "axis"], [f"y{name}"]) for name in stored]
    outputs = tuple(f"y{name}" for name in stored)
    model = model_of(nodes, {**stored, "axis": np.array([0], np.int64)}, outputs=outputs)
    onnx.save(model, tmp_path / "plain.onnx")
    _, coding = coded.save(Model.from_proto(model), tmp_path / "small.onnx")
    assert sorted(coding.coded) == ["q0", "q1", "q2"]
    assert any("large" in line for line in coding.warnings())
    assert operators(tmp_path / "small.onnx")["Split"] == 2  # two tensors; the tables
    feed = {"x": np.zeros((3, WIDTH), np.float32)}
    found = session(tmp_path / "small.onnx").run(None, feed)
    for one, other in zip(session(tmp_path / "plain.onnx").run(None, feed), found, strict=True):
        assert np.array_equal(one, other)
    assert coded_read.verify(tmp_path / "small.onnx") == 3


@pytest.mark.parametrize("kinds", [(np.int8, np.int8), (np.int8, np.uint8)], ids=str)
def test_tables_are_coded_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds: tuple[type, type]
) -> None:
    """Tensors that are spread differently have tables of their own: these are codes as well."""
    stored = {
        "a": codes(3 * WIDTH, 3 * WIDTH, spread=0.4).view(kinds[0]),
        "b": codes(3 * WIDTH, 3 * WIDTH, spread=4).view(kinds[1]),
    }
    nodes = [helper.make_node("Cast", [name], [f"y{name}"], to=TensorProto.FLOAT) for name in "ab"]
    model = model_of(nodes, stored, outputs=("ya", "yb"))
    onnx.save(model, tmp_path / "plain.onnx")
    coded.save(Model.from_proto(model), tmp_path / "small.onnx")
    graph = onnx.load(tmp_path / "small.onnx").graph
    made = {name: node.op_type for node in graph.node for name in node.output}
    of_tables = [made.get(node.input[0]) for node in graph.node if node.op_type == "Gather"]
    assert of_tables.count("Reshape") >= 2
    feed = {"x": np.zeros((3, WIDTH), np.float32)}
    expected = session(tmp_path / "plain.onnx").run(None, feed)
    found = session(tmp_path / "small.onnx", tmp_path / "opt.onnx").run(None, feed)
    assert all(np.array_equal(one, other) for one, other in zip(expected, found, strict=True))
    assert not operators(tmp_path / "opt.onnx")["Gather"]
    assert coded_read.verify(tmp_path / "small.onnx") == 2
    with_tables = (tmp_path / "small.onnx").stat().st_size
    monkeypatch.setattr(coded, "_FEWEST_IN_TABLE", 10**6)
    coded.save(Model.from_proto(model), tmp_path / "small.onnx")
    assert with_tables < (tmp_path / "small.onnx").stat().st_size


def test_what_would_not_get_smaller_stays_plain(tmp_path: Path) -> None:
    even = RNG.integers(-128, 128, (WIDTH, WIDTH)).astype(np.int8)
    nodes = [
        helper.make_node("Cast", ["q"], ["w"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    model = Model.from_proto(model_of(nodes, {"q": even}))
    with pytest.raises(BudgetMissed, match="none of its tensors"):
        coded.save(model, tmp_path / "small.onnx")
    assert not list(tmp_path.iterdir())
    assert coded.code(model).plain["q"] == "would not get smaller"


def test_tensors_of_one_value_and_outputs(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["q"], ["w"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    stored = {
        "q": np.zeros((WIDTH, WIDTH), np.int8),
        "o": np.zeros((64, 64), np.float32),
        "e": np.zeros((0, 4), np.int8),
        "d": np.array(1, np.int8),
    }
    model = Model.from_proto(model_of(nodes, stored, outputs=("y", "o")))
    _, coding = coded.save(model, tmp_path / "small.onnx")
    assert coding.coded == ["q"]
    assert "output" in coding.plain["o"]
    x = np.ones((3, WIDTH), np.float32)
    assert not session(tmp_path / "small.onnx").run(["y"], {"x": x})[0].any()


def test_a_damaged_file_is_told_from_a_sound_one_by_tensor(tmp_path: Path) -> None:
    path = tmp_path / "small.onnx"
    coded.save(Model.from_proto(cast_mul()), path)
    model = onnx.load(path)
    stream = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    data = bytearray(stream.raw_data)
    data[len(data) // 2] ^= 1
    stream.raw_data = bytes(data)
    onnx.save(model, path)
    with pytest.raises(ModelError, match="coded tensor 'q' is damaged"):
        coded_read.verify(path)
    with pytest.raises(ModelError, match="coded tensor 'q' is damaged"):
        coded_read.load(path)
    for note in ("{", '{"version": 2, "tensors": {}}', '{"version": 1, "tensors": {"q": 1}}'):
        model.metadata_props[0].value = note
        onnx.save(model, path)
        with pytest.raises(ModelError, match="coded"):
            coded_read.load(path)


def test_coding_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    model = Model.from_proto(few_floats())
    for name in ("a", "b"):
        coded.save(model, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_without_optimization_the_chains_run_and_are_right(tmp_path: Path) -> None:
    plain, small = tmp_path / "plain.onnx", tmp_path / "small.onnx"
    onnx.save(cast_mul(), plain)
    coded.save(Model.load(plain), small)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    feed = {"x": RNG.uniform(-1, 1, (3, WIDTH)).astype(np.float32)}
    first, second = (
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for path in (plain, small)
    )
    assert np.array_equal(first.run(None, feed)[0], second.run(None, feed)[0])


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ([helper.make_node("Tile", ["k", "k"], ["q"])], "Tile is not an operator of chains"),
        ([helper.make_node("Cast", ["x"], ["q"], to=TensorProto.INT8)], "'x' is not constant"),
        ([helper.make_node("Reshape", ["k", "k"], ["q"])], "cannot reshape"),
        ([helper.make_node("Gather", ["k", "many"], ["q"])], "out of bounds"),
        ([helper.make_node("CumSum", ["k", "zero"], ["q"], reverse=1)], "not that of all up to"),
    ],
)
def test_chains_of_others_are_computed_with_care(
    nodes: list[onnx.NodeProto], reason: str, tmp_path: Path
) -> None:
    nodes = [
        *nodes,
        helper.make_node("Cast", ["q"], ["w"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "w"], ["y"]),
    ]
    stored = {"k": np.array([3, 4], np.int64), "many": np.array([0, 9], np.int64)}
    stored["zero"] = np.array(0, np.int64)
    model = model_of(nodes, stored)
    note = '{"version":1,"tensors":{"q":["INT8",[2],"00000000"]}}'
    helper.set_model_props(model, {coded.KEY: note})
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(ModelError, match=f"coded tensor 'q' is damaged: .*{reason}"):
        coded_read.load(tmp_path / "foreign.onnx")
