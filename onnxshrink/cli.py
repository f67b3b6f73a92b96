"""The command line: fixed commands, and one command for every pass, generated from its options.

Results go to stdout, progress and logs to stderr. Exit codes: 0 fine, 1 a budget or comparison
missed, 2 usage or recipe, 3 input. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onnxshrink import __version__
from onnxshrink.errors import BudgetMissed, RecipeError, ShrinkError

if TYPE_CHECKING:
    from onnxshrink.api import Options
    from onnxshrink.options import Option
    from onnxshrink.pipeline import Pass
    from onnxshrink.report import Report, Table

F = TypeVar("F", bound=Callable[..., Any])

_FIXED = {
    "apply": "Apply a recipe file to a model.",
    "bench": "Measure size, latency, load time and memory of models, side by side.",
    "compare": "Compare the outputs of two models on the same inputs.",
    "explain": "Say what a pass does and what its options are.",
    "inspect": "Show what a model is made of, or several side by side.",
    "passes": "List the passes.",
    "shrink": "Make a model smaller and prove that it still gives the same answers.",
}


class Commands(click.Group):
    """Commands by name; the module of a pass is imported when its command is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in order."""
        from onnxshrink.recipe import pass_names

        return [*sorted(_FIXED), *pass_names()]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """A fixed command, or the command of a pass."""
        from onnxshrink.recipe import pass_names

        if name in self.commands:
            return self.commands[name]
        return _pass_command(name) if name in pass_names() else None

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
        """Two sections, without importing what they describe."""
        from onnxshrink.recipe import pass_names, summary

        with formatter.section("Commands"):
            formatter.write_dl(list(_FIXED.items()))
        with formatter.section("Passes (one step each; see also 'apply')"):
            formatter.write_dl([(name, summary(name)) for name in pass_names()])

    def invoke(self, ctx: click.Context) -> Any:
        """Turn an error of ours into one line and its exit code."""
        try:
            return super().invoke(ctx)
        except ShrinkError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(error.exit_code)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option("-v", "--verbose", is_flag=True, help="Log what is done, to stderr.")
def main(verbose: bool) -> None:
    """Make ONNX models several times smaller, and prove that they still give the same answers.

    \b
    onnxshrink shrink model.onnx small.onnx --calibration inputs.npz
    onnxshrink inspect model.onnx small.onnx
    """
    level = logging.INFO if verbose else logging.ERROR
    logging.basicConfig(stream=sys.stderr, level=level, format="%(message)s")
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)


# ------------------------------------------------------------------ options shared by commands


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, colon, dims = text.rpartition(":")
    try:
        return name, tuple(int(dim) for dim in dims.split(",")) if colon else ()
    except ValueError as error:
        raise RecipeError(f"--shape takes NAME:1,3,224,224, not {text!r}") from error


def _run_options(command: F) -> F:
    """Options of every command that writes a model."""
    for decorate in reversed(
        (
            click.argument("source", metavar="IN"),
            click.argument("out", metavar="OUT", required=False),
            click.option("-o", "--output", "out_option", metavar="OUT", help="Same as OUT."),
            click.option(
                "--calibration", metavar="DATA", multiple=True,
                help="Real inputs: .npz, .npy, a folder, or module.py:function. Repeatable.",
            ),
            click.option(
                "--check", type=click.Choice(["full", "quick", "off"]), default="full",
                help="Compare outputs on up to 64 inputs, on two, or not at all.",
            ),
            click.option(
                "--shape", multiple=True, metavar="NAME:DIMS",
                help="Shape of a generated input, as in x:1,3,224,224. Repeatable.",
            ),
            click.option("--seed", default=0, help="For everything that is random."),
            click.option(
                "--storage", type=click.Choice(["auto", "single", "external"]), default="auto",
                help="One file, external data beside it, or external above 2 GB only.",
            ),
            click.option(
                "--report", "report_file", metavar="FILE",
                help="Write the whole report as .json, .md or .html.",
            ),
            click.option("--json", "as_json", is_flag=True, help="Print the report as JSON."),
            click.option("--strict", is_flag=True, help="Exit 1 when nothing was changed."),
        )
    ):  # fmt: skip
        command = decorate(command)
    return command


class _Run:
    """The values of the shared options, taken out of a command's."""

    def __init__(self, values: dict[str, Any]):
        self.source: str = values.pop("source")
        positional, named = values.pop("out"), values.pop("out_option")
        if (positional is None) == (named is None):
            raise click.UsageError("name the output once: IN OUT, or IN -o OUT")
        self.out: str = positional or named
        self.report_file: str | None = values.pop("report_file")
        self.as_json: bool = values.pop("as_json")
        self.strict: bool = values.pop("strict")
        self.calibration = list(values.pop("calibration")) or None
        self.shapes = dict(map(_shape, values.pop("shape")))
        self.rest = {name: values.pop(name) for name in ("check", "seed", "storage")}

    def options(self, progress: Callable[[str, int, int], None]) -> Options:
        from onnxshrink.api import Options

        calibration = self.calibration
        return Options(
            calibration=calibration[0] if calibration and len(calibration) == 1 else calibration,
            shapes=self.shapes, progress=progress, **self.rest,
        )  # fmt: skip

    def finish(self, report: Report) -> None:
        """Print and write the report; exit 1 under --strict when nothing was done."""
        if self.report_file:
            _write_report(report, Path(self.report_file))
        if self.as_json:
            click.echo(report.to_json())
        else:
            for table in report.tables():
                _show(table)
            for name, rung in report.moved.items():
                click.echo(f"kept at {rung}: {name}")
            for warning in report.warnings:
                click.secho(f"warning: {warning}", err=True, fg="yellow", bold=True)
            click.echo(report.headline())
        if self.strict and not report.changed:
            click.echo("error: nothing was changed", err=True)
            sys.exit(1)


