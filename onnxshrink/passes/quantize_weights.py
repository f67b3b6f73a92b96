"""Store weights as 8 or 4-bit integers and rebuild them where they are used."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from onnxshrink.options import build, dump, option
from onnxshrink.pipeline import Context, Pass
from onnxshrink.select import SKIP, Select, select

if TYPE_CHECKING:
    from onnxshrink.graph.edit import Form
    from onnxshrink.graph.model import Model
    from onnxshrink.graph.weights import WeightView
    from onnxshrink.kernels.affine import Quantized
    from onnxshrink.kernels.observers import Need

_SPELLINGS = {"QInt8": "int8", "QUInt8": "uint8", "QInt4": "int4", "QUInt4": "uint4"}
_LOOKED_UP = 2**20  # smaller tables are not worth the nodes that a lookup of integers takes
_SHORT_ROW = 32  # a scale for every row of a lookup that is shorter would cost more than it gains


@dataclass(frozen=True, kw_only=True)
class QuantizeWeights(Pass):
    """Store weights as integers and rebuild them where they are used.

    Activations stay in floating point. int8 per channel is close to lossless on almost every
    model and makes its weights four times smaller; 4 bits with blocks of 32 make them seven times
    smaller at a larger error.

    By default a weight becomes Cast and Mul, which ONNX Runtime folds when it loads the model: it
    is small on disk and runs exactly as fast as before, on every provider. Embeddings stay small
    in memory too: rows are looked up as integers. ``form: dq`` writes DequantizeLinear instead,
    which ONNX Runtime's CPU provider fuses with MatMul into integer kernels: less memory, and
    faster or slower with the shapes, so measure it with ``onnxshrink bench``.
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
    rounding: Literal["rtn", "balanced", "gptq"] = option(
        "balanced",
        help="to nearest; so that the errors of each channel cancel; or so that weights make up "
        "for each other's errors on the calibration inputs",
    )
    form: Literal["auto", "dq", "cast-mul"] = option(
        "auto", help="nodes that rebuild the weights; auto: the form that runs fastest"
    )
    vectors: Literal["float16", "keep"] = option(
        "float16", help="how to store long biases and norm parameters, which stay exact to 11 bits"
    )
    weights: Select = select(min_size=64)

    @property
    def bound(self) -> float:
        """8 bits must stay close; 4 bits must at least stay recognisable."""
        return 0.25 if self.dtype.endswith("8") else 0.7

    def needs(self, model: Model) -> Iterator[Need]:
        """For ``gptq``: second moments of what the selected weights are multiplied with."""
        from onnxshrink.graph import moments, weights

        if any(variant.rounding == "gptq" for variant in self._variants()):
            for view in weights.find(model):
                if not self.weights.why_not(view):
                    yield from moments.needs(view)

    def apply(self, model: Model, ctx: Context) -> None:
        """Quantize every selected weight, the largest first; then narrow the long vectors."""
        from onnxshrink.graph import opset, weights
        from onnxshrink.passes.to_float16 import narrow

        views = list(weights.find(model))
        if any(not self.weights.why_not(view) for view in views):
            before = model.opset
            if raised := opset.raise_opset(model, self._opset()):
                views = list(weights.find(model))
        else:
            raised = False
        vectors = []
        for view, options in ctx.each(self, views, any_role=True):
            if view.uses:
                options._quantize(view, model, ctx)
            elif options.vectors == "float16" and len(view.shape) == 1:
                vectors.append(view)  # a bias, or a norm's parameters
            else:
                ctx.skip(view, view.why_not)
        if not ctx.step.changes:
            return  # in a model whose weights stay as they are, so do its vectors
        if raised:
            ctx.changed("opset", 0, kind="model", note=f"raised from {before} to {model.opset}")
        for view in vectors:
            narrow(view, model, ctx)
            view.release()

    def _opset(self) -> int:
        """The operator set that the emitted nodes need, under every override."""
        needed = 0
        for variant in self._variants():
            if variant.dtype.endswith("4") or (variant.form == "dq" and variant.block_size):
                needed = max(needed, 21)
            elif variant.form == "dq":
                needed = max(needed, 13)
        return needed

    def _variants(self) -> list[QuantizeWeights]:
        """The step itself, and with every override."""
        overrides = [o for o in self.weights.layers.values() if o != SKIP]
        return [self, *(build(type(self), {**dump(self), **o}, self.name) for o in overrides)]

    def _quantize(self, view: WeightView, model: Model, ctx: Context) -> None:
        from onnxshrink.graph import edit
        from onnxshrink.kernels import affine

        form = self._form(view, model)
        turned = form == "dq" and _transposed_gemm(view)
        values = view.array().T if turned else view.array()
        shape, axes = self._grouping(view, turned)
        values = values.reshape(shape)
        try:
            stored = affine.quantize(
                values, self.dtype, axes,
                symmetric=self.symmetric, clip=self.clip, short_scale=form != "dq",
                rounding="rtn" if self.rounding == "rtn" else "balanced",
            )  # fmt: skip
            fitted = self.rounding == "gptq" and self._fit(view, stored, turned, ctx)
        except ValueError as error:
            ctx.skip(view, str(error))
            return
        if stored.nbytes + edit.REBUILD_OVERHEAD >= view.nbytes:
            ctx.skip(view, f"would not be smaller as {self.dtype}")
            return
        stored = fitted or stored
        sqnr = affine.sqnr_db(values, stored)
        if turned:
            after = edit.dequantized_gemm(model, view, stored)
        else:
            after = edit.dequantized(model, view, stored, form)
        note = f"{self.dtype}, {stored.scale.size} scales, {form}" + ", gptq" * bool(fitted)
        ctx.changed(view, after, note=note, sqnr_db=sqnr)

    def _fit(
        self, view: WeightView, stored: Quantized, turned: bool, ctx: Context
    ) -> Quantized | None:
        """The same grid with codes rounded with error feedback; None where that cannot be done."""
        import numpy as np

        from onnxshrink.graph import moments
        from onnxshrink.kernels import affine

        def spread(values: np.ndarray) -> np.ndarray:
            full = np.broadcast_to(values, stored.codes.shape).astype(np.float32)
            return full.reshape(view.shape[::-1]).T if turned else full.reshape(view.shape)

        zero = np.zeros(()) if stored.zero_point is None else stored.zero_point
        codes = moments.fed_back(
            ctx.statistics, view, spread(stored.scale), spread(zero), affine.RANGES[self.dtype]
        )
        if codes is None:
            return None
        folded = (codes.T if turned else codes).reshape(stored.codes.shape)
        return replace(stored, codes=folded.astype(stored.codes.dtype))

    def _grouping(self, view: WeightView, turned: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shape in which to see a weight, and the axes along which weights share a scale."""
        shape, contract = view.shape, tuple(sorted(view.axes.contract))
        if turned:
            shape, contract = shape[::-1], tuple(1 - axis for axis in contract)
        if not self.per_channel or not contract:
            return shape, tuple(range(len(shape)))
        if self.block_size:
            first, last = contract[0], contract[-1] + 1
            inner = math.prod(shape[first:last])
            # Axes that lie side by side are cut as one; a channel that the size does not divide
            # keeps one scale.
            if last - first == len(contract) and inner % self.block_size == 0:
                split = (inner // self.block_size, self.block_size)
                return shape[:first] + split + shape[last:], (first + 1,)
        if view.op_type == "Gather" and view.size // shape[view.axes.out[0]] < _SHORT_ROW:
            return shape, view.axes.out
        return shape, contract

    def _form(self, view: WeightView, model: Model) -> Form:
        """The form that is asked for where it can be had, else the one that never costs time."""
        from onnxshrink.graph import edit

        if self.form == "auto":
            # Codes of narrow types cannot be looked up; zero points would double the nodes.
            plain = self.dtype == "int8" and self.symmetric and not self.block_size
            plain = plain and view.size >= _LOOKED_UP
            return "gather" if plain and edit.can_gather(model, view) else "cast-mul"
        if self.form == "dq" and not edit.can_dequantize(view, self._grouping(view, False)):
            return "cast-mul"
        return self.form


def _transposed_gemm(view: WeightView) -> bool:
    """Whether a weight is the second input of one Gemm with transB=1, and of nothing else."""
    use = view.main
    attribute = use.node.attributes.get("transB")
    return (
        (use.op_type, use.index, use.direct) == ("Gemm", 1, True)
        and len(view.uses) == 1
        and not view.others
        and attribute is not None
        and attribute.as_int() == 1
    )
