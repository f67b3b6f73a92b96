"""How often the interval of few inputs misses what many say, and how wide it is: of agreement.

    python tools/bench_interval.py ZOO folder ... [--spend .001 .003] [--draws 400]

Folders are those of ``bench_tuning.py``, of models whose first output is scores of classes in rows.
quantize-rd makes a smaller model, spending what is asked for, which answers all TEST inputs. The
share of rows that it turns is the truth. Then inputs are drawn, of which a few may show the noise
(unseen) and all show how close answers are to a tie, as in ``shrink``; nothing is run again. The
rows of a sequence are drawn together: they are one input.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench_rate import MOST_INPUTS, answers
from bench_tuning import task

from onnxshrink.contract import Settings
from onnxshrink.graph.file.model import Model
from onnxshrink.kernels import ties
from onnxshrink.passes.quantize_rd import QuantizeRd
from onnxshrink.pipeline import run
from onnxshrink.runtime.worker import Worker

_CONFIDENCE = 0.9


def scores(rows: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """For each input, [rows, classes] of the first output; rows of a batch are inputs."""
    found: list[np.ndarray] = []
    for row in rows:
        flat = row[0].reshape(-1, row[0].shape[-1])
        found += np.split(flat, len(flat)) if row[0].ndim == 2 else [flat]
    return found


def line(
    before: list[np.ndarray], after: list[np.ndarray], count: int, unseen: Sequence[int],
    draws: int,
) -> str:  # fmt: skip
    """The truth, and for each number of unseen inputs the end over it and the share of misses."""
    pairs = [*zip(before, after, strict=True)]
    truth = float(np.concatenate([x.argmax(1) != y.argmax(1) for x, y in pairs]).mean())
    leads = [ties.lead(x) for x in before]
    noisy = [(lead, ties.moved(y, lead, top)) for (lead, top), y in zip(leads, after, strict=True)]
    rng, cells = np.random.default_rng(0), [f"{truth:.4f}"]
    for few in unseen:
        ends = []
        for _ in range(draws):
            drawn = rng.permutation(len(noisy))[:count]
            found = ties.turned([noisy[one][0] for one in drawn], [noisy[i] for i in drawn[:few]])
            ends.append(found.at_most(_CONFIDENCE))
        width = np.median(ends) / truth if truth else float("inf")
        cells.append(f"{width:.2f}, {100 * np.mean(np.array(ends) < truth):.0f} %")
    return " | ".join(cells)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("zoo", type=Path, help="a folder of folders")
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--spend", nargs="+", type=float, default=[0.0005, 0.001, 0.003])
    parser.add_argument("--rows", type=int, default=64, help="drawn together")
    parser.add_argument("--unseen", nargs="+", type=int, default=[16, 32, 64], help="of these")
    parser.add_argument("--draws", type=int, default=400)
    asked = parser.parse_args()
    sys.path.insert(0, str(asked.zoo))  # what the evaluate.py share lies there
    print("| model, spent | turned |", " | ".join(f"{few} unseen" for few in asked.unseen), "|")
    print("|" + " --- |" * (2 + len(asked.unseen)))
    with tempfile.TemporaryDirectory(prefix="onnxshrink-bench-") as scratch, Worker() as worker:
        for name in asked.folders:
            source, data = asked.zoo / name / "model.onnx", task(asked.zoo / name)
            model, test = Model.load(source), data.load_inputs("test")
            taken = set(model.signature[0])
            feeds: list[dict[str, Any]] = [
                {key: array for key, array in feed.items() if key in taken}
                for feed in data.load_inputs("calibration")[:MOST_INPUTS]
            ]
            before, settings = (
                scores(answers(source, test)[1]),
                Settings(check="quick", feeds=feeds),
            )
            for spend in asked.spend:
                small = Path(scratch, "small.onnx")
                run([QuantizeRd(lam=spend, max_error=99)], model, settings, worker).model.save(
                    small
                )
                after = scores(answers(small, test)[1])
                cells = line(before, after, asked.rows, asked.unseen, asked.draws)
                print(f"| {name}, {spend:g} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