def _write_report(report: Report, path: Path) -> None:
    views = {".json": report.to_json, ".md": report.to_markdown, ".html": report.to_html}
    if path.suffix not in views:
        raise RecipeError(f"--report {path}: takes a .json, .md or .html file")
    from onnxshrink.graph.model import atomic_write

    with atomic_write(path) as file:
        file.write(views[path.suffix]().encode())


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on stderr, on a terminal only, and only once a second has passed."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    import time

    from rich.console import Console
    from rich.progress import Progress

    started = time.monotonic()
    tasks: dict[str, Any] = {}
    with Progress(console=Console(stderr=True), transient=True) as bars:

        def update(what: str, done: int, total: int) -> None:
            if time.monotonic() - started < 1:
                return
            task = tasks.get(what)
            if task is None:
                task = tasks[what] = bars.add_task(what, total=total or None)
            bars.update(task, completed=done, total=total or None)

        yield update


def _show(table: Table) -> None:
    """Print a table: drawn for a terminal, in Markdown for a pipe."""
    if not table.rows:
        return
    if not sys.stdout.isatty():
        click.echo(table.to_markdown() + "\n")
        return
    from rich.console import Console
    from rich.table import Table as Drawn

    drawn = Drawn(title=table.title, title_justify="left")
    for index, column in enumerate(table.columns):
        numeric = all(row[index][:1].isdigit() or not row[index] for row in table.rows)
        drawn.add_column(column, justify="right" if numeric else "left")
    for row in table.rows:
        drawn.add_row(*row)
    Console().print(drawn)


# ------------------------------------------------------------------------------------- commands


