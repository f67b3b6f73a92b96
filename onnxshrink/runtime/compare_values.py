"""Two models run on the same inputs, and statistics of the values of both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx

from onnxshrink import files
from onnxshrink.errors import ModelError
from onnxshrink.kernels.pairs import PairNeed, Regression, RegressionSums
from onnxshrink.progress import Progress, silent
from onnxshrink.runtime.calibrate import LEAST_SUMS_BYTES, Statistics, rounds
from onnxshrink.runtime.session import SessionOptions

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model
    from onnxshrink.runtime.worker import Worker

_EXACT = SessionOptions(accuracy_level=0)


def compute(
    proto: onnx.ModelProto, feeds: Sequence[Mapping[str, np.ndarray]], worker: Worker
) -> list[np.ndarray]:
    """The one output of a small model on every feed.

    Raises:
        ModelError: It does not run.
    """
    with files.scratch() as folder:
        path = folder / "model.onnx"
        path.write_bytes(proto.SerializeToString())
        return [outputs[0] for outputs in worker.run(path, feeds, _EXACT).outputs]


def regress(
    model: Model,
    original: Model,
    needs: Iterable[PairNeed],
    feeds: Sequence[Mapping[str, np.ndarray]],
    worker: Worker,
    progress: Progress = silent,
) -> Statistics:
    """Run a model and its original side by side, and add up statistics in bounded memory.

    Both run in the worker's process, feed by feed; activations never leave it, and no more of them
    are held than of one feed.

    Args:
        model: The model at hand.
        original: What it was made of.
        needs: What to collect; values of bodies can be observed, those of functions not.
        feeds: The inputs.
        worker: Where to run.
        progress: Told of every feed.

    Returns:
        Sums by need. Needs that could not be collected are missing; ``refused`` says why, by the
        name of the value in the original.

    Raises:
        ModelError: One of the models does not run.
        DataError: A feed does not fit.
    """
    found = Statistics({Regression: RegressionSums})
    wanted = list(dict.fromkeys(needs))
    if not feeds:
        return found
    while wanted and (uneven := _observe(found, model, original, wanted, feeds, worker, progress)):
        wanted = found.refuse(uneven, wanted)
    return found


def _observe(
    found: Statistics, model: Model, original: Model, wanted: Sequence[PairNeed],
    feeds: Sequence[Mapping[str, np.ndarray]], worker: Worker, progress: Progress,
) -> set[str]:  # fmt: skip
    """Collect statistics; the values of loops whose iterations ONNX Runtime cannot stack."""
    from onnxshrink.graph.analysis.instrument import instrument

    entering = {value.name for value in model.inputs}
    with files.scratch() as folder:
        here, there = folder / "observed.onnx", folder / "original.onnx"
        own = instrument(model, here, [n.source for n in wanted if n.source not in entering])
        other = instrument(original, there, [need.value for need in wanted])
        for need in wanted:
            if reason := own.refused.get(need.source) or other.refused.get(need.value):
                found.refused[need.value] = reason
        wanted = [need for need in wanted if need.value not in found.refused]
        parts = list(rounds(wanted, max(LEAST_SUMS_BYTES, model.nbytes() // 2)))
        stacked = own.stacked | other.stacked
        names = {n: (own.outputs.get(n.source, n.source), other.outputs[n.value]) for n in wanted}
        for number, part in enumerate(parts):
            worker.open(here, _EXACT)
            worker.watch_pairs(there, [(names[n], n) for n in part], _EXACT, stacked)
            for i, feed in enumerate(feeds):
                progress("calibrating", number * len(feeds) + i, len(parts) * len(feeds))
                try:
                    worker.observe_pairs(feed, i)
                except ModelError:
                    if not stacked:
                        raise
                    return {
                        n.value for n, pair in names.items() if not stacked.keys().isdisjoint(pair)
                    }
            found.add(part, worker)
        worker.release()
        progress("calibrating", len(parts) * len(feeds), len(parts) * len(feeds))
    return set()
