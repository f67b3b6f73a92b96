"""What all commands have in common: sections of their help, how loud they are, hints."""

from __future__ import annotations

import itertools
import logging
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import click

OWN, INPUTS, COMMON = "Options", "Inputs", "Common options"
F = TypeVar("F", bound=Callable[..., Any])

_LEVEL = f"{__name__}.level"
_NUMBER = r"-?[\d.]+,?"
#: Options that take several numbers as one word, and what stands between these.
_JOINED = {"--mean": ",", "--std": ",", "--image-size": "x"}
_LEVELS = {-1: logging.CRITICAL, 0: logging.ERROR, 1: logging.INFO, 2: logging.DEBUG}


class InputOption(click.Option):
    """An option that says what the inputs are."""

    section = INPUTS


class CommonOption(click.Option):
    """An option that many commands have, and few people need."""

    section = COMMON


def input_option(*names: str, **settings: Any) -> Callable[[F], F]:
    """Like click's option, among the inputs."""
    return click.option(*names, cls=InputOption, **settings)


def common_option(*names: str, **settings: Any) -> Callable[[F], F]:
    """Like click's option, among those common to all."""
    return click.option(*names, cls=CommonOption, **settings)


class Command(click.Command):
    """A command whose help has its own options first, and those common to all last."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.params.extend(loudness())

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Like click's; an option that is given twice is an error where it takes one value."""
        try:
            _, rest, order = self.make_parser(ctx).parse_args(list(args))
        except click.NoSuchOption as error:
            known = {flag for param in self.params for flag in param.opts}
            for word in args:
                if f"-{word}" in known:
                    raise click.UsageError(f"write -{word}, with two dashes", ctx) from error
            raise self._elsewhere(ctx, error) from error
        if rest and (hint := _split_value(list(args), rest[0])):
            raise click.UsageError(hint, ctx)
        for param, times in Counter(order).items():
            single = isinstance(param, click.Option) and not (param.multiple or param.count)
            if single and times > 1:
                raise click.UsageError(f"{param.opts[0]} is given {times} times; it takes one", ctx)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options in sections."""
        sections: dict[str, list[tuple[str, str]]] = {OWN: [], INPUTS: [], COMMON: []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                sections[getattr(param, "section", OWN)].append(record)
        for name, records in sections.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)

    def _elsewhere(self, ctx: click.Context, error: click.NoSuchOption) -> click.UsageError:
        """The error for an option that this command lacks: which others have it."""
        group = ctx.parent.command if ctx.parent is not None else None
        if not isinstance(group, click.Group) or ctx.parent is None:
            return error
        having = []
        for name in group.list_commands(ctx.parent):
            command = group.get_command(ctx.parent, name)
            if command is not None and any(error.option_name in p.opts for p in command.params):
                having.append(name)
        if not having:
            return error
        names, rest = ", ".join(having[:3]), len(having) - 3
        have = f"{names} and {rest} more have" if rest > 0 else names + (" has", " have")[rest > -2]
        return click.UsageError(
            f"{ctx.info_name} has no option {error.option_name}; {have} it", ctx
        )


def _split_value(args: list[str], extra: str) -> str | None:
    """A hint about a word that is too much, where it is the rest of an option's value."""
    place = len(args) - 1 - args[::-1].index(extra)
    flags = [word for word in args[:place] if word.startswith("--")]
    if flags and flags[-1] in _JOINED and re.fullmatch(_NUMBER, extra):
        values = args[len(args) - args[::-1].index(flags[-1]) :]
        words = itertools.takewhile(re.compile(_NUMBER).fullmatch, values)
        numbers = [word.rstrip(",") for word in words]
        return f"write {flags[-1]} {_JOINED[flags[-1]].join(numbers)}, without spaces"
    if re.fullmatch(r"[kMG]?i?B|ms", extra, re.I) and place > 1 and flags:
        return f"write {flags[-1]} {args[place - 1]}{extra}, without a space"
    if flags and flags[-1] in ("--calibration", "--inputs"):
        return (
            f"{extra}: one word too many; put a pattern in quotes ('*.jpg'), name the folder, or "
            "give --calibration for each file"
        )
    return None


def loudness() -> list[click.Option]:
    """The options that say how much is said; they work before and behind a command."""
    return [
        CommonOption(
            ["-v", "--verbose"], count=True, expose_value=False, callback=_louder,
            show_default=False,
            help="Say what is done, with times, to stderr; -vv says where bugs arose, too.",
        ),
        CommonOption(
            ["-q", "--quiet"], is_flag=True, expose_value=False, callback=_quieter,
            help="Print errors only; --json still prints JSON.",
        ),
    ]  # fmt: skip


def level() -> int:
    """How loud the running command is: -1 with -q, 0, 1 with -v, 2 with -vv."""
    context = click.get_current_context(silent=True)
    if context is None:
        return 0
    found: int = context.find_root().meta.get(_LEVEL, 0)
    return found


def set_level() -> None:
    """Make the log as loud as the running command is."""
    logging.getLogger().setLevel(_LEVELS[level()])


def _louder(ctx: click.Context, _: click.Parameter, count: int) -> None:
    if count:
        _set_level(ctx, min(max(level(), 0) + count, 2))


def _quieter(ctx: click.Context, _: click.Parameter, quiet: bool) -> None:
    if quiet:
        _set_level(ctx, -1)


def _set_level(ctx: click.Context, found: int) -> None:
    ctx.find_root().meta[_LEVEL] = found
    set_level()