@main.command(help=_FIXED["shrink"])
@_run_options
@click.option("--min-agreement", type=float, metavar="SHARE", help="Least top-1 agreement, 0 to 1.")
@click.option("--max-error", type=float, metavar="E", help="Largest relative error of an output.")
@click.option(
    "--max-drop", type=float, metavar="D", help="Largest drop of --metric, or of top-1 agreement."
)
@click.option(
    "--metric", metavar="FILE.py:FUNCTION",
    help="Called with the outputs of every calibration input; gives a number, higher is better.",
)  # fmt: skip
@click.option("--max-size", metavar="SIZE", help="Largest result, as in 5MB or 800kB.")
@click.option("--target-ratio", type=float, metavar="X", help="At least this many times smaller.")
@click.option("--recipe-out", metavar="FILE", help="Write the recipe found, for 'apply'.")
@click.option("--bench/--no-bench", "with_bench", default=True, help="Measure latency at the end.")
def shrink(**values: Any) -> None:
    """Registered above with its one-line help."""
    run = _Run(values)
    metric, max_size = values.pop("metric"), values.pop("max_size")
    target_ratio, recipe_out = values.pop("target_ratio"), values.pop("recipe_out")
    with_bench = values.pop("with_bench")
    from onnxshrink import api
    from onnxshrink.functions import load_function
    from onnxshrink.search.ladder import Goal

    goal = Goal(metric=load_function(metric) if metric else None, **values)
    missed: BudgetMissed | None = None
    with _progress() as progress:
        options = run.options(progress)
        try:
            report = api.shrink(
                run.source, run.out, options, goal=goal, target_ratio=target_ratio,
                max_size=_bytes(max_size) if max_size else None, recipe_out=recipe_out,
            )  # fmt: skip
        except BudgetMissed as error:
            missed, report = error, error.report  # type: ignore[assignment]
        if with_bench and options.check != "off":
            report.bench = api.bench_pair(run.source, run.out, options)
    run.finish(report)
    if missed is not None:
        raise missed


def _bytes(text: str) -> int:
    units = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9,
             "kib": 2**10, "mib": 2**20, "gib": 2**30}  # fmt: skip
    number = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
    unit = text[len(number) :].strip().lower()
    try:
        return int(float(number) * units[unit])
    except (KeyError, ValueError) as error:
        raise RecipeError(f"--max-size takes a size such as 5MB, not {text!r}") from error


@main.command("apply", help=_FIXED["apply"])
@click.argument("recipe", metavar="RECIPE")
@_run_options
def apply_command(recipe: str, **values: Any) -> None:
    """Registered above with its one-line help."""
    run = _Run(values)
    from onnxshrink import api
    from onnxshrink.recipe import Recipe

    with _progress() as progress:
        report = api.apply_recipe(Recipe.load(recipe), run.source, run.out, run.options(progress))
    run.finish(report)


