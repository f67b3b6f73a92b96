"""The standard operators that rebuild coded weights: ONNX Runtime folds them when it loads a model.

``docs/coded.md`` says what they compute. Nothing here depends on values that only a run knows, so
every output's size is known beforehand, which is what ONNX Runtime asks of what it folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxshrink.graph.file.model import Model
from onnxshrink.graph.surgery import Recorder
from onnxshrink.kernels import coded
from onnxshrink.kernels.coded import Book, Coded, Level

#: The operator set that has all that is needed (CumSum).
LEAST_OPSET = 11
_SPLIT_BY_INPUT = 13
_NAME = "w"  # every name begins so: there are many, and they are bytes
_INT32 = ir.DataType.INT32.value
_SHARED_BYTES = 4096  # of constants that may be the same as others: tables, shapes, numbers
#: Bytes that nodes, names and constants take, about: of a level, of a tensor (and its note).
LEVEL_BYTES = 650
TENSOR_BYTES = 230


class Chains:
    """Nodes at the beginning of the main graph, and their constants.

    Args:
        model: The model, whose journal is kept; of IR version 4 or later.
    """

    def __init__(self, model: Model):
        self.model = model
        self._recorder = Recorder(model, model.ir.graph)
        self._tables: dict[int, tuple[ir.Value, ...]] = {}
        self._constants: dict[tuple[str, bytes, tuple[int, ...]], ir.Value] = {}
        self._books: list[Book] = []  # whose levels are the keys of tables: they must live on

    # --------------------------------------------------------------- records

    def constant(self, values: np.ndarray) -> ir.Value:
        """An initializer; small ones of the same contents are shared."""
        if values.nbytes > _SHARED_BYTES:
            return self._recorder.constant(values, _NAME)
        key = (values.dtype.str, values.tobytes(), values.shape)
        if key not in self._constants:
            self._constants[key] = self._recorder.constant(values, _NAME)
        return self._constants[key]

    def node(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """A node with one output."""
        return self._recorder.node(op_type, inputs, _NAME, **attributes)

    def nodes(
        self, op_type: str, inputs: Sequence[ir.Value], outputs: int, **attributes: Any
    ) -> Sequence[ir.Value]:
        """A node with several outputs."""
        return self._recorder.several(op_type, inputs, [_NAME] * outputs, **attributes)

    def place(self) -> None:
        """Put the nodes at the beginning of the graph, once all are there: chains share some."""
        self._recorder.put_first()

    # ---------------------------------------------------------------- codes

    def tensors(self, written: Coded, shapes: Sequence[tuple[int, ...]]) -> list[ir.Value]:
        """The uint8 codes of tensors that were written one after the other.

        Args:
            written: The codes of all.
            shapes: Of the tensors, in order.
        """
        self._books.append(written.book)
        flat, length = self._all_codes(written)
        sizes = [int(np.prod(shape, dtype=np.int64)) for shape in shapes]
        if length > sum(sizes):
            sizes.append(length - sum(sizes))
        parts: Sequence[ir.Value] = [flat]
        if len(sizes) > 1:
            axis = 1 if written.book.low_bits else 0
            if not axis:
                flat = self._flat(flat)
            if self.model.opset < _SPLIT_BY_INPUT:
                parts = self.nodes("Split", [flat], len(sizes), axis=axis, split=sizes)
            else:
                split = self.constant(np.array(sizes, np.int64))
                parts = self.nodes("Split", [flat, split], len(sizes), axis=axis)
        return [
            self.node("Reshape", part, self.constant(np.array(shape, np.int64)))
            for part, shape in zip(parts, shapes, strict=False)
        ]

    def _all_codes(self, written: Coded) -> tuple[ir.Value, int]:
        """Codes in their order, and how many there are with those that only fill rows up."""
        value, length = self._levels(written)
        bits = written.book.low_bits
        if not bits:
            return value, length
        table = self.constant(coded.low_table(bits))
        low = self.node("Gather", table, self._numbers(written.low))
        count = written.low.size * 8 // bits
        if length > count:  # plain bytes, with the one at the end
            value = self._cut(value, length, count)
        # A sum of bytes: there are no kernels for Add of uint8, nor BitwiseOr in older sets.
        row = self.constant(np.array([1, -1], np.int64))
        pair = self.node(
            "Concat", self.node("Reshape", value, row), self.node("Reshape", low, row), axis=0
        )
        ones = self.constant(np.ones((1, 2), np.uint8))
        scale, zero = self.constant(np.array(1, np.float32)), self.constant(np.array(0, np.uint8))
        summed = self.node("QLinearMatMul", ones, scale, zero, pair, scale, zero, scale, zero)
        return summed, count

    def _levels(self, written: Coded) -> tuple[ir.Value, int]:
        following: ir.Value | None
        levels = list(zip(written.book.levels, written.streams, strict=True))
        if not levels or written.rest.size > 1:
            following, length = self.constant(written.rest), written.rest.size
        else:
            following, length = None, 0  # the last level has no escapes
        for level, stream in reversed(levels):
            if isinstance(stream, Coded):
                value, size = self._all_codes(stream)
                numbers = self.node("Cast", self._cut(value, size, stream.size), to=_INT32)
                rows = stream.size
            else:
                numbers, rows = self._numbers(stream), stream.size
            found = self.node("Gather", self.constant(level.table), numbers)
            if following is not None:
                flags, ranks, count = self._escapes(level)
                start = self.node(
                    "CumSum", self.node("Gather", count, numbers),
                    self.constant(np.array(0, np.int32)), exclusive=1,
                )  # fmt: skip
                place = self.node("Add", self.node("Gather", ranks, numbers), start)
                escapes = self.node("Gather", self._flat(following), place)
                here = self.node("Gather", flags, numbers)
                found = self.node("Where", here, escapes, found)
            following, length = found, rows * level.width
        assert following is not None
        return following, length

    def _numbers(self, stream: np.ndarray) -> ir.Value:
        return self.node("Cast", self.constant(stream), to=_INT32)

    def _flat(self, value: ir.Value) -> ir.Value:
        if value.producer() is None:  # the last bytes are flat as they are
            return value
        return self.node("Reshape", value, self.constant(np.array([-1], np.int64)))

    def _cut(self, value: ir.Value, length: int, size: int) -> ir.Value:
        """The first codes, flat."""
        value = self._flat(value)
        if length == size:
            return value
        ends = [self.constant(np.array([end], np.int64)) for end in (0, size)]
        return self.node("Slice", value, *ends)

    def _escapes(self, level: Level) -> tuple[ir.Value, ...]:
        """By row: which codes are escapes; escapes before each; escapes in all."""
        found = self._tables.get(id(level))
        if found is not None:
            return found
        wide = self.node("Cast", self.constant(level.table), to=_INT32)
        flags = self.node("Equal", wide, self.constant(np.array(level.escape, np.int32)))
        ones = self.node("Cast", flags, to=_INT32)
        axis = self.constant(np.array(1, np.int32))
        ranks = self.node("CumSum", ones, axis, exclusive=1)
        last = self.constant(np.array([level.width - 1], np.int32))
        count = self.node("Gather", self.node("CumSum", ones, axis), last, axis=1)
        self._tables[id(level)] = (flags, ranks, count)
        return self._tables[id(level)]
