"""Packs: a model whose weights are entropy-coded, in one file; once, a sidecar of the .onnx.

``docs/sidecar.md`` is the specification of the format. ``Writer`` makes a pack from tensors that
come one at a time; ``Sidecar`` opens one, having checked all that its header claims, and decodes
tensors in parallel. Neither knows ONNX: a tensor is a name, an element type, a shape and its bytes.
"""

from onnxshrink.sidecar.files import sibling
from onnxshrink.sidecar.header import Chunk, Entry, Header
from onnxshrink.sidecar.reader import DEFAULT_LIMIT, Sidecar, holds_graph, updates
from onnxshrink.sidecar.writer import Writer, pack

__all__ = [
    "DEFAULT_LIMIT",
    "Chunk",
    "Entry",
    "Header",
    "Sidecar",
    "Writer",
    "holds_graph",
    "pack",
    "sibling",
    "updates",
]
