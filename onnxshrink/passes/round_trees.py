"""Round leaves of forests and boosted trees to few values, and thresholds to short numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from onnxshrink.options import option
from onnxshrink.pipeline import Context, Pass

if TYPE_CHECKING:
    import numpy as np

    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.rewrite.tree_values import Ensemble


@dataclass(frozen=True, kw_only=True)
class RoundTrees(Pass):
    """Round leaves of forests and boosted trees to few values, and thresholds to short numbers.

    Works on TreeEnsemble of ai.onnx.ml 5, as merge-trees writes it. Leaves of a target take a few
    values that are spread evenly. Equal leaves are stored once, and a split whose sides are equal
    goes: boosted trees of many classes lose two thirds of their splits.

    A threshold becomes the shortest number that sends every row of the inputs the same way, no
    further than half the way to the next value of its column. That makes packs and downloads some
    10 % smaller, not the plain file, and inputs that nobody has seen may take another way.
    """

    saves: ClassVar[bool] = True
    runs_models: ClassVar[bool] = True

    bits: int = option(8, help="bits of the values of leaves; 0: they stay", ge=0, le=16)
    thresholds: bool = option(
        False, help="make thresholds short, for packs and downloads; needs real inputs"
    )

    @property
    def bound(self) -> float:
        """What 8 bits do to a sum of trees, and some more."""
        return 0.05

    def apply(self, model: Model, ctx: Context) -> None:
        """Rewrite what gets smaller."""
        from onnxshrink.graph.rewrite import ml, tree_values, trees

        for operator in ml.find(model, trees.KINDS):
            ctx.skip(operator.label, f"{operator.node.op_type}: see what merge-trees says of it")
        for operator, stored in list(tree_values.find(model)):
            if isinstance(stored, str):
                ctx.skip(operator.label, f"TreeEnsemble {stored}")
                continue
            forest = stored.forest
            if self.bits:
                forest = tree_values.with_fewer_leaves(forest, self.bits)
            shorter = self.thresholds and bool(ctx.feeds) and not ctx.generated
            if shorter:
                forest = tree_values.with_short_thresholds(forest, _data(model, stored, ctx))
            splits = len(stored.forest.feature) - len(forest.feature)
            leaves = len(stored.forest.rows) - len(forest.rows)
            if not (splits or leaves or shorter):
                ctx.skip(operator.label, "no two leaves become one")
                continue
            before, after = tree_values.write(model, stored, forest)
            note = f"{splits:,} splits and {leaves:,} leaves went"
            note += ", thresholds are short" if shorter else ""
            ctx.changed(operator.label, after, before=before, kind="TreeEnsemble", note=note)


def _data(model: Model, stored: Ensemble, ctx: Context) -> np.ndarray:
    """What an ensemble reads, over all inputs."""
    import numpy as np

    from onnxshrink.trials import answers

    name = stored.input.name or ""
    if stored.input.producer() is None:
        return np.concatenate([feed[name] for feed in ctx.feeds])
    found = answers(model, ctx.feeds, ctx.worker, at=(name,))
    place = found.names.index(name) if name in found.names else -1
    return np.concatenate([outputs[place] for outputs in found.outputs])
