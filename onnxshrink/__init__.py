"""Make any exported ONNX model several times smaller, and prove that it answers the same.

>>> import onnxshrink
>>> report = onnxshrink.shrink("model.onnx", "small.onnx")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxshrink.api import Options, apply_recipe, shrink
    from onnxshrink.errors import (
        BudgetMissed,
        DataError,
        ModelError,
        OutputError,
        RecipeError,
        ShrinkError,
        SidecarError,
        UnsupportedModel,
    )  # fmt: skip
    from onnxshrink.goal import Goal
    from onnxshrink.graph.file.model import Model
    from onnxshrink.pipeline import Context, Pass, run
    from onnxshrink.reading import Reading
    from onnxshrink.recipe import Recipe
    from onnxshrink.report import Report
    from onnxshrink.runtime.packed import session

__version__ = "0.1.0"

# Imported when they are used: a script that only catches an error need not load onnx.
_HOMES = {
    "api": ("Options", "apply_recipe", "shrink"),
    "errors": (
        "BudgetMissed", "DataError", "ModelError", "OutputError", "RecipeError", "ShrinkError",
        "SidecarError", "UnsupportedModel",
    ),
    "graph.file.model": ("Model",),
    "pipeline": ("Context", "Pass", "run"),
    "reading": ("Reading",),
    "recipe": ("Recipe",),
    "report": ("Report",),
    "runtime.packed": ("session",),
    "goal": ("Goal",),
}  # fmt: skip
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [  # noqa: RUF022  (by room)
    "Options", "apply_recipe", "shrink", "BudgetMissed", "DataError", "ModelError", "OutputError",
    "RecipeError", "ShrinkError", "SidecarError", "UnsupportedModel", "Model", "Context", "Pass",
    "run", "Reading", "Recipe", "Report", "Goal", "session",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
