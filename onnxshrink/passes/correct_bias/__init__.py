"""Move biases so that layers have the mean outputs that they had before compression."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from onnxshrink.errors import DataError, InputsMissing
from onnxshrink.options import option
from onnxshrink.pipeline import Context, Pass
from onnxshrink.select import check_patterns, left_out

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model


@dataclass(frozen=True, kw_only=True)
class CorrectBias(Pass):
    """Move biases so that layers have the mean outputs that they had before compression.

    Rounding or removing weights shifts the mean of what a layer makes, and the next layers shift it
    on. The difference of the means, measured on calibration inputs against the original model, is
    taken from each bias, layer after layer, on the model as it is by then (empirical bias
    correction, 1906.04721). A layer without a bias gets one only with ``add``, for some bytes. It
    helps where weights were rounded to nearest with few bits, or pruned; after GPTQ, which keeps
    means by itself, it does next to nothing. What does not bring the outputs closer is taken back.

    ``method: analytic`` computes what the errors of a layer's weights add to its mean output, from
    the means of its inputs in the original: one run, and layers do not see each other. Without
    calibration inputs these means follow from BatchNormalization, where that made the input.

    Run it in a recipe, behind what compresses, or name the original with ``reference``.
    """

    method: Literal["empirical", "analytic"] = option(
        "empirical", help="how to find what means are off: measured; or computed from the weights"
    )
    reference: str = option(
        "", help="file of the original model; empty: the model before the first step"
    )
    rounds: int | None = option(
        None,
        help="how often to measure: layers of one round do not see each other's corrections; "
        "unset: once for every layer that comes behind another",
        ge=1,
    )
    add: bool = option(
        False, help="give layers that have no bias of their own one, which makes the file bigger"
    )
    only: tuple[str, ...] = option(
        (), help="correct these layers only: operator types, names of weights or nodes, or patterns"
    )
    keep: tuple[str, ...] = option((), help="leave these layers alone")

    runs_models: ClassVar[bool] = True

    @property
    def may_grow(self) -> bool:  # type: ignore[override]
        """By biases that are new."""
        return self.add

    @property
    def bound(self) -> float:
        """Any: outputs may go back as far as they had strayed. They are held to the original's."""
        return math.inf

    def apply(self, model: Model, ctx: Context) -> None:
        """Correct round by round; keep it if the outputs are closer to the original's."""
        from onnxshrink.graph.forms import coded_read
        from onnxshrink.graph.layers import bias, fitting
        from onnxshrink.graph.rewrite import plain
        from onnxshrink.passes.correct_bias.correction import Correction

        original = coded_read.load(self.reference)[0] if self.reference else ctx.original
        if original is None:
            raise DataError(f"{self.name} needs the original model: name it with 'reference'")
        original = plain.seen_through(original)
        plain.spell_out(model, hiding=True)
        outlines = [o for o in fitting.outlines(model, original) if o.norm is None]
        names = [each.names for each in outlines]
        check_patterns((*self.only, *self.keep), names, self.name, "layer")
        correction = Correction(model, original, ctx)
        chosen = []
        for outline in outlines:
            reason = left_out(self.only, self.keep, outline.names) or correction.why_not(outline)
            if not reason and not self.add and not bias.is_own(outline):
                reason = "has no bias of its own: --add gives it one, which takes bytes"
            if reason:
                ctx.skip(outline.name or outline.output, reason)
            else:
                chosen.append(outline)
        if not chosen:
            return
        feeds = () if ctx.generated else ctx.feeds
        if self.method == "analytic":
            correction.computed(chosen, feeds)
        elif feeds:
            correction.measured(chosen, self.rounds)
        else:
            raise InputsMissing(
                f"{self.name} measures means on real inputs: give --calibration DATA, or use "
                "method analytic"
            )
