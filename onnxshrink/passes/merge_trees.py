"""Store forests and boosted trees in the fewest numbers that give the same answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxshrink.pipeline import Context, Pass

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model

_LEAST = 1024  # bytes of a node's attributes that are worth a word


@dataclass(frozen=True, kw_only=True)
class MergeTrees(Pass):
    """Store forests and boosted trees in the fewest numbers that give the same answers.

    TreeEnsembleClassifier and TreeEnsembleRegressor become TreeEnsemble of ai.onnx.ml 5, which
    ONNX Runtime runs from version 1.20 on with the same kernel. It has no text for every node, and
    no weight for every class at every leaf. Splits with equal sides go, and equal leaves are one.
    Leaves that weigh several classes become a table beside the trees, which quantize-weights,
    share-codebook and to-float16 (with a small min_size) and coded storage work on.

    The results are those of ONNX Runtime's kernels, up to the rounding of sums. What cannot be
    written that way is left alone, with the reason.
    """

    @property
    def bound(self) -> float:
        """Only sums are taken in another order."""
        return 1e-5

    def apply(self, model: Model, ctx: Context) -> None:
        """Rewrite all ensembles, or none: the newer version has the older operators no more."""
        from onnxshrink.graph.rewrite import ml, trees
        from onnxshrink.graph.rewrite.opset import TREES_SINCE, has_trees

        found = list(ml.find(model, trees.KINDS))
        if not has_trees(model):
            for operator in found:
                ctx.skip(operator.label, f"TreeEnsemble needs ONNX Runtime {TREES_SINCE} or newer")
            return
        known = {id(operator.node) for operator in found}
        others = [each for each in model.nodes if id(each) not in known]
        for node in others:
            large = sum(_nbytes(attribute) for attribute in node.attributes.values())
            if node.domain == ml.DOMAIN and large >= _LEAST:
                reason = f"{node.op_type} has {large:,} bytes of numbers in its attributes"
                label = node.name or node.op_type
                ctx.skip(label, f"{reason}, and no other form that ONNX Runtime computes the same")
        rows = []
        trial = model.clone() if len(found) > 1 else model
        for operator in list(ml.find(trial, trees.KINDS)) if len(found) > 1 else found:
            try:
                rows.append((operator, *trees.rewrite(trial, operator)))
            except ValueError as error:
                ctx.skip(operator.label, f"{operator.node.op_type} {error}")
        if len(rows) < len(found):
            for operator, *_ in rows:
                ctx.skip(operator.label, "another ensemble of the model cannot be rewritten")
            return
        if trial is not model and rows:
            rows = [(each, *trees.rewrite(model, each)) for each in found]
        for operator, before, after, note in rows:
            ctx.changed(operator.label, after, before=before, kind=operator.node.op_type, note=note)
        if rows:
            trees.import_version(model)


def _nbytes(attribute: object) -> int:
    """About the bytes of an attribute's lists; of tensors and single numbers none."""
    value = getattr(attribute, "value", None)
    if not isinstance(value, list | tuple):
        return 0
    return sum(len(each) if isinstance(each, str | bytes) else 4 for each in value)
