"""The command that compares two models on the same inputs."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import click

from onnxshrink.cli._measure import feeds_for, measure_options, settings
from onnxshrink.cli._terminal import say, show
from onnxshrink.cli._values import COUNT, number, worker_limits
from onnxshrink.errors import BudgetMissed


@click.command()
@click.argument("a", metavar="REFERENCE")
@click.argument("b", metavar="OTHER")
@measure_options
@click.option("--count", default=64, type=COUNT, help="Use at most this many inputs.")
@click.option("--atol", type=number, help="Absolute difference allowed for every value.")
@click.option("--rtol", type=number, help="Relative difference allowed for every value.")
@click.option("--min-agreement", type=number, help="Least top-1 agreement, 0 to 1.")
@click.option("--max-error", type=number, help="Largest relative L2 error of an output.")
def command(
    a: str, b: str, calibration: tuple[str, ...], shape: tuple[str, ...], count: int, seed: int,
    provider: str, threads: int, accuracy_level: int | None, as_json: bool, data_limit: str | None,
    timeout: float | None, memory_limit: str | None, **thresholds: Any,
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
    with Worker(**worker_limits(timeout, memory_limit)) as worker:
        feeds = feeds_for(a, calibration, shape, count, seed, worker, data_limit)
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
        if found.random:
            say(
                "the model is random: two runs of it differ in "
                f"{', '.join(found.random)}, of which distributions are compared"
            )
        say(f"{found.feeds} inputs; {settings(found.options_b)}")
    if found.missed:
        raise BudgetMissed("; ".join(found.missed))
