"""Edits that passes make to a graph: a weight is replaced by nodes that rebuild it.

The rebuilt value takes the name of the weight, so the operators that use it stay as they are,
byte for byte, and people still find the weight by its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms.layout import Layout
from onnxshrink.graph.weights.views import WeightView
from onnxshrink.kernels import bits, rate
from onnxshrink.kernels.affine import Quantized

#: ``dq``: DequantizeLinear, which ONNX Runtime fuses into integer MatMul kernels. ``cast-mul``:
#: Cast and Mul, which it folds once at load. ``gather``: rows are rebuilt after the lookup.
#: ``nbits``: operators that take the codes as they are (see ``nbits``).
Form = Literal["dq", "cast-mul", "gather", "nbits"]

#: Bytes that the nodes, names and headers of a rebuilt weight cost, about.
REBUILD_OVERHEAD = 120
CAST_OVERHEAD = 50
_SCATTER_ELEMENTS = 11  # the operator set that has it
_SHORT_SCALES = 48  # fewer are not worth a Cast


def _has_initializers(model: Model, view: WeightView) -> bool:
    """Whether constants beside the weight can be initializers that are not inputs."""
    return not view.is_node and model.ir.ir_version >= 4 and isinstance(view.scope, ir.Graph)


def can_gather(model: Model, view: WeightView) -> bool:
    """Whether ``gather`` can be used: lookups of whole rows are all that happens to the weight."""
    return (
        _has_initializers(model, view)
        and not view.others
        and all(
            use.op_type == "Gather" and use.direct and use.axes.out == (0,) for use in view.uses
        )
    )


def can_dequantize(layout: Layout, nbits: int) -> bool:
    """Whether ``dq`` can be used: a float type that DequantizeLinear makes, scales along one axis.

    Args:
        layout: How the weight is quantized.
        nbits: Bits of a code.
    """
    view, shape, shared = layout.view, layout.shape, layout.axes
    if nbits == 2 and (shape[-1] % 4 or not all(use.direct for use in view.uses)):
        # ONNX Runtime 1.32 fails to load 2-bit codes in front of a Transpose, and computes
        # something else at every load with rows that do not fill their last byte.
        return False
    if view.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return False
    if shape == view.shape:
        return sum(dim > 1 for axis, dim in enumerate(shape) if axis not in shared) <= 1
    return len(shape) == len(view.shape) + 1  # one axis is cut into blocks


class Rebuild:
    """Nodes and constants that take the place of one weight, in the scope where it lives.

    Constants are stored the way the weight was: as initializers, or as Constant nodes where the
    scope has no initializers (functions) or its initializers would be inputs (IR version 3).

    Attributes:
        nbytes: Bytes of the constants so far, and about as many as nodes and headers cost.
    """

    def __init__(self, model: Model, view: WeightView):
        self.model, self.view = model, view
        self.nbytes = REBUILD_OVERHEAD
        # Every name is written twice or more: in a small model long ones are a good part of it.
        self._prefix = model.unused_name("w")
        self._nodes: list[ir.Node] = []
        self._as_nodes = not _has_initializers(model, view)

    def constant(self, values: np.ndarray | ir.TensorProtocol, suffix: str) -> ir.Value:
        """A new constant."""
        name = self.model.unused_name(f"{self._prefix}.{suffix}")
        tensor = self.model.store(values, name)
        self.nbytes += tensor.nbytes
        self.model.touch(name)
        if self._as_nodes:
            return self._add("Constant", [], [ir.AttrTensor("value", tensor)], name)
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()),
            const_value=tensor,
        )  # fmt: skip
        assert isinstance(self.view.scope, ir.Graph)
        self.view.scope.register_initializer(value)
        return value

    def node(
        self, op_type: str, inputs: Sequence[ir.Value], suffix: str, domain: str = "",
        **attributes: Any,
    ) -> ir.Value:  # fmt: skip
        """A new node with one output."""
        name = self.model.unused_name(f"{self._prefix}.{suffix}")
        found = ir.convenience.convert_attributes(attributes)
        return self._add(op_type, inputs, found, name, domain)

    def _add(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        attributes: Sequence[ir.Attr],
        name: str,
        domain: str = "",
    ) -> ir.Value:
        node = ir.Node(domain, op_type, inputs, attributes, name="")
        node.outputs[0].name = name
        self.model.touch(name)
        self._nodes.append(node)
        return node.outputs[0]

    def finish(self, result: ir.Value) -> None:
        """Put ``result`` in the place of the weight, and the weight out of the file."""
        value, name = self.view.value, self.view.name
        self.model.touch(name)
        self.place()
        value.replace_all_uses_with(result)
        self._drop(value)
        result.name = name

    def place(self) -> None:
        """Put the nodes so far where the weight is; whatever uses it can use them."""
        scope, old = self.view.scope, self.view.value.producer()
        first = old if old is not None else next(iter(scope), None)
        if first is None:
            scope.extend(self._nodes)
        else:
            scope.insert_before(first, self._nodes)
        self._nodes = []

    def finish_lookup(self, before: ir.Node, result: ir.Value) -> None:
        """Put the nodes so far in the place of one operator that uses the weight."""
        output = before.outputs[0]
        name, graph = output.name, before.graph
        assert graph is not None
        self.model.touch(name)
        graph.insert_before(before, self._nodes)
        self._nodes = []
        output.replace_all_uses_with(result, replace_graph_outputs=True)
        result.type, result.shape = output.type, output.shape
        graph.remove(before, safe=True)
        result.name = name

    def finish_input(self, nodes: Sequence[ir.Node], index: int, result: ir.Value) -> None:
        """Put the nodes so far before these, which are in one graph, and let them read the result.

        Raises:
            ValueError: They are not in one graph.
        """
        graph = nodes[0].graph
        if graph is None or any(node.graph is not graph for node in nodes):
            raise ValueError("the operators that read it are in several graphs")
        first = next(node for node in graph if node in nodes)
        graph.insert_before(first, self._nodes)
        self._nodes = []
        for node in nodes:
            node.replace_input_with(index, result)
            self.model.touch_node(node)

    def drop(self) -> None:
        """Take the weight out of the file once nothing uses it any more."""
        self.model.touch(self.view.name)
        self._drop(self.view.value)

    def _drop(self, value: ir.Value) -> None:
        node, scope = value.producer(), self.view.scope
        if node is not None:
            scope.remove(node, safe=True)
            return
        assert isinstance(scope, ir.Graph)
        scope.initializers.pop(value.name or "")
        if value in scope.inputs:
            scope.inputs.remove(value)


def code_tensor(stored: Quantized, shape: Sequence[int]) -> np.ndarray | ir.TensorProtocol:
    """Codes as the tensor to store, of a given shape."""
    kind = ir.DataType[stored.dtype.upper()]
    if stored.bits < 8:
        return ir.PackedTensor(bits.pack(stored.codes, stored.bits), kind, shape=ir.Shape(shape))
    # Not ascontiguousarray, which makes a vector of a scalar.
    return ir.Tensor(np.asarray(stored.codes.reshape(shape), order="C"), dtype=kind)


def dequantized(model: Model, view: WeightView, stored: Quantized, form: Form) -> int:
    """Replace a weight by integer codes and the nodes that turn them back into it.

    Args:
        model: The model, whose journal is kept.
        view: The weight.
        stored: Its codes, in the stored shape or with one axis split into blocks.
        form: How the codes are turned back; ``dq`` takes scales per tensor, per axis, or per
            block of one axis, ``cast-mul`` any, ``gather`` one scale per row of the first axis.

    Returns:
        Bytes that it takes now, about.
    """
    rebuild = Rebuild(model, view)
    if form == "gather":
        _gathered(rebuild, stored)
    elif form == "dq":
        rebuild.finish(_dequantize_linear(rebuild, stored, view.shape))
    else:
        rebuild.finish(cast_mul(rebuild, stored))
    return rebuild.nbytes


def dequantized_gemm(model: Model, view: WeightView, stored: Quantized) -> int:
    """Replace the weight of one Gemm by DequantizeLinear of its transpose, and turn the Gemm.

    ONNX Runtime fuses DequantizeLinear with a Gemm only where ``transB`` is 0.

    Args:
        model: The model, whose journal is kept.
        view: A weight with one use, the second input of a Gemm.
        stored: Codes of the *transposed* weight.

    Returns:
        Bytes that it takes now, about.
    """
    node = view.main.node
    node.attributes["transB"] = ir.AttrInt64("transB", 1 - node.attributes["transB"].as_int())
    model.touch_node(node)
    rebuild = Rebuild(model, view)
    rebuild.finish(_dequantize_linear(rebuild, stored, view.shape[::-1]))
    return rebuild.nbytes


def cast_mul(rebuild: Rebuild, stored: Quantized) -> ir.Value:
    """Integer codes turned into the weight by Cast and Mul, which runtimes fold at load."""
    view = rebuild.view
    # Products are taken in float32 where the runtime has no kernel for the weight's own type.
    working = view.dtype if view.dtype != ir.DataType.BFLOAT16 else ir.DataType.FLOAT
    shape = stored.codes.shape
    large = None
    if stored.codes.dtype == np.int16 and rebuild.model.opset >= _SCATTER_ELEMENTS:
        large = rate.escaped(stored.codes)
    codes = code_tensor(stored, shape) if large is None else large.codes
    result = rebuild.node("Cast", [rebuild.constant(codes, "q")], "c", to=working.value)
    if large is not None:
        result = _with_large(rebuild, result, large, working)
    if stored.zero_point is not None:
        result = rebuild.node("Sub", [result, _zero(rebuild, stored, working)], "d")
    scale = factor(rebuild, trimmed(stored.scale, len(shape)), working)
    result = rebuild.node("Mul", [result, scale], "w")
    if shape != view.shape:
        target = rebuild.constant(np.array(view.shape, np.int64), "n")
        result = rebuild.node("Reshape", [result, target], "r")
    if working != view.dtype:
        result = rebuild.node("Cast", [result], "t", to=view.dtype.value)
    return result


def _with_large(
    rebuild: Rebuild, result: ir.Value, large: rate.Escaped, dtype: ir.DataType
) -> ir.Value:
    """Codes with the large ones put back in their places."""
    flat = rebuild.constant(np.array([-1], np.int64), "l")
    places, values = rebuild.constant(large.places, "p"), rebuild.constant(large.large, "v")
    values = rebuild.node("Cast", [values], "y", to=dtype.value)
    result = rebuild.node("Reshape", [result, flat], "e")
    result = rebuild.node("ScatterElements", [result, places, values], "g", axis=0)
    shape = rebuild.constant(np.array(large.codes.shape, np.int64), "o")
    return rebuild.node("Reshape", [result, shape], "a")


def _zero(rebuild: Rebuild, stored: Quantized, dtype: ir.DataType) -> ir.Value:
    """Zero points in the type that they are taken off in, stored as codes where there are many."""
    assert stored.zero_point is not None
    zero = trimmed(stored.zero_point, stored.zero_point.ndim)
    if (zero == zero.flat[0]).all():
        zero = np.asarray(zero.flat[0])
    if zero.size < _SHORT_SCALES:
        return rebuild.constant(zero.astype(dtype.numpy()), "z")
    packed = rebuild.constant(code_tensor(replace(stored, codes=zero), zero.shape), "z")
    return rebuild.node("Cast", [packed], "y", to=dtype.value)


def factor(rebuild: Rebuild, scale: np.ndarray, dtype: ir.DataType) -> ir.Value:
    """A scale in the type that it is multiplied in, stored as float16 where that saves bytes."""
    short = _short(scale, dtype)
    if short is None:
        return rebuild.constant(scale.astype(dtype.numpy()), "s")
    return rebuild.node("Cast", [rebuild.constant(short, "s")], "f", to=dtype.value)


def _short(scale: np.ndarray, dtype: ir.DataType) -> np.ndarray | None:
    """The scale as float16, if that is exact and saves more than the Cast costs."""
    if dtype == ir.DataType.FLOAT16 or scale.size < _SHORT_SCALES:
        return None
    with np.errstate(over="ignore"):
        short = scale.astype(np.float16)
    return short if np.array_equal(short.astype(scale.dtype), scale) else None


def trimmed(array: np.ndarray, rank: int) -> np.ndarray:
    """The same array without leading axes of size 1, which broadcasting supplies."""
    lead = next((i for i, dim in enumerate(array.shape) if dim > 1), rank)
    return array.reshape(array.shape[lead:])


def _dequantize_linear(rebuild: Rebuild, stored: Quantized, shape: tuple[int, ...]) -> ir.Value:
    attributes, scale_shape = _placement(stored, shape)
    kind = rebuild.view.dtype.numpy()
    codes = rebuild.constant(code_tensor(stored, shape), "q")
    scale = rebuild.constant(stored.scale.reshape(scale_shape).astype(kind), "s")
    zeros = stored.zero_point
    if zeros is None:
        # Written even when all are zero: some runtimes refuse a signed DQ without it.
        zeros = np.zeros(stored.scale.shape, stored.codes.dtype)
    packed = code_tensor(replace(stored, codes=zeros), scale_shape)
    zero = rebuild.constant(packed, "z")
    return rebuild.node("DequantizeLinear", [codes, scale, zero], "w", **attributes)


def _placement(stored: Quantized, shape: tuple[int, ...]) -> tuple[dict[str, Any], tuple[int, ...]]:
    """DequantizeLinear's attributes and the shape of its scale."""
    scale = stored.scale.shape
    if stored.codes.shape != shape:  # [.., K / block, block, ..]: one axis is split in two
        axis = next(a for a, dim in enumerate(shape) if stored.codes.shape[a] != dim)
        block = stored.codes.shape[axis + 1]
        return {"axis": axis, "block_size": block}, scale[: axis + 1] + scale[axis + 2 :]
    wide = [axis for axis, dim in enumerate(scale) if dim > 1]
    if len(wide) > 1:
        raise ValueError("DequantizeLinear has scales along one axis only")
    return ({"axis": wide[0]}, (scale[wide[0]],)) if wide else ({}, ())


