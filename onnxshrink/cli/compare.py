"""The command that compares two models on the same inputs."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from onnxshrink.cli._command import Command, input_option
from onnxshrink.cli._measure import CPU, MeasureOptions, measure_options, settings
from onnxshrink.cli._places import place_options, places, show_findings
from onnxshrink.cli._terminal import say, show, warn
from onnxshrink.cli._values import COUNT, number
from onnxshrink.errors import BudgetMissed

if TYPE_CHECKING:
    from onnxshrink.runtime.places import Place


@click.command(cls=Command)
@click.argument("a", metavar="REFERENCE")
@click.argument("b", metavar="OTHER")
@place_options
@measure_options
@input_option("--count", default=64, type=COUNT, help="Use at most this many inputs.")
@click.option("--atol", type=number, help="Absolute difference allowed for every value.")
@click.option("--rtol", type=number, help="Relative difference allowed for every value.")
@click.option("--min-agreement", type=number, help="Least top-1 agreement, 0 to 1.")
@click.option("--max-error", type=number, help="Largest relative L2 error of an output.")
@click.option("--max-kl", type=number, help="Largest mean divergence of rows of classes, in nats.")
@click.option(
    "--max-perplexity-rise",
    type=number,
    metavar="SHARE",
    help="How much higher the perplexity of the tokens that follow may be, as in 0.02.",
)
def command(
    a: str, b: str, count: int, providers: str | None, python: str | None, node: str | None,
    web: str | None, results: tuple[str, ...], no_fallback: bool, **values: Any,
) -> None:  # fmt: skip
    """Compare the outputs of two models on the same inputs.

    \b
    onnxshrink compare model.onnx small.onnx --calibration inputs.npz --min-agreement 0.99
    onnxshrink compare model.onnx small.onnx --calibration inputs.npz --providers CPU,reference

    With places (--providers, --node, --web, --results), OTHER runs in each of them and is held
    against REFERENCE on ONNX Runtime's CPU provider. A place that does not run it counts as missed.
    """
    measured = MeasureOptions.take(values)
    elsewhere = places(providers, python, node, web, measured.accuracy_level or 0)
    if elsewhere or results:
        _elsewhere(a, b, count, measured, elsewhere, results, not no_fallback, values)
        return
    from onnxshrink import commands
    from onnxshrink.report import Table

    found = commands.compare(
        a, b, measured.options(), count=count, provider=measured.provider,
        session=replace(measured.session, provider=CPU), say=warn, **values,
    )  # fmt: skip
    if measured.as_json:
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
        for row in found.outputs:
            if row.spectrum_db is not None and row.drift is not None:
                say(
                    f"{row.name}: a sound: log-spectral distance {row.spectrum_db:.2f} dB, length "
                    f"drift {100 * row.drift:.2f} %"
                )
        if found.matched is not None and found.matched[1]:
            again, total = found.matched
            say(f"matched detections {100 * again / total:.1f} % ({again:,} of {total:,})")
        if found.random:
            say(
                "the model is random: two runs of it differ in "
                f"{', '.join(found.random)}, of which distributions are compared"
            )
        for name, (before, after) in found.perplexity.items():
            say(f"perplexity of {name!r}: {before:.4g} -> {after:.4g} ({after / before - 1:+.2%})")
        say(f"{found.feeds} inputs; {settings(found.options_b)}")
    if found.missed:
        raise BudgetMissed("; ".join(found.missed))


def _elsewhere(
    a: str, b: str, count: int, measured: MeasureOptions, elsewhere: list[Place],
    results: tuple[str, ...], fallback: bool, thresholds: dict[str, Any],
) -> None:  # fmt: skip
    """Compare in other places than here, or with what was brought from them."""
    from onnxshrink.commands import inputs_for
    from onnxshrink.runtime.places import compare_places
    from onnxshrink.runtime.worker import Worker

    # One level everywhere, and the exact one: places differ in what they take by themselves.
    exact = measured.accuracy_level or 0
    pinned = replace(measured.session, provider=CPU, accuracy_level=exact)
    with Worker(**measured.limits) as worker:
        feeds = inputs_for(a, measured.options(), count, worker, warn)
        findings = compare_places(
            a, b, feeds, elsewhere, results, options_a=pinned, fallback=fallback, worker=worker,
            timeout=measured.limits.get("timeout"), **thresholds,
        )  # fmt: skip
    show_findings(f"{b} against {a}", findings, measured.as_json)
    if missed := [line for finding in findings for line in finding.missed]:
        raise BudgetMissed("; ".join(missed))
