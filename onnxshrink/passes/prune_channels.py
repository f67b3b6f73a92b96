"""Remove whole channels, neurons and heads: smaller tensors and less work on every runtime."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from onnxshrink.errors import RecipeError
from onnxshrink.options import option
from onnxshrink.pipeline import Context, Pass

if TYPE_CHECKING:
    from onnxshrink.contract import Feeds
    from onnxshrink.graph.channels.allocate import Allocation, Start
    from onnxshrink.graph.channels.consumers import Consumer
    from onnxshrink.graph.channels.facts import Runs
    from onnxshrink.graph.channels.plan import Plan
    from onnxshrink.graph.channels.walk import Walk
    from onnxshrink.graph.model import Model
    from onnxshrink.kernels.refit import Moments
    from onnxshrink.report import Table
    from onnxshrink.runtime.worker import Worker

_ROUNDS = 15  # of each of the trials: times differ by more than the steps between more of them
_TRIALS = 6
_MOST = 0.95  # more leaves nothing of a layer


@dataclass(frozen=True, kw_only=True)
class PruneChannels(Pass):
    """Remove whole channels, neurons and heads, in all tensors that share them.

    The graph is followed from operator to operator to find which weights must go together; where
    an operator is not known, everything around it stays whole, and the report says so. The result
    has smaller tensors, and runs faster without any support from the runtime.

    With calibration inputs, the weights that read removed channels are refitted by least squares
    to make up for them. Beyond 10 or 20 % a model usually needs training afterwards.
    """

    runs_models: ClassVar[bool] = True

    ratio: float = option(
        0.2, help="share of each group of channels to remove (of all costs, with scope: global)",
        ge=0, le=_MOST,
    )  # fmt: skip
    flops: float | None = option(
        None, help="remove as much as leaves this share of the multiply-accumulates", ge=0.01, le=1
    )
    bytes: float | None = option(
        None, help="remove as much as leaves this share of the weights' bytes", ge=0.01, le=1
    )
    latency: float | None = option(
        None, help="remove as much as leaves this share of the time in ONNX Runtime", ge=0.01, le=1
    )
    layers: Mapping[str, Any] = option(
        {}, help="other ratios by name of a weight, node or operator: '{Gemm: 0.5, head*: 0}'"
    )
    importance: Literal[
        "auto", "l1", "l2", "bn-gamma", "activation", "variance", "hessian", "random"
    ] = option(
        "auto", help="what ranks channels; auto: hessian with inputs, l2 without; activation, "
        "variance and hessian need inputs",
    )  # fmt: skip
    scope: Literal["local", "global"] = option(
        "local", help="the same share of every group, or the least important channels anywhere"
    )
    units: tuple[Literal["channels", "heads", "head-dimensions", "width"], ...] = option(
        (), help="what may go; by default all, but of heads and their dimensions the finer"
    )
    keep: tuple[str, ...] = option(
        (), help="leave groups with these weights, nodes or operators alone: names or patterns"
    )
    round_to: int = option(
        8, help="keep channels in multiples of this, which kernels are fast for", ge=1, le=1024
    )
    minimum: int = option(1, help="channels that every group keeps", ge=1)
    iterations: int = option(1, help="steps in which to remove, each ranked anew", ge=1, le=100)
    compensate: bool = option(
        True, help="refit the weights that read removed channels, when there are inputs"
    )
    damping: float = option(
        0.01, help="how closely refitted weights stay to the old ones", ge=1e-6, le=100
    )

    @property
    def bound(self) -> float:
        """The error of an output of nothing but zeros.

        What a model can lose before training repairs it cannot be told from its outputs, but one
        that is further off than zeros has kept nothing worth the name.
        """
        return 1.0

    def apply(self, model: Model, ctx: Context) -> None:
        """Find, rank and remove; report what every constant lost, and what blocked the rest."""
        from onnxshrink.graph.channels.consumers import compensate
        from onnxshrink.graph.channels.cut import Cut
        from onnxshrink.graph.channels.facts import nbytes_of
        from onnxshrink.graph.channels.plan import blocked
        from onnxshrink.runtime.worker import Worker

        start: Start | None = None
        with contextlib.ExitStack() as stack:
            worker = ctx.worker or stack.enter_context(Worker())
            for step in range(self.iterations):
                ctx.progress(self.name, step, self.iterations)
                plan, seen, start = self._planned(model, ctx, worker, step, start)
                reasons, removed = blocked(plan.walk), plan.removed
                if not removed.any():
                    continue
                refitted = []
                if self.compensate:
                    refitted = compensate(plan.walk, seen, removed, self.damping)
                shortened = Cut(plan.walk, removed).apply()
                names = {constant.name for constant in shortened}
                for name, nbytes in {v.name or "": nbytes_of(v) for v in refitted}.items():
                    if name not in names:
                        ctx.changed(name, nbytes, before=nbytes, note="refitted")
                for constant in shortened:
                    ctx.changed(
                        constant.name, constant.nbytes_after, before=constant.nbytes_before,
                        kind=constant.op_type,
                        note=f"{list(constant.before)} -> {list(constant.after)}",
                    )  # fmt: skip
        for group in plan.groups:
            if why := plan.held.get(group.name, ""):
                ctx.skip(group.name, why)
        for reason in reasons:
            ctx.skip(reason.rpartition(": ")[0] or reason, reason)

    def preview(self, model: Model, feeds: Feeds = (), seed: int = 0) -> Plan:
        """What the first step would remove; the model is left as it is."""
        from onnxshrink.report import Step
        from onnxshrink.runtime.worker import Worker

        copy = model.clone()
        with Worker() as worker:
            ctx = Context(Step(self.name), feeds, seed=seed)
            return self._planned(copy, ctx, worker, 0, None)[0]

    def explain(self, model: Model, what: str, feeds: Feeds = ()) -> list[Table]:
        """What goes together with a node, weight or group, and what blocks it.

        Raises:
            RecipeError: Nothing has this name.
        """
        from onnxshrink.graph.channels import groups
        from onnxshrink.graph.channels.plan import explain
        from onnxshrink.runtime.probe import probe_any
        from onnxshrink.runtime.worker import Worker

        with Worker() as worker:
            walk = _labelled(model, probe_any(model, feeds, 0, worker))
        return explain(walk, groups.find(walk), what)

    def __post_init__(self) -> None:
        super().__post_init__()
        goals = [goal for goal in ("flops", "bytes", "latency") if getattr(self, goal) is not None]
        if len(goals) > 1:
            raise RecipeError(f"{self.name}: give one of {' and '.join(goals)}, not both")
        for pattern, ratio in self.layers.items():
            number = isinstance(ratio, int | float) and not isinstance(ratio, bool)
            if not number or not 0 <= ratio <= _MOST:
                raise RecipeError(
                    f"{self.name}: layers: {pattern!r} takes a ratio from 0 to {_MOST}, "
                    f"not {ratio!r}"
                )

    # ---------------------------------------------------------------------- one step

    def _planned(
        self, model: Model, ctx: Context, worker: Worker, step: int, start: Start | None
    ) -> tuple[Plan, dict[Consumer, Moments], Start]:
        """Label a model, which is only read, and choose what goes in a step."""
        import numpy as np

        from onnxshrink.graph.channels import groups as grouping
        from onnxshrink.graph.channels import score
        from onnxshrink.graph.channels.allocate import Allocation, Start
        from onnxshrink.graph.channels.plan import Plan, held
        from onnxshrink.runtime.probe import moments, probe_any

        runs = probe_any(model, ctx.feeds, ctx.seed, worker)
        walk = _labelled(model, runs)
        groups = grouping.find(walk)
        names = {name for node in model.nodes for name in (node.name, node.op_type) if name}
        names |= set(model.ir.graph.initializers)
        whole = held(groups, self.keep, self.units, names=names)
        held(groups, self.layers, (), names=names)  # refuses patterns that match nothing
        rng = np.random.default_rng([ctx.seed, step])
        seen: dict[Consumer, Moments] = {}
        real = ctx.feeds if not ctx.generated else ()  # made-up inputs are a bad thing to fit to
        if self.importance in score.CALIBRATED and not real:
            raise RecipeError(f"{self.name}: importance {self.importance} needs real inputs")
        if real and (self.compensate or self.importance in {"auto", *score.CALIBRATED}):
            seen = moments(walk, real, rng, worker)
        scores = score.score(walk, groups, self.importance, seen, rng)
        plan = Plan(walk, groups, scores, [], whole)
        start = start or Start.of(plan)
        allocation = Allocation(
            self.layers, self.scope == "global", self.round_to, self.minimum, start.sizes
        )
        part = (step + 1) / self.iterations
        if self.flops is not None:
            most = self.flops**part * start.cost.macs
            plan = allocation.reach_cost(plan, lambda cost: cost.macs, most)
        elif self.bytes is not None:
            most = self.bytes**part * start.cost.nbytes
            plan = allocation.reach_cost(plan, lambda cost: cost.nbytes, most)
        elif self.latency is not None:
            goal = self.latency**part
            plan = self._to_latency(plan, allocation, start, runs, ctx, worker, goal)
        else:
            plan = allocation.choose(plan, 1 - (1 - self.ratio) ** part)
        return plan, seen, start

    def _to_latency(
        self, plan: Plan, allocation: Allocation, start: Start, runs: Runs, ctx: Context,
        worker: Worker, goal: float,
    ) -> Plan:  # fmt: skip
        """The smallest ratio that is measured to be as fast as was asked for."""
        from onnxshrink.graph.channels import groups as grouping
        from onnxshrink.graph.channels.cut import Cut
        from onnxshrink.runtime.bench import bench
        from onnxshrink.runtime.generate import generated_inputs

        model = plan.walk.model
        feeds = ctx.feeds[:4] or generated_inputs(model, 1, ctx.seed, worker=worker)
        with tempfile.TemporaryDirectory(prefix="onnxshrink-") as folder:
            first, other = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
            start.model.save(first, durable=False)

            def fast(trial: Plan) -> bool:
                copy = model.clone()
                walk = _labelled(copy, runs)
                same = replace(trial, walk=walk, groups=grouping.find(walk))
                if not same.removed.any():
                    return False
                Cut(walk, same.removed).apply()
                copy.save(other, durable=False)
                return bench([first, other], feeds, rounds=_ROUNDS).models[1].ratio <= goal

            return allocation.reach(plan, fast, trials=_TRIALS)


def _labelled(model: Model, runs: Runs) -> Walk:
    from onnxshrink.graph.channels.facts import Facts
    from onnxshrink.graph.channels.walk import analyse

    return analyse(model, Facts(model, runs))
