"""What the passes that set single weights to zero share: how much goes, where, stored how."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from onnxshrink.errors import RecipeError
from onnxshrink.options import option
from onnxshrink.pipeline import Context, Pass
from onnxshrink.select import Select, select

if TYPE_CHECKING:
    import numpy as np

    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.forms.codebook import CodebookWriter
    from onnxshrink.graph.weights.views import WeightView

_MARK = "onnxshrink.sparsity"


@dataclass(frozen=True, kw_only=True)
class Pruning(Pass):
    """A pass that sets single weights to zero. Those that inherit say which are worth least."""

    ratio: float = option(0.5, help="share of the weights that become zero", ge=0, le=1)
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
        if self.pattern and self.block:
            raise RecipeError(f"{self.name}: use one of 'pattern' and 'block'")

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
        """What is pruned must at least stay recognisable."""
        return 0.7

    # ------------------------------------------------------------------ what a pass says itself

    def scores(self, view: WeightView, ctx: Context) -> np.ndarray:
        """What each weight is worth, [outputs, inputs].

        Raises:
            ValueError: Why that cannot be said.
        """
        raise TypeError(f"{type(self).__name__} has no scores()")

    def shares(
        self, model: Model, views: Sequence[WeightView], ctx: Context
    ) -> Mapping[WeightView, float]:
        """The share of each weight that goes, where it is not ``ratio``."""
        return {}

    def figures(self, view: WeightView, matrix: np.ndarray, ctx: Context) -> dict[str, float]:
        """Error figures of the new weights, [outputs, inputs], besides those of every pass."""
        return {}

    @property
    def by_row(self) -> bool:
        """Whether each output channel loses the same share."""
        return False

    def pruned(self, view: WeightView, ratio: float, ctx: Context) -> np.ndarray:
        """The new weights, [outputs, inputs].

        Raises:
            ValueError: Why the weight must stay as it is.
        """
        import numpy as np

        kept = self.kept(view, self.scores(view, ctx), ratio)
        return np.where(kept, view.matrix, np.zeros((), view.dtype.numpy()))

    # --------------------------------------------------------------------------- what is shared

    def apply(self, model: Model, ctx: Context) -> None:
        """Prune every selected weight, the largest first."""
        from onnxshrink.graph import weights
        from onnxshrink.graph.forms import codebook
        from onnxshrink.graph.rewrite import opset

        views = list(weights.find(model))
        free = [v for v in views if not self.weights.why_not(v) and not obstacle(v)]
        shares = self.shares(model, free, ctx) if free else {}
        before = model.opset
        if self.store == "sparse" and opset.raise_opset(model, codebook.OPSET):
            views = list(weights.find(model))
        places = {_place(view): share for view, share in shares.items()}
        writer = codebook.CodebookWriter(model)
        for view, options in ctx.each(self, views):
            if reason := obstacle(view):
                ctx.skip(view, reason)
                continue
            try:
                matrix = options.pruned(view, places.get(_place(view), options.ratio), ctx)
            except ValueError as error:
                ctx.skip(view, str(error))
            else:
                figures = options.figures(view, matrix, ctx)
                options._store(view, view.from_matrix(matrix), model, writer, ctx, figures)
        if ctx.step.changes and model.opset > before:
            ctx.changed("opset", 0, kind="model", note=opset.needs(before, model))

    def kept(
        self, view: WeightView, scores: np.ndarray, ratio: float, part: float = 1.0
    ) -> np.ndarray:
        """What to keep.

        Args:
            view: The weight.
            scores: [outputs, inputs], of some of its outputs or all.
            ratio: The share that goes.
            part: How much of it goes by now, up to 1.

        Raises:
            ValueError: The pattern does not divide the inputs.
        """
        from onnxshrink.kernels import masks

        if self.pattern:
            n, m = self._numbers("pattern", ":", (1, 2))
            apart = _by_channel(view, scores)
            mask = masks.n_of_m(apart, m - round((m - n) * part), m)
            kept: np.ndarray = mask.transpose(0, 2, 1).reshape(scores.shape)
            return kept
        units, gone = self.units(scores), ratio * part
        mask = masks.by_row(units, gone) if self.by_row else masks.by_ratio(units, gone)
        return masks.spread(mask, self._numbers("block", "x", (1, 1)), scores.shape)

    def units(self, scores: np.ndarray) -> np.ndarray:
        """Scores of what is removed together."""
        from onnxshrink.kernels import masks

        return masks.blocks(scores, self._numbers("block", "x", (1, 1))) if self.block else scores

    def in_common(self, view: WeightView) -> bool:
        """Whether a weight competes with others for one share, rather than having its own."""
        own = {"ratio", "scope", "threshold", "pattern", "allocate"}
        return not self.pattern and not own & {*self.weights.overrides(view)}

    def _store(
        self, view: WeightView, values: np.ndarray, model: Model, writer: CodebookWriter,
        ctx: Context, figures: dict[str, float],
    ) -> None:  # fmt: skip
        import numpy as np

        from onnxshrink.graph import surgery
        from onnxshrink.graph.forms import codebook

        before = view.array()
        with np.errstate(over="ignore"):
            values = values.astype(before.dtype)
        if not np.isfinite(values.astype(np.float32)).all():
            ctx.skip(view, "its new weights would be too large for its type")
            return
        kept = np.count_nonzero(values)
        zeros = 1 - kept / values.size
        exact = before.astype(np.float64)
        size = float(np.linalg.norm(exact))
        error = float(np.linalg.norm(exact - values)) / size if size else 0.0
        sparse = kept * view.dtype.itemsize + values.size / 8 + codebook.SPARSE_OVERHEAD
        sparse += writer.cost(view, 2)
        note = f"{zeros:.1%} zeros" + (f" in {self.pattern}" if self.pattern else "")
        if self.store == "sparse" and sparse < view.nbytes:
            after = writer.replace_sparse(view, values)
            note = f"{note}, sparse; smaller on disk, dense once loaded"
        elif np.array_equal(values, before):
            ctx.skip(view, f"has no more weights to remove ({zeros:.1%} are zero)")
            return
        else:
            surgery.set_constant(
                model, view.value, values, {_MARK: self.pattern} if self.pattern else None
            )
            after, note = view.nbytes, f"{note}; smaller once packed"
        ctx.changed(view, after, note=note, sparsity=zeros, relative_error=error)
        ctx.step.changes[-1].error.update(figures)


def matrix_of(view: WeightView) -> np.ndarray:
    """The weights as float32 [outputs, inputs].

    Raises:
        ValueError: NaN or infinity.
    """
    import numpy as np

    with np.errstate(over="ignore"):
        matrix = np.array(view.matrix, np.float32)
    if not np.isfinite(matrix).all():
        raise ValueError("holds NaN or infinity")
    return matrix


def obstacle(view: WeightView) -> str:
    """Why its zeros would not mean connections less; empty when they do."""
    if view.uses and view.main.is_one_by_one:
        return f"is not summed over, but used element by element ({view.op_type})"
    return ""


def _place(view: WeightView) -> tuple[Any, int]:
    """Where a weight is used, which raising the operator set does not change."""
    return view.main.node, view.main.index


def _by_channel(view: WeightView, scores: np.ndarray) -> np.ndarray:
    """Scores with input channels last: those of a kernel have its places outside."""
    channels = view.shape[view.axes.contract[0]] // view.axes.groups if view.axes.contract else 1
    apart: np.ndarray = scores.reshape(len(scores), channels, -1).transpose(0, 2, 1)
    return apart
