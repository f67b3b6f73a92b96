"""The gate of a pipeline: may a model go out, and may it take the place of an older one?"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from onnxshrink.api import Options
from onnxshrink.commands import inputs_for
from onnxshrink.errors import RecipeError
from onnxshrink.report import Table, size

if TYPE_CHECKING:
    from onnxshrink.runtime.session import SessionOptions
    from onnxshrink.runtime.worker import Worker

StrPath = str | os.PathLike[str]
Metric = Callable[[Any], float]

_ROUNDS = 25
_TURNS = 8  # inputs that models take turns with
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Held:
    """One thing that a model was held to.

    Attributes:
        what: ``size``, ``runs``, ``agreement``, ``error``, ``latency``, ``metric`` or ``drop``.
        value: What was found, in ``unit``; None where there is no number to it.
        limit: What was asked for; None where nothing was.
        passed: Whether it holds.
        unit: ``bytes``, ``ms``, ``x`` (times the baseline's) or nothing.
        said: What to tell people beside the number.
    """

    what: str
    value: float | None
    limit: float | None
    passed: bool
    unit: str = ""
    said: str = ""

    def __str__(self) -> str:
        """It in one line."""
        value = "-" if self.value is None else self._shown(self.value)
        limit = "" if self.limit is None else f" (asked for: {self._shown(self.limit)})"
        return f"{self.what} {value}{limit}{f': {self.said}' if self.said else ''}"

    def _shown(self, value: float) -> str:
        return size(value) if self.unit == "bytes" else f"{value:.4g}{self.unit}"


@dataclass(frozen=True)
class Checked:
    """What a model was held to.

    Attributes:
        model: The model.
        baseline: The older one, if there was one.
        feeds: How many inputs it ran on.
        generated: Whether these were made up.
        held: Each thing, in order.
        versions: Of onnxshrink and ONNX Runtime, and what the models ran with.
    """

    model: str
    baseline: str | None
    feeds: int
    generated: bool
    held: tuple[Held, ...]
    versions: dict[str, Any]

    @property
    def missed(self) -> list[str]:
        """What does not hold, one line each; empty when the model may go out."""
        return [str(held) for held in self.held if not held.passed]

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {"version": 1, "passed": not self.missed, **asdict(self)}

    def table(self) -> Table:
        """Everything, for people."""
        table = Table(f"{self.model} on {self.feeds} inputs", ("check", "found", "asked", "result"))
        for held in self.held:
            found, asked = ("-" if n is None else held._shown(n) for n in (held.value, held.limit))
            table.add(held.what, found, asked, "passed" if held.passed else "MISSED")
        return table


def check(
    model: StrPath, options: Options | None = None, *, baseline: StrPath | None = None,
    max_size: int | None = None, min_agreement: float | None = None,
    max_error: float | None = None, max_latency: float | None = None,
    max_slowdown: float | None = None, metric: Metric | None = None,
    max_drop: float | None = None, count: int = 64, session: SessionOptions | None = None,
    say: Callable[[str], None] = _log.warning,
) -> Checked:  # fmt: skip
    """Hold a model to limits, alone and against an older one.

    It must pass ONNX's checker, load, and give finite numbers on every input, whatever else is
    asked.

    Args:
        model: The model.
        options: Where inputs are; without any, some are generated.
        baseline: The model whose place it is to take.
        max_size: Bytes of its files.
        min_agreement: Least top-1 agreement with the baseline, 0 to 1.
        max_error: Largest relative L2 error of an output against the baseline.
        max_latency: Largest median latency in milliseconds, on one thread unless ``session`` says.
        max_slowdown: Largest median latency, in times the baseline's.
        metric: A function of the outputs of all inputs; higher is better.
        max_drop: Largest drop of the metric against the baseline.
        count: Use at most this many inputs.
        session: How the models run.
        say: Told what the user must know of the inputs.

    Raises:
        RecipeError: A limit needs a baseline or a metric that is not given, or is no limit.
        ShrinkError: The baseline or the inputs cannot be read or run.
    """
    from onnxshrink import __version__
    from onnxshrink.runtime.bench import stored_bytes
    from onnxshrink.runtime.compare import check_thresholds
    from onnxshrink.runtime.session import DEFAULT_OPTIONS
    from onnxshrink.runtime.worker import Worker

    options, how = Options.of(options), session or DEFAULT_OPTIONS
    against = {"min_agreement": min_agreement, "max_error": max_error,
               "max_slowdown": max_slowdown, "max_drop": max_drop}  # fmt: skip
    check_thresholds({**against, "max_size": max_size, "max_latency": max_latency})
    for name, limit in against.items():
        if limit is not None and baseline is None:
            raise RecipeError(f"--{name.replace('_', '-')} needs a --baseline to hold against")
    if max_drop is not None and metric is None:
        raise RecipeError("--max-drop needs a --metric")
    with Worker(**options.worker) as worker:
        feeds = inputs_for(baseline or model, options, count, worker, say)
        gate = _Gate(model, baseline, feeds, how, worker)
        runs = gate.runs()  # it is a model, then: its size can be told
        held = [_below("size", float(stored_bytes(model)), max_size, "bytes"), *runs]
        if baseline is not None:
            held += gate.against(min_agreement, max_error)
        if metric is not None:
            held += gate.by_metric(metric, max_drop)
        if max_latency is not None or max_slowdown is not None:
            held += gate.timed(max_latency, max_slowdown, options.seed)
    return Checked(
        os.fspath(model), None if baseline is None else os.fspath(baseline), len(feeds),
        options.calibration is None, tuple(held), {"onnxshrink": __version__, **how.describe()},
    )  # fmt: skip


class _Gate:
    """A model, and the one whose place it is to take, on the same inputs."""

    def __init__(
        self, model: StrPath, baseline: StrPath | None, feeds: Sequence[dict[str, Any]],
        how: SessionOptions, worker: Worker,
    ):  # fmt: skip
        self._model, self._baseline = model, baseline
        self._feeds, self._how, self._worker = feeds, how, worker
        self._outputs: list[list[Any]] = []

    def runs(self) -> list[Held]:
        """Whether it is valid, loads, and gives finite numbers."""
        import numpy as np

        self._worker.check(self._model)
        self._outputs = self._worker.run(self._model, self._feeds, self._how).outputs
        numbers = (a for outputs in self._outputs for a in outputs if a.dtype.kind == "f")
        wrong = sum(not np.isfinite(array).all() for array in numbers)
        said = f"{wrong} outputs hold NaN or infinity" if wrong else ""
        return [Held("runs", None, None, not wrong, said=said)]

    def against(self, min_agreement: float | None, max_error: float | None) -> list[Held]:
        """How close its answers are to the baseline's."""
        from onnxshrink.runtime.compare import compare

        assert self._baseline is not None
        found = compare(
            self._baseline, self._model, self._feeds, options_a=self._how, options_b=self._how,
            worker=self._worker,
        )  # fmt: skip
        held = []
        if found.top1 is not None:
            enough = min_agreement is None or found.top1 >= min_agreement
            held.append(Held("agreement", found.top1, min_agreement, enough))
        elif min_agreement is not None:
            said = "no output has classes: there is no top-1 agreement to ask for"
            held.append(Held("agreement", None, min_agreement, False, said=said))
        worst = max((output.worst for output in found.outputs), default=0.0)
        return [*held, _below("error", worst, max_error)]

    def by_metric(self, metric: Metric, max_drop: float | None) -> list[Held]:
        """What a metric says of it, and of the baseline."""
        value = metric(self._outputs)
        held = [Held("metric", value, None, True)]
        if self._baseline is not None:
            before = metric(self._worker.run(self._baseline, self._feeds, self._how).outputs)
            held.append(_below("drop", before - value, max_drop))
        return held

    def timed(self, max_latency: float | None, max_slowdown: float | None, seed: int) -> list[Held]:
        """Its latency, in milliseconds and in times the baseline's."""
        from onnxshrink.runtime.bench import bench

        models = [self._model] if self._baseline is None else [self._baseline, self._model]
        self._worker.release()
        found = bench(
            models, self._feeds[:_TURNS], self._how, _ROUNDS, seed=seed, worker=self._worker
        )
        row = found.models[-1]
        held = [_below("latency", row.seconds * 1e3, max_latency, "ms")]
        if self._baseline is not None:
            held.append(_below("slowdown", row.ratio, max_slowdown, "x"))
        return held


def _below(what: str, value: float, limit: float | None, unit: str = "") -> Held:
    passed = not math.isnan(value) and (limit is None or value <= limit)
    return Held(what, value, limit, passed, unit)
