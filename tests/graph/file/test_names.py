"""Names are shortened where a file is written: what refers to what stays, and the answers do."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx.parser import parse_model

from onnxshrink import api
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import coded, packed
from onnxshrink.recipe import Recipe, find_pass

LONG = "model_scope_encoder_block_of_transformer_layer_number"
TEXT = f"""<ir_version: 10, opset_import: ["" : 21, "own" : 1]>
g (float[2, 64] x, bool c) => (float[2, 64] y)
<float[64, 64] {LONG}_kernel, float[64] {LONG}_bias, int64[1] {LONG}_axes = {{0}}> {{
  {LONG}_0 = MatMul(x, {LONG}_kernel)
  {LONG}_1 = Add({LONG}_0, {LONG}_bias)
  a = If(c) <
    then_branch = then_body () => (float[2, 64] {LONG}_out) {{
      {LONG}_inner = Relu({LONG}_1)
      {LONG}_out = own.twice({LONG}_inner)
    }},
    else_branch = else_body () => (float[2, 64] {LONG}_out) {{
      {LONG}_inner = Clip({LONG}_1, , )
      {LONG}_out = Neg({LONG}_inner)
    }}
  >
  {LONG}_2 = ReduceMax <keepdims = 1> (a, {LONG}_axes)
  y = Sub(a, {LONG}_2)
}}
<domain: "own", opset_import: ["" : 21]>
twice ({LONG}_0) => ({LONG}_1) {{
  {LONG}_2 = Add({LONG}_0, {LONG}_0)
  {LONG}_1 = Identity({LONG}_2)
}}
"""


@pytest.fixture
def proto() -> onnx.ModelProto:
    found = parse_model(TEXT)
    rng = np.random.default_rng(0)
    for name, shape in ((f"{LONG}_kernel", (64, 64)), (f"{LONG}_bias", (64,))):
        array = rng.normal(size=shape).astype(np.float32)
        found.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for index, node in enumerate(found.graph.node):
        node.name = f"{LONG}/node/{index}"
    shape = [2, 64]
    found.graph.value_info.append(
        onnx.helper.make_tensor_value_info(f"{LONG}_0", onnx.TensorProto.FLOAT, shape)
    )
    note = found.graph.quantization_annotation.add(tensor_name=f"{LONG}_1")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value=f"{LONG}_axes")
    return found


def answers(path, name: str = "c") -> list[np.ndarray]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).normal(size=(2, 64)).astype(np.float32)
    return [session.run(None, {"x": x, name: np.array(c)})[0] for c in (True, False)]


def test_answers_stay_to_the_bit_and_names_that_others_know_too(proto, tmp_path) -> None:
    onnx.save(proto, tmp_path / "in.onnx")
    model = Model.load(tmp_path / "in.onnx")
    names = model.shorten_names([f"{LONG}_2", "*/node/0"])
    assert model.save(tmp_path / "out.onnx") == model.nbytes()
    short = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(short, full_check=True)
    for x, y in zip(answers(tmp_path / "in.onnx"), answers(tmp_path / "out.onnx"), strict=True):
        np.testing.assert_array_equal(x, y)
    assert [i.name for i in short.graph.initializer if len(i.dims) == 2] == [f"{LONG}_kernel"]
    assert short.graph.node[0].name == f"{LONG}/node/0"
    assert f"{LONG}_2" in short.graph.node[-1].input
    assert len(names.given[f"{LONG}_1"]) == 1
    assert names.given[f"{LONG}_0"] in [value.name for value in short.graph.value_info]
    (note,) = short.graph.quantization_annotation
    assert note.tensor_name == names.given[f"{LONG}_1"]
    assert note.quant_parameter_tensor_names[0].value == f"{LONG}_axes"  # an initializer
    assert len(set(names.given.values())) == len(names.given)
    back = {short: old for old, short in names.given.items()}
    outputs = [back.get(o, o) for node in short.graph.node for o in node.output]
    assert outputs == [o for node in proto.graph.node for o in node.output]


def test_they_stay_where_it_does_not_pay(proto, tmp_path) -> None:
    large = np.random.default_rng(0).normal(size=(64, 2**12)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(large, "unused"))
    model = Model.from_proto(proto)
    plain = model.nbytes()
    names = model.shorten_names()
    assert model.nbytes() == plain
    assert not names.given


@pytest.mark.parametrize("storage", ["packed", "coded"])
def test_coded_files_find_their_tensors(proto, tmp_path, storage) -> None:
    from onnxshrink.graph.forms import coded_read

    codes = np.random.default_rng(0).integers(0, 4, (64, 512)).astype(np.int8)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(codes, f"{LONG}_codes"))
    model = Model.from_proto(proto)
    names = model.shorten_names()
    out = tmp_path / "out.onnx"
    if storage == "packed":
        packed.save(model, out)
        packed.unpack(out, tmp_path / "plain.onnx")
    else:
        coded.save(model, out)
        coded_read.load(out)[0].save(tmp_path / "plain.onnx")
    assert names.given
    found = {i.name: i for i in onnx.load(tmp_path / "plain.onnx").graph.initializer}
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(found[f"{LONG}_codes"]), codes)


def test_a_run_says_so_and_can_be_told_not_to(proto, tmp_path) -> None:
    onnx.save(proto, tmp_path / "in.onnx")
    recipe = Recipe((find_pass("quantize-weights")(),))
    quick = api.Options(check="quick")
    reports = [
        api.apply_recipe(recipe, tmp_path / "in.onnx", tmp_path / f"{n}.onnx", quick) for n in "ab"
    ]
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert reports[0].to_dict()["renamed"] == reports[1].renamed != {}
    assert "--keep-names" in reports[0].to_markdown()
    assert 0 < reports[0].bytes_gzip < (tmp_path / "a.onnx").stat().st_size
    keep = api.Options(check="quick", keep_names=True)
    report = api.apply_recipe(recipe, tmp_path / "in.onnx", tmp_path / "c.onnx", keep)
    assert not report.renamed
    assert report.bytes_after > 1.02 * reports[0].bytes_after
    for x, y in zip(answers(tmp_path / "a.onnx"), answers(tmp_path / "c.onnx"), strict=True):
        np.testing.assert_array_equal(x, y)


def test_cleaning_shortens_names_where_there_is_nothing_else_to_do(proto, tmp_path) -> None:
    onnx.save(proto, tmp_path / "in.onnx")
    recipe = Recipe((find_pass("clean")(),))
    long = tmp_path / "long.onnx"
    cleaned = api.apply_recipe(
        recipe, tmp_path / "in.onnx", long, api.Options(check="quick", keep_names=True)
    )
    report = api.apply_recipe(recipe, long, tmp_path / "short.onnx", api.Options(check="quick"))
    (change,) = report.steps[0].changes
    assert (change.what, report.changed, bool(report.renamed)) == ("names", True, True)
    assert change.after == report.bytes_after < 0.98 * cleaned.bytes_after
