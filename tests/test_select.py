"""Options of a layer: its name goes before its operator type, and that before the step's own."""

import pytest
from hard_models import text, weight

from onnxshrink.errors import RecipeError
from onnxshrink.graph import weights
from onnxshrink.graph.file.model import Model
from onnxshrink.options import build, dump
from onnxshrink.passes.quantize_weights import QuantizeWeights
from onnxshrink.pipeline import Context
from onnxshrink.report import Step
from onnxshrink.select import SKIP, Select, matches, unmatched


@pytest.fixture
def views() -> dict[str, weights.WeightView]:
    proto = text(
        "g (float[n, 64] x) => (float[n, 64] y) { a = MatMul(x, w)  y = Gemm(a, v) }",
        **{"w": weight(1, 64, 64), "v": weight(2, 64, 64)},
    )
    proto.graph.node[0].name = "layers[0].mul"
    return {view.name: view for view in weights.find(Model.from_proto(proto))}


@pytest.mark.parametrize("turned", [False, True])
def test_a_name_goes_before_an_operator_whatever_their_order(views, turned: bool) -> None:
    rows = [("MatMul", {"dtype": "int4", "block_size": 32}), ("w", {"dtype": "uint8"})]
    layers = dict(rows[::-1] if turned else rows)
    select = Select(layers=layers)
    assert select.overrides(views["w"]) == {"dtype": "uint8", "block_size": 32}
    assert select.overrides(views["v"]) == {}
    own = QuantizeWeights(dtype="int8", clip="mse", weights=select)
    ctx = Context(Step("q"))
    made = {view.name: options for view, options in ctx.each(own, views.values())}
    assert (made["w"].dtype, made["w"].block_size, made["w"].clip) == ("uint8", 32, "mse")
    assert made["v"] == own


def test_patterns_name_weights_nodes_and_operators(views) -> None:
    for pattern in ("w", "MatMul", "layers[0].mul", "layers*", "?"):
        assert matches(pattern, views["w"]), pattern
    for pattern in ("v", "Gemm", "Mat", "layers[0]", "W"):
        assert not matches(pattern, views["w"]), pattern
    select = Select(only=("w",), keep=("u",), layers={"Convolution": SKIP})
    assert unmatched(select, views.values()) == ["u", "Convolution"]


def test_an_operator_that_a_model_lacks_is_no_slip(views) -> None:
    """One recipe is for many models."""
    assert unmatched(Select(only=("Conv",), layers={"LSTM": SKIP}), views.values()) == []


def test_why_a_weight_is_left_alone(views) -> None:
    assert Select().why_not(views["w"]) == ""
    assert Select(min_size=4097).why_not(views["w"]) == "fewer than 4097 elements"
    assert Select(min_size=4096).why_not(views["w"]) == ""
    assert Select(only=("Gemm",)).why_not(views["w"]) == "not among those asked for"
    assert Select(keep=("MatMul",)).why_not(views["w"]) == "kept as asked"
    assert Select(layers={"w": SKIP}).why_not(views["w"]) == "kept as asked"


def test_an_override_that_is_no_option_says_where(views) -> None:
    own = QuantizeWeights(weights=Select(layers={"w": {"dtyp": "int4"}}))
    said = "quantize-weights: layers: w: unknown option 'dtyp'; did you mean 'dtype'"
    with pytest.raises(RecipeError, match=said):
        list(Context(Step("q")).each(own, views.values()))


# ------------------------------------------------------------------------------- bits by table


@pytest.mark.parametrize("name", ["table.yaml", "table.json"])
def test_a_table_of_bits_becomes_part_of_the_recipe(views, tmp_path, name: str) -> None:
    text = '{"w": 4, "v": "uint8"}' if name.endswith("json") else "w: 4\nv: uint8\n"
    (tmp_path / name).write_text(text)
    given = {"bits_table": str(tmp_path / name), "layers": {"MatMul": {"clip": "mse"}, "w": SKIP}}
    own = build(QuantizeWeights, given, "q")
    made = {view.name: options for view, options in Context(Step("q")).each(own, views.values())}
    assert (made["w"].dtype, made["w"].clip) == ("int4", "mse")  # the table's row, and the type's
    assert (made["v"].dtype, made["v"].clip) == ("uint8", own.clip)
    (tmp_path / name).unlink()
    assert build(QuantizeWeights, dump(own), "q") == own  # without the file


