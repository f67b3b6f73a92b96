#!/usr/bin/env python3
"""`quantize-dynamic` against ONNX Runtime's `quantize_dynamic`: size, error, latency.

    python tools/bench_dynamic.py MODEL.onnx --inputs DATA [--rounds 30]

DATA is anything that `--calibration` takes. The error is that of the outputs against the float
model's; the latency is the median ratio to the float model in interleaved runs, one thread each.
The rival runs with its defaults, with `--per-channel`, and, because it refuses many models as they
are, on the models that `onnxshrink clean` gives where it does. One row of Markdown for each.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path

import numpy as np

from onnxshrink import Options, Recipe, apply_recipe
from onnxshrink.errors import ShrinkError
from onnxshrink.graph.file.model import Model
from onnxshrink.kernels.metrics import compare_outputs
from onnxshrink.runtime.bench import bench
from onnxshrink.runtime.inputs import load_inputs
from onnxshrink.runtime.worker import Worker

OURS = {
    "quantize-dynamic": "quantize-dynamic: {max_error: 10}",
    "its products alone": "quantize-dynamic: {others: keep, vectors: keep, max_error: 10}",
}


def rival(source: Path, out: Path, **options: bool) -> None:
    """What ONNX Runtime makes of a model."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(source, out, weight_type=QuantType.QInt8, **options)


def contenders(source: Path, folder: Path, options: Options) -> dict[str, Path]:
    """The float model and every smaller one, by name."""
    found = {"float": source}
    for name, step in OURS.items():
        out = folder / f"{len(found)}.onnx"
        report = apply_recipe(Recipe.parse(f"version: 1\nsteps: [{step}]"), source, out, options)
        assert report.changed, report.steps[0].reason
        found[name] = out
    clean = folder / "clean.onnx"
    for name, kinds in (("defaults", {}), ("per channel", {"per_channel": True})):
        out = folder / f"{len(found)}.onnx"
        try:
            rival(source, out, **kinds)
            found[f"ONNX Runtime, {name}"] = out
        except Exception as error:  # whatever it may raise, it is a result
            logging.warning("quantize_dynamic refuses %s: %s", source, str(error)[:80])
            apply_recipe(Recipe.parse("version: 1\nsteps: [clean]"), source, clean, options)
            rival(clean, out, **kinds)
            found[f"ONNX Runtime, {name}, after clean"] = out
    return found


def main() -> None:
    """Print one row for each contender."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--inputs", required=True)
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as name, Worker() as worker:
        options = Options(calibration=arguments.inputs, check="quick")
        models = contenders(arguments.model, Path(name), options)
        feeds = load_inputs(arguments.inputs, Model.load(arguments.model))
        answers = {}
        for label, path in list(models.items()):
            try:
                answers[label] = worker.run(path, feeds)
            except ShrinkError as error:  # a model that does not run is a result too
                print(f"{label}: {error}", file=sys.stderr)
                del models[label]
        runs = []
        for label, path in models.items():
            timed = bench([arguments.model, path], feeds[:4], rounds=arguments.rounds)
            runs.append((label, timed.models[-1]))
        reference = answers["float"]
        print("| model | bytes | smaller | relative error | cosine | top-1 | latency |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for label, mine in runs:
            rows = compare_outputs(
                reference.output_names, reference.outputs, answers[label].outputs
            )
            worst = max(rows, key=lambda row: row.relative_error)
            size = models[label].stat().st_size
            print(
                f"| {label} | {size:,} | {arguments.model.stat().st_size / size:.2f}x "
                f"| {worst.relative_error:.4f} | {worst.cosine:.5f} "
                f"| {'-' if worst.top1 is None or np.isnan(worst.top1) else f'{worst.top1:.4f}'} "
                f"| {mine.ratio:.3f} ({mine.ratio_low:.3f}-{mine.ratio_high:.3f}) |"
            )


if __name__ == "__main__":
    main()
