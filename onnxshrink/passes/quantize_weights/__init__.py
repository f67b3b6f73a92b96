"""Store weights as 8 or 4-bit integers and rebuild them where they are used."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from onnxshrink.errors import RecipeError
from onnxshrink.options import amended, option, picked
from onnxshrink.passes import _rounding
from onnxshrink.passes._rounding import Clip, Rounding
from onnxshrink.passes.quantize_weights.storing import Asked, Dtype, WeightScheme
from onnxshrink.pipeline import Context, Pass
from onnxshrink.select import SKIP, Select, select, variants

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.weights.views import WeightView
    from onnxshrink.kernels.observers import Need

_SPELLINGS = {
    "QInt8": "int8", "QUInt8": "uint8", "QInt4": "int4", "QUInt4": "uint4",
    "QInt2": "int2", "QUInt2": "uint2", "QFLOAT8E4M3FN": "float8e4m3fn",
    "8": "int8", "4": "int4", "2": "int2",
}  # fmt: skip
_FINE = 32  # weights of a block, where outputs do not tolerate a scale for each channel
_BLOCK_SIZES = (16, 32, 64, 128, 256)  # those of MatMulNBits


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

    dtype: Dtype = option(
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
    form: Asked = option(
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
    requantize: bool = option(
        False,
        help="weights that are integers already, too, which costs accuracy once more; those of "
        "integer kernels are stored in fewer bits, and rebuilt for them as the model loads",
    )
    weights: Select = select(min_size=64)

    retreats = True
    saves = True

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

    @property
    def finer(self) -> tuple[Mapping[str, Any], ...]:
        """Blocks, then 8 bits."""
        forms: list[Mapping[str, Any]] = []
        if not 0 < self.block_size <= _FINE:
            forms.append({"block_size": _FINE})
        if self.dtype.endswith(("4", "int2")):
            forms.append({"dtype": "int8"})
        return tuple(forms)

    def needs(self, model: Model) -> Iterator[Need]:
        """For ``gptq`` and ``adaround``: second moments of the selected weights' inputs."""
        from onnxshrink.graph import weights
        from onnxshrink.graph.forms import codes

        if any(
            variant.rounding in _rounding.CALIBRATED for variant in variants(self, self.weights)
        ):
            if self.requantize:
                model = model.clone()
                codes.take_out(model, codes.is_weight)
            views = [view for view in weights.find(model) if not self.weights.why_not(view)]
            parts = _rounding.groups(model, views) if self.sequential else [views]
            yield from _rounding.needs(parts[0] if parts else ())

    def apply(self, model: Model, ctx: Context) -> None:
        """Quantize every selected weight, the largest first; then narrow the long vectors."""
        from onnxshrink.graph import weights
        from onnxshrink.graph.forms import codes, integer_codes
        from onnxshrink.graph.rewrite import clean, opset
        from onnxshrink.passes.to_float16 import narrow_beside

        taken = codes.take_out(model, codes.is_weight) if self.requantize else {}
        views, before = list(weights.find(model)), model.opset
        if self.requantize:
            views = list(integer_codes.unlocked(views))
        chosen = [
            view
            for view in views
            if not self.weights.why_not(view, any_role=integer_codes.takes(view))
        ]
        raised = opset.raise_opset(model, self._opset(model, chosen))
        if chosen:
            clean.forward_constants(model)
            views = list(weights.find(model))
        if self.requantize:
            views = list(integer_codes.unlocked(views))
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
                came = taken[view.name].nbytes if view.name in taken else 0
                options.scheme.store(view, model, ctx, came=came)
            elif integer_codes.takes(view):
                options.scheme.narrow(view, model, ctx)
            elif options.vectors == "float16" and view.is_vector:
                vectors.append(view)  # a bias, or a norm's parameters
            else:
                ctx.skip(view, view.why_not)
        codes.put_back(model, list(weights.find(model)), taken)
        if not ctx.step.changes:
            return  # in a model whose weights stay as they are, so do its vectors
        if raised:
            ctx.changed("opset", 0, kind="model", note=opset.needs(before, model))
        narrow_beside(vectors, model, ctx)

    @property
    def scheme(self) -> WeightScheme:
        """How one weight is stored."""
        return picked(WeightScheme, self)

    def _opset(self, model: Model, views: Iterable[WeightView]) -> int:
        """The operator set that the nodes emitted for these weights need."""
        needed = 0
        for view in views:
            rows = [row for row in self.weights.matching(view) if row != SKIP]
            needed = max(needed, amended(self, rows, self.name).scheme.opset(view, model))
        return needed