def _gathered(rebuild: Rebuild, stored: Quantized) -> None:
    """Look up codes and scales, and multiply only the rows that were asked for."""
    view = rebuild.view
    codes = rebuild.constant(code_tensor(stored, view.shape), "q")
    per_row = stored.scale.shape[0] > 1
    short = _short(stored.scale, view.dtype) if per_row else None
    if per_row:
        values = stored.scale.astype(view.dtype.numpy()) if short is None else short
        scale = rebuild.constant(values, "s")
    else:
        scale = factor(rebuild, trimmed(stored.scale, len(view.shape)), view.dtype)
    for use in view.uses:
        indices = use.node.inputs[1]
        assert indices is not None
        picked = rebuild.node("Gather", [codes, indices], "q", axis=0)
        rows = rebuild.node("Cast", [picked], "c", to=view.dtype.value)
        factors = scale
        if per_row:
            factors = rebuild.node("Gather", [scale, indices], "s", axis=0)
        if short is not None:
            factors = rebuild.node("Cast", [factors], "f", to=view.dtype.value)
        result = rebuild.node("Mul", [rows, factors], "w")
        rebuild.finish_lookup(use.node, result)
    rebuild.drop()


def stored_as(model: Model, view: WeightView, values: np.ndarray) -> None:
    """Replace a constant by the same values in another type, and a Cast back.

    Args:
        model: The model, whose journal is kept.
        view: The constant.
        values: Its values in the type to store them in.
    """
    rebuild = Rebuild(model, view)
    narrow = rebuild.constant(values, "h")
    rebuild.finish(rebuild.node("Cast", [narrow], "w", to=view.dtype.value))


