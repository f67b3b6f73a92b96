"""What makes the outputs of a model, what reads them inside it, and which become its inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxshrink.graph import operators, read
from onnxshrink.graph.analysis.states import states
from onnxshrink.kernels.kinds import Tail

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxshrink.graph.file.model import Model

_FARTHEST = 16  # operators that only move values


def tails(model: Model) -> dict[str, Tail]:
    """By name of the output."""
    known = {state.output: state for state in states(model)}
    outputs = model.ir.graph.outputs
    if len(known) == len(outputs):  # there is nothing else to judge them by
        known = {}
    decodes = any(state.grows is not None for state in known.values())
    found = {}
    for output in outputs:
        chain, name = _chain(output), output.name or ""
        producer = chain[-1].producer()
        readers = [node for value in chain for node, _ in value.uses()]
        state = known.get(name)
        found[name] = Tail(
            last="" if producer is None else producer.op_type,
            read_by=frozenset(node.op_type for node in readers if not _keeps(node)),
            fed_back="" if state is None else state.input,
            # What is appended to a cache is read in the same run, so other outputs tell of it.
            followed=state is not None and decodes,
            decodes=decodes,
            normed=_normed(chain[-1]),
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


def _normed(value: ir.Value | None) -> int:
    """The length of rows that a norm made, which a value holds as they are or in the mean.

    Sums of what a mask leaves, over how many that are, are means.
    """
    for _ in range(_FARTHEST):
        producer = None if value is None else value.producer()
        if producer is None:
            return 0
        norm = operators.of(producer, operators.Norm)
        if norm is not None:
            gain = read.constant(read.input(producer, norm.gain))
            return gain.size if gain is not None and norm.channels == -1 else 0
        if not (_keeps(producer) or _averages(producer)):
            return 0
        value = read.input(producer, 0)
    return 0


def _averages(node: ir.Node) -> bool:
    """Whether a node may be part of a mean: a sum, or what is multiplied or divided."""
    scales = operators.of(node, operators.Arithmetic)
    return (scales is not None and scales.scales) or bool(operators.of(node, operators.Reduction))


def _keeps(node: ir.Node) -> bool:
    """Whether a node hands on all numbers as they are, in another shape, order or type."""
    how = operators.moves(node)
    return how not in ("", "parts", "pads", "joins") or (how == "joins" and len(node.inputs) == 1)
