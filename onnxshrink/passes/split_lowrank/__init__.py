"""Split a weight of low rank into two thin ones, and its operator into two."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from onnxshrink.errors import DataError, RecipeError
from onnxshrink.options import option
from onnxshrink.pipeline import Context, Pass
from onnxshrink.select import SKIP, Select, select

if TYPE_CHECKING:
    import numpy as np

    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.weights.views import WeightView
    from onnxshrink.kernels.observers import Need
    from onnxshrink.passes.split_lowrank.low_rank import RankRule

_INT4_OPSET = 21


@dataclass(frozen=True, kw_only=True)
class SplitLowrank(Pass):
    """Split a weight of low rank into two thin ones, and its operator into two.

    A product with a [1024, 1024] matrix of rank 100 is one with [1024, 100] and one with
    [100, 1024]: a fifth of the weights, and a fifth of the work. A convolution becomes two, by
    channels (the kernel to fewer channels, then 1 x 1) or by place (its columns, then its rows).
    This saves disk, memory and time alike, and quantization goes on top.

    With calibration data the factors are those with the least error of the outputs on it, not of
    the weight (``whiten``). Of ``rank``, ``ratio``, ``energy`` and ``error`` the first that is
    given decides; ``ranks: together`` shares ``ratio`` out among all weights.

    But trained weights seldom are of low rank: at equal size quantized weights are closer to the
    original on every model measured. By default only what loses less than 10 % is split, which on
    most models is nothing. ``residual: int4`` keeps what the factors leave as integers: the weight
    is then rebuilt when the model is loaded, so this saves disk, not memory or time.
    """

    rank: int | None = option(None, help="rank of every split", ge=1)
    ratio: float | None = option(None, help="share of its bytes that a weight keeps", ge=0, le=1)
    energy: float | None = option(
        None, help="share of the squared singular values that a weight keeps", ge=0, le=1
    )
    error: float | None = option(
        None,
        help="largest relative error of a weight, of its outputs when whitened; "
        "0.1 if nothing else is given",
        ge=0,
    )
    ranks: Literal["each", "together"] = option(
        "each", help="'ratio' of each weight, or of all: ranks then go where a byte helps most"
    )
    split: Literal["auto", "channel", "spatial"] = option(
        "auto", help="how to split a convolution; auto: the better of both"
    )
    whiten: Literal["auto", "true", "false"] = option(
        "auto", help="least error of the outputs; auto: if there are real inputs to see them on"
    )
    residual: Literal["none", "int8", "int4"] = option(
        "none", help="keep what the factors leave as integers, and rebuild the weight at load"
    )
    force: bool = option(
        False, help="split also what then takes more bytes or multiplications, such as lookups"
    )
    weights: Select = select()

    inlines = True

    def __post_init__(self) -> None:
        super().__post_init__()
        together = self.ranks == "together"
        if together and (self.ratio is None or self.rank or self.residual != "none"):
            raise RecipeError(f"{self.name}: 'ranks: together' needs 'ratio', and goes with no "
                              "'rank' and no 'residual'")  # fmt: skip

    @property
    def may_grow(self) -> bool:  # type: ignore[override]
        """Only if it was asked for."""
        return self.force

    @property
    def bound(self) -> float:
        """What is cut must at least stay recognisable."""
        return 0.7

    def needs(self, model: Model) -> Iterator[Need]:
        """Second moments of what the selected weights are multiplied with."""
        from onnxshrink.graph import weights
        from onnxshrink.graph.weights import second_moments

        for view in weights.find(model):
            overrides = self.weights.overrides(view)
            given = {} if overrides == SKIP else overrides
            whiten = given.get("whiten", self.whiten) not in ("false", False)
            if whiten and not self.weights.why_not(view) and not self._obstacle(view):
                yield from second_moments.needs(view)

    def apply(self, model: Model, ctx: Context) -> None:
        """Split every selected weight for which it pays, the largest first."""
        from onnxshrink.graph import weights
        from onnxshrink.graph.rewrite import clean, opset
        from onnxshrink.passes.split_lowrank import low_rank

        if self.whiten == "true" and not ctx.feeds:
            raise DataError(f"{self.name}: 'whiten' needs inputs: give --calibration DATA")
        before = model.opset
        if self.residual == "int4" and opset.raise_opset(model, _INT4_OPSET):
            ctx.changed("opset", 0, kind="model", note=opset.needs(before, model))
        views = list(weights.find(model))
        if any(not self.weights.why_not(view) for view in views):
            clean.forward_constants(model)
            views = list(weights.find(model))
        shared: dict[WeightView, tuple[str, int]] = {}
        if self.ranks == "together" and self.ratio is not None:
            free = [v for v in views if not self.weights.why_not(v) and not self._obstacle(v)]
            shared = low_rank.share_out(
                free, self.split, lambda view: self._moment(view, ctx), self.ratio,
                force=self.force,
            )  # fmt: skip
        for view, options in ctx.each(self, views):
            if reason := options._obstacle(view):
                ctx.skip(view, reason)
                continue
            try:
                if options.residual != "none":
                    moment, rule = options._moment(view, ctx), options._rule
                    lesser = options._lesser(view, ctx)
                    low_rank.correct(view, moment, rule, options.residual, model, ctx, lesser)
                else:
                    options._split(view, model, ctx, shared.get(view))
            except ValueError as error:
                ctx.skip(view, str(error))

    def _obstacle(self, view: WeightView) -> str:
        """Why a weight cannot be factored; empty when it can."""
        from onnxshrink.graph.forms import split

        return split.why_not(view) if self.residual == "none" else split.why_no_residual(view)

    def _moment(self, view: WeightView, ctx: Context) -> np.ndarray | None:
        """The second moment to whiten with; None to count all inputs alike."""
        from onnxshrink.passes.split_lowrank import low_rank

        if self.whiten == "false" or (self.whiten == "auto" and ctx.generated):
            return None
        return low_rank.moment_of(view, ctx)

    def _lesser(self, view: WeightView, ctx: Context) -> str:
        """Why a weight is not whitened though it was asked for; empty when it is, or need not."""
        from onnxshrink.passes.split_lowrank import low_rank

        real = bool(ctx.feeds) and not ctx.generated
        asked = self.whiten == "true" or (self.whiten == "auto" and real)
        return low_rank.unwhitened(view, ctx) if asked else ""

    @property
    def _rule(self) -> RankRule:
        from onnxshrink.passes.split_lowrank.low_rank import RankRule

        return RankRule(self.rank, self.ratio, self.energy, self.error)

    def _split(
        self, view: WeightView, model: Model, ctx: Context, planned: tuple[str, int] | None
    ) -> None:
        from onnxshrink.graph.forms import split
        from onnxshrink.passes.split_lowrank import low_rank

        found = []
        for candidate in low_rank.candidates(view, self.split, self._moment(view, ctx)):
            if self.ranks == "each":
                per_rank = view.size / candidate.way.weights
                found.append((candidate, self._rule.of(candidate.spectrum, per_rank)))
            elif planned and planned[0] == candidate.way.kind:
                found.append((candidate, planned[1]))
        if not found:
            together = "keeps its rank: other weights lose less for their bytes"
            apart = f"its kernel cannot be split by {self.split}"
            ctx.skip(view, apart if self.ranks == "each" else together)
            return
        # At a given ratio all ways take as many bytes; otherwise the fewest are best.
        by_error = self.rank is None and self.ratio is not None
        best, rank = min(
            found, key=lambda f: f[0].spectrum.error(f[1]) if by_error else f[0].nbytes(f[1])
        )
        if not self.force and (reason := best.why_not(rank)):
            ctx.skip(view, reason)
            return
        way, factors = best.way, best.factors(rank)
        errors = best.errors(*factors)
        after = split.apply(model, view, way, *factors)
        note = f"rank {rank} of {min(way.shape)}, by {way.kind}{self._lesser(view, ctx)}; "
        note += "smaller on disk and in memory"
        work = rank * way.work / way.work_before if way.work_before else float("inf")
        ctx.changed(view, int(after), note=f"{note}, {work:.2f} of the work", **errors)
