"""One operator as a rule sees it: its operands, its results, and the gradients of the results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from onnxshrink.graph import read
from onnxshrink.graph.gradients.terms import Tape, Term
from onnxshrink.graph.read import Unknown


@dataclass(frozen=True, eq=False)
class Application:
    """See the module.

    Attributes:
        node: The operator.
        tape: Where formulas are recorded.
        inputs: Its operands; None for those that are left out.
        outputs: Its results.
        gradients: The gradient of each result; None where nothing depends on it.
    """

    node: ir.Node
    tape: Tape
    inputs: tuple[Term | None, ...]
    outputs: tuple[Term | None, ...]
    gradients: tuple[Term | None, ...] = ()

    @classmethod
    def of(cls, node: ir.Node, tape: Tape) -> Application:
        """A node of the graph, whose results have no gradients yet."""
        sides = (
            tuple(None if value is None else tape.of(value) for value in side)
            for side in (node.inputs, node.outputs)
        )
        return cls(node, tape, *sides)

    def reached(self, gradients: Sequence[Term | None]) -> Application:
        """The same with the gradients of its results."""
        return replace(self, gradients=tuple(gradients))

    # ------------------------------------------------------------------- operands, results

    def operand(self, index: int) -> Term | None:
        """An operand; None where it is left out, also at the end."""
        return self.inputs[index] if index < len(self.inputs) else None

    def __getitem__(self, index: int) -> Term:
        """An operand that the operator always has."""
        found = self.operand(index)
        if found is None:
            raise Unknown(f"its input {index} is missing")
        return found

    @property
    def x(self) -> Term:
        """The first operand."""
        return self[0]

    @property
    def y(self) -> Term:
        """The first result."""
        found = self.outputs[0]
        if found is None:
            raise Unknown("its first output is left out")
        return found

    @property
    def dy(self) -> Term:
        """The gradient of the first result."""
        if self.gradients[0] is None:
            raise Unknown("only its first output is differentiated")
        return self.gradients[0]

    def again(
        self, *operands: Term | None, dtypes: Sequence[ir.DataType | None] = (None,)
    ) -> list[Term]:
        """The same operator on other operands, in place of its first ones.

        Args:
            operands: The operands.
            dtypes: The type of each output that is wanted; None: of the first operand's.
        """
        rest = self.inputs[len(operands) :]
        return self.tape.several(
            self.node.op_type, *operands, *rest, dtypes=dtypes, domain=self.node.domain,
            **self.node.attributes,
        )  # fmt: skip

    # -------------------------------------------------------------------------- attributes

    def integer(self, name: str, default: int) -> int:
        """An attribute; see :func:`onnxshrink.graph.read.integer`."""
        return read.integer(self.node, name, default)

    def integers(self, name: str, default: Sequence[int]) -> list[int]:
        """An attribute, or what it is where it is left out."""
        found = read.integers(self.node, name)
        return list(default if found is None else found)

    def number(self, name: str, default: float) -> float:
        """An attribute; see :func:`onnxshrink.graph.read.number`."""
        return read.number(self.node, name, default)

    def text(self, name: str, default: str) -> str:
        """An attribute; see :func:`onnxshrink.graph.read.text`."""
        return read.text(self.node, name, default)

    def axis(self, default: int, of: Term | None = None) -> int:
        """The attribute ``axis``, counted from the front of the first operand or another term."""
        return self.integer("axis", default) % (self.x if of is None else of).rank


#: The gradient of each operand, in their order: None for one that has none; those at the end may
#: be left out. Whatever is recorded for a gradient that nobody asks for is dropped again.
Gradients = Sequence[Term | None]
Rule = Callable[[Application], Gradients]
