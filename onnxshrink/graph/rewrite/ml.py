"""The linear operators of ai.onnx.ml, written in standard ones.

They keep their weights in attributes, where nothing can compress them. The rules below follow
what ONNX Runtime's kernels compute, its deviations from the specification included: those are the
answers that the model's users get.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxshrink.graph import read
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.surgery import Recorder

DOMAIN = "ai.onnx.ml"

_OLDEST_OPSET = 9  # Where
_ADDED_OPSET = 13  # for a model that imports no standard operators yet
_TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")
_NEARLY_ZERO = 1e-7  # what SOFTMAX_ZERO takes for zero
# Types in which a kernel computes before it rounds to float32.
_NUMBERS = {ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.INT32, ir.DataType.INT64}


@dataclass(frozen=True)
class MlOperator:
    """An ai.onnx.ml node that has a rule.

    Attributes:
        node: The node.
        root: The model or the function that it is in, at any depth.
        dtype: Type of its input; None where shape inference does not tell.
        rank: Rank of its input, likewise.
        features: Length of the input's last axis, likewise.
    """

    node: ir.Node
    root: ir.Model | ir.Function
    dtype: ir.DataType | None
    rank: int | None
    features: int | None = None

    @property
    def label(self) -> str:
        """What to call it in a report."""
        return self.node.name or self.node.outputs[0].name or self.node.op_type

    def numbers(self, name: str) -> np.ndarray:
        """An attribute of numbers as float32; empty when it is missing."""
        return np.array(read.numbers(self.node, name) or (), np.float32)


def lowers(node: ir.Node) -> bool:
    """Whether :func:`lower` knows a node's operator."""
    return node.domain == DOMAIN and node.op_type in _RULES


def find(model: Model, kinds: Collection[str] = ()) -> Iterator[MlOperator]:
    """Every node that :func:`lower` knows, or of some kinds, in the order of execution."""
    kinds = kinds or _RULES
    typed = model.clone()
    typed.rewrite_proto(onnx.shape_inference.infer_shapes)
    for root, twin in zip(_roots(model), _roots(typed), strict=True):
        for node, known in zip(list(_nodes(root)), list(_nodes(twin)), strict=True):
            if node.domain == DOMAIN and node.op_type in kinds:
                value = known.inputs[0]
                assert value is not None
                shape = [] if value.shape is None else [*value.shape]
                rank = None if value.shape is None else len(shape)
                last = shape[-1] if shape and isinstance(shape[-1], int) else None
                yield MlOperator(node, root, value.dtype, rank, last)


def _roots(model: Model) -> list[ir.Model | ir.Function]:
    return [model.ir, *model.ir.functions.values()]


def _nodes(root: ir.Model | ir.Function) -> Iterator[ir.Node]:
    return (root.graph if isinstance(root, ir.Model) else root).all_nodes()


def lower(model: Model, operator: MlOperator) -> tuple[int, int]:
    """Replace a node by standard ones that compute the same.

    Args:
        model: The model, whose journal is kept.
        operator: One of :func:`find`.

    Returns:
        Bytes of the node, and of what took its place.

    Raises:
        ValueError: Why it cannot be lowered exactly; the model is as it was.
    """
    node = operator.node
    if reason := read.obstacle(node):
        raise ValueError(f"{reason}; inline it first")
    # The checker wants functions to import the version that the model does.
    opset = (model.ir.opset_imports | operator.root.opset_imports).get("", _ADDED_OPSET)
    if opset < _OLDEST_OPSET:
        raise ValueError(f"needs opset {_OLDEST_OPSET} or later, the model has {opset}")
    before = len(ir.to_proto(node).SerializeToString())
    standard = Standard(model, operator, opset)
    results = _RULES[node.op_type](standard)
    operator.root.opset_imports.setdefault("", opset)
    return before, standard.finish(results)


