"""Tables, whose columns become inputs by their names."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from onnxshrink.errors import DataError
from onnxshrink.options import nearest
from onnxshrink.runtime.inputs.fitting import Note
from onnxshrink.runtime.inputs.ports import Port, lacking

SUFFIXES = (".csv", ".tsv", ".parquet")


def read(file: Path) -> dict[str, np.ndarray]:
    """The columns of a table by name; cells of a .csv are text.

    Args:
        file: A .csv with the names in its first line (parted by commas, semicolons, tabs or
            bars), or a .parquet.

    Raises:
        DataError: It cannot be read, or has empty cells.
    """
    return _parquet(file) if file.suffix == ".parquet" else _csv(file)


def gathered(
    columns: Mapping[str, np.ndarray], where: str, wanted: Mapping[str, Port], note: Note
) -> dict[str, np.ndarray]:
    """Stacked arrays for the inputs of a model, from the columns of a table.

    An input takes the column of its name, or those of its name and a number (``x_0``, ``x.1``,
    ``x[2]``). The only input of a model takes all columns of a table that are as many as it has
    features.

    Args:
        columns: By name.
        where: Where they come from, for messages.
        wanted: The model's inputs.
        note: Told which columns are left out.

    Raises:
        DataError: There are no columns for an input, or a cell is empty.
    """
    taken: dict[str, list[str]] = {name: _columns_of(name, columns) for name in wanted}
    if len(wanted) == 1 and not any(taken.values()):
        (port,) = wanted.values()
        features = port.fixed(1) or 1
        if len(columns) != features:
            raise DataError(
                f"{where}: has {len(columns)} columns, and {port.name!r} takes {port.shown_dims}: "
                f"keep its {features}, or name them {port.name}_0, {port.name}_1 and so on"
            )
        taken = {port.name: list(columns)}
    for name, found in taken.items():
        if not found:
            raise DataError(
                f"{where}: has no column for input {name!r}; it has {', '.join(columns)}"
                f"{nearest(name, columns)}"
            )
    if left := sorted(set(columns) - {column for found in taken.values() for column in found}):
        note(f"{where}: no input takes the columns {', '.join(left)}; ignored")
    return {
        name: _stacked([_typed(columns[c], c, wanted[name], where) for c in found], wanted[name])
        for name, found in taken.items()
    }


def _columns_of(name: str, columns: Mapping[str, np.ndarray]) -> list[str]:
    if name in columns:
        return [name]
    numbered = re.compile(re.escape(name) + r"[._\[]?(\d+)\]?")
    found = [(int(match[1]), column) for column in columns if (match := numbered.fullmatch(column))]
    return [column for _, column in sorted(found)]


def _csv(file: Path) -> dict[str, np.ndarray]:
    """Cells as text, by column."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        first = text.partition("\n")[0]
        sign = max(",;\t|", key=first.count)
        rows = [row for row in csv.reader(io.StringIO(text, ""), delimiter=sign) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: not a table that can be read: {error}") from error
    if not rows:
        raise DataError(f"{file}: holds no rows")
    names = [name.strip() for name in rows[0]]
    if len(set(names)) < len(names) or all(map(_is_number, names)):
        raise DataError(f"{file}: its first line does not name the columns, each differently")
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(names):
            raise DataError(f"{file}: row {number} has {len(row)} cells for {len(names)} columns")
    return {name: np.array([row[i] for row in rows[1:]], str) for i, name in enumerate(names)}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parquet(file: Path) -> dict[str, np.ndarray]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise lacking("parquet files", "pyarrow", "tables") from error
    try:
        table = parquet.read_table(file)
    except (ArrowException, OSError, ValueError) as error:
        raise DataError(f"{file}: not a table that can be read: {error}") from error
    found = {}
    for name in table.column_names:
        if table[name].null_count:
            raise DataError(f"{file}: column {name!r} has empty cells")
        values = table[name].to_pylist()
        try:
            found[name] = np.array(values)
        except ValueError as error:
            raise DataError(f"{file}: column {name!r} holds rows of several lengths") from error
    return found


def _typed(column: np.ndarray, name: str, port: Port, where: str) -> np.ndarray:
    """A column as numbers, where the input takes numbers."""
    if port.dtype.kind == "O":
        return column.astype(object)
    if column.dtype.kind in "iu" and port.dtype.kind in "fV":
        return column.astype(np.float64)  # whole numbers of a measure are no other type
    if column.dtype.kind != "U":
        return column
    kind = np.int64 if port.dtype.kind in "iub" else np.float64
    try:
        return column.astype(kind)
    except ValueError:
        for row, cell in enumerate(column.tolist(), 2):
            if not _is_number(cell) or (kind is np.int64 and not float(cell).is_integer()):
                said = f"holds {cell!r}" if cell.strip() else "is empty"
                raise DataError(
                    f"{where}: row {row}, column {name!r} {said}, and input {port.name!r} takes "
                    f"{port.dtype}"
                ) from None
        return column.astype(np.float64).astype(np.int64)  # 3.0 for 3


def _stacked(columns: list[np.ndarray], port: Port) -> np.ndarray:
    """One array of the input's rank, rows first."""
    rank = len(port.dims) if port.dims is not None else columns[0].ndim
    if len(columns) == 1 and columns[0].ndim >= rank:
        return columns[0]
    return np.stack(columns, axis=1)
