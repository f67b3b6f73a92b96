"""How many multiply-accumulates one node takes: a table of rules by operator, over shapes alone.

Counted are products of matrices: convolutions, MatMul and its kin, recurrent layers, attention,
Einsum. Biases, activations, normalisation and other elementwise work count nothing, as in the
figures that papers give. A node with an unknown size has an unknown count, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onnxshrink.graph.analysis.shape_rules import Shape, head_size, static
from onnxshrink.graph.analysis.shapes import Call

Attributes = Mapping[str, Any]
Rule = Callable[[Sequence[Shape], Sequence[Shape], Attributes], int | None]


def _product(shape: Shape, *factors: Shape) -> int | None:
    """The product of all sizes in some shapes; None if one is unknown."""
    sizes = [static(each) for each in (shape, *factors)]
    return None if None in sizes else math.prod(math.prod(each or ()) for each in sizes)


def _at(shapes: Sequence[Shape], index: int) -> Shape:
    """The shape of an operand that may be missing."""
    return shapes[index] if index < len(shapes) else None


def _conv(weight: int) -> Rule:
    """Every output element sums over one filter, [channels in / groups, kernel]."""

    def count(
        inputs: Sequence[Shape], outputs: Sequence[Shape], attributes: Attributes
    ) -> int | None:
        filters = _at(inputs, weight)
        return None if filters is None else _product(outputs[0], filters[1:])

    return count


def _conv_transpose(
    inputs: Sequence[Shape], outputs: Sequence[Shape], attributes: Attributes
) -> int | None:
    """Every input element is spread over one filter, [channels out / groups, kernel]."""
    filters = _at(inputs, 1)
    return None if filters is None else _product(inputs[0], filters[1:])


def _matmul(left: int, right: int) -> Rule:
    """[.., M, K] x [.., K, N]: M * N * K for every batch; both may be broadcast, or vectors."""

    def count(
        inputs: Sequence[Shape], outputs: Sequence[Shape], attributes: Attributes
    ) -> int | None:
        a, b = static(_at(inputs, left)), static(_at(inputs, right))
        if not a or not b:
            return None
        # Vectors become matrices, as numpy.matmul has it.
        a, b = (1, *a) if len(a) == 1 else a, (*b, 1) if len(b) == 1 else b
        columns = b[-2] if attributes.get("transB") else b[-1]
        return math.prod((*_broadcast(a[:-2], b[:-2]), *a[-2:], columns))

    return count


def _broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    longest = max(len(a), len(b))
    a, b = (1,) * (longest - len(a)) + a, (1,) * (longest - len(b)) + b
    return tuple(n if m == 1 else m for m, n in zip(a, b, strict=True))


def _block_quantized(
    inputs: Sequence[Shape], outputs: Sequence[Shape], attributes: Attributes
) -> int | None:
    """[.., K] x [K, N], where packing hides the shape of the weight."""
    columns = outputs[0][-1] if outputs[0] else attributes.get("N")
    return _product(inputs[0], (columns,))


def _recurrent(
    inputs: Sequence[Shape], outputs: Sequence[Shape], attributes: Attributes
) -> int | None:
    """Each step of each sequence uses every weight of W and R once, in all gates and directions."""
    x, w, r = inputs[0], _product(_at(inputs, 1)), _product(_at(inputs, 2))
    steps = _product(x[:2]) if x is not None else None
    return None if steps is None or w is None or r is None else steps * (w + r)


def _einsum(
    inputs: Sequence[Shape], outputs: Sequence[Shape], attributes: Attributes
) -> int | None:
    """The product of the sizes of all letters, for each operand after the first."""
    equation = attributes.get("equation")
    if equation is None:  # no valid model
        return None
    text = (equation.decode() if isinstance(equation, bytes) else equation).replace(" ", "")
    sizes: dict[str, int] = {}
    batches: tuple[int, ...] = ()
    for term, shape in zip(text.partition("->")[0].split(","), inputs, strict=False):
        dims = static(shape)
        if dims is None:
            return None
        before, dots, after = term.partition("...")
        if dots:
            hidden = dims[len(before) : len(dims) - len(after)]
            batches = _broadcast(batches, hidden)
            dims = dims[: len(before)] + dims[len(dims) - len(after) :]
        for letter, size in zip(before + after, dims, strict=False):
            sizes[letter] = max(sizes.get(letter, 1), size)
    return math.prod(sizes.values()) * math.prod(batches) * (len(inputs) - 1)


def _projected_attention(past: int) -> Rule:
    """Attention of ONNX Runtime: the projection to Q, K and V, then the two products."""

    def count(
        inputs: Sequence[Shape], outputs: Sequence[Shape], attributes: Attributes
    ) -> int | None:
        x, weight = static(inputs[0]), static(_at(inputs, 1))
        if x is None or weight is None or len(x) != 3 or len(weight) != 2:
            return None
        batch, length, hidden = x
        sizes = attributes.get("qkv_hidden_sizes") or [weight[1] // 3] * 3
        before = static(_at(inputs, past))  # [2, batch, heads, length, head size]
        total = length + (before[3] if before is not None and len(before) == 5 else 0)
        products = length * total * int(sizes[0] + sizes[2])
        return batch * (length * hidden * weight[1] + products)

    return count


def _attention(query_heads: str, key_heads: str, *, past: int) -> Rule:
    """Q x K^T, then the result x V; each is [batch, length, heads * size] or 4-D, by heads.

    Keys and values of another sequence, computed once, come by heads to queries that do not.
    """

    def count(
        inputs: Sequence[Shape], outputs: Sequence[Shape], attributes: Attributes
    ) -> int | None:
        q, k, v = (static(_at(inputs, index)) for index in range(3))
        if q is None or k is None or v is None:
            return None
        if {len(q), len(k), len(v)} - {3, 4}:
            return None
        flat = [name for rows, name in ((q, query_heads), (v, key_heads)) if len(rows) == 3]
        if not all(attributes.get(name) for name in flat):  # no valid model
            return None
        batch = q[0]
        if len(q) == 4:  # [batch, heads, length, size]
            heads, length, size = q[1:]
        else:
            heads = int(attributes[query_heads])
            length, size = q[1], q[2] // heads
        source = k[-2]
        value_size = v[3] if len(v) == 4 else v[2] // int(attributes[key_heads])
        before = static(_at(inputs, past))  # [batch, heads, length, size]
        source += before[2] if before is not None and len(before) == 4 else 0
        return batch * heads * length * source * (size + value_size)

    return count


def _grouped(
    inputs: Sequence[Shape], outputs: Sequence[Shape], attributes: Attributes
) -> int | None:
    """As attention, with fewer heads of keys and values, which may come beside the queries."""
    rows, size = static(inputs[0]), head_size(inputs, attributes)
    if rows is None or size is None or len(rows) != 3:
        return None
    before = static(_at(inputs, 3))  # [batch, heads, length, size]
    source = rows[1] + (before[2] if before is not None and len(before) == 4 else 0)
    return 2 * rows[0] * int(attributes["num_heads"]) * rows[1] * source * size


def _linear(
    inputs: Sequence[Shape], outputs: Sequence[Shape], attributes: Attributes
) -> int | None:
    """Each row is multiplied with every coefficient once."""
    x = static(inputs[0])
    rows = None if x is None else math.prod(x[:-1])
    return None if rows is None else rows * len(attributes.get("coefficients", ()))


_GEMM = _matmul(0, 1)
RULES: dict[tuple[str, str], Rule] = {
    ("", "Attention"): _attention("q_num_heads", "kv_num_heads", past=4),
    ("", "Conv"): _conv(1),
    ("", "ConvInteger"): _conv(1),
    ("", "ConvTranspose"): _conv_transpose,
    ("", "DeformConv"): _conv(1),
    ("", "Einsum"): _einsum,
    ("", "GRU"): _recurrent,
    ("", "Gemm"): _GEMM,
    ("", "LSTM"): _recurrent,
    ("", "MatMul"): _matmul(0, 1),
    ("", "MatMulInteger"): _matmul(0, 1),
    ("", "QLinearConv"): _conv(3),
    ("", "QLinearMatMul"): _matmul(0, 3),
    ("", "RNN"): _recurrent,
    ("ai.onnx.ml", "LinearClassifier"): _linear,
    ("ai.onnx.ml", "LinearRegressor"): _linear,
    ("com.microsoft", "Attention"): _projected_attention(4),
    ("com.microsoft", "DynamicQuantizeLSTM"): _recurrent,
    ("com.microsoft", "DynamicQuantizeMatMul"): _matmul(0, 1),
    ("com.microsoft", "FusedConv"): _conv(1),
    ("com.microsoft", "FusedGemm"): _GEMM,
    ("com.microsoft", "FusedMatMul"): _matmul(0, 1),
    ("com.microsoft", "GroupQueryAttention"): _grouped,
    ("com.microsoft", "MatMulBnb4"): _block_quantized,
    ("com.microsoft", "MatMulIntegerToFloat"): _matmul(0, 1),
    ("com.microsoft", "MatMulNBits"): _block_quantized,
    ("com.microsoft", "MultiHeadAttention"): _attention("num_heads", "num_heads", past=6),
    ("com.microsoft", "QAttention"): _projected_attention(8),
    ("com.microsoft", "QGemm"): _matmul(0, 3),
}

#: Operators of ONNX Runtime that multiply matrices in ways that no rule above describes.
_UNCOUNTED = {"BeamSearch", "DecoderMaskedMultiHeadAttention", "MoE",
              "PackedAttention", "QMoE", "SparseAttention"}  # fmt: skip


def count(call: Call) -> int | None:
    """Multiply-accumulates of one node: 0 where it multiplies no matrices, None where unknown."""
    rule = RULES.get((call.node.domain, call.node.op_type))
    if rule is None:
        return None if call.node.op_type in _UNCOUNTED else 0
    return rule(call.inputs, call.outputs, call.attributes)
