"""The one reader of what stands in a graph: attributes, constants, and inputs that may be missing.

What the model does not say is told apart from what it leaves out. An attribute that is left out
has the default of its operator. One that a function takes from whoever calls it, or that has
another type than its operator asks for, is :class:`Unknown`: whoever reads it must leave the node
alone and can give the text as the reason. :func:`obstacle` asks for it beforehand.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

_Type = ir.AttributeType

#: The ways to write a constant down beside ``value``, and the types that they have.
_PLAIN = {
    "value_float": np.float32, "value_floats": np.float32,
    "value_int": np.int64, "value_ints": np.int64,
}  # fmt: skip
_TEXTS = ("value_string", "value_strings")
#: What axes were called that are an input since opset 13 (ReduceSum, Squeeze, Unsqueeze) or 18.
_AXES = "axes"


class Unknown(ValueError):
    """An attribute or a parameter that the model itself does not tell; the text says why."""


# ------------------------------------------------------------------------------- attributes


def _find(node: ir.Node, name: str, *types: ir.AttributeType) -> ir.Attr | None:
    """An attribute of one of these types; None when it is left out.

    Raises:
        Unknown: It is the parameter of a function, or of another type.
    """
    found = node.attributes.get(name)
    if found is None:
        return None
    if found.is_ref():
        raise Unknown(_from_caller(found))
    if found.type not in types:
        raise Unknown(f"its {name!r} is of type {found.type.name}, not {types[0].name}")
    return found


def _from_caller(attribute: ir.Attr) -> str:
    return f"takes {attribute.name!r} from the call of the function that it is in"


def obstacle(node: ir.Node) -> str:
    """Why the attributes of a node are not all known; empty when they are."""
    return next((_from_caller(each) for each in node.attributes.values() if each.is_ref()), "")


def integer(node: ir.Node, name: str, default: int) -> int:
    """An attribute that is an integer.

    Args:
        node: The operator.
        name: The attribute.
        default: What it is when it is left out.

    Raises:
        Unknown: It is the parameter of a function, or no integer.
    """
    found = _find(node, name, _Type.INT)
    return default if found is None else found.as_int()


def integers(node: ir.Node, name: str) -> tuple[int, ...] | None:
    """An attribute that is a list of integers; None when it is left out.

    Raises:
        Unknown: It is the parameter of a function, or no list of integers.
    """
    found = _find(node, name, _Type.INTS)
    return None if found is None else tuple(found.as_ints())


def number(node: ir.Node, name: str, default: float) -> float:
    """An attribute that is a number, with a point or without; see :func:`integer`.

    Raises:
        Unknown: It is the parameter of a function, or no number.
    """
    found = _find(node, name, _Type.FLOAT, _Type.INT)
    return default if found is None else float(found.value)


def numbers(node: ir.Node, name: str) -> tuple[float, ...] | None:
    """An attribute that is a list of numbers; None when it is left out.

    Raises:
        Unknown: It is the parameter of a function, or no list of numbers.
    """
    found = _find(node, name, _Type.FLOATS)
    return None if found is None else tuple(found.as_floats())


def text(node: ir.Node, name: str, default: str) -> str:
    """An attribute that is a text; see :func:`integer`.

    Raises:
        Unknown: It is the parameter of a function, or no text.
    """
    found = _strings(node, name, _Type.STRING)
    return default if found is None else found[0]


def texts(node: ir.Node, name: str) -> tuple[str, ...] | None:
    """An attribute that is a list of texts; None when it is left out.

    Raises:
        Unknown: It is the parameter of a function, or no list of texts.
    """
    return _strings(node, name, _Type.STRINGS)


def _strings(node: ir.Node, name: str, kind: ir.AttributeType) -> tuple[str, ...] | None:
    found = _find(node, name, kind)
    if found is None:
        return None
    given = (found.value,) if kind == _Type.STRING else tuple(found.value)
    if not all(isinstance(each, str) for each in given):  # it is kept as bytes
        raise Unknown(f"its {name!r} is not UTF-8")
    return given


def attributes(node: ir.Node) -> dict[str, Any]:
    """Plain values of all attributes of a node, for what computes or copies it whole.

    Raises:
        Unknown: One is the parameter of a function.
    """
    if reason := obstacle(node):
        raise Unknown(reason)
    return {name: found.value for name, found in node.attributes.items()}


def bodies(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs that a node runs: branches of an If, the body of a Loop or Scan."""
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


