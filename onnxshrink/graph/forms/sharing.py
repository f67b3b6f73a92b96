"""One weight as codes and a table: scaled, clustered, balanced, and measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxshrink.graph.forms.dequantize import CAST_OVERHEAD
from onnxshrink.graph.weights import second_moments
from onnxshrink.graph.weights.views import WeightView
from onnxshrink.kernels import codebooks, obs
from onnxshrink.kernels.codebooks import Array, Codebook, Method
from onnxshrink.kernels.observers import Need

Statistics = Mapping[Need, Any]

#: Bytes that nodes, names and headers cost, about: of a codebook, and of packed codes besides.
OVERHEAD = 160
PACKED_OVERHEAD = 140

_SAMPLE = 2**21  # weights of each tensor that a common table is fitted to


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """How to share the values of a weight.

    Attributes:
        method: See ``codebooks.encode``, like ``entries`` and ``width``.
        rows: Output channels that share a table; 0: all.
        scaled: Whether each output channel is divided by its size first.
        balanced: Whether the errors of each output channel shall cancel.
        feedback: Whether weights shall make up for each other's errors, where inputs are known.
        weighed: Whether entries lie where outputs need them, where inputs are known.
    """

    method: Method
    entries: int
    width: int = 1
    rows: int = 0
    scaled: bool = False
    balanced: bool = False
    feedback: bool = False
    weighed: bool = False


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
        fed_back: Whether its weights make up for each other's errors.
    """

    stored: Codebook
    scale: Array | None
    rows: bool
    values: Array
    sqnr_db: float
    fed_back: bool = False

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
        if self.fed_back:
            parts.append("gptq")
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
    coding: Sharing,
    rng: np.random.Generator,
    common: Array | None = None,
    statistics: Statistics = MappingProxyType({}),
) -> Shared:
    """Find codes and tables for a weight.

    Args:
        view: The weight.
        values: From :func:`values_of`.
        coding: How.
        rng: Seeds the clusters of vectors.
        common: A table to use, [entries, width], instead of one of its own.
        statistics: Second moments of what weights are multiplied with.

    Raises:
        ValueError: Its size or its number of channels cannot be divided so, or it has too many
            distinct values.
    """
    axes = tuple(sorted(view.axes.contract))
    scale = codebooks.scales(values, axes, coding.method) if coding.scaled and axes else None
    scaled = values if scale is None else values / scale
    counted = second_moments.importance(statistics, view) if coding.weighed else None
    groups = _groups(view, coding.rows)
    rows = groups > 1

    def grouped(array: Array) -> Array:
        return (view.to_matrix(array) if rows else array).reshape(groups, -1)

    if common is None:
        mass = None
        if counted is not None:
            mass = grouped(counted if scale is None else counted * np.square(scale))
        stored = codebooks.encode(
            grouped(scaled),
            coding.method,
            coding.entries,
            width=coding.width,
            importance=mass,
            rng=rng,
        )
    else:
        stored = Codebook(codebooks.nearest(grouped(scaled), common), common[None])
    shared = _decoded(view, stored, rows)
    if scale is not None and coding.method == "kmeans":
        scale = codebooks.refit_scales(values, shared, axes, counted)
        scaled = values / scale
    fed = _fed_back(view, stored, scale, statistics) if coding.feedback else None
    if fed is not None:
        stored = replace(stored, codes=codes_of(grouped(fed), stored))
        shared = _decoded(view, stored, rows)
    # A row that is looked up is not summed: its errors have nothing to cancel in.
    elif coding.balanced and coding.width == 1 and not view.main.is_lookup:
        stored = _balanced(view, stored, view.to_matrix(scaled), rows)
        shared = _decoded(view, stored, rows)
    if scale is not None:
        shared = shared * scale
    sqnr = codebooks.sqnr_db(values, shared)
    return Shared(stored, scale, rows, shared, sqnr, fed is not None)


def codes_of(groups: Array, stored: Codebook) -> codebooks.Codes:
    """Numbers of the nearest entries of each group's own table."""
    tables = stored.table[:, :, 0]
    return np.stack([codebooks.assign(g, t) for g, t in zip(groups, tables, strict=True)])


def _fed_back(
    view: WeightView, stored: Codebook, scale: Array | None, statistics: Statistics
) -> Array | None:
    """Entries chosen with error feedback, in the stored shape; None without a second moment."""
    matrix, tables = view.matrix, stored.table[:, :, 0]
    group = np.repeat(np.arange(len(tables)), len(matrix) // len(tables))
    factors = np.ones(view.shape, np.float32) if scale is None else scale
    factor = view.to_matrix(np.broadcast_to(factors, view.shape))[:, 0]
    zero = matrix == 0 if (tables == 0).any(1).all() else np.zeros(matrix.shape, bool)

    def grid(rows: npt.NDArray[np.int64]) -> obs.Grid:
        return codebooks.grid(tables, group[rows], factor[rows], zero[rows])

    found = second_moments.with_feedback(statistics, view, grid)
    return None if found is None else view.from_matrix(found / factor[:, None])


def common_table(
    views: Iterable[WeightView], coding: Sharing, rng: np.random.Generator
) -> Array | None:
    """One table for several weights, [entries, width]; None without any weight that it fits."""
    parts = []
    for view in views:
        if view.size % coding.width:
            continue
        try:
            values = values_of(view)
        except ValueError:  # said again, and reported, when it is this weight's turn
            continue
        axes = tuple(sorted(view.axes.contract))
        if coding.scaled and axes:
            values = values / codebooks.scales(values, axes, coding.method)
        vectors = values.reshape(-1, coding.width)
        parts.append(vectors[:: -(-vectors.size // _SAMPLE)].ravel())
        view.release()
    if not parts:
        return None
    together = np.concatenate(parts)[None]
    fitted = codebooks.encode(together, coding.method, coding.entries, width=coding.width, rng=rng)
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
