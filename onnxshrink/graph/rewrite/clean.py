"""Rewriters that leave the answers alone: each takes a model and changes it in place.

Most come from onnx_ir and onnxscript. None is trusted: the pass runs each on a copy, compares the
outputs, and drops it when they differ.
"""

from __future__ import annotations

import hashlib

import numpy as np
import onnx_ir as ir

from onnxshrink.graph import operators, read, surgery
from onnxshrink.graph.analysis.folding import affordable
from onnxshrink.graph.file import notes, tensors
from onnxshrink.graph.file.model import Model

#: Larger constants are not folded into one: it saves no time worth the bytes.
_FOLDED_ELEMENTS = 4096
#: Nor are those of narrow types: they are codes of a compressed weight, or as good as that.
_FOLDED_CODES = 32


def inline_functions(model: Model) -> None:
    """Put the bodies of functions where they are called, for the other rewriters and for passes."""
    from onnxshrink.graph.rewrite import inline  # which needs this module

    inline.inline_functions(model)


def fold_constants(model: Model) -> None:
    """Compute what depends on constants only, where the result is not larger than what it needs."""
    from onnxshrink.graph.rewrite.computed import fold_weights  # which needs shapes

    fold_weights(model)
    if fold(model.ir):
        model.rewrite(lambda folded: folded)


def fold(graph: ir.Model, *, shapes: bool = False) -> bool:
    """One round of folding; branches of conditions that are constant are inlined.

    Args:
        graph: What is changed.
        shapes: Whether to infer shapes first, and to fold what follows from them.

    Returns:
        Whether there was anything to fold.
    """
    from onnxscript.optimizer import fold_constants as fold

    def rebuilds(value: ir.Value | None) -> bool:
        tensor = None if value is None else value.const_value
        if tensor is None:
            return False
        narrow = tensor.dtype != ir.DataType.STRING and tensor.dtype.bitwidth < 32
        return tensor.size > (_FOLDED_CODES if narrow else _FOLDED_ELEMENTS)

    def should_fold(node: ir.Node) -> bool | None:
        if operators.of(node, operators.Fill) is not None:
            # The folder leaves it alone, and all behind it.
            shape = node.inputs[0].const_value if node.inputs[0] is not None else None
            return shape is not None and shape.numpy().prod() <= _FOLDED_ELEMENTS
        if _rebuilds(node) and any(map(rebuilds, node.inputs)):
            return False
        return None if _is_affordable(node) else False

    return bool(
        fold(
            graph, onnx_shape_inference=shapes, input_size_limit=_FOLDED_ELEMENTS,
            output_size_limit=_FOLDED_ELEMENTS, should_fold=should_fold,
        )
    )  # fmt: skip


def fix_defaults(model: Model) -> None:
    """Make constants of inputs that have a default: no caller can override them any more."""
    graph = model.ir.graph
    for value in list(graph.inputs):
        if value.name in graph.initializers:
            graph.inputs.remove(value)
            model.touch(value.name)


def strip_docs(model: Model) -> None:
    """Forget doc strings, and all that is noted at nodes and values."""
    model.strip_notes(notes.all_of_them)


def strip_traces(model: Model) -> None:
    """Forget what exporters note for whoever debugs an export: stack traces, source paths."""
    model.strip_notes(notes.of_exporters)


def _rebuilds(node: ir.Node) -> bool:
    """Whether folding a node may undo a compression: it makes a weight of its small form."""
    row = operators.row(node)
    scales = isinstance(row, operators.Arithmetic) and row.scales != row.inverse
    repeats = isinstance(row, operators.Repetition) or operators.moves(node) == "reshapes"
    return scales or repeats or operators.unpacks(node)


def _is_affordable(node: ir.Node) -> bool:
    """Whether a node may be computed in advance, if its inputs are constants; else it will do."""
    stored = [None if value is None else ir.convenience.get_const_tensor(value)
              for value in node.inputs]  # fmt: skip
    if any(v is not None and t is None for v, t in zip(node.inputs, stored, strict=True)):
        return True
    if any(t is not None and t.size > _FOLDED_ELEMENTS for t in stored):
        return True  # the folder leaves it alone
    numbers = [
        number
        for attribute in node.attributes.values()
        if attribute.type in (ir.AttributeType.INT, ir.AttributeType.INTS)
        and not attribute.is_ref()
        for number in np.ravel(attribute.value).tolist()
    ]
    arrays = [None if t is None or t.dtype == ir.DataType.STRING else t.numpy() for t in stored]
    return affordable(node.op_type, numbers, arrays)


def share_duplicates(model: Model) -> None:
    """Store equal initializers once."""
    for scope in model.scopes:
        if not isinstance(scope, ir.Graph):
            continue
        seen: dict[tuple[object, ...], ir.Value] = {}
        for value in list(scope.initializers.values()):
            tensor = value.const_value
            if tensor is None or value.is_graph_input() or value.is_graph_output():
                continue
            if tensor.dtype == ir.DataType.STRING:
                continue
            digest = hashlib.sha256(tensor.tobytes()).digest()
            tensors.release(tensor)
            key = (tensor.dtype, tuple(tensor.shape), digest)
            first = seen.setdefault(key, value)
            if first is not value:
                surgery.redirect(model, value, first)
                surgery.forget(model, value)


def share_subexpressions(model: Model) -> None:
    """Compute equal expressions once."""
    from onnx_ir.passes.common import CommonSubexpressionEliminationPass

    if CommonSubexpressionEliminationPass()(model.ir).modified:
        model.rewrite(lambda shared: shared)


