"""One operator each: a line of ONNX text, and its operands. What is float is differentiated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import parser

Array = np.ndarray[Any, np.dtype[Any]]


def spread(*shape: int, low: float = -1.9, high: float = 1.9, seed: int = 0) -> Array:
    """Numbers evenly apart, in random order: no two are equal, and none is 0 where low = -high."""
    count = int(np.prod(shape))
    numbers = low + (high - low) * (np.arange(count) + 0.5) / count
    order = np.random.default_rng(seed).permutation(count)
    return np.asarray(numbers[order].reshape(shape) if count % 2 == 0 or low != -high
                      else (numbers + 0.01)[order].reshape(shape))  # fmt: skip


def ints(*numbers: int) -> Array:
    return np.asarray(numbers, np.int64)


@dataclass(frozen=True)
class Case:
    """One operator.

    Attributes:
        line: The node; its outputs are y and others that begin with y.
        arrays: Its operands.
        opset: Of the model.
        fixed: Integer operands that are constants rather than inputs.
        single: Whether it computes in float32 in between.
        known: Operands whose sizes the operator must know.
    """

    line: str
    arrays: dict[str, Array]
    opset: int = 21
    fixed: bool = False
    single: bool = False
    known: str = ""

    def __repr__(self) -> str:
        return f"{self.line} {self.opset} {'fixed' if self.fixed else ''}"

    @property
    def kinds(self) -> set[tuple[str, str]]:
        return {(node.domain, node.op_type) for node in self.graph.node}

    @property
    def graph(self) -> onnx.GraphProto:
        return parser.parse_graph(f"g () => () {{ {self.line} }}")

    def feeds(self, dtype: type) -> dict[str, Array]:
        """The operands as a model of this type of floats takes them."""
        return {
            name: array.astype(dtype) if array.dtype == np.float64 else array
            for name, array in self.arrays.items()
        }

    def model(self, dtype: type, *, twice: bool = False) -> onnx.ModelProto:
        """A model of the operator with one output ``y``.

        Args:
            dtype: Of its floats.
            twice: Whether there is a second one beside it, every name with ``open.`` in front,
                that leaves all sizes open.
        """
        graph = self.graph
        for node in list(graph.node) if twice else ():
            other = graph.node.add()
            other.CopyFrom(node)
            other.input[:] = [name and f"open.{name}" for name in node.input]
            other.output[:] = [name and f"open.{name}" for name in node.output]
        for name, array in self.feeds(dtype).items():
            for prefix in ("", "open.") if twice else ("",):
                if array.dtype.kind in "iub" and self.fixed:
                    graph.initializer.append(onnx.numpy_helper.from_array(array, prefix + name))
                    continue
                shape = [
                    f"{prefix}{name}{at}" if prefix and name not in self.known else size
                    for at, size in enumerate(array.shape)
                ]
                kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
                graph.input.append(onnx.helper.make_tensor_value_info(prefix + name, kind, shape))
        graph.output.extend(onnx.ValueInfoProto(name=n) for n in ("y", "open.y")[: 1 + twice])
        opsets = [onnx.helper.make_opsetid("", self.opset),
                  onnx.helper.make_opsetid("com.microsoft", 1)]  # fmt: skip
        return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)


_X = spread(2, 3, 4)
_POSITIVE = spread(2, 6, low=0.2, high=2.0)
_ROW, _OTHER = spread(3, 4), spread(3, 4, seed=1)
_IMAGE = spread(2, 4, 6, 7)
_ABOUT_ONE = spread(2, 6, low=-0.9, high=0.9)


def _unary(line: str, x: Array = _X, **options: Any) -> Case:
    return Case(f"y = {line}", {"x": x}, **options)


def _case(
    line: str, opset: int = 21, *, fixed: bool = False, single: bool = False, known: str = "",
    **arrays: Array,
) -> Case:  # fmt: skip
    known = known or ("w" if "Conv" in line else "")  # kernels
    return Case(line, arrays, opset, fixed, single, known)


_ELEMENTWISE = [
    *(_unary(f"{name}(x)") for name in (
        "Abs", "Asinh", "Atan", "Celu<alpha = 0.7>", "Cos", "Cosh", "Dropout", "Elu<alpha = 0.7>",
        "Erf", "Exp", "Gelu", "HardSwish", "Identity", "LeakyRelu<alpha = 0.3>", "Mish", "Neg",
        "Relu", "Selu", "Sigmoid", "Sin", "Sinh", "Softplus", "Softsign", "Tanh",
        "ThresholdedRelu<alpha = 0.475>", "com.microsoft.Gelu", "com.microsoft.FastGelu",
        "com.microsoft.QuickGelu", "HardSigmoid<alpha = 0.4, beta = 0.43>")),
    _unary('Gelu<approximate = "tanh">(x)'),
    _unary("Shrink<lambd = 0.475, bias = 0.2>(x)"),
    _unary("HardSwish(x)", 2.05 * _X),
    _unary("Tan(x)", 0.5 * _X),
    _unary("Swish<alpha = 1.5>(x)", opset=24),
    *(_unary(f"{name}(x)", _ABOUT_ONE) for name in ("Acos", "Asin", "Atanh")),
    _unary("Acosh(x)", 1 + _POSITIVE),
    *(_unary(f"{name}(x)", _POSITIVE) for name in ("Log", "Reciprocal", "Sqrt")),
    _case("y = Clip(x, low, high)", x=_X, low=np.asarray(-0.95), high=np.asarray(1.108)),
    _case("y = com.microsoft.FastGelu(x, b)", x=_X, b=spread(4)),
    _case("y = com.microsoft.BiasGelu(x, b)", x=_X, b=spread(4)),
]  # fmt: skip
_BROADCAST = [
    _case(f"y = {name}(a, b)", a=a, b=b)
    for name in ("Add", "Sub", "Mul", "Max", "Min", "Mean", "Sum")
    for a, b in ((_ROW, _OTHER), (_X, spread(3, 1, seed=2)), (spread(1, 4), spread(2, 1, 1) + 0.01))
]
_SEVERAL = [
    *_BROADCAST,
    _case("y = Div(a, b)", a=_X, b=spread(3, 1, low=0.5, high=2)),
    _case("y = Div(a, b)", a=spread(3, 1), b=spread(2, 3, 4, low=-2, high=-0.5)),
    _case("y = Max(a, b, c)", a=_ROW, b=_OTHER, c=spread(4, seed=3)),
    _case("y = Pow(a, b)", a=_POSITIVE, b=spread(6)),
    _case("y = Pow(a, b)", a=spread(2, 6), b=ints(2)),
    _case("y = PRelu(a, b)", a=_X, b=spread(3, 1)),
    _case("y = Where(c, a, b)", c=_ROW > 0, a=_OTHER, b=spread(4, seed=3)),
    _case("y = MatMul(a, b)", a=_ROW, b=spread(4, 5)),
    _case("y = MatMul(a, b)", a=_X, b=spread(4, 5)),
    _case("y = MatMul(a, b)", a=spread(2, 1, 3, 4), b=spread(5, 4, 2)),
    _case("y = MatMul(a, b)", a=spread(4), b=spread(2, 4, 3)),
    _case("y = MatMul(a, b)", a=spread(2, 3, 4), b=spread(4)),
    _case("y = MatMul(a, b)", a=spread(4), b=spread(4, seed=1)),
    _case("y = Gemm(a, b)", a=_ROW, b=spread(4, 5)),
    _case("y = Gemm<alpha = 0.5, beta = 2.0, transA = 1, transB = 1>(a, b, c)",
          a=_ROW, b=spread(5, 3), c=spread(5)),
    _case("y = com.microsoft.FusedMatMul<alpha = 0.5, transB = 1>(a, b)", a=_ROW, b=spread(5, 4)),
    _case('y = Einsum<equation = "bij,kj->bki">(a, b)', a=_X, b=spread(5, 4)),
    _case('y = Einsum<equation = "ij,jk->i">(a, b)', a=_ROW, b=spread(4, 2)),
]  # fmt: skip
_WINDOWS = [
    _case("y = Conv(x, w)", x=spread(2, 3, 7), w=spread(4, 3, 3)),
    _case("y = Conv(x, w, b)", x=_IMAGE, w=spread(5, 4, 1, 1), b=spread(5)),
    _case("y = Conv<pads = [1, 0, 2, 1], strides = [2, 3], dilations = [2, 1], group = 2>(x, w, b)",
          x=spread(2, 4, 8, 7), w=spread(6, 2, 2, 3), b=spread(6)),
    _case("y = Conv<pads = [1, 2]>(x, w)", x=spread(1, 2, 4), w=spread(3, 2, 2)),
    _case("y = Conv<strides = [3], group = 2, pads = [2, 0]>(x, w)", x=spread(1, 4, 75),
          w=spread(2, 2, 70)),
    _case("y = Conv<strides = [2, 2]>(x, w)", x=_IMAGE, w=spread(3, 4, 1, 1)),
    _case("y = Conv<group = 4, pads = [1, 1, 1, 1]>(x, w)", x=_IMAGE, w=spread(4, 1, 3, 3)),
    *(_case(f'y = Conv<auto_pad = "{rule}", strides = [2, 2]>(x, w)', x=_IMAGE,
            w=spread(2, 4, 3, 2)) for rule in ("SAME_UPPER", "SAME_LOWER", "VALID")),
    _case("y = Conv<pads = [1, 1, 1, 0, 0, 0]>(x, w)", x=spread(1, 2, 3, 4, 3),
          w=spread(2, 2, 2, 2, 2)),
    _case("y = ConvTranspose(x, w, b)", x=spread(2, 3, 5), w=spread(3, 2, 3), b=spread(2)),
    _case("y = ConvTranspose<strides = [2, 3], pads = [1, 0, 0, 2], output_padding = [1, 2],"
          " dilations = [1, 2], group = 2>(x, w)", x=spread(2, 4, 3, 3), w=spread(4, 3, 2, 2)),
    _case('y = ConvTranspose<auto_pad = "SAME_UPPER", strides = [2, 2]>(x, w)',
          x=spread(1, 2, 3, 3), w=spread(2, 2, 3, 3)),
    _case("y = ConvTranspose<output_shape = [7, 8], strides = [2, 2]>(x, w)",
          x=spread(1, 2, 3, 3), w=spread(2, 2, 3, 3)),
    _case("y = MaxPool<kernel_shape = [3, 2], strides = [2, 2], pads = [1, 0, 1, 0]>(x)",
          x=spread(1, 2, 5, 5)),
    _case("y = MaxPool<kernel_shape = [2], ceil_mode = 1, strides = [3]>(x)", x=spread(1, 2, 7)),
    _case("y = AveragePool<kernel_shape = [3, 2], strides = [2, 1], pads = [1, 0, 1, 1]>(x)",
          x=_IMAGE),
    _case("y = AveragePool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1],"
          " count_include_pad = 1>(x)", x=_IMAGE),
    _case("y = AveragePool<kernel_shape = [2, 2], strides = [3, 3], ceil_mode = 1>(x)",
          x=spread(1, 2, 7, 7)),
    _case('y = AveragePool<kernel_shape = [2, 3], auto_pad = "SAME_UPPER">(x)', x=_IMAGE),
    _unary("GlobalAveragePool(x)", _IMAGE),
    _unary("GlobalMaxPool(x)", spread(2, 2, 3, 3)),
]  # fmt: skip
_NORMS = [
    _unary("Softmax(x)"),
    _unary("Softmax<axis = 1>(x)"),
    _unary("LogSoftmax<axis = 0>(x)"),
    _unary("LpNormalization<axis = 1>(x)"),
    _unary("LpNormalization<p = 1>(x)"),
    _unary("MeanVarianceNormalization(x)", spread(2, 2, 3, 4)),
    _case("y = LayerNormalization(x, s, b)", x=_X, s=spread(4), b=spread(4)),
    _case("y = LayerNormalization<axis = 1, epsilon = 0.1>(x, s)", x=_X, s=spread(3, 4)),
    _case("y = SimplifiedLayerNormalization<epsilon = 0.1>(x, s)", x=_X, s=spread(4)),
    _case("y = RMSNormalization<epsilon = 0.1>(x, s)", 23, x=_X, s=spread(4)),
    _case("y = InstanceNormalization(x, s, b)", x=spread(2, 3, 5), s=spread(3), b=spread(3)),
    _case("y = GroupNormalization<num_groups = 2, epsilon = 0.1>(x, s, b)", single=True,
          x=spread(2, 4, 3), s=spread(4), b=spread(4)),
    _case("y = BatchNormalization<epsilon = 0.1>(x, s, b, m, v)", x=_X, s=spread(3), b=spread(3),
          m=spread(3), v=spread(3, low=0.5, high=2)),
    _case("y = com.microsoft.SkipLayerNormalization<epsilon = 0.1>(x, k, s, b, c)",
          x=_X, k=spread(2, 3, 4, seed=1), s=spread(4), b=spread(4), c=spread(4, seed=1)),
    _case("y, , , y3 = com.microsoft.SkipSimplifiedLayerNormalization<epsilon = 0.1>(x, k, s)"
          " y = Mul(y_, y3)".replace("y, ,", "y_, ,"),
          x=_X, k=spread(2, 3, 4, seed=1), s=spread(4)),
]  # fmt: skip
_REDUCTIONS = [
    *(_case(f"y = {name}<keepdims = {keep}>(x, axes)", fixed=keep == 0, x=_X, axes=ints(1, -1))
      for name in ("ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
                   "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare") for keep in (0, 1)),
    _unary("ReduceSum<keepdims = 0>(x)"),
    _unary("ReduceMean(x)"),
    _unary("ReduceMean<axes = [0, 2], keepdims = 0>(x)", opset=13),
    _unary("ReduceMax<axes = [1]>(x)", opset=12),
    _unary("ReduceSum<noop_with_empty_axes = 1>(x)"),
    _unary("ReduceLogSum(x)", _POSITIVE),
    _case("y = CumSum<exclusive = 1>(x, axis)", x=_X, axis=np.asarray(1, np.int64)),
    _case("y = CumSum<reverse = 1>(x, axis)", x=_X, axis=np.asarray(2, np.int64)),
    _case("y, yi = TopK<axis = 1>(x, k)", x=_X, k=ints(2)),
]  # fmt: skip
_MOVEMENT = [
    _case("y = Cast<to = 1>(x)", x=_X),
    _case("y = CastLike(x, z)", x=_X, z=np.ones(1, np.float32)),
    _case("y = Reshape(x, s)", x=_X, s=ints(4, -1)),
    _unary("Flatten<axis = 2>(x)"),
    _unary("Transpose(x)"),
    _unary("Transpose<perm = [2, 0, 1]>(x)"),
    _case("y = Squeeze(x, a)", x=spread(1, 3, 1, 2), a=ints(0, 2)),
    _case("y = Unsqueeze(x, a)", x=_X, a=ints(0, -1)),
    _case("y = Expand(x, s)", x=spread(3, 1), s=ints(2, 3, 4)),
    _case("y = Tile(x, r)", x=_X, r=ints(2, 1, 3)),
    _case("y = Concat<axis = 1>(a, b, c)", a=_ROW, b=spread(3, 2), c=spread(3, 1)),
    _case("y_, y2 = Split<axis = -1>(x, s) y = Neg(y2)", x=_X, s=ints(1, 3)),
    _case("y, y2, y3 = Split<axis = 1, num_outputs = 3>(x)", x=_X),
    *(_case("y = Slice(x, a, e, d)", fixed=fixed, x=_X, a=ints(-2, 1), e=ints(99, -1),
            d=ints(-1, 1))
      for fixed in (False, True)),
    _case("y = Slice(x, a, e)", fixed=True, x=_X, a=ints(0, 1), e=ints(1, 3)),
    _case("y = Slice(x, a, e, d, s)", fixed=True, x=_X, a=ints(3), e=ints(-99), d=ints(2),
          s=ints(-2)),
    _case("y = Pad(x, p)", x=_ROW, p=ints(1, -1, 0, 2)),
    _case("y = Pad(x, p, , a)", x=_X, p=ints(2, 1), a=ints(1)),
    *(_case(f'y = Pad<mode = "{mode}">(x, p)', x=_ROW, p=ints(1, 2, 0, 1))
      for mode in ("reflect", "edge", "wrap")),
    _case("y = Gather(x, i)", x=_ROW, i=np.asarray([[0, -1], [2, 0]])),
    _case("y = Gather(x, i)", x=_ROW, i=np.asarray([1, 2, 1], np.int32)),
    _case("y = Gather<axis = 1>(x, i)", x=_X, i=np.asarray([[0, -1], [2, 0]])),
    _case("y = Gather<axis = 2>(x, i)", x=_X, i=np.asarray(1)),
    _case("y = GatherElements<axis = 1>(x, i)", x=_ROW, i=np.asarray([[0, -1], [2, 2], [1, 0]])),
    _case("y = GatherND(x, i)", x=_X, i=np.asarray([[0, 1], [1, 2], [0, 1]])),
    _case("y = ScatterElements<axis = 1>(x, i, u)", x=_ROW, i=np.asarray([[0, 3], [2, 1], [1, 0]]),
          u=spread(3, 2)),
    _case('y = ScatterElements<axis = 1, reduction = "add">(x, i, u)', x=_ROW,
          i=np.asarray([[0, 0], [2, 1], [1, 0]]), u=spread(3, 2)),
    _case("y = ScatterND(x, i, u)", x=_ROW, i=np.asarray([[2], [0]]), u=spread(2, 4)),
    _case("y = Compress<axis = 1>(x, c)", x=_X, c=np.asarray([True, False, True])),
    _case("y = ReverseSequence<batch_axis = 1, time_axis = 0>(x, n)", x=spread(4, 3),
          n=ints(1, 2, 4)),
    _case("y = Trilu(x)", x=_X),
    _unary("DepthToSpace<blocksize = 2>(x)", spread(1, 8, 2, 3)),
    _unary('DepthToSpace<blocksize = 2, mode = "CRD">(x)', spread(1, 8, 2, 3)),
    _unary("SpaceToDepth<blocksize = 2>(x)", spread(1, 2, 4, 6)),
    *(_case(f'y = Resize<mode = "{mode}"{more}>(x, , s)', x=spread(1, 2, 3, 4),
            s=np.asarray([1, 1, 2, 1.5], np.float32), fixed=True)
      for mode, more in (("nearest", ""), ("linear", ""), ("cubic", ""),
                         ("linear", ', coordinate_transformation_mode = "align_corners"'))),
    _case('y = Resize<mode = "linear">(x, , , s)', x=spread(1, 2, 3, 4), s=ints(1, 2, 5, 3),
          known="s"),
    _case('y = Upsample<mode = "nearest">(x, s)', 9, x=spread(1, 2, 3, 4),
          s=np.asarray([1, 1, 2, 2], np.float32)),
]  # fmt: skip
_COMPOSED = [
    _case("y = Attention<is_causal = 1>(q, k, v)", 24, q=spread(1, 2, 3, 4),
          k=spread(1, 2, 3, 4, seed=1), v=spread(1, 2, 3, 4, seed=2)),
    _case("y = RotaryEmbedding(x, c, s)", 23, x=spread(1, 2, 3, 4), c=spread(1, 3, 2),
          s=spread(1, 3, 2, seed=1)),
]  # fmt: skip
_CODES = [
    _case("y = DequantizeLinear<axis = 0>(c, s, z)", c=np.arange(12, dtype=np.int8).reshape(3, 4),
          s=spread(3, low=0.1, high=1), z=np.asarray([1, 2, 3], np.int8)),
    _case("y = DequantizeLinear(c, s)", c=np.arange(12, dtype=np.int8), s=np.asarray(0.3)),
    _case("y = DequantizeLinear<axis = 1, block_size = 4>(c, s)", fixed=True,
          c=np.arange(30, dtype=np.int8).reshape(3, 10), s=spread(3, 3, low=0.1, high=1)),
    _case("y = com.microsoft.DequantizeLinear(c, s, z)", c=np.arange(12, dtype=np.int8),
          s=np.asarray(0.3), z=np.asarray(1, np.int8)),
    _case("y = com.microsoft.MatMulNBits<K = 20, N = 3, bits = 8, block_size = 16>(x, c, s, , , b)",
          x=spread(2, 20), c=np.arange(96, dtype=np.uint8).reshape(3, 2, 16),
          s=spread(3, 2, low=0.1, high=1), b=spread(3), fixed=True, known="sb"),
]  # fmt: skip

_RECURRENT = [
    _case("y_, y = LSTM<hidden_size = 2>(x, w, r, b)", x=spread(3, 2, 3), w=spread(1, 8, 3),
          r=spread(1, 8, 2), b=spread(1, 16), known="xwrb", single=True),
    _case('y, y1, y2 = LSTM<hidden_size = 2, direction = "bidirectional">(x, w, r, , , h, c)',
          x=spread(2, 2, 3), w=spread(2, 8, 3), r=spread(2, 8, 2), h=spread(2, 2, 2),
          c=spread(2, 2, 2), known="xwr", single=True),
    *(_case(f'y = GRU<hidden_size = 2, direction = "reverse", linear_before_reset = {before}>'
            "(x, w, r, b)", x=spread(3, 2, 3), w=spread(1, 6, 3), r=spread(1, 6, 2),
            b=spread(1, 12), known="xwrb", single=True) for before in (0, 1)),
    _case("y, y1 = RNN<hidden_size = 2>(x, w, r, b)", x=spread(3, 2, 3), w=spread(1, 2, 3),
          r=spread(1, 2, 2), b=spread(1, 4), known="xwrb"),
]  # fmt: skip

CASES = [
    *_RECURRENT,
    *_ELEMENTWISE,
    *_SEVERAL,
    *_WINDOWS,
    *_NORMS,
    *_REDUCTIONS,
    *_MOVEMENT,
    *_COMPOSED,
    *_CODES,
]
