"""Prints what coding saves and costs, on any ONNX models, as Markdown.

    python tools/bench_coded.py MODEL.onnx...

Bytes: of the model as it is, as a packed sidecar and coded, and the coded bits a weight beside the
order-0 entropy. Price: CPU seconds to make a session, the peak and what stays of resident memory,
and the latency ratio, each measured in fresh processes. Outputs are compared bit for bit. Give it
what ``quantize-weights``, ``quantize-rd`` and others wrote; floats of many values are not coded,
and the price of loading them is shown to compare with.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from onnxshrink.errors import BudgetMissed
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import coded, packed
from onnxshrink.runtime.bench import FEWEST_ROUNDS, bench
from onnxshrink.runtime.generate import generated_inputs
from onnxshrink.runtime.session import open_session, run_session

# What a child does: it makes a session and prints CPU seconds and resident memory, peak and after.
_LOAD = """
import json, sys, time
import onnxshrink.runtime.child as child
import onnxshrink.runtime.session as plain
child._start_over()
before, started = child.memory()[0], time.process_time()
session = plain.open_session(sys.argv[1])
seconds = time.process_time() - started
after, peak = child.memory()
print(json.dumps([seconds, peak - before, after - before]))
"""
_COLUMNS = (
    "model", "bytes", "packed", "coded", "bits a weight", "entropy", "equal", "load s", "coded",
    "peak MB", "coded", "steady MB", "coded", "latency",
)  # fmt: skip


def price(path: Path) -> tuple[float, float, float]:
    """CPU seconds, peak and steady bytes of making one session."""
    run = [sys.executable, "-c", _LOAD, str(path)]
    done = subprocess.run(run, check=True, stdout=subprocess.PIPE)
    seconds, peak, steady = json.loads(done.stdout)
    return seconds, peak, steady


def measure(source: Path, folder: Path) -> list[str]:
    """One row of the table."""
    model = Model.load(source)
    plain, small = model.nbytes(), folder / "coded.onnx"
    try:
        beside = f"{packed.save(model, folder / 'packed.onnx'):,}"
    except BudgetMissed:
        beside = "-"
    try:
        nbytes, coding = coded.save(model, small)
    except BudgetMissed:
        seconds, peak, steady = price(source)
        costs = [f"{seconds:.3f}", "-", f"{peak / 1e6:.1f}", "-", f"{steady / 1e6:.1f}", "-", "-"]
        return [source.name, f"{plain:,}", beside, "-", "-", "-", "-", *costs]
    feeds = generated_inputs(model, 2, 0)
    first, second = open_session(source), open_session(small)
    equal = all(
        np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
        for feed in feeds
        for a, b in zip(run_session(first, feed), run_session(second, feed), strict=True)
    )
    before, after = price(source), price(small)
    ratio = bench([source, small], feeds, rounds=FEWEST_ROUNDS + 3).models[1].ratio
    stored = coding.nbytes - (plain - nbytes)
    return [
        source.name, f"{plain:,}", beside, f"{nbytes:,}", f"{8 * stored / coding.weights:.3f}",
        f"{8 * coding.ideal / coding.weights:.3f}", "yes" if equal else "NO",
        f"{before[0]:.3f}", f"{after[0]:.3f}", f"{before[1] / 1e6:.1f}", f"{after[1] / 1e6:.1f}",
        f"{before[2] / 1e6:.1f}", f"{after[2] / 1e6:.1f}", f"{ratio:.3f}",
    ]  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    arguments = parser.parse_args()
    print("| " + " | ".join(_COLUMNS) + " |")
    print("|" + " --- |" * len(_COLUMNS))
    for source in arguments.models:
        with tempfile.TemporaryDirectory(prefix="onnxshrink-bench-") as folder:
            print("| " + " | ".join(measure(source, Path(folder))) + " |", flush=True)


if __name__ == "__main__":
    main()
