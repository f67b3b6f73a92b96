"""Store weights as numbers of table entries: palettes of 2 to 256 values."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from onnxshrink.errors import RecipeError
from onnxshrink.options import option
from onnxshrink.pipeline import Context, Pass
from onnxshrink.select import Select, select

if TYPE_CHECKING:
    import numpy as np

    from onnxshrink.graph.model import Model
    from onnxshrink.graph.palette import Palettes
    from onnxshrink.graph.sharing import Plan
    from onnxshrink.graph.weights import WeightView

#: What ``adaptive`` tries, the smallest first: sizes that fill a byte with codes.
_SIZES = (2, 3, 4, 6, 16, 256)
_SCALED_CHANNEL = 64  # in shorter channels scales are more than 1/16 of 4-bit codes


@dataclass(frozen=True, kw_only=True)
class ShareCodebook(Pass):
    """Store weights as numbers of table entries, so that they share few values.

    A table of 16 values makes float32 weights eight times smaller, one of 4 sixteen times; tables
    that are no power of two fit in between (``--entries 6``: 12 times, ``3``: 20 times). The values
    are those with the least squared error (k-means, solved exactly), so at equal size the error is
    below that of evenly spaced integers; at 8 bits quantize-weights is as good and cheaper.
    ``adaptive`` gives each weight the smallest table that keeps it above ``min_sqnr_db``.

    Weights that are exactly zero, because they were pruned, stay zero.

    This saves disk and download, not memory or time: ONNX Runtime rebuilds the float weights when
    it loads the model. Measured on 403 MB of float32 weights in 16-entry tables (50 MB): loading
    takes 1.4 times as long as that of the float model and peaks at 2.5 times its memory (with
    scales 1.8 and 3.3 times); afterwards memory is about the same, and so is latency. Hashed tables
    load 12 times as slowly. On a device that cannot afford the peak use quantize-weights with
    ``form: dq``.
    """

    bits: int = option(4, help="bits of a code: 2**bits entries", ge=1, le=8)
    entries: int = option(0, help="entries of a table, where not 2**bits", ge=0, le=256)
    method: Literal["kmeans", "uniform", "unique", "nf4", "pow2", "hash", "adaptive"] = option(
        "kmeans",
        help="values of the table: least error, evenly spaced, all that there are (lossless), a"
        " normal distribution's, powers of two; hash: positions share values at random;"
        " adaptive: the smallest table that is good enough",
    )
    width: int = option(
        1, help="neighbouring weights that one entry stands for (k-means only)", ge=1, le=8
    )
    rows: int = option(0, help="output channels that share a table; 0: all of a weight", ge=0)
    scale: Literal["auto", "channel", "none"] = option(
        "auto",
        help="divide each output channel by its size first; auto: where channels are long",
    )
    rounding: Literal["nearest", "balanced"] = option(
        "balanced", help="to the nearest entry, or so that the errors of each channel cancel"
    )
    table: Literal["weight", "model"] = option(
        "weight", help="a table for each weight, or one for all (k-means only)"
    )
    min_sqnr_db: float = option(
        20, help="adaptive: least signal to noise ratio of every weight, in dB", ge=0
    )
    weights: Select = select()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.entries == 1:
            raise RecipeError(f"{self.name}: option 'entries' takes 2 to 256, or 0 for 2**bits")
        if self.method not in ("kmeans", "adaptive") and self.width > 1:
            raise RecipeError(f"{self.name}: option 'width' works with method 'kmeans' only")
        if self.table == "model" and (self.method != "kmeans" or self.rows):
            raise RecipeError(f"{self.name}: 'table: model' needs method 'kmeans' and no 'rows'")

    @property
    def bound(self) -> float:
        """Lossless with ``unique``; 8 bits must stay close, fewer at least recognisable."""
        if self.method == "unique":
            return 1e-6
        return 0.25 if self._entries == 256 and self.width == 1 and self.method != "hash" else 0.7

    @property
    def _entries(self) -> int:
        return self.entries or 2**self.bits

    def apply(self, model: Model, ctx: Context) -> None:
        """Replace every selected weight, the largest first."""
        import numpy as np

        from onnxshrink.graph import opset, palette, sharing, weights

        overridden = {
            values["method"]
            for values in self.weights.layers.values()
            if not isinstance(values, str) and "method" in values
        }
        if "hash" in {self.method, *overridden}:
            opset.raise_opset(model, palette.OPSET)
        views = list(weights.find(model))
        rng, common = np.random.default_rng(ctx.seed), None
        if self.table == "model":
            chosen = (view for view in views if not self.weights.why_not(view))
            common = sharing.common_table(chosen, self._plan(self.scale != "none"), rng)
        palettes = palette.Palettes(model)
        for view, options in ctx.each(self, views):
            try:
                if options.method == "hash":
                    options._hash(view, palettes, ctx, rng)
                else:
                    options._share(view, palettes, ctx, rng, common)
            except ValueError as error:
                ctx.skip(view, str(error))

    def _share(
        self,
        view: WeightView,
        palettes: Palettes,
        ctx: Context,
        rng: np.random.Generator,
        common: np.ndarray | None,
    ) -> None:
        from onnxshrink.graph import sharing

        values = sharing.values_of(view, exactly=self.method == "unique")
        for plan in self._plans(view):
            try:
                found = sharing.share(view, values, plan, rng, common)
            except ValueError:  # too many distinct values for the first that adaptive tries
                if self.method == "adaptive" and plan.method == "unique":
                    continue
                raise
            if self.method != "adaptive" or found.sqnr_db >= self.min_sqnr_db:
                break
        entries = found.stored.entries
        if found.nbytes + palettes.cost(view, entries) >= view.nbytes:
            ctx.skip(view, f"would not be smaller with a table of {entries}")
            return
        after = palettes.replace(view, found)
        note = f"{found.note}; smaller on disk, folded at load"
        ctx.changed(view, after, note=note, sqnr_db=found.sqnr_db)

    def _plans(self, view: WeightView) -> Iterator[Plan]:
        """What to try for one weight, the smallest first."""
        channel = math.prod(view.shape[axis] for axis in view.axes.contract)
        long = view.op_type != "Gather" and channel >= _SCALED_CHANNEL
        scaled = self.scale == "channel" or (self.scale == "auto" and long)
        if self.method != "adaptive":
            yield self._plan(scaled)
            return
        yield self._plan(False, "unique", 256)
        for entries in _SIZES:
            yield self._plan(scaled, "kmeans", entries)

    def _plan(self, scaled: bool, method: Any = None, entries: int = 0) -> Plan:
        from onnxshrink.graph.sharing import Plan

        method = method or self.method
        return Plan(
            method=method, entries=entries or self._entries, width=self.width, rows=self.rows,
            scaled=scaled and method != "unique", balanced=self.rounding == "balanced",
        )  # fmt: skip

    def _hash(
        self, view: WeightView, palettes: Palettes, ctx: Context, rng: np.random.Generator
    ) -> None:
        """A table of as many bytes as the codes of a palette would take, and no codes."""
        from onnxshrink.graph import palette, sharing
        from onnxshrink.kernels import codebooks

        values = sharing.values_of(view)
        entries = max(2, values.size * math.ceil(math.log2(self._entries)) // 32)
        if entries * view.dtype.itemsize + palette.HASH_OVERHEAD >= view.nbytes:
            ctx.skip(view, "would not be smaller as a hashed table")
            return
        seed = codebooks.hash_parameters(rng)
        table = codebooks.hash_table(values, *seed, entries)
        places = codebooks.hash_positions(values.size, *seed, entries)
        error = codebooks.sqnr_db(values, table[places])
        after = palettes.replace_hashed(view, table, *seed)
        note = f"hashed to {entries} entries; smaller on disk, folded at load"
        ctx.changed(view, after, note=note, sqnr_db=error)
