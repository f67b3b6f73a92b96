"""Figures of channel removal: what is left of parameters, work and time at one ratio.

``python tools/bench_channels.py FOLDER_OR_MODEL... [--ratio 0.3] [--round-to 8] [--latency]``
prints a Markdown table. Models come from ``tools/export_architectures.py`` or anywhere else.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from pathlib import Path
from typing import Literal

from onnxshrink.channels.groups import cost
from onnxshrink.contract import Settings
from onnxshrink.errors import ShrinkError
from onnxshrink.graph.file.model import Model
from onnxshrink.passes.prune_channels import PruneChannels
from onnxshrink.pipeline import run
from onnxshrink.report import Table
from onnxshrink.runtime.bench import bench
from onnxshrink.runtime.generate import generated_inputs

Unit = Literal["channels", "heads", "head-dimensions", "width"]
_ALL: tuple[Unit, ...] = ("channels", "heads", "head-dimensions", "width")


def main() -> None:
    """Prune every model and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--round-to", type=int, default=8)
    parser.add_argument("--all-units", action="store_true", help="both factors of heads and groups")
    parser.add_argument("--latency", action="store_true", help="measure in ONNX Runtime")
    arguments = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)
    paths = [
        path
        for given in arguments.models
        for path in (sorted(given.glob("*.onnx")) if given.is_dir() else [given])
    ]
    table = Table(
        f"{arguments.ratio:.0%} of each group",
        ("model", "nodes", "groups", "parameters", "FLOPs", "latency", "analysis s", "result"),
    )
    pass_ = PruneChannels(
        ratio=arguments.ratio, round_to=arguments.round_to, max_error=1e9,
        units=_ALL if arguments.all_units else (),
    )  # fmt: skip
    for path in paths:
        table.add(*_row(path, pass_, arguments.latency))
    print(table.to_markdown())


def _row(path: Path, pass_: PruneChannels, latency: bool) -> tuple[object, ...]:
    name = path.stem if path.stem != "model" else path.parent.name
    model = Model.load(path)
    try:
        feeds = generated_inputs(model, 2, 0)
        started = time.perf_counter()
        plan = pass_.preview(model, feeds, generated=True)
        seconds = time.perf_counter() - started
        before, after = cost(plan.walk), cost(plan.walk, plan.removed)
        result = run([pass_], model, Settings(feeds=feeds, generated=True))
    except ShrinkError as error:
        return name, "", "", "", "", "", "", str(error)[:80]
    step = result.report.steps[0]
    ratio = ""
    if latency and step.status == "done":
        with tempfile.TemporaryDirectory() as folder:
            pruned = Path(folder) / "pruned.onnx"
            result.model.save(pruned)
            ratio = f"{bench([path, pruned], feeds, rounds=25).models[1].ratio:.2f}"
    return (
        name, sum(1 for _ in model.nodes), len(plan.groups),
        f"{after.parameters / max(before.parameters, 1):.3f}",
        f"{after.macs / max(before.macs, 1):.3f}", ratio, f"{seconds:.1f}",
        step.reason[:60] or step.status,
    )  # fmt: skip


if __name__ == "__main__":
    main()
