"""What is in a model: parameters, bytes, multiply-accumulates, and what its weights look like.

``inspect_model`` reads weights one by one, so a large model takes little memory. ``tables`` and
``compare_models`` are for people; ``to_dict`` is for machines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxshrink.errors import RecipeError
from onnxshrink.graph import macs, operands, shapes, tensors, weights
from onnxshrink.graph.model import Model
from onnxshrink.graph.operands import Operand
from onnxshrink.kernels import affine, distribution
from onnxshrink.kernels.distribution import Distribution
from onnxshrink.report import Table, size, times

_LOWERED = {"LinearClassifier", "LinearRegressor", "Normalizer", "Scaler"}
_SCALE_BYTES = 4
_ROWS = 25  # of a table for people
_ESTIMATES = ("float16", "int8 per channel", "int4 block 32", "int8 entropy-coded")


@dataclass(frozen=True)
class Weight:
    """One parameter of the model, whatever it is stored as.

    Attributes:
        name: Its name; a rebuilt weight has the name that it had before.
        op_type: The operator that uses it.
        nodes: Names of the nodes that use it.
        shape: Its shape where it is used.
        dtype: The type that its values or codes are stored in.
        parameters: Number of its elements.
        nbytes: Stored bytes, with scales and zero points.
        form: The operators that rebuild it from what is stored; empty when there are none.
        left_alone: Why a pass would leave it alone; empty when it may be changed.
        values: Distribution of the stored values; None when they were not read.
        entropy_bits: Order-0 entropy a value: of codes as stored, of floats after rounding to int8
            per channel. None when they were not read or are not finite.
        estimates: Bytes that it would take, by form.
    """

    name: str
    op_type: str
    nodes: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    parameters: int
    nbytes: int
    form: str = ""
    left_alone: str = ""
    values: Distribution | None = None
    entropy_bits: float | None = None
    estimates: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Operator:
    """All nodes of one type.

    Attributes:
        op_type: The type, with its domain unless that is the default one.
        count: Nodes in the file; those of a function's body once.
        nbytes: Stored bytes of the constants that they finally use.
        macs: Multiply-accumulates of those whose shapes are known.
        unknown: Calls whose multiply-accumulates are unknown.
    """

    op_type: str
    count: int
    nbytes: int
    macs: int
    unknown: int = 0


@dataclass(frozen=True)
class NodeMacs:
    """Multiply-accumulates of one node in all its calls; None where a shape is unknown."""

    name: str
    op_type: str
    macs: int | None


@dataclass(frozen=True)
class Inspection:
    """What ``inspect_model`` found.

    Attributes:
        name: The file, or ``the model``.
        file_bytes: Size of the file and its external data.
        constant_bytes: Bytes of all constants; the rest of the file is the graph itself.
        opset: Version of the default operator set.
        inputs: Shape of each input as declared, for instance ``[N,3,224,224]``.
        operators: By type, the most bytes first.
        weights: Every parameter, the largest first.
        node_macs: Nodes that multiply matrices, in the order in which they run.
        notes: What was assumed, and what could not be known.
    """

    name: str
    file_bytes: int
    constant_bytes: int
    opset: int
    inputs: Mapping[str, str]
    operators: tuple[Operator, ...]
    weights: tuple[Weight, ...]
    node_macs: tuple[NodeMacs, ...]
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(weight.parameters for weight in self.weights)

    @property
    def nodes(self) -> int:
        """Number of nodes in the file."""
        return sum(operator.count for operator in self.operators)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of a run, without the nodes that :attr:`unknown_macs` counts."""
        return sum(operator.macs for operator in self.operators)

    @property
    def unknown_macs(self) -> int:
        """Calls of nodes whose multiply-accumulates are unknown."""
        return sum(operator.unknown for operator in self.operators)

    @property
    def by_dtype(self) -> dict[str, tuple[int, int]]:
        """Stored type -> number of weights and their bytes, the most bytes first."""
        count: Counter[str] = Counter()
        stored: Counter[str] = Counter()
        for weight in self.weights:
            count[weight.dtype] += weight.parameters
            stored[weight.dtype] += weight.nbytes
        return {dtype: (count[dtype], nbytes) for dtype, nbytes in stored.most_common()}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; NaN becomes None."""
        plain = asdict(self)
        for weight in plain["weights"]:
            values = weight["values"] or {}
            values.update({k: None for k, v in values.items() if v != v})
        return {
            **plain,
            "parameters": self.parameters,
            "parameters_by_dtype": {
                dtype: {"parameters": count, "nbytes": nbytes}
                for dtype, (count, nbytes) in self.by_dtype.items()
            },
            "nodes": self.nodes,
            "macs": self.macs,
            "unknown_macs": self.unknown_macs,
        }

    def tables(self, rows: int = _ROWS) -> list[Table]:
        """For people: the model, its operators, its heaviest nodes and weights.

        Args:
            rows: The most rows of a table by node or weight; the rest is summed up in one.
        """
        found = [self._overview(), self._operators(), self._nodes(rows), self._weights(rows)]
        if any(weight.values for weight in self.weights):
            found += [self._values(rows), self._estimates(rows)]
        if self.notes:
            notes = Table("notes", ("note",))
            for note in self.notes:
                notes.add(note)
            found.append(notes)
        return [table for table in found if table.rows]

    def _overview(self) -> Table:
        table = Table("model", ("what", "figure"))
        table.add("file", f"{self.name}, {size(self.file_bytes)}")
        table.add("parameters", count(self.parameters))
        for dtype, (number, nbytes) in self.by_dtype.items():
            table.add(f"stored as {dtype}", f"{count(number)}, {size(nbytes)}")
        table.add("graph and other constants", size(self.file_bytes - self._weight_bytes))
        table.add("MACs", _macs(self.macs, self.unknown_macs))
        table.add("nodes", self.nodes)
        table.add("opset", self.opset)
        for name, shape in self.inputs.items():
            table.add(f"input {name}", shape)
        return table

    @property
    def _weight_bytes(self) -> int:
        return sum(weight.nbytes for weight in self.weights)

    def _operators(self) -> Table:
        table = Table("operators", ("operator", "count", "bytes", "share", "MACs", "share of MACs"))
        for each in self.operators:
            table.add(
                each.op_type, each.count, size(each.nbytes),
                _share(each.nbytes, self.file_bytes), _macs(each.macs, each.unknown),
                _share(each.macs, self.macs),
            )  # fmt: skip
        total = _macs(self.macs, self.unknown_macs)
        table.add("total", self.nodes, size(self.constant_bytes),
                  _share(self.constant_bytes, self.file_bytes), total, "")  # fmt: skip
        return table

    def _nodes(self, rows: int) -> Table:
        table = Table("MACs by node", ("node", "operator", "MACs", "share"))
        unknown_first = sorted(
            self.node_macs, key=lambda node: (node.macs is not None, -(node.macs or 0))
        )
        for node in unknown_first[:rows]:
            shown = "unknown" if node.macs is None else count(node.macs)
            table.add(node.name, node.op_type, shown, _share(node.macs or 0, self.macs))
        rest = unknown_first[rows:]
        if rest:
            total = sum(node.macs or 0 for node in rest)
            table.add(f"{len(rest)} more", "", count(total), _share(total, self.macs))
        return table

    def _weights(self, rows: int) -> Table:
        columns = ("weight", "operator", "shape", "type", "bytes", "share", "left alone because")
        table = Table("weights", columns)
        for weight in self.weights[:rows]:
            stored = f"{weight.dtype} ({weight.form})" if weight.form else weight.dtype
            table.add(
                weight.name, weight.op_type, _by(weight.shape), stored, size(weight.nbytes),
                _share(weight.nbytes, self.file_bytes), weight.left_alone,
            )  # fmt: skip
        rest = sum(weight.nbytes for weight in self.weights[rows:])
        if rest:
            more = f"{len(self.weights) - rows} more"
            table.add(more, "", "", "", size(rest), _share(rest, self.file_bytes), "")
        return table

    def _values(self, rows: int) -> Table:
        table = Table(
            "values",
            ("weight", "min", "max", "mean", "std", "zeros", "unique", "bits of entropy"),
        )
        for weight in self.weights[:rows]:
            if weight.values is not None:
                table.add(weight.name, *_statistics(weight, weight.values))
        return table

    def _estimates(self, rows: int) -> Table:
        """What could be saved; a form that a weight cannot take leaves it as it is."""
        table = Table("estimated bytes", ("weight", "now", *_ESTIMATES))

        def add(name: str, group: Sequence[Weight]) -> None:
            sums = [sum(w.estimates.get(form, w.nbytes) for w in group) for form in _ESTIMATES]
            table.add(name, size(sum(w.nbytes for w in group)), *map(size, sums))

        for weight in self.weights[:rows]:
            add(weight.name, [weight])
        if self.weights[rows:]:
            add(f"{len(self.weights) - rows} more", self.weights[rows:])
        add("total", self.weights)
        return table


# --------------------------------------------------------------------------- reading


def inspect_model(
    model: Model, *, shapes: Mapping[str, Sequence[int]] | None = None, weights: bool = True
) -> Inspection:
    """Look into a model; nothing is run or changed.

    Args:
        model: The model.
        shapes: Shapes of some inputs, for the MACs; a symbolic first axis is taken as 1 otherwise.
        weights: Read the values of the weights, one by one, for their distribution.

    Raises:
        DataError: ``shapes`` do not fit the model's inputs.
    """
    found = operands.find(model)
    walked = _walk(model, shapes)
    views = {view.value: view for view in _views(model)}
    parameters = [_weight(o, walked, views, read=weights) for o in found if o.is_weight]
    parameters += _in_attributes(model, read=weights)
    parameters.sort(key=lambda weight: -weight.nbytes)
    by_node = _by_node(walked)
    operators = _count_operators(model, walked, found)
    notes = list(walked.notes)
    if unknown := sum(operator.unknown for operator in operators):
        open_inputs = [f"{v.name} {v.shape}" for v in model.inputs if _is_open(v)]
        notes.append(
            f"MACs of {unknown} nodes are unknown and missing from the totals"
            + (f"; give the shapes of {', '.join(open_inputs)}" if open_inputs else "")
        )
    return Inspection(
        name=model.label,
        file_bytes=_file_bytes(model),
        constant_bytes=sum(operator.nbytes for operator in operators),
        opset=model.opset,
        inputs={value.name or "": str(value.shape or "?") for value in model.inputs},
        operators=operators,
        weights=tuple(parameters),
        node_macs=by_node,
        notes=tuple(notes),
    )


def _walk(model: Model, given: Mapping[str, Sequence[int]] | None) -> shapes.Walk:
    return shapes.walk(model, given)


def _views(model: Model) -> Iterator[weights.WeightView]:
    return weights.find(model)


def _is_open(value: ir.Value) -> bool:
    """Whether an input has a size that only the caller knows."""
    return value.shape is None or any(not isinstance(dim, int) for dim in value.shape)


def _file_bytes(model: Model) -> int:
    """Bytes on disk, external data included; of a model without a file, those that it would take."""
    if model.path is None:
        return model.nbytes()
    files = {model.path.absolute()}
    for _, tensor in operands.constants(model):
        if isinstance(tensor, ir.ExternalTensor) and not isinstance(tensor, tensors.InsideTensor):
            files.add(model.path.parent.absolute() / tensor.location)
    return sum(file.stat().st_size for file in files)


def _count_operators(
    model: Model, walked: shapes.Walk, found: Sequence[Operand]
) -> tuple[Operator, ...]:
    number = Counter(operands.label(node) for node in model.nodes)
    nbytes: Counter[str] = Counter()
    total: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    for operand in found:
        nbytes[operand.op_type] += operand.nbytes
    for node, _, values in _attribute_arrays(model):
        nbytes[operands.label(node)] += values.nbytes
    for call in walked.calls:
        each = macs.count(call)
        total[operands.label(call.node)] += each or 0
        unknown[operands.label(call.node)] += each is None
    rows = [
        Operator(kind, number[kind], nbytes[kind], total[kind], unknown[kind])
        for kind in {**number, **nbytes}
    ]
    return tuple(sorted(rows, key=lambda row: (-row.nbytes, -row.macs, -row.count, row.op_type)))


def _by_node(walked: shapes.Walk) -> tuple[NodeMacs, ...]:
    found: dict[ir.Node, int | None] = {}
    for call in walked.calls:
        each = macs.count(call)
        if each != 0:
            before = found.get(call.node, 0)
            found[call.node] = None if each is None or before is None else before + each
    return tuple(
        NodeMacs(node.name or node.outputs[0].name or "", operands.label(node), each)
        for node, each in found.items()
    )


def _weight(
    operand: Operand,
    walked: shapes.Walk,
    views: Mapping[ir.Value, weights.WeightView],
    *,
    read: bool,
) -> Weight:
    main, tensor = operand.main, operand.main.tensor
    view = views.get(main.value)
    shape = shapes.static(walked.shapes.get(operand.value)) or tuple(tensor.shape)
    form = ", ".join(main.path)
    dtype = tensor.dtype.name.lower()
    left_alone = view.why_not if view is not None else ""
    if tensor.dtype not in weights.FLOATS:
        left_alone = left_alone or f"already quantized ({form or operand.op_type})"
    elements = int(np.prod(shape, dtype=np.int64))
    attributes = operand.node.attributes if operand.node is not None else {}
    if operand.index == 1 and {"K", "N"} <= set(attributes):  # MatMulNBits: codes in blocks
        shape = (attributes["K"].as_int(), attributes["N"].as_int())
        elements = shape[0] * shape[1]
        bits = attributes["bits"].as_int() if "bits" in attributes else 4
        dtype = f"uint{bits} in {dtype}"
    values = bits_of_entropy = None
    estimates: dict[str, int] = {}
    if read:
        zero = _zero_point(operand)
        axes = view.axes if view is not None and view.uses else None
        others = operand.nbytes - main.nbytes
        values, bits_of_entropy, estimates = _measure(
            tensor.numpy(), tensor.dtype in weights.FLOATS, axes, zero, others
        )
        tensors.release(tensor)
    return Weight(
        name=operand.name,
        op_type=operand.op_type,
        nodes=tuple(node.name or node.outputs[0].name or "" for node in operand.nodes),
        shape=shape,  # type: ignore[arg-type]
        dtype=dtype,
        parameters=elements,
        nbytes=operand.nbytes,
        form=form,
        left_alone=left_alone,
        values=values,
        entropy_bits=bits_of_entropy,
        estimates=estimates,
    )