def revalued(
    model: Model, view: WeightView, values: np.ndarray, notes: Mapping[str, str] | None = None
) -> None:
    """Give a weight other values of its type and shape, under its name.

    Args:
        model: The model, whose journal is kept.
        view: The weight.
        values: Of its shape.
        notes: Metadata to add to the tensor.
    """
    set_constant(model, view.value, view.tensor, values, notes)


def set_constant(
    model: Model, value: ir.Value, old: ir.TensorProtocol, values: np.ndarray,
    notes: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """The same of any constant, whose contents were ``old``."""
    node, name = value.producer(), value.name or ""
    tensor = ir.Tensor(
        np.asarray(values, old.dtype.numpy(), order="C"), dtype=old.dtype, name=old.name,
        doc_string=old.doc_string, metadata_props={**old.metadata_props, **(notes or {})},
    )  # fmt: skip
    model.touch(name)
    if node is None:
        value.const_value = model.store(tensor, name)
    else:
        node.attributes["value"] = ir.AttrTensor("value", tensor)


def forget(model: Model, value: ir.Value) -> None:
    """Take a constant out of the file if nothing uses it any more."""
    if value.uses() or value.is_graph_output():
        return
    node = value.producer()
    if node is not None:
        if node.op_type == "Constant" and node.graph is not None:
            model.touch(value.name)
            node.graph.remove(node, safe=True)
        return
    for scope in model.scopes:
        if isinstance(scope, ir.Graph) and scope.initializers.get(value.name or "") is value:
            model.touch(value.name)
            scope.initializers.pop(value.name or "")
            if value in scope.inputs:
                scope.inputs.remove(value)


def give_constant(
    model: Model, node: ir.Node, index: int, values: np.ndarray, stem: str
) -> ir.Value:
    """Give one input of a node a constant of its own, under a name with this stem."""
    graph = node.graph
    assert graph is not None
    name = model.unused_name(stem)
    tensor = model.store(np.ascontiguousarray(values), name)
    model.touch(name)
    if isinstance(graph, ir.Graph) and model.ir.ir_version >= 4:
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(values.shape),
            const_value=tensor,
        )  # fmt: skip
        graph.register_initializer(value)
    else:
        constant = ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)], name="")
        graph.insert_before(node, constant)
        value = constant.outputs[0]
        value.name = name
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)
    model.touch_node(node)
    return value
