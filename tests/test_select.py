"""Options of a layer: its name goes before its operator type, and that before the step's own."""

import pytest
from hard_models import text, weight

from onnxshrink.errors import RecipeError
from onnxshrink.graph import weights
from onnxshrink.graph.model import Model
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
    select = Select(only=("w",), keep=("u",), layers={"Conv": SKIP})
    assert unmatched(select, views.values()) == ["u", "Conv"]


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
