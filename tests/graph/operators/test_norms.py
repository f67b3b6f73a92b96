"""Gains and shifts of every norm of the table, wherever its inputs are."""

import onnx_ir as ir
import pytest

from onnxshrink.graph import operators
from onnxshrink.graph.operators import TABLE, Norm, QuantizedRow


def node_of(domain: str, op_type: str, **attributes: int) -> ir.Node:
    inputs = [ir.Value(name=str(number)) for number in range(9)]
    return ir.Node(domain, op_type, inputs, ir.convenience.convert_attributes(attributes))


@pytest.mark.parametrize("key", [key for key, row in TABLE.items() if isinstance(row, Norm)])
def test_norms(key: tuple[str, str]) -> None:
    row = TABLE[key]
    assert isinstance(row, Norm)
    found = operators.gains(node_of(*key))
    assert found is not None
    assert found.norm is row
    assert found.value is not None
    assert found.value.name == str(row.gain)
    assert (found.shift is None) == (row.shift is None)
    taken = [row.gain, row.shift, *row.sums, *row.fixed]
    assert len(set(taken)) == len(taken)
    assert found.axis == (1 if "Batch" in key[1] or "Group" in key[1] or "Inst" in key[1] else -1)
    assert not found.over_several_axes


def test_a_norm_over_several_axes_says_so() -> None:
    found = operators.gains(node_of("", "LayerNormalization", axis=1))
    assert found is not None
    assert found.over_several_axes
    last = operators.gains(node_of("", "LayerNormalization", axis=-1))
    assert last is not None
    assert not last.over_several_axes


def test_other_gains() -> None:
    scaled = operators.gains(node_of("", "Mul"))
    assert scaled is not None
    assert scaled.either
    assert scaled.norm is None
    codes = operators.gains(node_of("com.microsoft", "DynamicQuantizeMatMul"))
    row = TABLE["com.microsoft", "DynamicQuantizeMatMul"]
    assert codes is not None
    assert isinstance(row, QuantizedRow)
    assert (codes.index, codes.shift_index) == (row.gain, row.shift)
    assert operators.gains(node_of("", "Add")) is None
    assert operators.gains(node_of("", "Div")) is None
    assert operators.gains(None) is None
