"""Plans timed in ONNX Runtime: the least that is as fast as was asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from onnxshrink import files
from onnxshrink.channels import groups as grouping
from onnxshrink.channels.facts import Runs
from onnxshrink.channels.groups import cost
from onnxshrink.channels.labels import labelled
from onnxshrink.channels.plan import Plan
from onnxshrink.channels.removal import Cut
from onnxshrink.channels.shares import Allocation
from onnxshrink.graph.file.model import Model
from onnxshrink.kernels.importance import believed_saving
from onnxshrink.pipeline import Context
from onnxshrink.progress import Progress
from onnxshrink.runtime.bench import ModelBench, bench
from onnxshrink.runtime.generate import generated_inputs

_ROUNDS = 15  # of each of the trials: times differ by more than the steps between more of them
_TRIALS = 6
_CLOSE = 0.03  # width of the interval of a ratio that decides a trial

#: The ratio of a plan's time, perhaps measured until it is known within so much.
Timed = Callable[[Plan, float | None], ModelBench]


def reach(
    plan: Plan, allocation: Allocation, first: Model, runs: Runs, goal: float, ctx: Context
) -> tuple[Plan, bool]:  # fmt: skip
    """The least that is measured to be as fast as was asked for, and whether it is.

    Groups compete by what they matter and by the time that their units were seen to save.

    Args:
        plan: What there is to choose from.
        allocation: How what goes is spread over groups.
        first: The model that the goal is relative to.
        runs: What two runs of the plan's model showed.
        goal: The share of the time that is to be left.
        ctx: The inputs, the seed, the progress, and where to make inputs up if there are none;
            what is timed obeys its limits.
    """
    model = plan.walk.model
    feeds = ctx.feeds[:4] or generated_inputs(model, 1, ctx.seed, worker=ctx.worker)
    with files.scratch() as folder:
        before, after = folder / "before.onnx", folder / "after.onnx"
        first.save(before, durable=False)

        def timed(trial: Plan, within: float | None) -> ModelBench:
            copy = model.clone()
            walk = labelled(copy, runs)
            same = replace(trial, walk=walk, groups=grouping.find(walk))
            if same.removed.any():
                Cut(walk, same.removed).apply()
            copy.save(after, durable=False)
            found = bench([before, after], feeds, rounds=_ROUNDS, within=within, worker=ctx.worker)
            return found.models[1]

        saved = _saved(plan, allocation, timed, ctx.progress)
        allocation = replace(allocation, everywhere=True, costs=saved)
        return allocation.reach(
            plan, lambda trial: timed(trial, _CLOSE).ratio <= goal, trials=_TRIALS
        )


def _saved(
    plan: Plan, allocation: Allocation, timed: Timed, progress: Progress
) -> dict[str, float]:
    """The share of the time that one unit of each group saves, with half of them gone.

    What is measured counts by how sure it is, against the share of the work.
    """
    saved: dict[str, float] = {}
    whole = cost(plan.walk).macs
    for group, trial, gone in allocation.halves(plan):
        progress("time of groups", len(saved), len(plan.groups))
        if group.name in plan.held or not gone:
            saved[group.name] = 0.0
            continue
        guess = 1 - cost(trial.walk, trial.removed).macs / max(whole, 1)
        seen = timed(trial, None)
        width = seen.ratio_high - seen.ratio_low
        saved[group.name] = believed_saving(guess, 1 - seen.ratio, width) / gone
    progress("time of groups", len(plan.groups), len(plan.groups))
    return saved
