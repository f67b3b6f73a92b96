"""Set the smallest weights to zero: a share, below a threshold, N of every M, or in blocks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

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
    zeros on. Neither saves memory or time: ONNX Runtime computes with zeros as with other numbers,
    and loading a sparse model takes 5 times as long, at a peak of 7 times the float model's memory.
    A ``pattern`` of 2:4 is what NVIDIA's sparse tensor cores skip; it is noted in the tensor's
    metadata as ``onnxshrink.sparsity``.

    Without data, at most 20 to 30 % is harmless on most models.
    """

    ratio: float = option(0.5, help="share of the weights that become zero", ge=0, le=1)
    threshold: float | None = option(
        None, help="instead of a share: every weight below this magnitude", ge=0
    )
    scope: Literal["model", "weight", "row"] = option(
        "model",
        help="take that share of the model as a whole (by LAMP scores, which never empty a layer),"
        " of each weight, or of each output channel",
    )
    pattern: str = option("", help="instead of a share: N:M keeps N of every M inputs, such as 2:4")
    block: str = option(
        "", help="remove whole blocks of so many output channels and inputs, such as 4x1"
    )
    store: Literal["dense", "sparse"] = option(
        "dense", help="sparse: without the zeros, where that is smaller; on disk only"
    )
    weights: Select = select()

    def __post_init__(self) -> None:
        super().__post_init__()
        n, m = self._numbers("pattern", ":", (1, 2))
        if n >= m:
            raise RecipeError(
                f"{self.name}: option 'pattern' keeps N of M, and {n} of {m} removes nothing"
            )
        self._numbers("block", "x", (1, 1))
        if (self.threshold is not None) + bool(self.pattern) + bool(self.block) > 1:
            raise RecipeError(f"{self.name}: use one of 'threshold', 'pattern' and 'block'")

    def _numbers(self, name: str, between: str, default: tuple[int, int]) -> tuple[int, int]:
        """The two numbers of an option such as 2:4."""
        text = getattr(self, name)
        found = re.fullmatch(rf"([1-9]\d{{0,5}}){between}([1-9]\d{{0,5}})", text)
        if found is None and text:
            raise RecipeError(
                f"{self.name}: option {name!r} takes two numbers such as 2{between}4, not {text!r}"
            )
        return (int(found[1]), int(found[2])) if found else default

    @property
    def may_grow(self) -> bool:  # type: ignore[override]
        """Zeros take as many bytes as the weights did; notes of a pattern some dozen more."""
        return bool(self.pattern)

    @property
    def bound(self) -> float:
        """What is pruned without data must at least stay recognisable."""
        return 0.7

    def apply(self, model: Model, ctx: Context) -> None:
        """Prune every selected weight, the largest first."""
        from onnxshrink.graph import opset, palette, weights

        if self.store == "sparse":
            opset.raise_opset(model, palette.OPSET)
        views = list(weights.find(model))
        limit = self._limit(views)
        palettes = palette.Palettes(model)
        for view, options in ctx.each(self, views):
            if reason := _obstacle(view):
                ctx.skip(view, reason)
                continue
            try:
                mask = options._mask(view, limit if self._shares(view) else None)
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
        error = error / size if size else 0.0
        kept = np.count_nonzero(values)
        sparse = kept * view.dtype.itemsize + values.size / 8 + palette.SPARSE_OVERHEAD
        sparse += palettes.cost(view, 2)
        if self.store == "sparse" and sparse < view.nbytes:
            after = palettes.replace_sparse(view, values)
            note = f"{zeros:.1%} zeros, sparse; smaller on disk, dense once loaded"
            ctx.changed(view, after, note=note, sparsity=zeros, relative_error=error)
        elif np.array_equal(values, before):
            ctx.skip(view, f"has no more weights to remove ({zeros:.1%} are zero)")
        else:
            edit.revalued(model, view, values, {_MARK: self.pattern} if self.pattern else None)
            note = f"{zeros:.1%} zeros" + (f" in {self.pattern}" if self.pattern else "")
            note = f"{note}; smaller once packed"
            ctx.changed(view, view.nbytes, note=note, sparsity=zeros, relative_error=error)

    def _mask(self, view: WeightView, limit: float | None) -> np.ndarray:
        """What to keep, in the stored shape.

        Args:
            view: The weight.
            limit: The LAMP score to keep from; None: decide by this weight alone.

        Raises:
            ValueError: The pattern does not divide its inputs, or it holds NaN or infinity.
        """
        import numpy as np

        from onnxshrink.kernels import masks

        scores = _scores(view)
        if self.threshold is not None:
            return _stored(view, scores >= self.threshold)
        if self.pattern:
            n, m = self._numbers("pattern", ":", (1, 2))
            kept = _by_channel(view, scores, lambda s: masks.n_of_m(s, n, m))
            return _stored(view, kept)
        units = self._units(scores)
        if limit is not None:
            mask = masks.lamp(units) >= limit
        elif self.scope == "row":
            mask = np.stack([masks.by_ratio(row, self.ratio) for row in units])
        else:
            mask = masks.by_ratio(units, self.ratio)
        block = self._numbers("block", "x", (1, 1))
        return _stored(view, masks.spread(mask, block, scores.shape))

    def _units(self, scores: np.ndarray) -> np.ndarray:
        """Scores of what is removed together."""
        from onnxshrink.kernels import masks

        return masks.blocks(scores, self._numbers("block", "x", (1, 1))) if self.block else scores

    def _shares(self, view: WeightView) -> bool:
        """Whether the model as a whole decides how much of a weight goes."""
        alone = self.threshold is not None or self.pattern or self.scope != "model"
        return not alone and not {"ratio", "scope", "threshold", "pattern"} & {
            *self.weights.overrides(view)
        }

    def _limit(self, views: Iterable[WeightView]) -> float:
        """The LAMP score below which weights go, over all that may."""
        from onnxshrink.kernels import masks

        found = []
        for view in views:
            if self.weights.why_not(view) or _obstacle(view) or not self._shares(view):
                continue
            try:
                scores = _scores(view)
            except ValueError:  # reported when its turn comes
                continue
            found.append(masks.lamp(self._units(scores)))
            view.release()
        return masks.limit(found, self.ratio) if found else 0.0


def _obstacle(view: WeightView) -> str:
    """Why its zeros would not mean connections less; empty when they do."""
    if view.op_type in _ELEMENTWISE:
        return f"is not summed over, but used element by element ({view.op_type})"
    return ""


def _stored(view: WeightView, mask: Any) -> np.ndarray:
    """A mask of the matrix as one of the weight."""
    stored: np.ndarray = view.from_matrix(mask)
    return stored


def _scores(view: WeightView) -> np.ndarray:
    """Magnitudes as [outputs, inputs].

    Raises:
        ValueError: NaN or infinity.
    """
    import numpy as np

    scores: np.ndarray = np.abs(view.matrix.astype(np.float32))
    if not np.isfinite(scores).all():
        raise ValueError("holds NaN or infinity")
    return scores


def _by_channel(
    view: WeightView, scores: np.ndarray, mask_of: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """A mask whose neighbours are input channels: those of a kernel have its places outside."""
    rows = len(scores)
    channels = view.shape[view.axes.contract[0]] // view.axes.groups if view.axes.contract else 1
    apart = scores.reshape(rows, channels, -1).transpose(0, 2, 1)
    mask: np.ndarray = mask_of(apart).transpose(0, 2, 1).reshape(rows, -1)
    return mask
