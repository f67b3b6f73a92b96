"""Store weights as numbers of table entries: codebooks of 2 to 256 values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from onnxshrink.errors import RecipeError
from onnxshrink.options import option
from onnxshrink.pipeline import Context, Pass
from onnxshrink.select import Select, select, variants

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.forms.sharing import Sharing
    from onnxshrink.graph.weights.views import WeightView
    from onnxshrink.kernels.observers import Need
    from onnxshrink.passes.share_codebook.codebooks import Tables

_UINT4_OPSET = 21


@dataclass(frozen=True, kw_only=True)
class ShareCodebook(Pass):
    """Store weights as numbers of table entries, so that they share few values.

    A table of 16 values makes float32 weights eight times smaller, one of 4 sixteen times; tables
    that are no power of two fit in between (``--entries 6``: 12 times, ``3``: 20 times). The values
    are those with the least squared error (k-means, solved exactly), so at equal size the error is
    below that of evenly spaced integers; at 8 bits quantize-weights is as good and cheaper. With
    real inputs ``rounding: gptq`` puts the entries where the outputs need them and lets weights
    make up for each other's errors: on every model measured that is worth half a bit or more.
    ``adaptive`` gives each weight the smallest table that keeps it above ``min_sqnr_db``, or all of
    them together ``mean_bits`` where their outputs lose least.

    Weights that are exactly zero, because they were pruned, stay zero. Where four of five are,
    ``bloom`` is smaller in a plain file: it stores neither codes nor places of zeros, for which
    some of them come back as other entries (``false_positives``). Weights with fewer zeros are left
    to a second step. Load takes 14 times as long as the float model's, at 19 times its peak memory.

    Large embeddings stay codes in memory: rows of codes are looked up, then their entries. Of all
    else this saves disk and download, not memory or time: ONNX Runtime rebuilds the float weights
    when it loads the model. Measured on 403 MB of float32 weights in 16-entry tables (50 MB): load
    takes 1.4 times as long as that of the float model and peaks at 2.5 times its memory (with
    scales 1.8 and 3.3 times); afterwards memory is about the same, and so is latency. Hashed tables
    load 12 times as slowly. On a device that cannot afford the peak use quantize-weights with
    ``form: dq``.
    """

    bits: int = option(
        4, help="bits of a code: 2**bits entries; 3 take the room of 4, and 5 to 7 that of 8",
        ge=1, le=8,
    )  # fmt: skip
    entries: int = option(0, help="entries of a table, where not 2**bits", ge=0, le=256)
    method: Literal["kmeans", "uniform", "unique", "nf4", "pow2", "hash", "bloom", "adaptive"] = (
        option(
            "kmeans",
            help="values of the table: least error, evenly spaced, all that there are (lossless), a"
            " normal distribution's, powers of two; hash: positions share values at random;"
            " bloom: a filter of the weights that are not zero;"
            " adaptive: the smallest table that is good enough",
        )
    )
    width: int = option(
        1, help="neighbouring weights that one entry stands for (k-means only)", ge=1, le=8
    )
    rows: int = option(0, help="output channels that share a table; 0: all of a weight", ge=0)
    scale: Literal["auto", "channel", "none"] = option(
        "auto",
        help="divide each output channel by its size first; auto: where that costs little",
    )
    rounding: Literal["nearest", "balanced", "gptq"] = option(
        "balanced",
        help="to the nearest entry; so that the errors of each channel cancel; or so that weights "
        "make up for each other's errors on the calibration inputs",
    )
    importance: Literal["auto", "true", "false"] = option(
        "auto", help="entries where outputs need them, on the calibration inputs; auto: with gptq"
    )
    table: Literal["weight", "model"] = option(
        "weight", help="a table for each weight, or one for all (k-means only)"
    )
    min_sqnr_db: float = option(
        20, help="adaptive: least signal to noise ratio of every weight, in dB", ge=0
    )
    mean_bits: float | None = option(
        None, help="adaptive: bits of all weights together instead, shared out by output error",
        ge=1, le=8,
    )  # fmt: skip
    false_positives: float = option(
        0.005, help="bloom: largest expected share of the zeros that come back as another entry;"
        " decides between slots of 4, 8 and 16 bits", ge=0.004, le=1,
    )  # fmt: skip
    form: Literal["auto", "fold", "gather", "dense"] = option(
        "auto", help="rebuild weights at load, or look rows of embeddings up as codes; auto: those"
        " of a million weights and more; dense: floats of few values, smaller once packed, where"
        " 'scale: none' lets the packer see them",
    )  # fmt: skip
    packing: Literal["bytes", "uint4"] = option(
        "bytes", help="as many codes to a byte as fit, or tensors of uint4: for many small weights"
    )
    vectors: Literal["float16", "keep"] = option(
        "float16",
        help="how to store biases, norm parameters, and weights of which a table takes "
        "as much; float16 keeps 11 bits",
    )
    weights: Select = select(min_size=64)

    retreats = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.entries == 1:
            raise RecipeError(f"{self.name}: option 'entries' takes 2 to 256, or 0 for 2**bits")
        if self.method not in ("kmeans", "adaptive") and self.width > 1:
            raise RecipeError(f"{self.name}: option 'width' works with method 'kmeans' only")
        if self.rounding == "gptq" and (self.width > 1 or self.method in ("hash", "bloom")):
            raise RecipeError(f"{self.name}: 'rounding: gptq' needs a table and 'width: 1'")
        if self.table == "model" and (self.method != "kmeans" or self.rows):
            raise RecipeError(f"{self.name}: 'table: model' needs method 'kmeans' and no 'rows'")
        if self.mean_bits is not None and self.method != "adaptive":
            raise RecipeError(f"{self.name}: option 'mean_bits' works with method 'adaptive' only")

    @property
    def bound(self) -> float:
        """Lossless with ``unique``; 8 bits must stay close, fewer at least recognisable."""
        if self.method == "unique":
            return 1e-6
        near = self.most == 256 and self.width == 1 and self.method not in ("hash", "bloom")
        return 0.25 if near else 0.7

    @property
    def most(self) -> int:
        """Most entries of a table."""
        return self.entries or 2**self.bits

    @property
    def weighed(self) -> bool:
        """Whether entries shall lie where outputs need them."""
        return self.importance == "true" or (self.importance == "auto" and self.rounding == "gptq")

    def needs(self, model: Model) -> Iterator[Need]:
        """Second moments of what the selected weights are multiplied with, if they are used."""
        from onnxshrink.graph import weights
        from onnxshrink.graph.weights import second_moments

        steps = variants(self, self.weights)
        if any(s.rounding == "gptq" or s.weighed or s.mean_bits is not None for s in steps):
            for view in weights.find(model):
                if not self.weights.why_not(view):
                    yield from second_moments.needs(view)

    def apply(self, model: Model, ctx: Context) -> None:
        """Replace every selected weight, the largest first; then narrow the long vectors."""
        import numpy as np

        from onnxshrink.graph import weights
        from onnxshrink.graph.forms import codebook, sharing
        from onnxshrink.graph.rewrite import opset
        from onnxshrink.passes.share_codebook import codebooks
        from onnxshrink.passes.to_float16 import narrow

        before = model.opset
        if opset.raise_opset(model, self._opset()):
            ctx.changed("opset", 0, kind="model", note=opset.needs(before, model))
        views = list(weights.find(model))
        free = [view for view in views if not self.weights.why_not(view)]
        rng, common = np.random.default_rng(ctx.seed), None
        if self.table == "model":
            common = sharing.common_table(free, self._tables.coding(self.scale != "none"), rng)
        planned: dict[WeightView, tuple[Sharing, ...]] = {}
        if self.mean_bits is not None:
            planned = codebooks.share_out(
                free, self._tables, self.mean_bits, ctx, may_narrow=self.vectors == "float16"
            )
        writer, vectors = codebook.CodebookWriter(model), []
        for view, options in ctx.each(self, views, any_role=True):
            tables = options._tables
            try:
                if not view.uses and (not view.is_vector or self.vectors == "keep"):
                    ctx.skip(view, view.why_not)
                elif not view.uses or planned.get(view) == ():
                    vectors.append(view)
                elif options.method == "hash":
                    codebooks.hashed(view, tables.entries, writer, ctx, rng)
                elif options.method == "bloom":
                    allowed = options.false_positives
                    codebooks.filtered(view, tables, allowed, writer, ctx, rng)
                else:
                    codings = planned.get(view) or tables.codings(view)
                    found = tables.share(view, codings, rng, common, ctx.statistics)
                    may_narrow = options.vectors == "float16" and options.method != "unique"
                    codebooks.store(
                        view, found, writer, ctx, form=options.form,
                        four_bit=options.packing == "uint4", may_narrow=may_narrow,
                        lesser=tables.lesser(view, ctx.statistics),
                    )  # fmt: skip
            except ValueError as error:
                ctx.skip(view, str(error))
        for view in vectors if any(c.kind != "model" for c in ctx.step.changes) else ():
            narrow(view, model, ctx)
            view.release()

    @property
    def _tables(self) -> Tables:
        from onnxshrink.passes.share_codebook.codebooks import Tables

        return Tables(
            method=self.method, entries=self.most, width=self.width, rows=self.rows,
            scale=self.scale, rounding=self.rounding, weighed=self.weighed,
            min_sqnr_db=self.min_sqnr_db,
        )  # fmt: skip

    def _opset(self) -> int:
        """The operator set that the nodes need, those for overrides included."""
        from onnxshrink.graph.forms import codebook

        every = variants(self, self.weights)
        if any(step.packing == "uint4" for step in every):
            return _UINT4_OPSET
        return codebook.OPSET if any(step.method in ("hash", "bloom") for step in every) else 0
