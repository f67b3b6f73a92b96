"""What candidates cost to run on this machine: time and memory, side by side with the original."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onnxshrink.errors import BudgetMissed

if TYPE_CHECKING:
    from onnxshrink.runtime.bench import ModelBench
    from onnxshrink.search.evaluation import Evaluator, Tried

_ROUNDS = 15
_FEEDS = 4


def bench_tried(ask: Evaluator, tried: Sequence[Tried]) -> None:
    """Measure recipes against the original, all of them taking turns.

    Args:
        ask: Makes their models again.
        tried: The recipes; they get ``latency`` and ``memory``.
    """
    with tempfile.TemporaryDirectory(prefix="onnxshrink-") as folder:
        paths = []
        for number, one in enumerate(tried):
            paths.append(Path(folder, f"{number}.onnx"))
            held = one.result is not None
            save(ask, one, paths[-1])
            if not held:
                one.result = None
        for one, found in zip(tried, against_original(ask, paths), strict=True):
            one.latency, one.memory = found.ratio, found.peak_bytes


def save(ask: Evaluator, one: Tried, path: Path) -> int:
    """Write the model of a recipe, stored as asked for; its bytes."""
    from onnxshrink.graph.forms import coded

    model = ask.result(one).model
    if ask.storage == "coded":
        with contextlib.suppress(BudgetMissed):  # it is smaller as it is
            return coded.save(model, path)[0]
    return model.save(path)


def against_original(ask: Evaluator, paths: Sequence[Path]) -> Sequence[ModelBench]:
    """What models cost; ratios are to the original."""
    from onnxshrink.runtime.bench import bench

    with tempfile.TemporaryDirectory(prefix="onnxshrink-") as folder:
        source = ask.model.path
        if source is None or not ask.model.untouched:
            source = Path(folder, "original.onnx")
            ask.model.save(source)
        feeds = ask.settings.feeds[:_FEEDS]
        found = bench([source, *paths], feeds, rounds=_ROUNDS, worker=ask.worker)
        return found.models[1:]
