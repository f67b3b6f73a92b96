"""Products of matrices, sums over windows, and sums of products in letters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnxshrink.graph.gradients.application import Application, Gradients, Rule
from onnxshrink.graph.gradients.terms import Term
from onnxshrink.graph.operators.table import letters
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


#: Attributes by which windows may cover more than there is, or less.
_OTHER_SIZES = {"output_shape", "output_padding", "ceil_mode"}


@dataclass(frozen=True)
class Windows:
    """How the windows of a kernel lie on values.

    Padded by ``before`` and ``after`` (which may be negative) the windows cover the values exactly:
    from the first one's first place to the last one's last. So all sums over windows and their
    gradients need no paddings of their own, and sizes may be open.

    Attributes:
        strides: From window to window, along each axis of places.
        dilations: From place to place within one.
        groups: Groups of channels, each with a kernel of its own.
        before: Places that are missing in front, along all axes.
        after: Places that are missing behind.
        padded: Whether any may be missing.
    """

    strides: Sequence[int]
    dilations: Sequence[int]
    groups: int
    before: Term
    after: Term
    padded: bool

    @classmethod
    def of(cls, op: Application, kernel: Term, large: Term, small: Term) -> Windows:
        """The windows of a node.

        Args:
            op: The node.
            kernel: Sizes of a window along the axes of places.
            large: The values that windows lie on.
            small: Those of which there is one for each window.
        """
        places = large.rank - 2
        strides = op.integers("strides", [1] * places)
        dilations = op.integers("dilations", [1] * places)
        pads = op.integers("pads", [0] * 2 * places)
        rule, tape = op.text("auto_pad", "NOTSET") or "NOTSET", op.tape
        there, windows = large.sizes[2:], small.sizes[2:]
        covered = (windows - 1) * tape.integers(strides) + 1
        covered = covered + (kernel - 1) * tape.integers(dilations)
        before = tape.integers(pads[:places])
        if rule.startswith("SAME") or "output_shape" in op.node.attributes:
            more = op.integers("output_padding", [0] * places)
            total = (covered + tape.integers(more) - there).apply("Max", tape.integers([0]))
            before = total / 2 if rule == "SAME_UPPER" else total - total / 2
        elif rule == "VALID":
            before = tape.integers([0] * places)
        exact = rule in ("NOTSET", "VALID") and not any(pads) and all(s == 1 for s in strides)
        exact = exact and not _OTHER_SIZES & {*op.node.attributes}
        none = tape.integers([0, 0])
        after = tape.joined([none, covered - there - before])
        before = tape.joined([none, before])
        return cls(strides, dilations, op.integer("group", 1), before, after, not exact)

    def covered(self, large: Term, value: float = 0) -> Term:
        """The values, padded."""
        return large.pad(self.before, self.after, value) if self.padded else large

    def cut(self, covered: Term) -> Term:
        """What was padded, as it was."""
        return covered.pad(-self.before, -self.after) if self.padded else covered

    def gather(self, covered: Term, kernel: Term) -> Term:
        """Sums over windows."""
        return covered.tape.node(
            "Conv", covered, kernel, strides=self.strides, dilations=self.dilations,
            group=self.groups,
        )  # fmt: skip

    def spread(self, small: Term, kernel: Term) -> Term:
        """The transposed of that: each value is spread over its window, padded as it is."""
        return small.tape.node(
            "ConvTranspose", small, kernel, strides=self.strides, dilations=self.dilations,
            group=self.groups,
        )  # fmt: skip

    def kernel(self, covered: Term, small: Term) -> Term:
        """What each weight of the kernel multiplies, summed over all windows and all samples.

        It is a sum over windows itself: samples and channels change places, strides and dilations
        do, and there is a window for each place of the kernel.

        Args:
            covered: [samples, groups * inputs, places], padded.
            small: [samples, groups * outputs, windows].

        Returns:
            [groups * outputs, inputs, kernel].
        """
        tape, places = small.tape, range(2, small.rank)
        n, groups = tape.integers([-1]), self.groups
        turned = (1, 0, *places)
        if groups == 1:
            operand = covered.transpose(turned)
        else:
            size = covered.sizes
            split = covered.reshape(
                tape.joined([size[0:1], tape.integers([groups]), n, size[2:]])
            ).transpose((2, 1, 0, *(place + 1 for place in places)))
            inputs = size[1:2] / groups
            operand = split.reshape(tape.joined([inputs, n, size[2:]]))
        summed = tape.node(
            "Conv", operand, small.transpose(turned), strides=self.dilations,
            dilations=self.strides, group=groups,
        )  # fmt: skip
        return summed.transpose(turned)


def _channel_sums(g: Term) -> Term:
    return g.sum([0, *range(2, g.rank)], keep=False)


def _conv(op: Application) -> Gradients:
    x, w, g = op[0], op[1], op.dy.with_axes(op.x.rank)
    windows = Windows.of(op, w.sizes[2:], x, op.y)
    if _is_matrix(windows, w):
        dw = (g.reshape([0, 0, -1]) @ x.reshape([0, 0, -1]).transpose((0, 2, 1))).sum([0])
    else:
        dw = windows.kernel(windows.covered(x), g)
    dx = windows.cut(windows.spread(g, w))
    return [dx, dw.as_shaped(w), _channel_sums(g)]


def _is_matrix(windows: Windows, w: Term) -> bool:
    """Whether a kernel has one place, and so multiplies the channels with a matrix."""
    one = w.shape is not None and all(size == 1 for size in w.shape[2:])
    return one and windows.groups == 1 and not windows.padded


def _conv_transpose(op: Application) -> Gradients:
    x, w, g = op[0], op[1], op.dy.with_axes(op.x.rank)
    windows = Windows.of(op, w.sizes[2:], g, x)
    covered = windows.covered(g)
    return [windows.gather(covered, w), windows.kernel(covered, x), _channel_sums(g)]


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
