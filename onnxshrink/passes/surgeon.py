"""Run your own onnx-graphsurgeon function as a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxshrink.errors import RecipeError
from onnxshrink.functions import user_code
from onnxshrink.options import nearest, option
from onnxshrink.pipeline import Context, Pass

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model


@dataclass(frozen=True, kw_only=True)
class Surgeon(Pass):
    """Run your own onnx-graphsurgeon function as a step.

    The function takes the model as a graph and returns the edited graph::

        import onnx_graphsurgeon as gs

        def edit(graph: gs.Graph) -> gs.Graph:
            for node in graph.nodes:
                if node.op == "Dropout":
                    ...
            return graph.cleanup().toposort()

    It is held to the contract of every step: inputs, outputs and answers must stay. Metadata, doc
    strings, overloads and shared weights, which onnx-graphsurgeon alone would lose or copy, are
    kept. The weights are read into memory.
    """

    example = "--function edit.py:edit"

    function: str = option("", help="the function to run, as path/to/file.py:name")
    allow_growth: bool = option(False, help="let the step make the file bigger")

    @property
    def may_grow(self) -> bool:  # type: ignore[override]
        """What the user says: only they know what the function is for."""
        return self.allow_growth

    def apply(self, model: Model, ctx: Context) -> None:
        """Convert the model, run the function, and convert the result back."""
        from onnxshrink.graph.rewrite import surgeon

        for row in surgeon.edit(model, _load(self.function), self.function):
            ctx.changed(row.what, row.after, before=row.before, kind=row.kind, note=row.note)


def _load(place: str) -> Callable[[Any], Any]:
    """The function that ``path/to/file.py:name`` names.

    Raises:
        RecipeError: No such file, or no such function in it.
        ShrinkError: The file cannot be imported.
    """
    import importlib.util
    import sys

    file, colon, name = place.rpartition(":")
    if not colon or not file.endswith(".py"):
        raise RecipeError(f"surgeon: option 'function' takes path/to/file.py:name, not {place!r}")
    if not Path(file).is_file():
        raise RecipeError(f"surgeon: option 'function': {file}: no such file")
    spec = importlib.util.spec_from_file_location(f"onnxshrink_surgeon_{Path(file).stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    with user_code(file):
        spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value)]
        raise RecipeError(
            f"surgeon: option 'function': {file} has no function {name!r}{nearest(name, known)}"
        )
    return function  # type: ignore[no-any-return]
