"""Which outputs of an operator go on from which of its inputs, run after run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

_CONTRIB = "com.microsoft"


@dataclass(frozen=True)
class Memory:
    """What one operator keeps.

    Attributes:
        inputs: For each output, the input that it goes on from.
        axis: Along which it appends; None where it replaces.
    """

    inputs: Mapping[int, int]
    axis: int | None = None


_MEMORY: dict[tuple[str, str], Memory] = {
    ("", "Attention"): Memory({1: 4, 2: 5}, 2),
    (_CONTRIB, "Attention"): Memory({1: 4}, 2),
    (_CONTRIB, "DecoderMaskedMultiHeadAttention"): Memory({1: 5, 2: 6}, 2),
    (_CONTRIB, "GroupQueryAttention"): Memory({1: 3, 2: 4}, 2),
    (_CONTRIB, "MultiHeadAttention"): Memory({1: 6, 2: 7}, 2),
    ("", "GRU"): Memory({1: 5}),
    ("", "LSTM"): Memory({1: 5, 2: 6}),
    ("", "RNN"): Memory({1: 5}),
    (_CONTRIB, "DynamicQuantizeLSTM"): Memory({1: 5, 2: 6}),
}


def memory(node: ir.Node) -> Memory:
    """What a node keeps from run to run; nothing of most."""
    return _MEMORY.get((node.domain, node.op_type), Memory({}))
