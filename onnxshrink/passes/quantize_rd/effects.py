"""What noise in each weight does to the outputs, told by gradients: a run back for all at once."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

from onnxshrink.errors import ModelError
from onnxshrink.progress import Progress, counted, silent

if TYPE_CHECKING:
    import numpy as np

    from onnxshrink.goal import Goal
    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.weights.views import WeightView
    from onnxshrink.kernels.fidelity import Measure
    from onnxshrink.runtime.worker import Worker
    from onnxshrink.trials import Feeds

    Arrays = Mapping[str, np.ndarray]

_log = logging.getLogger(__name__)
_MIDDLING = 0.5  # standard deviations: the step at which a layer's effect is first measured
_RUNS = 8  # at least: one direction of the outputs each
_AT_ONCE = 2**28  # bytes of weights whose gradients are computed together
FINER = (1, 4, 16)  # shares of a step at which what decides is measured: the worst of them counts
FEW = 4  # weights: for fewer, a run with the noise of each is as fast, and exact


def by_gradients(
    model: Model, noise: Mapping[WeightView, np.ndarray], feeds: Feeds, goal: Goal,
    measure: Measure, worker: Worker, seed: int = 0, progress: Progress = silent,
) -> dict[str, float]:  # fmt: skip
    """The distortion of the outputs that noise in each weight alone would cause, if it is small.

    A run back gives the gradients of the outputs' part along a random direction, of all weights at
    once. What noise moves that part by is the sum of gradient times noise, and the mean of its
    square over directions is the distortion. The noise of one output channel says nothing of that
    of another, so each row of a weight is summed by itself and the squares are added: a matrix of
    hundreds of rows then needs few directions.

    Args:
        model: The model; it is left as it is.
        noise: By weight what is to be added to it, laid out as ``WeightView.matrix``.
        feeds: Inputs.
        goal: What the distortion is of; see ``Fidelity.distortion``.
        measure: See ``Fidelity``.
        worker: Where to run. No other model may be in use there.
        seed: Chooses the directions.
        progress: Told how far it is.

    Returns:
        The distortion by name of the weight: of those that gradients reach on all ways, and on
        which no decision depends.
    """
    import numpy as np

    from onnxshrink.graph.analysis.noise import is_random
    from onnxshrink.graph.analysis.ranked import deciding, entering, exposed
    from onnxshrink.runtime.decoding.steps import DecodingStep
    from onnxshrink.trials import answers

    jumps = deciding(model)
    views = [v for v in noise if _home(v) is model.ir.graph and v.name not in jumps]
    if len(views) < FEW or any(isinstance(feed, DecodingStep) for feed in feeds):
        return {}
    if tail := entering(model).values:  # no gradient comes through what ranks
        model = exposed(model, tail)
    # Below each feed is run by itself, and draws what a first run draws.
    parts = [[feed] for feed in feeds] if is_random(model) else [feeds]
    found = [answers(model, part, worker).plain for part in parts]
    before = replace(
        found[0], outputs=[row for one in found for row in one.outputs],
        following=[each for one in found for each in one.following],
    )  # fmt: skip
    reference, rounds = goal.holder(before, measure=measure), -(-_RUNS // len(feeds))

    def runs() -> Iterator[tuple[Arrays, Arrays]]:
        rng = np.random.default_rng(seed)
        for _ in range(rounds):
            for feed, along in zip(feeds, reference.directions(rng), strict=True):
                yield feed, {before.names[number]: array for number, array in along.items()}

    effects: dict[str, float] = {}
    try:
        for group in counted(progress, "measuring sensitivities", [*_parts(views)]):
            effects |= _effects(model, {view: noise[view] for view in group}, runs(), worker)
    except ModelError as error:
        _log.info("ONNX Runtime computes no gradients: %s", error)
    return {name: effect / rounds for name, effect in effects.items() if np.isfinite(effect)}


def _effects(
    model: Model, noise: Mapping[WeightView, np.ndarray], runs: Iterator[tuple[Arrays, Arrays]],
    worker: Worker,
) -> dict[str, float]:  # fmt: skip
    """The sums over all runs, by name of the weight: each is a feed and directions of outputs."""
    import numpy as np

    from onnxshrink.graph.gradients import differentiate
    from onnxshrink.trials import Exchange

    first = next(runs)
    made = differentiate(model, [*first[1]], [view.name for view in noise])
    for stop in made.stops:
        _log.info("no gradients: %s", stop)
    unsure = frozenset[str]().union(*(stop.behind for stop in made.stops))
    gradients = {name: made.gradients[name] for name in made.gradients if name not in unsure}
    kinds = {value.name: value.dtype.numpy() for value in made.model.inputs if value.dtype}
    found = dict.fromkeys(gradients, 0.0)
    if not found:
        return found
    with closing(Exchange(made.model, (), worker)) as exchange:
        for feed, along in chain([first], runs):
            seeds = {made.seeds[name]: array for name, array in along.items()}
            seeds = {name: array.astype(kinds[name]) for name, array in seeds.items()}
            told = exchange.answers([{**feed, **seeds}])
            values = dict(zip(told.names, told.outputs[0], strict=True))
            for view in noise:
                if view.name in gradients:
                    gradient = view.to_matrix(values[gradients[view.name]])
                    moved = np.einsum("ij,ij->i", gradient, noise[view], dtype=np.float64)
                    found[view.name] += float(np.square(moved).sum())
    return found


def _home(view: WeightView) -> object:
    """The graph that a weight lies in."""
    maker = view.value.producer()
    return view.value.graph if maker is None else maker.graph


def _parts(views: Sequence[WeightView]) -> Iterator[list[WeightView]]:
    """Weights, as many at once as their gradients may be."""
    part: list[WeightView] = []
    for view in views:
        if part and sum(each.nbytes for each in (*part, view)) > _AT_ONCE:
            yield part
            part = []
        part.append(view)
    if part:
        yield part


def middling(weights: np.ndarray) -> float:
    """A step at which the effect of a tensor's noise is told, of numbers around zero."""
    import numpy as np

    return _MIDDLING * float(np.sqrt(np.square(weights).mean())) or 1.0
