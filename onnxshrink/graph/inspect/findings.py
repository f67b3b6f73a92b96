"""The findings of ``inspect``: plain data, and their tables for people.

The same tables go to a terminal and, as Markdown, into an issue. ``to_dict`` is for machines.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from onnxshrink.kernels.distribution import MOST_UNIQUE, Distribution
from onnxshrink.report import Table, size, times

#: What a weight could be stored as; each has an estimate of its bytes.
FORMS = ("float16", "int8 per channel", "int4 block 32", "int8 entropy-coded")

_ROWS = 25  # of a table for people


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

    @property
    def stored(self) -> str:
        """How it is stored, for people."""
        return f"{self.dtype}, rebuilt by {self.form}" if self.form else self.dtype


@dataclass(frozen=True)
class OperatorTotals:
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
class CodedTensor:
    """One tensor of a model whose weights are coded.

    Attributes:
        name: Its name.
        dtype: Its name in ONNX' ``TensorProto.DataType``.
        shape: Its dimensions.
        parameters: Number of its elements.
        nbytes: Its bytes when plain.
        coded: Bytes of what rebuilds it, tables and nodes included. What it has in common with
            others is shared out by their entropies.
        entropy_bits: Order-0 entropy an element.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    parameters: int
    nbytes: int
    coded: float
    entropy_bits: float

    @property
    def bits_per_weight(self) -> float:
        """Coded bits an element."""
        return 8 * self.coded / max(self.parameters, 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "bits_per_weight": self.bits_per_weight}


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
        coded: The tensors of a coded model, the largest first.
    """

    name: str
    file_bytes: int
    constant_bytes: int
    opset: int
    inputs: Mapping[str, str]
    operators: tuple[OperatorTotals, ...]
    weights: tuple[Weight, ...]
    node_macs: tuple[NodeMacs, ...]
    notes: tuple[str, ...] = ()
    coded: tuple[CodedTensor, ...] = ()

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
            values.update({k: None for k, v in values.items() if math.isnan(v)})
        return {
            **plain,
            "coded": [tensor.to_dict() for tensor in self.coded],
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
        found.append(self._coded(rows))
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
            table.add(
                weight.name, weight.op_type, by(weight.shape), weight.stored, size(weight.nbytes),
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
            ("weight", *_STATISTICS),
        )
        for weight in self.weights[:rows]:
            if weight.values is not None:
                table.add(weight.name, *statistics(weight, weight.values))
        return table

    def _estimates(self, rows: int) -> Table:
        """What could be saved; a form that a weight cannot take leaves it as it is."""
        table = Table("estimated bytes", ("weight", "now", *FORMS))

        def add(name: str, group: Sequence[Weight]) -> None:
            sums = [sum(w.estimates.get(form, w.nbytes) for w in group) for form in FORMS]
            table.add(name, size(sum(w.nbytes for w in group)), *map(size, sums))

        for weight in self.weights[:rows]:
            add(weight.name, [weight])
        if self.weights[rows:]:
            add(f"{len(self.weights) - rows} more", self.weights[rows:])
        add("total", self.weights)
        return table

    def _coded(self, rows: int) -> Table:
        """How tightly each tensor is coded; the table of a plain model has no rows."""
        columns = ("tensor", "type", "shape", "plain", "coded", "bits a weight", "entropy")
        table = Table("coded tensors", columns)

        def add(name: str, dtype: str, shape: str, group: Sequence[CodedTensor]) -> None:
            elements = max(sum(tensor.parameters for tensor in group), 1)
            stored = sum(tensor.coded for tensor in group)
            ideal = sum(tensor.parameters * tensor.entropy_bits for tensor in group)
            table.add(
                name, dtype, shape, size(sum(tensor.nbytes for tensor in group)),
                size(int(stored)), f"{8 * stored / elements:.3f}", f"{ideal / elements:.3f}",
            )  # fmt: skip

        for tensor in self.coded[:rows]:
            add(tensor.name, tensor.dtype.lower(), by(tensor.shape), [tensor])
        if self.coded[rows:]:
            add(f"{len(self.coded) - rows} more", "", "", self.coded[rows:])
        if self.coded:
            add("total", "", "", self.coded)
        return table


# ------------------------------------------------------------------------- comparing


def compare_models(inspections: Sequence[Inspection]) -> list[Table]:
    """Several models side by side: totals, operators, stored types.

    Ratios are the first model's figure over the last one's.
    """
    names = _short_names([each.name for each in inspections])
    found = [_totals(inspections, names)]
    kinds: dict[str, int] = {}
    for each in inspections:
        for row in each.operators:
            kinds[row.op_type] = max(kinds.get(row.op_type, 0), row.nbytes)
    table = Table(
        "operators",
        ("operator", *(f"{what} {name}" for what in ("count", "bytes", "MACs") for name in names),
         "ratio of bytes"),
    )  # fmt: skip
    by_type = [{row.op_type: row for row in each.operators} for each in inspections]
    for kind in sorted(kinds, key=lambda kind: -kinds[kind]):
        rows = [known.get(kind, OperatorTotals(kind, 0, 0, 0)) for known in by_type]
        table.add(
            kind, *(row.count or "-" for row in rows),
            *(size(row.nbytes) if row.nbytes else "-" for row in rows),
            *(_macs(row.macs, row.unknown) for row in rows),
            times(rows[0].nbytes, rows[-1].nbytes),
        )  # fmt: skip
    totals = [each.constant_bytes for each in inspections]
    table.add(
        "total", *(each.nodes for each in inspections), *map(size, totals),
        *(_macs(each.macs, each.unknown_macs) for each in inspections),
        times(totals[0], totals[-1]),
    )  # fmt: skip
    found.append(table)
    dtypes = Table(
        "stored types", ("type", *(f"{w} {n}" for w in ("weights", "bytes") for n in names))
    )
    for dtype in dict.fromkeys(dtype for each in inspections for dtype in each.by_dtype):
        pairs = [each.by_dtype.get(dtype, (0, 0)) for each in inspections]
        dtypes.add(
            dtype, *(count(number) if number else "-" for number, _ in pairs),
            *(size(nbytes) if nbytes else "-" for _, nbytes in pairs),
        )  # fmt: skip
    return [*found, dtypes]


def _totals(inspections: Sequence[Inspection], names: Sequence[str]) -> Table:
    table = Table("models", ("what", *names, "ratio"))
    first, last = inspections[0], inspections[-1]
    table.add("file", *(size(each.file_bytes) for each in inspections),
              times(first.file_bytes, last.file_bytes))  # fmt: skip
    table.add("parameters", *(count(each.parameters) for each in inspections),
              times(first.parameters, last.parameters))  # fmt: skip
    unknown = first.unknown_macs or last.unknown_macs
    table.add("MACs", *(_macs(each.macs, each.unknown_macs) for each in inspections),
              "unknown" if unknown else times(first.macs, last.macs))  # fmt: skip
    table.add("nodes", *(each.nodes for each in inspections), times(first.nodes, last.nodes))
    return table


def _short_names(names: Sequence[str]) -> list[str]:
    """The shortest ends of paths that tell the models apart."""
    parts = [name.replace("\\", "/").split("/") for name in names]
    for length in range(1, max(map(len, parts)) + 1):
        short = ["/".join(part[-length:]) for part in parts]
        if len(set(short)) == len(names):
            return short
    return [f"{name} ({number})" for number, name in enumerate(names, 1)]


# -------------------------------------------------------------------------- one layer


def weight_table(weight: Weight) -> Table:
    """All that is known of one weight."""
    table = Table(weight.name, ("what", "figure"))
    table.add("operator", weight.op_type)
    table.add("used by", ", ".join(weight.nodes) or "-")
    table.add("shape", by(weight.shape))
    table.add("parameters", count(weight.parameters))
    table.add("stored as", weight.stored)
    table.add("bytes", size(weight.nbytes))
    if weight.left_alone:
        table.add("left alone because", weight.left_alone)
    if weight.values is not None:
        for what, figure in zip(_STATISTICS, statistics(weight, weight.values), strict=True):
            table.add(what, figure)
        if weight.values.not_finite:
            table.add("NaN or infinite", weight.values.not_finite)
    for form, nbytes in weight.estimates.items():
        table.add(f"as {form}", f"{size(nbytes)} ({times(weight.nbytes, nbytes)})")
    return table


_STATISTICS = ("min", "max", "mean", "std", "zeros", "unique", "bits of entropy")


def statistics(weight: Weight, values: Distribution) -> tuple[str, ...]:
    """The figures of a distribution for people, in the order of the columns."""
    numbers = (values.minimum, values.maximum, values.mean, values.std)
    bits = "-" if weight.entropy_bits is None else f"{weight.entropy_bits:.2f}"
    unique = f"{MOST_UNIQUE}+" if values.unique > MOST_UNIQUE else str(values.unique)
    return (*(f"{number:.4g}" for number in numbers), f"{values.zeros:.1%}", unique, bits)


def count(number: float) -> str:
    """A large number for people: ``17.4 M``."""
    for unit in ("", " k", " M", " G"):
        if abs(number) < 1000:
            return f"{number:.0f}" if not unit else f"{number:.1f}{unit}"
        number /= 1000
    return f"{number:.2f} T"


def by(shape: Sequence[int]) -> str:
    """A shape for people: ``64 x 3 x 7 x 7``."""
    return " x ".join(map(str, shape)) or "scalar"


def _macs(known: int, unknown: int) -> str:
    if not unknown:
        return count(known) if known else "-"
    return f"{count(known)} + {unknown} unknown" if known else f"{unknown} unknown"


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if part and whole else ""
