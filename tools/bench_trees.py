"""Forests and boosted trees through shrink: bytes, and answers to rows that it has not seen.

    python tools/bench_trees.py FOLDER [NAME ...]

FOLDER is one that tools/build_forests.py wrote. Prints the table of docs/measurements.md.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from onnxshrink import session, shrink
from onnxshrink.api import Options
from onnxshrink.recipe import Storage

STORAGES: tuple[Storage, ...] = ("single", "packed")
NAMES = ("forest", "regression", "boosted", "binary")


def main() -> None:
    """Shrink each model, plain and packed, and compare its answers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", default=NAMES)
    given = parser.parse_args()
    rows = np.load(given.folder / "test.npz")["X"]
    print("| model | bytes | plain | gzip | packed | answers to unseen rows | recipe |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for name in given.names:
            source, made = given.folder / f"{name}.onnx", {}
            for storage in STORAGES:
                out = Path(folder) / f"{name}.{storage}.onnx"
                data = given.folder / "calibration.npz"
                report = shrink(source, out, Options(calibration=data, storage=storage))
                made[storage] = report, out.stat().st_size
            recipe, plain = made["single"]
            packed = made["packed"][1]
            before, after = (
                session(path).run(None, {session(path).get_inputs()[0].name: rows})[0]
                for path in (source, Path(folder) / f"{name}.single.onnx")
            )
            if before.dtype.kind == "f":
                error = np.linalg.norm(after - before) / np.linalg.norm(before)
                kept = f"relative error {error:.2g}"
            else:
                kept = f"{(before == after).sum()} of {len(rows)} labels equal"
            size = source.stat().st_size
            steps = [f"{step.name} {step.options.get('bits', '')}".strip() for step in recipe.steps
                     if step.status == "done" and step.name != "clean"]  # fmt: skip
            print(
                f"| {name} | {size:,} | {plain:,} ({size / plain:.1f}x) | "
                f"{recipe.bytes_gzip or 0:,} | {packed:,} ({size / packed:.1f}x) | {kept} | "
                f"{', '.join(steps)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