# -------------------------------------------------------------------------------- constants


def input(node: ir.Node, index: int) -> ir.Value | None:
    """An input of a node; None when it is left out, also at the end."""
    return node.inputs[index] if index < len(node.inputs) else None


def is_constant(node: ir.Node | onnx.NodeProto) -> bool:
    """Whether a node is a Constant, and no ConstantOfShape, which has a ``value`` too."""
    return node.op_type == "Constant" and not node.domain


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer or of a Constant node, in whatever way it is written down.

    An initializer that is a default of an input counts: whether a caller may give something else
    is for whoever changes it to ask.

    Args:
        value: A value of the graph; None for an input that is left out.

    Returns:
        The tensor, possibly still on disk; None for what is computed, given, sparse, or the
        parameter of a function.
    """
    node = None if value is None else value.producer()
    if value is None or node is None:
        return None if value is None else value.const_value
    if not is_constant(node):
        return None
    found = next(iter(node.attributes.values()), None)
    if found is None or found.is_ref():
        return None
    if found.name == "value" and found.type == _Type.TENSOR:
        return found.as_tensor()
    if found.name in _PLAIN:
        return ir.Tensor(np.array(found.value, _PLAIN[found.name]), name=value.name)
    if found.name in _TEXTS:
        one = found.type == _Type.STRING
        encoded = [each.encode() for each in ([found.as_string()] if one else found.as_strings())]
        stored = np.array(encoded, object).reshape([] if one else [-1])
        return ir.StringTensor(stored, shape=ir.Shape(stored.shape), name=value.name)
    return None


def array(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """The contents of a constant, which must not be written to; see :func:`constant`."""
    tensor = constant(value)
    return None if tensor is None else np.asarray(tensor.numpy())


class HasTensor:
    """Something that is stored in one tensor, which need not be read to say how large it is."""

    tensor: ir.TensorProtocol

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the stored tensor."""
        return shape(self.tensor)

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.tensor.size


def shape(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    """The shape of a stored tensor."""
    return tuple(int(dim) for dim in tensor.shape)  # type: ignore[arg-type]


def scalar(value: ir.Value | None) -> float | None:
    """The one number of a constant, whatever its rank; None when it has more, or is a text."""
    tensor = constant(value)
    if tensor is None or tensor.size != 1 or tensor.dtype.is_string():
        return None
    return float(np.asarray(tensor.numpy()).reshape(-1)[0])


def integer_list(value: ir.Value | None) -> list[int] | None:
    """The integers of a constant, whatever its rank; None when it holds something else."""
    tensor = constant(value)
    if tensor is None or not tensor.dtype.is_integer():
        return None
    return [int(each) for each in np.asarray(tensor.numpy()).reshape(-1)]


def axes(node: ir.Node, index: int = 1) -> tuple[int, ...] | None:
    """The axes of an operator that had them as an attribute once and has them as an input now.

    Args:
        node: The operator, for instance Squeeze, Unsqueeze (opset 13) or ReduceMean (18).
        index: Which of its inputs they are.

    Returns:
        The axes as they are written, which may be negative; None when they are left out.

    Raises:
        Unknown: They are computed, or the parameter of a function.
    """
    given = integers(node, _AXES)
    source = input(node, index)
    if given is not None or source is None:
        return given
    found = integer_list(source)
    if found is None:
        raise Unknown("its axes are computed")
    return tuple(found)
