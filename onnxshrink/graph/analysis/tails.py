"""What makes the outputs of a model, what reads them inside it, and which become its inputs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from onnxshrink.graph import operators, read
from onnxshrink.kernels.kinds import Tail

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxshrink.graph.file.model import Model

_FARTHEST = 16  # operators that only move values
#: What exporters add to the name of a state to tell the next one from the last.
_NEXT = re.compile(r"_(out|output|next|new|n|1)$|(?<=[a-z])N$|^(new|next|out|present|past)[_.]")


def tails(model: Model) -> dict[str, Tail]:
    """By name of the output."""
    inputs = {_stem(value.name or ""): value for value in model.inputs}
    found = {}
    for output in model.ir.graph.outputs:
        chain = _chain(output)
        producer = chain[-1].producer()
        readers = [node for value in chain for node, _ in value.uses()]
        back = inputs.get(_stem(output.name or ""))
        found[output.name or ""] = Tail(
            last="" if producer is None else producer.op_type,
            read_by=frozenset(node.op_type for node in readers if not _keeps(node)),
            fed_back=(back.name or "") if back is not None and _fits(back, output) else "",
        )
    return found


def _chain(value: ir.Value) -> list[ir.Value]:
    """The value, and those that it holds the numbers of in other shapes or types."""
    chain = [value]
    for _ in range(_FARTHEST):
        producer = chain[-1].producer()
        before = None if producer is None or not _keeps(producer) else read.input(producer, 0)
        if before is None:
            break
        chain.append(before)
    return chain


def _keeps(node: ir.Node) -> bool:
    """Whether a node hands on all numbers as they are, in another shape, order or type."""
    return operators.moves(node) not in ("", "parts", "pads", "joins")


def _stem(name: str) -> str:
    """A name without what tells the next state from the last: ``hidden_out`` is ``hidden``."""
    return _NEXT.sub("", _NEXT.sub("", name))


def _fits(source: ir.Value, output: ir.Value) -> bool:
    """Whether an output could be an input: neither type nor rank nor a known length differs."""
    if source.type != output.type:
        return False
    if source.shape is None or output.shape is None:
        return True
    if len(source.shape) != len(output.shape):
        return False
    pairs = zip(source.shape, output.shape, strict=True)
    return all(
        a == b or not (isinstance(a, int) and isinstance(b, int)) or 0 in (a, b) for a, b in pairs
    )
