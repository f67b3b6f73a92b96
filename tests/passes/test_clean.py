"""Each rewriter against numpy; what it must leave alone; and that none is trusted."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from command_line import Run
from hard_models import HARD, tensor, text, weight
from onnx import helper

from onnxshrink.contract import Settings
from onnxshrink.errors import RecipeError, UnsupportedModel
from onnxshrink.graph import surgery
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.rewrite import clean
from onnxshrink.passes.clean import REWRITERS, Clean
from onnxshrink.passes.quantize_weights import QuantizeWeights
from onnxshrink.pipeline import Context, run
from onnxshrink.report import Step
from onnxshrink.runtime.worker import Worker

EPSILON = 2e-3
PLAIN = ort.SessionOptions()
PLAIN.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL


def answers(proto: onnx.ModelProto, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    """What ONNX Runtime says of the very graph, with nothing fused."""
    session = ort.InferenceSession(
        proto.SerializeToString(), PLAIN, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feed)


def operators(model: Model) -> list[str]:
    return [node.op_type for node in model.nodes]


def stored(model: Model) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor)
            for tensor in model.to_proto().graph.initializer}  # fmt: skip


# --------------------------------------------------------------------------- batch normalization


def statistics(channels: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    return {
        "gamma": rng.normal(1, 0.3, channels).astype(np.float32),
        "beta": rng.normal(0, 1, channels).astype(np.float32),
        "mean": rng.normal(0, 1, channels).astype(np.float32),
        "var": rng.uniform(0.1, 2, channels).astype(np.float32),
    }


def normalized(
    operator: str, kernel: np.ndarray, channels: int, *, bias: bool, nodes: bool = False,
    norm: str = f"<epsilon = {EPSILON}>", ir_version: int = 8, opset: int = 17, **attributes: Any,
) -> onnx.ModelProto:  # fmt: skip
    """A convolution and its BatchNormalization, the weights as initializers or Constant nodes."""
    weights = {"w": kernel, **statistics(channels)}
    if bias:
        weights["b"] = weight(8, channels)
    said = ", ".join(f"{key} = {value}" for key, value in attributes.items())
    rank, groups = kernel.ndim - 2, attributes.get("group", 1)
    inputs = kernel.shape[1] * groups if operator == "Conv" else kernel.shape[0]
    free = ", ".join("def"[:rank])
    proto = text(
        f'<ir_version: {ir_version}, opset_import: ["": {opset}]> '
        f"g (float[n, {inputs}, {free}] x) => (float[n, {channels}, p{', q' * (rank - 1)}] y) {{"
        f" h = {operator}{f'<{said}>' if said else ''}(x, w{', b' if bias else ''})"
        f" y = BatchNormalization{norm}(h, gamma, beta, mean, var) }}",
    )
    if nodes:
        constants = [
            helper.make_node("Constant", [], [name], value=tensor("", array))
            for name, array in weights.items()
        ]
        for at, node in enumerate(constants):
            proto.graph.node.insert(at, node)
    else:
        proto.graph.initializer.extend(tensor(*pair) for pair in weights.items())
    return proto


def image(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    shape = (2, dims[1].dim_value, *range(6, 4 + len(dims)))
    return {"x": np.random.default_rng(9).standard_normal(shape).astype(np.float32)}


KERNELS = {
    "conv": ("Conv", (6, 4, 3, 3), 6, {}),
    "conv 1d": ("Conv", (6, 4, 3), 6, {}),
    "conv 3d": ("Conv", (6, 4, 2, 2, 2), 6, {}),
    "strides and pads": ("Conv", (6, 4, 3, 3), 6, {"strides": "[2, 2]", "pads": "[1, 1, 1, 1]"}),
    "grouped": ("Conv", (6, 2, 3, 3), 6, {"group": 3}),
    "depthwise": ("Conv", (6, 1, 3, 3), 6, {"group": 6}),
    "transposed": ("ConvTranspose", (4, 6, 3, 3), 6, {}),
    "transposed, grouped": ("ConvTranspose", (4, 3, 3, 3), 6, {"group": 2}),
    "transposed, depthwise": ("ConvTranspose", (6, 1, 3), 6, {"group": 6}),
}


@pytest.mark.parametrize("nodes", [False, True], ids=["initializers", "constant nodes"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("case", KERNELS)
def test_batch_norm_is_multiplied_into_a_convolution(case: str, bias: bool, nodes: bool) -> None:
    operator, shape, channels, attributes = KERNELS[case]
    kernel = weight(10, *shape)
    proto = normalized(operator, kernel, channels, bias=bias, nodes=nodes, **attributes)
    model = Model.from_proto(proto)
    clean.fold_batch_norms(model)
    assert operators(model) == [operator]
    after = model.to_proto()
    onnx.checker.check_model(after, full_check=True)
    (before,), (found,) = answers(proto, image(proto)), answers(after, image(proto))
    np.testing.assert_allclose(found, before, rtol=1e-5, atol=2e-6)
    # The weights themselves, by the formula.
    s = {name: array.astype(np.float64) for name, array in statistics(channels).items()}
    factor = s["gamma"] / np.sqrt(s["var"] + np.float32(EPSILON))
    offset = weight(8, channels) if bias else 0
    node = after.graph.node[0]
    arrays = stored(model)
    np.testing.assert_allclose(
        arrays[node.input[2]], (offset - s["mean"]) * factor + s["beta"], rtol=1e-6
    )
    if operator == "Conv":
        expected = kernel * factor.reshape(-1, *[1] * (kernel.ndim - 1))
    else:  # output channel g * (channels / groups) + j is kernel[inputs of g, j]
        groups = attributes.get("group", 1)
        expected = np.array(kernel, np.float64)
        for row in range(kernel.shape[0]):
            group = row // (kernel.shape[0] // groups)
            for column in range(kernel.shape[1]):
                expected[row, column] *= factor[group * kernel.shape[1] + column]
    np.testing.assert_allclose(arrays[node.input[1]], expected, rtol=1e-6)
    assert set(arrays) == set(node.input[1:]), "the old weights are left in the file"
    assert after.graph.output == proto.graph.output


def test_batch_norm_where_initializers_are_inputs() -> None:
    """IR 3: the new weights must not become inputs that the caller has to feed."""
    proto = normalized("Conv", weight(10, 6, 4, 3, 3), 6, bias=True, ir_version=3, opset=9)
    proto.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in proto.graph.initializer
    )
    model = Model.from_proto(proto)
    clean.fold_batch_norms(model)
    after = model.to_proto()
    onnx.checker.check_model(after, full_check=True)
    assert [value.name for value in after.graph.input] == ["x"]
    (before,), (found,) = answers(proto, image(proto)), answers(after, image(proto))
    np.testing.assert_allclose(found, before, rtol=1e-5, atol=2e-6)


def shared_weight(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(helper.make_node("Identity", ["w"], ["v"]))
    proto.graph.output.append(helper.make_tensor_value_info("v", 1, [6, 4, 3, 3]))


def used_twice(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(helper.make_node("Relu", ["h"], ["r"]))
    proto.graph.output.append(helper.make_tensor_value_info("r", 1, ["n", 6, "p", "q"]))


def output_itself(proto: onnx.ModelProto) -> None:
    proto.graph.output.append(helper.make_tensor_value_info("h", 1, ["n", 6, "p", "q"]))


def training(proto: onnx.ModelProto) -> None:
    proto.graph.node[-1].attribute.add(name="training_mode", type=2, i=1)


def training_with_statistics(proto: onnx.ModelProto) -> None:
    training(proto)
    proto.graph.node[-1].output.extend(["mean_out", "var_out"])
    proto.graph.output.append(helper.make_tensor_value_info("mean_out", 1, [6]))


def given_scale(proto: onnx.ModelProto) -> None:
    (index,) = [i for i, t in enumerate(proto.graph.initializer) if t.name == "gamma"]
    del proto.graph.initializer[index]
    proto.graph.input.append(helper.make_tensor_value_info("gamma", 1, [6]))


def overridable_weight(proto: onnx.ModelProto) -> None:
    proto.graph.input.append(helper.make_tensor_value_info("w", 1, [6, 4, 3, 3]))


@pytest.mark.parametrize(
    "change",
    [shared_weight, used_twice, output_itself, training, training_with_statistics, given_scale,
     overridable_weight],
    ids=lambda change: change.__name__,
)  # fmt: skip
def test_batch_norm_that_must_stay(change: Any) -> None:
    proto = normalized("Conv", weight(10, 6, 4, 3, 3), 6, bias=True)
    change(proto)
    model = Model.from_proto(proto)
    clean.fold_batch_norms(model)
    assert model.to_proto() == proto


def test_batch_norm_of_an_old_set_that_trains_is_left_alone() -> None:
    """Before opset 7 it trains unless ``is_test`` says otherwise."""
    proto = normalized("Conv", weight(10, 6, 4, 3, 3), 6, bias=True, opset=6)
    model = Model.from_proto(proto)
    clean.fold_batch_norms(model)
    assert "BatchNormalization" in operators(model)


# ------------------------------------------------------------------------------ other rewriters


def test_duplicates_are_stored_once_and_only_equal_bytes_are_equal() -> None:
    zeros, minus = np.zeros((4, 4), np.float32), -np.zeros((4, 4), np.float32)
    proto = text(
        """g (float[4, 4] x) => (float[4, 4] y) {
            a = Add(x, one)  b = Add(a, same)  c = Add(b, minus)  d = Reshape(flat, shape)
            e = Add(c, d)  f = Cast<to = 1>(ints)  y = Add(e, f)
        }""",
        one=zeros, same=zeros, minus=minus, flat=zeros.ravel(), shape=np.array([4, 4]),
        ints=np.zeros((4, 4), np.int32),
    )  # fmt: skip
    model = Model.from_proto(proto)
    clean.share_duplicates(model)
    assert set(stored(model)) == {"one", "minus", "flat", "shape", "ints"}
    assert list(model.to_proto().graph.node[1].input) == ["a", "one"]
    feed = {"x": np.ones((4, 4), np.float32)}
    assert np.array_equal(answers(model.to_proto(), feed)[0], answers(proto, feed)[0])


def test_duplicates_that_somebody_can_see_stay() -> None:
    hard = HARD["old_ir"]().proto
    hard.graph.initializer[2].CopyFrom(tensor("b", np.zeros(32, np.float32)))
    model = Model.from_proto(hard)
    clean.share_duplicates(model)
    assert model.to_proto() == hard


def test_constants_are_folded() -> None:
    proto = text(
        """g (float[4] x) => (float[4] y) {
            two = Constant<value = float {2.0}>()  a = Sqrt(two)  b = Mul(a, four)  y = Mul(x, b)
        }""",
        four=np.array([1, 2, 3, 4], np.float32),
    )
    model = Model.from_proto(proto)
    clean.fold_constants(model)
    clean.drop_unused(model)
    assert operators(model) == ["Mul"]
    (found,) = answers(model.to_proto(), {"x": np.ones(4, np.float32)})
    np.testing.assert_array_equal(found, np.sqrt(np.float32(2)) * np.arange(1, 5, dtype=np.float32))


@pytest.mark.parametrize("form", ["cast-mul", "dq"])
@pytest.mark.parametrize("width", [16, 64, 256])
def test_weights_that_are_rebuilt_are_not_folded_back(form: str, width: int) -> None:
    """Whatever their size: from 16 x 16, which a folder would take for a small constant."""
    proto = text(
        """g (float[n, k] x) => (float[n, k] y) {
            two = Constant<value = float {2.0}>()  s = Sqrt(two)  a = Mul(x, s)  y = MatMul(a, w)
        }""",
        w=weight(11, width, width),
    )
    model = Model.from_proto(proto)
    QuantizeWeights(form=form).apply(model, Context(Step("q")))
    before = operators(model)
    assert "Cast" in before or "DequantizeLinear" in before
    clean.fold_constants(model)
    clean.drop_unused(model)
    assert "Sqrt" not in operators(model)
    assert [op for op in before if op not in ("Sqrt", "Constant")] == operators(model)
    floats = [a for a in stored(model).values() if a.dtype == np.float32]
    assert all(array.size <= width for array in floats)


def test_identities_equal_expressions_and_what_nobody_reads_are_dropped() -> None:
    hard = HARD["duplicates"]()
    model = Model.from_proto(hard.proto)
    clean.drop_identities(model)
    assert operators(model) == ["MatMul", "MatMul", "Add", "Relu"]
    clean.drop_unused(model)
    assert operators(model) == ["MatMul", "MatMul", "Add"]
    assert set(stored(model)) == {"first", "second"}
    (found,) = answers(model.to_proto(), hard.feeds[0])
    assert np.array_equal(found, answers(hard.proto, hard.feeds[0])[0])
    proto = text(
        "g (float[n] x) => (float[n] y) { a = Exp(x)  b = Exp(x)  y = Add(a, b) }",
    )
    model = Model.from_proto(proto)
    clean.share_subexpressions(model)
    assert operators(model) == ["Exp", "Add"]


# -------------------------------------------------------------------------------- the pass itself


def cleaned(worker: Worker, keep: tuple[str, ...] = (), case: str = "convolutions"):
    hard = HARD[case]()
    return run([Clean(keep=keep)], Model.from_proto(hard.proto), Settings(feeds=hard.feeds), worker)


def skipped(result) -> dict[str, str]:
    return {skip.what: skip.reason for skip in result.report.steps[0].skips}


def test_what_was_done_is_reported(worker: Worker) -> None:
    result = cleaned(worker)
    step = result.report.steps[0]
    assert {change.what for change in step.changes} == {"fold_batch_norms"}
    assert step.changes[0].note == "3 nodes less"
    assert set(skipped(result)) == set(REWRITERS) - {"fold_batch_norms"}
    assert step.changes[0].before == step.bytes_before
    assert step.changes[-1].after == step.bytes_after
    assert "BatchNormalization" not in operators(result.model)


def test_copies_are_made_for_what_changes_only(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large model pays for a rewriter that finds nothing with a look, not with a copy."""
    made, clone = [], Model.clone

    def counting(model: Model) -> Model:
        made.append(model.edits)
        return clone(model)

    monkeypatch.setattr(Model, "clone", counting)
    result = cleaned(worker)
    changes = result.report.steps[0].changes
    fresh = 1 + len(changes)  # the first, and one behind each that stands
    assert len(made) <= fresh + 2  # the step's own, and what drop_unused does not count
    assert len(made) < len(REWRITERS)


