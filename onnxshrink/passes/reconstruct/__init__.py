"""Refit what is still floating-point by least squares, so that layers answer as they used to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from onnxshrink.errors import DataError
from onnxshrink.options import option
from onnxshrink.pipeline import Context, Pass
from onnxshrink.select import check_patterns, left_out

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.layers.fitting import Outline


@dataclass(frozen=True, kw_only=True)
class Reconstruct(Pass):
    """Refit what is still floating-point by least squares, so that layers answer as they used to.

    Put it behind any step that loses something. Each layer is given the inputs that it has by now,
    and asked for the outputs that it had in the model before the first step: of a pruned weight the
    values that are left are refitted (zeros stay zero), of integer weights their scales, of
    codebooks their tables, of split weights both factors, of norms their gains, and everywhere the
    biases. Layers are done in the order in which they run, the first ones first, and those behind
    them see what became of them.

    Nothing is believed that was not seen on other inputs: each layer is fitted to one half of the
    calibration inputs and judged by the other half, then the other way round, and stays as it is
    unless the error falls. How strongly it is drawn to what it was is chosen so as well. More
    inputs help: a layer of 1,500 inputs has much to learn from 2,000 rows, little from 200.

    The file keeps its size and the model its speed. It needs real inputs, at least two.
    """

    runs_models: ClassVar[bool] = True

    refit: tuple[Literal["weights", "scales", "tables", "factors", "gains", "biases"], ...] = (
        option((), help="what may change; by default all")
    )
    only: tuple[str, ...] = option(
        (), help="work on these layers only: operator types, names of weights or nodes, or patterns"
    )
    keep: tuple[str, ...] = option(
        (), help="leave these layers alone: operator types, names of weights or nodes, or patterns"
    )
    rounds: int = option(
        8,
        help="how often to observe the model anew: layers of one round do not see each other",
        ge=1,
    )
    damping: float | None = option(
        None, help="how closely numbers stay to what they were; by default tried out", ge=1e-9
    )

    @property
    def bound(self) -> float:
        """Any: outputs may go as far as they had strayed. They are held to the original's here."""
        return math.inf

    def apply(self, model: Model, ctx: Context) -> None:
        """Refit in rounds; a round that does not bring the outputs closer is taken back."""
        from onnxshrink.graph.layers import fitting
        from onnxshrink.graph.rewrite import plain
        from onnxshrink.passes.reconstruct.rounds import Reconstruction

        if ctx.original is None:
            raise DataError(
                f"{self.name} needs the model before the first step: run it in a recipe"
            )
        seen, original = plain.seen_through(model), plain.seen_through(ctx.original)
        outlines = list(fitting.outlines(seen, original))
        names = [each.names for each in outlines]
        check_patterns((*self.only, *self.keep), names, self.name, "layer")
        chosen = []
        for outline in outlines:
            if reason := self._why_not(outline):
                ctx.skip(outline.name or outline.output, reason)
            else:
                chosen.append(outline)
        if not chosen:
            return
        ctx.check_halves()
        Reconstruction(self, seen, ctx, original).run(chosen)
        if seen is not model:
            plain.take_over(model, seen, {change.what for change in ctx.step.changes})

    def allows(self, kind: str) -> bool:
        """Whether numbers of a kind may change."""
        return not self.refit or kind in self.refit

    def _why_not(self, outline: Outline) -> str:
        if reason := left_out(self.only, self.keep, outline.names):
            return reason
        if outline.hidden:
            return outline.hidden
        if not outline.known:
            return f"the model before the first step has no value {outline.output!r}"
        return ""
