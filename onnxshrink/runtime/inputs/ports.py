"""What the model declares about its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxshrink.errors import DataError, UnsupportedModel

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model

Feed = dict[str, np.ndarray]
#: What makes a feed: it is called only for those that are chosen.
Making = Callable[[], Mapping[str, Any]]
#: A feed, or what makes it, with the place where it was found.
Found = tuple[str, Mapping[str, Any] | Making]


@dataclass(frozen=True)
class Port:
    """What the model declares about one of its inputs.

    Attributes:
        name: The input.
        dtype: Its numpy type; strings are ``object``.
        dims: Sizes, or the symbol (None for a nameless one) of a free dimension; None when the
            model does not even declare the rank.
    """

    name: str
    dtype: np.dtype[Any]
    dims: tuple[int | str | None, ...] | None

    @property
    def shown_dims(self) -> str:
        """The dimensions for a message."""
        if self.dims is None:
            return "[...]"
        return f"[{', '.join('?' if dim is None else str(dim) for dim in self.dims)}]"

    def fixed(self, axis: int) -> int | None:
        """The size of an axis that has one."""
        dims = self.dims or ()
        found = dims[axis] if -len(dims) <= axis < len(dims) else None
        return found if isinstance(found, int) else None


def ports(model: Model) -> dict[str, Port]:
    """The inputs that must be fed, by name.

    Raises:
        UnsupportedModel: One of them is not a tensor.
    """
    found = {}
    for value in model.inputs:
        name = value.name or ""
        if value.dtype is None or "Tensor" not in type(value.type).__name__:
            raise UnsupportedModel(f"{model.label}: input {name!r} is not a tensor")
        if not value.dtype.value:
            raise UnsupportedModel(f"{model.label}: input {name!r} is of an undefined type")
        dims = None
        if value.shape is not None:
            dims = tuple(d if isinstance(d, int) else d.value for d in value.shape)
        found[name] = Port(name, value.dtype.numpy(), dims)
    return found


def lacking(what: str, package: str, extra: str) -> DataError:
    """The error for a kind of data whose package is not installed."""
    return DataError(f"{what} need {package}: pip install 'onnxshrink[{extra}]'")
