"""Measure how well sensitivities foretell damage, and how long they take: by gradients, by noise.

Every folder of the zoo holds ``model.onnx`` and ``evaluate.py``, a module with
``load_inputs(split)``; at most 64 inputs of the split ``calibration`` are used. Damage is what
rounding one weight alone does to answers on inputs of the split ``test``, at about 3 bits.

    python tools/bench_sensitivity.py ZOO [folder ...] [--inputs 32]

Columns: seconds of both; rank correlation with the damage; and by how much the step that a
sensitivity gives a weight is off, beyond what all weights have in common (the standard deviation of
its logarithm to base 2: an error of e costs about e squared bits a weight).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from bench_rate import MOST_INPUTS, module
from scipy.stats import spearmanr

from onnxshrink.contract import Settings
from onnxshrink.graph.file.model import Model
from onnxshrink.kernels.rate import GridTensor
from onnxshrink.passes.quantize_rd import QuantizeRd, effects, rates
from onnxshrink.pipeline import run
from onnxshrink.runtime.worker import Worker
from onnxshrink.trials import Exchange, Feeds

FOLDERS = (
    "fashion_cnn", "magika_v3_3", "mlp_tabular", "arabic_gru_decoder", "paraphrase_minilm_l3",
    "ppocr_rec_v4", "efficientnet_lite0",
)  # fmt: skip


class _Done(Exception):
    """All is measured; no model has to be made."""


class _Compared(rates.StepSearch):
    """The search of quantize-rd, up to the sensitivities."""

    test: Feeds = ()
    label = ""

    def spend(self) -> float:
        names = [*self._by_name, *(view.name for view, *_ in self.plain)]
        layers = [self._fitted(view, 0) for view in self._by_name.values()]
        started = time.perf_counter()
        told = self._told(layers)
        seconds = [time.perf_counter() - started]
        with closing(Exchange(self.model, names, self.ctx.worker)) as exchange:
            layers = [layer for layer in layers if layer.name not in exchange.refused]
            started = time.perf_counter()
            noisy = self._measured(exchange, layers, {})
            seconds.append(time.perf_counter() - started)
            damage = self._damage(exchange, layers)
        measured = {layer.name: layer.sensitivity for layer in noisy}
        common = [layer.name for layer in layers if layer.name in told]
        cells = [f"{len(common)} of {len(layers)}", *(f"{each:.1f}" for each in seconds)]
        for found in (told, measured):
            cells += _quality([found[name] for name in common], [damage[name] for name in common])
        print(f"| {self.label} | {' | '.join(cells)} |", flush=True)
        raise _Done

    def _damage(self, exchange: Exchange, layers: Sequence[GridTensor]) -> Mapping[str, float]:
        """For each square of a step, on inputs that nothing has seen."""
        before = exchange.answers(self.test)
        reference, found = self.ctx.goal.holder(before, measure=self.options.measure), {}
        for layer in layers:
            step = effects.middling(layer.weights)
            values = layer.values(layer.codes(step), step)
            rounded = rates._unfold(self._by_name[layer.name], values)
            after = exchange.answers(self.test, {layer.name: rounded})
            found[layer.name] = reference.distortion(after.outputs) / step**2
        return found


def _quality(found: Sequence[float], damage: Sequence[float]) -> list[str]:
    if len(found) < 2:
        return ["-", "-"]
    off = np.log2(np.maximum(found, 1e-12) / np.maximum(damage, 1e-12)) / 2
    return [f"{spearmanr(found, damage).statistic:.3f}", f"{off.std():.2f}"]


def compare(folder: Path, count: int) -> None:
    """Print the row of one model."""
    task, model = module(folder), Model.load(folder / "model.onnx")
    taken = set(model.signature[0])
    calibration, test = (
        [{name: array for name, array in feed.items() if name in taken} for feed in feeds]
        for feeds in (task.load_inputs("calibration")[:MOST_INPUTS], task.load_inputs("test"))
    )
    _Compared.test, _Compared.label = test[:: max(len(test) // count, 1)][:count], folder.name
    rates.StepSearch = _Compared  # type: ignore[misc]
    with Worker() as worker:
        try:
            run([QuantizeRd()], model, Settings(check="quick", feeds=calibration), worker)
        except _Done:
            return


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("zoo", type=Path, help="a folder of folders")
    parser.add_argument("--inputs", type=int, default=32, help="of the split test")
    parser.add_argument("folders", nargs="*", help="default: some that are unlike each other")
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.zoo))  # what the evaluate.py share lies there
    print("| model | weights told by gradients | seconds, gradients | seconds, noise | rank, "
          "gradients | step off | rank, noise | step off |")  # fmt: skip
    print("|" + " --- |" * 8)
    for name in arguments.folders or FOLDERS:
        compare(arguments.zoo / name, arguments.inputs)


if __name__ == "__main__":
    main()
