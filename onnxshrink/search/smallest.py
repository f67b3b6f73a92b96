"""The smallest recipe whose answers keep a goal, on inputs that the search has not seen.

Integer codes whose steps one number sets (quantize-rd) are the backbone: the more is spent, the
smaller the file and the larger the loss; what they leave is stored in float16. Where tuning wins
enough, by what may be seen, every recipe is tuned. The search follows that number until the inputs
that no step has seen refuse. One path, taken in one direction until it is refused, is one test,
however many its steps (Bates et al., Distribution-free, risk-controlling prediction sets, 2021).
Other recipes are tried on what may be seen; one that is smaller there is another test, and the
intervals of all of them allow for it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnxshrink.budget import POWER, cutback, factor, spending
from onnxshrink.contract import Judge
from onnxshrink.goal import Aim
from onnxshrink.options import build, dump
from onnxshrink.pipeline import Pass, Result
from onnxshrink.recipe import find_pass
from onnxshrink.report import Attempt, size
from onnxshrink.search import ladder
from onnxshrink.search.evaluation import NARROWING, TUNING, Evaluator, Tried
from onnxshrink.search.measured import bench_tried

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model

_log = logging.getLogger(__name__)

_WORTH = 0.97  # of the bytes: what saves less is not worth any accuracy
_CLEARLY = 0.95  # of the bytes: another kind of recipe is another test
_TURNS = 6  # of the number that says what to spend
_FIRST = 1e-3  # to spend, where quantize-rd finds nothing on half of the inputs
_CLOSE = 1.15  # between what is kept and what is refused: a tenth of a bit
_STRIDE = 1.3  # times what was kept, at least, while nothing is refused: some 5 % of the bytes
_STEEPEST, _FLATTEST = 1.5, 0.25
_LITTLE = 0.8  # of the bytes of integers: what coding without loss must go below
_WHERE = "the search"
_DOING = "searching"
_BEFORE = 3  # recipes: the model as it is, the first one, the same tuned
_INTERRUPTED = "interrupted"

#: Where the backbone does not do. Where it does, none of these was ever smaller at an equal loss.
_OTHERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("share-codebook", {"bits": 4, "rounding": "gptq"}),
    ("quantize-weights", {"dtype": "int4", "block_size": 32, "rounding": "gptq"}),
    ("quantize-weights", {"dtype": "int8"}),
    ("to-float16", {}),
)
#: Likewise of trees.
_TREES = (8, 6, 4)
_INTEGERS: tuple[tuple[tuple[str, dict[str, Any]], ...], ...] = (
    (("quantize-static", {"only": ["Conv"], "others": "keep"}), ("quantize-dynamic", {})),
    (("quantize-dynamic", {}),),
    (("quantize-static", {"others": "keep"}),),
)
#: Codes that operators take as they are, so that they are small in memory, too: the weights fitted
#: to the inputs.
_BLOCKS = {"dtype": "int4", "form": "nbits", "rounding": "gptq"}
_BLOCK_SIZES = (128, 64, 32)
_MOSTLY = 0.5  # of the bytes: what such operators must be able to take
_HALF = 0.5  # of the squared error for weights, the other for what is multiplied with them
_FEW_TURNS = 2
_NEARLY = 1.05  # times the least cost: of those the smallest file
_PRUNED = (("prune-sparsegpt", {"ratio": 0.4, "max_error": 1.0}),)
_STEPS = 20  # of a tuning: more bring next to nothing
_FEWEST_STEPS = 10
_EASED = 0.98  # of the error: what a tuning must leave at most
_ASTRAY = 1.1  # times what may be lost is lost: what tuning serves is not what is asked for
_SECONDS = 30.0  # of a tuning at most
_SHARE = 0.1  # of the time that is left


@dataclass
class Found:
    """The outcome of a search.

    Attributes:
        best: The smallest that keeps the goal; else the one that is nearest to it.
        result: Its model and report.
        tried: All, in the order in which they were tried.
        looks: How many kinds of recipes were held against the unseen inputs.
        stopped: Why the search ended early; empty when it did not.
        signal: The exit code that tells of Ctrl-C or SIGTERM, where one of them ended it.
    """

    best: Tried
    result: Result
    tried: list[Tried] = field(default_factory=list)
    looks: int = 0
    stopped: str = ""
    signal: int = 0

    @property
    def rows(self) -> list[Attempt]:
        """What was tried, for the report."""
        return [
            one.attempt(self._verdict(one), taken=one is self.best)
            for one in sorted(self.tried, key=lambda one: -one.nbytes)
        ]

    def _verdict(self, one: Tried) -> str:
        if one is self.best:
            return "taken"
        if one.refused:
            return "not kept on unseen inputs"
        if not one.keeps:
            return one.misses[0] if one.misses else "outside, or too near to the limit"
        if one.nbytes >= self.best.nbytes:
            return "bigger" if one.nbytes > self.best.nbytes else "no smaller"
        if self.best.promises and not one.promises:
            return "loses more than it saves, by what steps have seen"
        return "saves too little for what it loses"


class Search:
    """Tries recipes on a model.

    Args:
        ask: Evaluates them.
        aim: What the best is best at.
        deadline: When to stop, by ``time.monotonic``; None for never.
    """

    def __init__(self, ask: Evaluator, aim: Aim = "size", deadline: float | None = None):
        self._ask, self._aim = ask, aim
        self._deadline = math.inf if deadline is None else deadline
        self._tried: list[Tried] = []
        self._looks = 0
        kinds = _TURNS + 1 if aim == "size" else len(_INTEGERS) * (_FEW_TURNS + 1)
        self._most = _BEFORE + _TURNS + kinds

    def run(self) -> Found:
        """The best that is found in time; Ctrl-C ends the search, too, once there is anything."""
        stopped, signal = "", 0
        self._try(())  # at worst, and where there is nothing to gain, the model as it is
        try:
            for takes in self._explore():
                content = any(one.promises and one.keeps for one in self._tried)
                if time.monotonic() + takes * content > self._deadline:
                    stopped = "the time was up"
                    break
        except KeyboardInterrupt as error:
            stopped, signal = _INTERRUPTED, getattr(error, "exit_code", 130)
        best = self._confirmed(stopped)
        if self._aim != "size" and not stopped:
            best = self._cheapest(best)
        self._ask.settings.progress(_DOING, self._most, self._most)
        return Found(best, self._ask.result(best), self._tried, self._looks, stopped, signal)

    # ---- candidates

    def _explore(self) -> Iterator[float]:
        """Try recipes; before each, the seconds that it is likely to take, where that is known."""
        if self._aim != "size" and (sizes := block_sizes(self._ask.model)):
            yield from self._blocks(sizes)
        start = time.monotonic()
        backbone = build(find_pass("quantize-rd"), {"requantize": self._requantizes()}, _WHERE)
        narrow = find_pass(NARROWING)()
        found = self._try([backbone, narrow])
        if found is None and not self._ask.why_not.startswith(backbone.name):
            found = self._try([backbone])
        found = found or self._try([spending(backbone, _FIRST)])
        whole = time.monotonic() - start
        yield 0.0
        yield from self._path(self._tuned(found))
        if self._smallest().spend is None:
            for name, options in _OTHERS + self._of_trees():
                self._try([build(find_pass(name), options, _WHERE)])
                yield 0.0
            yield from self._ladder()
            return
        if self._aim != "size":
            yield from self._integers(self._smallest())
            return
        yield whole
        best = self._smallest()
        pruned = [build(find_pass(name), options, _WHERE) for name, options in _PRUNED]
        one = self._try([*pruned, *self._ask.behind(best)])
        yield 0.0
        if one is not None and self._dominates(one, best):
            yield from self._path(one)

    def _requantizes(self) -> bool:
        """Whether integers that came are rounded once more: where all else would save little."""
        model, lossless = self._ask.model, self._tried[0]
        return lossless.nbytes > _LITTLE * model.nbytes() and mostly_integers(model)

    def _of_trees(self) -> tuple[tuple[str, dict[str, Any]], ...]:
        """What can be tried on trees, where there are any."""
        from onnxshrink.graph.rewrite import trees

        found = any(map(trees.is_ensemble, self._ask.model.nodes))
        return tuple(("round-trees", {"bits": bits}) for bits in _TREES if found)

    def _blocks(self, sizes: Sequence[int]) -> Iterator[float]:
        """Four bits in blocks for all weights; where that is too much, eight for what hurts."""
        for block_size in sizes:
            options = {**_BLOCKS, "block_size": block_size}
            one = self._try([build(find_pass("quantize-weights"), options, _WHERE)])
            if one is not None:
                self._look(one)
            yield 0.0
            if one is not None and one.keeps:
                return
        yield from self._ladder(ladder.BLOCKS)

    def _integers(self, best: Tried) -> Iterator[float]:
        """Kernels that compute with the integers of the best: they take less time and memory."""
        codes = [step for step in self._ask.behind(best) if step.name != NARROWING]
        half = [spending(step, (best.spend or 0.0) * _HALF) for step in codes]
        cpu = {"cpu": self._ask.platform.cpu}
        for steps in _INTEGERS:
            built = [build(find_pass(name), options | cpu, _WHERE) for name, options in steps]
            yield from self._path(self._try([*half, *built]), _FEW_TURNS)

    def _tuned(self, one: Tried | None) -> Tried | None:
        """The same, tuned, where that wins enough by what may be seen, and soon enough.

        Unseen inputs are not asked: whichever goes on is the one path that they judge.
        """
        if one is None or one.spend is None:
            return one
        options = {"steps": _STEPS, "time_limit": self._seconds()}
        tune = build(find_pass(TUNING), options, _WHERE)
        found = self._ask.evaluate([*self._ask.behind(one), tune], known=one)
        if found is None or found.eased > _EASED:
            return one
        if dump(found.recipe.steps[-1])["steps"] < _FEWEST_STEPS:
            return one
        if found.seen > _ASTRAY * one.seen:
            return one
        self._add(found)
        return found

    def _seconds(self) -> float:
        """What a tuning may take."""
        return max(min(_SECONDS, _SHARE * (self._deadline - time.monotonic())), 0.0)

    def _cheapest(self, smallest: Tried) -> Tried:
        """The fastest, or smallest in memory, that keeps the goal; the smallest where none is."""
        kinds: dict[tuple[str, ...], Tried] = {}
        for one in sorted(self._tried, key=lambda one: -one.nbytes):
            if one.keeps and (one.promises or not self._ask.settings.unseen):
                kinds[tuple(step.name for step in one.recipe.steps)] = one
        kinds[tuple(step.name for step in smallest.recipe.steps)] = smallest
        bench_tried(self._ask, [*kinds.values()])
        costs = {id(one): self._cost(one) for one in kinds.values()}
        least = min(costs.values())
        near = [one for one in kinds.values() if costs[id(one)] <= _NEARLY * least]
        best = min(near, key=lambda one: one.nbytes)
        self._ask.look(best, max(self._looks, 1))
        return best if best.keeps else smallest

    def _cost(self, one: Tried) -> float:
        return float((one.latency if self._aim == "latency" else one.memory) or 0.0)

    def _ladder(self, *kinds: ladder.Rungs) -> Iterator[float]:
        """Where something does not do for all weights: those that hurt at a higher precision."""
        settings = self._ask.settings
        judge = Judge(self._ask.model, settings, self._ask.worker)
        if judge.original is None or not judge.original.outputs:
            return
        found = ladder.find_recipe(
            self._ask.model, judge, self._ask.goal, settings.progress, *kinds
        )
        yield 0.0
        one = None if found.misses else self._try(found.recipe.steps)
        if one is not None:
            one.moved = found.moved
            if self._aim != "size":  # what costs least is chosen of those that were asked about
                self._look(one)
        yield 0.0

    def _path(self, one: Tried | None, turns: int = _TURNS) -> Iterator[float]:
        """What quantize-rd spends in a recipe, more until it is too much, or less until it is not.

        It chooses by a fit to one half of the inputs; that to all of them is better, and those that
        it has not seen have the last word.
        """
        yield 0.0
        if one is None or one.spend is None:
            return
        self._look(one)
        looks, points, takes = self._looks, [one], 0.0
        for _ in range(turns):
            spend = _next(points)
            if spend is None:
                return
            yield takes
            self._tell(f"{one.name}, spending {spend:.2g}")
            start = time.monotonic()
            found = self._ask.again(one, spend, looks)
            takes = time.monotonic() - start
            if found is None or found.spend is None:
                return
            self._add(found)
            points.append(found)

    def _dominates(self, one: Tried, best: Tried) -> bool:
        """Whether a recipe is likely to be smaller at an equal loss, by what steps have seen."""
        # What is fitted to the inputs that say so must be clearly smaller, and lose no more.
        return one.nbytes <= _CLEARLY * best.nbytes and one.seen <= best.seen

    def _try(self, steps: Sequence[Pass]) -> Tried | None:
        """Run a recipe and measure it; None where one of its steps did not stand."""
        self._tell(" + ".join(step.name for step in steps) or "cleaning")
        one = self._ask.evaluate(steps)
        if one is not None:
            self._add(one)
        return one

    def _tell(self, doing: str) -> None:
        if self._tried:
            doing += f"; best so far {size(self._smallest().nbytes)}"
        tried = len(self._tried)
        self._ask.settings.progress(f"{_DOING}: {doing}", tried, max(self._most, tried + 1))

    def _add(self, one: Tried) -> None:
        """Remember it; of all models the newest and the best stay in memory."""
        self._tried.append(one)
        best = self._smallest()
        for other in self._tried:
            if other is not one and other is not best:
                other.result = None

    def _look(self, one: Tried) -> None:
        if not one.promises:
            self._looks += 1
            self._ask.look(one, self._looks)

    # ---- the choice

    def _smallest(self) -> Tried:
        """The smallest that keeps the goal; of those nearly as small the one that loses least."""
        kept = [one for one in self._tried if one.keeps]
        # What unseen inputs have accepted is not given up for what they have not been asked about.
        kept = [one for one in kept if one.promises] or kept
        kept = kept or [
            min(self._tried, key=lambda one: (one.refused, len(one.misses), one.strain))
        ]
        least = min(one.nbytes for one in kept)
        near = [one for one in kept if _WORTH * one.nbytes <= least]
        return min(near, key=lambda one: (one.strain, one.nbytes))

    def _confirmed(self, stopped: str) -> Tried:
        """The smallest that unseen inputs accept, with an interval for as often as they judged."""
        best = self._smallest()
        for _ in range(_TURNS):
            if not best.promises:
                self._look(best)
            elif self._looks > 1:
                self._ask.look(best, self._looks)
            if best.keeps:
                return best
            finer = None
            if best.spend is not None and stopped != _INTERRUPTED:
                finer = self._ask.again(best, best.spend * cutback(best.strain), self._looks)
            if finer is not None:
                self._add(finer)
            best = finer or self._smallest()
        return self._smallest()


def block_sizes(model: Model) -> list[int]:
    """The sizes of blocks in which operators that take codes can have most of a model's weights.

    Those in which they can have fewer weights than in others are left out: what they cannot have is
    not small in memory.
    """
    from onnxshrink.graph import weights
    from onnxshrink.graph.forms import nbits

    views = [view for view in weights.find(model) if view.uses]
    taken = {
        size: sum(view.nbytes for view in views if not nbits.why_not(view, 4, size))
        for size in _BLOCK_SIZES
    }
    most = max(taken.values())
    if most <= _MOSTLY * sum(view.nbytes for view in views):
        return []
    return [size for size, nbytes in taken.items() if nbytes == most]


def mostly_integers(model: Model) -> bool:
    """Whether at least half of the weights' bytes are integers of 8 bits or fewer."""
    from onnxshrink.graph import weights

    sizes = [(view.tensor.dtype, view.nbytes) for view in weights.find(model)]
    narrow = sum(size for kind, size in sizes if kind.is_integer() and kind.bitwidth <= 8)
    return 2 * narrow >= sum(size for _, size in sizes) > 0


