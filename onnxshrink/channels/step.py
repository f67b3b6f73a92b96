"""What a step of prune-channels removes: the model labelled, its groups ranked, a goal reached."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from onnxshrink.errors import InputsMissing

if TYPE_CHECKING:
    from onnxshrink.channels.facts import Runs
    from onnxshrink.channels.groups import Cost, Group
    from onnxshrink.channels.labels import Walk
    from onnxshrink.channels.plan import Plan
    from onnxshrink.channels.readers import Consumer
    from onnxshrink.channels.refit import Removal
    from onnxshrink.channels.shares import Allocation, Start
    from onnxshrink.graph.file.model import Model
    from onnxshrink.kernels.refit import Moments
    from onnxshrink.passes.prune_channels import PruneChannels
    from onnxshrink.pipeline import Context
    from onnxshrink.runtime.bench import ModelBench
    from onnxshrink.runtime.worker import Worker

_ROUNDS = 15  # of each of the trials: times differ by more than the steps between more of them
_TRIALS = 6
_CLOSE = 0.03  # width of the interval of a ratio that decides a trial


def labelled(model: Model, runs: Runs) -> Walk:
    """A model with labels, from what two runs of it showed."""
    from onnxshrink.channels.facts import Facts
    from onnxshrink.channels.labels import analyse

    return analyse(model, Facts(model, runs))


class Planner:
    """Plans one step after the other; goals are relative to where the first began.

    Args:
        options: What was asked for.
        ctx: The run.
        worker: Where to run models.
    """

    def __init__(self, options: PruneChannels, ctx: Context, worker: Worker):
        self._options = options
        self._ctx = ctx
        self._worker = worker
        self._start: Start | None = None

    def plan(self, model: Model, step: int) -> tuple[Plan, dict[Consumer, Moments]]:
        """Choose what goes in a step from a model, which is only read.

        Returns:
            The plan, and moments of what weights read.

        Raises:
            RecipeError: A pattern matches nothing.
            InputsMissing: What was asked for needs real inputs, and there are none.
        """
        import numpy as np

        from onnxshrink.channels import groups as grouping
        from onnxshrink.channels import ranking
        from onnxshrink.channels.plan import Plan
        from onnxshrink.channels.probing import moments, probe_any
        from onnxshrink.channels.shares import Start

        options, ctx = self._options, self._ctx
        runs = self._runs = probe_any(model, ctx.feeds, ctx.seed, self._worker)
        walk = labelled(model, runs)
        groups = grouping.find(walk)
        whole = self._held(model, groups)
        rng = np.random.default_rng([ctx.seed, step])
        seen: dict[Consumer, Moments] = {}
        real = ctx.feeds if not ctx.generated else ()  # made-up inputs are a bad thing to fit to
        if options.importance in ranking.CALIBRATED and not real:
            raise InputsMissing(
                f"{options.name}: importance {options.importance} needs real inputs: give "
                "--calibration DATA, or rank by the weights alone, for instance with l2"
            )
        if options.scope == "measured" and not real:
            raise InputsMissing(
                f"{options.name}: scope measured needs real inputs: give --calibration DATA, or "
                "use local or global"
            )
        if real and (options.compensate or options.importance in {"auto", *ranking.CALIBRATED}):
            seen = moments(walk, real, self._worker)
        scores = ranking.score(walk, groups, options.importance, seen, rng)
        plan = Plan(walk, groups, scores, [], whole)
        self._start = self._start or Start.of(plan)
        part = (step + 1) / options.iterations
        return self._planned(plan, self._start, seen, part), seen

    def removal(self, plan: Plan, seen: Mapping[Consumer, Moments]) -> Removal:
        """What carries out a plan that was made last."""
        from onnxshrink.channels.refit import Removal

        return Removal(self._options, self._ctx, self._worker, plan, self._runs, seen)

    def _held(self, model: Model, groups: list[Group]) -> dict[str, str]:
        from onnxshrink.channels.plan import held

        names = {name for node in model.nodes for name in (node.name, node.op_type) if name}
        names |= set(model.ir.graph.initializers)
        held(groups, self._options.layers, (), names=names)  # refuses patterns that match nothing
        return held(groups, self._options.keep, self._options.units, names=names)

    def _planned(
        self, plan: Plan, start: Start, seen: Mapping[Consumer, Moments], part: float
    ) -> Plan:
        """The choice that goes this part of the way to what was asked for.

        What is shared out by measured losses has to lose less than equal shares do. That is not
        looked at with a goal of latency, where plans take long to time.
        """
        from onnxshrink.channels.losses import Losses
        from onnxshrink.channels.shares import Allocation

        options = self._options
        allocation = Allocation(
            options.layers, options.scope == "global", options.round_to, options.minimum,
            start.sizes,
        )  # fmt: skip
        chosen, reached = plan, False
        if options.latency is None or not self._measures:
            chosen, reached = self._reached(plan, allocation, start, part)
        if self._measures and (options.latency is not None or chosen.removed.any()):
            losses = Losses(self.removal(plan, seen))
            curves = losses.curves(plan, allocation)
            costs = allocation.savings(plan, self._measure(start))
            spread = replace(allocation, losses=curves, costs=costs)
            measured = self._reached(plan, spread, start, part)
            if options.latency is not None or losses.of(measured[0]) <= losses.of(chosen):
                chosen, reached = measured
        if not reached:
            self._ctx.warn("the goal is out of reach: this is the most that can go")
        return chosen

    @property
    def _measures(self) -> bool:
        """Whether losses are to be measured."""
        real = self._ctx.feeds and not self._ctx.generated
        return self._options.scope == "measured" or (self._options.scope == "auto" and bool(real))

    def _measure(self, start: Start) -> Callable[[Cost], float]:
        """What is to be saved: what the goal is about, or parameters and work alike."""
        if self._options.flops is not None:
            return lambda cost: cost.macs
        if self._options.bytes is not None:
            return lambda cost: cost.nbytes
        whole = start.cost
        return lambda cost: (
            cost.parameters / max(whole.parameters, 1) + cost.macs / max(whole.macs, 1)
        )

    def _reached(
        self, plan: Plan, allocation: Allocation, start: Start, part: float
    ) -> tuple[Plan, bool]:
        """The choice of an allocation that goes this part of the way, and whether it gets there."""
        from onnxshrink.channels.groups import cost

        options, measure = self._options, self._measure(start)
        if options.latency is not None:
            goal = options.latency**part
            return self._to_latency(plan, allocation, start, self._runs, goal)
        if options.flops is not None or options.bytes is not None:
            goal = (options.flops or options.bytes or 1.0) ** part
            return allocation.reach_cost(plan, measure, goal * measure(start.cost))
        ratio = 1 - (1 - options.ratio) ** part
        equal = replace(allocation, losses={}).choose(plan, ratio)
        if not allocation.losses:
            return equal, True
        return allocation.reach_cost(plan, measure, measure(cost(plan.walk, equal.removed)))

    def _to_latency(
        self, plan: Plan, allocation: Allocation, start: Start, runs: Runs, goal: float
    ) -> tuple[Plan, bool]:
        """The least that is measured to be as fast as was asked for, and whether it is.

        Groups compete by what they matter and by the time that their units were seen to save.
        """
        from onnxshrink.channels import groups as grouping
        from onnxshrink.channels.removal import Cut
        from onnxshrink.runtime.bench import bench
        from onnxshrink.runtime.generate import generated_inputs

        model, ctx = plan.walk.model, self._ctx
        feeds = ctx.feeds[:4] or generated_inputs(model, 1, ctx.seed, worker=self._worker)
        with tempfile.TemporaryDirectory(prefix="onnxshrink-") as folder:
            first, other = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
            start.model.save(first, durable=False)

            def timed(trial: Plan, within: float | None = None) -> ModelBench:
                copy = model.clone()
                walk = labelled(copy, runs)
                same = replace(trial, walk=walk, groups=grouping.find(walk))
                if same.removed.any():
                    Cut(walk, same.removed).apply()
                copy.save(other, durable=False)
                return bench([first, other], feeds, rounds=_ROUNDS, within=within).models[1]

            saved = self._saved(plan, allocation, timed)
            allocation = replace(allocation, everywhere=True, costs=saved)
            return allocation.reach(
                plan, lambda trial: timed(trial, _CLOSE).ratio <= goal, trials=_TRIALS
            )

    def _saved(
        self, plan: Plan, allocation: Allocation, timed: Callable[[Plan], ModelBench]
    ) -> dict[str, float]:
        """The share of the time that one unit of each group saves, with half of them gone.

        What is measured counts by how sure it is, against the share of the work.
        """
        from onnxshrink.channels.groups import cost
        from onnxshrink.kernels.importance import believed_saving

        saved: dict[str, float] = {}
        whole = cost(plan.walk).macs
        for group, trial, gone in allocation.halves(plan):
            self._ctx.progress("time of groups", len(saved), len(plan.groups))
            if group.name in plan.held or not gone:
                saved[group.name] = 0.0
                continue
            guess = 1 - cost(trial.walk, trial.removed).macs / max(whole, 1)
            seen = timed(trial)
            width = seen.ratio_high - seen.ratio_low
            saved[group.name] = believed_saving(guess, 1 - seen.ratio, width) / gone
        return saved
