"""Attention in one operator: heads and the dimensions that all heads share may go."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxshrink.channels.labels import Axis, Barrier, Operand, Rule, Walk
from onnxshrink.channels.removal import Cut
from onnxshrink.channels.rules.contraction import contract
from onnxshrink.channels.rules.norms import may_lose, with_zeros
from onnxshrink.channels.rules.reshape import factor, merge
from onnxshrink.graph import read

#: Labels of the heads, and of the dimensions that they share.
Heads = tuple[np.ndarray, np.ndarray]


def heads_of(walk: Walk, labels: Axis, count: int) -> Heads:
    """An axis of ``[heads * size]`` taken apart."""
    if labels is None or not count or len(labels) % count:
        raise Barrier("heads that vary")
    heads, size = factor(walk, labels, (count, len(labels) // count))
    return heads, size


def attend(
    walk: Walk, node: ir.Node, q: Heads, k: Heads, v: Heads, zero: Sequence[bool]
) -> Operand:
    """Tie queries to keys and keys to values, where each key may serve several queries.

    Args:
        walk: The labels.
        node: The operator.
        q: Heads and dimensions of the queries.
        k: Those of the keys.
        v: Those of the values.
        zero: Whether removed dimensions of Q, K and V, and removed heads of V, are zero.

    Returns:
        The heads of the output, one for every query, and their dimensions.
    """
    contract(walk, node, Operand([q[1]], [zero[0]]), 0, Operand([k[1]], [zero[1]]), 0)
    walk.join(k[0], v[0], node)
    if len(q[0]) % len(k[0]):
        raise Barrier("queries that do not divide over the keys")
    shared, _ = factor(walk, q[0], (len(k[0]), len(q[0]) // len(k[0])))
    walk.join(shared, k[0], node)
    return Operand([q[0], v[1]], [zero[2], zero[2]])


def set_scale(cut: Cut, node: ir.Node, size: np.ndarray) -> None:
    """The default scale follows the size of a head; the one before the cut holds on."""
    if cut.removed(size) and not read.number(node, "scale", 0.0):
        cut.set_float(node, "scale", 1 / math.sqrt(len(size)))


def tie_mask(walk: Walk, node: ir.Node, index: int, heads: np.ndarray) -> None:
    """A mask or bias ``[.., heads, length, length]`` that differs from head to head."""
    if walk.has(node, index):
        mask = walk.operand(node, index)
        if mask.rank > 2 and mask.length(-3) != 1:
            walk.join(mask.axes[-3], heads, node)


def tie_cache(walk: Walk, node: ir.Node, index: int, output: int, kind: Heads) -> None:
    """A cache ``[batch, heads, length, size]`` that comes in longer by the new keys."""
    if walk.has(node, index):
        past = walk.operand(node, index)
        for axis, labels in ((-3, kind[0]), (-1, kind[1])):
            walk.join(past.axes[axis], labels, node)
    if output < len(node.outputs) and node.outputs[output].name:
        sizes = walk.sizes(node.outputs[output])
        axes = walk.kept(node, sizes, "a cache")
        axes[-3], axes[-1] = kind
        walk.put(node, axes, output=output)


# ------------------------------------------------------------------- ai.onnx


def _attention(walk: Walk, node: ir.Node) -> None:
    """``Q, K, V, mask, past key, past value``; 4-D, or 3-D with numbers of heads."""
    operands = [walk.operand(node, index) for index in range(3)]
    names = ("q_num_heads", "kv_num_heads", "kv_num_heads")
    counts = [read.integer(node, name, 0) for name in names]
    flat = operands[0].rank == 3

    def part(operand: Operand, count: int) -> Heads:
        if flat:
            return heads_of(walk, operand.axes[2], count)
        heads, size = operand.axes[1], operand.axes[3]
        if heads is None or size is None:
            raise Barrier("heads that vary")
        return heads, size

    q, k, v = (part(operand, count) for operand, count in zip(operands, counts, strict=True))
    zero = [operand.zero[-1] for operand in operands]
    if not flat:
        zero[2] = zero[2] and operands[2].zero[1]
    out = attend(walk, node, q, k, v, zero)
    tie_mask(walk, node, 3, q[0])
    tie_cache(walk, node, 4, 1, k)
    tie_cache(walk, node, 5, 2, v)
    if len(node.outputs) > 3 and node.outputs[3].name:
        axes = walk.kept(node, walk.sizes(node.outputs[3]), "scores")
        walk.put(node, [axes[0], q[0], *axes[2:]], output=3)
    heads, size = (np.asarray(labels) for labels in out.axes)
    x = operands[0]
    if flat:
        walk.put(node, [x.axes[0], x.axes[1], merge(walk, [heads, size])], [False, False, zero[2]])
    else:
        walk.put(node, [x.axes[0], heads, x.axes[2], size], [False, zero[2], False, zero[2]])

    def rewrite(cut: Cut) -> None:
        for name, part in (("q_num_heads", q), ("kv_num_heads", k)):
            if flat and cut.removed(part[0]):
                cut.set_integer(node, name, len(part[0]) - cut.removed(part[0]))
        set_scale(cut, node, q[1])

    walk.on_cut(node, rewrite)


# -------------------------------------------------------------- com.microsoft


def _multi_head(walk: Walk, node: ir.Node) -> None:
    """``Q, K, V, bias, padding mask, attention bias, past key, past value``."""
    if any(walk.has(node, index) for index in (8, 9)):
        raise Barrier("a cache that it writes to")
    operands = [walk.operand(node, index) for index in range(3)]
    if any(operand.rank != 3 for operand in operands):
        raise Barrier("queries, keys and values in one operand")
    count = read.integer(node, "num_heads", 0)
    q, k, v = (heads_of(walk, operand.axes[2], count) for operand in operands)
    zero = [operand.zero[2] for operand in operands]
    walk.join(q[0], k[0], node)
    if walk.has(node, 3):
        widths = [operand.axes[2] for operand in operands]
        bias = np.concatenate([labels for labels in widths if labels is not None])
        walk.join(walk.operand(node, 3).axes[0], bias, node)
        zero = [each and walk.operand(node, 3).zero[0] for each in zero]
    put_attended(walk, node, (q, k, v), operands[0], zero)
    tie_mask(walk, node, 5, q[0])
    tie_cache(walk, node, 6, 1, k)
    tie_cache(walk, node, 7, 2, v)


def _projected(walk: Walk, node: ir.Node) -> None:
    """``input, weights [C, Q + K + V], bias, mask, past [2, ..], attention bias``."""
    x, w = walk.operand(node, 0), walk.operand(node, 1)
    if read.integer(node, "do_rotary", 0) or walk.has(node, 6) or w.axes[1] is None:
        raise Barrier("rotary positions or a cache that it writes to")
    contract(walk, node, x, 2, w, 0)
    columns, count = w.axes[1], read.integer(node, "num_heads", 0)
    sizes = read.integers(node, "qkv_hidden_sizes") or [len(columns) // 3] * 3
    q, k, v = (
        heads_of(walk, part, count) for part in np.split(columns, np.cumsum(list(sizes))[:-1])
    )
    walk.join(q[0], k[0], node)
    zero = w.zero[1]
    if walk.has(node, 2):
        bias = walk.operand(node, 2)
        walk.join(columns, bias.axes[0], node)
        zero = zero and bias.zero[0]
    if walk.has(node, 4) or len(node.outputs) > 1:  # keys and values are in one cache
        walk.join(k[1], v[1], node)
    put_attended(walk, node, (q, k, v), x, [zero] * 3)
    tie_mask(walk, node, 5, q[0])
    tie_cache(walk, node, 4, 1, k)

    def rewrite(cut: Cut) -> None:
        parts = np.split(columns, np.cumsum(list(sizes))[:-1])
        lengths = [len(part) - cut.removed(part) for part in parts]
        if lengths != list(sizes):
            cut.set_integers(node, "qkv_hidden_sizes", lengths)

    walk.on_cut(node, rewrite)


def put_attended(
    walk: Walk, node: ir.Node, parts: tuple[Heads, Heads, Heads], x: Operand, zero: Sequence[bool]
) -> None:
    """Label ``[batch, length, heads * size]``, and have the node told of what is left."""
    q, k, v = parts
    out = attend(walk, node, q, k, v, zero)
    axis = merge(walk, [q[0], v[1]])
    walk.put(node, [x.axes[0], x.axes[1], axis], [False, False, out.zero[0]])

    def rewrite(cut: Cut) -> None:
        if cut.removed(q[0]):
            cut.set_integer(node, "num_heads", len(q[0]) - cut.removed(q[0]))
        set_scale(cut, node, q[1])

    walk.on_cut(node, rewrite)


def _embed(walk: Walk, node: ir.Node) -> None:
    """``ids, segments, words, positions, segment table, gamma, beta, mask, position ids``.

    The tables lose channels, so the sum is written out again, in front of a LayerNormalization.
    """
    tables = [walk.operand(node, i) for i in (2, 3, 4) if walk.has(node, i)]
    if walk.has(node, 7) or walk.model.opset < 17:
        raise Barrier("a mask that it counts, or no LayerNormalization to put in its place")
    tied = walk.broadcast([Operand(t.axes[1:], t.zero[1:]) for t in tables], node)
    for table in tables:
        walk.keep(node, [table.axes[0]], "looked up by indices that vary")
    labels = may_lose(walk, node, tied, (5, 6), outputs=(1,))
    if labels is None:
        raise Barrier("a width that varies")
    for index in (5, 6):
        walk.join(labels, walk.operand(node, index).axes[0], node)
    walk.streams.append(labels)
    lead = walk.kept(node, walk.sizes(node.outputs[0])[:2], "an axis of the ids")
    walk.put(node, [*lead, labels], [False, False, True])
    walk.put(node, [*lead, labels], [False, False, all(t.zero[1] for t in tables)], output=2)

    def rewrite(cut: Cut) -> None:
        if cut.removed(labels):
            with_zeros(cut, _written_out(cut, node), [3], (1, 2), labels)

    walk.on_cut(node, rewrite)


def _written_out(cut: Cut, node: ir.Node) -> ir.Node:
    """The lookups, their sum, and the norm of an EmbedLayerNormalization."""
    given = [*node.inputs, *[None] * (9 - len(node.inputs))]
    ids, segments, words, table, more, gamma, beta, _, places = given
    name = node.outputs[0].name or ""

    def make(op: str, *inputs: ir.Value | None, **attributes: object) -> ir.Value:
        return cut.add_node(op, inputs, f"{name}.{op.lower()}", node, **attributes)

    if places is None:
        one, two = (cut.constant(np.array([n]), f"{name}.part", node) for n in (1, 2))
        zero = cut.constant(np.array([0]), f"{name}.part", node)
        length = make("Slice", make("Shape", ids), one, two)
        position = make("Slice", table, zero, length, zero)
    else:
        position = make("Gather", table, places)
    total = make("Add", make("Gather", words, ids), position)
    if segments is not None:
        total = make("Add", total, make("Gather", more, segments))
    epsilon = read.number(node, "epsilon", 1e-12)
    norm = make("LayerNormalization", total, gamma, beta, epsilon=epsilon)
    made = [norm, None, total]
    cut.replace_node(node, {i: v for i, v in enumerate(made) if v is not None})
    producer = norm.producer()
    assert producer is not None
    return producer


RULES: dict[tuple[str, str], Rule] = {
    ("", "Attention"): _attention,
    ("com.microsoft", "Attention"): _projected,
    ("com.microsoft", "EmbedLayerNormalization"): _embed,
    ("com.microsoft", "MultiHeadAttention"): _multi_head,
}
