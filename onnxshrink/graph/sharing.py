"""One weight as codes and a table: scaled, clustered, balanced, and measured."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from onnxshrink.graph.edit import CAST_OVERHEAD
from onnxshrink.graph.weights import WeightView
from onnxshrink.kernels import codebooks
from onnxshrink.kernels.codebooks import Array, Codebook, Method

#: Bytes that nodes, names and headers cost, about: of a palette, and of packed codes besides.
OVERHEAD = 160
PACKED_OVERHEAD = 140

_SAMPLE = 2**21  # weights of each tensor that a common table is fitted to


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to share the values of a weight.

    Attributes:
        method: See ``codebooks.encode``, like ``entries`` and ``width``.
        rows: Output channels that share a table; 0: all.
        scaled: Whether each output channel is divided by its size first.
        balanced: Whether the errors of each output channel shall cancel.
    """

    method: Method
    entries: int
    width: int = 1
    rows: int = 0
    scaled: bool = False
    balanced: bool = False


@dataclass(frozen=True)
class Shared:
    """A weight as it can be stored.

    Attributes:
        stored: Codes in the order in which the weight is stored, in one group; with ``rows``, of
            groups of rows of its matrix.
        scale: Multiplies the looked up weights; broadcasts to their stored shape.
        rows: See ``stored``.
        values: What a runtime computes with, in the stored shape.
        sqnr_db: Signal to noise ratio.
    """

    stored: Codebook
    scale: Array | None
    rows: bool
    values: Array
    sqnr_db: float

    @property
    def packed(self) -> bool:
        """Whether more than one lookup is needed."""
        several = codebooks.codes_per_byte(self.stored.entries) > 1
        return several or self.stored.width > 1 or self.rows

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in a file, about."""
        scales = 0 if self.scale is None else 2 * self.scale.size + CAST_OVERHEAD
        return self.stored.nbytes + scales + OVERHEAD + PACKED_OVERHEAD * self.packed

    @property
    def note(self) -> str:
        """What it became, for a report."""
        parts = [f"{self.stored.entries} entries"]
        if self.stored.width > 1:
            parts[0] += f" of {self.stored.width} weights"
        if self.rows:
            parts.append(f"{len(self.stored.codes)} tables")
        if self.scale is not None:
            parts.append(f"{self.scale.size} scales")
        parts.append(f"{codebooks.codes_per_byte(self.stored.entries)} codes a byte")
        return ", ".join(parts)


def values_of(view: WeightView, *, exactly: bool = False) -> Array:
    """A weight in float32.

    Raises:
        ValueError: NaN or infinity, or its values are ``exactly`` wanted, and float32 does not
            hold them.
    """
    values = view.array()
    with np.errstate(over="ignore"):
        narrow: Array = values.astype(np.float32)
    if not np.isfinite(narrow).all():
        raise ValueError("holds NaN or infinity, in float32 at least")
    if exactly and not np.array_equal(narrow.astype(values.dtype), values):
        raise ValueError("float32 does not hold its values exactly")
    return narrow


def share(
    view: WeightView,
    values: Array,
    plan: Plan,
    rng: np.random.Generator,
    common: Array | None = None,
) -> Shared:
    """Find codes and tables for a weight.

    Args:
        view: The weight.
        values: From :func:`values_of`.
        plan: How.
        rng: Seeds the clusters of vectors.
        common: A table to use, [entries, width], instead of one of its own.

    Raises:
        ValueError: Its size or its number of channels cannot be divided so, or it has too many
            distinct values.
    """
    axes = tuple(sorted(view.axes.contract))
    scale = codebooks.scales(values, axes, plan.method) if plan.scaled and axes else None
    scaled = values if scale is None else values / scale
    groups = _groups(view, plan.rows)
    rows = groups > 1
    grouped = (view.to_matrix(scaled) if rows else scaled).reshape(groups, -1)
    if common is None:
        stored = codebooks.encode(grouped, plan.method, plan.entries, width=plan.width, rng=rng)
    else:
        stored = Codebook(codebooks.nearest(grouped, common), common[None])
    shared = _decoded(view, stored, rows)
    if scale is not None and plan.method == "kmeans":
        scale = codebooks.refit_scales(values, shared, axes)
        scaled = values / scale
    # A row that is looked up is not summed: its errors have nothing to cancel in.
    if plan.balanced and plan.width == 1 and view.op_type != "Gather":
        stored = _balanced(view, stored, view.to_matrix(scaled), rows)
        shared = _decoded(view, stored, rows)
    if scale is not None:
        shared = shared * scale
    return Shared(stored, scale, rows, shared, codebooks.sqnr_db(values, shared))


def common_table(views: Iterable[WeightView], plan: Plan, rng: np.random.Generator) -> Array | None:
    """One table for several weights, [entries, width]; None without any weight that it fits."""
    parts = []
    for view in views:
        if view.size % plan.width:
            continue
        try:
            values = values_of(view)
        except ValueError:  # said again, and reported, when it is this weight's turn
            continue
        axes = tuple(sorted(view.axes.contract))
        if plan.scaled and axes:
            values = values / codebooks.scales(values, axes, plan.method)
        vectors = values.reshape(-1, plan.width)
        parts.append(vectors[:: -(-vectors.size // _SAMPLE)].ravel())
        view.release()
    if not parts:
        return None
    together = np.concatenate(parts)[None]
    fitted = codebooks.encode(together, plan.method, plan.entries, width=plan.width, rng=rng)
    table: Array = fitted.table[0]
    return table


def _groups(view: WeightView, rows: int) -> int:
    """Tables of one weight."""
    outputs = math.prod(view.shape[axis] for axis in view.axes.out)
    if rows == 0:
        return 1
    if view.axes.groups > 1:
        raise ValueError("has groups of channels in its rows: leave out 'rows'")
    if outputs % rows:
        raise ValueError(f"{outputs:,} output channels cannot be shared {rows} at a time")
    return outputs // rows


def _decoded(view: WeightView, stored: Codebook, rows: bool) -> Array:
    """Looked up weights in their stored shape."""
    shared = stored.decode()
    return view.from_matrix(shared) if rows else shared.reshape(view.shape)


def _balanced(
    view: WeightView, stored: Codebook, matrix: npt.NDArray[np.floating], rows: bool
) -> Codebook:
    """The same tables with codes whose errors cancel in each row of the matrix."""
    if not rows:
        codes = view.to_matrix(stored.codes.reshape(view.shape))
        moved = codebooks.balance(matrix, codes, stored.table[0, :, 0])
        return replace(stored, codes=view.from_matrix(moved).reshape(1, -1))
    groups = [
        codebooks.balance(part, codes.reshape(len(part), -1), table[:, 0]).ravel()
        for part, codes, table in zip(
            np.split(matrix, len(stored.codes)), stored.codes, stored.table, strict=True
        )
    ]
    return replace(stored, codes=np.stack(groups))
