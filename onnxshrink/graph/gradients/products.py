"""Products of matrices, sums over windows, and sums of products in letters."""

from __future__ import annotations

from collections.abc import Mapping

from onnxshrink.graph.analysis.shape_rules import static
from onnxshrink.graph.gradients.application import Application, Gradients, Rule
from onnxshrink.graph.gradients.terms import Term
from onnxshrink.graph.gradients.windows import Windows
from onnxshrink.graph.operators.rows import (
    letters,
)
from onnxshrink.graph.read import Unknown

# -------------------------------------------------------------------------------- matrices


def _matmul(op: Application) -> Gradients:
    a, b, g = op[0], op[1], op.dy
    if a.rank == 1:  # a row
        a, g = a.unsqueeze([0]), g.unsqueeze([g.rank if b.rank == 1 else g.rank - 1])
    if b.rank == 1:  # a column
        b, g = b.unsqueeze([1]), g.unsqueeze([g.rank])
    da = (g @ b.T).fit(a)
    db = rows(a, b.size(-2)).T @ rows(g, b.size(-1)) if b.rank == 2 else (a.T @ g).fit(b)
    return [da.as_shaped(op[0]), db.as_shaped(op[1])]


def rows(term: Term, width: Term) -> Term:
    """All that lies before the last axis as one axis."""
    if term.rank == 2:
        return term
    last = None if term.shape is None else term.shape[-1]
    return term.reshape(term.tape.joined([term.tape.integers([-1]), width])).shaped((None, last))


def _gemm(op: Application) -> Gradients:
    a, b, c = op[0], op[1], op.operand(2)
    left, right = op.integer("transA", 0), op.integer("transB", 0)
    g = op.dy * op.number("alpha", 1.0)
    da, db = g @ (b if right else b.T), (a if left else a.T) @ g
    dc = None if c is None else (op.dy * op.number("beta", 1.0)).fit(c)
    return [da.T if left else da, db.T if right else db, dc]


# --------------------------------------------------------------------------------- windows


def _channel_sums(g: Term) -> Term:
    return g.sum([0, *range(2, g.rank)], keep=False)


def _kernel_size(w: Term) -> tuple[int, ...]:
    size = static(w.shape)
    if size is None:
        raise Unknown("the size of its kernel is not known")
    return size


def _conv(op: Application) -> Gradients:
    x, w, g = op[0], op[1], op.dy.with_axes(op.x.rank)
    size, windows = _kernel_size(w), Windows.of(op, w.sizes[2:], x, op.y)
    if max(size[2:]) == windows.groups == 1 and not windows.padded:  # a matrix, at every place
        dw = (g.reshape([0, 0, -1]) @ x.reshape([0, 0, -1]).transpose((0, 2, 1))).sum([0])
    else:
        dw = windows.kernel(windows.covered(x), g, size)
    return [windows.spread(g, w), dw.as_shaped(w), _channel_sums(g)]


def _conv_transpose(op: Application) -> Gradients:
    x, w, g = op[0], op[1], op.dy.with_axes(op.x.rank)
    size, windows = _kernel_size(w), Windows.of(op, w.sizes[2:], g, x)
    covered = windows.covered(g)
    return [windows.gather(covered, w), windows.kernel(covered, x, size), _channel_sums(g)]


# --------------------------------------------------------------------------------- letters


def _einsum(op: Application) -> Gradients:
    found = letters(op.node)
    if found is None:
        raise Unknown("its equation does not name its result")
    terms, right = found
    if "." in "".join((*terms, right)) or any(len(set(term)) < len(term) for term in terms):
        raise Unknown("its equation has axes without a letter, or the same letter twice in one")
    operands = [op[index] for index in range(len(terms))]
    made = []
    for index, term in enumerate(terms):
        others = [other for at, other in enumerate(operands) if at != index]
        known = [other for at, other in enumerate(terms) if at != index]
        if set(term) - set("".join((*known, right))):  # a letter that is summed over in it alone
            others.append(operands[index].zeros() + 1)
            known.append(term)
        equation = ",".join((right, *known)) + "->" + term
        made.append(op.tape.node("Einsum", op.dy, *others, equation=equation))
    return made


RULES: Mapping[tuple[str, str], Rule] = {
    ("", "Conv"): _conv,
    ("", "ConvTranspose"): _conv_transpose,
    ("", "Einsum"): _einsum,
    ("", "Gemm"): _gemm,
    ("", "MatMul"): _matmul,
}
