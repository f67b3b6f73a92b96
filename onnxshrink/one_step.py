"""A pass as a function: its options are the arguments, as the pass declares them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Generic, ParamSpec

from onnxshrink.api import Options, StrPath, apply_recipe
from onnxshrink.pipeline import Pass
from onnxshrink.recipe import Recipe
from onnxshrink.report import Report

P = ParamSpec("P")


class OneStep(Generic[P]):
    """Applies one pass to a model file: ``step(IN, OUT, Options(...), option=value)``.

    Type checkers know its options: a misspelt one, or a value that it does not take, is an error.

    Args:
        kind: The pass.
    """

    def __init__(self, kind: Callable[P, Pass]):
        self._kind = kind
        self.__name__ = getattr(kind, "name", "").replace("-", "_")
        self.__doc__ = kind.__doc__
        own = [
            inspect.Parameter("source", inspect.Parameter.POSITIONAL_ONLY),
            inspect.Parameter("out", inspect.Parameter.POSITIONAL_ONLY),
            inspect.Parameter("options", inspect.Parameter.POSITIONAL_ONLY, default=None),
        ]
        taken = inspect.signature(kind).parameters.values()
        self.__signature__ = inspect.Signature([*own, *taken])

    def __call__(
        self, source: StrPath, out: StrPath, options: Options | None = None, /, *args: P.args,
        **kwargs: P.kwargs,
    ) -> Report:  # fmt: skip
        """Apply the pass.

        Args:
            source: The model file; never modified.
            out: Where the result goes.
            options: How to run; where inputs are.
            *args: None: a pass has options by name only.
            **kwargs: The options of the pass.

        Raises:
            ShrinkError: As for :func:`onnxshrink.apply_recipe`.
        """
        return apply_recipe(Recipe((self._kind(*args, **kwargs),)), source, out, options)

    def __repr__(self) -> str:
        return f"<step {self.__name__}>"
