"""Which output becomes which input at the next run, and along which axis it grows."""

import onnx
import pytest
from onnx import helper, parser

from onnxshrink.graph.analysis.states import State, states
from onnxshrink.graph.file.model import Model

HEADER = '<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]>'
CACHE = "float[b, 2, past, 4]"


def found(text: str) -> tuple[State, ...]:
    return states(Model.from_proto(parser.parse_model(f"{HEADER} g {text}")))


@pytest.mark.parametrize(
    ("body", "axis"),
    [
        ("z = Concat <axis = 2> (c, x)", 2),
        ("z = Concat <axis = -2> (c, x)", 2),
        ("t = Identity (c)  z = Concat <axis = 2> (t, x)", 2),
        ("z = Where (m, c, x)", None),
        ("z = ScatterND (c, i, x)", None),
        ("z = ScatterElements <axis = 2> (c, j, x)", None),
    ],
)
def test_a_cache_is_known_by_what_makes_the_next_one(body: str, axis: int | None) -> None:
    """Names say nothing here."""
    inputs = f"{CACHE} c, float[b, 2, 1, 4] x, bool[1] m, int64[k, 4] i, int64[b, 2, 1, 4] j"
    text = f"({inputs}) => (float[b, 2, next, 4] z) {{ {body} }}"
    assert found(text) == (State("c", "z", axis),)


def test_what_is_new_does_not_come_first() -> None:
    """The values of the first operand go on: the last one is not a state."""
    text = f"({CACHE} c, {CACHE} x) => ({CACHE} z) {{ z = Concat <axis = 2> (x, c) }}"
    assert found(text) == (State("x", "z", 2),)


def test_both_branches_lead_back() -> None:
    text = f"""(bool f, {CACHE} c, float[b, 2, 1, 4] x) => (float[b, 2, next, 4] z) {{
        z = If (f) <then_branch = t () => (float[b, 2, n, 4] u) {{ u = Concat <axis = 2> (c, x) }},
                    else_branch = e () => (float[b, 2, n, 4] v) {{ v = Identity (x) }}> }}"""
    assert found(text) == (State("c", "z", 2),)


def test_a_recurrent_layer_hands_on_its_states() -> None:
    text = """(float[s, 1, 3] x, float[1, 1, 4] h, float[1, 1, 4] c)
        => (float[s, 1, 1, 4] y, float[1, 1, 4] p, float[1, 1, 4] q) {
        y, p, q = LSTM <hidden_size = 4> (x, w, r, , , h, c) }"""
    proto = parser.parse_model(f"{HEADER} g {text}")
    for name, shape in (("w", [1, 16, 3]), ("r", [1, 16, 4])):
        zeros = [0.0] * (shape[1] * shape[2])
        proto.graph.initializer.append(
            helper.make_tensor(name, onnx.TensorProto.FLOAT, shape, zeros)
        )
    assert states(Model.from_proto(proto)) == (State("h", "p"), State("c", "q"))


@pytest.mark.parametrize(
    ("operator", "inputs"),
    [
        ("com.microsoft.MultiHeadAttention <num_heads = 2>", "q, q, q, , , , k, v"),
        ("com.microsoft.GroupQueryAttention <num_heads = 2, kv_num_heads = 2>", "q, q, q, k, v, l"),
        ("Attention <q_num_heads = 2, kv_num_heads = 2>", "q, q, q, , k, v"),
    ],
)
def test_attention_appends_to_its_cache(operator: str, inputs: str) -> None:
    text = f"""(float[b, 1, 8] q, {CACHE} k, {CACHE} v, int32[b] l)
        => (float[b, 1, 8] y, float[b, 2, next, 4] n, float[b, 2, next, 4] m) {{
        y, n, m = {operator} ({inputs}) }}"""
    assert found(text) == (State("k", "n", 2), State("v", "m", 2))


def test_a_window_does_not_grow() -> None:
    text = """(float[1, 2, 5, 4] c, float[1, 2, 1, 4] x) => (float[1, 2, 5, 4] z) {
        all = Concat <axis = 2> (c, x)  a = Constant <value = int64[1] {1}> ()
        b = Constant <value = int64[1] {6}> ()  d = Constant <value = int64[1] {2}> ()
        z = Slice (all, a, b, d) }"""
    assert found(text) == (State("c", "z", None),)


@pytest.mark.parametrize(
    ("source", "output", "state"),
    [("hidden", "hidden_out", True), ("h", "new_h", True), ("a", "b", False), ("a", "a_out", True)],
)
def test_names_decide_where_the_graph_computes(source: str, output: str, state: bool) -> None:
    text = f"(float[2, 4] {source}) => (float[2, 4] {output}) {{ {output} = Tanh ({source}) }}"
    assert found(text) == ((State(source, output),) if state else ())


def test_an_output_of_another_type_is_no_state() -> None:
    text = "(float[2, 4] h) => (int32[2, 4] h_out) { h_out = Cast <to = 6> (h) }"
    assert found(text) == ()