@main.command(help=_FIXED["compare"])
@click.argument("a", metavar="REFERENCE")
@click.argument("b", metavar="OTHER")
@click.option("--calibration", "--inputs", metavar="DATA", multiple=True, help="Real inputs.")
@click.option("--shape", multiple=True, metavar="NAME:DIMS", help="Shape of a generated input.")
@click.option("--count", default=64, help="Use at most this many inputs.")
@click.option("--seed", default=0, help="For generated inputs.")
@click.option("--provider", default="CPUExecutionProvider", help="Where OTHER runs.")
@click.option("--threads", default=1, help="Threads inside one operator; 0: one for each core.")
@click.option("--accuracy-level", type=int, help="ONNX Runtime's for MatMulNBits; 0 is exact.")
@click.option("--atol", type=float, help="Absolute difference allowed for every value.")
@click.option("--rtol", type=float, help="Relative difference allowed for every value.")
@click.option("--min-agreement", type=float, help="Least top-1 agreement, 0 to 1.")
@click.option("--max-error", type=float, help="Largest relative L2 error of an output.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compare(
    a: str, b: str, calibration: tuple[str, ...], shape: tuple[str, ...], count: int, seed: int,
    provider: str, threads: int, accuracy_level: int | None, as_json: bool, **thresholds: Any,
) -> None:  # fmt: skip
    """Registered above with its one-line help."""
    from onnxshrink.report import Table
    from onnxshrink.runtime.compare import compare as run_compare
    from onnxshrink.runtime.session import SessionOptions
    from onnxshrink.runtime.worker import Worker

    reference = SessionOptions(threads=threads, accuracy_level=accuracy_level)
    with Worker() as worker:
        feeds = _feeds(a, calibration, shape, count, seed, worker)
        found = run_compare(
            a, b, feeds, worker=worker, options_a=reference,
            options_b=replace(reference, provider=provider), **thresholds,
        )  # fmt: skip
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=1, default=str))
    else:
        columns = (
            "output",
            "relative error",
            "max abs",
            "max rel",
            "SQNR dB",
            "cosine",
            "top-1",
            "KL",
        )
        table = Table(f"{b} against {a}", columns)
        for row in found.outputs:
            table.add(
                row.name, f"{row.relative_error:.3g}", f"{row.max_abs:.3g}", f"{row.max_rel:.3g}",
                f"{row.sqnr_db:.1f}", f"{row.cosine:.6f}",
                "-" if row.top1 is None else f"{row.top1:.4f}",
                "-" if row.kl is None else f"{row.kl:.3g}",
            )  # fmt: skip
        _show(table)
        click.echo(f"{found.feeds} inputs; {_settings(found.options_b)}")
    if found.missed:
        raise BudgetMissed("; ".join(found.missed))


@main.command(help=_FIXED["bench"])
@click.argument("models", nargs=-1, required=True, metavar="MODEL [MODEL ...]")
@click.option("--calibration", "--inputs", metavar="DATA", multiple=True, help="Real inputs.")
@click.option("--shape", multiple=True, metavar="NAME:DIMS", help="Shape of a generated input.")
@click.option("--rounds", default=25, help="How often each is timed, taking turns.")
@click.option("--seed", default=0, help="For generated inputs and the order of turns.")
@click.option("--provider", default="CPUExecutionProvider", help="Where the models run.")
@click.option("--threads", default=1, help="Threads inside one operator; 0: one for each core.")
@click.option("--accuracy-level", type=int, help="ONNX Runtime's for MatMulNBits; 0 is exact.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench(
    models: tuple[str, ...], calibration: tuple[str, ...], shape: tuple[str, ...], rounds: int,
    seed: int, as_json: bool, **pinned: Any,
) -> None:  # fmt: skip
    """Registered above with its one-line help."""
    from onnxshrink.report import Table, size
    from onnxshrink.runtime.bench import bench as run_bench
    from onnxshrink.runtime.session import SessionOptions
    from onnxshrink.runtime.worker import Worker

    with Worker() as worker:
        feeds = _feeds(models[0], calibration, shape, 8, seed, worker)
    found = run_bench(models, feeds, SessionOptions(**pinned), rounds, seed=seed)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=1, default=str))
        return
    columns = ("model", "file", "latency", "ratio", "95 % interval", "load", "steady", "peak")
    table = Table("latency, memory beyond an empty session", columns)
    for row in found.models:
        table.add(
            row.path, size(row.file_bytes), f"{row.seconds * 1e3:.3f} ms", f"{row.ratio:.3f}",
            f"{row.ratio_low:.3f} to {row.ratio_high:.3f}", f"{row.load_seconds * 1e3:.0f} ms",
            size(row.steady_bytes), size(row.peak_bytes),
        )  # fmt: skip
    _show(table)
    click.echo(f"{found.rounds} rounds; {_settings(found.options)}")


def _settings(options: Mapping[str, object]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in options.items())


