"""A command for every pass, generated from the pass's options."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onnxshrink.cli._budget import Budget, finish, step_budget_options
from onnxshrink.cli._command import Command, InputOption
from onnxshrink.cli._exclude import Exclusion, exclude_options
from onnxshrink.cli._run import RunOptions, run_options
from onnxshrink.cli._terminal import progress_bar, show
from onnxshrink.cli._values import Number

if TYPE_CHECKING:
    from onnxshrink.goal import Goal
    from onnxshrink.options import Option
    from onnxshrink.pipeline import Pass
    from onnxshrink.report import Report

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Look:
    """An option that shows something in place of writing a model."""

    name: str
    option: Callable[[F], F]


#: By the method of a pass that it calls; passes without that have no such option.
LOOKS = {
    "preview": Look(
        "dry_run",
        click.option("--dry-run", is_flag=True, help="Show what would change; write nothing."),
    ),
    "explain": Look(
        "explain",
        click.option(
            "--explain", metavar="NAME",
            help="Show what goes together with a node, weight or group (or a pattern of names), "
            "and what blocks it; write nothing.",
        ),
    ),
}  # fmt: skip


def _click_options(option: Option) -> list[Callable[[F], F]]:
    """The command-line form of an option; unset means that the pass's default holds.

    Other names of a single value are options of their own, so that two values are not taken for
    one.
    """
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
        settings["type"] = int if kind is int else Number()
    else:
        settings["metavar"] = "YAML" if isinstance(default, dict) else "TEXT"
    if option.many:
        return [click.option(*flags, option.name, **settings)]
    same = {**settings, "help": f"Same as {flags[0]}."}
    named = zip(flags[1:], option.also, strict=kind is not bool)
    others = [click.option(flag, name, **same) for flag, name in named]
    return [click.option(flags[0], option.name, **settings), *others]


def pass_command(name: str) -> click.Command:
    """The command of one pass, whose module is imported."""
    from onnxshrink.options import options_of
    from onnxshrink.recipe import find_pass, summary

    kind = find_pass(name)

    looks = [look for method, look in LOOKS.items() if hasattr(kind, method)]

    def command(**values: Any) -> None:
        asked = {look.name: values.pop(look.name) for look in looks}
        exclusion = Exclusion.take(values)
        budget = Budget.take(values, sizes=False)
        run = RunOptions(values, writes=not any(asked.values()))
        given = {key: value for key, value in values.items() if value not in (None, ())}
        step = _build(kind, given)
        if any(asked.values()):
            _look(step, asked, run)
            return
        from onnxshrink import api, files
        from onnxshrink.recipe import Recipe

        def produce() -> Report:
            with progress_bar() as progress:
                options = run.options(progress, [*files.likely(values.values()), *exclusion.reads])
                if exclusion.wanted:
                    return exclusion.run(step, run.source, run.out, options)
                return api.apply_recipe(
                    Recipe((step,)), run.source, run.out, options, goal=_goal(step, budget)
                )

        finish(run, produce)

    for option in reversed(options_of(kind)):
        for decorate in reversed(_click_options(option)):
            command = decorate(command)
    for look in reversed(looks):
        command = look.option(command)
    if any(field.name == "weights" for field in fields(kind)):
        command = exclude_options(command)
    example = f"onnxshrink {name} model.onnx small.onnx --calibration inputs.npz {kind.example}"
    command.__doc__ = f"{summary(name)}\n\n\b\n{example.rstrip()}"
    made = click.command(name, cls=Command)(run_options(step_budget_options(command)))
    own = {flag for param in made.params if type(param) is click.Option for flag in param.opts}
    for param in made.params:
        if isinstance(param, InputOption):
            param.opts = [flag for flag in param.opts if flag not in own]
    return made


def _goal(step: Pass, budget: Budget) -> Goal | None:
    """What the answers must keep, unless an option of the step says so already."""
    if getattr(step, "min_fidelity", None) is not None:
        return None
    return budget.goal(max_error=step.max_error)


def _look(step: Any, asked: dict[str, Any], run: RunOptions) -> None:
    """Print what a pass would do, or how it sees a part of the model; nothing is written."""
    from onnxshrink import api
    from onnxshrink.report import printable
    from onnxshrink.runtime.worker import Worker, blamed

    with (
        progress_bar() as progress, Worker(**run.worker) as worker, blamed(run.source, worker)
    ):  # fmt: skip
        options = run.options(progress)
        model, feeds = api.load(run.source, options, worker)
        if what := asked.get("explain"):
            tables = step.explain(model, what, feeds, options.seed, worker=worker)
            data, empty = {table.title: table.to_dicts() for table in tables}, False
        else:
            generated = options.calibration is None
            plan = step.preview(model, feeds, options.seed, generated=generated, worker=worker)
            tables, data, empty = plan.tables(), plan.to_dict(), not plan.removed.any()
    if run.as_json:
        click.echo(json.dumps(data, indent=1))
    else:
        for table in tables:
            if table.rows and not sys.stdout.isatty():
                click.echo(f"## {printable(table.title)}\n")
            show(table)
    if empty and run.strict:
        click.echo("error: nothing would be changed", err=True)
        sys.exit(1)


def _build(kind: type[Pass], given: dict[str, Any]) -> Pass:
    """A pass from the values of its command; mappings are written in YAML there."""
    from onnxshrink import plain_yaml
    from onnxshrink.options import build, options_of

    for option in options_of(kind):
        if isinstance(option.default, dict) and isinstance(given.get(option.name), str):
            given[option.name] = plain_yaml.parse(given[option.name], f"--{option.name}")
    return build(kind, given, kind.name)
