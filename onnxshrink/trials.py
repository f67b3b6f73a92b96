"""The one way to ask what the outputs say to a part of a step.

Whoever tries something, on a weight, a layer or a whole step, asks here: what a model answers, how
far that is from what is wanted, and (:class:`onnxshrink.kernels.split.Split`) on which inputs.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from onnxshrink import files, heap
from onnxshrink.errors import ModelError

if TYPE_CHECKING:
    import numpy as np

    from onnxshrink.graph.analysis.ranked import Entering
    from onnxshrink.graph.file.model import Model
    from onnxshrink.kernels.detections import Detector
    from onnxshrink.kernels.kinds import Tail
    from onnxshrink.kernels.metrics import OutputComparison
    from onnxshrink.runtime.session import SessionOptions
    from onnxshrink.runtime.worker import Worker

Feeds = Sequence[Mapping[str, "np.ndarray"]]

_NEXT_TO_NOTHING = 1e-6
_FAR = 1e6  # an error that is infinite is one of these


@dataclass(frozen=True)
class Answers:
    """What a model answered.

    Attributes:
        names: Of the outputs.
        outputs: For every feed, the outputs in that order.
        stacked: Outputs whose first axis is declared to be of fixed length.
        tails: What the graph says of outputs, by name.
        random: Outputs that differ from run to run of one model, and how far apart their
            distributions are then (relative L2 of quantiles): these are compared, not values.
        following: For each feed the tokens that follow its own, where that is known; see
            :func:`onnxshrink.runtime.decoding.steps.following`.
        entering: How many of the last names are no outputs, but values that enter a tail that
            ranks: see :mod:`onnxshrink.graph.analysis.ranked`.
    """

    names: tuple[str, ...]
    outputs: list[list[np.ndarray]]
    stacked: frozenset[str] = frozenset()
    tails: Mapping[str, Tail] = field(default_factory=dict)
    random: Mapping[str, float] = field(default_factory=dict)
    entering: int = 0
    following: Sequence[np.ndarray | None] = ()

    @property
    def plain(self) -> Answers:
        """Those of the outputs alone."""
        if not self.entering:
            return self
        names = self.names[: -self.entering]
        tails = {name: replace(tail, followed=tail.followed and bool(tail.fed_back))
                 for name, tail in self.tails.items() if name in names}  # fmt: skip
        outputs = [outputs[: len(names)] for outputs in self.outputs]
        return replace(self, names=names, outputs=outputs, tails=tails, entering=0)

    def part(self, numbers: Iterable[int]) -> Answers:
        """Those to some of the feeds."""
        chosen = list(numbers)
        following = [self.following[number] for number in chosen] if self.following else ()
        outputs = [self.outputs[number] for number in chosen]
        return replace(self, outputs=outputs, following=following)

    @property
    def judged(self) -> tuple[str, ...]:
        """Names of the outputs that are held to anything by themselves."""
        followed = {name for name, tail in self.tails.items() if tail.followed}
        return tuple(name for name in self.names if name not in followed)

    @cached_property
    def sounds(self) -> frozenset[str]:
        """Outputs that are waveforms."""
        from onnxshrink.kernels.kinds import sounds

        return sounds(self.names, self.outputs, self.tails)

    @cached_property
    def detections(self) -> Detector | None:
        """Where boxes are, with scores and classes, of which there are any number."""
        from onnxshrink.kernels.detections import found

        return found(self.plain.outputs, picks=self.entering > 0)

    def matched(self, other: Answers) -> tuple[int, int] | None:
        """Detections that are found again in another model's, and all; None where there are none.

        See :mod:`onnxshrink.kernels.detections`.
        """
        from onnxshrink.kernels.detections import matched

        if self.detections is None:
            return None
        mine = self.plain.outputs[: len(other.outputs)]
        return matched(mine, other.plain.outputs, self.detections)

    @property
    def silent(self) -> dict[str, str]:
        """Outputs to which likeness says nothing, and why: by name."""
        from onnxshrink.kernels.metrics import Silence

        found = {}
        for name in self.judged:
            silence, place = Silence(), self.names.index(name)
            for outputs in self.outputs:
                silence.add(outputs[place])
            if self.outputs and silence.reason:
                found[name] = silence.reason
        return found

    def figures(self, other: Answers) -> tuple[OutputComparison, ...]:
        """How far every output of another model is from these, on the feeds that it answered.

        What the next run goes on from is left out: the other outputs tell of it.
        """
        from onnxshrink.kernels.metrics import compare_outputs
        from onnxshrink.runtime.shelf import read

        if self.names != other.names and (self.entering or other.entering):
            return self.plain.figures(other.plain)
        if not self.outputs:
            return ()
        places = [self.names.index(name) for name in self.judged]
        mine, its = (
            read([outputs[i] for i in places] for outputs in answers)
            for answers in (self.outputs[: len(other.outputs)], other.outputs)
        )
        states = {name for name, tail in self.tails.items() if tail.fed_back}
        return compare_outputs(
            self.judged,
            mine,
            its,
            stacked=self.stacked,
            random=self.random,
            states=states,
            sounds=self.sounds,
        )

    def errors(self, other: Answers) -> list[list[float]]:
        """How far another model is from these, for each feed and each row of it.

        Of outputs the worst counts; those that differ from run to run do not.
        """
        from onnxshrink.kernels.by_input import input_errors
        from onnxshrink.kernels.hearing import as_heard

        if self.names != other.names and (self.entering or other.entering):
            return self.plain.errors(other.plain)
        names = [name for name in self.judged if name not in self.random]
        found: list[list[list[float]]] = [[] for _ in other.outputs]
        for name in names:
            place = self.names.index(name)
            pairs = [(x[place], y[place]) for x, y in zip(self.outputs, other.outputs, strict=True)]
            if name in self.sounds:
                pairs = [as_heard(x, y) for x, y in pairs]
            for feed, rows in zip(
                found, input_errors(pairs, whole=name in self.stacked), strict=True
            ):
                feed.append(rows)
        return [
            [max(row) for row in zip(*feed, strict=True)]
            if len({len(rows) for rows in feed}) == 1
            else [max(max(rows, default=0.0) for rows in feed)]
            for feed in found
            if feed
        ]


def answers(
    model: Model, feeds: Feeds, worker: Worker, *, check: bool = False, folder: Path | None = None,
    options: SessionOptions | None = None, at: Collection[str] = (),
) -> Answers:  # fmt: skip
    """What a model answers; one that draws random numbers draws the same ones in every copy.

    Args:
        model: The model; one that was not edited is run from its own file.
        feeds: The inputs.
        worker: Where to run it.
        check: Whether it must pass the checker, too.
        folder: Where it may be written; None is the system's temporary folder.
        options: How to run it, if not as usual.
        at: Names of values to compare at; empty: what the graph says.

    Raises:
        ModelError: It is invalid, or does not load or run.
        DataError: A feed does not fit.
        OutputError: There is no room for it.
    """
    from onnxshrink.graph.analysis import noise
    from onnxshrink.graph.analysis.ranked import entering, exposed
    from onnxshrink.runtime.decoding.steps import following
    from onnxshrink.runtime.session import DEFAULT_OPTIONS

    if noise.is_random(model):
        model = noise.seeded(model)
    if noise.has_state(model):
        worker.release()  # the model may be loaded, and have drawn
    before = entering(model, at)
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(on_disk(model, folder))
        try:
            if check:
                worker.check(path)
            if before.values:
                path = stack.enter_context(_scratch(folder)) / "model.onnx"
                exposed(model, before.values).save(path, durable=False)
            run = worker.run(path, feeds, options or DEFAULT_OPTIONS)
        except ModelError as error:
            # The temporary file means nothing to the reader; the model does.
            raise type(error)(str(error).replace(str(path), model.label)) from error
    found = _unanswered(model, run.output_names, before)
    return replace(found, outputs=run.outputs, following=following(feeds))


def _unanswered(model: Model, outputs: Sequence[str], before: Entering) -> Answers:
    """What is known of answers before there are any.

    Args:
        model: The model.
        outputs: Names of its outputs, and of what it hands out besides.
        before: Where to compare instead.
    """
    from onnxshrink.graph.analysis.tails import tails

    known = tails(model)
    more = len(outputs) - len(known)
    for name in before.outputs & known.keys() if before.values else ():
        known[name] = replace(known[name], followed=True)
    names = (*outputs[: len(known)], *(f"value {i} before the tail" for i in range(more)))
    return Answers(names, [], _stacked(model), known, entering=more)


def _stacked(model: Model) -> frozenset[str]:
    """Outputs whose first axis is declared to be of fixed length."""
    return frozenset(
        value.name or ""
        for value in model.ir.graph.outputs
        if value.shape is not None and len(value.shape) and isinstance(value.shape[0], int)
    )


@contextlib.contextmanager
def on_disk(model: Model, folder: Path | None) -> Iterator[Path]:
    """The file of a model; one in a scratch folder where it has none, or was changed.

    Raises:
        OutputError: There is no room for it.
    """
    if model.path is not None and model.untouched:
        yield model.path
        return
    with _scratch(folder) as place:
        model.save(place / "model.onnx", durable=False)
        yield place / "model.onnx"


@contextlib.contextmanager
def _scratch(folder: Path | None) -> Iterator[Path]:
    """A folder for a model on trial, beside the result: where there is room for one."""
    place = folder or Path(tempfile.gettempdir())
    with contextlib.ExitStack() as stack:
        with files.writing(place):
            made = stack.enter_context(files.scratch(place))
        yield made


class Exchange:
    """Asks a model with other weights instead of its own, without loading it again.

    The worker holds one model at a time: do not use it for another until this is closed.

    Args:
        model: The model; it is left as it is.
        names: Constants that are to be exchanged.
        worker: Where to run.
        whole: Whether values that enter a tail that ranks are among the answers.

    Attributes:
        refused: Constants that cannot be exchanged, and why.

    Raises:
        ModelError: The model does not load.
    """

    def __init__(
        self, model: Model, names: Iterable[str], worker: Worker, *, whole: bool = False
    ):  # fmt: skip
        from onnxshrink.graph.analysis import noise
        from onnxshrink.graph.analysis.instrument import instrument
        from onnxshrink.graph.analysis.ranked import Entering, entering, exposed

        self._worker = worker
        self._stack = contextlib.ExitStack()
        self._path = self._stack.enter_context(files.scratch()) / "model.onnx"
        weakref.finalize(self, self._stack.close)
        before = entering(model) if whole else Entering()
        shown = exposed(model, before.values) if before.values else model
        self.refused = instrument(shown, self._path, free=names).refused
        heap.give_back()
        self._draws = noise.has_state(model)
        self._outputs = tuple(self._open())
        self._nothing = _unanswered(model, self._outputs, before)

    def _open(self) -> Sequence[str]:
        """Load the model, anew if it draws numbers; the names of its outputs."""
        from onnxshrink.runtime.session import SessionOptions

        if self._draws:
            self._worker.release()
        options = SessionOptions(accuracy_level=0, lean=True)
        return list(self._worker.open(self._path, options).outputs)

    def answers(self, feeds: Feeds, weights: Mapping[str, np.ndarray] | None = None) -> Answers:
        """What the model answers with these constants exchanged, and the others its own.

        Raises:
            DataError: A feed or a weight does not fit.
            ModelError: The model does not run.
        """
        from onnxshrink.runtime.decoding import steps

        if self._draws:
            self._open()
        self._worker.hold(weights or {})
        found = steps.answered(self._worker, self._outputs, feeds)
        return replace(self._nothing, outputs=[row for row, _ in found])

    def close(self) -> None:
        """Let go of the model."""
        self._worker.release()
        self._stack.close()
        heap.give_back()


class Reference:
    """Holds what a model answers to some inputs, and how far others are from that.

    Args:
        model: The model.
        feeds: The inputs.
        worker: Where to run models.
    """

    def __init__(self, model: Model, feeds: Feeds, worker: Worker):
        self._feeds, self._worker = feeds, worker
        self._wanted = answers(model, feeds, worker)

    def distance(self, model: Model) -> float:
        """See :func:`distance`.

        Raises:
            ModelError: The model does not run.
        """
        return distance(self._wanted.figures(answers(model, self._feeds, self._worker)))


def told(row: OutputComparison) -> bool:
    """Whether an output has a relative error: one that is zero throughout has but rounding."""
    return not row.max_abs <= _NEXT_TO_NOTHING


def distance(figures: Sequence[OutputComparison]) -> float:
    """How far all outputs are off: the root of the sum of their squared relative errors.

    It is that of the output where there is one. No output hides what happens to another.
    """
    errors = [row.relative_error for row in figures if told(row)]
    return math.sqrt(math.fsum(min(error, _FAR) ** 2 for error in errors))


@dataclass(frozen=True)
class Figures:
    """How far the outputs of a model are from the original's: of each figure the worst output's.

    Attributes:
        relative_error: Relative L2 error.
        cosine: Cosine.
        top1: Top-1 agreement; None where no output has rows.
    """

    relative_error: float
    cosine: float
    top1: float | None

    @classmethod
    def of(cls, effect: Sequence[OutputComparison]) -> Figures:
        """The figures of a comparison; an output of nothing but zeros has no relative error."""
        rows = [row for row in effect if told(row)]
        return cls(
            max((row.relative_error for row in rows), default=0.0),
            min((row.cosine for row in rows), default=1.0),
            min((row.top1 for row in effect if row.top1 is not None), default=None),
        )
