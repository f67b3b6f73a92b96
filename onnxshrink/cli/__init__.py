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
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from onnxshrink import __version__
from onnxshrink.cli._command import level, loudness, set_level
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


#: The commands that most people need, and what for.
FIRST = {
    "shrink": "Find the smallest form of a model that keeps its answers.",
    "compare": "Hold a model against the original on the same inputs.",
    "bench": "Measure size, latency and memory, side by side.",
    "inspect": "See what is in a model, and where its bytes are.",
    "pack": "Code weights without loss, for devices and downloads.",
    "unpack": "Make a packed model a plain one again, bit for bit.",
}
#: What other tools call what there is here: the command that it runs, and what else it may mean.
CALLED = {
    "palettize": ("share-codebook", "weights share a few values"),
    "quantize": (
        "quantize-weights", "for size only, without data; others are quantize-static (integers at "
        "run time, fastest), quantize-dynamic (transformers) and quantize-rd (smallest)",
    ),
    "prune": (
        "prune-magnitude", "without data; others are prune-wanda and prune-sparsegpt (with data), "
        "and prune-channels (removes channels: less work, too)",
    ),
    "simplify": ("clean", "shrink and apply do it first"),
    "optimize": ("clean", "fewer nodes, same answers; 'shrink' makes the model smaller"),
}  # fmt: skip
#: Passes by the verb of their name.
_FAMILIES = {
    "quantize": "Quantize", "to": "Quantize", "prune": "Prune", "share": "Share and split",
    "split": "Share and split", "correct": "Repair", "reconstruct": "Repair", "tune": "Repair",
}  # fmt: skip


def families(names: Iterable[str]) -> dict[str, list[str]]:
    """Passes by what they are for; those of other verbs prepare."""
    found: dict[str, list[str]] = {name: [] for name in [*_FAMILIES.values(), "Prepare"]}
    for name in names:
        found[_FAMILIES.get(name.partition("-")[0], "Prepare")].append(name)
    return found


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
        """Like click's, with words of other tools, and the nearest name of no such command."""
        from onnxshrink.cli._terminal import say
        from onnxshrink.options import nearest

        name = args[0]
        if name in CALLED:
            name, meaning = CALLED[args[0]]
            if level() >= 0:
                say(f"{args[0]} is called {name} here: {meaning}", err=True)
        if name.endswith(".onnx"):
            said = f"a command comes first: onnxshrink shrink {' '.join(args)}"
            raise click.UsageError(said, ctx)
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            hint = nearest(name, self.list_commands(ctx))
            raise click.UsageError(f"no such command {name!r}{hint}", ctx)
        return super().resolve_command(ctx, [name, *args[1:]])

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Three sections, without importing the passes that they name."""
        from onnxshrink.recipe import pass_names

        with formatter.section("Commands"):
            formatter.write_dl([*FIRST.items()])
        with formatter.section("More commands"):
            formatter.write_dl(
                [
                    (name, fixed_command(name).get_short_help_str(160))
                    for name in command_names()
                    if name not in FIRST
                ]
            )
        with formatter.section("Steps, for recipes or one at a time ('passes' says what they do)"):
            for family, names in families(pass_names()).items():
                width = formatter.width - 20
                wrapped = textwrap.wrap(", ".join(names), width, break_on_hyphens=False)
                for number, line in enumerate(wrapped):
                    formatter.write(f"  {'' if number else family:<16}  {line}\n")

    def invoke(self, ctx: click.Context) -> Any:
        """Turn an error of ours into one line and its exit code."""
        from onnxshrink.cli._terminal import PlainFormatter, say, stoppable

        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(PlainFormatter())
        logging.basicConfig(handlers=[handler])
        set_level()
        for library in ("onnx_ir", "onnxscript"):  # what they try with each node
            logging.getLogger(library).setLevel(logging.ERROR)
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
            say(f"error: {internal(error)}; -vv shows more", err=True)
            ctx.exit(INTERNAL)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    epilog="'onnxshrink COMMAND --help' says more, 'onnxshrink explain STEP' what a step does.",
)
@click.version_option(__version__)
def main() -> None:
    """Make ONNX models several times smaller, and prove that they still give the same answers.

    \b
    onnxshrink shrink model.onnx small.onnx --calibration inputs.npz
    onnxshrink inspect model.onnx small.onnx
    """


main.params.extend(loudness())