def test_keep_leaves_a_rewriter_out(worker: Worker) -> None:
    result = cleaned(worker, keep=("fold_batch_norms",))
    assert not result.report.changed
    assert skipped(result)["fold_batch_norms"] == "kept as asked"
    with pytest.raises(RecipeError, match="takes one of inline_functions"):
        Clean(keep=("fold_everything",))


def wrong(model: Model) -> None:
    node = next(node for node in model.ir.graph if node.op_type == "Relu")
    node.op_type = "Neg"
    model.touch_node(node)


def raising(model: Model) -> None:
    wrong(model)
    raise IndexError("list index out of range")


def refusing(model: Model) -> None:
    raise UnsupportedModel("not this one")


def unjournaled(model: Model) -> None:
    node = next(node for node in model.ir.graph if node.op_type == "Relu")
    node.op_type = "Neg"


@pytest.mark.parametrize(
    ("rewriter", "said"),
    [
        (wrong, "dropped: output 'y' changed by"),
        (raising, "does not work on this model, which it leaves as it is"),
        (refusing, "not this one"),
        (unjournaled, "does not work on this model, which it leaves as it is"),
    ],
    ids=["wrong", "raising", "refusing", "unjournaled"],
)
def test_a_rewriter_that_fails_is_dropped_alone(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, rewriter: Any, said: str
) -> None:
    monkeypatch.setattr(clean, "drop_identities", rewriter)
    result = cleaned(worker)
    assert said in skipped(result)["drop_identities"]
    assert [change.what for change in result.report.steps[0].changes] == ["fold_batch_norms"]
    assert result.report.steps[0].max_error < 1e-6
    assert "Relu" in operators(result.model)


