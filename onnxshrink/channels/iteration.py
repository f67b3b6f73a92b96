"""The choice of one iteration: as many channels as bring the model so far towards its goal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from onnxshrink.channels import latency
from onnxshrink.channels.groups import Cost, cost
from onnxshrink.channels.losses import Losses
from onnxshrink.channels.plan import Plan
from onnxshrink.channels.refit import Removal
from onnxshrink.channels.request import Request
from onnxshrink.channels.shares import Allocation, Start
from onnxshrink.channels.survey import Survey, real_feeds
from onnxshrink.pipeline import Context


@dataclass(frozen=True)
class Iteration:
    """One of the iterations in which channels go.

    Attributes:
        request: What was asked for.
        found: What is known of the model as it is now.
        start: Where the first iteration began, which the goal is relative to.
        part: How much of the way is to be gone when this iteration is over, up to 1.
        ctx: The run.
    """

    request: Request
    found: Survey
    start: Start
    part: float
    ctx: Context

    def choose(self) -> Plan:
        """The channels that go.

        What is shared out by measured losses has to lose less than equal shares do. That is not
        looked at with a goal of latency, where plans take long to time.
        """
        request, plan = self.request, self.found.plan
        allocation = Allocation(
            request.ratios, request.scope == "global", request.round_to, request.minimum,
            self.start.sizes,
        )  # fmt: skip
        timed = request.goal.of == "latency"
        chosen, reached = plan, False
        if not (timed and self._measures):
            chosen, reached = self._reached(allocation)
        if self._measures and (timed or chosen.removed.any()):
            losses = Losses(self.removal(plan))
            curves = losses.curves(plan, allocation)
            costs = allocation.savings(plan, self._saved)
            measured = self._reached(replace(allocation, losses=curves, costs=costs))
            if timed or losses.of(measured[0]) <= losses.of(chosen):
                chosen, reached = measured
        if not reached:
            self.ctx.warn("the goal is out of reach: this is the most that can go")
        return chosen

    def removal(self, plan: Plan) -> Removal:
        """What carries out a plan for the model as it is now."""
        seen = self.found.seen if self.request.compensate else {}
        return Removal(self.ctx, plan, self.found.runs, seen, self.request.damping)

    @property
    def _measures(self) -> bool:
        """Whether losses are to be measured."""
        scope = self.request.scope
        return scope == "measured" or (scope == "auto" and bool(real_feeds(self.ctx)))

    @property
    def _saved(self) -> Callable[[Cost], float]:
        """What is to be saved: what the goal is about, or parameters and work alike."""
        goal, whole = self.request.goal, self.start.cost
        if goal.of == "macs":
            return lambda cost: cost.macs
        if goal.of == "bytes":
            return lambda cost: cost.nbytes
        return lambda cost: (
            cost.parameters / max(whole.parameters, 1) + cost.macs / max(whole.macs, 1)
        )

    def _reached(self, allocation: Allocation) -> tuple[Plan, bool]:
        """The choice of an allocation that goes this part of the way, and whether it gets there."""
        goal, plan, saved = self.request.goal, self.found.plan, self._saved
        left = goal.after(self.part)
        if goal.of == "latency":
            return latency.reach(
                plan, allocation, self.start.model, self.found.runs, left, self.ctx
            )
        if goal.of in ("macs", "bytes"):
            return allocation.reach_cost(plan, saved, left * saved(self.start.cost))
        equal = replace(allocation, losses={}).choose(plan, 1 - left)
        if not allocation.losses:
            return equal, True
        return allocation.reach_cost(plan, saved, saved(cost(plan.walk, equal.removed)))
