"""LSTM, GRU and RNN: hidden units, which every gate has, and the channels of the input."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxshrink.channels.labels import Barrier, Rule, Walk
from onnxshrink.channels.removal import Cut
from onnxshrink.channels.rules.quantized import keep_range
from onnxshrink.graph import read


def _recurrent(gates: int, biases: int, *, codes: bool = False) -> Rule:
    """``X [T, N, I], W [D, G*H, I], R [D, G*H, H], B [D, 2*G*H], _, h, c, P [D, 3*H]``.

    Where weights are codes, they are transposed, and scales and zero points of both follow.

    A removed unit gives 0 in the original when its weights and initial states are 0: its candidate
    is tanh(0), and what it remembers is 0.
    """

    def rule(walk: Walk, node: ir.Node) -> None:
        x, w, r = (walk.operand(node, index) for index in range(3))
        if read.integer(node, "layout", 0):
            raise Barrier("layout 1")
        rows, columns = (2, 1) if codes else (1, 2)
        walk.join(x.axes[2], w.axes[columns], node)
        hidden = r.axes[columns]
        if hidden is None:
            raise Barrier("a hidden size that varies")
        standard = set(read.texts(node, "activations") or ()) <= {"Sigmoid", "Tanh", "Relu"}
        for operand, repeats in ((w, gates), (r, gates)):
            walk.join(operand.axes[rows], np.tile(hidden, repeats), node)
        if codes:
            keep_range(walk, node, x)
            for index in (8, 9, 10, 11):
                vector = walk.operand(node, index)
                if vector.rank > 1 and vector.length(1) != 1:
                    walk.join(vector.axes[1], np.tile(hidden, gates), node)
        if walk.has(node, 3):
            walk.join(walk.operand(node, 3).axes[1], np.tile(hidden, biases), node)
        zero = standard
        for index in (5, 6):
            if walk.has(node, index):
                state = walk.operand(node, index)
                walk.join(state.axes[2], hidden, node)
                walk.join(state.axes[0], w.axes[0], node)
                walk.join(state.axes[1], x.axes[1], node)
                zero = zero and state.zero[2]
        if walk.has(node, 7):
            walk.join(walk.operand(node, 7).axes[1], np.tile(hidden, 3), node)
        for index in (0, 1, 2, 3, 7, 8, 9, 10, 11):  # as many directions as there are
            if walk.has(node, index):
                walk.freeze(walk.operand(node, index).axes[0], "directions and steps of time")
        walk.put(node, [x.axes[0], w.axes[0], x.axes[1], hidden], [False, False, False, zero])
        for output in (1, 2):
            walk.put(node, [w.axes[0], x.axes[1], hidden], [False, False, zero], output)

        def rewrite(cut: Cut) -> None:
            if cut.removed(hidden):
                cut.set_integer(node, "hidden_size", len(hidden) - cut.removed(hidden))

        walk.on_cut(node, rewrite)

    return rule


RULES: dict[tuple[str, str], Rule] = {
    ("", "GRU"): _recurrent(3, 6),
    ("", "LSTM"): _recurrent(4, 8),
    ("", "RNN"): _recurrent(1, 2),
    ("com.microsoft", "DynamicQuantizeLSTM"): _recurrent(4, 8, codes=True),
}