def _feeds(
    path: str, calibration: Sequence[str], shape: Sequence[str], count: int, seed: int, worker: Any
) -> list[dict[str, Any]]:
    """Real inputs for a model where there are some, else generated ones with a warning."""
    from onnxshrink.graph.model import Model
    from onnxshrink.runtime.generate import generated_inputs
    from onnxshrink.runtime.inputs import load_inputs

    worker.start()
    model = Model.load(path)
    if calibration:
        sources = calibration[0] if len(calibration) == 1 else list(calibration)
        return load_inputs(sources, model, limit=count)
    click.secho("warning: inputs are generated; pass --calibration", err=True, fg="yellow")
    return generated_inputs(model, 4, seed, shapes=dict(map(_shape, shape)), worker=worker)


@main.command(help=_FIXED["inspect"])
@click.argument("models", nargs=-1, required=True, metavar="MODEL [MODEL ...]")
@click.option("--layer", metavar="NAME", help="One weight in detail, with its distribution.")
@click.option("--shape", multiple=True, metavar="NAME:DIMS", help="Shape of an input, for MACs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(
    models: tuple[str, ...], layer: str | None, shape: tuple[str, ...], as_json: bool
) -> None:
    """Registered above with its one-line help."""
    from onnxshrink.graph import inspect as look
    from onnxshrink.graph.model import Model

    shapes = dict(map(_shape, shape))
    if layer is not None:
        for path in models:
            for table in look.layer_table(Model.load(path), layer):
                _show(table)
        return
    found = [look.inspect_model(Model.load(path), shapes=shapes) for path in models]
    if as_json:
        data = [inspection.to_dict() for inspection in found]
        click.echo(json.dumps(data if len(data) > 1 else data[0], indent=1, default=str))
        return
    for table in found[0].tables() if len(found) == 1 else look.compare_models(found):
        _show(table)


@main.command(help=_FIXED["passes"])
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def passes(as_json: bool) -> None:
    """Registered above with its one-line help."""
    from onnxshrink.recipe import pass_names, summary
    from onnxshrink.report import Table

    if as_json:
        click.echo(json.dumps({name: summary(name) for name in pass_names()}, indent=1))
        return
    table = Table("passes", ("pass", "what it does"))
    for name in pass_names():
        table.add(name, summary(name))
    _show(table)


@main.command(help=_FIXED["explain"])
@click.argument("name", metavar="PASS")
def explain(name: str) -> None:
    """Registered above with its one-line help."""
    import inspect as reflect

    from onnxshrink.options import options_of
    from onnxshrink.recipe import find_pass

    kind = find_pass(name, "explain")
    click.echo(f"{name}\n\n{reflect.getdoc(kind)}\n\nOptions:")
    for option in options_of(kind):
        also = f" (also: {', '.join(option.also)})" if option.also else ""
        values = f" [{'|'.join(option.choices)}]" if option.choices else ""
        click.echo(f"  {option.name}: {option.help}{values}; default {option.default!r}{also}")


# ------------------------------------------------------------------------------ one for each pass


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
    elif option.choices:
        settings["type"] = click.Choice([*option.choices, *option.spellings])
    elif option.many:
        settings["multiple"] = True
    elif kind in (int, float):
        settings["type"] = kind
    else:
        settings["metavar"] = "YAML" if isinstance(default, dict) else "TEXT"
    return click.option(*flags, option.name, **settings)


def _pass_command(name: str) -> click.Command:
    from onnxshrink.options import options_of
    from onnxshrink.recipe import find_pass, summary

    kind = find_pass(name)

    def command(**values: Any) -> None:
        run = _Run(values)
        given = {key: value for key, value in values.items() if value not in (None, ())}
        step = _build(kind, given)
        from onnxshrink import api
        from onnxshrink.recipe import Recipe

        with _progress() as progress:
            report = api.apply_recipe(Recipe((step,)), run.source, run.out, run.options(progress))
        run.finish(report)

    for option in reversed(options_of(kind)):
        command = _click_option(option)(command)
    command.__doc__ = f"{summary(name)}\n\n\b\nonnxshrink {name} model.onnx small.onnx"
    return click.command(name)(_run_options(command))


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


if __name__ == "__main__":
    main()
