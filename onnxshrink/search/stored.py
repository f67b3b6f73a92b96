"""What a model takes as it will be stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxshrink.passes.quantize_rd.storage import file_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxshrink.graph.file.model import Model
    from onnxshrink.recipe import Storage


def stored_bytes(model: Model, storage: Storage, stay: Sequence[str] | None = ()) -> int:
    """Bytes of the file, or of all files, as it will be written.

    Args:
        model: The model; it is left as it is.
        storage: What is asked for.
        stay: Names that are not shortened, or patterns of them; None: no name is.
    """
    model = model.clone()
    if stay is not None:
        model.shorten_names(stay)
    return file_bytes(model, storage) if storage in ("coded", "packed") else model.nbytes()
