"""What a node does, in one word: of every row that carries values, picks or branches."""

import onnx_ir as ir
import pytest

from onnxshrink.graph import operators


def node(op_type: str, domain: str = "", inputs: int = 2) -> ir.Node:
    return ir.Node(domain, op_type, [ir.Value(name=f"v{i}") for i in range(inputs)])


@pytest.mark.parametrize(
    ("op_types", "how"),
    [
        (("Cast", "Identity", "Clip", "Max", "Min", "Add", "Sub", "Mul"), "columns"),
        (("Concat", "Expand", "Pad", "Reshape", "Slice", "Tile", "Transpose", "Where"), "values"),
        (("Div", "Relu", "MatMul", "Softmax", "Gather"), ""),
    ],
)
def test_values_are_carried(op_types: tuple[str, ...], how: str) -> None:
    assert {operators.carries(node(each)) for each in op_types} == {how}


def test_numbers_pick_from_tables() -> None:
    assert operators.picks(node("Gather"), 1) == (0, False)
    assert operators.picks(node("Gather"), 0) is None
    assert operators.picks(node("GatherND"), 1) == (0, True)
    words = node("EmbedLayerNormalization", "com.microsoft", 7)
    assert [operators.picks(words, i) for i in (0, 1, 2)] == [(2, False), (4, False), None]


def test_codes_become_numbers_in_their_places() -> None:
    kept = [
        ("", "DequantizeLinear"), ("com.microsoft", "DequantizeLinear"),
        ("", "QuantizeLinear"), ("com.microsoft", "GatherBlockQuantized"), ("", "MatMulInteger"),
    ]  # fmt: skip
    found = [operators.dequantizes(node(name, domain, 3)) for domain, name in kept]
    assert found == [True, True, False, False, False]
    assert not operators.dequantizes(None)


def test_one_of_the_graphs_inside_runs_once() -> None:
    known = ("If", "Loop", "Scan", "SequenceMap", "Add")
    assert [each for each in known if operators.branches(node(each))] == ["If"]
    assert [each for each in ("Add", "Sub", "Mul", "Where") if operators.adds(node(each))] == [
        "Add"
    ]
