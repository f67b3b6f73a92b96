"""Write the linear operators of ai.onnx.ml in standard ones, so that others can shrink them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from onnxshrink.pipeline import Context, Pass

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model


@dataclass(frozen=True, kw_only=True)
class LowerMl(Pass):
    """Write the linear operators of ai.onnx.ml in standard ones, with equal outputs.

    LinearClassifier, LinearRegressor, Scaler and Normalizer, as scikit-learn's converters make
    them, keep their weights in attributes, where no other pass finds them. Afterwards they are
    initializers of MatMul and Gemm. Run quantize-weights next.

    The results are those of ONNX Runtime's kernels, up to the rounding of sums. What cannot be
    written that way is left alone, with the reason.
    """

    # A small operator is shorter than the nodes that replace it. It is the next pass that makes
    # the weights smaller, and it has nothing to work on unless this step may stand.
    may_grow: ClassVar[bool] = True

    @property
    def bound(self) -> float:
        """Only sums are taken in another order."""
        return 1e-5

    def apply(self, model: Model, ctx: Context) -> None:
        """Lower every operator that has an exact counterpart."""
        from onnxshrink.graph.rewrite import ml

        operators = list(ml.find(model))
        for done, operator in enumerate(operators):
            ctx.progress(self.name, done, len(operators))
            kind, label = operator.node.op_type, operator.label
            try:
                before, after = ml.lower(model, operator)
            except ValueError as error:
                ctx.skip(label, f"{kind} {error}")
                continue
            ctx.changed(label, after, before=before, kind=kind, note="standard operators")
        ctx.progress(self.name, len(operators), len(operators))
        ml.drop_import(model)
