"""Files are parsed, put right where ONNX Runtime would take them so, and checked."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path

import onnx

from onnxshrink import sidecar
from onnxshrink.errors import ModelError
from onnxshrink.graph.file import round_trip, wellformed, wire
from onnxshrink.options import nearest_file

#: By suffix, for those that begin in many ways.
_FOREIGN = {
    ".pt": "a PyTorch file, not an ONNX model", ".pth": "a PyTorch file, not an ONNX model",
    ".safetensors": "a file of safetensors: weights without a model",
    ".tflite": "a TensorFlow Lite model, not an ONNX model",
    ".h5": "a Keras or HDF5 file, not an ONNX model", ".keras": "a Keras file, not an ONNX model",
    ".mlmodel": "a Core ML model, not an ONNX model", ".gguf": "a GGUF file, not an ONNX model",
}  # fmt: skip
_RUNTIMES_OWN = "com.microsoft"


def read(path: Path) -> tuple[onnx.ModelProto, list[str]]:
    """Parse a model file; larger tensors stay in it (see ``wire``), external data is not looked at.

    Returns:
        The model, and what was put right in it, for people.

    Raises:
        ModelError: No such file, or not an ONNX model.
    """
    if is_file_packed(path):
        raise ModelError(f"{path}: its weights are packed; 'onnxshrink unpack' it first")
    try:
        if path.stat().st_size == 0:
            raise ModelError(f"{path}: the file is empty")
        proto = wire.read(str(path))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        if (made := foreign(path)) is not None:
            raise ModelError(f"{path}: {made}") from error
        raise ModelError(f"{path}: not an ONNX file, or truncated: {error}") from error
    if not proto.HasField("graph") or proto.ir_version < 1:
        raise ModelError(f"{path}: not an ONNX model: it holds no graph")
    return proto, checked(proto, str(path))


def is_file_packed(path: Path) -> bool:
    """Whether a file is a packed model by itself: a pack that holds its graph.

    Raises:
        ModelError: It is no file, or cannot be read.
    """
    if not os.path.exists(path):  # unlike Path.exists(), also False for impossible names
        if re.match(r"[a-z]{2,}:/", str(path)):
            raise ModelError(f"{path}: is a web address; download the model first")
        raise ModelError(f"{path}: no such file{nearest_file(path)}")
    if path.is_dir():
        raise ModelError(f"{path}: is a folder; name the .onnx file in it")
    try:
        return sidecar.holds_graph(path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error


def foreign(path: Path) -> str | None:
    """What a file is that is no ONNX model, as its first bytes or its name say; None: not known."""
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"version https://git-lfs"):
        return "stands for a file that Git LFS keeps; 'git lfs pull' fetches it"
    if head.lstrip()[:5].lower() in (b"<!doc", b"<html"):
        return "a web page, not an ONNX model; its download went wrong"
    if head[:2] == b"PK" and path.suffix == ".npz":
        return "holds arrays; name the model"
    found = _FOREIGN.get(path.suffix.lower())
    if head.isascii() and head.decode().replace("\n", " ").strip().isprintable():
        found = "text, not an ONNX model"
    if head[:2] == b"PK":
        found = "a PyTorch file (or another archive), not an ONNX model"
    elif head[4:8] == b"TFL3":
        found = _FOREIGN[".tflite"]
    elif head[:8] == b"\x89HDF\r\n\x1a\n":
        found = _FOREIGN[".h5"]
    elif head[8:9] == b"{" and not any(head[5:8]):
        found = _FOREIGN[".safetensors"]
    return None if found is None else f"{found}; export it to ONNX first"


def checked(proto: onnx.ModelProto, where: str) -> list[str]:
    """Hold a model against what this package takes for granted; what was put right for it.

    Raises:
        ModelError: Says what is wrong, and with which node or value.
    """
    repairs = _repair(proto)
    wellformed.check(proto, where)
    return repairs


def _repair(model: onnx.ModelProto) -> list[str]:
    """Do what ONNX Runtime does: sort nodes, and know its own operators without an import."""
    done = []
    if sum(_sort(nodes) for nodes in round_trip.node_lists(model)):
        done.append("nodes stood before what they use: they are sorted now")
    imported = {opset.domain for opset in model.opset_import}
    every = (node for nodes in round_trip.node_lists(model) for node in nodes)
    if _RUNTIMES_OWN not in imported and any(node.domain == _RUNTIMES_OWN for node in every):
        model.opset_import.add(domain=_RUNTIMES_OWN, version=1)
        done.append(f"operators of {_RUNTIMES_OWN} were used without an import: it is there now")
    return done


def _sort(stored: Collection[onnx.NodeProto]) -> bool:
    """Move nodes behind what they use, and no others; whether any was moved. Cycles stay."""
    nodes = list(stored)
    maker = {name: at for at, node in enumerate(nodes) for name in node.output if name}
    order: dict[int, None] = {}
    entered: set[int] = set()
    for first in range(len(nodes)):
        stack = [first]
        while stack:
            at = stack[-1]
            makers = [maker[n] for n in _used(nodes[at]) if n in maker] if at not in entered else []
            entered.add(at)
            waiting = [m for m in makers if m not in order and m not in entered]
            if waiting:
                stack += reversed(waiting)
            else:
                order.setdefault(stack.pop())
    if list(order) == list(range(len(nodes))):
        return False
    copies = [onnx.NodeProto.FromString(nodes[at].SerializeToString()) for at in order]
    for node, copy in zip(nodes, copies, strict=True):
        node.CopyFrom(copy)
    return True


def _used(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node and the bodies in it read; those that bodies make are among them."""
    yield from filter(None, node.input)
    for _, graph in round_trip.subgraphs(node):
        for inner in graph.node:
            yield from _used(inner)
        yield from (value.name for value in graph.output)
