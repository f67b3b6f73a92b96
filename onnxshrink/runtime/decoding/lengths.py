"""Lengths of axes as terms: numbers, symbols, and sums, differences and products of them."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping

#: The axes of an input, each a number or a term.
Lengths = tuple[int | str, ...]

_OPERATORS: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}


def value_of(term: int | str, known: Mapping[str, int]) -> int | None:
    """What a term is when some symbols are known; None where one is not.

    ``s69 + s70``, ``2*s0`` and ``past_length + 1`` are terms; so is any name.
    """
    if isinstance(term, int):
        return term
    if term in known:
        return known[term]
    try:
        return _value(ast.parse(term, mode="eval").body, known)
    except (SyntaxError, KeyError, ValueError, ZeroDivisionError, RecursionError):
        return None


def _value(node: ast.expr, known: Mapping[str, int]) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.Name):
        return known[node.id]
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _value(node.left, known), _value(node.right, known)
        return _OPERATORS[type(node.op)](left, right)
    raise ValueError(f"no term: {ast.dump(node)}")


def evaluated(lengths: Lengths, known: Mapping[str, int]) -> tuple[int, ...]:
    """The shape that terms make; what is not known has length 1."""
    found = (value_of(term, known) for term in lengths)
    return tuple(1 if length is None else max(length, 0) for length in found)


def solved(lengths: Mapping[str, Lengths], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The symbols that shapes of some inputs tell.

    Args:
        lengths: The terms of each input.
        shapes: The shapes of some of them.
    """
    known: dict[str, int] = {}
    for name, shape in shapes.items():
        for term, length in zip(lengths.get(name, ()), shape, strict=False):
            if isinstance(term, str):
                known.setdefault(term, length)
    return known
