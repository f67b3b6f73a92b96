"""What share-codebook tries for a weight, and what comes of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

    from onnxshrink.graph.forms.codebook import CodebookWriter
    from onnxshrink.graph.forms.sharing import Shared, Sharing
    from onnxshrink.graph.weights.views import WeightView
    from onnxshrink.kernels.codebooks import Method
    from onnxshrink.kernels.observers import Need
    from onnxshrink.pipeline import Context

Form = Literal["auto", "fold", "gather", "dense"]

#: What ``adaptive`` tries, the smallest first: sizes that fill a byte with codes.
_SIZES = (2, 3, 4, 6, 16, 256)
_SCALED_CHANNEL = 64  # in shorter channels scales are more than 1/16 of 4-bit codes
_FED_SHARE = 1 / 64  # of the codes: with error feedback, scales are worth no more
_SCALE_OVERHEAD = 130  # bytes that nodes and headers of scales cost, about
_LOOKED_UP = 2**20  # smaller tables of rows are not worth a second lookup
_WORTH = 2 / 3  # of the bytes of float16, which is next to lossless, is what a table may take


@dataclass(frozen=True, kw_only=True)
class Tables:
    """Which tables to try for a weight; the pass's options of the same names say what they mean.

    Attributes:
        entries: Most entries of a table.
        weighed: Whether entries lie where outputs need them.
    """

    method: Method | Literal["hash", "bloom", "adaptive"]
    entries: int
    width: int
    rows: int
    scale: Literal["auto", "channel", "none"]
    rounding: Literal["nearest", "balanced", "gptq"]
    weighed: bool
    min_sqnr_db: float

    def coding(self, scaled: bool, method: Any = None, entries: int = 0) -> Sharing:
        """One way to share a weight's values, perhaps with another method or size."""
        from onnxshrink.graph.forms.sharing import Sharing

        method = method or self.method
        return Sharing(
            method=method, entries=entries or self.entries, width=self.width, rows=self.rows,
            scaled=scaled and method != "unique", balanced=self.rounding == "balanced",
            feedback=self.rounding == "gptq" and method != "unique", weighed=self.weighed,
        )  # fmt: skip

    def codings(self, view: WeightView) -> Iterator[Sharing]:
        """What to try for one weight, the smallest first."""
        scaled = self.scale == "channel" or (self.scale == "auto" and self._scales_pay(view))
        if self.method != "adaptive":
            yield self.coding(scaled)
            return
        yield self.coding(False, "unique", 256)
        for entries in _SIZES:
            yield self.coding(scaled, "kmeans", entries)

    def lesser(self, view: WeightView, statistics: Mapping[Need, Any]) -> str:
        """What a weight does without, and why, where its inputs are not known; empty if nothing."""
        from onnxshrink.graph.weights import second_moments

        wanted = "gptq" if self.rounding == "gptq" else "importance" if self.weighed else ""
        lookups = self.method in ("hash", "unique")  # whose codes follow from the values
        if not wanted or lookups or second_moments.of(statistics, view) is not None:
            return ""
        return f" (no {wanted}: {second_moments.unknown(view)})"

    def _scales_pay(self, view: WeightView) -> bool:
        channel = math.prod(view.shape[axis] for axis in view.axes.contract)
        if view.main.is_lookup or channel < _SCALED_CHANNEL:
            return False
        codes = view.size * math.log2(self.entries) / 8
        fed = self.rounding == "gptq"
        return not fed or 2 * view.size / channel + _SCALE_OVERHEAD <= codes * _FED_SHARE

    def share(
        self, view: WeightView, tried: Iterable[Sharing], rng: np.random.Generator,
        common: np.ndarray | None, statistics: Mapping[Need, Any],
    ) -> Shared:  # fmt: skip
        """A weight by the first coding that is good enough, or by the last.

        Raises:
            ValueError: It cannot be divided as the codings say, or has too many distinct values.
        """
        from onnxshrink.graph.forms import sharing

        values, found = sharing.values_of(view, exactly=self.method == "unique"), None
        for one in tried:
            try:
                found = sharing.share(view, values, one, rng, common, statistics)
            except ValueError:  # too many distinct values for the first that adaptive tries
                if self.method == "adaptive" and one.method == "unique":
                    continue
                raise
            if found.sqnr_db >= self.min_sqnr_db:
                break
        assert found is not None
        return found


