#!/usr/bin/env python3
"""Fill the results table of README.md from the models in `models/`.

    python tools/results.py [--write]

runs the command line as a user would, measures the task metric on the test data (which the search
never sees), and prints the table; `--write` puts it between the markers in README.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from model_metrics import metric, run_batches, test_inputs

from onnxshrink.graph.forms import packed as packs

_MISSED = 1  # the exit code of a result that is written, and misses its budget
ROOT = Path(__file__).parent.parent
START, END = "<!-- results -->", "<!-- /results -->"
HEAD = ("model", "command", "size", "smaller", "metric", "output error", "latency")
#: What people would run: a smaller file, one that is fast too, the smallest pair of files, integers
#: at run time, less of everything.
COMMANDS = (
    ("shrink",),
    ("apply", "edge-fast"),
    ("apply", "web"),
    ("quantize-static",),
    ("prune-channels",),
)


def run(command: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """One row: run a command on a model of `models/` and measure what comes out."""
    with tempfile.TemporaryDirectory() as scratch:
        small = Path(scratch) / "small.onnx"
        base = [sys.executable, "-m", "onnxshrink"]
        source, data = str(folder / "model.onnx"), str(folder / "calibration.npz")
        options = ["--calibration", data, "--json", *(["--no-bench"] * (command[0] == "shrink"))]
        done = subprocess.run(
            [*base, *command, source, str(small), *options], capture_output=True, text=True
        )
        if done.returncode not in (0, _MISSED):
            raise SystemExit(f"{' '.join(command)} of {folder.name}: {done.stderr}")
        if packs.is_packed(small):  # onnxshrink.session opens it as it is
            packed, small = small, Path(scratch) / "unpacked.onnx"
            subprocess.run(
                [*base, "unpack", str(packed), str(small)], check=True, capture_output=True
            )
        timing = subprocess.run(
            [*base, "bench", source, str(small), "--calibration", data, "--json"],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        inputs = test_inputs(folder)
        scores = [metric(folder, run_batches(Path(m), inputs)) for m in (source, small)]
    report = json.loads(done.stdout)
    errors = [row["relative_error"] for row in report["outputs"].values()]
    return {
        "before": report["bytes_before"], "after": report["bytes_after"],
        "missed": done.returncode == _MISSED,
        "scores": scores, "error": max(errors), "latency": json.loads(timing)["models"][1]["ratio"],
    }  # fmt: skip


def table() -> str:
    """The whole table in Markdown."""
    lines = ["| " + " | ".join(HEAD) + " |", "|" + " --- |" * len(HEAD)]
    for folder in sorted(path.parent for path in (ROOT / "models").glob("*/model.onnx")):
        for command in COMMANDS:
            row = run(command, folder)
            before, after = row["scores"]
            cells = (
                folder.name,
                f"`{' '.join(command)}`" + ", budget missed" * row["missed"],
                f"{row['before'] / 1e3:.0f} -> {row['after'] / 1e3:.0f} kB",
                f"**{row['before'] / row['after']:.1f}x**",
                f"{before:.4f} -> {after:.4f}",
                f"{row['error']:.2g}",
                f"{row['latency']:.2f}x",
            )
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the table, or write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put it into README.md")
    write = parser.parse_args().write
    text = table()
    print(text)
    if write:
        readme = ROOT / "README.md"
        before, rest = readme.read_text(encoding="utf-8").split(START)
        _, after = rest.split(END)
        readme.write_text(f"{before}{START}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
