"""Stacked arrays, cut into feeds along their first axis."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from onnxshrink.errors import DataError
from onnxshrink.runtime.inputs.fitting import as_array
from onnxshrink.runtime.inputs.ports import Found, Port

#: Most rows that go into one feed when the model takes any number of them.
CHUNK_ROWS = 32
#: Feeds that one source is cut into at least: some are fitted to, others judge, none is both.
LEAST_FEEDS = 8


class Stacks:
    """Cuts dicts of stacked arrays into feeds; a dict that is one feed stays whole.

    Attributes:
        least: Feeds that one source is cut into at least.

    Args:
        wanted: The model's inputs.
        batch: Rows of one feed, where the model takes any number.
    """

    def __init__(self, wanted: Mapping[str, Port], batch: int | None):
        self._wanted = wanted
        self._batch = batch
        self.least = LEAST_FEEDS

    def cut(self, source: Mapping[str, Any], where: str) -> Iterator[Found]:
        """The feeds of some arrays by name.

        Raises:
            DataError: One is no array, or the lengths of the stacks differ.
        """
        arrays = {name: as_array(value, f"{where}, {name!r}") for name, value in source.items()}
        known = {name: array for name, array in arrays.items() if name in self._wanted}
        if self._has_ranks(known, extra=1):
            lengths = {len(array) for array in known.values()}
            if len(lengths) > 1:
                raise DataError(f"{where}: stacked arrays of different lengths {sorted(lengths)}")
            for row in range(lengths.pop()):
                yield f"{where}, row {row}", {n: array[row] for n, array in known.items()}
            return
        rows = {n: a for n, a in known.items() if a.ndim and self._fixed_rows(n) != len(a)}
        lengths = {len(array) for array in rows.values()}
        fixed = {size for name in rows if (size := self._fixed_rows(name)) is not None}
        can_be_cut = self._has_ranks(known, extra=0) and len(lengths) == 1 and len(fixed) < 2
        count = lengths.pop() if can_be_cut else 0
        ends = self._ends(count, fixed)
        if ends in ([], [count]):
            yield where, arrays  # one feed; or a shape that is refused as the user knows it
            return
        for start, end in itertools.pairwise([0, *ends]):
            part = {n: array[start:end] for n, array in rows.items()}
            yield f"{where}, rows {start}-{end - 1}", {**arrays, **part}

    def one(self, row: Mapping[str, Any], where: str) -> Mapping[str, Any]:
        """A feed, also of the one row that data sets give: then it gets its first axis.

        Raises:
            DataError: One of the inputs is no array.
        """
        arrays = {
            name: as_array(value, f"{where}, {name!r}") if name in self._wanted else value
            for name, value in row.items()
        }
        known = {n: array for n, array in arrays.items() if n in self._wanted}
        batched = {n: a for n, a in known.items() if self._wanted[n].dims not in (None, ())}
        free = all(self._fixed_rows(name) in (None, 1) for name in batched)
        if batched and free and self._has_ranks(batched, extra=-1):
            arrays |= {name: array[None] for name, array in batched.items()}
        return arrays

    def _ends(self, rows: int, fixed: Collection[int]) -> list[int]:
        """Where feeds end, of so many rows; none where they do not make one."""
        if size := min(fixed, default=self._batch):
            whole = list(range(size, rows + 1, size))
            return whole if fixed or not rows % size else [*whole, rows]
        count = min(rows, max(self.least, -(-rows // CHUNK_ROWS)))
        return [rows * (number + 1) // count for number in range(count)]

    def _has_ranks(self, arrays: Mapping[str, np.ndarray], extra: int) -> bool:
        """Whether every array has ``extra`` axes more than its input; unknown ranks pass at 0."""
        dims = {name: self._wanted[name].dims for name in arrays}
        return bool(arrays) and all(
            extra == 0 if (d := dims[name]) is None else array.ndim == len(d) + extra
            for name, array in arrays.items()
        )

    def _fixed_rows(self, name: str) -> int | None:
        return self._wanted[name].fixed(0)
