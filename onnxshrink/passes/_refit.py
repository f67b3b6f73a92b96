"""Carrying out what prune-channels planned, and making up for it as far as that is seen to help."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from onnxshrink.contract import Feeds
    from onnxshrink.graph.channels.consumers import Consumer
    from onnxshrink.graph.channels.cut import Shortened
    from onnxshrink.graph.channels.facts import Runs
    from onnxshrink.graph.channels.plan import Plan
    from onnxshrink.graph.model import Model
    from onnxshrink.kernels.refit import Array, Choice, Moments
    from onnxshrink.passes.prune_channels import PruneChannels
    from onnxshrink.pipeline import Context
    from onnxshrink.runtime.worker import Worker


@dataclass(frozen=True)
class Variant:
    """A model without its channels.

    Attributes:
        model: The model.
        shortened: Its constants that lost channels.
        refitted: How those were fitted that have new values, by name.
    """

    model: Model
    shortened: Sequence[Shortened]
    refitted: Mapping[str, Choice] = field(default_factory=dict)


@dataclass(frozen=True)
class Removal:
    """One step of the pass.

    Attributes:
        options: The pass.
        ctx: Where to report.
        worker: Where to run models.
        plan: What goes.
        runs: What two runs of the model showed.
        seen: Moments of what its weights read.
    """

    options: PruneChannels
    ctx: Context
    worker: Worker
    plan: Plan
    runs: Runs
    seen: Mapping[Consumer, Moments]

    def carry_out(self) -> None:
        """Remove what was planned, and report it.

        What makes up for it weight by weight can, all together, take the outputs further away. So
        weights are first fitted without the inputs that are held out, and only where the outputs
        for those come closer, to all.
        """
        from onnxshrink.graph.channels.compensation import choices

        removed, seen = self.plan.removed, self.seen if self.options.compensate else {}
        chosen = choices(self.plan.walk, seen, removed, self.options.damping)
        best = self._variant()
        if chosen:
            best = self._closer(best, chosen)
        self.plan.walk.model.adopt(best.model)
        self._report(best)

    def trial(self) -> Model:
        """A copy of the model without the channels, fitted without what is held out."""
        from onnxshrink.graph.channels.compensation import choices

        seen = self.seen if self.options.compensate else {}
        chosen = choices(self.plan.walk, seen, self.plan.removed, self.options.damping)
        sums = {each.name: moments.fitted for each, moments in seen.items() if each.name in chosen}
        return self._variant(chosen, sums).model

    def _closer(self, plain: Variant, chosen: Mapping[str, Choice]) -> Variant:
        """The refitted model, if its outputs are closer."""
        from onnxshrink.runtime.probe import held_out

        moments = {consumer.name: each for consumer, each in self.seen.items()}
        feeds = [self.ctx.feeds[number] for number in held_out(len(self.ctx.feeds))]
        feeds = feeds or list(self.ctx.feeds)
        wanted = self.outputs(self.plan.walk.model, feeds)
        without = self._error(wanted, plain.model, feeds)
        trial = self._variant(chosen, {name: each.fitted for name, each in moments.items()})
        error = self._error(wanted, trial.model, feeds)
        if error < without:
            refitted = self._variant(chosen, {name: each.sums for name, each in moments.items()})
            if self._error(wanted, refitted.model, feeds) < without:
                self.ctx.changed(
                    "refit", 0, kind="model", error_without=without, error=error,
                    note=f"{len(refitted.refitted)} constants refitted: {_spread(chosen)}; outputs "
                    f"for inputs that were not fitted to {error:.3g} off, {without:.3g} without",
                )  # fmt: skip
                return refitted
        self.ctx.skip(
            "refit", f"would take the error of the outputs from {without:.3g} to {error:.3g}"
        )
        return plain

    def _variant(
        self, chosen: Mapping[str, Choice] | None = None, sums: Mapping[str, Array] | None = None
    ) -> Variant:
        """A copy of the model without the channels, its weights refitted as was chosen."""
        from onnxshrink.graph.channels.compensation import compensate
        from onnxshrink.graph.channels.cut import Cut
        from onnxshrink.passes._channels import labelled

        copy, removed = self.plan.walk.model.clone(), self.plan.removed
        walk = labelled(copy, self.runs)
        refitted = compensate(walk, sums or {}, removed, chosen or {})
        return Variant(copy, Cut(walk, removed).apply(), refitted)

    def _report(self, best: Variant) -> None:
        shortened = {constant.name for constant in best.shortened}
        stored = best.model.ir.graph.initializers
        for constant in best.shortened:
            note = f"{list(constant.before)} -> {list(constant.after)}"
            self._changed(
                best, constant.name, constant.nbytes_before, constant.nbytes_after, note,
                constant.op_type,
            )  # fmt: skip
        for name in best.refitted:
            if name not in shortened:
                tensor = stored[name].const_value if name in stored else None
                nbytes = 0 if tensor is None else tensor.nbytes
                self._changed(best, name, nbytes, nbytes)

    def _changed(
        self, best: Variant, name: str, before: int, after: int, note: str = "", kind: str = ""
    ) -> None:
        """Report a constant that lost channels, has new values, or both."""
        choice, error = best.refitted.get(name), {}
        if choice is not None:
            note += f"{'; ' * bool(note)}refitted, damping {choice.damping:g}"
            error = {"error_before": choice.before, "error_after": choice.after}
        self.ctx.changed(name, after, before=before, kind=kind, note=note, **error)

    def _error(self, wanted: list[list[np.ndarray]], model: Model, feeds: Feeds) -> float:
        """Relative L2 error of the outputs, the worst of them."""
        from onnxshrink.kernels.metrics import compare_outputs

        rows = compare_outputs(model.signature[1], wanted, self.outputs(model, feeds))
        return max((row.relative_error for row in rows), default=0.0)

    def outputs(self, model: Model, feeds: Feeds) -> list[list[np.ndarray]]:
        """What a model makes of some inputs."""
        with tempfile.TemporaryDirectory(prefix="onnxshrink-") as folder:
            path = Path(folder, "model.onnx")
            model.save(path, durable=False)
            return self.worker.run(path, feeds).outputs


def _spread(chosen: Mapping[str, Choice]) -> str:
    """How many were fitted how strongly."""
    from collections import Counter

    counts = Counter(choice.damping for choice in chosen.values())
    return ", ".join(f"{counts[damping]} at damping {damping:g}" for damping in sorted(counts))
