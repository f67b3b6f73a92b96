#!/usr/bin/env python3
"""Hold int4 forms of a language model, ours and those of other tools, against the float model.

    python tools/bench_language_model.py FOLDER [--rival PYTHON] [--only NAME ...]

FOLDER is made by `tools/build_language_model.py`. Codes are fitted to `train.txt`; figures are on
`test.txt`, of documents that neither training nor fitting has seen. PYTHON is an environment with
ONNX Runtime's quantizer; what onnxruntime-genai's builder writes is taken from `FOLDER/int4`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from onnxshrink.graph.file.model import Model
from onnxshrink.reading import Reading
from onnxshrink.report import Table, size
from onnxshrink.runtime.bench import bench
from onnxshrink.runtime.compare import compare
from onnxshrink.runtime.inputs import Feed, load_inputs

_TEXTS = 64  # runs, of 16 texts
_LONGEST = 96  # tokens of a text
_FITTED = ("--calibration", "train.txt", "--tokenizer", "tokenizer.json", "--max-length", "64")
_NBITS = ("quantize-weights", "IN", "OUT", "--dtype", "int4", "--form", "nbits", "--no-budget")
#: Name -> arguments of ``onnxshrink``; IN, OUT and texts are put in.
OURS: Mapping[str, tuple[str, ...]] = {
    "mse, 32, no proof": (*_NBITS, "--block-size", "32", "--rounding", "mse", "--check", "off"),
    "mse, 32, proof": (*_NBITS, "--block-size", "32", "--rounding", "mse", "--check", "quick"),
    "gptq, 32": (*_NBITS, "--block-size", "32", "--rounding", "gptq", *_FITTED),
    "gptq, 64": (*_NBITS, "--block-size", "64", "--rounding", "gptq", *_FITTED),
    "gptq, 64, data outside": (
        *_NBITS, "--block-size", "64", "--rounding", "gptq", *_FITTED, "--storage", "external",
    ),
    "gptq, 64, coded": (
        *_NBITS, "--block-size", "64", "--rounding", "gptq", *_FITTED, "--storage", "coded",
    ),
    "shrink --max-kl 0.01": (
        "shrink", "IN", "OUT", *_FITTED, "--max-kl", "0.01", "--time-limit", "60", "--no-bench",
    ),
}  # fmt: skip
RIVAL = "ONNX Runtime's MatMulNBitsQuantizer, 32"
BUILDER = "onnxruntime-genai's builder, int4"


class Cost(NamedTuple):
    """What making a model took: CPU seconds, and the most memory, with all processes."""

    seconds: float
    peak: int


def run(command: Sequence[str]) -> Cost:
    """Run a command; what it and its children took."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read().decode()
    _, status, used = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(command)}: {said}")
    return Cost(used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)


def stored(path: Path) -> int:
    """Bytes of a model, with what lies beside it."""
    return path.stat().st_size + sum(f.stat().st_size for f in path.parent.glob(f"{path.name}.*"))


def made(folder: Path, source: Path, place: Path, name: str) -> tuple[Path, Cost]:
    """One of our models."""
    out = place / f"{len(list(place.iterdir()))}.onnx"
    known = {"IN": str(source), "OUT": str(out)}
    files = {name: str(folder / name) for name in ("train.txt", "tokenizer.json")}
    words = [{**known, **files}.get(word, word) for word in OURS[name]]
    return out, run([sys.executable, "-m", "onnxshrink", *words])


def main() -> None:
    """Make them, measure them, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rival", help="a Python with onnxruntime's quantizer")
    parser.add_argument("--only", nargs="*", default=list(OURS))
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    source = folder / "genai" / "model.onnx"
    reading = Reading(tokenizer=str(folder / "tokenizer.json"), max_length=_LONGEST)
    texts = folder / "test.txt"
    feeds = load_inputs(str(texts), Model.load(source), limit=_TEXTS, reading=reading)
    steps: list[Feed] = [feed for feed in feeds if feed["input_ids"].shape[1] == 1]
    with tempfile.TemporaryDirectory(dir=folder) as name:
        place, models = Path(name), dict[str, tuple[Path, Cost | None]]()
        if (folder / "int4").is_dir():
            models[BUILDER] = folder / "int4" / "model.onnx", None
        if arguments.rival:
            out = place / "rival.onnx"
            script = str(Path(__file__).with_name("rivals.py"))
            words = [arguments.rival, "-I", script, "quantize_blocks", str(source), str(out), ""]
            models[RIVAL] = out, run(words)
        for way in arguments.only:
            models[way] = made(folder, source, place, way)
        columns = (
            "model", "bytes", "smaller", "KL", "top-1", "perplexity", "a token", "steady memory",
            "CPU s", "peak",
        )  # fmt: skip
        table = Table(f"{source}: {size(stored(source))}", columns)
        for way, (path, cost) in models.items():
            found = compare(source, path, feeds)
            ((output, (before, after)),) = found.perplexity.items()
            row = next(row for row in found.outputs if row.name == output)
            first, second = bench([source, path], steps[:4], rounds=9).models
            table.add(
                way, f"{stored(path):,}", f"{stored(source) / stored(path):.2f}x",
                f"{row.kl:.2g}", f"{row.top1:.4f}", f"{before:.1f} -> {after:.1f}",
                f"{second.ratio:.2f} ({second.ratio_low:.2f} to {second.ratio_high:.2f})",
                f"{second.steady_bytes / first.steady_bytes:.2f}",
                f"{cost.seconds:.1f}" if cost else "", size(cost.peak) if cost else "",
            )  # fmt: skip
        print(table.to_markdown())


if __name__ == "__main__":
    main()