def drop_import(model: Model) -> None:
    """Forget the ai.onnx.ml domain wherever no node needs it any more."""
    for root in _roots(model):
        if all(node.domain != DOMAIN for node in _nodes(root)):
            root.opset_imports.pop(DOMAIN, None)


class Standard:
    """Collects the standard nodes and constants that take the place of one operator."""

    def __init__(self, model: Model, operator: MlOperator, opset: int):
        self.operator, self.opset = operator, opset
        scope = operator.node.graph
        assert scope is not None
        self._recorder = Recorder(model, scope, prefix=f"{operator.label}.")

    @property
    def input(self) -> ir.Value:
        """What the operator reads."""
        value = self.operator.node.inputs[0]
        assert value is not None
        return value

    def constant(self, values: np.ndarray | Sequence[bytes], name: str) -> ir.Value:
        """A constant, called after the operator; ``values`` are numbers, or texts as bytes."""
        if isinstance(values, np.ndarray):
            return self._recorder.constant(values, name)
        texts = ir.StringTensor(values, shape=ir.Shape([len(values)]))
        return self._recorder.constant(texts, name)

    def node(
        self, op_type: str, *inputs: ir.Value, domain: str = "", **attributes: Any
    ) -> ir.Value:
        """A node with one output."""
        return self._recorder.node(op_type, inputs, op_type, domain, **attributes)

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """The value in another type; ``self.input`` is known to have it already."""
        if value is self.input and self.operator.dtype == dtype:
            return value
        return self.node("Cast", value, to=dtype.value)

    def rows(self, features: int) -> ir.Value:
        """The input as float32 [rows, features]; one row when it has one dimension."""
        value = self.cast(self.input, ir.DataType.FLOAT)
        if self.operator.rank == 2:
            return value
        shape = self.constant(np.array([-1, features], np.int64), "shape")
        return self.node("Reshape", value, shape)

    def reduced(self, op_type: str, value: ir.Value) -> ir.Value:
        """Sum or maximum over the last axis, which stays with size 1."""
        if self.opset < (13 if op_type == "ReduceSum" else 18):  # axes became an input
            return self.node(op_type, value, axes=[-1], keepdims=1)
        return self.node(op_type, value, self.constant(np.array([-1], np.int64), "axes"))

    def finish(self, results: Sequence[ir.Value]) -> int:
        """Put the results in place of the operator's outputs; bytes of all that is new."""
        made = list(self._recorder.nodes)
        self._recorder.put_in_place(self.operator.node, results)
        stored = 0 if self._recorder.as_nodes else self._recorder.nbytes
        return stored + sum(len(ir.to_proto(node).SerializeToString()) for node in made)


def _transform(operator: MlOperator) -> str:
    transform = read.text(operator.node, "post_transform", "NONE")
    if transform not in _TRANSFORMS:
        raise ValueError(f"has an unknown post_transform {transform!r}")
    return transform


def _product(standard: Standard, targets: int, intercepts: np.ndarray) -> ir.Value:
    """Scores [rows, targets], before any transform."""
    coefficients = standard.operator.numbers("coefficients")
    if not targets or not coefficients.size or coefficients.size % targets:
        raise ValueError(f"has {coefficients.size} coefficients for {targets} targets")
    # [features, targets] is the layout that ONNX Runtime fuses with DequantizeLinear.
    weight = coefficients.reshape(targets, -1).T
    if standard.operator.features not in (None, len(weight)):  # ONNX Runtime reads the first ones
        raise ValueError(
            f"has {coefficients.size} coefficients for {targets} targets "
            f"of {standard.operator.features} features"
        )
    rows = standard.rows(len(weight))
    stored = standard.constant(weight, "weight")
    if not intercepts.size:
        return standard.node("MatMul", rows, stored)
    return standard.node("Gemm", rows, stored, standard.constant(intercepts, "bias"))


