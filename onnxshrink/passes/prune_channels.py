"""Remove whole channels, neurons and heads: smaller tensors and less work on every runtime."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from onnxshrink.channels.request import ChannelGoal, Importance, Request, Scope, Units
from onnxshrink.errors import RecipeError
from onnxshrink.options import option
from onnxshrink.pipeline import Context, Pass
from onnxshrink.progress import counted

if TYPE_CHECKING:
    from onnxshrink.channels.plan import Plan
    from onnxshrink.graph.file.model import Model
    from onnxshrink.report import Table
    from onnxshrink.runtime.worker import Worker
    from onnxshrink.trials import Feeds

_MOST = 0.95  # more leaves nothing of a layer


@dataclass(frozen=True, kw_only=True)
class PruneChannels(Pass):
    """Remove whole channels, neurons and heads, in all tensors that share them.

    The graph is followed from operator to operator to find which weights must go together; where
    an operator is not known, everything around it stays whole, and the report says so. The result
    has smaller tensors, and runs faster without any support from the runtime.

    With calibration inputs, the weights that read removed channels are refitted by least squares
    to make up for them. Every fourth input is held out: on these it is tried how closely each
    weight is to stay to what it was, and whether the outputs are closer with the new weights; only
    then are they taken, fitted to all inputs. Beyond 10 or 20 % a model usually needs training
    afterwards.
    """

    runs_models: ClassVar[bool] = True

    ratio: float = option(
        0.2, help="share of each group of channels to remove; of all costs with scope: global, and "
        "with measured as much as that share of each group would save",
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
    importance: Importance = option(
        "auto", help="what ranks channels; auto: hessian with inputs, l2 without; hessian: by the "
        "error that the others cannot make up for; greedy: the same, one after the other, slower; "
        "these two, activation and variance need inputs",
    )  # fmt: skip
    scope: Scope = option(
        "auto", help="local: the same share of every group; global: the least important channels "
        "anywhere; measured: as much in all as with local, more of the groups that the outputs "
        "need less, which is tried out on inputs; auto: measured with inputs, local without",
    )  # fmt: skip
    units: tuple[Units, ...] = option(
        (), help="what may go; by default all, but of heads and their dimensions the finer"
    )
    keep: tuple[str, ...] = option(
        (), help="leave groups with these weights, nodes or operators alone: names or patterns"
    )
    round_to: int = option(
        8, help="keep channels in multiples of this, which kernels are fast for; of half of it, "
        "but 4 at the least, where that would miss the goal",
        ge=1, le=1024,
    )  # fmt: skip
    minimum: int = option(1, help="channels that every group keeps", ge=1)
    iterations: int = option(1, help="steps in which to remove, each ranked anew", ge=1, le=100)
    compensate: bool = option(
        True, help="refit the weights that read removed channels, when there are inputs"
    )
    damping: float | None = option(
        None, help="how closely refitted weights stay to the old ones; by default tried out on "
        "inputs that were not fitted to", ge=1e-6, le=100,
    )  # fmt: skip

    inlines = True

    @property
    def bound(self) -> float:
        """The error of an output of nothing but zeros.

        What a model can lose before training repairs it cannot be told from its outputs, but one
        that is further off than zeros has kept nothing worth the name.
        """
        return 1.0

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

    def apply(self, model: Model, ctx: Context) -> None:
        """Find, rank and remove; report what every constant lost, and what blocked the rest."""
        from onnxshrink.channels.iteration import Iteration
        from onnxshrink.channels.plan import blocked
        from onnxshrink.channels.readers import not_refitted
        from onnxshrink.channels.shares import Start
        from onnxshrink.channels.survey import real_feeds, survey

        request, left = self._request(), dict[str, str]()
        refits = self.compensate and bool(real_feeds(ctx))
        start: Start | None = None
        for number in counted(ctx.progress, self.name, range(self.iterations)):
            found = survey(model, request, ctx, number)
            start = start or Start.of(found.plan)
            part = (number + 1) / self.iterations
            iteration = Iteration(request, found, start, part, ctx)
            plan = iteration.choose()
            reasons = blocked(plan.walk)
            if plan.removed.any():
                left |= not_refitted(plan.walk, plan.removed) if refits else {}
                iteration.removal(plan).carry_out()
        for name, reason in sorted(left.items()):
            ctx.skip(name, reason)
        for group in plan.groups:
            if why := plan.held.get(group.name, ""):
                ctx.skip(group.name, why)
        for reason in reasons:
            ctx.skip(reason.rpartition(": ")[0] or reason, reason)

    def preview(
        self, model: Model, feeds: Feeds = (), seed: int = 0, *, generated: bool = False,
        worker: Worker | None = None,
    ) -> Plan:  # fmt: skip
        """What the first iteration would remove; the model is left as it is."""
        from onnxshrink.channels.iteration import Iteration
        from onnxshrink.channels.shares import Start
        from onnxshrink.channels.survey import survey
        from onnxshrink.report import Step
        from onnxshrink.runtime.worker import Worker

        with contextlib.ExitStack() as stack:
            worker = worker or stack.enter_context(Worker())
            ctx = Context(Step(self.name), feeds, generated, worker=worker, seed=seed)
            request = self._request()
            found = survey(model.clone(), request, ctx)
            start, part = Start.of(found.plan), 1 / self.iterations
            return Iteration(request, found, start, part, ctx).choose()

    def explain(
        self, model: Model, what: str, feeds: Feeds = (), seed: int = 0, *,
        worker: Worker | None = None,
    ) -> list[Table]:  # fmt: skip
        """What goes together with a node, weight or group, and what blocks it.

        Raises:
            RecipeError: Nothing has this name.
        """
        from onnxshrink.channels import groups
        from onnxshrink.channels.labels import labelled
        from onnxshrink.channels.plan import explain
        from onnxshrink.channels.probing import probe_any
        from onnxshrink.runtime.worker import Worker

        with contextlib.ExitStack() as stack:
            worker = worker or stack.enter_context(Worker())
            walk = labelled(model, probe_any(model, feeds, seed, worker))
        return explain(walk, groups.find(walk), what)

    def _request(self) -> Request:
        """What is asked of the channels' house."""
        goal = ChannelGoal("units", 1 - self.ratio)
        if self.flops is not None:
            goal = ChannelGoal("macs", self.flops)
        elif self.bytes is not None:
            goal = ChannelGoal("bytes", self.bytes)
        elif self.latency is not None:
            goal = ChannelGoal("latency", self.latency)
        return Request(
            goal=goal, ratios=self.layers, importance=self.importance, scope=self.scope,
            units=self.units, keep=self.keep, round_to=self.round_to, minimum=self.minimum,
            compensate=self.compensate, damping=self.damping,
        )  # fmt: skip
