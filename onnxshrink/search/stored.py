"""What a model takes as it will be stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxshrink.passes.quantize_rd.storage import file_bytes

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model
    from onnxshrink.recipe import Storage


def stored_bytes(model: Model, storage: Storage) -> int:
    """Bytes of the file, or of all files, in the storage that is asked for."""
    return file_bytes(model, storage) if storage in ("coded", "packed") else model.nbytes()
