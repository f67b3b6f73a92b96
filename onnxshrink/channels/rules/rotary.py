"""Rotary positions: dimensions of a head are turned in pairs, so the two of a pair go together."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxshrink.channels.labels import Axis, Barrier, Rule, Walk
from onnxshrink.channels.removal import Cut
from onnxshrink.channels.rules.attention import attend, heads_of, tie_cache, tie_mask
from onnxshrink.channels.rules.reshape import merge
from onnxshrink.graph import read


def _rotary(walk: Walk, node: ir.Node, tables: tuple[int, int]) -> None:
    """``x [N, H, S, D]`` or ``[N, S, H * D]``, with tables of ``[positions, D / 2]``."""
    x, table = walk.operand(node, 0), walk.operand(node, tables[0])
    half, labels = table.axes[-1], x.axes[-1]
    if half is None or labels is None:
        raise Barrier("dimensions that vary")
    heads: Axis = None
    size = labels
    if x.rank == 3:
        length = len(labels) // (read.integer(node, "num_heads", 0) or 1)
        if node.domain and not read.integer(node, "rotary_embedding_dim", 0):
            length = 2 * len(half)
        heads, size = heads_of(walk, labels, len(labels) // length)
    turned = read.integer(node, "rotary_embedding_dim", 0) or len(size)
    if 2 * len(half) != turned:
        raise Barrier("tables of another length")
    pairs = size[:turned].reshape((-1, 2) if read.integer(node, "interleaved", 0) else (2, -1))
    one, other = pairs.T if read.integer(node, "interleaved", 0) else pairs
    walk.join(one, other, node)
    for index in tables:
        values = walk.operand(node, index)
        walk.join(one, values.axes[-1], node)
        walk.keep(node, values.axes[:-1], "positions")
    axes = [*x.axes[:-1], labels if heads is None else merge(walk, [heads, size])]
    walk.put(node, axes, x.zero)

    def rewrite(cut: Cut) -> None:
        if heads is not None and cut.removed(heads) and read.integer(node, "num_heads", 0):
            cut.set_integer(node, "num_heads", len(heads) - cut.removed(heads))
        gone = cut.removed(size[:turned])
        if gone and read.integer(node, "rotary_embedding_dim", 0):
            cut.set_integer(node, "rotary_embedding_dim", turned - gone)

    walk.on_cut(node, rewrite)


def _standard(walk: Walk, node: ir.Node) -> None:
    """``x, cos, sin, positions``."""
    _rotary(walk, node, (1, 2))


def _contributed(walk: Walk, node: ir.Node) -> None:
    """``x, positions, cos, sin``."""
    if read.integer(node, "is_packed_batching", 0):
        raise Barrier("batches that are packed")
    _rotary(walk, node, (2, 3))


def _grouped(walk: Walk, node: ir.Node) -> None:
    """``q, k, v, past key, past value, lengths, length, cos, sin, positions, bias, sinks``.

    Heads may go; kernels take heads of certain sizes only, so their dimensions stay.
    """
    if any(walk.has(node, index) for index in range(12, len(node.inputs))):
        raise Barrier("a quantized cache or norms inside")
    if len(node.outputs) > 3 and node.outputs[3].name:
        raise Barrier("its scores are used")
    counts = [read.integer(node, name, 0) for name in ("num_heads", "kv_num_heads", "kv_num_heads")]
    x, zero = walk.operand(node, 0), [False] * 3
    if walk.has(node, 1):
        operands = [walk.operand(node, index) for index in range(3)]
        parts, zero = [each.axes[2] for each in operands], [each.zero[2] for each in operands]
    else:
        labels = x.axes[2]
        if labels is None or len(labels) % sum(counts):
            raise Barrier("heads that vary")
        ends = np.cumsum(counts[:2]) * (len(labels) // sum(counts))
        parts, zero = list(np.split(labels, ends)), [x.zero[2]] * 3
    q, k, v = (heads_of(walk, part, n) for part, n in zip(parts, counts, strict=True))
    for _, size in (q, k, v):
        walk.keep(node, [size], "its kernels take heads of certain sizes")
    out = attend(walk, node, q, k, v, zero)
    tie_mask(walk, node, 10, q[0])
    tie_cache(walk, node, 3, 1, k)
    tie_cache(walk, node, 4, 2, v)
    if walk.has(node, 11):
        walk.join(walk.operand(node, 11).axes[0], q[0], node)
    for index in (5, 6, 7, 8, 9):
        if walk.has(node, index):
            walk.keep(node, walk.operand(node, index).axes, "positions")
    width = merge(walk, [q[0], v[1]])
    walk.put(node, [x.axes[0], x.axes[1], width], [False, False, out.zero[0]])

    def rewrite(cut: Cut) -> None:
        for name, (heads, _) in (("num_heads", q), ("kv_num_heads", k)):
            if cut.removed(heads):
                cut.set_integer(node, name, len(heads) - cut.removed(heads))

    walk.on_cut(node, rewrite)


RULES: dict[tuple[str, str], Rule] = {
    ("", "RotaryEmbedding"): _standard,
    ("com.microsoft", "GroupQueryAttention"): _grouped,
    ("com.microsoft", "RotaryEmbedding"): _contributed,
}