def store(
    view: WeightView, found: Shared, writer: CodebookWriter, ctx: Context, *, form: Form,
    four_bit: bool, may_narrow: bool, lesser: str = "",
) -> None:  # fmt: skip
    """Put codes and a table in place of a weight, or float16 where that is about as small.

    Args:
        view: The weight.
        found: Its codes and table.
        writer: Puts them in.
        ctx: Where to report.
        form: What rebuilds the weight.
        four_bit: Whether codes become tensors of uint4.
        may_narrow: Whether float16 will do.
        lesser: See :meth:`Tables.lesser`.
    """
    from onnxshrink.graph import surgery
    from onnxshrink.graph.forms import dequantize
    from onnxshrink.graph.weights import second_moments
    from onnxshrink.passes.to_float16 import narrow

    if form == "dense":
        surgery.set_constant(writer.model, view.value, found.values)
        note = f"{found.note}{lesser}, as floats; smaller once packed"
        ctx.changed(view, view.nbytes, note=note, sqnr_db=found.sqnr_db)
        return
    if found.nbytes + writer.cost(view, found.stored.entries) >= view.nbytes:
        ctx.skip(view, f"would not be smaller with a table of {found.stored.entries}")
        return
    half = 2 * view.size + dequantize.CAST_OVERHEAD
    if may_narrow and found.nbytes > _WORTH * half:
        narrow(view, writer.model, ctx)
        return
    lost = second_moments.output_error(ctx.statistics, view, found.values)
    wanted = form == "gather" or (form == "auto" and view.size >= _LOOKED_UP)
    if wanted and writer.can_look_up(view, found):
        after, how = writer.replace_lookups(view, found), "smaller on disk and in memory"
    else:
        after = writer.replace(view, found, four_bit=four_bit)
        how = "smaller on disk, folded at load"
    errors = {} if lost is None else {"output_error": lost}
    ctx.changed(
        view, after, note=f"{found.note}{lesser}; {how}", before=view.nbytes, kind=view.op_type,
        sqnr_db=found.sqnr_db, **errors,
    )  # fmt: skip


def share_out(
    views: Iterable[WeightView], tables: Tables, mean_bits: float, ctx: Context, *,
    may_narrow: bool,
) -> dict[WeightView, tuple[Sharing, ...]]:  # fmt: skip
    """For each weight the method and size with which all take ``mean_bits`` and lose least.

    No coding at all stands for float16. Sizes are tried without error feedback. What a weight loses
    is the squared relative error of its outputs, or of itself where its inputs are unknown. What
    all tables need once comes on top of the budget.
    """
    from dataclasses import replace

    import numpy as np

    from onnxshrink.graph.forms import dequantize, sharing
    from onnxshrink.graph.weights import second_moments
    from onnxshrink.kernels import allocation

    rng = np.random.default_rng(ctx.seed)
    found: list[tuple[WeightView, list[tuple[Sharing, ...]]]] = []
    sizes, errors = [], []
    for view in views:
        known: list[tuple[Sharing, ...]] = []
        size, error = [], []
        if may_narrow:
            known, error = [()], [0.0]
            size = [float(2 * view.size + dequantize.CAST_OVERHEAD)]
        try:
            values = sharing.values_of(view)
        except ValueError:  # said again, and reported, when it is this weight's turn
            continue
        for one in tables.codings(view):
            try:
                tried = replace(one, feedback=False)
                coded = sharing.share(view, values, tried, rng, None, ctx.statistics)
            except ValueError:
                continue
            lost = second_moments.output_error(ctx.statistics, view, coded.values)
            known.append((one,))
            size.append(float(coded.nbytes))
            error.append(10 ** (-coded.sqnr_db / 10) if lost is None else lost**2)
        view.release()
        if known:
            found.append((view, known))
            sizes.append(np.array(size))
            errors.append(np.array(error))
    budget = mean_bits / 8 * sum(view.size for view, _ in found)
    chosen = allocation.choose(sizes, errors, budget)
    return {view: known[at] for (view, known), at in zip(found, chosen, strict=True)}


