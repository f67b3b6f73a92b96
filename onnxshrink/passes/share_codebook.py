"""Store weights as numbers of table entries: palettes of 2 to 256 values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from onnxshrink.errors import RecipeError
from onnxshrink.options import option
from onnxshrink.pipeline import Context, Pass
from onnxshrink.select import Select, select

if TYPE_CHECKING:
    import numpy as np

    from onnxshrink.graph.model import Model
    from onnxshrink.graph.palette import Palettes
    from onnxshrink.graph.weights import WeightView
    from onnxshrink.kernels.codebooks import Codebook

#: What ``adaptive`` tries, the smallest first: sizes that fill a byte with codes.
_SIZES = (2, 3, 4, 6, 16, 256)
_SCALED_CHANNEL = 64  # in shorter channels scales are more than 1/16 of 4-bit codes
_SAMPLE = 2**21  # weights of each tensor that a common table is fitted to


class _Shared(NamedTuple):
    """A weight as it would be stored, and what it would be worth."""

    stored: Codebook
    scale: np.ndarray | None
    rows: bool
    nbytes: int
    sqnr_db: float


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
    takes 1.5 times the CPU time of the float model and peaks at 2.5 times its memory; afterwards
    memory and latency are the same. On a device that cannot afford the peak use quantize-weights
    with ``form: dq``.
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

        from onnxshrink.graph import opset, palette, weights

        methods = {self.method, *_overridden(self.weights, "method")}
        if "hash" in methods:
            opset.raise_opset(model, palette.OPSET)
        views = list(weights.find(model))
        rng = np.random.default_rng(ctx.seed)
        common = self._common_table(views, rng) if self.table == "model" else None
        palettes = palette.Palettes(model)
        for view, options in ctx.each(self, views):
            try:
                if options.method == "hash":
                    options._hash(view, palettes, ctx, rng)
                else:
                    options._share(view, palettes, ctx, rng, common)
            except ValueError as error:
                ctx.skip(view, str(error))

    # ------------------------------------------------------------------------------- palettes

    def _share(
        self,
        view: WeightView,
        palettes: Palettes,
        ctx: Context,
        rng: np.random.Generator,
        common: np.ndarray | None,
    ) -> None:
        from onnxshrink.kernels import codebooks

        values = _values(view, exactly=self.method == "unique")
        best: _Shared | None = None
        for plan in self._plans(view):
            try:
                best = plan._encoded(view, values, rng, common)
            except ValueError:  # too many distinct values for the first that adaptive tries
                if self.method != "adaptive" or plan.method != "unique":
                    raise
                continue
            if self.method != "adaptive" or best.sqnr_db >= self.min_sqnr_db:
                break
        shared = 0 if best is None else palettes.cost(view, best.stored.entries)
        if best is None or best.nbytes + shared >= view.nbytes:
            entries = self._entries if best is None else best.stored.entries
            ctx.skip(view, f"would not be smaller with a table of {entries}")
            return
        after = palettes.replace(view, best.stored, best.scale, rows=best.rows)
        note = f"{best.stored.entries} entries"
        if best.stored.width > 1:
            note += f" of {best.stored.width} weights"
        if len(best.stored.codes) > 1:
            note += f", {len(best.stored.codes)} tables"
        if best.scale is not None:
            note += f", {best.scale.size} scales"
        per_byte = codebooks.codes_per_byte(best.stored.entries)
        note += f", {per_byte} codes a byte; smaller on disk, folded at load"
        ctx.changed(view, after, note=note, sqnr_db=best.sqnr_db)

    def _plans(self, view: WeightView) -> Iterator[ShareCodebook]:
        """What to try for one weight, the smallest first."""
        scale = self.scale
        if scale == "auto":
            channel = math.prod(view.shape[axis] for axis in view.axes.contract)
            multiplied = view.op_type != "Gather"
            scale = "channel" if multiplied and channel >= _SCALED_CHANNEL else "none"
        if self.method != "adaptive":
            scale = "none" if self.method == "unique" else scale
            yield replace(self, scale=scale)
            return
        yield replace(self, method="unique", entries=256, scale="none")
        for entries in _SIZES:
            yield replace(self, method="kmeans", entries=entries, scale=scale)

    def _encoded(
        self,
        view: WeightView,
        values: np.ndarray,
        rng: np.random.Generator,
        common: np.ndarray | None,
    ) -> _Shared:
        """One weight in one way."""
        from onnxshrink.graph import edit, palette
        from onnxshrink.kernels import codebooks
        from onnxshrink.kernels.codebooks import Codebook

        method: Any = self.method
        axes = tuple(sorted(view.axes.contract))
        scale = None
        if self.scale == "channel" and axes:
            scale = codebooks.scales(values, axes, method)
        scaled = values if scale is None else values / scale
        rows = bool(self.rows) and self._groups(view) > 1
        grouped = _matrix(view, scaled) if rows else scaled
        grouped = grouped.reshape(self._groups(view) if rows else 1, -1)
        if common is None:
            stored = codebooks.encode(grouped, method, self._entries, width=self.width, rng=rng)
        else:
            stored = Codebook(codebooks.nearest(grouped, common), common[None])
        shared = _decoded(view, stored, rows)
        if scale is not None and method == "kmeans":
            scale = codebooks.refit_scales(values, shared, axes)
        if self.rounding == "balanced":
            stored = _balanced(view, stored, values if scale is None else values / scale, rows)
            shared = _decoded(view, stored, rows)
        if scale is not None:
            shared = shared * scale
        nbytes = stored.nbytes + palette.OVERHEAD
        if codebooks.codes_per_byte(stored.entries) > 1 or self.width > 1 or rows:
            nbytes += palette.PACKED_OVERHEAD
        if scale is not None:
            nbytes += scale.size * 2 + edit.CAST_OVERHEAD
        return _Shared(stored, scale, rows, nbytes, codebooks.sqnr_db(values, shared))

    def _groups(self, view: WeightView) -> int:
        """Tables of one weight.

        Raises:
            ValueError: The rows cannot be divided so.
        """
        outputs = math.prod(view.shape[axis] for axis in view.axes.out)
        if view.axes.groups > 1:
            raise ValueError("has groups of channels in its rows: leave out 'rows'")
        if outputs % self.rows:
            raise ValueError(f"{outputs:,} output channels cannot be shared {self.rows} at a time")
        return outputs // self.rows

    def _common_table(
        self, views: Iterable[WeightView], rng: np.random.Generator
    ) -> np.ndarray | None:
        """One table for all selected weights, [entries, width]."""
        import numpy as np

        from onnxshrink.kernels import codebooks

        parts = []
        for view in views:
            if self.weights.why_not(view) or view.size % self.width:
                continue
            try:
                values = _values(view)
            except ValueError:  # reported when its turn comes
                continue
            axes = tuple(sorted(view.axes.contract))
            if self.scale != "none" and axes:
                values = values / codebooks.scales(values, axes, "kmeans")
            vectors = values.reshape(-1, self.width)
            parts.append(vectors[:: -(-vectors.size // _SAMPLE)].ravel())
            view.release()
        if not parts:
            return None
        fitted = codebooks.encode(
            np.concatenate(parts)[None], "kmeans", self._entries, width=self.width, rng=rng
        )
        common: np.ndarray = fitted.table[0]
        return common

    # -------------------------------------------------------------------------------- hashing

    def _hash(
        self, view: WeightView, palettes: Palettes, ctx: Context, rng: np.random.Generator
    ) -> None:
        """A table of as many bytes as the codes of a palette would take, and no codes."""
        from onnxshrink.graph import palette
        from onnxshrink.kernels import codebooks

        values = _values(view)
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


def _overridden(selection: Select, name: str) -> set[Any]:
    """Values that overrides by layer give one option."""
    return {o[name] for o in selection.layers.values() if not isinstance(o, str) and name in o}


def _values(view: WeightView, *, exactly: bool = False) -> np.ndarray:
    """A weight in float32.

    Raises:
        ValueError: NaN or infinity, or its values are ``exactly`` wanted, and float32 does not
            hold them.
    """
    import numpy as np

    values = view.array()
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    if not np.isfinite(narrow).all():
        raise ValueError("holds NaN or infinity, in float32 at least")
    if exactly and not np.array_equal(narrow.astype(values.dtype), values):
        raise ValueError("float32 does not hold its values exactly")
    found: np.ndarray = narrow
    return found


def _matrix(view: WeightView, values: Any) -> Any:
    """Values of a weight as its matrix: one row for each output channel."""
    axes = view.axes
    outputs = math.prod(view.shape[axis] for axis in axes.out)
    return values.transpose(axes.out + axes.contract).reshape(outputs, -1)


def _decoded(view: WeightView, stored: Codebook, rows: bool) -> np.ndarray:
    """Looked up weights in their stored shape."""
    shared = stored.decode()
    return view.from_matrix(shared) if rows else shared.reshape(view.shape)


def _balanced(view: WeightView, stored: Codebook, values: np.ndarray, rows: bool) -> Codebook:
    """The same tables with codes whose errors cancel in each output channel."""
    import numpy as np

    from onnxshrink.kernels import codebooks

    # A row that is looked up is not summed; channels in groups are no rows.
    if stored.width > 1 or view.op_type == "Gather" or view.axes.groups > 1:
        return stored
    matrix = _matrix(view, values)
    if rows:
        height = len(matrix) // len(stored.codes)
        groups = [
            codebooks.balance(
                matrix[at * height : (at + 1) * height], codes.reshape(height, -1), table[:, 0]
            ).ravel()
            for at, (codes, table) in enumerate(zip(stored.codes, stored.table, strict=True))
        ]
        return replace(stored, codes=np.stack(groups))
    codes = _matrix(view, stored.codes.reshape(view.shape))
    moved: Any = codebooks.balance(matrix, codes, stored.table[0, :, 0])
    back: Any = view.from_matrix(moved)
    return replace(stored, codes=back.reshape(1, -1))
