"""Numbers of a model moved against the gradients of a loss, on inputs of which half only judge."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.gradients import Aim, Derivative
    from onnxshrink.graph.layers.parameters import Parameter
    from onnxshrink.progress import Progress
    from onnxshrink.runtime.worker import Worker
    from onnxshrink.trials import Feeds

    Arrays = Mapping[str, np.ndarray]

_log = logging.getLogger(__name__)

#: What a note begins with where time ended a training: another run may end elsewhere.
OUT_OF_TIME = "ended by its time limit"
_CHECKS = 10  # steps from one look at the inputs that judge to the next
_PATIENCE = 2  # looks that may bring nothing before it goes back to the best
_WILD = 2.0  # times the loss to begin with: so far no training should lead
_SHARE = 0.05  # of an error: what a step changes where nobody says
_LESS = 0.3  # of the rate, from then on
_FALLS = 3  # how often it may
_SMALL = 1e-2  # the unit of numbers that are all zero
_REPEATED = 4  # times a number of scales occurs, in the mean: then it is one number


@dataclass(frozen=True)
class Schedule:
    """How long to train, and how fast.

    Attributes:
        rate: What a step changes, in share of the size of the numbers; it falls to 0 (cosine).
            None: so much less than the root of the loss to begin with.
        steps: How many at most.
        batch: Inputs of a step; of a stack of inputs every one counts.
        end: When it is over, by ``time.monotonic``: it plans as many steps as fit in; None: all.
        seed: For the order of the inputs.
    """

    rate: float | None
    steps: int
    batch: int
    end: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Objective:
    """What a model is held to.

    Attributes:
        aims: Losses by name.
        weights: Of each loss.
        targets: For every input, by name of the loss what is wanted.
    """

    aims: Mapping[str, Aim]
    weights: Mapping[str, float]
    targets: Sequence[Mapping[str, np.ndarray]]


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        before: Loss on the inputs that judge, before.
        after: And of the best numbers.
        steps: Steps that were taken.
        planned: Steps that there was time for; as many without a limit give the same numbers.
        numbers: The best numbers by name of the parameter.
        notes: What a reader should know.
    """

    before: float
    after: float
    numbers: dict[str, np.ndarray]
    steps: int = 0
    planned: int = 0
    notes: list[str] = field(default_factory=list)


