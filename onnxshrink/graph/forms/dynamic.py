"""Integer products whose activations are quantized when the model runs.

ONNX Runtime fuses DynamicQuantizeLinear, MatMulInteger, Cast, Mul and Add into its
DynamicQuantizeMatMul, or without the first where several products share it into
MatMulIntegerToFloat. For that the order of the operands of each Mul matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxshrink.graph import operators, read, surgery
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import products
from onnxshrink.graph.forms.dequantize import code_tensor, factor, trimmed
from onnxshrink.graph.forms.layout import Layout
from onnxshrink.graph.forms.layout import of as layout_of
from onnxshrink.graph.forms.rebuild import Rebuild
from onnxshrink.graph.operators.one_by_one import SHORT_ROW
from onnxshrink.graph.rewrite import opset
from onnxshrink.graph.surgery import Recorder
from onnxshrink.graph.weights.views import Use, WeightView
from onnxshrink.kernels.affine import Quantized

_WORKING = ir.DataType.FLOAT  # what DynamicQuantizeLinear takes
_LSTM_INPUTS = 8  # in front of the scales
_ROUNDED = "what it is multiplied with is rounded to integers already"


def wants_codes(node: ir.Node, index: int) -> bool:
    """Whether an input of a node is a weight whose codes an integer product may take."""
    way = operators.product(node, index)
    return way is not None and not way.convolves


def why_not(view: WeightView) -> str:
    """Why a weight's products cannot be integer ones; empty when they can."""
    if view.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return f"DynamicQuantizeLinear takes float, not {view.dtype.name.lower()}"
    lookups = products.lookups(view)
    try:
        multiplied = products.of(view, but=lookups, turned=bool(lookups))
    except ValueError as error:
        return str(error)
    if not multiplied:
        return f"is used by {view.op_type}"
    if lookups and view.shape[1] < SHORT_ROW:
        return f"is looked up, too, in rows of {view.shape[1]}, which are not worth a scale each"
    return _ROUNDED if any(map(_is_rounded, view.uses)) else ""


def why_not_conv(view: WeightView) -> str:
    """Why a weight's convolution cannot be a ConvInteger; empty when it can."""
    if view.dtype != ir.DataType.FLOAT:
        return f"DynamicQuantizeLinear takes float, not {view.dtype.name.lower()}"
    use, way = view.main, view.main.product
    if len(view.uses) > 1 or view.others or not use.direct:
        return "is used by more than one Conv"
    if way is None or way.spreads:
        return f"there is no integer {use.op_type}"
    if reason := read.obstacle(use.node):
        return reason
    if _is_rounded(use):
        return _ROUNDED
    fits = way.added is None and way.function in products.FUNCTIONS
    return "" if fits else f"is used by {use.op_type}, of which {way.hidden}"


def _is_rounded(use: Use) -> bool:
    """Whether what a weight is multiplied with was rounded to codes, perhaps moved since."""
    maker = None if use.activation is None else use.activation.producer()
    while maker is not None and operators.moves(maker) and maker.inputs[0] is not None:
        maker = maker.inputs[0].producer()
    if maker is None or not operators.dequantizes(maker):
        return False
    return read.constant(read.input(maker, 0)) is None


def recurrent(view: WeightView, views: Sequence[WeightView]) -> tuple[WeightView, WeightView]:
    """The input and the recurrence weights of the LSTM that one of them belongs to.

    Raises:
        ValueError: Why ONNX Runtime's DynamicQuantizeLSTM cannot take its place.
    """
    node = view.main.node
    if view.main.row != operators.TABLE["", "LSTM"]:
        raise ValueError(f"ONNX Runtime has no dynamically quantized {node.op_type}")
    pair = [_only(node.inputs[index], views) for index in (1, 2)]
    if read.integer(node, "layout", 0):
        raise ValueError("DynamicQuantizeLSTM has no layout")
    first, second = pair
    if first is None or second is None:
        raise ValueError("another operator uses a weight of this LSTM, or it is no constant")
    if {first.dtype, second.dtype} != {_WORKING}:
        raise ValueError(f"DynamicQuantizeLSTM takes float, not {view.dtype.name.lower()}")
    return first, second


def _only(value: ir.Value | None, views: Sequence[WeightView]) -> WeightView | None:
    """The view of a constant that is used once, directly."""
    found = next((view for view in views if view.value is value), None)
    alone = found is not None and len(found.uses) == 1 and not found.others
    return found if alone and not found.locked else None  # type: ignore[union-attr]


def layout(view: WeightView, *, per_channel: bool) -> Layout:
    """How a weight is laid out to be quantized: of products as MatMulInteger's [..., K, N]."""
    turned = len(view.shape) == 2 and view.axes.contract == (1,)
    return layout_of(view, per_channel=per_channel, turned=turned)


