"""Taking chosen channels out of a model: its constants, its parameters, its declared shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxshrink.channels.atoms import Labels
from onnxshrink.errors import ModelError
from onnxshrink.graph import read, surgery
from onnxshrink.graph.file import tensors
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.surgery import Recorder

if TYPE_CHECKING:
    from onnxshrink.channels.labels import Axis, Slot, Walk


@dataclass(frozen=True)
class Shortened:
    """A constant that lost channels."""

    name: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    nbytes_before: int
    nbytes_after: int
    op_type: str


class Cut:
    """One removal from one model.

    Args:
        walk: The labels of the model, which is edited.
        removed: For every atom, whether it goes; only free undefined representatives count.
    """

    def __init__(self, walk: Walk, removed: npt.NDArray[np.bool_]):
        self.model: Model = walk.model
        self._walk = walk
        # Bodies see the constants of the main graph.
        self._recorder = Recorder(walk.model, walk.model.ir.graph)
        self._gone = removed
        self._replaced: set[ir.Value] = set()
        self._behind: dict[ir.Value, ir.Value] = {}
        self._laid_out: dict[ir.Value, tuple[tuple[int, ...], int]] = {}

    # --------------------------------------------------------- what rules ask for

    def kept(self, labels: Labels) -> npt.NDArray[np.bool_]:
        """Which indices of an axis stay."""
        return self._walk.atoms.kept(labels, self._gone)

    def removed(self, axis: Axis) -> int:
        """How many indices of an axis go."""
        return 0 if axis is None else int((~self.kept(axis)).sum())

    def set_integer(self, node: ir.Node, name: str, value: int) -> None:
        """Give a node an attribute."""
        self._set(node, ir.AttrInt64(name, value))

    def set_integers(self, node: ir.Node, name: str, values: Sequence[int]) -> None:
        """Give a node an attribute."""
        self._set(node, ir.AttrInt64s(name, list(values)))

    def set_float(self, node: ir.Node, name: str, value: float) -> None:
        """Give a node an attribute."""
        self._set(node, ir.AttrFloat32(name, value))

    def _set(self, node: ir.Node, attribute: ir.Attr) -> None:
        node.attributes[attribute.name] = attribute
        self.model.touch_node(node)

    def drop_attribute(self, node: ir.Node, name: str) -> None:
        """Take an attribute from a node."""
        if name in node.attributes:
            del node.attributes[name]
            self.model.touch_node(node)

    def replace_input(self, node: ir.Node, index: int, array: np.ndarray) -> None:
        """Give a node another constant as input."""
        old = read.input(node, index)
        kind = self._walk.facts.dtype(old) if old is not None else None
        if old is not None:
            self._replaced.add(old)
        name = (old.name if old is not None else None) or f"{node.outputs[0].name}.{index}"
        value = self.constant(array if kind is None else array.astype(kind), name, node)
        surgery.set_input(self.model, node, index, value)

    def subtract(
        self, node: ir.Node, index: int, removed: Labels, explicit: Mapping[int, int] | None = None
    ) -> None:
        """Take removed channels off the sizes that a node gets as input.

        Args:
            node: The node.
            index: Which of its inputs.
            removed: What to take off each entry.
            explicit: Entries that get a new value instead.

        Raises:
            ModelError: An entry must be replaced, but the input is computed.
        """
        value = node.inputs[index]
        assert value is not None
        tensor = read.constant(value)
        if tensor is not None:
            target = tensor.numpy() - removed
            for entry, size in (explicit or {}).items():
                target[entry] = size
            self.replace_input(node, index, target)
            return
        if explicit:
            raise ModelError(f"{value.name!r}: a computed shape copies an axis that changes")
        delta = self.constant(removed, f"{value.name}.removed", node)
        less = self.add_node("Sub", [value, delta], f"{value.name}.left", node)
        surgery.set_input(self.model, node, index, less)

    def lay_out(self, value: ir.Value, array: np.ndarray) -> None:
        """Give a constant of one use other values, before its labelled axes are cut."""
        tensor = read.constant(value)
        assert tensor is not None
        self._laid_out[value] = read.shape(tensor), tensor.nbytes
        surgery.set_constant(self.model, value, array)

    def add_behind(self, node: ir.Node, addend: np.ndarray | ir.Value) -> None:
        """Add something to what a node makes; all users get the sum."""
        self.put_behind(node, "Add", [addend])

    def multiply_behind(self, node: ir.Node, factor: float) -> None:
        """Multiply what a node makes by a constant; all users get the product."""
        kind = self._walk.facts.dtype(node.outputs[0])
        self.put_behind(node, "Mul", [np.array(factor, np.float32 if kind is None else kind)])

    def put_behind(
        self, node: ir.Node, op_type: str, operands: Sequence[np.ndarray | ir.Value],
        output: int = 0,
    ) -> None:  # fmt: skip
        """Have all users get an output through another node, which also reads other operands."""
        now = self._walk.labels
        old = self._newest(node.outputs[output])
        name = old.name or ""
        more = [self._operand(each, f"{name}.part") for each in operands]
        made = self._recorder.put_behind(old, op_type, more, f"{name}.whole")
        old.shape = None  # nobody needs it, and it may differ
        if old in now:
            now[made] = now.pop(old)
        self._behind[node.outputs[output]] = made

    def put_before(self, node: ir.Node, index: int, op_type: str, operands: Sequence[Any]) -> None:
        """Have a node get an input through another node, which also reads constants."""
        value = node.inputs[index]
        assert value is not None
        more = [self._operand(each, f"{value.name}.part") for each in operands]
        made = self.add_node(op_type, [value, *more], f"{value.name}.{op_type.lower()}", node)
        surgery.set_input(self.model, node, index, made)

    def square(self, value: ir.Value, factor: float, before: ir.Node) -> ir.Value:
        """The square of a value, times a constant, made just before a node."""
        kind = self._walk.facts.dtype(value) or np.dtype(np.float32)
        value = self._newest(value)
        name = f"{value.name}.square"
        square = self.add_node("Mul", [value, value], name, before)
        share = self.constant(np.array(factor, kind), f"{name}.part", before)
        return self.add_node("Mul", [square, share], name, before)

    def _newest(self, value: ir.Value) -> ir.Value:
        """What users of a value get now."""
        while value in self._behind:
            value = self._behind[value]
        return value

    def _operand(self, given: np.ndarray | ir.Value, name: str) -> ir.Value:
        """A value, or a constant that goes where the next node goes."""
        return given if isinstance(given, ir.Value) else self._recorder.constant(given, name)

    def replace_by_gather(
        self, nodes: Sequence[ir.Node], source: ir.Value, index: Labels, axis: int
    ) -> None:
        """Put one Gather in place of a chain of nodes."""
        name = nodes[-1].outputs[0].name or ""
        order = self.constant(index, f"{name}.order", nodes[-1])
        made = self.add_node("Gather", [source, order], f"{name}.picked", nodes[-1], axis=axis)
        self.replace_node(nodes[-1], {0: made})
        for node in reversed(nodes[:-1]):
            self.replace_node(node, {})

    def constant(self, array: np.ndarray, name: str, before: ir.Node) -> ir.Value:
        """A new constant; in a model whose initializers are inputs, made in front of a node."""
        value = self._recorder.constant(array, name)
        self._recorder.put_before(before)
        return value

    def add_node(
        self, op_type: str, inputs: Sequence[ir.Value | None], name: str, before: ir.Node,
        **attributes: Any,
    ) -> ir.Value:  # fmt: skip
        """What a new node makes, which is put in front of another."""
        value = self._recorder.node(op_type, inputs, name, **attributes)
        self._recorder.put_before(before)
        return value

    def replace_node(self, node: ir.Node, outputs: Mapping[int, ir.Value]) -> None:
        """Take a node out of the graph; other values take over its outputs, names and labels."""
        self._replaced.update(value for value in node.inputs if value is not None)
        labels = self._walk.labels
        for index, made in outputs.items():
            if index < len(node.outputs) and node.outputs[index] in labels:
                labels[made] = labels.pop(node.outputs[index])
        results = [outputs.get(index) for index in range(len(node.outputs))]
        surgery.replace_node(self.model, node, results)

    # -------------------------------------------------------------------- the cut

    def apply(self) -> list[Shortened]:
        """Change the model.

        Returns:
            Every constant that lost channels.

        Raises:
            ModelError: An axis would be left without any channel.
        """
        for slot, axes in self._walk.labels.items():
            self._keeps(slot, axes)  # before anything is changed
        for _, rewrite in self._walk.rewrites:
            rewrite(self)
        done: list[Shortened] = []
        by_value: dict[ir.Value, list[tuple[Slot, list[Any]]]] = {}
        for slot, axes in self._walk.labels.items():
            value, keep = slot[0] if isinstance(slot, tuple) else slot, self._keeps(slot, axes)
            if isinstance(slot, tuple) and slot[1].inputs[slot[2]] is not value:
                continue  # a rewriter gave the node another constant, of the length that it wants
            if read.constant(value) is not None:
                by_value.setdefault(value, []).append((slot, keep))
            elif any(k is not None for k in keep):
                self._declare(value, keep)
                if value.graph is self.model.ir.graph:  # bodies may use one name for several
                    self._note(value.name or "", keep)
        for value, uses in by_value.items():
            tensor = read.constant(value)
            assert tensor is not None
            done += self._shorten(value, tensor, uses)
            tensors.release(tensor)
        self._drop_replaced()
        return done

    def _keeps(self, slot: Slot, axes: Sequence[Axis]) -> list[npt.NDArray[np.bool_] | None]:
        keeps: list[npt.NDArray[np.bool_] | None] = []
        for labels in axes:
            kept = None if labels is None else self.kept(labels)
            if kept is not None and len(kept) and not kept.any():
                value = slot[0] if isinstance(slot, tuple) else slot
                raise ModelError(f"{value.name!r}: no channel would be left of {len(kept)}")
            keeps.append(None if kept is None or kept.all() else kept)
        return keeps

    def _note(self, name: str, keeps: Sequence[npt.NDArray[np.bool_] | None]) -> None:
        """Remember what is left of a value, by the indices that it had at first."""
        before = self.model.kept.get(name, [None] * len(keeps))
        left = [
            old if keep is None else np.flatnonzero(keep) if old is None else old[keep]
            for old, keep in zip(before, keeps, strict=True)
        ]
        self.model.kept = {**self.model.kept, name: left}

    def _declare(self, value: ir.Value, keeps: Sequence[Any]) -> None:
        """Bring the declared shape of a value up to date."""
        if value.shape is None:
            return
        sizes = [
            int(keep.sum()) if keep is not None and isinstance(dim, int) else dim
            for dim, keep in zip(value.shape, keeps, strict=True)
        ]
        value.shape = ir.Shape(sizes)
        self.model.touch(value.name)

    def _shorten(
        self, value: ir.Value, tensor: ir.TensorProtocol, uses: Sequence[tuple[Slot, list[Any]]]
    ) -> list[Shortened]:
        """Cut a constant; a vector whose uses lose different channels becomes several."""
        whole = all(k is None for _, keep in uses for k in keep)
        if whole and value not in self._laid_out:
            return []
        array = tensor.numpy()
        op_type = next((use.node.op_type for use in value.uses()), "")
        variants: dict[bytes, ir.Value | None] = {}
        done = []
        # Uses without a label of their own keep the whole vector.
        labelled = {(slot[1], slot[2]) for slot, _ in uses if isinstance(slot, tuple)}
        whole = isinstance(uses[0][0], tuple) and any(
            (use.node, use.idx) not in labelled for use in value.uses()
        )
        for slot, keep in uses:
            key = b"".join(b"*" if k is None else k.tobytes() for k in keep)
            if key in variants:
                target = variants[key]
            else:
                short = array
                for axis, k in enumerate(keep):
                    short = short if k is None else short.compress(k, axis)
                own = not whole and not variants
                target = self._variant(value, tensor, short, own, slot)
                variants[key] = target
                if short is not array or value in self._laid_out:
                    shape, nbytes = self._laid_out.get(value, (array.shape, tensor.nbytes))
                    done.append(
                        Shortened(
                            target.name or "", shape, short.shape, nbytes,
                            tensor.nbytes * short.size // max(array.size, 1), op_type,
                        )
                    )  # fmt: skip
            if isinstance(slot, tuple) and target is not value:
                slot[1].replace_input_with(slot[2], target)
                self.model.touch_node(slot[1])
        return done

    def _variant(
        self, value: ir.Value, tensor: ir.TensorProtocol, array: np.ndarray, own: bool, slot: Slot
    ) -> ir.Value:
        """A constant with these values: the old one, or a new one beside it."""
        if not own:
            assert isinstance(slot, tuple)
            return self.constant(array, value.name or "", slot[1])
        if array.shape == read.shape(tensor):
            return value
        surgery.set_constant(self.model, value, array)
        return value

    def _drop_replaced(self) -> None:
        """Take constants that nothing uses any more out of the file."""
        for value in self._replaced:
            surgery.forget(self.model, value)
