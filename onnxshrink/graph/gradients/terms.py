"""Values of a graph, to be calculated with as in formulas: what is calculated becomes new nodes.

``g * (1 - y * y)`` of two terms records a Mul, a Sub and a Mul. Sizes may be open: what depends on
them is calculated in the graph, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxshrink.graph import read
from onnxshrink.graph.analysis.shape_rules import Shape, static
from onnxshrink.graph.analysis.shapes import walk
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.surgery import Recorder


class Tape:
    """The nodes that are recorded for one graph, in the order in which they run.

    Args:
        model: The model, whose journal is kept.
        scope: The graph that the nodes are for.
        shapes: What is known of the values that it has.
    """

    def __init__(self, model: Model, scope: ir.Graph, shapes: Mapping[ir.Value, Shape]):
        self.scope, self._model = scope, model
        self._recorder = Recorder(model, scope, prefix="gradient.", as_nodes=True)
        self._sizes: dict[ir.Value, Term] = {}
        self._vectors: dict[tuple[int, ...], Term] = {}
        self.shapes = dict(shapes)

    @classmethod
    def over(cls, model: Model) -> Tape:
        """For the main graph of a model, whose values get the types that follow."""
        found = walk(model, open_batch=True)
        tape = cls(model, model.ir.graph, found.shapes)
        for value in tape.values.values():
            if value.dtype is None and (element := found.elements.get(value, 0)):
                value.type = ir.TensorType(ir.DataType(element))
            node = value.producer()
            if value.dtype is None and node is not None:  # an operator that nobody describes
                kinds = (each.dtype for each in node.inputs if each is not None)
                kind = next((kind for kind in kinds if kind and kind.is_floating_point()), None)
                value.type = ir.TensorType(kind or ir.DataType.FLOAT)
        return tape

    @property
    def values(self) -> dict[str, ir.Value]:
        """The values of the graph by name."""
        inside = [value for node in self.scope for value in node.outputs]
        stored = self.scope.initializers.values()
        return {value.name: value for value in (*self.scope.inputs, *stored, *inside) if value.name}

    def input(self, name: str, like: ir.Value) -> Term:
        """A new input of the type and shape of a value, under a name that begins so."""
        value = ir.Value(name=self._model.unused_name(name), type=like.type)
        return Term(self, value).shaped(self.shapes.get(like))

    def named(self, term: Term, name: str) -> Term:
        """A term under a name that begins so."""
        copy = self.node("Identity", term).shaped(term.shape)
        copy.value.name = self._model.unused_name(name)
        self._model.touch(copy.value.name)
        return copy

    def put_in_place(self, node: ir.Node, results: Sequence[Term]) -> None:
        """Put what is recorded in the place of a node, whose names the results take."""
        self._recorder.put_in_place(node, [term.value for term in results])

    def model(self, inputs: Sequence[Term], outputs: Sequence[Term]) -> Model:
        """The model that takes these inputs beside its own, and gives these outputs.

        What is recorded and has no part in them is forgotten.
        """
        needed = {term.value for term in outputs}
        kept: list[ir.Node] = []
        for node in reversed(self._recorder.nodes):
            if any(value in needed for value in node.outputs):
                needed.update(value for value in node.inputs if value is not None)
                kept.append(node)
        self._recorder.nodes = kept[::-1]
        nodes = list(self.scope)
        if nodes:
            self._recorder.put_after(nodes[-1])
        else:
            self._recorder.put_first()
        for term in (*inputs, *outputs):
            if term.value.shape is None and term.shape is not None:
                term.value.shape = ir.Shape(term.shape)
        proto = self._model.to_proto()
        proto.graph.input.extend(ir.to_proto(term.value) for term in inputs)
        del proto.graph.output[:]
        proto.graph.output.extend(ir.to_proto(term.value) for term in outputs)
        return Model.from_proto(proto)

    def of(self, value: ir.Value) -> Term:
        """A value of the graph."""
        return Term(self, value)

    def constant(self, values: npt.NDArray[Any]) -> Term:
        """A new constant."""
        value = self._recorder.constant(values, "constant")
        value.type = ir.TensorType(ir.DataType.from_numpy(values.dtype))
        return Term(self, value).shaped(values.shape)

    def integers(self, numbers: Sequence[int]) -> Term:
        """A vector of integers, as sizes and axes are given."""
        key = tuple(numbers)
        if key not in self._vectors:
            self._vectors[key] = self.constant(np.asarray(key, np.int64))
        return self._vectors[key]

    def node(
        self, op_type: str, *inputs: Term | None, domain: str = "",
        dtype: ir.DataType | None = None, **attributes: Any,
    ) -> Term:  # fmt: skip
        """What a new node makes; of the type of its first input unless another is named."""
        return self.several(op_type, *inputs, domain=domain, dtypes=[dtype], **attributes)[0]

    def several(
        self, op_type: str, *inputs: Term | None, dtypes: Sequence[ir.DataType | None],
        domain: str = "", **attributes: Any,
    ) -> list[Term]:  # fmt: skip
        """What a new node makes that has an output for each of these types."""
        values = [None if term is None else term.value for term in inputs]
        names = [op_type] * len(dtypes)
        made = self._recorder.several(op_type, values, names, domain, **attributes)
        usual = next((term.dtype for term in inputs if term is not None), ir.DataType.FLOAT)
        for value, dtype in zip(made, dtypes, strict=True):
            value.type = ir.TensorType(usual if dtype is None else dtype)
        return [Term(self, value) for value in made]

    def joined(self, terms: Iterable[Term], axis: int = 0) -> Term:
        """Terms one behind the other."""
        return self.node("Concat", *terms, axis=axis)

    def sizes(self, term: Term) -> Term:
        """See :attr:`Term.sizes`; recorded once for each value."""
        found = self._sizes.get(term.value)
        if found is None:
            known = static(term.shape)
            if known is not None:
                found = self.integers(known)
            else:
                found = self.node("Shape", term, dtype=ir.DataType.INT64)
                found.shaped(None if term.shape is None else (len(term.shape),))
            self._sizes[term.value] = found
        return found


class Term:
    """One value. Plain numbers beside it in a formula become constants of its type."""

    __slots__ = ("tape", "value")

    def __init__(self, tape: Tape, value: ir.Value):
        self.tape, self.value = tape, value

    # ------------------------------------------------------------------ what is known of it

    @property
    def name(self) -> str:
        """The name of the value."""
        return self.value.name or ""

    @property
    def dtype(self) -> ir.DataType:
        """The type of its elements; float32 where nothing says."""
        return self.value.dtype or ir.DataType.FLOAT

    @property
    def floats(self) -> bool:
        """Whether its elements are floating-point numbers."""
        return self.dtype.is_floating_point()

    @property
    def shape(self) -> Shape:
        """Its sizes, as far as they are known."""
        return self.tape.shapes.get(self.value)

    @property
    def rank(self) -> int:
        """How many axes it has.

        Raises:
            Unknown: The graph does not tell.
        """
        if self.shape is None:
            raise read.Unknown(f"how many axes {self.value.name!r} has is not known")
        return len(self.shape)

    def shaped(self, shape: Shape) -> Term:
        """The same, of which this is known now."""
        if shape is not None:
            self.tape.shapes[self.value] = shape
        return self

    def with_axes(self, rank: int) -> Term:
        """The same, which is known to have so many axes."""
        return self if self.shape is not None else self.shaped((None,) * rank)

    # ----------------------------------------------------------------------------- formulas

    def apply(self, op_type: str, *others: Term | None, **attributes: Any) -> Term:
        """What an operator makes of it, element by element or so that its shape stays."""
        return self.tape.node(op_type, self, *others, **attributes).shaped(self.shape)

    def _arithmetic(self, op_type: str, other: Term | float, **attributes: Any) -> Term:
        other = self.number(other)
        made = self.tape.node(op_type, self, other, **attributes)
        return made.shaped(_broadcast(self.shape, other.shape))

    def number(self, other: Term | float) -> Term:
        """A number as a constant of this type; a term as it is."""
        if isinstance(other, Term):
            return other
        return self.tape.constant(np.asarray(other, self.dtype.numpy()))

    def __add__(self, other: Term | float) -> Term:
        return self._arithmetic("Add", other)

    def __sub__(self, other: Term | float) -> Term:
        return self._arithmetic("Sub", other)

    def __mul__(self, other: Term | float) -> Term:
        return self._arithmetic("Mul", other)

    def __truediv__(self, other: Term | float) -> Term:
        return self._arithmetic("Div", other)

    def __radd__(self, other: float) -> Term:
        return self.number(other) + self

    def __rsub__(self, other: float) -> Term:
        return self.number(other) - self

    def __rmul__(self, other: float) -> Term:
        return self.number(other) * self

    def __rtruediv__(self, other: float) -> Term:
        return self.number(other) / self

    def __neg__(self) -> Term:
        return self.apply("Neg")

    def __matmul__(self, other: Term) -> Term:
        made, a, b = self.tape.node("MatMul", self, other), self.shape, other.shape
        if a is None or b is None or min(len(a), len(b)) < 2:
            return made
        return made.shaped((*(_broadcast(a[:-2], b[:-2]) or ()), a[-2], b[-1]))

    def is_(self, op_type: str, other: Term | float) -> Term:
        """A comparison, such as ``Greater``: true or false."""
        return self._arithmetic(op_type, other, dtype=ir.DataType.BOOL)

    def where(self, condition: Term, other: Term | float = 0) -> Term:
        """Itself where a condition holds, something else where it does not."""
        other = self.number(other)
        shape = _broadcast(_broadcast(condition.shape, self.shape), other.shape)
        return self.tape.node("Where", condition, self, other, dtype=self.dtype).shaped(shape)

    def masked(self, condition: Term) -> Term:
        """Itself where a condition holds, elsewhere 0; a product is faster than a choice."""
        return self * condition.cast(self.dtype)

    def cast(self, dtype: ir.DataType) -> Term:
        """Its elements in another type."""
        return self if dtype == self.dtype else self.apply("Cast", dtype=dtype, to=dtype.value)

    # --------------------------------------------------------------------------------- axes

    @property
    def sizes(self) -> Term:
        """Its shape as a vector of integers."""
        return self.tape.sizes(self)

    @property
    def count(self) -> Term:
        """How many elements it has, as a vector of one integer."""
        return self.sizes.product()

    def product(self) -> Term:
        """The product of all elements of a vector, as a vector of one."""
        return self.tape.node("ReduceProd", self, keepdims=1).shaped((1,))

    def size(self, axis: int) -> Term:
        """Its size along one axis, as a vector of one integer."""
        return self.sizes[axis : axis + 1 or None]

    def __getitem__(self, part: slice) -> Term:
        """Part of a vector."""
        start, stop = part.start or 0, np.iinfo(np.int64).max if part.stop is None else part.stop
        ends = (self.tape.integers([end]) for end in (start, stop, 0))
        return self.tape.node("Slice", self, *ends)

    def sum(self, axes: Sequence[int] | Term, *, keep: bool = True) -> Term:
        """Sums along axes, which stay with size 1 unless they are not kept."""
        if isinstance(axes, Term):
            return self.tape.node("ReduceSum", self, axes, keepdims=int(keep),
                                  noop_with_empty_axes=1)  # fmt: skip
        if not len(axes):
            return self
        made = self.tape.node("ReduceSum", self, self.tape.integers(axes), keepdims=int(keep))
        if self.shape is None:
            return made
        gone = {axis % len(self.shape) for axis in axes}
        left = [1 if axis in gone else size for axis, size in enumerate(self.shape)]
        return made.shaped(
            tuple(size for axis, size in enumerate(left) if keep or axis not in gone)
        )

    def mean(self, axes: Sequence[int]) -> Term:
        """Means along axes, which stay with size 1."""
        total = self.sum(axes)
        return total / (self.count / total.count).cast(self.dtype)

    def reshape(self, sizes: Term | Sequence[int]) -> Term:
        """The same elements in another shape, where -1 is what is left and 0 as it was."""
        if isinstance(sizes, Term):
            return self.tape.node("Reshape", self, sizes)
        shape = tuple(None if size <= 0 else size for size in sizes)
        return self.tape.node("Reshape", self, self.tape.integers(sizes)).shaped(shape)

    def as_shaped(self, other: Term) -> Term:
        """The same elements in the shape of another term."""
        return self.reshape(other.sizes).shaped(other.shape)

    @property
    def flat(self) -> Term:
        """Its elements in one row."""
        return self.reshape([-1])

    def expand(self, other: Term) -> Term:
        """Repeated along axes of size 1 to the shape of another term."""
        return self.tape.node("Expand", self, other.sizes).shaped(other.shape)

    def transpose(self, order: Sequence[int]) -> Term:
        """Its axes in another order."""
        shape = None if self.shape is None else tuple(self.shape[axis] for axis in order)
        return self.tape.node("Transpose", self, perm=list(order)).shaped(shape)

    @property
    def T(self) -> Term:
        """Its last two axes swapped."""
        rank = self.rank
        return self.transpose([*range(rank - 2), rank - 1, rank - 2])

    def unsqueeze(self, axes: Sequence[int] | Term) -> Term:
        """With new axes of size 1, numbered as they are afterwards."""
        given = axes if isinstance(axes, Term) else self.tape.integers(axes)
        made = self.tape.node("Unsqueeze", self, given)
        if isinstance(axes, Term) or self.shape is None:
            return made
        rank = len(self.shape) + len(axes)
        new, old = {axis % rank for axis in axes}, iter(self.shape)
        return made.shaped(tuple(1 if axis in new else next(old) for axis in range(rank)))

    def pad(self, before: Term, after: Term, value: float = 0) -> Term:
        """More around it, or less where a number is negative; a number for each axis."""
        around = self.tape.joined([before, after])
        made = self.tape.node("Pad", self, around, None if not value else self.number(value))
        return made if self.shape is None else made.with_axes(self.rank)

    # ---------------------------------------------------------------------------- gradients

    def zeros(self) -> Term:
        """Zeros of its shape and type."""
        zero = ir.Tensor(np.zeros(1, self.dtype.numpy()))
        made = self.tape.node("ConstantOfShape", self.sizes, dtype=self.dtype, value=zero)
        return made.shaped(self.shape)

    def places(self) -> Term:
        """Its elements numbered in the order in which they lie in memory."""
        zero, one = (self.tape.constant(np.asarray(number, np.int64)) for number in (0, 1))
        end = self.count.reshape([])
        return self.tape.node("Range", zero, end, one).as_shaped(self)

    def scattered(self, places: Term, like: Term) -> Term:
        """Its elements added up at these places of something of the shape of another term."""
        made = like.flat.zeros().plus_at("ScatterElements", places.flat, self.flat, axis=0)
        return made.as_shaped(like)

    def plus_at(self, operator: str, places: Term, numbers: Term, **options: int) -> Term:
        """It with numbers added at places, several of which may be one.

        ONNX Runtime adds up none of 16 bits; in 32 small ones do not get lost, either.

        Args:
            operator: ScatterND or ScatterElements.
            places: As it takes them.
            numbers: Of the same type.
            options: Its attributes.
        """
        wide = ir.DataType.FLOAT if self.dtype == ir.DataType.FLOAT16 else self.dtype
        added = self.cast(wide).apply(
            operator, places, numbers.cast(wide), reduction="add", **options
        )
        return added.cast(self.dtype)

    def fit(self, other: Term) -> Term:
        """The gradient of an operand that was repeated along axes where it had size 1, or none.

        Args:
            other: The operand, whose shape the result has.
        """
        mine, its = self.shape, other.shape
        if mine is not None and its is not None:
            missing = len(mine) - len(its)
            pairs = list(zip(mine[missing:], its, strict=True))
            if all(size is not None or now == 1 for now, size in pairs):
                ones = [missing + at for at, (now, size) in enumerate(pairs) if size == 1 != now]
                summed = self.sum([*range(missing), *ones])
                return summed.as_shaped(other) if missing else summed.shaped(its)
        fewer = self.tape.node(
            "Expand", self.tape.integers([1]), self.sizes.count - other.sizes.count
        )
        padded = self.tape.joined([fewer, other.sizes])
        repeated = self.tape.node("NonZero", padded.is_("Less", self.sizes), dtype=padded.dtype)
        return self.sum(repeated.flat).as_shaped(other)


def _broadcast(one: Shape, other: Shape) -> Shape:
    """The shape of what is calculated of two operands element by element."""
    if one is None or other is None:
        return None
    rank = max(len(one), len(other))
    sides = [(1,) * (rank - len(shape)) + tuple(shape) for shape in (one, other)]
    return tuple(
        b if a == 1 else a if b == 1 else b if a is None else a for a, b in zip(*sides, strict=True)
    )
