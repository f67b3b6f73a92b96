"""The command that prints the help of a pass, or a recipe."""

from __future__ import annotations

import click

from onnxshrink.cli._command import Command
from onnxshrink.errors import RecipeError


@click.command(cls=Command)
@click.argument("name", metavar="NAME")
def command(name: str) -> None:
    """Say what a pass does and what its options are, or show a recipe of the package.

    \b
    onnxshrink explain quantize-weights
    """
    import inspect as reflect

    from onnxshrink.cli import CALLED, command_names
    from onnxshrink.options import options_of
    from onnxshrink.recipe import find_pass, recipe_names, recipe_text

    if name in recipe_names():
        click.echo(recipe_text(name), nl=False)
        return
    if name in command_names():
        raise RecipeError(f"{name} is no pass: 'onnxshrink {name} --help' says what it does")
    name, _ = CALLED.get(name, (name, ""))
    kind = find_pass(name, "explain")
    click.echo(f"{name}\n\n{reflect.getdoc(kind)}\n\nOptions:")
    for option in options_of(kind):
        also = f" (also: {', '.join(option.also)})" if option.also else ""
        values = f" [{'|'.join(option.choices)}]" if option.choices else ""
        click.echo(f"  {option.name}: {option.help}{values}; default {option.default!r}{also}")
