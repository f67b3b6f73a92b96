"""A command for every pass, generated from the pass's options."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onnxshrink.cli._run import Run, run_options
from onnxshrink.cli._terminal import progress_bar
from onnxshrink.errors import RecipeError

if TYPE_CHECKING:
    from onnxshrink.options import Option
    from onnxshrink.pipeline import Pass

F = TypeVar("F", bound=Callable[..., Any])


def _click_option(option: Option) -> Callable[[F], F]:
    """The command-line form of an option; unset means that the pass's default holds."""
    import typing

    flags = [f"--{name.replace('_', '-')}" for name in (option.name, *option.also)]
    default = option.default
    shown = "" if default in (None, (), {}) else f"  [default: {default}]"
    settings: dict[str, Any] = {"default": None, "help": option.help + shown}
    kinds = [part for part in typing.get_args(option.kind) if part is not type(None)]
    kind = kinds[0] if kinds and type(None) in typing.get_args(option.kind) else option.kind
    if kind is bool:
        positive = flags[0]
        flags = ["/".join((positive, positive.replace("--", "--no-", 1)))]
    elif option.many:
        settings["multiple"] = True
    if option.choices:
        settings["type"] = click.Choice([*option.choices, *option.spellings])
    elif kind in (int, float):
        settings["type"] = kind
    else:
        settings["metavar"] = "YAML" if isinstance(default, dict) else "TEXT"
    return click.option(*flags, option.name, **settings)


def pass_command(name: str) -> click.Command:
    """The command of one pass, whose module is imported."""
    from onnxshrink.options import options_of
    from onnxshrink.recipe import find_pass, summary

    kind = find_pass(name)

    def command(**values: Any) -> None:
        run = Run(values)
        given = {key: value for key, value in values.items() if value not in (None, ())}
        step = _build(kind, given)
        from onnxshrink import api
        from onnxshrink.recipe import Recipe

        with progress_bar() as progress:
            report = api.apply_recipe(Recipe((step,)), run.source, run.out, run.options(progress))
        run.finish(report)

    for option in reversed(options_of(kind)):
        command = _click_option(option)(command)
    command.__doc__ = f"{summary(name)}\n\n\b\nonnxshrink {name} model.onnx small.onnx"
    return click.command(name)(run_options(command))


def _build(kind: type[Pass], given: dict[str, Any]) -> Pass:
    """A pass from the values of its command; mappings are written in YAML there."""
    import yaml

    from onnxshrink.options import build, options_of

    for option in options_of(kind):
        if isinstance(option.default, dict) and isinstance(given.get(option.name), str):
            where = f"--{option.name}"
            try:
                given[option.name] = yaml.safe_load(given[option.name])
            except yaml.YAMLError as error:
                raise RecipeError(f"{where}: not YAML: {given[option.name]!r}") from error
    return build(kind, given, kind.name)
