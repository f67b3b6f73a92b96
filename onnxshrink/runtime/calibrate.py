"""One run over the calibration inputs collects every statistic that the passes of a recipe need."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from onnxshrink import files
from onnxshrink.errors import ModelError
from onnxshrink.kernels.observers import SUMS, Need
from onnxshrink.kernels.pairs import PairNeed
from onnxshrink.progress import Progress, silent
from onnxshrink.runtime import calibration_cache

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model
    from onnxshrink.runtime.calibration_cache import CalibrationCache
    from onnxshrink.runtime.worker import Worker

LEAST_SUMS_BYTES = 64 * 2**20
UNEVEN = "its shape is not the same in every iteration of a loop"
N = TypeVar("N", Need, PairNeed)


class Statistics(Mapping[Any, Any]):
    """What was collected: need -> sums. They lie in files and are read when they are asked for.

    Args:
        sums: Which class holds the sums of which kind of statistic.

    Attributes:
        refused: Values that could not be observed, and why.
    """

    def __init__(self, sums: Mapping[type, type] = SUMS) -> None:
        self.refused: dict[str, str] = {}
        self._sums = sums
        self._files: dict[Any, Path] = {}

    def __getitem__(self, need: Any) -> Any:
        """The sums of one statistic.

        Raises:
            KeyError: It was not asked for, or refused.
        """
        with np.load(self._files[need]) as arrays:
            return self._sums[type(need.statistic)](**{name: arrays[name] for name in arrays})

    def __contains__(self, need: object) -> bool:
        return need in self._files  # without reading it

    def __iter__(self) -> Iterator[Any]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def _folder(self) -> Path:
        """A folder of its own for some of the files, gone when the statistics are."""
        stack = contextlib.ExitStack()
        folder = stack.enter_context(files.scratch())
        weakref.finalize(self, stack.close)
        return folder

    def add(self, needs: Sequence[Any], worker: Worker) -> None:
        """Have a worker hand out the statistics that it watched for these needs."""
        folder = self._folder()
        unfit = worker.collect(folder)
        for number, need in enumerate(needs):
            if number in unfit:
                self.refused[need.value] = unfit[number]
            else:
                self._files[need] = folder / f"{number}.npz"

    def refuse(self, uneven: Set[str], needs: Sequence[N]) -> list[N]:
        """Give up values whose iterations cannot be stacked; the needs that are left."""
        self._files = {
            need: file for need, file in self._files.items() if uneven.isdisjoint(need.values)
        }
        return self.without(dict.fromkeys(uneven, UNEVEN), needs)

    def without(self, refused: Mapping[str, str], needs: Sequence[N]) -> list[N]:
        """The needs of none of some values; the others are refused for these values' reasons."""
        self.refused |= refused
        for need in needs:
            for reason in (refused[value] for value in need.values if value in refused):
                self.refused.setdefault(need.value, reason)
        return [need for need in needs if refused.keys().isdisjoint(need.values)]

    def _recall(self, cache: CalibrationCache, keys: Mapping[Need, str]) -> list[Need]:
        """Take what a cache knows; the needs that it does not know."""
        known = cache.find(keys, self._folder())
        for need, what in known.items():
            if isinstance(what, str):
                self.refused[need.value] = what
            else:
                self._files[need] = what
        return [need for need in keys if need not in known]

    def _keep(self, cache: CalibrationCache, keys: Mapping[Need, str], new: Iterable[Need]) -> None:
        cache.add({keys[n]: self._files.get(n) or self.refused[n.value] for n in new})


def calibrate(
    model: Model,
    needs: Iterable[Need],
    feeds: Sequence[Mapping[str, np.ndarray]],
    worker: Worker,
    progress: Progress = silent,
    cache: CalibrationCache | None = None,
) -> Statistics:
    """Run a model and add up statistics of its values, in bounded memory.

    The model runs in the worker's process with the observed values as extra outputs, a few at a
    time; there they are reduced, and never leave it. Sums that together take more than half the
    model (and 64 MB) are collected in several rounds.

    Args:
        model: The model; values in If, Loop and Scan bodies can be observed, in functions not.
        needs: What to collect; equal needs are collected once.
        feeds: The inputs.
        worker: Where to run.
        progress: Told of every feed.
        cache: What was collected of the same model on the same feeds before; the rest joins it.

    Raises:
        ModelError: The model does not run.
        DataError: A feed does not fit.
    """
    found = Statistics()
    wanted = list(dict.fromkeys(needs))
    if not wanted or not feeds:
        return found
    keys: dict[Need, str] = {}
    if cache is not None:
        keys = calibration_cache.keys(model.digest(), calibration_cache.data_digest(feeds), wanted)
        if not (wanted := found._recall(cache, keys)):
            return found
    new = wanted
    while wanted and (uneven := _observe(found, model, wanted, feeds, worker, progress)):
        wanted = found.refuse(uneven, wanted)
    if cache is not None:
        found._keep(cache, keys, new)
    return found


def _observe(
    found: Statistics, model: Model, wanted: Sequence[Need],
    feeds: Sequence[Mapping[str, np.ndarray]], worker: Worker, progress: Progress,
) -> set[str]:  # fmt: skip
    """Collect statistics; the values of loops whose iterations ONNX Runtime cannot stack."""
    from onnxshrink.graph.analysis.instrument import instrument

    entering = {value.name for value in model.inputs}
    with files.scratch() as folder:
        path = folder / "observed.onnx"
        inside = [name for need in wanted for name in need.values if name not in entering]
        points = instrument(model, path, watch=inside)
        wanted = found.without(points.refused, wanted)
        parts = list(rounds(wanted, max(LEAST_SUMS_BYTES, model.nbytes() // 2)))
        for number, part in enumerate(parts):
            worker.open(path)
            outputs = [tuple(points.outputs.get(v, v) for v in need.values) for need in part]
            worker.watch(list(zip(outputs, part, strict=True)), points.stacked)
            for i, feed in enumerate(feeds):
                progress("calibrating", number * len(feeds) + i, len(parts) * len(feeds))
                try:
                    worker.observe(feed, i)
                except ModelError:
                    if not points.stacked:
                        raise
                    return {v for v in inside if points.outputs.get(v) in points.stacked}
            found.add(part, worker)
        worker.release()
        progress("calibrating", len(parts) * len(feeds), len(parts) * len(feeds))
    return set()


def rounds(needs: Iterable[N], budget: int) -> Iterator[list[N]]:
    """Needs whose sums fit the budget together."""
    part: list[N] = []
    room = budget
    for need in needs:
        if part and need.statistic.nbytes > room:
            yield part
            part, room = [], budget
        part.append(need)
        room -= need.statistic.nbytes
    if part:
        yield part
