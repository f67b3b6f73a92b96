"""Tune the floating-point numbers of a compressed model until it answers as the original does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from onnxshrink.options import option
from onnxshrink.passes._training import Objective
from onnxshrink.passes._tuning import Tuning, squares, wanted
from onnxshrink.pipeline import Context

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.layers.parameters import Kind


@dataclass(frozen=True, kw_only=True)
class Tune(Tuning):
    """Tune the floating-point numbers of a compressed model until it answers as the original does.

    Put it behind any step that loses something. Scales of quantized weights, tables of codebooks,
    gains of norms and biases are moved against the gradients of the outputs' error, all of them at
    once and through the whole model, which ONNX Runtime computes (no labels, no other framework).
    Codes, zeros and the form of the model stay, and so do its size and speed.

    One half of the inputs is fitted to and the other judges: it ends when that is no longer served,
    the best numbers are kept, and where there are none better, nothing is changed. It needs real
    inputs, at least two; 64 are many. Weights that are still floating-point are tuned on request
    (``free: [weights]``): they have much to learn from hundreds of inputs, and little from ten.

    Run it in a recipe, behind what compresses, or name the original with ``reference``.
    """

    free: tuple[Literal["scales", "tables", "gains", "biases", "weights"], ...] = option(
        ("scales", "tables", "gains", "biases"), help="what may change"
    )

    def kinds(self) -> Sequence[Kind]:
        """As asked."""
        return self.free

    def goal(self, model: Model, original: Model, ctx: Context) -> Objective:
        """The outputs of the original, each by its relative error."""
        _, values = wanted(model, original, ctx)
        aims, weights = squares(values, ctx.split.judge)
        targets = [{name: values[name][at] for name in aims} for at in range(len(ctx.feeds))]
        return Objective(aims, weights, targets)
