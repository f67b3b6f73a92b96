"""The smallest recipe whose answers keep a goal, on inputs that the search has not seen.

Every candidate is a whole recipe. It is run under the contract on the inputs that may be seen,
measured as it will be stored, and its answers to the judging half are held against the goal, with
care. The smallest that keeps it is then held against inputs that no step has seen. If these say
no, it steps back to a finer one; what was held against them so often says less, which the interval
takes into account.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from onnxshrink.contract import Judge, Settings
from onnxshrink.errors import ModelError
from onnxshrink.goal import Goal, Promise
from onnxshrink.options import build, dump
from onnxshrink.pipeline import Pass, Result, run
from onnxshrink.recipe import Recipe, Storage, find_pass
from onnxshrink.search import ladder

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model
    from onnxshrink.runtime.worker import Worker
    from onnxshrink.trials import Answers

_log = logging.getLogger(__name__)

_WORTH = 0.97  # of the bytes: what saves less is not worth any accuracy
_LOOKS = 6  # at inputs that nobody had seen; they are few, and say less each time
_TURNS = 4  # of the dial, where what a pass chose for itself does not keep the goal
_ROOMY = 0.8  # of what may be lost: below this more is tried
_BACK = 0.9  # of the room that a figure has, when an error is stepped back to it
_HALF = 0.5  # of the squared error to spend, where it is not known how much is too much
_TOLD = ("lam", "bits", "dtype", "ratio")  # options that tell one recipe from another
_WHERE = "the search"

#: Steps beside the backbone: name, steps, and the least bits a weight takes, which tells without a
#: trial that there is nothing to gain.
_OTHERS: tuple[tuple[tuple[tuple[str, dict[str, Any]], ...], float], ...] = (
    ((("share-codebook", {"bits": 3, "rounding": "gptq"}),), 2.2),
    ((("share-codebook", {"bits": 4, "rounding": "gptq"}),), 3.0),
    ((("quantize-weights", {"dtype": "int4", "block_size": 32, "rounding": "gptq"}),), 3.3),
    ((("quantize-weights", {"dtype": "int8"}),), 5.5),
    ((("to-float16", {}),), 11.0),
)
_PRUNED = (("prune-sparsegpt", {"ratio": 0.4, "max_error": 1.0}),)


@dataclass
class Tried:
    """A recipe, what came of it, and what it keeps.

    Attributes:
        recipe: The recipe, cleaning included; it has no options that a step chooses for itself.
        result: The model and its report.
        nbytes: Bytes of the file, stored as asked for.
        strain: Share of what may be lost that is lost, with care; see :meth:`Goal.strain`.
        misses: What it does not keep for certain: a metric, or running at all.
        spend: What quantize-rd spends in it; None where it is not part of it.
        promises: What unseen inputs say; None before they are asked.
        moved: Weights that are kept at a higher precision than others, and at which.
    """

    recipe: Recipe
    result: Result
    nbytes: int
    strain: float
    misses: list[str]
    spend: float | None = None
    promises: list[Promise] | None = None
    moved: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The steps behind the cleaning, with what was chosen."""
        steps = [step for step in self.recipe.steps if step.name not in ("clean", "lower-ml")]
        names = []
        for step in steps:
            told = [f"{value:.2g}" if key == "lam" else str(value)
                    for key, value in dump(step).items() if key in _TOLD]  # fmt: skip
            names.append(" ".join([step.name, *told]))
        return " + ".join(names) or "lossless coding"

    @property
    def keeps(self) -> bool:
        """Whether the goal is kept as far as is known."""
        return self.strain <= 1 and not self.misses and not self.refused

    @property
    def refused(self) -> bool:
        """Whether unseen inputs say that it is not kept."""
        return any(promise.refuses for promise in self.promises or ())


