"""Make any exported ONNX model several times smaller, and prove that it answers the same.

>>> import onnxshrink
>>> report = onnxshrink.shrink("model.onnx", "small.onnx")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxshrink.api import Options, apply_excluding, apply_recipe, shrink
    from onnxshrink.commands import (
        bench,
        compare,
        inspect,
        pack,
        sensitivity,
        unpack,
        verify,
    )
    from onnxshrink.delivery import bundle, certify, reproduce, run_inputs
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
    from onnxshrink.evolving import evolve
    from onnxshrink.gate import check
    from onnxshrink.goal import Goal
    from onnxshrink.graph.file.model import Model
    from onnxshrink.pipeline import Context, Pass, run
    from onnxshrink.reading import Reading
    from onnxshrink.recipe import Recipe
    from onnxshrink.report import Report
    from onnxshrink.runtime.packed import session
    from onnxshrink.steps import *  # noqa: F403

__version__ = "0.1.0"

# Imported when they are used: a script that only catches an error need not load onnx.
_HOMES = {
    "api": ("Options", "apply_excluding", "apply_recipe", "shrink"),
    "commands": (
        "bench", "compare", "inspect", "pack", "sensitivity", "unpack", "verify",
    ),
    "delivery": ("bundle", "certify", "reproduce", "run_inputs"),
    "errors": (
        "BudgetMissed", "DataError", "ModelError", "OutputError", "RecipeError", "ShrinkError",
        "SidecarError", "UnsupportedModel",
    ),
    "evolving": ("evolve",),
    "gate": ("check",),
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
    "Options", "apply_excluding", "apply_recipe", "evolve", "shrink", "bench", "bundle", "certify",
    "check", "compare", "inspect", "pack", "reproduce", "run_inputs", "sensitivity", "unpack",
    "verify", "BudgetMissed", "DataError", "ModelError",
    "OutputError", "RecipeError", "ShrinkError", "SidecarError", "UnsupportedModel", "Model",
    "Context", "Pass", "run", "Reading", "Recipe", "Report", "Goal", "session",
]  # fmt: skip


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_step_names()})


def _step_names() -> set[str]:
    """The functions of :mod:`onnxshrink.steps`: one for each module of a pass."""
    found = pkgutil.iter_modules([os.path.join(os.path.dirname(__file__), "passes")])
    return {module.name for module in found if not module.name.startswith("_")}


if not TYPE_CHECKING:  # type checkers see the names above, and refuse all others

    def __getattr__(name):
        home = _HOME.get(name)
        if home is None and not name.startswith("_") and name in _step_names():
            home = "steps"
        if home is None:
            options = importlib.import_module(f"{__name__}.options")
            known = () if name.startswith("_") else (*__all__, *_step_names())
            hint = options.nearest(name, known)
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")
        return getattr(importlib.import_module(f"{__name__}.{home}"), name)