def _softmax_zero(standard: Standard, scores: ir.Value) -> ir.Value:
    """Softmax in which scores of zero stay near zero: they weigh ``score * exp(-max)``."""
    largest = standard.reduced("ReduceMax", scores)
    powers = standard.node("Exp", standard.node("Sub", scores, largest))
    scaled = standard.node("Mul", scores, standard.node("Exp", standard.node("Neg", largest)))
    limit = standard.constant(np.array(_NEARLY_ZERO, np.float32), "zero")
    counts = standard.node("Greater", standard.node("Abs", scores), limit)
    nothing = standard.constant(np.array(0, np.float32), "nothing")
    total = standard.reduced("ReduceSum", standard.node("Where", counts, powers, nothing))
    return standard.node("Div", standard.node("Where", counts, powers, scaled), total)


def _probit(standard: Standard, scores: ir.Value, targets: int) -> ir.Value:
    """ONNX Runtime's own kernel, applied to finished scores.

    Its approximation (a formula of Winitzki's for the inverse error function, in float32) cancels
    near one half: standard operators give answers that differ by up to 1e-3.
    """
    flat = standard.constant(np.array([-1, 1], np.int64), "flat")
    single = standard.node("Reshape", scores, flat)
    single = standard.node(
        "LinearRegressor", single, domain=DOMAIN, coefficients=[1.0], targets=1,
        post_transform="PROBIT",
    )  # fmt: skip
    back = standard.constant(np.array([-1, targets], np.int64), "back")
    return standard.node("Reshape", single, back)


def _finished(standard: Standard, scores: ir.Value, transform: str, targets: int) -> ir.Value:
    """Scores after the transform; of a single target only PROBIT changes any."""
    if transform == "PROBIT":
        return _probit(standard, scores, targets)
    if transform == "NONE" or targets == 1:
        return scores
    if transform == "SOFTMAX":
        return standard.node("Softmax", scores, axis=1)
    if transform == "LOGISTIC":
        return standard.node("Sigmoid", scores)
    return _softmax_zero(standard, scores)


def _regressor(standard: Standard) -> list[ir.Value]:
    operator = standard.operator
    targets = read.integer(operator.node, "targets", 1)
    transform = _transform(operator)
    if transform == "PROBIT" and operator.numbers("coefficients").tolist() == [1]:
        raise ValueError("computes nothing but PROBIT, which standard operators round otherwise")
    intercepts = operator.numbers("intercepts")
    if intercepts.size != targets:  # as many as targets, or ONNX Runtime uses none
        intercepts = intercepts[:0]
    scores = _product(standard, targets, intercepts)
    return [_finished(standard, scores, transform, targets)]


def _classifier(standard: Standard) -> list[ir.Value]:
    """Labels and scores. ``multi_class`` changes nothing in ONNX Runtime."""
    operator, transform = standard.operator, _transform(standard.operator)
    intercepts = operator.numbers("intercepts")
    classes = intercepts.size
    if not classes:
        raise ValueError("has no intercepts, by which ONNX Runtime counts the classes")
    labels = labels_of(operator)
    if classes == 1 and len(labels) == 0:  # labels are 0 and 1, and there is one score
        labels = np.array([0, 1], np.int64)
        score = _product(standard, 1, intercepts)
        picked = _signed(standard, score)
        scores = _finished(standard, score, transform, 1)
    elif classes == 1:
        if len(labels) != 2:
            raise ValueError(f"has one row of coefficients and {len(labels)} labels")
        if transform == "PROBIT":
            raise ValueError("is binary with PROBIT, for which ONNX Runtime leaves scores unset")
        picked = _signed(standard, _product(standard, 1, intercepts))
        if transform == "LOGISTIC":
            scores = standard.node("Sigmoid", picked)
        else:  # one minus the score, and the score: 0 + x and 1 - x are exact
            one = standard.constant(np.array([1, 0], np.float32), "one")
            scores = standard.node("Add", picked, one)
    else:
        if len(labels) < classes:
            raise ValueError(f"has {classes} classes and {len(labels)} labels")
        picked = _product(standard, classes, intercepts)
        scores = _finished(standard, picked, transform, classes)
    return [label_of(standard, picked, labels), scores]


