"""Latency, load time and memory of models, side by side."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onnxshrink.errors import DataError, RecipeError
from onnxshrink.runtime.profile import OperatorTime
from onnxshrink.runtime.session import DEFAULT_OPTIONS, SessionOptions
from onnxshrink.runtime.worker import Worker

#: With fewer rounds not even their whole range holds the median in 95 of 100 cases.
FEWEST_ROUNDS = 6

_LOADS = 5
_CONFIDENCE = 0.95
_BURST_SECONDS = 0.02
_TURNS, _TURN_SECONDS = FEWEST_ROUNDS, 0.005
_PROFILED_SECONDS = 0.5
_PATIENCE = 8  # times the rounds asked for, to wait for narrow intervals


@dataclass(frozen=True)
class ModelBench:
    """What one model costs.

    Attributes:
        path: The model.
        file_bytes: Its size on disk, external data included.
        load_seconds: Median time to load it.
        peak_bytes: Resident memory at its peak, while it was loaded and first run, beyond that of
            a process with the smallest of models loaded.
        steady_bytes: The same after the first run.
        seconds: Median time of one run.
        ratio: Median of that time over the first model's in the same round.
        ratio_low: Lower end of the 95 % confidence interval of ``ratio``.
        ratio_high: Its upper end.
        operators: What each operator takes of a run, by ONNX Runtime's profiler, the slowest first.
    """

    path: str
    file_bytes: int
    load_seconds: float
    peak_bytes: int
    steady_bytes: int
    seconds: float
    ratio: float
    ratio_low: float
    ratio_high: float
    operators: tuple[OperatorTime, ...]


@dataclass(frozen=True)
class BenchResult:
    """Models measured together.

    Attributes:
        models: In the order in which they were given; ratios are to the first.
        rounds: How often each was timed.
        options: What they ran with, and on which CPU.
    """

    models: tuple[ModelBench, ...]
    rounds: int
    options: Mapping[str, object]

    def to_dict(self) -> dict[str, object]:
        """Everything, for JSON."""
        return asdict(self)


def bench(
    paths: Sequence[str | os.PathLike[str]],
    feeds: Sequence[Mapping[str, np.ndarray]],
    options: SessionOptions = DEFAULT_OPTIONS,
    rounds: int = 25,
    *,
    within: float | None = None,
    seed: int = 0,
    worker: Worker | None = None,
    operators: bool = False,
) -> BenchResult:
    """Measure models, each in a process of its own, taking turns.

    In a round every model runs for at least 20 ms on the same feed, in random order. A disturbance
    from outside meets all of them alike, and the ratio of two times of one round cancels it.

    Args:
        paths: The models; the first is what the others are compared with.
        feeds: Inputs that all of them take; round after round the next one.
        options: How to run them.
        rounds: How often to time each.
        within: Go on, up to eight times as often, until no interval of a ratio is wider than this.
        seed: Decides the order within rounds.
        worker: Under whose limits the processes are; without one, under the usual ones.
        operators: Whether to profile them, too, after they were timed.

    Raises:
        RecipeError: Too few rounds, or the execution provider is not installed.
        DataError: No feeds, or one does not fit.
        ModelError: A model does not load or run.
    """
    if rounds < FEWEST_ROUNDS:
        raise RecipeError(f"{rounds} rounds are too few for a confidence interval; use 6 or more")
    if not feeds:
        raise DataError("there are no inputs to run the models on")
    with contextlib.ExitStack() as stack:
        like = worker or Worker()
        workers = [stack.enter_context(like.another()) for _ in paths]
        for each in workers:
            each.start()
        costs = [
            _load(each, path, feeds[0], options) for each, path in zip(workers, paths, strict=True)
        ]
        times: list[list[float]] = [[] for _ in paths]
        order = random.Random(seed)
        most = rounds if within is None else rounds * _PATIENCE
        for turn in range(most):
            feed = feeds[turn % len(feeds)]
            for index in order.sample(range(len(paths)), len(paths)):
                times[index].append(workers[index].time(feed, _BURST_SECONDS))
            if turn + 1 >= rounds and _widest(times) <= (within or 0):
                break
        profiles = [
            each.profile(feeds[0], _PROFILED_SECONDS) if operators else [] for each in workers
        ]
    models = []
    for path, cost, seconds, profile in zip(paths, costs, times, profiles, strict=True):
        ratios = _to_first(seconds, times)
        low, high = median_interval(ratios)
        model = ModelBench(
            path=os.fspath(path),
            file_bytes=stored_bytes(path),
            load_seconds=cost[0],
            peak_bytes=cost[1],
            steady_bytes=cost[2],
            seconds=statistics.median(seconds),
            ratio=statistics.median(ratios),
            ratio_low=low,
            ratio_high=high,
            operators=tuple(profile),
        )
        models.append(model)
    return BenchResult(tuple(models), len(times[0]), options.describe())


class Ratio(NamedTuple):
    """The latency of a model over that of another: median of several turns, and its interval."""

    median: float
    low: float
    high: float


def ratio(
    first: str | os.PathLike[str], second: str | os.PathLike[str], feed: Mapping[str, np.ndarray],
    worker: Worker,
) -> Ratio:  # fmt: skip
    """The latency of the second model over that of the first, in a moment and in one process.

    They take turns of some milliseconds, so that a disturbance from outside meets both.

    Raises:
        DataError: The feed does not fit.
        ModelError: A model does not load or run.
    """
    times: dict[str | os.PathLike[str], list[float]] = {first: [], second: []}
    for turn in range(_TURNS):
        for path in (first, second) if turn % 2 else (second, first):
            worker.open(path)
            worker.step(feed)  # the first run is another thing
            times[path].append(worker.time(feed, _TURN_SECONDS))
    worker.release()
    ratios = [two / one for one, two in zip(times[first], times[second], strict=True)]
    return Ratio(statistics.median(ratios), *median_interval(ratios))


def _to_first(seconds: Sequence[float], times: Sequence[Sequence[float]]) -> list[float]:
    return [mine / first for mine, first in zip(seconds, times[0], strict=True)]


def _widest(times: Sequence[Sequence[float]]) -> float:
    intervals = (median_interval(_to_first(seconds, times)) for seconds in times)
    return max(high - low for low, high in intervals)


def _load(
    worker: Worker,
    path: str | os.PathLike[str],
    feed: Mapping[str, np.ndarray],
    options: SessionOptions,
) -> tuple[float, int, int]:
    """Load a model a few times; its median load time, and its memory after the first time."""
    worker.warm_up()
    seconds = [worker.open(path, options).load_seconds]
    worker.step(feed)
    steady, peak = worker.memory()
    seconds += [worker.open(path, options).load_seconds for _ in range(_LOADS - 1)]
    worker.step(feed)
    return statistics.median(seconds), peak, steady


def median_interval(
    values: Sequence[float], confidence: float = _CONFIDENCE
) -> tuple[float, float]:
    """A confidence interval of the median, from order statistics: no assumption but independence.

    The number of values below the median is binomial(n, 1/2), so the interval between the k-th
    smallest and the k-th largest misses it with probability ``2 P(B < k)``. With fewer than six
    values no k is good enough, and the interval is their whole range.
    """
    ordered, n = sorted(values), len(values)
    ways = itertools.accumulate(math.comb(n, below) for below in range(n))
    k = sum(2 * tail <= (1 - confidence) * 2**n for tail in ways)
    return ordered[max(k - 1, 0)], ordered[n - max(k, 1)]


def stored_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes of a model file and of the files with its external data."""
    from onnxshrink.graph.file import reading, round_trip, tensors, wire

    path = Path(path)
    if reading.is_file_packed(path):
        return path.stat().st_size
    locations = {
        entry.value
        for tensor in round_trip.tensors(wire.read(str(path)))
        for entry in tensor.external_data
        if entry.key == "location" and entry.value != wire.INSIDE
    }
    files = [tensors.file_bytes(path, location) for location in sorted(locations)]
    return path.stat().st_size + sum(files)
