"""Set the smallest weights to zero: a share, below a threshold, N of every M, or in blocks."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from onnxshrink.errors import RecipeError
from onnxshrink.options import option
from onnxshrink.pipeline import Context, Pass
from onnxshrink.select import Select, select

if TYPE_CHECKING:
    import numpy as np

    from onnxshrink.graph.model import Model
    from onnxshrink.graph.palette import Palettes
    from onnxshrink.graph.weights import WeightView

_ELEMENTWISE = {"Add", "Sub", "Mul"}
_MARK = "onnxshrink.sparsity"


@dataclass(frozen=True, kw_only=True)
class PruneMagnitude(Pass):
    """Set the smallest weights to zero.

    The file stays as large as it was: the zeros save space once something uses them. ``onnxshrink
    pack`` does, share-codebook keeps them (a table of few values packs best), and ``store: sparse``
    writes the others only, each with a bit for its place, where that is smaller: from about 5 %
    zeros on. Neither saves memory or time: ONNX Runtime computes with zeros as with other numbers.
    A ``pattern`` of 2:4 is what NVIDIA's sparse tensor cores skip; it is noted in the tensor's
    metadata as ``onnxshrink.sparsity``.

    Without data, at most 20 to 30 % is harmless on most models; prune-wanda and prune-sparsegpt,
    which look at real inputs, go much further.
    """

    # Zeros take as many bytes as the weights did; notes of a pattern some dozen more.
    may_grow: ClassVar[bool] = True

    ratio: float = option(
        0.5, help="share of the weights that become zero", ge=0, le=1, also=("sparsity",)
    )
    threshold: float | None = option(
        None, help="instead of a share: every weight below this magnitude", ge=0
    )
    scope: Literal["weight", "row", "model"] = option(
        "weight",
        help="take that share of each weight, of each of its output channels, or of the model as a"
        " whole (by LAMP scores, which never empty a layer)",
    )
    pattern: str = option("", help="instead of a share: N:M keeps N of every M inputs, such as 2:4")
    block: tuple[int, ...] = option(
        (), help="remove blocks of so many output channels and inputs: '[4, 1]'"
    )
    store: Literal["dense", "sparse"] = option(
        "dense", help="sparse: without the zeros, where that is smaller; on disk only"
    )
    weights: Select = select()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block and (len(self.block) != 2 or min(self.block) < 1):
            raise RecipeError(
                f"{self.name}: option 'block' takes two numbers from 1 on, not {list(self.block)}"
            )
        if self.pattern:
            n, m = self._pattern
            if not 0 < n < m:
                raise RecipeError(
                    f"{self.name}: option 'pattern' takes N:M with N below M, not {self.pattern!r}"
                )
        chosen = [bool(self.pattern), bool(self.block), self.scope == "model"]
        if sum(chosen) > 1 or (self.threshold is not None and any(chosen)):
            raise RecipeError(
                f"{self.name}: use one of 'threshold', 'pattern', 'block' and 'scope: model'"
            )

    @property
    def bound(self) -> float:
        """What is pruned without data must at least stay recognisable."""
        return 0.7

    @property
    def _pattern(self) -> tuple[int, int]:
        found = re.fullmatch(r"(\d+):(\d+)", self.pattern)
        if found is None:
            raise RecipeError(
                f"{self.name}: option 'pattern' takes N:M such as 2:4, not {self.pattern!r}"
            )
        return int(found[1]), int(found[2])

    def apply(self, model: Model, ctx: Context) -> None:
        """Prune every selected weight, the largest first."""
        from onnxshrink.graph import opset, palette, weights

        if self.store == "sparse":
            opset.raise_opset(model, palette.OPSET)
        views = list(weights.find(model))
        limit = self._limit(views) if self.scope == "model" else 0.0
        palettes = palette.Palettes(model)
        for view, options in ctx.each(self, views):
            if reason := _obstacle(view):
                ctx.skip(view, reason)
                continue
            try:
                mask = options._mask(view, limit)
            except ValueError as error:
                ctx.skip(view, str(error))
                continue
            options._prune(view, mask, model, palettes, ctx)

    def _prune(
        self, view: WeightView, mask: np.ndarray, model: Model, palettes: Palettes, ctx: Context
    ) -> None:
        import numpy as np

        from onnxshrink.graph import edit, palette

        before = view.array()
        values = np.where(mask, before, np.zeros((), before.dtype))
        zeros = float(np.count_nonzero(values == 0)) / values.size
        error = float(np.linalg.norm(before[~mask].astype(np.float64)))
        size = float(np.linalg.norm(before.astype(np.float64)))
        figures = {"sparsity": zeros, "relative_error": error / size if size else 0.0}
        kept = np.count_nonzero(values)
        sparse = kept * view.dtype.itemsize + values.size / 8 + palette.SPARSE_OVERHEAD
        if self.store == "sparse" and sparse < view.nbytes:
            after = palettes.replace_sparse(view, values)
            note = f"{zeros:.1%} zeros, sparse; smaller on disk, dense once loaded"
            ctx.changed(view, after, note=note, **figures)
        elif np.array_equal(values, before):
            ctx.skip(view, f"has no more weights to remove ({zeros:.1%} are zero)")
        else:
            edit.revalued(model, view, values, {_MARK: self.pattern} if self.pattern else None)
            note = f"{zeros:.1%} zeros" + (f" in {self.pattern}" if self.pattern else "")
            ctx.changed(view, view.nbytes, note=f"{note}; smaller once packed", **figures)

    def _mask(self, view: WeightView, limit: float) -> np.ndarray:
        """What to keep, in the stored shape."""
        import numpy as np

        from onnxshrink.kernels import masks

        scores = _scores(view)
        if self.threshold is not None:
            mask = scores >= self.threshold
        elif self.pattern:
            mask = _by_channel(view, scores, lambda s: masks.n_of_m(s, *self._pattern))
        elif self.block:
            whole = masks.by_ratio(masks.blocks(scores, self.block), self.ratio)
            mask = masks.spread(whole, self.block, scores.shape)
        elif self.scope == "model":
            mask = masks.lamp(scores) >= limit
        elif self.scope == "row":
            mask = np.stack([masks.by_ratio(row, self.ratio) for row in scores])
        else:
            mask = masks.by_ratio(scores, self.ratio)
        return view.from_matrix(mask)

    def _limit(self, views: Iterable[WeightView]) -> float:
        """The score below which weights go, over all that may."""
        from onnxshrink.kernels import masks

        found = []
        for view in views:
            if not self.weights.why_not(view) and not _obstacle(view):
                found.append(masks.lamp(_scores(view)))
                view.release()
        return masks.limit(found, self.ratio) if found else 0.0