def test_bits_of_one_layer_go_before_the_type_of_the_step(views) -> None:
    layers = {"w*": {"bits": 8}, "Gemm": {"dtype": "uint2"}, "v": {"bits": 4}}
    own = QuantizeWeights(dtype="uint4", symmetric=False, weights=Select(layers=layers))
    made = {view.name: options for view, options in Context(Step("q")).each(own, views.values())}
    assert (made["w"].dtype, made["v"].dtype) == ("int8", "int4")
    assert not made["w"].symmetric


def test_rows_of_a_table(views, tmp_path) -> None:
    path = tmp_path / "table.yaml"
    path.write_text("w: skip\nv: {dtype: int4, block_size: 16}\n")
    select = Select(bits_table=str(path))
    assert select.layers == {"w": SKIP, "v": {"dtype": "int4", "block_size": 16}}
    assert select.why_not(views["w"]) == "kept as asked"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("u: 4", "no weight matches 'u'"),
        ("w: 3", "layers: w: option 'dtype' takes one of int8, .*, not 3"),
        ("w: int5", "layers: w: option 'dtype' takes one of int8, .*, not 'int5'"),
        ("[w, v]", "bits_table .*: takes names of weights"),
        ("4", "bits_table .*: takes names of weights"),
        ("", "bits_table .*: takes names of weights"),
        ("w: 4\nx: y: z", "bits_table .*: not YAML"),
        ("w: 4.5", "layers: 'w' takes 'skip' or options"),
        ("w: true", "layers: 'w' takes 'skip' or options"),
        ("4: 4", "layers: takes names and patterns, not 4"),
        ("w: {bits: 4, dtype: int8}", "layers: w: option 'dtype' is given twice"),
        (b"\xff\xfe\x00\xd8", "bits_table .*: cannot be read"),
        (None, "bits_table .*: cannot be read: .*No such file"),
    ],
)
def test_tables_that_do_not_fit(views, tmp_path, text, said: str) -> None:
    path = tmp_path / "table.yaml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())

    def use() -> None:
        own = QuantizeWeights(weights=Select(bits_table=str(path)))
        list(Context(Step("q")).each(own, views.values()))

    with pytest.raises(RecipeError, match=f"(?s){said}"):
        use()


# ------------------------------------------------------------------------ lists of other tools


def test_operator_types_that_a_model_lacks_are_no_errors(views) -> None:
    """ONNX Runtime's lists name whatever it can quantize."""
    types = ("MatMul", "Attention", "Transpose", "EmbedLayerNormalization", "Conv", "QLinearConv")
    own = build(QuantizeWeights, {"op_types_to_quantize": types}, "q")
    assert list(Context(Step("q")).each(own, views.values()))
    wrong = build(QuantizeWeights, {"op_types_to_quantize": ("MatMul", "Covn")}, "q")
    with pytest.raises(RecipeError, match="no weight matches 'Covn'"):
        list(Context(Step("q")).each(wrong, views.values()))


def test_types_and_nodes_given_together_intersect(views) -> None:
    def chosen(**given) -> set[str]:
        own = build(QuantizeWeights, given, "q")
        return {view.name for view, _ in Context(Step("q")).each(own, views.values())}

    types = {view.name: view.op_type for view in views.values()}
    both = chosen(op_types_to_quantize=[types["w"]], nodes_to_quantize=["w", "v"])
    assert both == {name for name in ("w", "v") if types[name] == types["w"]}
    assert chosen(nodes_to_quantize=["w", "v"]) == {"w", "v"}
    assert build(QuantizeWeights, {"nodes_to_quantize": ["w"]}, "q") == QuantizeWeights(
        weights=Select(only=("w",), min_size=64)
    )
