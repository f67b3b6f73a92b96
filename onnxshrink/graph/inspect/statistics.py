"""What is in a model: parameters, bytes, multiply-accumulates, and what its weights look like.

Weights are read one by one and let go, so a large model takes little memory.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxshrink.errors import RecipeError
from onnxshrink.graph import read
from onnxshrink.graph.analysis import macs
from onnxshrink.graph.analysis.operands import ConstantOperand, label
from onnxshrink.graph.analysis.operands import find as find_operands
from onnxshrink.graph.analysis.shape_rules import static
from onnxshrink.graph.analysis.shapes import Walked, walk
from onnxshrink.graph.file import tensors
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.inspect.findings import (
    Inspection,
    NodeMacs,
    OperatorTotals,
    Weight,
    compare_models,
    weight_table,
)
from onnxshrink.graph.operators import QuantizedRow, of
from onnxshrink.graph.rewrite import ml, trees
from onnxshrink.graph.weights.views import FLOATS, WeightView
from onnxshrink.graph.weights.views import find as find_views
from onnxshrink.kernels import affine, distribution
from onnxshrink.kernels.distribution import Distribution
from onnxshrink.report import Table

__all__ = ["Inspection", "compare_models", "inspect_model", "layer_table"]

_TYPES = {ir.DataType.FLOAT: "float32", ir.DataType.DOUBLE: "float64"}
_BLOCK = 32
_SCALE_BYTES = 4


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
    found = find_operands(model)
    walked = walk(model, shapes)
    parameters = list(_weights(model, found, walked, read=weights))
    parameters.sort(key=lambda weight: -weight.nbytes)
    operators = _count_operators(model, walked, found)
    notes = list(walked.notes)
    if unknown := sum(operator.unknown for operator in operators):
        given = shapes or {}
        open_inputs = [
            f"{v.name} {v.shape}" for v in model.inputs if _is_open(v) and v.name not in given
        ]
        notes.append(
            f"MACs of {unknown} of the nodes are unknown, and missing from the totals"
            + (f"; give the shapes of {', '.join(open_inputs)}" if open_inputs else "")
        )
    return Inspection(
        name=model.label,
        file_bytes=model.stored_bytes(),
        constant_bytes=sum(operator.nbytes for operator in operators),
        opset=model.opset,
        inputs={value.name or "": str(value.shape or "?") for value in model.inputs},
        operators=operators,
        weights=tuple(parameters),
        node_macs=_by_node(walked),
        notes=tuple(notes),
    )


def _node_name(node: ir.Node) -> str:
    """A node's name, or that of its first output."""
    return node.name or node.outputs[0].name or ""


def _is_open(value: ir.Value) -> bool:
    """Whether an input has a size that only the caller knows."""
    return value.shape is None or any(not isinstance(dim, int) for dim in value.shape)


def _count_operators(
    model: Model, walked: Walked, found: Sequence[ConstantOperand]
) -> tuple[OperatorTotals, ...]:
    number = Counter(label(node) for node in model.nodes)
    nbytes: Counter[str] = Counter()
    total: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    for operand in found:
        nbytes[operand.op_type] += operand.nbytes
    for node, _, values in _attribute_arrays(model):
        nbytes[label(node)] += values.nbytes
    for call in walked.calls:
        each = macs.count(call)
        total[label(call.node)] += each or 0
        unknown[label(call.node)] += each is None
    rows = [
        OperatorTotals(kind, number[kind], nbytes[kind], total[kind], unknown[kind])
        for kind in {**number, **nbytes}
    ]
    return tuple(sorted(rows, key=lambda row: (-row.nbytes, -row.macs, -row.count, row.op_type)))


def _by_node(walked: Walked) -> tuple[NodeMacs, ...]:
    found: dict[ir.Node, int | None] = {}
    for call in walked.calls:
        each = macs.count(call)
        if each != 0:
            before = found.get(call.node, 0)
            found[call.node] = None if each is None or before is None else before + each
    return tuple(NodeMacs(_node_name(node), label(node), each) for node, each in found.items())


def _weight(
    operand: ConstantOperand,
    walked: Walked,
    views: Mapping[ir.Value, WeightView],
    *,
    read: bool,
) -> Weight:
    main, tensor = operand.main, operand.main.tensor
    view = views.get(main.value)
    shape = static(walked.shapes.get(operand.value)) or main.shape
    form = ", ".join(main.path)
    dtype = _TYPES.get(tensor.dtype, tensor.dtype.name.lower())
    left_alone = view.why_not if view is not None else ""
    if tensor.dtype not in FLOATS:
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
        axes = view.axes.contract if view is not None and view.uses else ()
        values, bits_of_entropy, estimates = _measure(
            tensor.numpy(), axes, zero=_zero_point(operand), others=operand.nbytes - main.nbytes
        )
        tensors.release(tensor)
    return Weight(
        name=operand.name,
        op_type=operand.op_type,
        nodes=tuple(_node_name(node) for node in operand.nodes),
        shape=shape,
        dtype=dtype,
        parameters=elements,
        nbytes=operand.nbytes,
        form=form,
        left_alone=left_alone,
        values=values,
        entropy_bits=bits_of_entropy,
        estimates=estimates,
    )


