"""Store weights as 8 or 4-bit integers and rebuild them where they are used."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from onnxshrink.errors import RecipeError
from onnxshrink.options import amended, option
from onnxshrink.passes import _rounding
from onnxshrink.passes._rounding import Clip, Rounding
from onnxshrink.pipeline import Context, Pass
from onnxshrink.select import SKIP, Select, select, variants

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.forms.dequantize import Form
    from onnxshrink.graph.forms.layout import Layout
    from onnxshrink.graph.weights.views import WeightView
    from onnxshrink.kernels.observers import Need

_SPELLINGS = {
    "QInt8": "int8", "QUInt8": "uint8", "QInt4": "int4", "QUInt4": "uint4",
    "QInt2": "int2", "QUInt2": "uint2", "QFLOAT8E4M3FN": "float8e4m3fn",
    "8": "int8", "4": "int4", "2": "int2",
}  # fmt: skip
_BLOCK_SIZES = (16, 32, 64, 128, 256)  # those of MatMulNBits
_BLOCK = 32  # where nothing is said
_LOOKED_UP = 2**20  # smaller tables are not worth the nodes that a lookup of integers takes
_TYPES_SINCE = {2: 25, 4: 21}  # the operator sets that brought types of so many bits


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

    dtype: Literal[
        "int8", "uint8", "int4", "uint4", "int2", "uint2", "float8e4m3fn", "float8e5m2"
    ] = option(
        "int8", help="stored type; 8, 4 or 2 are short for the signed integers",
        also=("weight_type", "bits"), spellings=_SPELLINGS,
    )  # fmt: skip
    per_channel: bool = option(
        True, help="one scale for each output channel instead of one for each tensor"
    )
    block_size: int = option(
        0, help="weights that share a scale along the contraction axis; 0: the whole channel", ge=0
    )
    symmetric: bool | None = option(
        None,
        help="zero in the middle of the range; false: a zero point; by default a zero point where "
        "it saves more error than its bytes would elsewhere",
    )
    clip: Clip = option(
        "auto",
        help="range of codes: every weight, or the one with the least squared error; auto: the "
        "latter below 8 bits",
    )
    rounding: Rounding = option(
        "balanced",
        help="rtn: to nearest; balanced: so that the errors of each channel cancel; mse: to "
        "nearest in the range with the least squared error; hqq: a grid for the bulk of the "
        "weights; gptq and adaround: so that weights make up for each other's errors on the "
        "calibration inputs",
    )
    sequential: bool = option(
        False, help="for gptq and adaround: fit layers to inputs from those quantized before them"
    )
    form: Literal["auto", "dq", "cast-mul", "nbits"] = option(
        "auto",
        help="nodes that rebuild the weights; auto: the form that runs fastest; nbits: ONNX "
        "Runtime's own MatMulNBits and GatherBlockQuantized",
    )
    accuracy_level: int = option(
        4, help="of MatMulNBits: 4 rounds activations to 8 bits, which is faster than 0", ge=0, le=4
    )
    vectors: Literal["float16", "keep"] = option(
        "float16", help="how to store long biases and norm parameters, which stay exact to 11 bits"
    )
    weights: Select = select(min_size=64)

    retreats = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype.startswith("float8"):
            if self.form == "nbits":
                raise RecipeError(f"{self.name}: form nbits takes integers, not {self.dtype}")
            if self.symmetric is False:
                raise RecipeError(f"{self.name}: {self.dtype} has no zero point: symmetric it is")
        if self.form == "nbits" and self.block_size not in (0, *_BLOCK_SIZES):
            raise RecipeError(
                f"{self.name}: form nbits takes a block_size of "
                f"{', '.join(map(str, _BLOCK_SIZES))}, not {self.block_size}"
            )

    @property
    def bound(self) -> float:
        """8 bits must stay close; fewer must at least stay recognisable."""
        return 0.7 if self.dtype.endswith(("4", "int2")) else 0.25

    def needs(self, model: Model) -> Iterator[Need]:
        """For ``gptq`` and ``adaround``: second moments of the selected weights' inputs."""
        from onnxshrink.graph import weights

        if any(
            variant.rounding in _rounding.CALIBRATED for variant in variants(self, self.weights)
        ):
            views = [view for view in weights.find(model) if not self.weights.why_not(view)]
            parts = _rounding.groups(model, views) if self.sequential else [views]
            yield from _rounding.needs(parts[0] if parts else ())

    def apply(self, model: Model, ctx: Context) -> None:
        """Quantize every selected weight, the largest first; then narrow the long vectors."""
        from onnxshrink.graph import weights
        from onnxshrink.graph.rewrite import clean, opset
        from onnxshrink.passes.to_float16 import narrow_beside

        views, before = list(weights.find(model)), model.opset
        chosen = [view for view in views if not self.weights.why_not(view)]
        raised = opset.raise_opset(model, self._opset(model, chosen))
        if chosen:
            clean.forward_constants(model)
            views = list(weights.find(model))
        parts: list[list[WeightView]] = []
        if self.sequential:
            parts = _rounding.groups(model, [v for v in views if not self.weights.why_not(v)])
            order = {view: number for number, view in enumerate(itertools.chain(*parts))}
            views.sort(key=lambda view: order.get(view, len(order)))
        pairs, vectors = ctx.each(self, views, any_role=True), []
        if self.sequential:
            pairs = _rounding.recalibrated(pairs, parts, model, ctx)
        for view, options in pairs:
            if view.uses:
                options.store(view, model, ctx)
            elif options.vectors == "float16" and len(view.shape) == 1:
                vectors.append(view)  # a bias, or a norm's parameters
            else:
                ctx.skip(view, view.why_not)
        if not ctx.step.changes:
            return  # in a model whose weights stay as they are, so do its vectors
        if raised:
            ctx.changed("opset", 0, kind="model", note=opset.needs(before, model))
        narrow_beside(vectors, model, ctx)

    def _opset(self, model: Model, views: Iterable[WeightView]) -> int:
        """The operator set that the nodes emitted for these weights need."""
        from onnxshrink.kernels import affine

        needed = 0
        for view in views:
            rows = [row for row in self.weights.matching(view) if row != SKIP]
            chosen = amended(self, rows, self.name)
            form = chosen._form(view, model)
            if form == "nbits":
                continue  # packed in bytes, by operators of their own
            needed = max(needed, _TYPES_SINCE.get(affine.BITS[chosen.dtype], 0))
            if affine.is_float(chosen.dtype):
                needed = max(needed, 19)
            if form == "dq":
                needed = max(needed, 21 if chosen.block_size else 13)
        return needed

    def store(self, view: WeightView, model: Model, ctx: Context, why: str = "") -> None:
        """Quantize one weight, or say why it is left alone; ``why`` it is stored so is noted."""
        from onnxshrink.graph.forms import dequantize, nbits
        from onnxshrink.graph.forms.rebuild import REBUILD_OVERHEAD
        from onnxshrink.kernels import affine

        form = self._form(view, model)
        layout = self._layout(view, form)
        try:
            stored, method = _rounding.quantize(
                layout, self.dtype, self.rounding, ctx, clip=self.clip,
                # Kernels that take codes as they are differ in what they know of zero points.
                symmetric=True if self.symmetric is None and form != "cast-mul" else self.symmetric,
                short_scale=form != "dq",
            )  # fmt: skip
        except ValueError as error:
            ctx.skip(view, str(error))
            return
        if stored.nbytes + REBUILD_OVERHEAD >= view.nbytes:
            ctx.skip(view, f"would not be smaller as {self.dtype}")
            return
        sqnr = affine.sqnr_db(layout.values(), stored)
        if form == "nbits":
            after = nbits.stored(model, view, stored, self.accuracy_level)
        elif layout.order == "turned":
            after = dequantize.dequantized_gemm(model, view, stored)
        else:
            after = dequantize.dequantized(model, view, stored, form)
        note = f"{self.dtype}, {stored.scale.size} scales, {form}"
        note += ", zero points" * (self.symmetric is None and not stored.centred)
        note += f", {method}" * (method not in ("rtn", "balanced"))
        if self.form == "nbits" and form != "nbits":
            why = nbits.why_not(view, stored.bits)
        reasons = filter(None, (why, _rounding.lesser(view, self.dtype, self.rounding, method)))
        note += "".join(f" ({reason})" for reason in reasons)
        ctx.changed(view, after, note=note, sqnr_db=sqnr)

    def _layout(self, view: WeightView, form: Form) -> Layout:
        """The shape in which to quantize a weight, and which weights share a scale."""
        from onnxshrink.graph.forms import layout

        if form == "nbits":
            return layout.blocks(view, self.block_size or _BLOCK)
        return layout.of(
            view, per_channel=self.per_channel, block_size=self.block_size,
            turned=form == "dq" and layout.can_turn(view),
        )  # fmt: skip

    def _form(self, view: WeightView, model: Model) -> Form:
        """The form that is asked for where it can be had, else the one that never costs time."""
        from onnxshrink.graph.forms import dequantize, nbits
        from onnxshrink.kernels import affine

        bits = affine.BITS[self.dtype]
        if self.form == "auto":
            # Codes of narrow types cannot be looked up; zero points would double the nodes.
            plain = self.dtype == "int8" and self.symmetric is not False and not self.block_size
            plain = plain and view.size >= _LOOKED_UP
            return "gather" if plain and dequantize.can_gather(model, view) else "cast-mul"
        if self.form == "dq" and not dequantize.can_dequantize(
            self._layout(view, "cast-mul"), bits
        ):
            return "cast-mul"
        if self.form == "nbits" and nbits.why_not(view, bits):
            return "cast-mul"
        return self.form
