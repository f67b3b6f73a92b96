"""Weights looked up as the model is loaded: codebooks, hashed tables, filters, sparse values.

Only operators of the standard, and codes in plain bytes: a byte holds as many codes as fit, written
as digits (two of a 16-entry table, five of a ternary one). The table is first expanded to one row
for every byte, ``Gather(table, digits)``, then the bytes pick rows. This needs neither 4-bit types
nor a new operator set, and half the indices, which ONNX Runtime holds as int32 while it folds.
Small weights may be tensors of uint4 instead: their nodes are a good part of them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms.dequantize import can_gather, factor, multiplied_in
from onnxshrink.graph.forms.rebuild import REBUILD_OVERHEAD, Rebuild
from onnxshrink.graph.forms.sharing import PACKED_OVERHEAD, Shared
from onnxshrink.graph.weights.views import WeightView
from onnxshrink.kernels import bits, bloomier, codebooks
from onnxshrink.kernels.codebooks import Codebook

#: Bytes that nodes, names and headers cost, about.
HASH_OVERHEAD = 500
FILTER_OVERHEAD = 1000
SPARSE_OVERHEAD = 900
#: Range and Mod of whole numbers and CumSum, which came with 11.
OPSET = 13

_SPARSE_COLUMNS, _FEW_SPARSE_COLUMNS = 1024, 64
_SHARED_BYTES = 2**16  # larger constants are not compared
_SLICE_TAKES_INPUTS = 10


class CodebookWriter:
    """Writes codebooks into a model. Constants that several need are stored once for each graph.

    Attributes:
        model: The model, whose journal is kept.
    """

    def __init__(self, model: Model):
        self.model = model
        self._known: dict[tuple[ir.Graph | ir.Function, str, bytes], ir.Value] = {}

    def cost(self, view: WeightView, entries: int) -> int:
        """Bytes of the constants that codes of so many entries need and that are not there yet."""
        digits = codebooks.digits(entries)
        known = self._key(view, digits) in self._known or codebooks.codes_per_byte(entries) == 1
        return 0 if known else digits.nbytes

    def replace(self, view: WeightView, shared: Shared, *, four_bit: bool = False) -> int:
        """Replace a weight by codes and a table.

        Args:
            view: The weight.
            shared: What to store.
            four_bit: Store codes of 7 to 16 entries as a tensor of uint4, which takes operator set
                21 and three nodes less, rather than two to a byte.

        Returns:
            Bytes that it takes now, about.
        """
        rebuild = Rebuild(self.model, view)
        working = view.dtype if shared.scale is None else multiplied_in(view.dtype)
        order = tuple(range(len(view.shape)))
        if shared.rows:
            order = view.axes.out + view.axes.contract
        shape = tuple(view.shape[axis] for axis in order)
        value = self._looked_up(rebuild, shared.stored, shape, working, four_bit)
        if order != tuple(sorted(order)):
            value = rebuild.node("Transpose", [value], "p", perm=np.argsort(order).tolist())
        if shared.scale is not None:
            value = rebuild.node("Mul", [value, factor(rebuild, shared.scale, working)], "w")
        if working != view.dtype:
            value = rebuild.node("Cast", [value], "b", to=view.dtype.value)
        rebuild.finish(value)
        return rebuild.nbytes + PACKED_OVERHEAD * shared.packed

    def _looked_up(
        self, rebuild: Rebuild, stored: Codebook, shape: tuple[int, ...], dtype: ir.DataType,
        four_bit: bool,
    ) -> ir.Value:  # fmt: skip
        groups, count = stored.codes.shape
        size, places = codebooks.base(stored.entries), codebooks.codes_per_byte(stored.entries)
        table = np.pad(stored.table, ((0, 0), (0, size - stored.entries), (0, 0)), "edge")
        table = table.astype(dtype.numpy())
        four_bit = four_bit and places == 2
        if (places == 1 or four_bit) and stored.width == 1 and groups == 1:
            codes = self._index(rebuild, stored.codes.reshape(shape), four_bit=four_bit)
            return rebuild.node("Gather", [self._constant(rebuild, table.ravel(), "t"), codes], "w")
        packed = codebooks.pack(stored.codes, stored.entries)
        entry = [stored.width] if stored.width > 1 else []
        if places == 1:
            entries = self._constant(rebuild, table.reshape(-1, *entry), "t")
        else:
            lead = [groups] if groups > 1 else []
            narrow = self._constant(rebuild, table.reshape(*lead, size, *entry), "t")
            digits = self._index(rebuild, codebooks.digits(stored.entries), shared=True)
            axis: dict[str, Any] = {"axis": 1} if lead else {}  # 0 unless it is said
            entries = rebuild.node("Gather", [narrow, digits], "e", **axis)
            if groups > 1:
                entries = self._reshaped(rebuild, entries, [-1, places * stored.width])
        index = self._index(rebuild, packed if groups > 1 else packed[0])
        if groups > 1:
            first = np.arange(groups, dtype=np.int32)[:, None] * np.int32(size**places)
            index = rebuild.node("Add", [index, rebuild.constant(first, "o")], "a")
        value = rebuild.node("Gather", [entries, index], "v")
        if packed.shape[1] * places != count:
            value = self._reshaped(rebuild, value, [groups, -1])
            value = self._cut(rebuild, value, count * stored.width)
        return self._reshaped(rebuild, value, shape)

    def _index(
        self, rebuild: Rebuild, codes: npt.NDArray[np.unsignedinteger], *, shared: bool = False,
        four_bit: bool = False,
    ) -> ir.Value:  # fmt: skip
        """Codes as Gather takes them."""
        stored: np.ndarray | ir.TensorProtocol = codes
        if four_bit:
            kind, shape = ir.DataType.UINT4, ir.Shape(codes.shape)
            stored = ir.PackedTensor(bits.pack(codes, 4), kind, shape=shape)
        constant = self._constant(rebuild, codes, "q") if shared else rebuild.constant(stored, "q")
        return rebuild.node("Cast", [constant], "i", to=ir.DataType.INT32.value)

    def _reshaped(
        self, rebuild: Rebuild, value: ir.Value, shape: tuple[int, ...] | list[int]
    ) -> ir.Value:
        return rebuild.node("Reshape", [value, self._shape(rebuild, shape)], "r")

    def _shape(self, rebuild: Rebuild, sizes: tuple[int, ...] | list[int]) -> ir.Value:
        return self._constant(rebuild, np.array(sizes, np.int64), "n")

    def _cut(self, rebuild: Rebuild, value: ir.Value, end: int) -> ir.Value:
        """The first columns of a matrix."""
        if self.model.opset < _SLICE_TAKES_INPUTS:
            return rebuild.node("Slice", [value], "s", starts=[0], ends=[end], axes=[1])
        bounds = [self._constant(rebuild, np.array([x], np.int64), "n") for x in (0, end, 1)]
        return rebuild.node("Slice", [value, *bounds], "s")

    def _constant(self, rebuild: Rebuild, values: np.ndarray, suffix: str) -> ir.Value:
        """A constant, or an equal one that is there already."""
        if values.nbytes > _SHARED_BYTES:
            return rebuild.constant(values, suffix)
        key = self._key(rebuild.view, values)
        found = self._known.get(key)
        if found is None:
            found = rebuild.constant(values, suffix)
            if found.producer() is None:  # a Constant node may come after the next weight's nodes
                self._known[key] = found
        return found

    @staticmethod
    def _key(view: WeightView, values: np.ndarray) -> tuple[ir.Graph | ir.Function, str, bytes]:
        return view.scope, f"{values.dtype}{values.shape}", values.tobytes()

    def can_look_up(self, view: WeightView, shared: Shared) -> bool:
        """Whether a table of rows can stay codes in memory: see :meth:`replace_lookups`."""
        stored, places = shared.stored, codebooks.codes_per_byte(shared.stored.entries)
        ranks = [use.node.inputs[1].shape for use in view.uses]  # type: ignore[union-attr]
        return (
            can_gather(self.model, view)
            and len(view.shape) == 2
            and len(stored.codes) == 1
            and shared.scale is None
            and view.shape[1] % (places * stored.width) == 0
            and (places * stored.width == 1 or all(rank is not None for rank in ranks))
        )

    def replace_lookups(self, view: WeightView, shared: Shared) -> int:
        """Replace a table of rows by codes: rows of codes are looked up, then their entries.

        Memory stays as small as the file, and every lookup takes a second one.

        Args:
            view: The weight, for which :meth:`can_look_up` holds.
            shared: What to store.

        Returns:
            Bytes that it takes now, about.
        """
        rebuild, stored = Rebuild(self.model, view), shared.stored
        places, several = codebooks.codes_per_byte(stored.entries), shared.packed
        size, count = codebooks.base(stored.entries), view.shape[0]
        packed = codebooks.pack(stored.codes.reshape(count, -1), stored.entries)
        codes = rebuild.constant(packed, "q")
        table = np.pad(stored.table[0], ((0, size - stored.entries), (0, 0)), "edge")
        every = codebooks.digits(stored.entries) if places > 1 else np.arange(size)[:, None]
        # What every byte stands for, all its codes side by side.
        entries = rebuild.constant(
            table[every].reshape(len(every), -1).astype(view.dtype.numpy())
            if several else table.ravel().astype(view.dtype.numpy()), "t",
        )  # fmt: skip
        for use in view.uses:
            indices = use.node.inputs[1]
            assert indices is not None
            rows = rebuild.node("Gather", [codes, indices], "q")
            index = rebuild.node("Cast", [rows], "i", to=ir.DataType.INT32.value)
            value = rebuild.node("Gather", [entries, index], "v")
            if several:
                assert indices.shape is not None
                shape = [0] * len(indices.shape) + [view.shape[1]]
                value = self._reshaped(rebuild, value, shape)
            rebuild.put_in_place(use.node, [value])
        rebuild.drop()
        return rebuild.nbytes + PACKED_OVERHEAD * several

    def replace_hashed(
        self, view: WeightView, table: npt.NDArray[np.float32], multiplier: int, offset: int
    ) -> int:
        """Replace a weight by a table into which its positions are hashed; see ``codebooks``.

        Returns:
            Bytes that it takes now, about.
        """
        rebuild = Rebuild(self.model, view)

        def number(value: int) -> ir.Value:
            return self._constant(rebuild, np.array(value, np.int64), "n")

        value = rebuild.node("Range", [number(0), number(math.prod(view.shape)), number(1)], "h")
        for op_type, operand in (
            ("Mul", multiplier), ("Add", offset), ("Mod", codebooks.PRIME), ("Mod", len(table)),
        ):  # fmt: skip
            value = rebuild.node(op_type, [value, number(operand)], "h")
        entries = rebuild.constant(table.astype(view.dtype.numpy()), "t")
        value = rebuild.node("Gather", [entries, value], "v")
        rebuild.finish(self._reshaped(rebuild, value, view.shape))
        return rebuild.nbytes + HASH_OVERHEAD - REBUILD_OVERHEAD

    def replace_filtered(
        self, view: WeightView, stored: bloomier.BloomierFilter, table: npt.NDArray[np.float32]
    ) -> int:
        """Replace a weight by a filter of codes and their table; codes beyond it are zeros.

        Positions are hashed by the whole numbers of ``bloomier.Hash``, all three parts at once.

        Returns:
            Bytes that it takes now, about.
        """
        rebuild, hashed = Rebuild(self.model, view), stored.hash

        def number(value: int | list[list[int]], dtype: type[np.integer] = np.int64) -> ir.Value:
            return self._constant(rebuild, np.array(value, dtype), "n")

        def node(op_type: str, value: ir.Value, operand: ir.Value) -> ir.Value:
            return rebuild.node(op_type, [value, operand], "h")

        value = rebuild.node("Range", [number(0), number(math.prod(view.shape)), number(1)], "h")
        for op_type, operand in (
            ("Mul", hashed.factor), ("Add", hashed.offset), ("Mod", codebooks.PRIME),
        ):  # fmt: skip
            value = node(op_type, value, number(operand))
        value = node("Mul", node("Add", value, number([[s] for s in hashed.shifts])), value)
        value = node("Mod", node("Mod", value, number(codebooks.PRIME)), number(hashed.width))
        first = [[part * hashed.width] for part in range(bloomier.PARTS)]
        value = node("Add", value, number(first))
        value = node("Gather", self._slots(rebuild, stored), value)
        value = rebuild.node("ReduceSum", [value, self._shape(rebuild, [0])], "h", keepdims=0)
        value = node("Mod", value, number(stored.base, np.int32))
        value = node("Min", value, number(len(table), np.int32))
        entries = np.append(table, np.float32(0)).astype(view.dtype.numpy())
        value = rebuild.node("Gather", [rebuild.constant(entries, "t"), value], "v")
        rebuild.finish(self._reshaped(rebuild, value, view.shape))
        return rebuild.nbytes + FILTER_OVERHEAD - REBUILD_OVERHEAD

    def _slots(self, rebuild: Rebuild, stored: bloomier.BloomierFilter) -> ir.Value:
        """Slots of a filter as int32; a byte holds two of 4 bits."""
        if stored.base > codebooks.BASES[-2]:
            return self._index(rebuild, stored.slots)
        packed = codebooks.pack(stored.slots.astype(np.uint8)[None], stored.base)[0]
        digits = self._index(rebuild, codebooks.digits(stored.base), shared=True)
        pairs = rebuild.node("Gather", [digits, self._index(rebuild, packed)], "e")
        return self._reshaped(rebuild, pairs, [-1])

    def replace_sparse(self, view: WeightView, values: npt.NDArray[np.floating]) -> int:
        """Replace a weight by the values that are not zero, and one bit for each that is or is not.

        Each is looked up as many places further as bits are set above it in its column. It is
        smaller than ONNX's ``sparse_initializer``, which spends 8 bytes on each place, up to 98 %
        zeros; ONNX Runtime makes either dense when it loads the model.

        Args:
            view: The weight.
            values: Its new values.

        Returns:
            Bytes that it takes now, about.
        """
        rebuild = Rebuild(self.model, view)
        flat = values.reshape(-1).astype(view.dtype.numpy())
        # Counted down columns, which the runtime does a row at a time; along one row it crawls.
        width = _SPARSE_COLUMNS if flat.size >= _SPARSE_COLUMNS**2 else _FEW_SPARSE_COLUMNS
        table = np.pad(flat, (0, -flat.size % width)).reshape(-1, width)
        kept = table != 0
        bytes_ = self._index(rebuild, np.packbits(kept, bitorder="little"))
        # As digits of base 2, which are the same bits in the same order.
        digits = self._index(rebuild, codebooks.digits(2), shared=True)
        bits = self._reshaped(rebuild, rebuild.node("Gather", [digits, bytes_], "e"), [-1, width])
        axis = self._constant(rebuild, np.array(0, np.int64), "n")
        before = np.cumsum(kept.sum(0), dtype=np.int32) - kept.sum(0, dtype=np.int32)
        places = rebuild.node("CumSum", [bits, axis], "a")
        places = rebuild.node("Add", [places, rebuild.constant(before, "o")], "a")
        entries = np.concatenate([np.zeros(1, flat.dtype), table.T[kept.T]])
        value = rebuild.node("Gather", [rebuild.constant(entries, "t"), places], "v")
        working = multiplied_in(view.dtype)
        short = working != view.dtype
        value = rebuild.node("Cast", [value], "f", to=working.value) if short else value
        present = rebuild.node("Cast", [bits], "b", to=working.value)
        value = rebuild.node("Mul", [value, present], "w")
        value = rebuild.node("Cast", [value], "f", to=view.dtype.value) if short else value
        if table.size != flat.size:
            value = self._cut(rebuild, self._reshaped(rebuild, value, [1, -1]), flat.size)
        rebuild.finish(self._reshaped(rebuild, value, view.shape))
        return rebuild.nbytes + SPARSE_OVERHEAD - REBUILD_OVERHEAD
