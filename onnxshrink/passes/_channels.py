"""What a step of prune-channels removes: the model labelled, its groups ranked, a goal reached."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from onnxshrink.errors import RecipeError

if TYPE_CHECKING:
    from onnxshrink.graph.channels.allocate import Allocation, Start
    from onnxshrink.graph.channels.consumers import Consumer
    from onnxshrink.graph.channels.facts import Runs
    from onnxshrink.graph.channels.groups import Group
    from onnxshrink.graph.channels.plan import Plan
    from onnxshrink.graph.channels.walk import Walk
    from onnxshrink.graph.model import Model
    from onnxshrink.kernels.refit import Moments
    from onnxshrink.passes._refit import Removal
    from onnxshrink.passes.prune_channels import PruneChannels
    from onnxshrink.pipeline import Context
    from onnxshrink.runtime.bench import ModelBench
    from onnxshrink.runtime.worker import Worker

_ROUNDS = 15  # of each of the trials: times differ by more than the steps between more of them
_TRIALS = 6
_CLOSE = 0.03  # width of the interval of a ratio that decides a trial


def labelled(model: Model, runs: Runs) -> Walk:
    """A model with labels, from what two runs of it showed."""
    from onnxshrink.graph.channels.facts import Facts
    from onnxshrink.graph.channels.walk import analyse

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
            RecipeError: A pattern matches nothing, or inputs are missing.
        """
        import numpy as np

        from onnxshrink.graph.channels import groups as grouping
        from onnxshrink.graph.channels import score
        from onnxshrink.graph.channels.allocate import Start
        from onnxshrink.graph.channels.plan import Plan
        from onnxshrink.runtime.probe import moments, probe_any

        options, ctx = self._options, self._ctx
        runs = self._runs = probe_any(model, ctx.feeds, ctx.seed, self._worker)
        walk = labelled(model, runs)
        groups = grouping.find(walk)
        whole = self._held(model, groups)
        rng = np.random.default_rng([ctx.seed, step])
        seen: dict[Consumer, Moments] = {}
        real = ctx.feeds if not ctx.generated else ()  # made-up inputs are a bad thing to fit to
        if options.importance in score.CALIBRATED and not real:
            raise RecipeError(f"{options.name}: importance {options.importance} needs real inputs")
        if real and (options.compensate or options.importance in {"auto", *score.CALIBRATED}):
            seen = moments(walk, real, self._worker)
        scores = score.score(walk, groups, options.importance, seen, rng)
        plan = Plan(walk, groups, scores, [], whole)
        self._start = self._start or Start.of(plan)
        return self._reached(plan, self._start, runs, (step + 1) / options.iterations), seen

    def removal(self, plan: Plan, seen: Mapping[Consumer, Moments]) -> Removal:
        """What carries out a plan that was made last."""
        from onnxshrink.passes._refit import Removal

        return Removal(self._options, self._ctx, self._worker, plan, self._runs, seen)

    def _held(self, model: Model, groups: list[Group]) -> dict[str, str]:
        from onnxshrink.graph.channels.plan import held

        names = {name for node in model.nodes for name in (node.name, node.op_type) if name}
        names |= set(model.ir.graph.initializers)
        held(groups, self._options.layers, (), names=names)  # refuses patterns that match nothing
        return held(groups, self._options.keep, self._options.units, names=names)

    def _reached(self, plan: Plan, start: Start, runs: Runs, part: float) -> Plan:
        """The choice that goes this part of the way to what was asked for."""
        from onnxshrink.graph.channels.allocate import Allocation

        options = self._options
        allocation = Allocation(
            options.layers, options.scope == "global", options.round_to, options.minimum,
            start.sizes,
        )  # fmt: skip
        if options.flops is not None:
            most = options.flops**part * start.cost.macs
            found = allocation.reach_cost(plan, lambda cost: cost.macs, most)
        elif options.bytes is not None:
            most = options.bytes**part * start.cost.nbytes
            found = allocation.reach_cost(plan, lambda cost: cost.nbytes, most)
        elif options.latency is not None:
            found = self._to_latency(plan, allocation, start, runs, options.latency**part)
        else:
            return allocation.choose(plan, 1 - (1 - options.ratio) ** part)
        chosen, reached = found
        if not reached:
            self._ctx.warn("the goal is out of reach: this is the most that can go")
        return chosen

    def _to_latency(
        self, plan: Plan, allocation: Allocation, start: Start, runs: Runs, goal: float
    ) -> tuple[Plan, bool]:
        """The least that is measured to be as fast as was asked for, and whether it is.

        Groups compete by what they matter and by the time that their units were seen to save.
        """
        from onnxshrink.graph.channels import groups as grouping
        from onnxshrink.graph.channels.cut import Cut
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
        from onnxshrink.graph.channels.groups import cost
        from onnxshrink.kernels.importance import believed_saving

        saved = {}
        whole = cost(plan.walk).macs
        for index, group in enumerate(plan.groups):
            self._ctx.progress("time of groups", index, len(plan.groups))
            trial = allocation.only(plan, index)
            gone = sum(
                len(choice)
                for each, choice in zip(plan.groups, trial.choice, strict=True)
                if each is group or (group.bond >= 0 and each.bond == group.bond)
            )
            if group.name in plan.held or not gone:
                saved[group.name] = 0.0
                continue
            guess = 1 - cost(trial.walk, trial.removed).macs / max(whole, 1)
            seen = timed(trial)
            width = seen.ratio_high - seen.ratio_low
            saved[group.name] = believed_saving(guess, 1 - seen.ratio, width) / gone
        return saved
