#!/usr/bin/env python3
"""Prints what packing adds to quantizing: plain, int8 and int4, each as it is and packed.

    python tools/pack_table.py MODEL.onnx...

Runs the command line as a user would; answers are not checked, only bytes are counted. Ratios are
those of the plain model's bytes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from onnxshrink.graph.forms.packed import stored_bytes

STEPS: dict[str, list[str]] = {
    "plain": [],
    "int8": ["--dtype", "int8"],
    "int4": ["--dtype", "int4", "--block-size", "32"],
}
MISSED = 1  # exit code: packed, the model would be larger


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a command of ours."""
    command = [sys.executable, "-m", "onnxshrink", *words]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def quantized(source: Path, options: list[str], folder: Path) -> Path:
    """The model with its weights quantized, or as it is when there is nothing to quantize."""
    if not options:
        return source
    out = folder / "quantized.onnx"
    done = run("quantize-weights", str(source), str(out), *options, "--check", "off")
    if done.returncode:
        raise RuntimeError(f"{source}: {done.stderr.strip()}")
    return out


def packed(source: Path, folder: Path) -> int | None:
    """Bytes of the packed model, unpacking it once to be sure; None if packing does not pay."""
    small = folder / "packed.onnx"
    done = run("pack", str(source), str(small))
    if done.returncode == MISSED:
        return None
    if done.returncode or (done := run("verify", str(small))).returncode:
        raise RuntimeError(f"{source}: {done.stderr.strip()}")
    return stored_bytes(small)


def cells(source: Path) -> list[str]:
    """The figures of a model."""
    found: list[str] = []
    before = source.stat().st_size
    for options in STEPS.values():
        with tempfile.TemporaryDirectory() as scratch:
            model = quantized(source, options, Path(scratch))
            for nbytes in (model.stat().st_size, packed(model, Path(scratch))):
                found.append("-" if nbytes is None else f"{nbytes:,} ({before / nbytes:.2f}x)")
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, help="ONNX files without external data")
    models = parser.parse_args().models
    head = ["model", *(f"{name}{how}" for name in STEPS for how in ("", " packed"))]
    print("| " + " | ".join(head) + " |\n|" + " --- |" * len(head), flush=True)
    for model in models:
        print("| " + " | ".join([model.parent.name, *cells(model)]) + " |", flush=True)


if __name__ == "__main__":
    main()
