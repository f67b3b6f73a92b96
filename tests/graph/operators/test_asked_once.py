"""What an operator is stands in the table: nobody else asks for its type to find that out."""

import ast
from collections.abc import Iterator
from pathlib import Path

import onnxshrink

PACKAGE = Path(onnxshrink.__file__).parent

#: Who may compare the type of an operator, or look something up by it, and why.
MAY_ASK = {
    "graph/operators": "they are the table, and the views beside it",
    "graph/file": "lies below the table, and compares the nodes of two files",
    "graph/read.py": "lies below the table: what a Constant is",
    "graph/analysis/folding.py": "a rule for each operator: how much it may make of a little",
    "graph/analysis/macs.py": "a rule for each operator: what it multiplies",
    "graph/analysis/pointwise.py": "a rule for each operator: what it computes",
    "graph/analysis/shapes.py": "a rule for each operator: the shapes that it makes",
    "graph/analysis/shape_rules.py": "a rule for each operator that only ONNX Runtime knows",
    "graph/gradients": "a rule for each operator: its derivative",
    "channels/labels.py": "a rule for each operator: how it carries labels",
    "channels/rules": "the same: these are the rules",
    "graph/forms/codes.py": "a reader for each form that a weight is stored in",
    "graph/forms/coded_read.py": "an interpreter of the nodes that this package writes",
    "graph/forms/integer_codes.py": "which kernels ONNX Runtime has, and their zero points",
    "graph/forms/integer_kernels.py": "which kernels ONNX Runtime has",
    "graph/rewrite/ml.py": "a rule for each operator of ai.onnx.ml: what it is in others",
    "graph/rewrite/trees.py": "the same, for trees",
    "graph/rewrite/restore.py": "compares a node with what it was",
    "graph/inspect": "counts by type, for people",
    "passes/to_float16.py": "finds the types that ONNX Runtime names in its errors",
    "select.py": "users name types in patterns",
}
_LOOKS_UP = {"get", "startswith", "endswith", "removeprefix"}


def asks(tree: ast.AST) -> Iterator[int]:
    """Lines that compare the type of an operator, or look something up by it."""
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        if "op_type" not in (getattr(node, "attr", ""), getattr(node, "id", "")):
            continue
        child, parent = node, parents[node]
        while isinstance(parent, ast.Tuple | ast.Set | ast.List | ast.BinOp):
            child, parent = parent, parents[parent]
        picks = isinstance(parent, ast.Subscript) and parent.slice is child
        by = parent  # a method: of the type, or one that takes it
        if isinstance(parent, ast.Call) and child in parent.args[:1]:
            by = parent.func
        looks_up = isinstance(by, ast.Attribute) and by.attr in _LOOKS_UP
        if isinstance(parent, ast.Compare) or picks or looks_up:
            yield parent.lineno


def test_every_way_to_ask_is_seen() -> None:
    for way in (
        "node.op_type == 'Conv'", "node.op_type in KINDS", "KINDS[node.op_type]",
        "KINDS.get(node.op_type)", "KINDS.get((node.domain, node.op_type), 1)",
        "(node.domain, node.op_type) == key", "node.op_type.startswith('Q')", "op_type == 'Conv'",
    ):  # fmt: skip
        assert list(asks(ast.parse(way))) == [1], way
    for other in ("f'{node.op_type} is'", "make(node.op_type)", "[node.op_type]", "x.op_type = 1"):
        assert list(asks(ast.parse(other))) == [], other


def test_nobody_else_asks_what_an_operator_is() -> None:
    found: dict[str, str] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        name = file.relative_to(PACKAGE).as_posix()
        room = next((room for room in MAY_ASK if name == room or name.startswith(f"{room}/")), name)
        for line in asks(ast.parse(file.read_text())):
            found.setdefault(room, f"{name}:{line}")
    assert {room: place for room, place in found.items() if room not in MAY_ASK} == {}
    assert set(MAY_ASK) == set(found)  # who asks no more leaves the list
