"""Which small weights and vectors bear fewer bits at all; asked before the others are."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from onnxshrink.kernels.bisection import most_tolerated
from onnxshrink.passes.quantize_rd.plain_weights import MORE_BITS, eight_bits, finer, kept_at_eight
from onnxshrink.pipeline import Context
from onnxshrink.trials import Answers, Exchange

if TYPE_CHECKING:
    import numpy as np

    from onnxshrink.goal import Goal
    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.weights.views import WeightView
    from onnxshrink.passes.quantize_rd import QuantizeRd

_log = logging.getLogger(__name__)
_FIDELITY = 0.99
_EXACT = 1e-9  # a fidelity of 1 is asked for: this much may be lost
_SHARE = 0.5  # of what may be lost, for the small and the vectors, which save little
_FEEDS = 8  # of each half
_TRIES = 16
_WHY = "the outputs need all its bits: fewer lose more than the other weights could make up for"


def losses(
    options: QuantizeRd, goal: Goal, before: Answers, others: Sequence[Sequence[np.ndarray]]
) -> Callable[[Answers], float]:
    """What tells how much of that which may be lost answers lose.

    Args:
        options: The goal of the step, and the measure of it.
        goal: That of the run.
        before: What the model answers to the inputs that judge.
        others: What it answers to others.
    """
    if options.min_fidelity is None and options.measure == "auto":
        strain = goal.strain(before, others)
        return lambda after: strain(after.outputs)
    least = _FIDELITY if options.min_fidelity is None else options.min_fidelity
    reference = goal.holder(before, others, options.measure)
    return lambda after: (1 - reference.score(after.outputs)) / max(1 - least, _EXACT)


def delicate(
    model: Model, views: Sequence[WeightView], vectors: Sequence[WeightView],
    options: QuantizeRd, ctx: Context,
) -> set[WeightView]:  # fmt: skip
    """Weights without a grid of their own, and vectors, that have to stay as they are.

    Frequencies that are multiplied with times are such: all the bits that are spent on others do
    not bring back the phases that they lose. Each is reported.

    Args:
        model: The model.
        views: Weights that are to become integers.
        vectors: Biases and parameters of norms, which are to become float16.
        options: The goal of the step.
        ctx: Inputs, and where to run trials.
    """
    named = Counter(view.name for view in (*views, *vectors))
    known = {view.name: view for view in (*views, *vectors) if named[view.name] == 1}
    key = (__name__, model.digest(), options.measure, *known)
    if key not in ctx.findings:
        ctx.findings[key] = _found(model, known, options, ctx)
    left = {known[name] for name in ctx.findings[key]}
    for view in left:
        ctx.skip(view, _WHY)
    return left


def _found(
    model: Model, known: dict[str, WeightView], options: QuantizeRd, ctx: Context
) -> frozenset[str]:
    """The names of those."""
    narrow = {name: values for name, view in known.items()
              if (values := _narrowed(view, options)) is not None}  # fmt: skip
    order = sorted(narrow, key=lambda name: -known[name].nbytes)
    split = ctx.split
    fit = split.of(ctx.feeds, split.fit)[:_FEEDS]
    judge = split.of(ctx.feeds, split.judge)[:_FEEDS]
    with closing(Exchange(model, order, ctx.worker, whole=True)) as exchange:
        order = [name for name in order if name not in exchange.refused]
        before = exchange.answers(judge)
        lost = losses(options, ctx.goal, before, exchange.answers(fit).outputs)

        def tolerated(names: Sequence[str]) -> bool:
            loss = lost(exchange.answers(judge, {name: narrow[name] for name in names}))
            _log.info("%d small weights lose %.3f of what may be lost", len(names), loss)
            return loss <= _SHARE

        if not order or tolerated(order):
            return frozenset()
        return frozenset(order) - {*most_tolerated(order, tolerated, _TRIES)}


def _narrowed(view: WeightView, options: QuantizeRd) -> np.ndarray | None:
    """What a small weight or a vector would be, at its finest; None of others."""
    from onnxshrink.graph.forms import integer_codes
    from onnxshrink.kernels import affine
    from onnxshrink.passes.to_float16 import in_half

    if integer_codes.takes(view) or (view.uses and not kept_at_eight(view)):
        return None
    values: np.ndarray | None
    if view.uses:
        more = 0 if options.beside_integers else MORE_BITS
        values = affine.dequantize(finer(view, eight_bits(view), more))
    else:
        values = in_half(view.array())
        view.release()
    return None if values is None else values.astype(view.dtype.numpy())