class Activations:
    """Activations as uint8 with their scale and zero point, each made once for all that use it.

    Args:
        model: The model, whose journal is kept.
    """

    def __init__(self, model: Model):
        self._model = model
        # Values are replaced by others of the same name while products are.
        self._made: dict[tuple[str, int], tuple[ir.Value, ir.Value, ir.Value]] = {}

    def of(
        self, value: ir.Value, node: ir.Node, dtype: ir.DataType
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Codes, scale and zero point of what an operator reads, which is of a float type."""
        graph, producer = node.graph, value.producer()
        assert graph is not None
        key = (value.name or "", id(graph))
        if key not in self._made:
            recorder = Recorder(self._model, graph, prefix=f"{self._model.unused_name('a')}.")
            if dtype != _WORKING:
                value = recorder.node("Cast", [value], "f", to=_WORKING.value)
            codes, scale, zero = recorder.several("DynamicQuantizeLinear", [value], "qsz")
            if producer is not None and producer.graph is graph:
                recorder.put_after(producer)
            else:  # an input, or from outside
                recorder.put_first()
            self._made[key] = codes, scale, zero
        return self._made[key]


def integer_products(
    model: Model, view: WeightView, stored: Quantized, activations: Activations
) -> int:
    """Put MatMulInteger in place of the products of a weight.

    Args:
        model: The model, whose journal is kept.
        view: The weight, without :func:`why_not`.
        stored: Its codes in :func:`layout`.
        activations: Of all products of the model.

    Returns:
        Bytes that it takes now, about.
    """
    rebuild = Rebuild(model, view)
    lookups = products.lookups(view)
    if lookups:  # as rows; products read the transpose, which is folded as the model is loaded
        stored = replace(stored, codes=np.ascontiguousarray(stored.codes.T))
    codes = rebuild.constant(code_tensor(stored, stored.codes.shape), "q")
    if stored.bits < 8:
        kind = ir.DataType[stored.codes.dtype.name.upper()]
        codes = rebuild.node("Cast", [codes], "c", to=kind.value)  # folded as the model is loaded
    table = codes
    if lookups:
        codes = rebuild.node("Transpose", [codes], "t", perm=[1, 0])
    integers = _Integers(rebuild, stored, codes, trimmed(stored.scale, stored.scale.ndim))
    for use in lookups:
        rows = _looked_up(rebuild, use.node, table, integers.parameters, stored)
        rebuild.put_in_place(use.node, [rows])
    for product in products.of(view, but=lookups, turned=bool(lookups)):
        rows, step, middle = activations.of(product.activation, product.node, view.dtype)
        if product.turned_activation:
            rows = rebuild.node("Transpose", [rows], "x", perm=[1, 0])
        result = integers.times("MatMulInteger", rows, step, middle)
        if view.dtype != _WORKING:
            result = rebuild.node("Cast", [result], "t", to=view.dtype.value)
        products.replace(rebuild, product, result)
    rebuild.drop()
    return rebuild.nbytes


def _looked_up(
    rebuild: Rebuild, node: ir.Node, table: ir.Value, parameters: Sequence[ir.Value],
    stored: Quantized,
) -> ir.Value:  # fmt: skip
    """Rows of a table of codes, rebuilt behind the lookup.

    Args:
        rebuild: Where the nodes go.
        node: The lookup.
        table: The codes, a row for each number.
        parameters: Their scale, and their zero point where there is one.
        stored: What these hold.
    """
    indices = node.inputs[1]
    assert indices is not None
    zero = stored.zero_point
    each = [stored.scale.size > 1, zero is not None and len(np.unique(zero)) > 1]
    own = []
    for value, of_rows in zip(parameters, each, strict=False):
        if of_rows:
            value = rebuild.node("Gather", [value, indices], "g", axis=0)
            last = rebuild.constant(np.array([-1], np.int64), "l")
            value = rebuild.node("Unsqueeze", [value, last], "e")
        own.append(value)
    rows = rebuild.node("Gather", [table, indices], "q", axis=0)
    rows = rebuild.node("Cast", [rows], "c", to=_WORKING.value)
    for middle in own[1:]:
        taken = rebuild.node("Cast", [middle], "d", to=_WORKING.value)
        rows = rebuild.node("Sub", [rows, taken], "o")
    rows = rebuild.node("Mul", [rows, own[0]], "w")
    if rebuild.view.dtype == _WORKING:
        return rows
    return rebuild.node("Cast", [rows], "t", to=rebuild.view.dtype.value)


def integer_conv(
    model: Model, view: WeightView, stored: Quantized, activations: Activations
) -> int:
    """Put ConvInteger in place of the convolution of a weight.

    Args:
        model: The model, whose journal is kept.
        view: The weight, without :func:`why_not_conv`.
        stored: Its codes, symmetric, with scales per tensor or per channel.
        activations: Of all products of the model.

    Returns:
        Bytes that it takes now, about.
    """
    rebuild, node = Rebuild(model, view), view.main.node
    plane = [1] * (len(view.shape) - 2)
    codes = rebuild.constant(code_tensor(stored, view.shape), "q")
    integers = _Integers(rebuild, stored, codes, stored.scale.reshape(-1, *plane))
    data, step, middle = activations.of(node.inputs[0], node, _WORKING)  # type: ignore[arg-type]
    found = read.attributes(node)
    function = found.pop("activation", "")
    result = integers.times("ConvInteger", data, step, middle, **found)
    bias = read.input(node, 2)
    if bias is not None:
        shape = rebuild.constant(np.array([1, -1, *plane], np.int64), "n")
        shaped = rebuild.node("Reshape", [bias, shape], "r")
        result = rebuild.node("Add", [result, shaped], "y")
    if function:
        result = rebuild.node(function, [result], "f")
    rebuild.put_in_place(node, [result])
    rebuild.drop()
    return rebuild.nbytes


class _Integers:
    """A weight as integers, and what integer operators make of it in float32.

    Args:
        rebuild: Where constants and nodes go.
        stored: The weight's codes, scales and zero points.
        codes: The codes as a value of the graph.
        scale: The scales, in a shape that broadcasts to the outputs.
    """

    def __init__(
        self, rebuild: Rebuild, stored: Quantized, codes: ir.Value, scale: npt.NDArray[np.floating]
    ):
        self._rebuild, self._codes = rebuild, codes
        self._scale = factor(rebuild, scale, _WORKING)
        self._zero = _zero_point(rebuild, stored)
        rebuild.place()

    @property
    def parameters(self) -> list[ir.Value]:
        """The scales, and the zero points where there are some."""
        return [self._scale, *self._zero]

    def times(
        self, op_type: str, data: ir.Value, step: ir.Value, middle: ir.Value, **attributes: Any
    ) -> ir.Value:
        """The sums of an integer operator, in units of its operands.

        Args:
            op_type: The operator.
            data: Codes of the activation.
            step: Their scale.
            middle: Their zero point.
            attributes: The operator's.
        """
        node, inputs = self._rebuild.node, [data, self._codes, middle, *self._zero]
        summed = node(op_type, inputs, "i", **attributes)
        numbers = node("Cast", [summed], "c", to=_WORKING.value)
        return node("Mul", [numbers, node("Mul", [step, self._scale], "u")], "m")


def _zero_point(rebuild: Rebuild, stored: Quantized) -> list[ir.Value]:
    """The zero point input: none where all are zero, one number where all are the same."""
    zero = stored.zero_point
    if zero is None or not zero.any():
        return []
    same = (zero == zero.flat[0]).all()
    array = np.asarray(zero.flat[0]) if same else trimmed(zero, zero.ndim)
    return [rebuild.constant(array, "z")]


def integer_lstm(
    model: Model, pair: Sequence[WeightView], stored: Sequence[Quantized]
) -> list[int]:
    """Turn an LSTM into ONNX Runtime's DynamicQuantizeLSTM.

    Args:
        model: The model, whose journal is kept.
        pair: Its input and its recurrence weights.
        stored: Their codes, in the stored layout.

    Returns:
        Bytes that each takes now, about.
    """
    node, sizes = pair[0].main.node, []
    rest: list[ir.Value | None] = []
    codes = []
    for view, numbers in zip(pair, stored, strict=True):
        rebuild = Rebuild(model, view)
        turned = np.ascontiguousarray(numbers.codes.transpose(0, 2, 1))
        codes.append(rebuild.constant(turned, "q"))
        scale, zero = _by_direction(numbers)
        rest += [factor(rebuild, scale, _WORKING), rebuild.constant(zero, "z")]
        rebuild.place()
        sizes.append(rebuild.nbytes)
    others = [*node.inputs[3:_LSTM_INPUTS]]
    others += [None] * (_LSTM_INPUTS - 3 - len(others))
    inputs = [node.inputs[0], *codes, *others, *rest]
    attributes = [item for item in node.attributes.values() if item.name != "layout"]  # 0 if any
    changed = ir.Node(
        "com.microsoft", "DynamicQuantizeLSTM", inputs, attributes,
        num_outputs=len(node.outputs), name=node.name, doc_string=node.doc_string,
        metadata_props=dict(node.metadata_props),
    )  # fmt: skip
    assert node.graph is not None
    node.graph.insert_before(node, changed)
    surgery.replace_node(model, node, changed.outputs)
    opset.import_domain(model, changed, changed.domain)
    for view in pair:
        surgery.forget(model, view.value)
    return sizes


def _by_direction(stored: Quantized) -> tuple[np.ndarray, np.ndarray]:
    """Scales and zero points of an LSTM's weight: one or 4 * hidden for each direction."""
    zero = stored.zero_point
    if zero is None:
        zero = np.zeros(stored.scale.shape, stored.codes.dtype)
    lanes = stored.scale.shape[1]
    shape = (len(stored.codes), lanes) if lanes > 1 else (len(stored.codes),)
    scale, zero = (np.broadcast_to(a[..., 0], (shape[0], lanes)) for a in (stored.scale, zero))
    return scale.reshape(shape), zero.reshape(shape)