def _signed(standard: Standard, score: ir.Value) -> ir.Value:
    """[-score, score]: the second is the largest where the score is above zero."""
    return standard.node("Concat", standard.node("Neg", score), score, axis=1)


def labels_of(operator: MlOperator) -> np.ndarray | list[bytes]:
    """The labels: texts, when there are any, or whole numbers."""
    if texts := read.texts(operator.node, "classlabels_strings"):
        return [text.encode() for text in texts]
    return np.array(read.integers(operator.node, "classlabels_ints") or (), np.int64)


def label_of(standard: Standard, scores: ir.Value, labels: np.ndarray | list[bytes]) -> ir.Value:
    """The label of the largest score, the first of equals."""
    index = standard.node("ArgMax", scores, axis=1, keepdims=0)
    if isinstance(labels, np.ndarray) and np.array_equal(labels, np.arange(len(labels))):
        return index
    return standard.node("Gather", standard.constant(labels, "labels"), index)


def _scaler(standard: Standard) -> list[ir.Value]:
    operator = standard.operator
    offset, scale = operator.numbers("offset"), operator.numbers("scale")
    if not scale.size or scale.size != offset.size:
        raise ValueError(f"has {offset.size} offsets and {scale.size} scales")
    dtype = _known_type(operator)
    if scale.size > 1 and operator.rank not in (1, 2):
        rank = "unknown" if operator.rank is None else operator.rank
        raise ValueError(f"scales the second axis of an input of {rank} dimensions")
    # Whole numbers become float32 first; float64 is rounded only at the end.
    wide = dtype == ir.DataType.DOUBLE
    value = standard.input if wide else standard.cast(standard.input, ir.DataType.FLOAT)
    for op_type, numbers, name in (("Sub", offset, "offset"), ("Mul", scale, "scale")):
        factor = standard.constant(numbers, name)
        if wide:
            factor = standard.node("Cast", factor, to=ir.DataType.DOUBLE.value)
        value = standard.node(op_type, value, factor)
    return [standard.cast(value, ir.DataType.FLOAT) if wide else value]


def _known_type(operator: MlOperator) -> ir.DataType:
    if operator.dtype not in _NUMBERS:
        name = "unknown" if operator.dtype is None else operator.dtype.name
        raise ValueError(f"the type of its input is {name}")
    return operator.dtype


def _normalizer(standard: Standard) -> list[ir.Value]:
    operator = standard.operator
    norm = read.text(operator.node, "norm", "MAX")
    _known_type(operator)
    value = standard.cast(standard.input, ir.DataType.FLOAT)
    if norm == "MAX":  # of the values themselves, not of their sizes
        size = standard.reduced("ReduceMax", value)
        result = standard.node("Div", value, size)
    elif norm == "L1":
        size = standard.reduced("ReduceSum", standard.node("Abs", value))
        result = standard.node("Div", value, size)
    elif norm == "L2":  # squared in the input's type, summed in float32
        square = standard.node("Mul", standard.input, standard.input)
        if operator.dtype != ir.DataType.FLOAT:
            square = standard.node("Cast", square, to=ir.DataType.FLOAT.value)
        size = standard.reduced("ReduceSum", square)
        root = standard.node("Sqrt", standard.node("Div", square, size))
        result = standard.node("Mul", root, standard.node("Sign", value))
    else:
        raise ValueError(f"has an unknown norm {norm!r}")
    # Where there is nothing to divide by, the values stay as they are.
    divided = standard.node("Cast", size, to=ir.DataType.BOOL.value)
    return [standard.node("Where", divided, result, value)]


_RULES: dict[str, Callable[[Standard], list[ir.Value]]] = {
    "LinearClassifier": _classifier,
    "LinearRegressor": _regressor,
    "Normalizer": _normalizer,
    "Scaler": _scaler,
}
