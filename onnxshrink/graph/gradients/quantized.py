"""Codes and their scales. What rounds lets gradients through as if it did not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxshrink.graph.gradients.application import Application, Gradients, Rule
from onnxshrink.graph.gradients.products import rows
from onnxshrink.graph.gradients.terms import Term
from onnxshrink.graph.read import Unknown

_CONTRIB = "com.microsoft"
_INSIDE = 0.501  # of a step: what is farther from its code than half of one was out of reach


def _fitted(op: Application, term: Term, scale: Term) -> Term:
    """Sums over all elements that have a scale in common."""
    if scale.rank == 0 or scale.shape == (1,):
        return term.sum(range(term.rank), keep=False).as_shaped(scale)
    axis, block = op.integer("axis", 1) % term.rank, op.integer("block_size", 0)
    if scale.rank == 1:
        return term.sum([at for at in range(term.rank) if at != axis], keep=False)
    return _blocks(term, scale, axis, block)


def _blocks(term: Term, scale: Term, axis: int, block: int) -> Term:
    """Sums over blocks along an axis, of which the last may be short."""
    tape = term.tape
    missing = scale.size(axis) * block - term.size(axis)
    before, behind = tape.integers([0] * axis), tape.integers([0] * (term.rank - axis - 1))
    none = tape.integers([0] * term.rank)
    full = term.pad(none, tape.joined([before, missing, behind]))
    sizes = scale.sizes
    split = tape.joined([sizes[: axis + 1], tape.integers([block]), sizes[axis + 1 :]])
    return full.reshape(split).sum([axis + 1], keep=False)


def _beside(op: Application, scale: Term) -> Term | None:
    """Scales as they stand beside the values; None where blocks share them."""
    if scale.rank == 0 or scale.shape == (1,):
        return scale
    if scale.rank > 1:
        return None
    axis = op.integer("axis", 1) % op.x.rank
    return scale.unsqueeze([at for at in range(op.x.rank) if at != axis])


def _dequantize(op: Application) -> Gradients:
    """With scales of 1 it makes what the scales are multiplied with.

    Codes have a gradient, too, for whatever they were rounded from.
    """
    scale = op[1]
    (steps,) = op.again(op.x, scale.zeros() + 1, dtypes=[op.y.dtype])
    beside = _beside(op, scale)
    codes = None if beside is None else op.dy * beside
    return [codes, _fitted(op, op.dy * steps.shaped(op.y.shape), scale)]


def _quantize(op: Application) -> Gradients:
    """As if it did not round (Bengio et al. 2013), and its scales as Esser et al. 2020 have it."""
    x, scale, zero = op.x, op[1], op.operand(2)
    beside = _beside(op, scale)
    if beside is None:
        raise Unknown("blocks of values share a scale")
    axis = {"axis": op.integer("axis", 1)} if scale.rank == 1 and scale.shape != (1,) else {}
    back = op.tape.node(
        "DequantizeLinear", op.y, scale, zero, domain=op.node.domain, dtype=x.dtype, **axis
    ).shaped(x.shape)
    inside = (x - back).apply("Abs").is_("LessOrEqual", beside * _INSIDE)
    dx = (op.dy / beside).where(inside)
    return [dx, _fitted(op, -dx * x / beside, scale)]


def _block_product(op: Application) -> Gradients:
    """A product with a matrix in blocks of codes: what it makes of the identity is the matrix."""
    x, scale, g, tape = op.x, op[2], op.dy, op.tape
    inputs, block = op.integer("K", 0), op.integer("block_size", 0)
    exact: dict[str, Any] = {
        name: value for name, value in op.node.attributes.items() if name != "accuracy_level"
    }
    identity = tape.constant(np.eye(inputs, dtype=x.dtype.numpy()))

    def matrix(scales: Term) -> Term:
        codes = (op[1], scales, *(op.operand(at) for at in (3, 4)))
        made = tape.node("MatMulNBits", identity, *codes, domain=op.node.domain, **exact)
        return made.shaped((inputs, op.integer("N", 0)))

    g_rows = rows(g, tape.integers([op.integer("N", 0)]))
    flow = rows(x, tape.integers([inputs])).T @ g_rows
    steps = (flow * matrix(scale.zeros() + 1)).T
    blocks = tape.integers([op.integer("N", 0), -(-inputs // block)])
    summed = _blocks(steps, scale.reshape(blocks).shaped((None, None)), 1, block)
    bias = g_rows.sum([0], keep=False)
    return [g @ matrix(scale).T, None, summed.as_shaped(scale), None, None, bias]


RULES: Mapping[tuple[str, str], Rule] = {
    **{(domain, "DequantizeLinear"): _dequantize for domain in ("", _CONTRIB)},
    **{(domain, "QuantizeLinear"): _quantize for domain in ("", _CONTRIB)},
    (_CONTRIB, "MatMulNBits"): _block_product,
}
