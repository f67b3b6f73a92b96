"""Constants belong to the operand that they make: one weight with all that it is stored as."""

from onnx import parser
from spellings import NETS

from onnxshrink.graph.analysis import operands
from onnxshrink.graph.file.model import Model

HEADER = '<ir_version: 8, opset_import: ["": 17]>'


def found(body: str, *, inputs: str = "float[n, 2] x", outputs: str = "y") -> list:
    text = f"{HEADER} g ({inputs}) => (float[n, 3] {outputs}) {body}"
    return operands.find(Model.from_proto(parser.parse_model(text)))


def test_codes_and_scales_are_one_operand_of_the_product() -> None:
    (weight,) = found(
        """<int8[3, 2] q = {1, 2, 3, 4, 5, 6}, float[1] s = {0.5}> {
        c = Cast <to = 1> (q)  w = Mul (c, s)  t = Transpose (w)  y = MatMul (x, t) }"""
    )
    assert (weight.name, weight.op_type, weight.index) == ("w", "MatMul", 1)
    assert [(part.value.name, part.path) for part in weight.parts] == [
        ("q", ("Cast", "Mul")), ("s", ("Mul",)),
    ]  # fmt: skip
    assert weight.nbytes == 6 + 4
    assert weight.main.size == 6
    assert weight.is_weight


def test_a_constant_of_many_operators_belongs_to_the_product() -> None:
    (shared,) = found(
        """<float[2, 2] w = {1, 2, 3, 4}, float[n, 2] y2> {
        a = Add (x, w)  b = MatMul (a, w)  y = Concat <axis = 1> (b, w) }"""
    )
    assert (shared.op_type, shared.index) == ("MatMul", 1)
    assert {node.op_type for node in shared.nodes} == {"Add", "MatMul", "Concat"}


def test_what_is_no_weight() -> None:
    rows = {
        operand.name: operand
        for operand in found(
            """<int64[2] k = {-1, 3}, float one = {1.0}, float[3] unused = {1, 2, 3},
                float[2, 3] w = {1, 2, 3, 4, 5, 6}> {
            m = MatMul (x, w)  p = Mul (m, one)  y = Reshape (p, k) }"""
        )
    }
    assert [name for name, row in rows.items() if row.is_weight] == ["w", "unused"]
    assert rows["unused"].op_type == "(unused)"
    assert rows["k"].op_type == "Reshape"
    assert list(rows) == ["w", "k", "unused", "one"]  # the largest first


def test_scales_that_are_looked_up_like_their_codes_are_no_weight() -> None:
    rows = found(
        """<int8[4, 3] q = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, float[4, 1] s = {1, 2, 3, 4}> {
        c = Gather (q, i)  f = Cast <to = 1> (c)  r = Gather (s, i)  y = Mul (f, r) }""",
        inputs="int64[n] i",
    )
    assert {row.name: row.is_weight for row in rows} == {"q": True, "s": False}


def test_every_constant_of_every_spelling_belongs_to_one_operand() -> None:
    for net in NETS.values():
        for proto in net().spellings.values():
            model = Model.from_proto(proto)
            parts = [part.value for row in operands.find(model) for part in row.parts]
            assert len(parts) == len(set(parts))
            assert set(parts) == {value for value, _ in operands.constants(model)}