def _weights(
    model: Model, found: Sequence[ConstantOperand], walked: Walked, *, read: bool
) -> Iterator[Weight]:
    views = {view.value: view for view in find_views(model)}
    for operand in found:
        if operand.is_weight:
            yield _weight(operand, walked, views, read=read)
    for node, name, values in _attribute_arrays(model):
        advice = "; lower-ml makes it a tensor" if ml.lowers(node) else ""
        advice = "; merge-trees writes it shorter" if trees.merges(node) else advice
        measured = _measure(values, (), zero=0, others=0) if read else (None, None, {})
        yield Weight(
            name=f"{_node_name(node)}.{name}",
            op_type=label(node),
            nodes=(_node_name(node),),
            shape=values.shape,
            dtype="float32",
            parameters=values.size,
            nbytes=values.nbytes,
            left_alone=f"lies in an attribute{advice}",
            values=measured[0],
            entropy_bits=measured[1],
            estimates=measured[2],
        )


def _attribute_arrays(model: Model) -> Iterator[tuple[ir.Node, str, npt.NDArray[np.float32]]]:
    """Lists of floats in attributes: the weights of ai.onnx.ml operators."""
    for node in model.nodes:
        for attribute in node.attributes.values() if node.domain == "ai.onnx.ml" else ():
            if attribute.type == ir.AttributeType.FLOATS and not attribute.is_ref():
                yield node, attribute.name, np.array(attribute.as_floats(), np.float32)


def _zero_point(operand: ConstantOperand) -> float:
    """The code that stands for zero; 0 where there is none, or more than one."""
    main, node = operand.main, operand.node
    if main.tensor.dtype in FLOATS:
        return 0.0
    stored = [
        part.tensor
        for part in operand.parts[1:]
        if part.tensor.dtype == main.tensor.dtype or part.path[:1] == ("Sub",)
    ]
    row = of(node, QuantizedRow)
    if node is not None and row is not None and row.zero_behind:
        value = read.input(node, operand.index + 2)
        if value is not None and value.const_value is not None:
            stored.append(value.const_value)
    zeros = {float(zero) for tensor in stored for zero in tensor.numpy().reshape(-1).tolist()}
    return zeros.pop() if len(zeros) == 1 else 0.0


def _measure(
    values: npt.NDArray[Any], axes: tuple[int, ...], *, zero: float, others: int
) -> tuple[Distribution, float | None, dict[str, int]]:
    """Distribution, entropy in bits a value, and estimates of bytes by form.

    Args:
        values: Floats, or codes.
        axes: Axes of floats along which weights would share a scale; all when empty.
        zero: The code that stands for zero.
        others: Bytes of the scales and zero points that codes have already.
    """
    found = distribution.describe(values, zero)
    number = values.size
    if not _is_float(values):
        bits = distribution.entropy(values)
        return found, bits, {"int8 entropy-coded": math.ceil(number * bits / 8) + others}
    estimates = {"float16": 2 * number}
    if found.not_finite or max(-found.minimum, found.maximum) > affine.LARGEST:
        return found, None, {} if found.not_finite else estimates
    codes = affine.quantize(values, "int8", axes or tuple(range(values.ndim)))
    bits = distribution.entropy(codes.codes)
    scales = codes.scale.nbytes
    blocks = codes.scale.size * math.ceil(number / codes.scale.size / _BLOCK)
    estimates["int8 per channel"] = number + scales
    estimates["int4 block 32"] = math.ceil(number / 2) + _SCALE_BYTES * blocks
    estimates["int8 entropy-coded"] = math.ceil(number * bits / 8) + scales
    return found, bits, estimates


def _is_float(values: npt.NDArray[Any]) -> bool:
    """Whether an array holds weights rather than codes; bfloat16 is no float to numpy."""
    return values.dtype.kind == "f" or values.dtype.name == "bfloat16"


def layer_table(model: Model, name: str) -> list[Table]:
    """One layer in detail: its weights' figures, and a histogram of each.

    Args:
        model: The model.
        name: The name of a weight, or of a node: then every weight that the node uses.

    Raises:
        RecipeError: No weight or node has that name.
    """
    found = [operand for operand in find_operands(model) if operand.is_weight]
    chosen = [operand for operand in found if operand.name == name] or [
        operand for operand in found if name in map(_node_name, operand.nodes)
    ]
    if not chosen:
        names = {operand.name for operand in found}
        names.update(_node_name(node) for operand in found for node in operand.nodes)
        near = get_close_matches(name, names, 3)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise RecipeError(f"layer {name!r}: no weight or node of {model.label} has that name{hint}")
    tables = []
    for weight, operand in zip(
        _weights(model, chosen, walk(model), read=True), chosen, strict=False
    ):
        tables.append(weight_table(weight))
        bars = Table(f"distribution of {weight.name}", ("from", "to", "values", "share", ""))
        tensor = operand.main.tensor
        for low, high, values, bar in distribution.histogram(tensor.numpy()):
            bars.add(f"{low:.4g}", f"{high:.4g}", values, f"{values / operand.main.size:.2%}", bar)
        tensors.release(tensor)
        tables.append(bars)
    return tables