def drop_identities(model: Model) -> None:
    """Let nodes read what an Identity hands on.

    An Identity stays where it makes a graph's output of something that cannot be it itself: an
    input, a constant, another output, or a value from around the graph.
    """
    for scope in model.scopes:
        for node in list(scope):
            if operators.moves(node) == "copies":
                _drop_identity(model, scope, node)


def _drop_identity(model: Model, scope: ir.Graph | ir.Function, node: ir.Node) -> None:
    source, copy = node.inputs[0], node.outputs[0]
    if source is None:
        return
    maker = source.producer()
    if copy.is_graph_output():
        if maker is None or maker.graph is not scope or source.is_graph_output():
            return
        if sum(output is copy for output in scope.outputs) > 1:
            return
    model.touch(copy.name, source.name)
    for user, _ in (*copy.uses(), *source.uses()):
        model.touch_node(user)
    named = copy.name if copy.is_graph_output() else source.name
    if source.shape is None:
        source.shape = copy.shape
    if source.type is None:
        source.type = copy.type
    copy.replace_all_uses_with(source, replace_graph_outputs=True)
    scope.remove(node, safe=True)
    if named != source.name and maker is not None:
        copy.name = None
        source.name = named
        model.touch_node(maker)


def forward_constants(model: Model) -> None:
    """Let nodes read a constant itself, not an Identity of it, as exporters write for tied weights.

    Identities of anything else stay, and so do those that are outputs.
    """
    for scope in model.scopes:
        for node in list(scope):
            if operators.moves(node) != "copies":
                continue
            source, copy = node.inputs[0], node.outputs[0]
            if source is None or copy.is_graph_output() or read.constant(source) is None:
                continue
            surgery.redirect(model, copy, source)
            surgery.remove(model, node)


def drop_unused(model: Model) -> None:
    """Remove nodes, initializers and functions that no output depends on."""
    from onnx_ir.passes.common import RemoveUnusedFunctionsPass, RemoveUnusedNodesPass

    def change(graph: ir.Model) -> ir.Model:
        RemoveUnusedNodesPass()(graph)  # what it drops of a node's outputs it does not count
        RemoveUnusedFunctionsPass()(graph)  # type: ignore[no-untyped-call]
        return graph

    model.rewrite(change)


def fold_batch_norms(model: Model) -> None:
    """Multiply BatchNormalization into the convolution before it (inference form).

    ``W' = W a``, ``b' = (b - mean) a + beta`` with ``a = gamma / sqrt(variance + epsilon)``, in
    float64. Only where the weight and the convolution serve nobody else.
    """
    for scope in list(model.scopes):
        for norm in [node for node in scope if _is_inference_norm(node, model.opset)]:
            _fold_batch_norm(model, scope, norm)


def _is_inference_norm(node: ir.Node, opset: int) -> bool:
    """Whether a node normalizes with stored statistics, one for each channel."""
    row = operators.of(node, operators.Norm)
    if row is None or not row.fixed or opset < 7:
        return False
    if read.obstacle(node):
        return False
    flags = {"training_mode": 0, "spatial": 1}  # what they are when they are left out
    return all(read.integer(node, name, usual) == usual for name, usual in flags.items())


def _fold_batch_norm(model: Model, scope: ir.Graph | ir.Function, norm: ir.Node) -> None:
    source = norm.inputs[0]
    conv = source.producer() if source is not None else None
    product = None if conv is None else operators.product(conv, 1)
    if (
        source is None
        or conv is None
        or product is None
        or not product.convolves
        or product.hidden
        or conv.graph is not scope
        or len(source.uses()) != 1
        or source.is_graph_output()
        or any(output.uses() or output.is_graph_output() for output in norm.outputs[1:])
        or not isinstance(scope, ir.Graph)
    ):
        return
    weight, bias = conv.inputs[1], read.input(conv, 2)
    parameters = [_own_values(model, value) for value in norm.inputs[1:5]]
    kernel = _own_values(model, weight)
    offset = np.zeros(1) if bias is None else _own_values(model, bias)
    if kernel is None or offset is None or any(p is None for p in parameters):
        return
    assert weight is not None
    if len(weight.uses()) != 1:
        return
    gamma, beta, mean, variance = (p for p in parameters if p is not None)
    factor = gamma / np.sqrt(variance + read.number(norm, "epsilon", 1e-5))
    if not product.spreads:
        folded = kernel * factor.reshape(-1, *[1] * (kernel.ndim - 1))
    else:
        groups = product.groups
        split = kernel.reshape(groups, -1, *kernel.shape[1:])
        apart = factor.reshape(groups, 1, -1, *[1] * (kernel.ndim - 2))
        folded = (split * apart).reshape(kernel.shape)
    shifted = (offset - mean) * factor + beta
    _give(model, conv, 1, folded)
    _give(model, conv, 2, shifted)
    constants = [value for value in dict.fromkeys(norm.inputs[1:5]) if value is not None]
    surgery.replace_node(model, norm, [source])
    for value in constants:
        surgery.forget(model, value)


def _own_values(model: Model, value: ir.Value | None) -> np.ndarray | None:
    """A float32 constant in float64; None where it is not one that may change."""
    if value is None or value.is_graph_output():
        return None
    if value.is_graph_input() and model.ir.ir_version >= 4:
        return None
    tensor = read.constant(value)
    if tensor is None or tensor.dtype != ir.DataType.FLOAT:
        return None
    values = tensor.numpy().astype(np.float64)
    tensors.release(tensor)
    return values


def _give(model: Model, node: ir.Node, index: int, values: np.ndarray) -> None:
    """Give one input of a node new constant values instead of the old ones."""
    old = read.input(node, index)
    name = f"{node.outputs[0].name or node.op_type}.{'weight' if index == 1 else 'bias'}"
    surgery.give_constant(model, node, index, values.astype(np.float32), name)
    if old is not None:
        surgery.forget(model, old)
