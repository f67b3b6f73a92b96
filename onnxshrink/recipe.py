"""Recipes: which passes in which order, to and from YAML; and the discovery of passes."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxshrink import passes
from onnxshrink.errors import RecipeError
from onnxshrink.options import build, dump, nearest
from onnxshrink.pipeline import Pass

VERSION = 1


@functools.cache
def pass_names() -> tuple[str, ...]:
    """Names of all passes: the public modules of ``onnxshrink.passes``, none of them imported."""
    files = Path(passes.__path__[0]).glob("[!_]*.py")
    return tuple(sorted(file.stem.replace("_", "-") for file in files))


def summary(name: str) -> str:
    """What a pass does in one line: the first line of its module, which is not imported."""
    source = Path(passes.__path__[0], name.replace("-", "_") + ".py").read_text(encoding="utf-8")
    text = ast.get_docstring(ast.parse(source)) or ""
    return text.partition("\n")[0]


def find_pass(name: str, where: str = "recipe") -> type[Pass]:
    """The class of a pass.

    Raises:
        RecipeError: No such pass; names the nearest.
    """
    if name not in pass_names():
        raise RecipeError(
            f"{where}: unknown pass {name!r}{nearest(name, pass_names())} "
            f"(passes: {', '.join(pass_names())})"
        )
    module = importlib.import_module(f"{passes.__name__}.{name.replace('-', '_')}")
    found = [
        kind
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, Pass) and kind.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise TypeError(f"{module.__name__} must define one pass, not {len(found)}")
    return found[0]


@dataclass(frozen=True)
class Recipe:
    """A tuple of passes. Saved, loaded and applied again, it gives the same bytes."""

    steps: tuple[Pass, ...]

    @classmethod
    def parse(cls, text: str, where: str = "recipe") -> Recipe:
        """Read a recipe from YAML.

        Raises:
            RecipeError: Says where, what is wrong, and the nearest name.
        """
        import yaml

        try:
            data = yaml.safe_load(text)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f", line {mark.line + 1}" if mark else ""
            raise RecipeError(
                f"{where}{line}: not YAML: {getattr(error, 'problem', error)}"
            ) from error
        if not isinstance(data, dict):
            raise RecipeError(f"{where}: a recipe has 'version: {VERSION}' and 'steps:'")
        for key in data:
            if key not in ("version", "steps"):
                raise RecipeError(
                    f"{where}: unknown key {key!r}{nearest(str(key), ['version', 'steps'])}"
                )
        if data.get("version") != VERSION:
            raise RecipeError(f"{where}: needs 'version: {VERSION}', not {data.get('version')!r}")
        steps = data.get("steps")
        if not isinstance(steps, list) or not steps:
            raise RecipeError(f"{where}: 'steps' takes a list of passes")
        return cls(tuple(_step(step, f"{where}: step {at}") for at, step in enumerate(steps, 1)))

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a recipe file.

        Raises:
            RecipeError: The file cannot be read, or is not a recipe.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RecipeError(f"{path}: cannot be read: {reason}") from error
        return cls.parse(text, str(path))

    def to_yaml(self) -> str:
        """The recipe as YAML; only what differs from the defaults is written."""
        import yaml

        steps: list[Any] = []
        for step in self.steps:
            options = dump(step)
            steps.append({step.name: options} if options else step.name)
        text: str = yaml.safe_dump({"version": VERSION, "steps": steps}, sort_keys=False)
        return text


def _step(step: Any, where: str) -> Pass:
    if isinstance(step, str):
        step = {step: None}
    if not isinstance(step, Mapping) or len(step) != 1:
        raise RecipeError(f"{where}: takes the name of a pass, or 'name: {{option: value}}'")
    name, options = next(iter(step.items()))
    where = f"{where} ({name})"
    if options is None:
        options = {}
    if not isinstance(options, Mapping):
        raise RecipeError(f"{where}: takes options such as '{{dtype: int8}}', not {options!r}")
    return build(find_pass(str(name), where), options, where)
