"""What makes an output, what reads it inside the model, and which input it becomes."""

import pytest
from onnx import parser

from onnxshrink.graph.analysis.tails import tails
from onnxshrink.graph.file.model import Model
from onnxshrink.kernels.kinds import Tail

HEADER = '<ir_version: 8, opset_import: ["": 17]>'


def found(text: str) -> dict[str, Tail]:
    return tails(Model.from_proto(parser.parse_model(f"{HEADER} g {text}")))


def test_moves_are_seen_through_and_what_reads_on_the_way_is_told() -> None:
    (tail,) = found(
        """(float[2, 4] x) => (float[8] y) {
        s = Softmax (x)  t = Transpose (s)  f = Flatten <axis = 0> (t)
        i = ArgMax (t)  k = Constant <value = int64[1] {8}> ()  y = Reshape (f, k) }"""
    ).values()
    assert (tail.last, tail.read_by, tail.fed_back) == ("Softmax", {"ArgMax"}, "")


@pytest.mark.parametrize("body", ["y = Concat <axis = 0> (r, r)", "y, z = Split (r)"])
def test_joining_and_parting_are_operators_of_their_own(body: str) -> None:
    kept = found(f"(float[4] x) => (float[n] y) {{ r = Relu (x)  {body} }}")
    assert kept["y"].last == ("Concat" if "Concat" in body else "Split")


def test_an_output_that_is_an_input_has_no_operator() -> None:
    assert found("(float[4] x) => (float[4] y) { y = Identity (x) }")["y"].last == ""


@pytest.mark.parametrize(
    ("before", "after", "back"),
    [
        ("float[n, 8] h", "float[n, 8] h_out", "h"),
        ("float[n, 8] past_key", "float[m, 8] present_key", "past_key"),
        ("float[1, 8] state", "float[1, 8] stateN", "state"),
        ("float[n, 8] h", "float[8] h_out", ""),  # another rank
        ("float[n, 8] h", "float[n, 9] h_out", ""),  # another width
        ("float16[n, 8] h", "float[n, 8] h_out", ""),  # another type
        ("float[n, 8] h", "float[n, 8] other", ""),
    ],
)
def test_a_state_comes_back_as_the_input_that_it_fits(before: str, after: str, back: str) -> None:
    name, source = after.split()[-1], before.split()[-1]
    text = f"({before}) => ({after}, y) {{ {name} = Relu ({source})  y = Neg ({source}) }}"
    assert found(text)[name].fed_back == back


@pytest.mark.parametrize(
    ("body", "normed"),
    [
        ("y = Identity (n)", 4),
        ("s = Mul (n, m)  t = ReduceSum (s, k)  c = ReduceSum (m, k)  y = Div (t, c)", 4),
        ("y = MatMul (n, w)", 0),  # scores may come of that
    ],
)
def test_rows_out_of_a_norm_are_told_also_in_the_mean(body: str, normed: int) -> None:
    tail = found(
        f"""(float[b, 3, 4] x, float[b, 3, 1] m) => (float[b, n] y)
        <float[4] g = {{1, 1, 1, 1}}, int64[1] k = {{1}}, float[4, 4] w = {{
            1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1 }}> {{
        n = LayerNormalization (x, g)  {body} }}"""
    )["y"]
    assert tail.normed == normed
