"""How quantize-weights stores one weight: its grid, its codes, and the nodes that rebuild it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from onnxshrink.passes import _rounding
from onnxshrink.passes._rounding import Clip, Rounding
from onnxshrink.pipeline import Context

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.forms.dequantize import Form
    from onnxshrink.graph.forms.layout import Layout
    from onnxshrink.graph.weights.views import WeightView

Dtype = Literal["int8", "uint8", "int4", "uint4", "int2", "uint2", "float8e4m3fn", "float8e5m2"]
Asked = Literal["auto", "dq", "cast-mul", "nbits"]

_BLOCK = 32  # where nothing is said
_LOOKED_UP = 2**20  # smaller tables are not worth the nodes that a lookup of integers takes
_TYPES_SINCE = {2: 25, 4: 21}  # the operator sets that brought types of so many bits


@dataclass(frozen=True, kw_only=True)
class WeightScheme:
    """The options of one weight; the pass's options of the same names say what they mean."""

    dtype: Dtype
    per_channel: bool
    block_size: int
    symmetric: bool | None
    clip: Clip
    rounding: Rounding
    form: Asked
    accuracy_level: int

    def store(
        self, view: WeightView, model: Model, ctx: Context, why: str = "", came: int = 0
    ) -> None:
        """Quantize one weight, or say why it is left alone.

        Args:
            view: The weight.
            model: The model, which is edited.
            ctx: The statistics, and where to report.
            why: Why it is stored so; to be noted.
            came: Bytes of the codes in which it came, if it did.
        """
        from onnxshrink.graph.forms import dequantize, nbits
        from onnxshrink.graph.forms.rebuild import REBUILD_OVERHEAD
        from onnxshrink.kernels import affine

        form = self.form_for(view, model)
        layout = self.layout(view, form)
        try:
            stored, method = _rounding.quantize(
                layout, self.dtype, self.rounding, ctx, clip=self.clip,
                # Kernels that take codes as they are differ in what they know of zero points.
                symmetric=True if self.symmetric is None and form != "cast-mul" else self.symmetric,
                short_scale=form != "dq", signed_scale=form == "nbits",
            )  # fmt: skip
        except ValueError as error:
            ctx.skip(view, str(error))
            return
        now = dequantize.stored_bytes(stored, form) + REBUILD_OVERHEAD * (not came)
        if now >= (came or view.nbytes):
            ctx.skip(view, f"would not be smaller as {self.dtype}")
            return
        sqnr = affine.sqnr_db(layout.values(), stored)
        if self.form == "nbits" and form != "nbits":
            why = nbits.why_not(view, stored.bits, self.block_size or _BLOCK)
            ctx.warn(f"stored as {form}, not small in memory as nbits would be: {view.name} {why}")
        if form == "nbits":
            after = nbits.stored(model, view, stored, self.accuracy_level)
        elif layout.order == "turned":
            after = dequantize.dequantized_gemm(model, view, stored)
        else:
            after = dequantize.dequantized(model, view, stored, form)
        note = f"{self.dtype}, {stored.scale.size} scales, {form}"
        note += ", zero points" * (self.symmetric is None and not stored.centred)
        note += f", {method}" * (method not in ("rtn", "balanced"))
        reasons = filter(None, (why, _rounding.lesser(view, self.dtype, self.rounding, method)))
        note += "".join(f" ({reason})" for reason in reasons)
        ctx.changed(view, after, note=note, before=came, sqnr_db=sqnr)

    def narrow(self, view: WeightView, model: Model, ctx: Context) -> None:
        """Store the codes that an integer kernel takes in fewer bits, or say why not."""
        from onnxshrink.graph.forms import integer_codes
        from onnxshrink.graph.forms.rebuild import REBUILD_OVERHEAD
        from onnxshrink.kernels import affine

        if affine.is_float(self.dtype) or affine.BITS[self.dtype] >= 8:
            reason = f"its kernel ({view.op_type}) takes 8 bits, and {self.dtype} has no fewer"
            ctx.skip(view, reason)
            return
        nearest = self.rounding in ("rtn", "mse")
        found = integer_codes.coarser(
            view, self.dtype, symmetric=self.symmetric is not False,
            clip="minmax" if self.clip == "minmax" else "mse",
            rounding="rtn" if nearest else "balanced",
        )  # fmt: skip
        if found.stored.nbytes + REBUILD_OVERHEAD >= view.nbytes:
            ctx.skip(view, f"would not be smaller as {self.dtype}")
            return
        after = integer_codes.put_in_place(model, view, found)
        note = f"{self.dtype}, {found.stored.scale.size} steps of the codes of {view.op_type}"
        ctx.changed(view, after, note=note, sqnr_db=found.sqnr)

    def opset(self, view: WeightView, model: Model) -> int:
        """The operator set that the nodes emitted for a weight need."""
        from onnxshrink.kernels import affine

        form = self.form_for(view, model)
        if form == "nbits":
            return 0  # packed in bytes, by operators of their own
        needed = max(_TYPES_SINCE.get(affine.BITS[self.dtype], 0), 19 * affine.is_float(self.dtype))
        return max(needed, 21 if self.block_size else 13) if form == "dq" else needed

    def layout(self, view: WeightView, form: Form) -> Layout:
        """The shape in which to quantize a weight, and which weights share a scale."""
        from onnxshrink.graph.forms import layout

        if form == "nbits":
            return layout.blocks(view, self.block_size or _BLOCK)
        return layout.of(
            view, per_channel=self.per_channel, block_size=self.block_size,
            turned=form == "dq" and layout.can_turn(view),
        )  # fmt: skip

    def form_for(self, view: WeightView, model: Model) -> Form:
        """The form that is asked for where it can be had, else the one that never costs time."""
        from onnxshrink.graph.forms import dequantize, nbits
        from onnxshrink.kernels import affine

        bits = affine.BITS[self.dtype]
        if self.form == "auto":
            # Codes of narrow types cannot be looked up; zero points would double the nodes.
            plain = self.dtype == "int8" and self.symmetric is not False and not self.block_size
            plain = plain and view.size >= _LOOKED_UP
            return "gather" if plain and dequantize.can_gather(model, view) else "cast-mul"
        if self.form == "dq" and not dequantize.can_dequantize(self.layout(view, "cast-mul"), bits):
            return "cast-mul"
        if self.form == "nbits" and nbits.why_not(view, bits, self.block_size or _BLOCK):
            return "cast-mul"
        return self.form
