"""Split a weight of low rank into two thin ones, and its operator into two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from onnxshrink.options import option
from onnxshrink.pipeline import Context, Pass
from onnxshrink.select import Select, select

if TYPE_CHECKING:
    from onnxshrink.graph.model import Model
    from onnxshrink.graph.split import Split
    from onnxshrink.graph.weights import WeightView
    from onnxshrink.kernels.lowrank import Spectrum

_ERROR = 0.1


@dataclass(frozen=True, kw_only=True)
class SplitLowrank(Pass):
    """Split a weight of low rank into two thin ones, and its operator into two.

    A product with a [1024, 1024] matrix of rank 100 is one with [1024, 100] and one with
    [100, 1024]: a fifth of the weights, and a fifth of the work. A convolution becomes two, by
    channels (the kernel to fewer channels, then 1 x 1) or by place (its columns, then its rows).
    This saves disk, memory and time alike, and quantization goes on top.

    But trained weights seldom are of low rank: at equal size quantized weights are closer to the
    original on every model measured. By default only what loses less than 10 % of a weight is
    split, which on most models is nothing. Of ``rank``, ``ratio``, ``energy`` and ``error`` the
    first that is given decides.
    """

    rank: int | None = option(None, help="rank of every split", ge=1)
    ratio: float | None = option(None, help="share of its bytes that a weight keeps", ge=0, le=1)
    energy: float | None = option(
        None, help="share of the squared singular values that a weight keeps", ge=0, le=1
    )
    error: float | None = option(
        None, help=f"largest relative error of a weight; {_ERROR} if nothing else is given", ge=0
    )
    split: Literal["auto", "channel", "spatial"] = option(
        "auto", help="how to split a convolution; auto: the better of both"
    )
    force: bool = option(
        False, help="split also what then takes more bytes or multiplications, such as lookups"
    )
    weights: Select = select()

    @property
    def may_grow(self) -> bool:  # type: ignore[override]
        """Only if it was asked for."""
        return self.force

    @property
    def bound(self) -> float:
        """What is cut without data must at least stay recognisable."""
        return 0.7

    def apply(self, model: Model, ctx: Context) -> None:
        """Split every selected weight for which it pays, the largest first."""
        from onnxshrink.graph import split, weights

        for view, options in ctx.each(self, weights.find(model)):
            if reason := split.why_not(view):
                ctx.skip(view, reason)
                continue
            try:
                options._split(view, model, ctx)
            except ValueError as error:
                ctx.skip(view, str(error))

    def _split(self, view: WeightView, model: Model, ctx: Context) -> None:
        from onnxshrink.graph import split
        from onnxshrink.kernels import lowrank

        found = []
        for way in split.ways(view):
            if way.kind in (self.split, "product", "lookup") or self.split == "auto":
                spectrum = lowrank.decompose(split.matrix(view, way))
                rank = self._rank(spectrum, way, view.size)
                found.append((way, spectrum, rank))
        if not found:
            ctx.skip(view, f"its kernel cannot be split by {self.split}")
            return
        # At a given ratio all ways take as many bytes; otherwise the fewest are best.
        by_error = self.rank is None and self.ratio is not None
        way, spectrum, rank = min(
            found, key=lambda f: f[1].error(f[2]) if by_error else f[2] * f[0].weights
        )
        after = rank * way.weights * view.dtype.itemsize + split.OVERHEAD
        if not self.force and after >= view.nbytes:
            ctx.skip(view, f"would not be smaller at rank {rank} of {min(way.shape)}")
        elif not self.force and rank * way.work >= way.work_before:
            ctx.skip(view, f"would take more multiplications at rank {rank}; 'force' splits it")
        else:
            after = split.apply(model, view, way, *spectrum.factors(rank))
            note = f"rank {rank} of {min(way.shape)}, by {way.kind}; smaller on disk and in memory"
            work = rank * way.work / way.work_before if way.work_before else float("inf")
            ctx.changed(
                view, int(after), note=f"{note}, {work:.2f} of the work",
                relative_error=spectrum.error(rank),
            )  # fmt: skip

    def _rank(self, spectrum: Spectrum, way: Split, size: int) -> int:
        """The rank that is asked for, from 1 to that of the matrix."""
        full = len(spectrum.values)
        if self.rank is not None:
            return min(self.rank, full)
        if self.ratio is not None:
            return min(max(1, int(self.ratio * size / way.weights)), full)
        if self.energy is not None:
            return spectrum.rank_of_energy(self.energy)
        error = _ERROR if self.error is None else self.error
        return spectrum.rank_of_energy(1 - min(error, 1) ** 2)