def _next(points: Sequence[Tried]) -> float | None:
    """What to spend next, after what came of some; None where there is nothing more to find.

    Losses are about powers of what is spent.
    """
    low = max((p.spend for p in points if p.keeps and p.spend), default=0.0)
    high = min((p.spend for p in points if not p.keeps and p.spend), default=math.inf)
    newest = points[-1]
    if newest.spend is None or (high <= low * _CLOSE):
        return None
    known = [p for p in points if p.spend and 0 < p.strain < math.inf]
    power = POWER
    if len(known) > 1:
        power = _slope([math.log(p.spend) for p in known if p.spend],
                       [math.log(p.strain) for p in known])  # fmt: skip
    nearest = min(known, key=lambda p: abs(math.log(p.strain)), default=newest)
    if nearest.spend is None:
        return None
    spend = nearest.spend * factor(nearest.strain, power)
    if not low and len(points) > 1:
        spend = min(spend, high / 2)  # the first guess was no better: time to be sure
    edge = math.sqrt(_CLOSE)
    if high < math.inf:
        spend = min(spend, high / edge)
    return max(spend, low * (edge if high < math.inf else _STRIDE))


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The slope of the line through points, within what a loss can do."""
    middle, height = sum(x) / max(len(x), 1), sum(y) / max(len(y), 1)
    spread = sum((a - middle) ** 2 for a in x)
    if not spread:
        return POWER
    slope = sum((a - middle) * (b - height) for a, b in zip(x, y, strict=True)) / spread
    return min(max(slope, _FLATTEST), _STEEPEST)
