"""The rounds of reconstruct: observe, fit, judge, and take back what did not help."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from onnxshrink.progress import counted
from onnxshrink.report import Change

if TYPE_CHECKING:
    import numpy as np

    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.layers.fitting import Fittable, Layer, Outline
    from onnxshrink.graph.weights.dependence import Origin
    from onnxshrink.kernels.leastsquares import Affine, Seen, Verdict
    from onnxshrink.passes.reconstruct import Reconstruct
    from onnxshrink.pipeline import Context

_log = logging.getLogger(__name__)

#: Squared error in share of the outputs' squares below which a layer is as it was: less is lost in
#: the rounding of the sums.
_SAME = 1e-6
_LEAST_GAIN = 1e-3
_TRIED_OUTPUTS = 32  # of a layer decide how strongly it is damped


@dataclass
class Reconstruction:
    """One application of the pass.

    Attributes:
        options: The pass.
        model: The model, whose constants are changed.
        ctx: Inputs, where to run models, and where to report.
        original: What the model's layers are compared with.
    """

    options: Reconstruct
    model: Model
    ctx: Context
    original: Model

    def run(self, outlines: Sequence[Outline]) -> None:
        """Refit these layers."""
        wanted = self.ctx.reference(self.original)
        error = wanted.distance(self.model)
        groups = _groups(outlines, self.options.rounds)
        for names in counted(self.ctx.progress, self.options.name, groups):
            before = self.model.clone()
            changes = self._round(names)
            if not changes:
                continue
            now = wanted.distance(self.model)
            if now < error:
                error = now
                self.ctx.step.changes += changes
            else:
                self.model.adopt(before)
                for change in changes:
                    self.ctx.skip(
                        change.what,
                        f"would take the error of the outputs from {error:.3g} to {now:.3g}",
                    )

    def _round(self, names: set[str]) -> list[Change]:
        """Refit the layers with these outputs, all to one observation of the model."""
        from onnxshrink.graph.layers import fitting
        from onnxshrink.runtime.compare_values import compute, regress

        worker = self.ctx.worker
        reader = fitting.LayerReader(self.model, lambda proto, feeds: compute(proto, feeds, worker))
        found = []
        for outline in fitting.outlines(self.model, self.original):
            if outline.output in names:
                try:
                    found.append(self._picked(reader.layer(outline)))
                except ValueError as error:
                    self.ctx.skip(outline.name or outline.output, str(error))
        sums = regress(
            self.model, self.original, [layer.need for layer in found], self.ctx.feeds,
            worker, self.ctx.progress,
        )  # fmt: skip
        changes = []
        for layer in found:
            if layer.need in sums:
                changes += self._layer(layer, *sums[layer.need].halves)
            else:
                reason = sums.refused[layer.need.value]
                self.ctx.skip(layer.name, f"cannot be compared with the original: {reason}")
        return changes

    def _picked(self, layer: Layer) -> Layer:
        """The layer, compared with those of the original's channels that are left."""
        import numpy as np

        from onnxshrink.kernels.pairs import ChannelPairs

        need, axes = layer.need, self.model.kept.get(layer.need.value)
        if axes is None:
            return layer
        layout = need.statistic.layout
        axis = layout.axis if isinstance(layout, ChannelPairs) else need.statistic.axis
        left, before = axes[axis], self.original.kept.get(need.value)
        if left is None:
            return layer
        if before is not None and (known := before[axis]) is not None:
            left = np.searchsorted(known, left)
        statistic = replace(need.statistic, picked=tuple(left.tolist()))
        return replace(layer, need=replace(need, statistic=statistic))

    def _layer(self, layer: Layer, even: Seen, odd: Seen) -> list[Change]:
        """Refit one layer, one kind of numbers after the other."""
        if min(even.samples, odd.samples) < 1:
            self.ctx.skip(layer.name, "too few inputs reach it: give more calibration inputs")
            return []
        total, held = even + odd, layer.held
        if not held.loss(total) > _SAME * float(total.yy.sum()):
            self.ctx.skip(layer.name, "is as in the original")
            return []
        parts = [part for part in layer.parts if self.options.allows(part.role)]
        changes: list[Change] = []
        reason = "has nothing that can be refitted"
        for part in parts:
            outcome = self._part(layer, part, held, (even, odd))
            if isinstance(outcome, str):
                reason = outcome
            else:
                held, rows = outcome
                changes += rows
        if not changes and layer.bias is not None and self.options.allows("biases"):
            outcome = self._part(layer, None, held, (even, odd))
            if isinstance(outcome, str):
                reason = outcome
            else:
                changes = outcome[1]
        if not changes:
            self.ctx.skip(layer.name, reason)
        return changes

    def _part(
        self, layer: Layer, part: Fittable | None, held: Affine, halves: tuple[Seen, Seen]
    ) -> tuple[Affine, list[Change]] | str:
        """Refit some numbers of a layer (None: its bias alone), or say why not."""
        shift = layer.bias is not None and self.options.allows("biases")
        verdict = self._verdict(part, held, halves, shift)
        figures = f"from {verdict.before**0.5:.3g} to {verdict.after**0.5:.3g}"
        if not verdict.after < verdict.before * (1 - _LEAST_GAIN):
            return f"on inputs that were not fitted to, the error would go {figures}"
        every = halves[0] + halves[1]
        stored: list[tuple[Origin, np.ndarray]] = []
        made = held
        if part is not None:
            numbers, _ = part.fit(held, every, verdict.damping, shift=shift)
            stored = [
                (origin, origin.rounded(values))
                for origin, values in zip(part.origins, numbers, strict=True)
            ]
            made = replace(held, matrix=part.matrix([numbers for _, numbers in stored]))
        if shift:
            assert layer.bias is not None
            made = made.shifted(every)
            stored.append((layer.bias, layer.bias.rounded(layer.shifts(made))))
        if not made.loss(every) < held.loss(every):
            return "the types that its numbers are stored in are too coarse"
        return made, [
            self._store(layer, origin, values, verdict, "" if part is None else part.role)
            for origin, values in stored
        ]

    def _verdict(
        self, part: Fittable | None, held: Affine, halves: tuple[Seen, Seen], shift: bool
    ) -> Verdict:
        """What each half of the samples says of a fit to the other one."""
        import numpy as np

        from onnxshrink.kernels import leastsquares

        def judged(
            part: Fittable | None,
            held: Affine,
            halves: tuple[Seen, Seen],
            dampings: Sequence[float],
        ) -> Verdict:
            def fit(seen: Seen, damping: float) -> Affine:
                if part is None:
                    return held.shifted(seen)
                return part.fit(held, seen, damping, shift=shift)[1]

            return leastsquares.judge(held, halves, fit, dampings)

        if part is None:
            return judged(part, held, halves, (1.0,))
        if self.options.damping is not None:
            return judged(part, held, halves, (self.options.damping,))
        outputs = held.matrix.shape[1]
        if outputs <= _TRIED_OUTPUTS or not part.separable:
            return judged(part, held, halves, leastsquares.DAMPINGS)
        some = np.unique(np.linspace(0, outputs - 1, _TRIED_OUTPUTS).astype(np.int64))
        first, second = halves
        tried = judged(
            part.some(some), held.some(some), (first.some(some), second.some(some)),
            leastsquares.DAMPINGS,
        )  # fmt: skip
        return judged(part, held, halves, (tried.damping,))

    def _store(
        self, layer: Layer, origin: Origin, values: np.ndarray, verdict: Verdict,
        role: str,
    ) -> Change:  # fmt: skip
        from onnxshrink.graph import surgery

        surgery.set_constant(self.model, origin.value, origin.stored(values))
        role = "bias" if origin is layer.bias else role
        note = f"{role} of {layer.name} refitted"
        if role != "bias":
            note += f", damping {verdict.damping:g}"
        return Change(
            origin.value.name or "", layer.node.op_type, origin.tensor.nbytes,
            origin.tensor.nbytes, note,
            {"error_before": verdict.before**0.5, "error_after": verdict.after**0.5},
        )  # fmt: skip


def _groups(outlines: Sequence[Outline], rounds: int) -> list[set[str]]:
    """Outputs of layers that are refitted together: those as deep, as many depths as it takes."""
    depths = sorted({outline.depth for outline in outlines})
    parts = min(rounds, len(depths))
    place = {depth: number * parts // len(depths) for number, depth in enumerate(depths)}
    groups: list[set[str]] = [set() for _ in range(parts + 1)]
    products = {place[outline.depth] for outline in outlines if outline.norm is None}
    for outline in outlines:
        # What a norm adds and multiplies shows at its output only: what comes before must be done.
        late = outline.norm is not None and parts < len(depths) and place[outline.depth] in products
        groups[place[outline.depth] + late].add(outline.output)
    return groups
