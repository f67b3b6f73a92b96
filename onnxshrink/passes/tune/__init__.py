"""Tune the floating-point numbers of a compressed model until it answers as the original does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, ClassVar, Literal

from onnxshrink.errors import DataError, InputsMissing, RecipeError
from onnxshrink.options import option
from onnxshrink.pipeline import Context, Pass

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.layers.parameters import Parameter


@dataclass(frozen=True, kw_only=True)
class Tune(Pass):
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

    runs_models: ClassVar[bool] = True

    free: tuple[Literal["scales", "tables", "gains", "biases", "weights"], ...] = option(
        ("scales", "tables", "gains", "biases"), help="what may change"
    )
    steps: int = option(200, help="steps at most", ge=1)
    rate: float | None = option(
        None,
        help="what the first steps change, in share of the numbers' size; unset: a twentieth of "
        "the outputs' relative error",
        ge=1e-6,
        le=1,
    )
    batch: int = option(16, help="inputs of a step", ge=1)
    time_limit: float | None = option(None, help="seconds after which it ends", ge=0)
    reference: str = option(
        "", help="file of the original model; empty: the model before the first step"
    )
    only: tuple[str, ...] = option(
        (), help="tune numbers of these only: operator types, names of weights, or patterns"
    )
    keep: tuple[str, ...] = option((), help="leave the numbers of these alone")

    @property
    def bound(self) -> float:
        """Any: outputs may go as far as they had strayed. They are held to the original's here."""
        return math.inf

    def apply(self, model: Model, ctx: Context) -> None:
        """Train, and keep what answers better on the inputs that judge."""
        from onnxshrink.graph.forms import coded_read
        from onnxshrink.graph.layers import parameters
        from onnxshrink.passes.tune.tuning import Schedule, tune

        original = coded_read.load(self.reference)[0] if self.reference else ctx.original
        if original is None:
            raise DataError(f"{self.name} needs the original model: name it with 'reference'")
        found = list(parameters.find(model))
        self._check_patterns(found)
        chosen = []
        for parameter in found:
            if reason := self._why_not(parameter):
                ctx.skip(parameter.owner or parameter.name, reason)
            else:
                chosen.append(parameter)
        if not chosen:
            return
        if len(ctx.feeds) < 2 or ctx.generated:
            raise InputsMissing(
                f"{self.name} fits to one half of real inputs and judges by the other: give "
                "--calibration DATA with two or more"
            )
        schedule = Schedule(self.rate, self.steps, self.batch, self.time_limit, ctx.seed)
        tune(model, original, chosen, schedule, ctx)

    def _why_not(self, parameter: Parameter) -> str:
        if parameter.kind not in self.free:
            return f"{parameter.kind} are not among what may change"
        if self.only and not any(_matches(pattern, parameter) for pattern in self.only):
            return "not among those asked for"
        if any(_matches(pattern, parameter) for pattern in self.keep):
            return "kept as asked"
        return parameter.fixed

    def _check_patterns(self, found: list[Parameter]) -> None:
        patterns = (*self.only, *self.keep)
        lost = [p for p in patterns if not any(_matches(p, parameter) for parameter in found)]
        if lost and found:
            raise RecipeError(f"{self.name}: nothing to tune matches {', '.join(map(repr, lost))}")


def _matches(pattern: str, parameter: Parameter) -> bool:
    names = (parameter.node.op_type, parameter.owner, parameter.name, parameter.node.name or "")
    return pattern in names or any(fnmatchcase(name, pattern) for name in names)
