#!/usr/bin/env python3
"""`quantize-weights` against ONNX Runtime's `quantize_dynamic`: wall time and peak memory.

    python tools/bench_rivals.py model.onnx [--rounds 5]

Both run as a user would start them, in turns, each in a process of its own. Peak memory is that of
the process; the child in which onnxshrink proves its result is told apart.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RIVAL = (
    "import sys; from onnxruntime.quantization import quantize_dynamic, QuantType; "
    "quantize_dynamic(sys.argv[1], sys.argv[2], per_channel=True, weight_type=QuantType.QInt8)"
)


def measure(command: list[str]) -> tuple[float, int]:
    """Seconds and peak resident bytes of one process."""
    started = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{command[:4]} failed with exit code {child.returncode}")
    return time.perf_counter() - started, usage.ru_maxrss * 1024


def main() -> None:
    """Print the medians and the ratios of interleaved runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ours = [sys.executable, "-m", "onnxshrink", "quantize-weights", str(arguments.model)]
        contenders = {
            "onnxshrink": [*ours, f"{folder}/a.onnx"],
            "onnxshrink --check off": [*ours, f"{folder}/b.onnx", "--check", "off"],
            "quantize_dynamic": [sys.executable, "-c", RIVAL, str(arguments.model), f"{folder}/c"],
        }
        rows: dict[str, list[tuple[float, int]]] = {name: [] for name in contenders}
        for _ in range(arguments.rounds):
            for name, command in contenders.items():
                rows[name].append(measure(command))
    rival = rows["quantize_dynamic"]
    for name, runs in rows.items():
        pairs = list(zip(runs, rival, strict=True))
        print(
            f"{name:24} {statistics.median(r[0] for r in runs):6.2f} s "
            f"{statistics.median(r[1] for r in runs) / 1e6:6.0f} MB   ratio: time "
            f"{statistics.median(a[0] / b[0] for a, b in pairs):.2f}, memory "
            f"{statistics.median(a[1] / b[1] for a, b in pairs):.2f}"
        )


if __name__ == "__main__":
    main()