def test_a_rewriter_that_grows_is_dropped(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    def unfold(model: Model) -> None:
        surgery.give_constant(model, model.ir.graph[0], 1, weight(50, 32, 8, 9, 9), "grown")

    monkeypatch.setattr(clean, "drop_identities", unfold)
    result = cleaned(worker)
    assert "bytes bigger" in skipped(result)["drop_identities"]
    assert result.report.changed


BRANCHES = {
    "a value from outside": "then_branch = t () => (float[2] p) { p = Identity(a) }",
    "one output twice": "then_branch = t () => (float[2] p) { n = Neg(a) p = Identity(n) }",
}


@pytest.mark.parametrize("case", BRANCHES)
def test_identities_in_branches(case: str) -> None:
    """What a branch hands out of the graph around it cannot be its output without an Identity."""
    proto = text(f"""g (float[2] x, bool c) => (float[2] y, float[2] z) {{
        a = Abs(x)  b = Identity(a)  z = Identity(b)
        y = If(c) <{BRANCHES[case]},
                   else_branch = e () => (float[2] q) {{ q = Identity(b) }}> }}""")
    model = Model.from_proto(proto)
    clean.drop_identities(model)
    after = model.to_proto()
    onnx.checker.check_model(after, full_check=True)
    kept = sum(node.op_type == "Identity" for node in model.nodes)
    assert kept == (2 if case == "a value from outside" else 1)
    for c in (True, False):
        feed = {"x": np.array([-1, 2], np.float32), "c": np.array(c)}
        for one, two in zip(answers(after, feed), answers(proto, feed), strict=True):
            np.testing.assert_array_equal(one, two)


def test_an_if_in_a_branch_that_is_always_taken() -> None:
    """It takes the place and the name of the If around it; nothing of that one is left."""
    inner = """If(c) <then_branch = deep () => (float[2] p) { p = Neg(x) },
                      else_branch = deeper () => (float[2] q) { q = Abs(x) }>"""
    proto = text(f"""g (float[2] x, bool c) => (float[2] y) {{
        always = Constant<value = bool {{1}}>()
        y = If(always) <then_branch = outer () => (float[2] r) {{ r = {inner} }},
                        else_branch = never () => (float[2] s) {{ s = Relu(x) }}> }}""")
    result = run([Clean()], Model.from_proto(proto), Settings(check="off"))
    assert not [reason for reason in skipped(result).values() if "does not work" in reason]
    after = result.model.to_proto()
    assert [node.op_type for node in after.graph.node] == ["If"]
    feed = {"x": np.array([-1, 2], np.float32), "c": np.array(True)}
    np.testing.assert_array_equal(answers(after, feed)[0], answers(proto, feed)[0])


def test_defaults_become_constants() -> None:
    proto = text("g (float[2, 64] x, float[64, 48] w) => (float[2, 48] y) { y = MatMul(x, w) }",
                 w=weight(1, 64, 48))  # fmt: skip
    feeds = [{"x": weight(2, 2, 64)}]
    plain = run([QuantizeWeights()], Model.from_proto(proto), Settings(feeds=feeds)).report
    assert "clean --fix-defaults" in plain.steps[0].skips[0].reason
    steps = [Clean(fix_defaults=True), QuantizeWeights()]
    result = run(steps, Model.from_proto(proto), Settings(feeds=feeds))
    assert [value.name for value in result.model.to_proto().graph.input] == ["x"]
    assert [change.what for change in result.report.steps[1].changes] == ["w"]


def test_docs_go_where_asked_and_are_told_of(worker: Worker) -> None:
    proto = text("g (float[2, 8] x) => (float[2, 8] y) { a = MatMul(x, w) y = Relu(a) }",
                 w=weight(1, 8, 8))  # fmt: skip
    proto.doc_string = proto.graph.doc_string = "secret"
    proto.metadata_props.add(key="labels", value="cat,dog")
    for node in proto.graph.node:
        node.doc_string = "A secret, written down by its maker. " * 9
        node.metadata_props.add(key="layer", value="secret" * 50)
    proto.graph.initializer[0].doc_string = "secret"
    proto.graph.input[0].doc_string = "secret"
    settings = Settings(feeds=[{"x": weight(2, 2, 8)}])
    kept = run([Clean()], Model.from_proto(proto), settings, worker)
    assert "strip_docs drops them" in skipped(kept)["docs"]
    result = run([Clean(strip_docs=True)], Model.from_proto(proto), settings, worker)
    data = result.model.to_proto().SerializeToString()
    assert b"secret" not in data
    assert b"cat,dog" in data
    assert result.report.bytes_after < 0.5 * result.report.bytes_before


def test_what_exporters_note_for_debugging_goes(worker: Worker) -> None:
    proto = text("g (float[2, 8] x) => (float[2, 8] y) { a = MatMul(x, w) y = Relu(a) }",
                 w=weight(1, 8, 8))  # fmt: skip
    proto.metadata_props.add(key="labels", value="cat,dog")
    proto.graph.metadata_props.add(key="pkg.torch.export.signature", value="secret")
    trace = 'File "/home/secret/model.py", line 7, in forward\n    return secret(x)'
    for node in proto.graph.node:
        node.metadata_props.add(key="pkg.torch.onnx.stack_trace", value=trace)
        node.metadata_props.add(key="layer", value="kept")
        node.doc_string = "/home/secret/model.py(7): forward\n"
    proto.graph.value_info.add(name="a").metadata_props.add(key="namespace", value="secret")
    proto.graph.initializer[0].doc_string = "The first weight of model.py, by hand"
    settings = Settings(feeds=[{"x": weight(2, 2, 8)}])
    result = run([Clean()], Model.from_proto(proto), settings, worker)
    data = result.model.to_proto().SerializeToString()
    assert b"secret" not in data
    assert data.count(b"kept") == 2
    assert b"cat,dog" in data
    assert b"by hand" in data
    (change,) = (c for c in result.report.steps[0].changes if c.what == "strip_traces")
    assert change.before - change.after >= 2 * len(trace)
    keys = [part.split()[0] for part in change.note.split(", ")]
    assert keys == ["pkg.torch.onnx.stack_trace", "doc_string", "pkg.torch.export.signature",
                    "namespace"]  # fmt: skip
    kept = run([Clean(keep_metadata=True)], Model.from_proto(proto), settings, worker)
    assert "pkg.torch.onnx.stack_trace" in skipped(kept)["metadata"]
    assert kept.model.to_proto() == proto


def test_shrink_drops_them_unless_they_are_to_be_kept(cli: Run, small: Path) -> None:
    proto = onnx.load(small)
    proto.graph.node[0].metadata_props.add(key="pkg.torch.onnx.stack_trace", value="model.py, 7")
    onnx.save(proto, "traced.onnx")
    words = ["shrink", "traced.onnx", "out.onnx", "--check", "off"]
    done = cli(*words, "--report", "report.json")
    assert b"model.py, 7" not in Path("out.onnx").read_bytes()
    report = json.loads(Path("report.json").read_text())
    (row,) = (c for c in report["steps"][0]["changes"] if c["what"] == "strip_traces")
    assert row["note"].startswith("pkg.torch.onnx.stack_trace ")
    done = cli(*words, "--keep-metadata", "--keep-names")
    assert done.code == 0, done.err
    assert b"model.py, 7" in Path("out.onnx").read_bytes()
