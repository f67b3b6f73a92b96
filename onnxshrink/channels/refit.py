"""Carrying out what prune-channels planned, and making up for it as far as that is seen to help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxshrink.channels.compensation import Refitted
    from onnxshrink.channels.facts import Runs
    from onnxshrink.channels.plan import Plan
    from onnxshrink.channels.readers import Consumer
    from onnxshrink.channels.removal import Shortened
    from onnxshrink.graph.file.model import Model
    from onnxshrink.kernels.refit import Array, ChosenDamping, FeatureSums
    from onnxshrink.pipeline import Context


@dataclass(frozen=True)
class Variant:
    """A model without its channels.

    Attributes:
        model: The model.
        shortened: Its constants that lost channels.
        refitted: Those that have new values, by name.
    """

    model: Model
    shortened: Sequence[Shortened]
    refitted: Mapping[str, Refitted] = field(default_factory=dict)


@dataclass(frozen=True)
class Removal:
    """One plan, and what carries it out.

    Attributes:
        ctx: Inputs, where to run models, and where to report.
        plan: What goes.
        runs: What two runs of the model showed.
        seen: Second moments of what its weights read; none where nothing is to be refitted.
        damping: How closely refitted weights stay to what they were; None: tried out.
    """

    ctx: Context
    plan: Plan
    runs: Runs
    seen: Mapping[Consumer, FeatureSums]
    damping: float | None

    def carry_out(self) -> None:
        """Remove what was planned, and report it.

        What makes up for it weight by weight can, all together, take the outputs further away. So
        weights are first fitted without the inputs that are held out, and only where the outputs
        for those come closer, to all.
        """
        chosen, best = self._choices(), self._variant()
        if chosen:
            best = self._closer(best, chosen)
        self._report(best)
        self.plan.walk.model.adopt(best.model)

    def trial(self) -> Model:
        """A copy of the model without the channels, fitted without what is held out."""
        chosen = self._choices()
        sums = {
            each.name: moments.fitted for each, moments in self.seen.items() if each.name in chosen
        }
        return self._variant(chosen, sums).model

    def _choices(self) -> dict[str, ChosenDamping]:
        from onnxshrink.channels.compensation import choices

        return choices(self.plan.walk, self.seen, self.plan.removed, self.damping)

    def _closer(self, plain: Variant, chosen: Mapping[str, ChosenDamping]) -> Variant:
        """The refitted model, if its outputs are closer."""
        moments = {consumer.name: each for consumer, each in self.seen.items()}
        feeds = self.ctx.split.of(self.ctx.feeds, self.ctx.split.held)
        feeds = feeds or list(self.ctx.feeds)
        wanted = self.ctx.reference(self.plan.walk.model, feeds)
        without = wanted.distance(plain.model)
        trial = self._variant(chosen, {name: each.fitted for name, each in moments.items()})
        error = wanted.distance(trial.model)
        if error < without:
            refitted = self._variant(chosen, {name: each.sums for name, each in moments.items()})
            if wanted.distance(refitted.model) < without:
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
        self,
        chosen: Mapping[str, ChosenDamping] | None = None,
        sums: Mapping[str, Array] | None = None,
    ) -> Variant:
        """A copy of the model without the channels, its weights refitted as was chosen."""
        from onnxshrink.channels.compensation import compensate
        from onnxshrink.channels.labels import labelled
        from onnxshrink.channels.removal import Cut

        copy, removed = self.plan.walk.model.clone(), self.plan.removed
        walk = labelled(copy, self.runs)
        refitted = compensate(walk, sums or {}, removed, chosen or {})
        return Variant(copy, Cut(walk, removed).apply(), refitted)

    def _report(self, best: Variant) -> None:
        left = dict(best.refitted)
        for constant in best.shortened:
            row = left.pop(constant.name, None)
            note = f"{list(constant.before)} -> {list(constant.after)}"
            self.ctx.changed(
                constant.name, constant.nbytes_after, before=constant.nbytes_before,
                kind=constant.op_type, note=f"{note}; {_note(row)}" if row else note,
                **_errors(row),
            )  # fmt: skip
        for name, row in left.items():
            self.ctx.changed(
                name, row.after, before=row.before, kind=row.op_type, note=_note(row),
                **_errors(row),
            )  # fmt: skip


def _note(row: Refitted) -> str:
    return f"refitted, damping {row.choice.damping:g}"


def _errors(row: Refitted | None) -> dict[str, float]:
    """Errors of a weight's outputs on held-out inputs."""
    if row is None:
        return {}
    return {"error_before": row.choice.before, "error_after": row.choice.after}


def _spread(chosen: Mapping[str, ChosenDamping]) -> str:
    """How many were fitted how strongly."""
    from collections import Counter

    counts = Counter(choice.damping for choice in chosen.values())
    return ", ".join(f"{counts[damping]} at damping {damping:g}" for damping in sorted(counts))
