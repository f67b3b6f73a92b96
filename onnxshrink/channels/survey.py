"""What is known of a model before channels are chosen: its groups, their ranks, what is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxshrink.channels import groups as grouping
from onnxshrink.channels import ranking
from onnxshrink.channels.facts import Runs
from onnxshrink.channels.groups import Group
from onnxshrink.channels.labels import labelled
from onnxshrink.channels.plan import Plan, held
from onnxshrink.channels.probing import moments, probe_any
from onnxshrink.channels.readers import Consumer
from onnxshrink.channels.request import Request
from onnxshrink.errors import InputsMissing
from onnxshrink.graph.file.model import Model
from onnxshrink.kernels.refit import FeatureSums
from onnxshrink.pipeline import Context
from onnxshrink.trials import Feeds


@dataclass(frozen=True)
class Survey:
    """A model looked at, as it is before an iteration.

    Attributes:
        plan: Its groups and the ranks of their units; nothing is chosen yet.
        runs: What two runs of it showed.
        seen: Second moments of what its weights read; none without real inputs.
    """

    plan: Plan
    runs: Runs
    seen: Mapping[Consumer, FeatureSums]


def survey(model: Model, request: Request, ctx: Context, iteration: int = 0) -> Survey:
    """Label a model, find its groups and rank their units.

    Args:
        model: The model, which is only read.
        request: What may go, and what ranks it.
        ctx: The inputs, the seed, and where to run models.
        iteration: The number of the iteration, which random ranks depend on.

    Raises:
        RecipeError: A pattern matches nothing.
        InputsMissing: What was asked for needs real inputs, and there are none.
    """
    runs = probe_any(model, ctx.feeds, ctx.seed, ctx.worker)
    walk = labelled(model, runs)
    groups = grouping.find(walk)
    whole = _held(model, groups, request)
    real = real_feeds(ctx)
    _check_inputs(request, real)
    seen: dict[Consumer, FeatureSums] = {}
    if real and (request.compensate or request.importance in {"auto", *ranking.CALIBRATED}):
        seen = moments(walk, real, ctx.worker)
    rng = np.random.default_rng([ctx.seed, iteration])
    scores = ranking.score(walk, groups, request.importance, seen, rng)
    return Survey(Plan(walk, groups, scores, [], whole), runs, seen)


def real_feeds(ctx: Context) -> Feeds:
    """The inputs of a run if they are real: made-up ones are a bad thing to fit to."""
    return () if ctx.generated else ctx.feeds


def _held(model: Model, groups: Sequence[Group], request: Request) -> dict[str, str]:
    """Which groups stay whole, and why; refuses patterns that match nothing."""
    names = {name for node in model.nodes for name in (node.name, node.op_type) if name}
    names |= set(model.ir.graph.initializers)
    held(groups, request.ratios, (), names=names, option="layers")
    return held(groups, request.keep, request.units, names=names)


def _check_inputs(request: Request, real: Feeds) -> None:
    if request.importance in ranking.CALIBRATED and not real:
        raise InputsMissing(
            f"prune-channels: importance {request.importance} needs real inputs: give "
            "--calibration DATA, or rank by the weights alone, for instance with l2"
        )
    if request.scope == "measured" and not real:
        raise InputsMissing(
            "prune-channels: scope measured needs real inputs: give --calibration DATA, or "
            "use local or global"
        )
