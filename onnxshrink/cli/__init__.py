"""The command line: one command for each public module here, and one for each pass.

A command's module defines ``command`` and is imported when it is run, or when its summary is shown;
the command of a pass is generated from the pass's options. Modules with _ in front are what
commands share. Results go to stdout, progress and logs to stderr. Exit codes: 0 fine, 1 a budget or
comparison missed, 2 usage or recipe, 3 input, 70 a bug of ours, 130 Ctrl-C, 143 SIGTERM. Nothing
heavy is imported before a command needs it.
"""

from __future__ import annotations

import functools
import importlib
import logging
import sys
from pathlib import Path
from typing import Any

import click

from onnxshrink import __version__
from onnxshrink.cli._terminal import PlainFormatter
from onnxshrink.errors import INTERNAL, ShrinkError, internal

_log = logging.getLogger(__name__)


@functools.cache
def command_names() -> tuple[str, ...]:
    """Names of the fixed commands: the public modules beside this one, none of them imported."""
    modules = Path(__file__).parent.glob("[!_]*.py")
    return tuple(sorted(module.stem.replace("_", "-") for module in modules))


def fixed_command(name: str) -> click.Command:
    """A fixed command under its name."""
    command: click.Command = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").command
    command.name = name
    return command


class Commands(click.Group):
    """Commands by name; the module of a command, or of its pass, is imported when it is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in order."""
        from onnxshrink.recipe import pass_names

        return [*command_names(), *pass_names()]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """A fixed command, or the command of a pass."""
        if name in command_names():
            return fixed_command(name)
        from onnxshrink.cli._pass import pass_command
        from onnxshrink.recipe import pass_names

        return pass_command(name) if name in pass_names() else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Like click's, with the nearest name where there is no such command."""
        from onnxshrink.options import nearest

        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            hint = nearest(name, self.list_commands(ctx))
            raise click.UsageError(f"no such command {name!r}{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Two sections, without importing the passes that they describe."""
        from onnxshrink.recipe import pass_names, summary

        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, fixed_command(name).get_short_help_str(80)) for name in command_names()]
            )
        with formatter.section("Passes (one step each; see also 'apply')"):
            formatter.write_dl([(name, summary(name)) for name in pass_names()])

    def invoke(self, ctx: click.Context) -> Any:
        """Turn an error of ours into one line and its exit code."""
        from onnxshrink.cli._terminal import say, stoppable

        try:
            with stoppable():
                return super().invoke(ctx)
        except ShrinkError as error:
            say(f"error: {error}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt as error:
            click.echo("error: stopped", err=True)
            ctx.exit(getattr(error, "exit_code", 130))
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click knows what to do
        except Exception as error:
            _log.debug("the traceback:", exc_info=True)
            say(f"error: {internal(error)}; -vv before the command shows more", err=True)
            ctx.exit(INTERNAL)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option(
    "-v", "--verbose", count=True, help="Log what is done, to stderr; -vv also where bugs arose."
)
def main(verbose: int) -> None:
    """Make ONNX models several times smaller, and prove that they still give the same answers.

    \b
    onnxshrink shrink model.onnx small.onnx --calibration inputs.npz
    onnxshrink inspect model.onnx small.onnx
    """
    level = (logging.ERROR, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainFormatter())
    logging.basicConfig(level=level, handlers=[handler])
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
