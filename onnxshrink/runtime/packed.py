"""Packed models in ONNX Runtime, without a temporary file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from onnxshrink.graph.forms import packed
from onnxshrink.runtime.session import DEFAULT_OPTIONS, SessionOptions, open_session

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


def session(
    path: str | os.PathLike[str],
    options: SessionOptions = DEFAULT_OPTIONS,
    *,
    base: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    profile: str | None = None,
) -> InferenceSession:
    """Open a packed model in ONNX Runtime.

    The weights are decoded into one buffer, which ONNX Runtime copies from and which is let go when
    the session exists: the peak is twice the decoded weights plus a chunk.

    Args:
        path: The packed model.
        options: What to pin.
        base: The packed model that this one updates, if it does.
        limit: Bytes that it may unpack to; 16 GiB by default.
        profile: How the name of a file starts, to write a profile of all runs to.

    Raises:
        ModelError: Not a packed model, or ONNX Runtime does not load it.
        SidecarError: It is damaged or hostile, or its sidecar is missing or another model's.
    """
    with packed.open_pack(path, base=base, limit=limit) as opened:
        data = np.zeros(opened.header.data_length, np.uint8)
        for entry in opened.header.tensors:
            opened.read(entry.name, out=data[entry.offset : entry.offset + entry.nbytes])
        name = opened.header.data_name
        graph = packed.graph(opened, path)
    return open_session(graph, options, files={name: data}, profile=profile, label=os.fspath(path))
