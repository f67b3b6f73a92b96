"""The other half of ``correct-bias``: means are measured on both models, and biases moved."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onnxshrink.contract import Judge, Settings
from onnxshrink.pipeline import Context
from onnxshrink.report import Change

if TYPE_CHECKING:
    import numpy as np

    from onnxshrink.graph.layers import Outline
    from onnxshrink.graph.model import Model
    from onnxshrink.kernels.observers import Need
    from onnxshrink.runtime.worker import Worker


_TINY = 1e-30
_FAR = 1e6  # an error that is infinite is one of these


class Correction:
    """Holds a model's layers to the means of another's.

    Args:
        model: The model; replaced by the corrected one where that is closer to the original.
        original: The model before it was compressed.
        ctx: Where to report.
        worker: Where to run.
    """

    def __init__(self, model: Model, original: Model, ctx: Context, worker: Worker):
        from onnxshrink.graph import operands

        self._model, self._original, self._ctx, self._worker = model, original, ctx, worker
        self._before = {value.name: tensor for value, tensor in operands.constants(original)}
        self._now = {value.name: tensor for value, tensor in operands.constants(model)}

    def why_not(self, outline: Outline) -> str:
        """Why a layer needs no correction, or can have none; empty when it can."""
        import numpy as np

        from onnxshrink.graph import bias, tensors

        if not outline.known:
            return f"the original model has no value {outline.output!r}"
        before, now = self._before.get(outline.name), self._now.get(outline.name)
        if before is not None and now is not None:
            same = tuple(before.shape) == tuple(now.shape) and before.dtype == now.dtype
            same = same and np.array_equal(before.numpy(), now.numpy(), equal_nan=True)
            tensors.release(before)
            tensors.release(now)
            if same:
                return "its weight is as in the original"
        return bias.why_not(outline)

    def run(self, chosen: Sequence[Outline], rounds: int | None) -> None:
        """Correct layer after layer; keep it if the outputs are closer to the original's."""
        from onnxshrink.graph import layers

        judge = Judge(self._original, Settings(feeds=self._ctx.feeds), self._worker)
        judge.settle()
        wanted = self._means(self._original, chosen)
        trial = self._model.clone()
        rows: list[Change] = []
        for part in _in_rounds(chosen, rounds):
            outputs = {outline.output for outline in part}
            # The same layers in the model as it is by now.
            found = [o for o in layers.outlines(trial, self._original) if o.output in outputs]
            means = self._means(trial, found)
            for outline in found:
                self._ctx.progress("correcting biases", len(rows), len(chosen))
                rows += self._correct(trial, outline, wanted, means)
        before, after = (_distance(judge, model) for model in (self._model, trial))
        if not after < before:
            for outline in chosen:
                self._ctx.skip(outline.name, "corrections bring the outputs no closer")
        elif rows:
            self._model.adopt(trial)
            self._ctx.step.changes.extend(rows)

    def _correct(
        self, trial: Model, outline: Outline, wanted: Mapping[str, Any], means: Mapping[str, Any]
    ) -> Iterator[Change]:
        """Move the bias of one layer by what its means are off."""
        import numpy as np

        from onnxshrink.graph import bias

        name = outline.output
        if name not in wanted or name not in means:
            self._ctx.skip(outline.name, "its output could not be observed")
        elif wanted[name].shape != means[name].shape:
            self._ctx.skip(outline.name, "its channels are not those of the original")
        else:
            off = wanted[name] - means[name]
            what, old, new = bias.shift(trial, outline, off, self._before.get(outline.name))
            size = float(np.linalg.norm(off) / max(np.linalg.norm(wanted[name]), _TINY))
            note = f"mean outputs of {outline.name} were {size:.2g} off"
            yield Change(what, outline.op_type, old, new, note, {"mean_error": size})

    def _means(self, model: Model, outlines: Iterable[Outline]) -> dict[str, np.ndarray]:
        """Mean output of every channel, by the name of the output; without what was not seen."""
        from onnxshrink.runtime.calibrate import calibrate

        needs = {outline.output: _need(outline) for outline in outlines}
        found = calibrate(model, needs.values(), self._ctx.feeds, self._worker)
        return {name: found[need].mean for name, need in needs.items() if need in found}


def _need(outline: Outline) -> Need:
    from onnxshrink.graph import bias
    from onnxshrink.kernels.observers import Extremes, Need

    return Need(outline.output, Extremes(bias.axis(outline)))


def _in_rounds(chosen: Sequence[Outline], rounds: int | None) -> Iterator[list[Outline]]:
    """Layers by how many come before them, in so many rounds of about as many depths."""
    import numpy as np

    depths = sorted({outline.depth for outline in chosen})
    count = min(rounds or len(depths), len(depths))
    for part in np.array_split(depths, count):
        yield [outline for outline in chosen if outline.depth in part]


def _distance(judge: Judge, model: Model) -> float:
    """Squared relative error over all outputs; those of nothing but zeros have none."""
    effect, _ = judge.effect(model)
    errors = [row.relative_error for row in effect if row.max_abs > 0]
    return math.fsum(min(error, _FAR) ** 2 for error in errors)