def hashed(
    view: WeightView, most: int, writer: CodebookWriter, ctx: Context, rng: np.random.Generator
) -> None:
    """A table of as many bytes as the codes of a codebook would take, and no codes.

    Raises:
        ValueError: NaN or infinity.
    """
    from onnxshrink.graph.forms import codebook, sharing
    from onnxshrink.kernels import codebooks

    values = sharing.values_of(view)
    entries = max(2, values.size * math.ceil(math.log2(most)) // 32)
    if entries * view.dtype.itemsize + codebook.HASH_OVERHEAD >= view.nbytes:
        ctx.skip(view, "would not be smaller as a hashed table")
        return
    seed = codebooks.hash_parameters(rng)
    table = codebooks.hash_table(values, *seed, entries)
    places = codebooks.hash_positions(values.size, *seed, entries)
    error = codebooks.sqnr_db(values, table[places])
    after = writer.replace_hashed(view, table, *seed)
    note = f"hashed to {entries} entries; smaller on disk, folded at load"
    ctx.changed(view, after, note=note, sqnr_db=error)


def filtered(
    view: WeightView, tables: Tables, false_positives: float, writer: CodebookWriter, ctx: Context,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    """A filter of the codes of what is not zero, and a table that makes up for its mistakes.

    Raises:
        ValueError: NaN or infinity, or no filter holds the codes.
    """
    import numpy as np

    from onnxshrink.graph.forms import codebook, sharing
    from onnxshrink.graph.weights import second_moments
    from onnxshrink.kernels import bloomier, codebooks

    values, most = sharing.values_of(view), tables.entries
    weights, places = values.reshape(-1), np.flatnonzero(values)
    if not len(places):
        ctx.skip(view, "holds nothing but zeros, or nothing: there is nothing to filter")
        return
    mass = second_moments.importance(ctx.statistics, view) if tables.weighed else None
    kept = None if mass is None else mass.reshape(1, -1)[:, places]
    coded = codebooks.encode(weights[None, places], "kmeans", most - 1, importance=kept)
    bits = bloomier.slot_bits(coded.entries, false_positives)
    slots, item = bloomier.slot_count(len(places)), int(view.dtype.itemsize)
    taken = slots * bits // 8 + (coded.entries + 1) * item + codebook.FILTER_OVERHEAD
    several = codebooks.codes_per_byte(most)
    plain = values.size // several + most * item + sharing.OVERHEAD
    plain += sharing.PACKED_OVERHEAD * (several > 1)
    if taken >= min(plain, view.nbytes):
        ctx.skip(
            view, f"would not be smaller: a filter of {len(places):,} weights that are not zero"
            f" takes {taken:,} bytes, a table of {most} {plain:,}, itself {view.nbytes:,}",
        )  # fmt: skip
        return
    found = bloomier.build(places, coded.codes[0], 2**bits, int(rng.integers(2**31)))
    codes = found.decode(values.size)
    table = bloomier.refit(values, codes, coded.entries, mass)
    decoded = np.append(table, np.float32(0))[np.minimum(codes, len(table))].reshape(view.shape)
    wrong = np.count_nonzero(decoded[values == 0])
    lost = second_moments.output_error(ctx.statistics, view, decoded)
    errors = {} if lost is None else {"output_error": lost}
    after = writer.replace_filtered(view, found, table)
    note = (
        f"{len(places):,} non-zeros in {slots:,} slots of {bits} bits, {wrong:,} false positives"
        f" ({wrong / max(1, values.size - len(places)):.2%} of the zeros), seed {found.seed}"
        f"{tables.lesser(view, ctx.statistics)}"
    )
    ctx.changed(
        view, after, note=f"{note}; smaller on disk, folded at load", before=view.nbytes,
        kind=view.op_type, sqnr_db=codebooks.sqnr_db(values, decoded), **errors,
    )  # fmt: skip