@dataclass
class Found:
    """The outcome of a search.

    Attributes:
        best: The smallest that keeps the goal; else the one that is nearest to it.
        tried: All, in the order in which they were tried.
        looks: How many were held against the unseen inputs.
        stopped: Why the search ended early; empty when it did not.
    """

    best: Tried
    tried: list[Tried] = field(default_factory=list)
    looks: int = 0
    stopped: str = ""

    @property
    def rows(self) -> list[tuple[str, int, float, str]]:
        """What was tried, for the report."""
        return [
            (one.name, one.nbytes, one.strain, self._verdict(one))
            for one in sorted(self.tried, key=lambda one: -one.nbytes)
        ]

    def _verdict(self, one: Tried) -> str:
        if one is self.best:
            return "taken"
        if one.refused:
            return "not kept on unseen inputs"
        if not one.keeps:
            return one.misses[0] if one.misses else "outside, or too near to the limit"
        return "bigger" if one.nbytes > self.best.nbytes else "saves too little for what it loses"


class Search:
    """Tries recipes on a model.

    Args:
        model: The model; it is left as it is.
        first: Steps that change no answer, in front of every recipe.
        settings: How to check; its ``feeds`` may be seen, its ``unseen`` not before the end.
        goal: What the answers must keep.
        worker: Where to run.
        storage: How the result will be stored.
        deadline: When to stop, by ``time.monotonic``; None for never.
    """

    def __init__(
        self, model: Model, first: Sequence[Pass], settings: Settings, goal: Goal, worker: Worker,
        storage: Storage, deadline: float | None = None,
    ):  # fmt: skip
        self._model, self._first, self._worker = model, tuple(first), worker
        self._settings = replace(settings, goal=goal, storage=storage)
        self._goal, self._storage, self._deadline = goal, storage, deadline
        self._tried: list[Tried] = []
        self._looks = 0
        self._unseen: Answers | None = None

    def run(self) -> Found:
        """The best that is found in time; Ctrl-C ends the search, too, once there is anything."""
        stopped = ""
        self._try(())  # at worst, and where there is nothing to gain, the model as it is
        try:
            for _ in self._explore():
                if self._deadline is not None and time.monotonic() > self._deadline:
                    stopped = "the time was up"
                    break
        except KeyboardInterrupt:
            stopped = "interrupted"
        best = self._verified(stopped)
        return Found(best, self._tried, self._looks, stopped)

    # ---- candidates

    def _explore(self) -> Iterator[None]:
        backbone = [find_pass("quantize-rd")()]
        yield from self._dial(backbone)
        kept = min((one.nbytes for one in self._tried if one.keeps), default=0)
        weights = self._weights()
        for steps, bits in _OTHERS:
            if kept < bits / 8 * weights and any(one.spend for one in self._tried if one.keeps):
                continue  # not even its codes alone are smaller
            self._try([build(find_pass(name), options, _WHERE) for name, options in steps])
            yield
        best = self._smallest()
        if best.spend is None:
            yield from self._ladder()
        elif best.nbytes > 0.1 * weights / 8:
            pruned = [build(find_pass(name), options, _WHERE) for name, options in _PRUNED]
            self._try([*pruned, _spending(backbone[0], best.spend)])
            yield

    def _ladder(self) -> Iterator[None]:
        """Where the backbone does not do: the weights that hurt at a higher precision."""
        judge = Judge(self._model, self._settings, self._worker)
        if judge.original is None or not judge.original.outputs:
            return
        found = ladder.find_recipe(self._model, judge, self._goal, self._settings.progress)
        yield
        one = None if found.misses else self._try(found.recipe.steps)
        if one is not None:
            one.moved = found.moved
        yield

    def _weights(self) -> int:
        from onnxshrink.graph import weights

        return sum(view.size for view in weights.find(self._model) if view.uses)

    def _dial(self, steps: Sequence[Pass]) -> Iterator[None]:
        """quantize-rd with what it chooses to spend; then less until that keeps the goal, or more.

        It chooses by a fit to one half of the inputs. That to all of them is better: often there is
        room for more.
        """
        found = self._try(steps)
        yield
        kept = found is not None and found.keeps
        for _ in range(_TURNS):
            if found is None or found.spend is None or found.keeps != kept:
                return
            if kept and found.strain > _ROOMY:
                return
            found = self._again(found, 1 / _HALF if kept else _HALF)
            yield

    @property
    def _by_metric(self) -> bool:
        return self._goal.metric is not None and self._goal.max_drop is not None

    def _again(self, one: Tried, factor: float) -> Tried | None:
        """The same with another share to spend."""
        assert one.spend is not None
        lam = one.spend * factor
        steps = one.recipe.steps[len(self._first) :]
        return self._try(
            [_spending(step, lam) if step.name == "quantize-rd" else step for step in steps]
        )

    def _try(self, steps: Sequence[Pass]) -> Tried | None:
        """Run a recipe and measure it; None where one of its steps did not stand."""
        from onnxshrink.search.stored import stored_bytes

        recipe = Recipe((*self._first, *steps), held_back=bool(self._settings.unseen))
        best = self._smallest() if self._tried else None
        doing = " + ".join(step.name for step in steps) or "cleaning"
        if best is not None:
            doing += f"; best so far {best.nbytes:,} bytes"
        self._settings.progress(f"trying {doing}", len(self._tried), 0)
        result = run(recipe.steps, self._model, self._settings, self._worker)
        rows = result.report.steps[len(self._first) :]
        if any(row.status == "rolled back" for row in rows):
            _log.info("%s: %s", doing, next(row.reason for row in rows if row.reason))
            return None
        chosen, spend = [], None
        for step, row in zip(steps, rows, strict=True):
            if "lam" in row.chosen:
                spend = row.chosen["lam"]
                step = _spending(step, spend)
                row.options = dump(step)
            chosen.append(step)
        strain, misses = self._judged(result)
        one = Tried(
            replace(recipe, steps=(*self._first, *chosen)), result,
            stored_bytes(result.model, self._storage), strain, misses, spend,
        )  # fmt: skip
        if not any(row.status == "done" for row in rows) and self._tried:
            return None  # nothing to do for it
        self._tried.append(one)
        _log.info("%s: %d bytes, %.3f of what may be lost", one.name, one.nbytes, strain)
        return one

    def _judged(self, result: Result) -> tuple[float, list[str]]:
        """The share of what may be lost that is lost on the judging half, and what is missed."""
        from onnxshrink.kernels.split import Split

        if result.answers is None or not result.answers[0].outputs:
            return 0.0, []
        before, after = result.answers
        split = Split(len(before.outputs))
        if self._by_metric:
            return 0.0, self._goal.misses(result.effect, before, after)
        seen, judged = before.part(split.judge), after.part(split.judge)
        others = () if split.by_itself else before.part(split.fit).outputs
        return self._goal.strain(seen, others)(judged.outputs), []

    # ---- the choice

    def _smallest(self) -> Tried:
        """The smallest that keeps the goal; of those nearly as small the one that loses least."""
        kept = [one for one in self._tried if one.keeps] or [
            min(self._tried, key=lambda one: (one.refused, len(one.misses), one.strain))
        ]
        least = min(one.nbytes for one in kept)
        near = [one for one in kept if _WORTH * one.nbytes <= least]
        return min(near, key=lambda one: (one.strain, one.nbytes))

    def _verified(self, stopped: str) -> Tried:
        """The smallest that unseen inputs accept, too."""
        best = self._smallest()
        while self._settings.unseen and best.promises is None:
            self._look(best)
            if not best.refused or self._looks == _LOOKS:
                break
            if best.spend is not None and not stopped:
                self._again(best, _finer(best.promises or ()))
            best = self._smallest()
        return best

    def _look(self, one: Tried) -> None:
        """Hold a candidate against the unseen inputs: once more than before."""
        from onnxshrink.trials import answers

        feeds, folder = self._settings.unseen, self._settings.folder
        if self._unseen is None:
            self._unseen = answers(self._model, feeds, self._worker, folder=folder)
        self._looks += 1
        self._settings.progress(f"{one.name}: asking unseen inputs", self._looks, 0)
        try:
            after = answers(one.result.model, feeds, self._worker, folder=folder)
        except ModelError as error:
            one.misses = [f"the result does not run on unseen inputs: {error}"]
            one.promises = []
            return
        one.promises = self._goal.promises(self._unseen, after, self._looks)


def _spending(step: Pass, lam: float) -> Pass:
    return build(type(step), {**dump(step), "lam": lam}, _WHERE)


def _finer(promises: Sequence[Promise]) -> float:
    """By how much less to spend for what unseen inputs refuse."""
    factor = _HALF
    for promise in promises:
        if promise.refuses and promise.figure == "error" and promise.careful > 0:
            factor = min(factor, _BACK * (promise.limit / promise.careful) ** 2)
    return max(factor, _HALF**4)
