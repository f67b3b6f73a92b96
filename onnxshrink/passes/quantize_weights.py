"""Store weights as 8 or 4-bit integers and rebuild them where they are used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from onnxshrink.options import option
from onnxshrink.pipeline import Context, Pass
from onnxshrink.select import Select, select

if TYPE_CHECKING:
    from onnxshrink.graph.edit import Form
    from onnxshrink.graph.model import Model
    from onnxshrink.graph.weights import WeightView

_SPELLINGS = {"QInt8": "int8", "QUInt8": "uint8", "QInt4": "int4", "QUInt4": "uint4"}
_VECTOR = 64  # shorter biases save less than the nodes that rebuild them cost
_SHORT = 32


@dataclass(frozen=True, kw_only=True)
class QuantizeWeights(Pass):
    """Store weights as integers and rebuild them where they are used.

    Activations stay in floating point. int8 per channel is close to lossless on almost every
    model and makes its weights four times smaller; 4 bits with blocks of 32 make them seven times
    smaller at a larger error.

    MatMul and Gemm weights become DequantizeLinear, which ONNX Runtime fuses into integer kernels
    that are faster than float. All others become Cast and Mul, which it folds when it loads the
    model: they are small on disk and run exactly as fast as before.
    """

    dtype: Literal["int8", "uint8", "int4", "uint4"] = option(
        "int8", help="stored type", also=("weight_type",), spellings=_SPELLINGS
    )
    per_channel: bool = option(
        True, help="one scale for each output channel instead of one for each tensor"
    )
    block_size: int = option(
        0, help="weights that share a scale along the contraction axis; 0: the whole channel", ge=0
    )
    symmetric: bool = option(True, help="zero in the middle of the range; false: a zero point")
    clip: Literal["minmax", "mse"] = option(
        "minmax", help="range of codes: every weight, or the one with the least squared error"
    )
    rounding: Literal["rtn", "balanced"] = option(
        "balanced", help="to nearest, or so that the errors of each channel cancel"
    )
    form: Literal["auto", "dq", "cast-mul"] = option(
        "auto", help="nodes that rebuild the weights; auto: the form that runs fastest"
    )
    vectors: Literal["float16", "keep"] = option(
        "float16", help="how to store long biases and norm parameters, which stay exact to 11 bits"
    )
    weights: Select = select()

    @property
    def bound(self) -> float:
        """8 bits must stay close; 4 bits must at least stay recognisable."""
        return 0.25 if self.dtype.endswith("8") else 0.7

    def apply(self, model: Model, ctx: Context) -> None:
        """Quantize every selected weight, the largest first; then narrow the long vectors."""
        from onnxshrink.graph import weights

        views = list(weights.find(model))
        narrowed = [v for v in views if self.vectors == "float16" and _is_vector(v)]
        for view, options in ctx.each(self, [v for v in views if v not in narrowed]):
            options._quantize(view, model, ctx)
        # In a model whose weights stay as they are, so do its vectors.
        for view in narrowed if ctx.step.changes else ():
            self._narrow(view, model, ctx)

    def _quantize(self, view: WeightView, model: Model, ctx: Context) -> None:
        from onnxshrink.graph import edit
        from onnxshrink.kernels import affine, metrics

        form = self._form(view)
        turned = form == "dq" and transposed_gemm(view)
        values = view.array().T if turned else view.array()
        shape, axes = self._grouping(view, form, turned)
        try:
            stored = affine.quantize(
                values.reshape(shape), self.dtype, axes,
                symmetric=self.symmetric, clip=self.clip, rounding=self.rounding,
                short_scale=form != "dq",
            )  # fmt: skip
        except ValueError as error:
            ctx.skip(view, str(error))
            return
        after = stored.nbytes + edit.overhead(view)
        if after >= view.nbytes:
            ctx.skip(view, f"would not be smaller as {self.dtype}")
            return
        error = metrics.sqnr_db(values.reshape(shape), affine.dequantize(stored))
        if turned:
            edit.dequantized_gemm(model, view, stored)
        else:
            edit.dequantized(model, view, stored, form)
        how = f"blocks of {self.block_size}" if self._blocks(view) else "per channel"
        ctx.changed(view, after, note=f"{self.dtype} {how}, {form}", sqnr_db=error)

    def _narrow(self, view: WeightView, model: Model, ctx: Context) -> None:
        import numpy as np

        from onnxshrink.graph import edit

        values = view.array().astype(np.float32)
        with np.errstate(over="ignore"):
            narrow = values.astype(np.float16)
        # Half a unit in the last place of the tensor as a whole: a few subnormal values may lose
        # more, which is nothing beside the others; infinity is never within it.
        if not np.linalg.norm(narrow - values) <= np.linalg.norm(values) * 2.0**-11:
            ctx.skip(view, "float16 does not hold its values to 11 bits")
            return
        after = narrow.nbytes + edit.overhead(view)
        if after >= view.nbytes:
            ctx.skip(view, "would not be smaller as float16")
            return
        edit.stored_as(model, view, narrow)
        ctx.changed(view, after, note="float16")

    def _blocks(self, view: WeightView) -> bool:
        """Whether the channels of a weight can be cut into blocks."""
        import math

        per_channel = math.prod(view.shape[axis] for axis in view.axes.contract)
        return bool(self.block_size) and per_channel % self.block_size == 0

    def _grouping(
        self, view: WeightView, form: Form, turned: bool
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shape in which to see a weight, and the axes along which weights share a scale."""
        import math

        shape, contract = view.shape, tuple(sorted(view.axes.contract))
        if turned:
            shape, contract = shape[::-1], tuple(1 - axis for axis in contract)
        if self._blocks(view):
            first, last = contract[0], contract[-1] + 1
            inner = math.prod(shape[first:last])
            if last - first == len(contract):  # adjacent: they can be cut as one
                split = (inner // self.block_size, self.block_size)
                return shape[:first] + split + shape[last:], (first + 1,)
        if not self.per_channel:
            return shape, tuple(range(len(shape)))
        if _short_rows(view):
            return shape, view.axes.out
        return shape, contract

    def _form(self, view: WeightView) -> Form:
        """The form that runs fastest in ONNX Runtime."""
        if self.form != "auto":
            return self.form
        ops = {use.op_type for use in view.uses}
        simple = all(use.direct for use in view.uses) and not view.others
        one_scale_a_row = not self.block_size and self.symmetric and self.dtype == "int8"
        if ops == {"Gather"} and simple and one_scale_a_row and not view.is_node:
            return "gather"
        return "cast-mul"


def _is_vector(view: WeightView) -> bool:
    """Biases, norm parameters: not multiplied with, one-dimensional, and free to be stored anew."""
    return not view.locked and not view.uses and len(view.shape) == 1 and view.size >= _VECTOR


def _short_rows(view: WeightView) -> bool:
    """Whether a lookup's rows are so short that a scale for each would cost more than it gains."""
    return view.op_type == "Gather" and view.size // view.shape[view.axes.out[0]] < _SHORT


def transposed_gemm(view: WeightView) -> bool:
    """Whether a weight is the second input of Gemm nodes with transB=1."""
    attribute = view.main.node.attributes.get("transB")
    return view.op_type == "Gemm" and attribute is not None and attribute.as_int() == 1
