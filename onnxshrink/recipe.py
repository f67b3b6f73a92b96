"""Recipes: which passes in which order, to and from YAML; and the discovery of both."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from onnxshrink import files, passes, plain_yaml
from onnxshrink.errors import RecipeError
from onnxshrink.options import build, dump, nearest, shown
from onnxshrink.pipeline import Pass

VERSION = 1
Storage = Literal["auto", "single", "external", "packed", "coded"]

_KEYS = ("version", "storage", "held_back", "steps")
_PACKAGED = Path(__file__).parent / "recipes"


@functools.cache
def pass_names() -> tuple[str, ...]:
    """Names of all passes: the public modules of ``onnxshrink.passes``, none of them imported."""
    found = (module.name for module in pkgutil.iter_modules(passes.__path__))
    return tuple(sorted(name.replace("_", "-") for name in found if not name.startswith("_")))


def summary(name: str) -> str:
    """What a pass does in one line: the first line of its module, which is not imported."""
    module = Path(passes.__path__[0], name.replace("-", "_"))
    file = module / "__init__.py" if module.is_dir() else module.with_suffix(".py")
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
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


@functools.cache
def recipe_names() -> tuple[str, ...]:
    """Names of the recipes that come with the package."""
    return tuple(sorted(file.stem for file in _PACKAGED.glob("*.yaml")))


def recipe_text(name: str) -> str:
    """The file of a recipe that comes with the package: comments that say what it is for, YAML."""
    return (_PACKAGED / f"{name}.yaml").read_text(encoding="utf-8")


def recipe_summary(name: str) -> str:
    """What a packaged recipe is for in one line: the first of its file."""
    return recipe_text(name).partition("\n")[0].removeprefix("# ")


@dataclass(frozen=True)
class Recipe:
    """A tuple of passes. Saved, loaded and applied again, it gives the same bytes.

    Attributes:
        steps: The passes.
        storage: How to store the result where the caller does not say.
        held_back: Whether some inputs are shown to no step, for the last word on the result.
        reads: The recipe's own file, and those that its options name: no run writes to them.
    """

    steps: tuple[Pass, ...]
    storage: Storage = "auto"
    held_back: bool = False
    reads: tuple[str, ...] = field(default=(), compare=False, repr=False)

    @classmethod
    def parse(cls, text: str, where: str = "recipe") -> Recipe:
        """Read a recipe from YAML.

        Raises:
            RecipeError: Says where, what is wrong, and the nearest name.
        """
        data = plain_yaml.parse(text, where)
        if not isinstance(data, dict):
            raise RecipeError(f"{where}: a recipe has 'version: {VERSION}' and 'steps:'")
        for key in data:
            if key not in _KEYS:
                raise RecipeError(f"{where}: unknown key {shown(key)}{nearest(str(key), _KEYS)}")
        if data.get("version") != VERSION:
            raise RecipeError(
                f"{where}: needs 'version: {VERSION}', not {shown(data.get('version'))}"
            )
        storage = data.get("storage", "auto")
        if storage not in get_args(Storage):
            known = ", ".join(get_args(Storage))
            raise RecipeError(f"{where}: 'storage' takes one of {known}, not {shown(storage)}")
        held_back = data.get("held_back", False)
        if not isinstance(held_back, bool):
            raise RecipeError(f"{where}: 'held_back' takes true or false, not {shown(held_back)}")
        steps = data.get("steps")
        if not isinstance(steps, list) or not steps:
            raise RecipeError(f"{where}: 'steps' takes a list of passes")
        found = (_step(step, f"{where}: step {at}") for at, step in enumerate(steps, 1))
        named = (step.values() for step in steps if isinstance(step, Mapping))
        options = (each for values in named for each in values if isinstance(each, Mapping))
        reads = files.likely(value for each in options for value in each.values())
        return cls(tuple(found), storage, held_back, tuple(reads))

    @classmethod
    def find(cls, name: str | Path) -> Recipe:
        """A recipe that comes with the package, by its name, or a recipe file.

        Raises:
            RecipeError: Neither is there, or the file is not a recipe.
        """
        if str(name) in recipe_names():
            return cls.parse(recipe_text(str(name)), str(name))
        if not Path(name).exists() and Path(name).name == Path(name).stem:
            raise RecipeError(
                f"{name}: no such recipe or file{nearest(str(name), recipe_names())} "
                f"(recipes: {', '.join(recipe_names())})"
            )
        return cls.load(name)

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a recipe file.

        Raises:
            RecipeError: The file cannot be read, or is not a recipe.
        """
        if Path(path).suffix == ".onnx":
            raise RecipeError(f"{path}: is no recipe; that comes first: apply RECIPE IN OUT")
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RecipeError(f"{path}: cannot be read: {reason}") from error
        recipe = cls.parse(text, str(path))
        return replace(recipe, reads=(str(path), *recipe.reads))

    @property
    def selected(self) -> list[str]:
        """The names and patterns by which options of its steps select."""
        options = ("only", "among", "keep", "layers")
        return [
            str(name)
            for values in map(dump, self.steps)
            for option in options
            for name in values.get(option, ())
        ]

    def to_yaml(self) -> str:
        """The recipe as YAML; only what differs from the defaults is written."""
        steps: list[Any] = []
        for step in self.steps:
            options = dump(step)
            steps.append({step.name: options} if options else step.name)
        storage = {} if self.storage == "auto" else {"storage": self.storage}
        held_back = {"held_back": True} if self.held_back else {}
        recipe = {"version": VERSION, **storage, **held_back, "steps": steps}
        return plain_yaml.text(recipe)


def _step(step: Any, where: str) -> Pass:
    if isinstance(step, str):
        step = {step: None}
    if not isinstance(step, Mapping) or len(step) != 1:
        raise RecipeError(f"{where}: takes the name of a pass, or 'name: {{option: value}}'")
    name, options = next(iter(step.items()))
    where = f"{where} ({str(name)[:60]})"
    if options is None:
        options = {}
    if not isinstance(options, Mapping):
        raise RecipeError(f"{where}: takes options such as '{{dtype: int8}}', not {shown(options)}")
    return build(find_pass(str(name), where), options, where)
