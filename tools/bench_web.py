#!/usr/bin/env python3
"""What a model costs a web page: bytes over the wire, and time to the first answer in Chromium.

    python tools/bench_web.py model.onnx small.onnx --calibration inputs.npz [--rounds 5]

Every model is bundled for the web and opened by the bundle's own page and server, in turns, with an
empty cache each time. Seconds are from the page's start to its first answer: loading from this
machine, making the session, one run. `tests/readers/js/install` installs onnxruntime-web.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import brotli

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from browser import value_when_there  # type: ignore[import-not-found]  # noqa: E402

NODE = shutil.which("node") or "node"
MODULES = ROOT / "tests" / "readers" / "js"
ANSWERED = "document.body?.dataset.error ?? document.body?.dataset.seconds"


def bundle(model: Path, data: str, folder: Path) -> None:
    """The web bundle of a model."""
    words = [sys.executable, "-m", "onnxshrink", "bundle", str(model), str(folder)]
    words += ["--target", "web", "--calibration", data, "--runtime", str(MODULES)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def seconds(folder: Path) -> float:
    """Time to the first answer of a bundle's page."""
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        subprocess.Popen([NODE, folder / "serve.mjs", "0"], stdout=subprocess.PIPE) as server,
    ):
        assert server.stdout is not None
        try:
            address = server.stdout.readline().decode().strip()
            return float(value_when_there(address, ANSWERED, Path(profile)))
        finally:
            server.kill()


def main() -> None:
    """Print a line for each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folders = [Path(place, str(number)) for number in range(len(asked.models))]
        for model, folder in zip(asked.models, folders, strict=True):
            bundle(model, asked.calibration, folder)
        took = [[seconds(folder) for folder in folders] for _ in range(asked.rounds)]
    for number, model in enumerate(asked.models):
        plain = model.read_bytes()
        middle = statistics.median(each[number] for each in took)
        ratio = statistics.median(each[number] / each[0] for each in took)
        print(
            f"{model}: {len(plain) / 1e3:,.0f} kB, {len(brotli.compress(plain)) / 1e3:,.0f} kB "
            f"after brotli, first answer after {middle:.2f} s ({ratio:.2f} times the first model's)"
        )


if __name__ == "__main__":
    main()
