"""Store weights, or compute the whole model, in float16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxshrink.errors import RecipeError
from onnxshrink.options import option
from onnxshrink.pipeline import Context, Pass
from onnxshrink.select import Select, select

if TYPE_CHECKING:
    from onnxshrink.graph.model import Model
    from onnxshrink.graph.weights import WeightView


@dataclass(frozen=True, kw_only=True)
class ToFloat16(Pass):
    """Store float32 weights in half the bytes.

    By default only the stored weights change: each gets a Cast that ONNX Runtime folds when it
    loads the model, so it runs exactly as before. With ``full`` the whole graph computes in
    float16 (inputs and outputs keep their types), which pays on GPUs and NPUs, seldom on a CPU.
    """

    full: bool = option(False, help="compute in float16 too, not only store")
    weights: Select = select(min_size=64)

    retreats = True

    @property
    def bound(self) -> float:
        """11 bits a weight, through a whole network."""
        return 0.05

    def apply(self, model: Model, ctx: Context) -> None:
        """Convert the weights one by one, or the graph as a whole."""
        from onnxshrink.graph import weights

        if self.full:
            self._convert(model, ctx)
            return
        for view, _ in ctx.each(self, weights.find(model), any_role=True):
            narrow(view, model, ctx)

    def _convert(self, model: Model, ctx: Context) -> None:
        from onnxshrink.graph import inline, whole
        from onnxshrink.runtime import half

        if self.weights != type(self)().weights:
            raise RecipeError(f"{self.name}: 'full' converts every weight; it takes no selection")
        before = model.nbytes()
        inline.inline_functions(model)  # the converter does not know them
        whole.rewrite(model, half.to_float16)
        ctx.changed("graph", model.nbytes(), before=before, kind="graph", note="float16")


def narrow(view: WeightView, model: Model, ctx: Context) -> None:
    """Store one constant as float16 behind a Cast, where that loses nothing worth the name."""
    import numpy as np

    from onnxshrink.graph import edit

    if view.dtype.name not in ("FLOAT", "DOUBLE"):
        ctx.skip(view, f"is stored as {view.dtype.name.lower()} already")
        return
    with np.errstate(over="ignore", invalid="ignore"):
        values = view.array().astype(np.float32)
        half = values.astype(np.float16)
        error = np.linalg.norm(half - values)
    # Half a unit in the last place of the tensor as a whole: a few subnormal values may lose
    # more, which is nothing beside the others.
    if not np.isfinite(half).all() or not error <= np.linalg.norm(values) * 2.0**-11:
        ctx.skip(view, "float16 does not hold its values to 11 bits")
        return
    after = half.nbytes + edit.CAST_OVERHEAD
    if after >= view.nbytes:
        ctx.skip(view, "would not be smaller as float16")
        return
    edit.stored_as(model, view, half)
    ctx.changed(view, after, note="float16, folded at load")
