"""The search itself: recipes are asked for, evaluated wherever there is room, and told."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Future, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnxshrink.errors import internal
from onnxshrink.progress import Progress
from onnxshrink.recipe import Recipe
from onnxshrink.report import size
from onnxshrink.search.evolution import genes
from onnxshrink.search.evolution.evaluating import Evaluation
from onnxshrink.search.evolution.places import Workplace
from onnxshrink.search.evolution.study import Study

if TYPE_CHECKING:
    from optuna.trial import Trial

_log = logging.getLogger(__name__)
_TURN = 0.5  # seconds between two looks at what else may have happened
_TWICE = 2  # times a recipe may take its process with it before it is to blame


@dataclass
class Flight:
    """A recipe that is being evaluated.

    Attributes:
        trial: Whose it is.
        recipe: Its steps as YAML.
        tries: How often it was started.
    """

    trial: Trial
    recipe: str
    tries: int = 1


@dataclass
class Generations:
    """Evaluates recipes until there are enough, the time is up, or somebody stops it.

    Attributes:
        study: What is known, and what is to be tried next.
        place: Where recipes are evaluated.
        evaluate: Evaluates a recipe in this process, where the place is this one.
        remote: The same for another: a function and its first arguments, which can be sent.
        trials: How many the study shall have.
        deadline: When to stop, by ``time.monotonic``; None for never.
        progress: Told how far it is.
    """

    study: Study
    place: Workplace
    evaluate: Callable[[str], Evaluation]
    remote: tuple[Any, ...]
    trials: int
    deadline: float | None
    progress: Progress
    _flying: dict[Future[Evaluation], Flight] = field(default_factory=dict)

    def run(self) -> str:
        """Search; why it ended early, empty when it did not."""
        try:
            return self._run()
        except KeyboardInterrupt:
            return "interrupted"
        finally:
            for future, flight in self._flying.items():
                future.cancel()
                self.study.drop(flight.trial)

    def _run(self) -> str:
        while True:
            self._tell_progress()
            if self.deadline is not None and time.monotonic() > self.deadline:
                return "the time was up"
            if not self.place.alive():
                return "the scheduler is gone"
            room = min(self.place.width, self.trials - self.study.count) - len(self._flying)
            if room > 0:
                trial, known = self.study.ask()
                if known is not None:
                    self.study.tell(trial, known)
                    continue
                recipe = Recipe(genes.steps_of(trial.params)).to_yaml()
                if self.place.executor is None:
                    self._here(trial, recipe)
                elif why := self._start(Flight(trial, recipe)):
                    return why
                continue
            if not self._flying:
                return ""
            done, _ = wait(self._flying, timeout=_TURN, return_when=FIRST_COMPLETED)
            for future in done:
                if why := self._landed(future, self._flying.pop(future)):
                    return why

    def _here(self, trial: Trial, recipe: str) -> None:
        try:
            found = self.evaluate(recipe)
        except BaseException:  # Ctrl-C: the next run begins with it
            self.study.drop(trial)
            raise
        self._tell(trial, found, recipe)

    def _start(self, flight: Flight) -> str:
        try:
            future = self.place.submit(*self.remote, flight.recipe)
        except (BrokenExecutor, RuntimeError) as error:  # it was shut down, perhaps by its owner
            self.study.drop(flight.trial)
            return f"the executor takes nothing more: {error}"
        self._flying[future] = flight
        return ""

    def _landed(self, future: Future[Evaluation], flight: Flight) -> str:
        """Keep what came of a recipe; why nothing more can be evaluated, if it cannot."""
        try:
            found = future.result()
        except BrokenExecutor as error:
            # All that ran there are lost, and one of them is to blame.
            if flight.tries < _TWICE:
                flight.tries += 1
                return self._start(flight)
            found = Evaluation(why_not=f"its process died, {_TWICE} times: {error}")
        except CancelledError:
            self.study.drop(flight.trial)
            return "the scheduler is gone" if not self.place.alive() else ""
        except Exception as error:  # of the executor: a worker that was killed, or lacks a package
            if not self.place.alive():
                self.study.drop(flight.trial)
                return "the scheduler is gone"
            found = Evaluation(why_not=internal(error))
        self._tell(flight.trial, found, flight.recipe)
        return ""

    def _tell(self, trial: Trial, found: Evaluation, recipe: str) -> None:
        if found.why_not:
            _log.info("trial %d failed: %s", trial.number, found.why_not)
        else:
            _log.info("trial %d: %s, %.3f lost", trial.number, size(found.nbytes), found.seen)
        _log.debug("%s", recipe)
        self.study.tell(trial, found)

    def _tell_progress(self) -> None:
        kept = [found.nbytes for _, found in self.study.finished() if found.seen <= 1]
        best = f": best so far {size(min(kept))}" if kept else ""
        self.progress(f"trying recipes{best}", min(self.study.count, self.trials), self.trials)


def nondominated(found: list[Evaluation], *, timed: bool) -> list[int]:
    """Numbers of the outcomes that no other one beats in everything, the largest first.

    Args:
        found: The outcomes.
        timed: Whether latency counts.
    """

    def values(one: Evaluation) -> tuple[float, ...]:
        late = math.inf if one.latency is None else one.latency
        return (one.nbytes, one.seen, late) if timed else (one.nbytes, one.seen)

    every = [values(one) for one in found]
    front = [
        number
        for number, mine in enumerate(every)
        if not any(
            other != mine and all(a <= b for a, b in zip(other, mine, strict=True))
            for other in every
        )
        and mine not in every[:number]
    ]
    return sorted(front, key=lambda number: -found[number].nbytes)
