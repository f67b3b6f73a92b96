"""The standard operators that rebuild coded weights: ONNX Runtime folds them when it loads a model.

``docs/coded.md`` says what they compute. Every output's size is known beforehand, which is what
ONNX Runtime asks of what it folds; where it cannot be inferred, the file says it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxshrink.graph.file.model import Model
from onnxshrink.graph.surgery import Recorder
from onnxshrink.kernels import coded
from onnxshrink.kernels.coded import Coded

#: The operator set that has all that is needed (Range, Compress, ScatterElements).
LEAST_OPSET = 11
_SPLIT_BY_INPUT = 13
_ADDS_BYTES = 14
_NAME = "w"  # every name begins so: there are many, and they are bytes
_INT32 = ir.DataType.INT32.value
_SHARED_BYTES = 4096  # of constants that may be the same as others: tables, shapes, numbers
#: Bytes that nodes, names and constants take, about: of a level, of a tensor (and its note), and
#: of a table that is coded itself, and of sums of differences.
LEVEL_BYTES = 400
TENSOR_BYTES = 230
TABLE_BYTES = 70
SUM_BYTES = 130


class Chains:
    """Nodes at the beginning of the main graph, and their constants.

    Args:
        model: The model, whose journal is kept; of IR version 4 or later.
        longest: Codes of the longest level that will be written.
    """

    def __init__(self, model: Model, longest: int):
        self.model = model
        self._recorder = Recorder(model, model.ir.graph)
        self._constants: dict[tuple[str, bytes, tuple[int, ...]], ir.Value] = {}
        self._longest = longest
        self._counted: ir.Value | None = None

    # --------------------------------------------------------------- records

    def constant(self, values: np.ndarray) -> ir.Value:
        """An initializer; small ones of the same contents are shared."""
        if values.nbytes > _SHARED_BYTES:
            return self._recorder.constant(values, _NAME)
        key = (values.dtype.name, values.tobytes(), values.shape)
        if key not in self._constants:
            self._constants[key] = self._recorder.constant(values, _NAME)
        return self._constants[key]

    def node(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """A node with one output."""
        return self._recorder.node(op_type, inputs, _NAME, **attributes)

    def give_tables(self, tables: Sequence[np.ndarray], pieces: Sequence[Coded]) -> None:
        """Tables that are coded themselves: from here on, they stand for constants like them.

        Args:
            tables: Of int8 or uint8.
            pieces: Their bytes, one table after the other; empty if there are none.
        """
        if not tables:
            return
        kind = np.dtype(np.uint8 if any(each.dtype == np.uint8 for each in tables) else np.int8)
        values = self.tensors(pieces, [table.size for table in tables], kind)
        for table, value in zip(tables, values, strict=True):
            if table.dtype != kind:
                value = self.node("Cast", value, to=ir.DataType.INT8.value)
            found = self.shaped(value, table.shape)
            self._constants[table.dtype.name, table.tobytes(), table.shape] = found

    def place(self) -> None:
        """Put the nodes at the beginning of the graph, once all are there: chains share some."""
        self._recorder.put_first()

    # ---------------------------------------------------------------- codes

    def tensors(
        self, pieces: Sequence[Coded], sizes: Sequence[int], kind: np.dtype[Any]
    ) -> Sequence[ir.Value]:
        """The codes of tensors that were written one after the other, each in one row.

        Args:
            pieces: The codes of all, in one piece or more.
            sizes: Elements of the tensors, in order.
            kind: Type of the results, int8 or uint8.
        """
        rows = [self._all_codes(piece, kind) for piece in pieces]
        if len(rows) > 1:
            whole = [self._cut(*row, piece.size) for row, piece in zip(rows, pieces, strict=True)]
            rows = [(self.node("Concat", *whole, axis=-1), sum(sizes))]
        ((value, length),) = rows
        if len(sizes) == 1:
            return [self._cut(value, length, sizes[0])]
        more = [length - sum(sizes)] if length > sum(sizes) else []
        return self._split(value, [*sizes, *more])[: len(sizes)]

    def shaped(self, value: ir.Value, shape: tuple[int, ...]) -> ir.Value:
        """The same elements in another shape."""
        return self.node("Reshape", value, self.constant(np.array(shape, np.int64)))

    def widened(
        self, value: ir.Value, size: int, shift: int, low: np.ndarray, places: np.ndarray,
        wide: np.ndarray,
    ) -> ir.Value:  # fmt: skip
        """16-bit integers of their highest bits, in one row.

        Args:
            value: The highest bits, int8.
            size: How many there are.
            shift: How many lowest bits are kept apart: 0, 4 or 8.
            low: These, packed; whole bytes are signed.
            places: Positions of integers that are wider still.
            wide: These integers.
        """
        if shift:
            parts = [value] if shift == 4 else [value, value]  # there is no int8 of 256
            if shift == 4:
                table = self.constant(coded.low_table(4).view(np.int8))
                apart = self.node("Gather", table, self._numbers(low))
            else:
                apart = self.constant(low.view(np.int8))
            rows = [self.shaped(part, (1, -1)) for part in (*parts, apart)]
            factors = np.array([[*[(1 << shift) // len(parts)] * len(parts), 1]], np.uint8)
            rows[-1] = self._cut(rows[-1], low.size * 8 // shift, size)
            pair = self.node("Concat", *rows, axis=0)
            value = self.node("MatMulInteger", self.constant(factors), pair)
        value = self.node("Cast", value, to=ir.DataType.INT16.value)
        if not places.size:
            return value
        if shift == 0 and self.model.opset < _ADDS_BYTES:  # whose sums are rows of two axes
            value = self._flat(value)
        found = [places, wide] if shift == 0 else [places[None], wide[None]]
        return self.node("ScatterElements", value, *map(self.constant, found), axis=-1)

    def summed(self, steps: ir.Value, axis: int) -> ir.Value:
        """What differences, of int32, add up to along an axis."""
        return self.node("CumSum", steps, self.constant(np.array(axis, np.int32)))

    def _split(self, value: ir.Value, sizes: list[int]) -> Sequence[ir.Value]:
        names = [_NAME] * len(sizes)
        if self.model.opset < _SPLIT_BY_INPUT:
            return self._recorder.several("Split", [value], names, axis=-1, split=sizes)
        split = self.constant(np.array(sizes, np.int64))
        return self._recorder.several("Split", [value, split], names, axis=-1)

    def _all_codes(self, written: Coded, kind: np.dtype[Any]) -> tuple[ir.Value, int]:
        """Codes in one row, and how many with those that only fill rows of tables up."""
        value, length = self._levels(written, kind)
        bits = written.book.low_bits
        if not bits:
            return value, length
        count = written.low.size * 8 // bits
        value = self._cut(value, length, count)  # longer where they are plain bytes
        low = self.node(
            "Gather", self.constant(coded.low_table(bits).view(kind)), self._numbers(written.low)
        )
        return self._sum(value, low, kind), count

    def _sum(self, one: ir.Value, other: ir.Value, kind: np.dtype[Any]) -> ir.Value:
        """Bytes added: older operator sets have no sum of them but that of quantized products."""
        if self.model.opset >= _ADDS_BYTES:
            return self.node("Add", one, self._flat(other))
        pair = self.node("Concat", self.shaped(one, (1, -1)), self.shaped(other, (1, -1)), axis=0)
        ones = self.constant(np.ones((1, 2), kind))
        scale, zero = self.constant(np.array(1, np.float32)), self.constant(np.array(0, kind))
        return self.node("QLinearMatMul", ones, scale, zero, pair, scale, zero, scale, zero)

    def _levels(self, written: Coded, kind: np.dtype[Any]) -> tuple[ir.Value, int]:
        levels = list(zip(written.book.levels, written.streams, strict=True))
        following, length = None, written.rest.size
        if length or not levels:
            following = self.constant(written.rest.view(kind))
        for (level, stream), escapes in zip(levels[::-1], written.escapes[::-1], strict=True):
            if isinstance(stream, Coded):
                value, size = self._all_codes(stream, np.dtype(np.uint8))
                numbers = self.node("Cast", self._cut(value, size, stream.size), to=_INT32)
                rows = stream.size
            else:
                numbers, rows = self._numbers(stream), stream.size
            table = level.table.view(kind)
            found = self._flat(self.node("Gather", self.constant(table), numbers))
            if following is not None:
                escape = self.constant(np.array(level.escape, np.uint8).view(kind))
                places = self._true(self.node("Equal", found, escape), escapes)
                found = self.node(
                    "ScatterElements", found, places, self._cut(following, length, escapes), axis=-1
                )
            following, length = found, rows * level.width
        assert following is not None
        return following, length

    def _true(self, flags: ir.Value, count: int) -> ir.Value:
        """Where flags are set, of which there are so many: no rule could infer that."""
        if self._counted is None:
            ends = [self.constant(np.array(end, np.int32)) for end in (0, self._longest, 1)]
            self._counted = self.node("Range", *ends)
        places = self.node("Compress", self._counted, flags)
        places.type, places.shape = ir.TensorType(ir.DataType.INT32), ir.Shape([count])
        return places

    def _numbers(self, stream: np.ndarray) -> ir.Value:
        return self.node("Cast", self.constant(stream), to=_INT32)

    def _flat(self, value: ir.Value) -> ir.Value:
        return self.shaped(value, (-1,))

    def _cut(self, value: ir.Value, length: int, size: int) -> ir.Value:
        """The first codes of a row."""
        if length == size:
            return value
        ends = [self.constant(np.array([end], np.int64)) for end in (0, size, -1)]
        return self.node("Slice", value, *ends)