class Student:
    """A model with losses, whose parameters can be exchanged from run to run.

    Args:
        model: The model; it is left as it is.
        aims: Its losses by name.
        parameters: What may change.
        worker: Where to run it.

    Attributes:
        parameters: Those that a gradient reaches.
        unreached: The others, and why.
    """

    def __init__(
        self, model: Model, aims: Mapping[str, Aim], parameters: Sequence[Parameter],
        worker: Worker,
    ):  # fmt: skip
        from onnxshrink.graph.gradients import differentiate, with_losses
        from onnxshrink.trials import Exchange

        self._measured = with_losses(model, aims)
        wanted = [each.differentiated for each in parameters]
        ends = list(self._measured.losses.values())
        made: Derivative = differentiate(self._measured.model, ends, wanted)
        self._gradients, self._seeds = made.gradients, made.seeds
        self._kinds = {
            value.name: value.dtype.numpy()
            for value in made.model.inputs
            if value.dtype is not None
        }
        self._outputs = [value.name or "" for value in made.model.ir.graph.outputs]
        reached = [each for each in parameters if each.differentiated in made.gradients]
        self._exchange = Exchange(made.model, [each.name for each in reached], worker)
        refused = self._exchange.refused
        self.parameters = [each for each in reached if each.name not in refused]
        why = f"no gradient reaches it: {made.stops[0]}" if made.stops else "nothing depends on it"
        self.unreached = {each.name: why for each in parameters if each not in reached} | refused

    def run(
        self, feed: Arrays, targets: Arrays, weights: Mapping[str, float], numbers: Arrays
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Each loss for one input, and the gradients of their weighted sum.

        Args:
            feed: The input.
            targets: By loss what is wanted.
            weights: Of each loss.
            numbers: Of the parameters.
        """
        import numpy as np

        known = self._measured
        held = {known.targets[name]: target for name, target in targets.items()}
        for name, loss in known.losses.items():
            seed = self._seeds[loss]
            held[seed] = np.asarray(weights[name], self._kinds[seed])
        (answers,) = self._exchange.answers(
            [{**feed, **held}], stored(self.parameters, numbers)
        ).outputs
        found = dict(zip(self._outputs, answers, strict=True))
        gradients = {
            each.name: found[self._gradients[each.differentiated]].astype(np.float64)
            for each in self.parameters
        }
        return {name: float(found[loss]) for name, loss in known.losses.items()}, gradients

    def close(self) -> None:
        """Let go of the model."""
        self._exchange.close()


def stored(parameters: Sequence[Parameter], numbers: Arrays) -> dict[str, np.ndarray]:
    """Numbers in the types that the file holds them in."""
    import numpy as np

    found = {}
    for each in parameters:
        exact = numbers[each.name]
        found[each.name] = (np.rint(exact) if each.rounded else exact).astype(
            each.tensor.dtype.numpy()
        )
    return found


@dataclass
class Training:
    """One training.

    Attributes:
        student: What is trained.
        feeds: Inputs.
        goal: What it is held to.
        progress: Told how far it is.
        name: What it is called there.
    """

    student: Student
    feeds: Feeds
    goal: Objective
    progress: Progress
    name: str

    def run(self, schedule: Schedule, fit: Sequence[int], judge: Sequence[int]) -> Outcome:
        """Train on some inputs for as long as that helps on others.

        Args:
            schedule: How long, how fast.
            fit: Numbers of the inputs that it is fitted to.
            judge: Of those that judge.
        """
        import numpy as np

        from onnxshrink.kernels.adam import Adam

        falls, astray, idle, spoilt = 0, 0, 0, ""
        numbers = {each.name: each.numbers() for each in self.student.parameters}
        kept = {each.name: _kept(each, numbers[each.name]) for each in self.student.parameters}
        tied = {each.name: _tied(each, numbers[each.name]) for each in self.student.parameters}
        adam = Adam(numbers, {name: _unit(numbers[name]) * kept[name] for name in numbers})
        start = time.monotonic()
        before = self._judged(judge, numbers)
        planned = self._planned(schedule, fit, judge, time.monotonic() - start)
        rate = schedule.rate or _SHARE * math.sqrt(before)
        copies = {name: each.copy() for name, each in numbers.items()}
        best = Outcome(before, before, copies, planned=planned)
        order = _shuffled(fit, schedule.seed)
        if not planned:
            best.notes.append(f"{OUT_OF_TIME} after 0 steps")
        for step in range(planned):
            if schedule.end is not None and time.monotonic() >= schedule.end:
                best.notes.append(f"{OUT_OF_TIME} after {step} steps")
                break
            self.progress(self.name, step, planned)
            batch = self._batch(itertools.islice(order, len(fit)), schedule.batch)
            gradients = _joined(self._gradients(batch, numbers), tied)
            unsound = [name for name, each in gradients.items() if not np.isfinite(each).all()]
            sound, spoilt = not unsound, spoilt or next(iter(unsound), "")
            if sound:
                adam.step(gradients, rate * (1 + math.cos(math.pi * step / planned)) / 2)
                best.steps = step + 1
                if best.steps % _CHECKS and best.steps < planned:
                    continue
            error = self._judged(judge, numbers) if sound else math.inf
            if error < best.after:
                best.after, idle = error, 0
                best.numbers = {name: each.copy() for name, each in numbers.items()}
                continue
            wild = not error < _WILD * before
            idle += 1
            if wild or idle > _PATIENCE:  # from the best on, in smaller steps
                falls, astray, idle, rate = falls + 1, astray + wild, 0, rate * _LESS
                for name, each in best.numbers.items():
                    numbers[name][...] = each
                adam.forget()
            if falls > _FALLS:
                break
        if spoilt:
            best.notes.append(f"gradients of {spoilt!r} are infinite or no numbers on some inputs")
        if astray:
            best.notes.append(f"{astray} times steps led astray and were taken back")
        self.progress(self.name, planned, planned)
        return best

    def _batch(self, numbers: Iterable[int], size: int) -> Iterator[int]:
        """As many feeds as make a batch."""
        for number in numbers:
            yield number
            size -= _rows(self.feeds[number])
            if size <= 0:
                return

    def _gradients(self, inputs: Iterable[int], numbers: Arrays) -> dict[str, np.ndarray]:
        total: dict[str, np.ndarray] = {}
        for number in inputs:
            for name, gradient in self._one(number, numbers)[1].items():
                total[name] = total[name] + gradient if name in total else gradient
        return total

    def _judged(self, inputs: Sequence[int], numbers: Arrays) -> float:
        """The weighted loss of some inputs, in share of all."""
        found = (self._one(number, numbers)[0] for number in inputs)
        weights = self.goal.weights
        each = [sum(weights[name] * loss for name, loss in one.items()) for one in found]
        return math.fsum(each) / len(each)

    def _planned(
        self, schedule: Schedule, fit: Sequence[int], judge: Sequence[int], seconds: float
    ) -> int:
        """How many steps there is time for, where one look at the judging inputs took so long."""
        if schedule.end is None:
            return schedule.steps
        each = seconds / len(judge)  # a look computes gradients, too
        batch = [*self._batch(fit, schedule.batch)]
        step = each * (len(batch) + len(judge) / _CHECKS)
        left = schedule.end - time.monotonic() - seconds  # what came of it is looked at once more
        return min(schedule.steps, int(max(left, 0) / step))

    def _one(self, number: int, numbers: Arrays) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        feed, targets = self.feeds[number], self.goal.targets[number]
        return self.student.run(feed, targets, self.goal.weights, numbers)


def _tied(parameter: Parameter, numbers: np.ndarray) -> np.ndarray | None:
    """Which numbers are one: few scales that many rows have take few bytes, and go on to do so."""
    import numpy as np

    if parameter.kind != "scales":
        return None
    different, which = np.unique(numbers, return_inverse=True)
    return which.reshape(-1) if different.size * _REPEATED <= numbers.size else None


def _joined(gradients: Arrays, tied: Mapping[str, np.ndarray | None]) -> Arrays:
    """Gradients of numbers that are one: all of them have the sum."""
    import numpy as np

    found = dict(gradients)
    for name, gradient in gradients.items():
        if (which := tied[name]) is not None:
            found[name] = np.bincount(which, gradient.reshape(-1))[which].reshape(gradient.shape)
    return found


def _kept(parameter: Parameter, numbers: np.ndarray) -> np.ndarray:
    """1 where a number may move: zeros of weights and tables stay, they are pruned ones."""
    import numpy as np

    stay = numbers == 0 if parameter.kind in ("weights", "tables") else False
    return np.where(stay, 0.0, 1.0)


def _unit(numbers: np.ndarray) -> np.ndarray:
    """The size of the numbers, all together."""
    import numpy as np

    size = float(np.sqrt(np.mean(np.square(numbers))))
    return np.full(numbers.shape, size or _SMALL)


def _rows(feed: Arrays) -> int:
    """How many inputs are stacked in a feed: the first axis that all of its arrays share."""
    lengths = {array.shape[0] if array.ndim else 1 for array in feed.values()}
    return max(lengths.pop(), 1) if len(lengths) == 1 else 1


def _shuffled(numbers: Sequence[int], seed: int) -> Iterator[int]:
    """All in random order, again and again."""
    import numpy as np

    rng = np.random.default_rng(seed)
    while True:
        yield from (numbers[place] for place in rng.permutation(len(numbers)))
