"""Store weights, or compute the whole model, in float16."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from onnxshrink.errors import RecipeError
from onnxshrink.options import option
from onnxshrink.pipeline import Context, Pass
from onnxshrink.select import Select, select

if TYPE_CHECKING:
    import numpy as np

    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.weights.views import WeightView
    from onnxshrink.kernels.observers import Need

_FLOAT = 1  # ONNX's number of the type
_LARGEST = 65504 / 2  # other inputs may have values twice as large as those that were seen
#: Operators that lose most to few bits and a small range.
_DELICATE = {
    "Clip", "Div", "Exp", "Log", "Pow", "Reciprocal", "ReduceL2", "ReduceMean", "ReduceSum",
    "ReduceSumSquare", "Sqrt",
}  # fmt: skip

_WORTH = 64  # elements that a constant must have for a whole model to be converted


@dataclass(frozen=True, kw_only=True)
class ToFloat16(Pass):
    """Store float32 weights in half the bytes.

    By default only the stored weights change: each gets a Cast that ONNX Runtime folds when it
    loads the model, so it runs exactly as before. With ``full`` the whole graph computes in
    float16 (inputs and outputs keep their types), which pays on GPUs and NPUs, seldom on a CPU.
    Nodes whose values leave float16's range on the inputs stay in float32, and so do operators
    that ONNX Runtime cannot run in float16. ``io`` changes the types of inputs and outputs, too: so
    the cache of a decoder takes half the memory, and its callers must give and take float16.
    """

    full: bool = option(False, help="compute in float16 too, not only store")
    io: Literal["float32", "float16"] = option(
        "float32", help="with full: the type of inputs and outputs that are float32"
    )
    weights: Select = select(min_size=64)

    retreats = True
    saves = True

    @property
    def bound(self) -> float:
        """11 bits a weight, through a whole network."""
        return 0.05

    def needs(self, model: Model) -> Iterator[Need]:
        """For ``full``: the range of every value of the main graph."""
        from onnxshrink.graph.analysis import shapes
        from onnxshrink.kernels.observers import Extremes, Need

        if self.full:
            kinds = shapes.walk(model).elements
            for node in model.ir.graph:
                for value in (*node.inputs, *node.outputs):
                    if value is not None and value.name and kinds.get(value) == _FLOAT:
                        yield Need(value.name, Extremes())

    def apply(self, model: Model, ctx: Context) -> None:
        """Convert the weights one by one, or the graph as a whole."""
        from onnxshrink.graph import weights

        if self.io == "float16" and not self.full:
            raise RecipeError(
                f"{self.name}: 'io' is for 'full': stored weights alone change no types"
            )
        if self.full:
            self._convert(model, ctx)
            return
        for view, _ in ctx.each(self, weights.find(model), any_role=True):
            narrow(view, model, ctx)

    def _convert(self, model: Model, ctx: Context) -> None:
        from onnxshrink.graph import weights
        from onnxshrink.graph.rewrite import hoist, inline, whole
        from onnxshrink.runtime import half

        if self.weights != type(self)().weights:
            raise RecipeError(f"{self.name}: 'full' converts every weight; it takes no selection")
        if not any(
            view.dtype.name == "FLOAT" and view.size >= _WORTH for view in weights.find(model)
        ):
            ctx.skip("graph", f"no float32 constant in it has {_WORTH} elements or more")
            return
        wide = [value.name or "" for value in (*model.inputs, *model.ir.graph.outputs)
                if self.io == "float16" and re.search(r"\bFLOAT\b", str(value.type))]  # fmt: skip
        if self.io == "float16" and not wide:
            ctx.skip("signature", "no input or output is of float32")
        ctx.step.retyped = bool(wide)
        before = model.nbytes()
        inline.inline_functions(model)  # the converter does not know them
        beyond, plain = self._beyond(model, ctx), model.clone()
        if model.ir.ir_version >= 4:
            # The converter keeps initializers of nodes that stay in float32, but not Constants.
            hoist.hoist_constants(plain, 1)
        types: set[str] = set()
        convert = partial(half.to_float16, made=beyond, types=types, keep_io=not ctx.step.retyped)
        while True:
            trial = plain.clone()
            whole.rewrite(trial, convert)
            if ctx.step.retyped:
                trial.touch(*wide)
            reason = ctx.verify(trial)
            words = set(re.findall(r"\w+", reason)) if reason.startswith("the result") else set()
            at_fault = {node.op_type for node in model.nodes if node.op_type in words} - types
            if reason and not at_fault:
                at_fault = _DELICATE - types
            if not at_fault:
                break
            types |= at_fault
        for node in model.nodes:
            if node.op_type in types:
                ctx.skip(node.name or node.outputs[0].name or "", "float16 does not do for it")
        if trial.nbytes() >= before:
            ctx.skip("graph", "would not be smaller: too much of it stays in float32")
            return
        model.adopt(trial)
        ctx.changed("graph", model.nbytes(), before=before, kind="graph", note="float16")
        if wide:
            ctx.warn(f"take and give float16 now, as asked for: {', '.join(wide)}")

    def _beyond(self, model: Model, ctx: Context) -> set[str]:
        """The first outputs of nodes with values that float16 cannot hold; they are reported."""
        from onnxshrink.graph import read, weights
        from onnxshrink.kernels.observers import Extremes, Need

        found = set()
        for node in model.ir.graph:
            if read.is_constant(node):
                continue
            values = [value for value in (*node.inputs, *node.outputs) if value is not None]
            needs = [Need(value.name or "", Extremes()) for value in values]
            seen = [ctx.statistics[need] for need in needs if need in ctx.statistics]
            ends = [max(-sums.low.min(), sums.high.max()) for sums in seen if sums.feeds]
            tensors = [tensor for v in node.inputs if v and (tensor := weights.constant(v))]
            if (largest := float(max(ends, default=0.0))) > _LARGEST:
                reason = f"values up to {largest:.3g} are beyond float16"
            elif any(t.dtype.name == "FLOAT" and in_half(t.numpy()) is None for t in tensors):
                reason = "float16 does not hold its constants to 11 bits"
            else:
                continue
            found.add(node.outputs[0].name or "")
            ctx.skip(node.name or node.outputs[0].name or "", reason)
        return found


def in_half(values: np.ndarray) -> np.ndarray | None:
    """Values in float16, where that loses nothing worth the name; else None."""
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore"):
        half = values.astype(np.float16)
        error = np.linalg.norm(half - values)
    # Half a unit in the last place of the tensor as a whole: a few subnormal values may lose
    # more, which is nothing beside the others.
    if not np.isfinite(half).all() or not error <= np.linalg.norm(values) * 2.0**-11:
        return None
    return half


def narrow_beside(vectors: Sequence[WeightView], model: Model, ctx: Context) -> None:
    """Store long vectors as float16 beside weights that a step made smaller.

    Where they would save more than the weights did, the model was small already, in integers most
    likely, and its vectors are what keeps it exact.
    """
    saved = sum(change.before - change.after for change in ctx.step.changes)
    for view in vectors:
        if sum(vector.nbytes for vector in vectors) / 2 > saved:
            ctx.skip(view, "the weights next to it are small already: it keeps them exact")
        else:
            narrow(view, model, ctx)
        view.release()


def narrow(view: WeightView, model: Model, ctx: Context) -> None:
    """Store one constant as float16 behind a Cast, where that loses nothing worth the name."""
    import numpy as np

    from onnxshrink.graph.forms import dequantize

    if view.dtype.name not in ("FLOAT", "DOUBLE"):
        ctx.skip(view, f"is stored as {view.dtype.name.lower()} already")
        return
    half = in_half(view.array().astype(np.float32))
    if half is None:
        ctx.skip(view, "float16 does not hold its values to 11 bits")
        return
    after = half.nbytes + dequantize.CAST_OVERHEAD
    if after >= view.nbytes:
        ctx.skip(view, "would not be smaller as float16")
        return
    dequantize.stored_as(model, view, half)
    ctx.changed(view, after, note="float16, folded at load")
