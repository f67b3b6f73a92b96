"""The command line: fixed commands, and one command for every pass, generated from its options.

Results go to stdout, progress and logs to stderr. Exit codes: 0 fine, 1 a budget or comparison
missed, 2 usage or recipe, 3 input. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from onnxshrink import __version__
from onnxshrink.commands import (
    Run,
    measure_options,
    pass_command,
    progress_bar,
    run_options,
    shape_option,
    show,
)
from onnxshrink.errors import BudgetMissed, RecipeError, ShrinkError


class Commands(click.Group):
    """Commands by name; the module of a pass is imported when its command is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in order."""
        from onnxshrink.recipe import pass_names

        return [*sorted(self.commands), *pass_names()]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """A fixed command, or the command of a pass."""
        from onnxshrink.recipe import pass_names

        if name in self.commands:
            return self.commands[name]
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
        """Two sections, without importing what they describe."""
        from onnxshrink.recipe import pass_names, summary

        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    (name, self.commands[name].get_short_help_str(80))
                    for name in sorted(self.commands)
                ]
            )
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


@main.command()
@run_options
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
    """Make a model smaller and prove that it still gives the same answers.

    \b
    onnxshrink shrink model.onnx small.onnx --calibration inputs.npz --min-agreement 0.99
    """
    run = Run(values)
    metric, max_size = values.pop("metric"), values.pop("max_size")
    target_ratio, recipe_out = values.pop("target_ratio"), values.pop("recipe_out")
    with_bench = values.pop("with_bench")
    from onnxshrink import api
    from onnxshrink.functions import load_function
    from onnxshrink.search.ladder import Goal

    goal = Goal(metric=load_function(metric) if metric else None, **values)
    missed: BudgetMissed | None = None
    with progress_bar() as progress:
        options = run.options(progress)
        try:
            report = api.shrink(
                run.source, run.out, options, goal=goal, target_ratio=target_ratio,
                max_size=_bytes(max_size, "--max-size") if max_size else None,
                recipe_out=recipe_out,
            )  # fmt: skip
        except BudgetMissed as error:
            missed, report = error, error.report  # type: ignore[assignment]
        if with_bench and options.check != "off":
            report.bench = api.bench_pair(run.source, run.out, options)
    run.finish(report)
    if missed is not None:
        raise missed


def _bytes(text: str, option: str) -> int:
    units = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9,
             "kib": 2**10, "mib": 2**20, "gib": 2**30}  # fmt: skip
    number = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
    unit = text[len(number) :].strip().lower()
    try:
        return int(float(number) * units[unit])
    except (KeyError, ValueError) as error:
        raise RecipeError(f"{option} takes a size such as 5MB, not {text!r}") from error


@main.command(
    "apply",
)
@click.argument("recipe", metavar="RECIPE")
@run_options
def apply_command(recipe: str, **values: Any) -> None:
    """Apply a recipe file to a model.

    \b
    onnxshrink apply recipe.yaml model.onnx small.onnx --calibration inputs.npz
    """
    run = Run(values)
    from onnxshrink import api
    from onnxshrink.recipe import Recipe

    with progress_bar() as progress:
        report = api.apply_recipe(Recipe.load(recipe), run.source, run.out, run.options(progress))
    run.finish(report)


@main.command()
@click.argument("a", metavar="REFERENCE")
@click.argument("b", metavar="OTHER")
@measure_options
@click.option("--count", default=64, help="Use at most this many inputs.")
@click.option("--atol", type=float, help="Absolute difference allowed for every value.")
@click.option("--rtol", type=float, help="Relative difference allowed for every value.")
@click.option("--min-agreement", type=float, help="Least top-1 agreement, 0 to 1.")
@click.option("--max-error", type=float, help="Largest relative L2 error of an output.")
def compare(
    a: str, b: str, calibration: tuple[str, ...], shape: tuple[str, ...], count: int, seed: int,
    provider: str, threads: int, accuracy_level: int | None, as_json: bool, **thresholds: Any,
) -> None:  # fmt: skip
    """Compare the outputs of two models on the same inputs.

    \b
    onnxshrink compare model.onnx small.onnx --calibration inputs.npz --min-agreement 0.99
    """
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
            "output", "relative error", "max abs", "max rel", "SQNR dB", "cosine", "top-1", "KL",
        )  # fmt: skip
        table = Table(f"{b} against {a}", columns)
        for row in found.outputs:
            table.add(
                row.name, f"{row.relative_error:.3g}", f"{row.max_abs:.3g}", f"{row.max_rel:.3g}",
                f"{row.sqnr_db:.1f}", f"{row.cosine:.6f}",
                "-" if row.top1 is None else f"{row.top1:.4f}",
                "-" if row.kl is None else f"{row.kl:.3g}",
            )  # fmt: skip
        show(table)
        click.echo(f"{found.feeds} inputs; {_settings(found.options_b)}")
    if found.missed:
        raise BudgetMissed("; ".join(found.missed))


@main.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL [MODEL ...]")
@measure_options
@click.option("--rounds", default=25, help="How often each is timed, taking turns.")
def bench(
    models: tuple[str, ...], calibration: tuple[str, ...], shape: tuple[str, ...], rounds: int,
    seed: int, as_json: bool, **pinned: Any,
) -> None:  # fmt: skip
    """Measure size, latency, load time and memory of models, side by side.

    \b
    onnxshrink bench model.onnx small.onnx --calibration inputs.npz
    """
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
    show(table)
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
    return generated_inputs(model, 4, seed, shapes=dict(map(shape_option, shape)), worker=worker)


@main.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL [MODEL ...]")
@click.option("--layer", metavar="NAME", help="One weight in detail, with its distribution.")
@click.option("--shape", multiple=True, metavar="NAME:DIMS", help="Shape of an input, for MACs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(
    models: tuple[str, ...], layer: str | None, shape: tuple[str, ...], as_json: bool
) -> None:
    """Show what a model is made of, or several side by side.

    \b
    onnxshrink inspect model.onnx small.onnx
    """
    from onnxshrink.graph import inspect as look
    from onnxshrink.graph.inspect_packed import PackInspection, inspect_pack
    from onnxshrink.graph.model import Model
    from onnxshrink.graph.packed import pack_name

    shapes = dict(map(shape_option, shape))
    if layer is not None:
        for path in models:
            for table in look.layer_table(Model.load(path), layer):
                show(table)
        return
    found: list[look.Inspection | PackInspection] = [
        look.inspect_model(Model.load(path), shapes=shapes)
        if pack_name(Path(path)) is None
        else inspect_pack(path)
        for path in models
    ]
    if as_json:
        data = [inspection.to_dict() for inspection in found]
        click.echo(json.dumps(data if len(data) > 1 else data[0], indent=1, default=str))
        return
    plain = [each for each in found if isinstance(each, look.Inspection)]
    if len(plain) > 1:
        for table in look.compare_models(plain):
            show(table)
    for each in found:
        if len(plain) == 1 or isinstance(each, PackInspection):
            for table in each.tables():
                show(table)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def passes(as_json: bool) -> None:
    """List the passes.

    \b
    onnxshrink passes
    """
    from onnxshrink.recipe import pass_names, summary
    from onnxshrink.report import Table

    if as_json:
        click.echo(json.dumps({name: summary(name) for name in pass_names()}, indent=1))
        return
    table = Table("passes", ("pass", "what it does"))
    for name in pass_names():
        table.add(name, summary(name))
    show(table)


@main.command()
@click.argument("name", metavar="PASS")
def explain(name: str) -> None:
    """Say what a pass does and what its options are.

    \b
    onnxshrink explain quantize-weights
    """
    import inspect as reflect

    from onnxshrink.options import options_of
    from onnxshrink.recipe import find_pass

    kind = find_pass(name, "explain")
    click.echo(f"{name}\n\n{reflect.getdoc(kind)}\n\nOptions:")
    for option in options_of(kind):
        also = f" (also: {', '.join(option.also)})" if option.also else ""
        values = f" [{'|'.join(option.choices)}]" if option.choices else ""
        click.echo(f"  {option.name}: {option.help}{values}; default {option.default!r}{also}")


# ----------------------------------------------------------------------------- packed sidecars


_base = click.option("--base", metavar="PACK", help="The pack that this one updates.")
_limit = click.option("--limit", metavar="SIZE", help="Refuse to unpack more  [default: 16GiB]")


@main.command()
@click.argument("source", metavar="IN")
@click.argument("out", metavar="OUT")
@click.option("--base", metavar="OLD.pack", help="Store only what this pack does not hold.")
@click.option(
    "--with-reader", type=click.Choice(["c", "js"]), multiple=True,
    help="Write the reader for C99 or JavaScript beside OUT. Repeatable.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def pack(
    source: str, out: str, base: str | None, with_reader: tuple[Any, ...], as_json: bool
) -> None:
    """Entropy-code the weights into a sidecar that edge readers decode.

    \b
    onnxshrink pack small.onnx packed.onnx --with-reader js
    """
    from onnxshrink.graph import packed
    from onnxshrink.graph.model import Model

    model = Model.load(source)
    before = model.stored_bytes()
    after = packed.save(model, out, base=base)
    for kind in with_reader:
        packed.write_reader(kind, Path(out).parent)
    _say_sizes(out, before, after, as_json)


@main.command()
@click.argument("source", metavar="IN")
@click.argument("out", metavar="OUT")
@_base
@_limit
@click.option(
    "--storage", type=click.Choice(["auto", "single", "external"]), default="auto",
    help="One file, external data beside it, or external above 2 GB only.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def unpack(
    source: str, out: str, base: str | None, limit: str | None, storage: Any, as_json: bool
) -> None:
    """Turn a packed model into a plain one, bit for bit.

    \b
    onnxshrink unpack packed.onnx plain.onnx
    """
    from onnxshrink.graph import packed

    most = _bytes(limit, "--limit") if limit else None
    after = packed.unpack(source, out, storage, base=base, limit=most)
    _say_sizes(out, packed.stored_bytes(source), after, as_json)


@main.command()
@click.argument("source", metavar="IN")
@_base
@_limit
def verify(source: str, base: str | None, limit: str | None) -> None:
    """Decode all of a packed model and check every checksum.

    \b
    onnxshrink verify packed.onnx
    """
    from onnxshrink.graph import packed

    most = _bytes(limit, "--limit") if limit else None
    with packed.open_pack(source, base=base, limit=most) as opened:
        opened.verify()
        click.echo(f"{opened.path}: {len(opened)} tensors, every checksum is right")


def _say_sizes(out: str, before: int, after: int, as_json: bool) -> None:
    from onnxshrink.report import size, times

    if as_json:
        click.echo(json.dumps({"result": out, "bytes_before": before, "bytes_after": after}))
    else:
        ratio = f", {times(before, after)} smaller" if after < before else ""
        click.echo(f"{out}: {size(before)} -> {size(after)}{ratio}")


if __name__ == "__main__":
    main()
