"""Which nodes are quantized: those asked for, and those between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxshrink.errors import RecipeError
from onnxshrink.select import KEPT, Named, Select, unmatched

if TYPE_CHECKING:
    from onnxshrink.graph.forms.integer_kernels import IntegerCandidate
    from onnxshrink.passes.quantize_static.preparing import Preparation


def check_patterns(select: Select, work: Preparation) -> None:
    """Refuse patterns that name nothing; report nodes that are asked for in vain.

    Raises:
        RecipeError: A pattern matches no node and no weight.
    """
    from onnxshrink.graph import weights
    from onnxshrink.graph.forms.integer_kernels import IntegerCandidate, kernel

    nodes = [IntegerCandidate(node, "whole", ()) for node in work.model.nodes]
    named: list[Named] = [*nodes, *weights.find(work.model)]
    if missing := unmatched(select, named):
        raise RecipeError(f"quantize-static: nothing matches {', '.join(map(repr, missing))}")
    for one in nodes if select.only else ():
        if kernel(one.node) is None and not select.left_out(one):
            work.ctx.skip(one.name, f"ONNX Runtime has no integer kernel for {one.op_type}")


def refusal(select: Select, one: IntegerCandidate) -> str:
    """Why a node is not quantized for its own sake; empty when it is."""
    if one.weight is not None and one.size < select.min_size:
        return f"fewer than {select.min_size} elements"
    if reason := select.left_out(one) or one.why_not:
        return reason
    if one.weight is not None or select.only:
        return ""
    if one.kind == "product":
        return "multiplies two activations, which gains little; name it with 'only' to have it"
    return "between quantized values only"


def rides(select: Select, one: IntegerCandidate) -> bool:
    """Whether a node may be quantized for its neighbours' sake."""
    if one.kind == "product" or one.why_not:
        return False
    if select.only and one.kind == "function":
        return False
    return select.left_out(one) != KEPT


def unfit(candidate: IntegerCandidate) -> str:
    """Why a product's constants cannot be quantized; empty when they can."""
    import numpy as np

    from onnxshrink.graph.read import constant

    view, bias = candidate.weight, candidate.bias
    if view is None:
        arrays = [constant(v) for i in candidate.constants if (v := candidate.node.inputs[i])]
        fits = all(np.isfinite(a.numpy()).all() and a.size for a in arrays if a is not None)
        return "" if fits else "holds NaN or infinity"
    finite = np.isfinite(view.array()).all()
    if bias is not None and not np.isfinite(bias.numpy()).all():
        finite = np.False_
    view.release()
    return "" if finite else "holds NaN or infinity"
