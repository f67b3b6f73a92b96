"""What ``inspect`` says of its findings: sums, shares and the rest of a long table."""

import json
import math
from dataclasses import replace

import pytest

from onnxshrink.graph.inspect.findings import (
    FORMS,
    Inspection,
    NodeMacs,
    OperatorTotals,
    Weight,
    by,
    compare_models,
    count,
    weight_table,
)
from onnxshrink.kernels.distribution import Distribution
from onnxshrink.report import Table

VALUES = Distribution(
    minimum=-1.5, maximum=2.0, mean=0.25, std=0.5, zeros=0.125, unique=7, not_finite=3
)  # fmt: skip


def weights(number: int) -> tuple[Weight, ...]:
    return tuple(
        Weight(f"w{i}", "MatMul", (f"n{i}",), (4, 10 - i), "float32", 40 - 4 * i, 160 - 16 * i)
        for i in range(number)
    )


def inspection(name: str = "a/model.onnx", *, number: int = 3) -> Inspection:
    found = weights(number)
    stored = sum(weight.nbytes for weight in found)
    operators = (OperatorTotals("MatMul", number, stored, 3000, 1), OperatorTotals("Relu", 2, 0, 0))
    nodes = (NodeMacs("n0", "MatMul", 2000), NodeMacs("n1", "MatMul", None),
             NodeMacs("n2", "MatMul", 1000))  # fmt: skip
    return Inspection(
        name, stored + 100, stored + 20, 17, {"x": "[N,4]"}, operators, found, nodes, ("assumed",)
    )


def rows(tables: list[Table], name: str) -> list[tuple[str, ...]]:
    (table,) = [table for table in tables if table.title == name]
    return [tuple(map(str, row)) for row in table.rows]


def test_figures_add_up() -> None:
    found = inspection()
    assert (found.parameters, found.nodes, found.macs, found.unknown_macs) == (108, 5, 3000, 1)
    mixed = replace(
        found, weights=(*found.weights, replace(found.weights[0], dtype="int8", nbytes=1000))
    )
    assert list(mixed.by_dtype.items()) == [("int8", (40, 1000)), ("float32", (108, 432))]


def test_the_rest_of_a_long_table_is_one_row() -> None:
    tables = inspection().tables(rows=1)
    assert [row[0] for row in rows(tables, "weights")] == ["w0", "2 more"]
    assert rows(tables, "weights")[1][4] == "272 B"
    nodes = rows(tables, "MACs by node")  # what is unknown is the first to be seen
    assert nodes[0][:3] == ("n1", "MatMul", "unknown")
    assert nodes[1] == ("2 more", "", "3.0 k", "100.0%")
    whole = inspection().tables(rows=3)
    assert [row[0] for row in rows(whole, "weights")] == ["w0", "w1", "w2"]
    assert ("graph and other constants", "100 B") in rows(whole, "model")
    assert rows(whole, "operators")[-1][0] == "total"
    assert not [table for table in whole if table.title in ("values", "estimated bytes")]


def test_a_form_that_a_weight_cannot_take_leaves_it_as_it_is() -> None:
    first, *others = weights(3)
    known = replace(first, values=VALUES, estimates={FORMS[0]: 80})
    tables = replace(inspection(), weights=(known, *others)).tables(rows=1)
    estimated = rows(tables, "estimated bytes")
    assert estimated[0] == ("w0", "160 B", "80 B", "160 B", "160 B", "160 B")
    assert estimated[-1] == ("total", "432 B", "352 B", "432 B", "432 B", "432 B")
    assert rows(tables, "values") == [("w0", "-1.5", "2", "0.25", "0.5", "12.5%", "7", "-")]


def test_one_weight_in_full() -> None:
    weight = replace(
        weights(1)[0], values=VALUES, entropy_bits=2.5, estimates={"float16": 80}, form="Cast, Mul",
        left_alone="kept as asked", nodes=(),
    )  # fmt: skip
    table = dict(weight_table(weight).rows)
    assert table["used by"] == "-"
    assert table["shape"] == "4 x 10"
    assert table["stored as"] == "float32, rebuilt by Cast, Mul"
    assert table["left alone because"] == "kept as asked"
    assert table["bits of entropy"] == "2.50"
    assert str(table["NaN or infinite"]) == "3"
    assert table["as float16"].startswith("80 B (2")


def test_models_side_by_side() -> None:
    first, second = inspection("runs/a/m.onnx"), inspection("runs/b/m.onnx", number=1)
    half = replace(
        second, operators=(OperatorTotals("Gemm", 1, 160, 1500),), weights=second.weights, notes=()
    )
    tables = compare_models([first, half])
    assert next(t for t in tables if t.title == "models").columns == (
        "what", "a/m.onnx", "b/m.onnx", "ratio",
    )  # fmt: skip
    macs = next(row for row in rows(tables, "models") if row[0] == "MACs")
    assert macs[1:] == ("3.0 k + 1 unknown", "1.5 k", "unknown")
    kinds = {row[0]: row for row in rows(tables, "operators")}
    assert list(kinds) == ["MatMul", "Gemm", "Relu", "total"]
    assert kinds["Gemm"][1:3] == ("-", "1")
    same = compare_models([first, first])
    assert next(t for t in same if t.title == "models").columns[1:3] == (
        "runs/a/m.onnx (1)", "runs/a/m.onnx (2)",
    )  # fmt: skip


def test_it_is_json_even_where_a_figure_is_not_a_number() -> None:
    weight = replace(weights(1)[0], values=replace(VALUES, mean=math.nan))
    plain = replace(inspection(), weights=(weight,)).to_dict()
    assert plain["weights"][0]["values"]["mean"] is None
    assert plain["weights"][0]["values"]["std"] == 0.5
    assert json.loads(json.dumps(plain, allow_nan=False))["macs"] == 3000


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "0"), (999, "999"), (1000, "1.0 k"), (17.44e6, "17.4 M"), (3e9, "3.0 G"),
     (5e12, "5.00 T")],
)  # fmt: skip
def test_large_numbers(number: float, said: str) -> None:
    assert count(number) == said


def test_shapes() -> None:
    assert (by((64, 3, 7)), by(())) == ("64 x 3 x 7", "scalar")
