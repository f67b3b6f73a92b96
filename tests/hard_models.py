"""Models on which a pass can go wrong. Each is small, runs in ONNX Runtime, and is hard in one way.

To add one, write a function under ``@hard``; every law then holds for it too.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import forests
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, parser

from onnxshrink.graph.file import round_trip

F = TensorProto.FLOAT
I64 = TensorProto.INT64


@dataclass(frozen=True)
class Hard:
    """A model and inputs for it."""

    proto: onnx.ModelProto
    feeds: list[dict[str, np.ndarray]] = field(default_factory=list)
    external: bool = False

    def save(self, folder: Path) -> Path:
        """Write it the way its users have it."""
        path = folder / "model.onnx"
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)  # saving as external data empties the tensors
        onnx.save(
            proto, path, save_as_external_data=self.external, location="model.weights",
            size_threshold=64,
        )  # fmt: skip
        return path


def coarse(hard: Hard) -> Hard:
    """The same model with weights of few values, which can be coded."""
    proto = onnx.ModelProto()
    proto.CopyFrom(hard.proto)
    for stored in round_trip.tensors(proto):
        array = numpy_helper.to_array(stored)
        if array.dtype == np.float32 and array.size >= 256 and np.isfinite(array).all():
            step = array.std() or 1
            stored.CopyFrom(tensor(stored.name, np.rint(array / step) * step))
    return replace(hard, proto=proto)


HARD: dict[str, Callable[[], Hard]] = {}


def hard(build: Callable[[], Hard]) -> Callable[[], Hard]:
    HARD[build.__name__] = build
    return build


def weight(seed: int, *shape: int) -> np.ndarray:
    """Normal weights that keep the size of what they multiply."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


def rows(count: int, width: int, dtype: str = "float32") -> list[dict[str, np.ndarray]]:
    """Two feeds of an input ``x``."""
    rng = np.random.default_rng(99)
    return [{"x": rng.standard_normal((count, width)).astype(dtype)} for _ in range(2)]


def tensor(name: str, array: np.ndarray) -> TensorProto:
    return numpy_helper.from_array(np.asarray(array, order="C"), name)


def text(source: str, **weights: np.ndarray) -> onnx.ModelProto:
    """A model in ONNX text with these initializers."""
    if not source.lstrip().startswith("<"):
        source = '<ir_version: 8, opset_import: ["": 17]> ' + source
    proto = parser.parse_model(source)
    proto.graph.initializer.extend(tensor(name, array) for name, array in weights.items())
    return proto


def infos(*declared: tuple[str, int, list[int | str] | None]) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(*one) for one in declared]


@hard
def tied() -> Hard:
    """One table is looked up, and multiplied with as its own transpose."""
    proto = text(
        """g (int64[n] x) => (float[n, 128] y) {
            h = Gather(table, x)  t = Transpose<perm = [1, 0]>(table)  y = MatMul(h, t)
        }""",
        table=weight(1, 128, 64),
    )
    return Hard(proto, [{"x": np.arange(7) * 9}, {"x": np.array([127, 0])}])


@hard
def tied_turned() -> Hard:
    """Two Gemm read one weight, one of them transposed: its axes have two roles."""
    proto = text(
        """g (float[n, 64] x) => (float[n, 64] y) {
            h = Gemm<transB = 1>(x, w)  y = Gemm<transB = 0>(h, w)
        }""",
        w=weight(2, 64, 64),
    )
    return Hard(proto, rows(3, 64))


@hard
def tied_copies() -> Hard:
    """A weight that three layers share: the first reads it, the others an Identity of it."""
    proto = text(
        """g (float[n, 64] x) => (float[n, 64] y, float[64, 64] out) {
            w2 = Identity(w)  w3 = Identity(w2)  out = Identity(w)
            a = MatMul(x, w)  b = Tanh(a)  c = MatMul(b, w2)  d = Tanh(c)  y = MatMul(d, w3)
        }""",
        w=weight(71, 64, 64),
    )
    return Hard(proto, rows(3, 64))


@hard
def branches() -> Hard:
    """Both branches of an If name their own weight ``w``; both also read an outer one."""
    branch = [
        helper.make_graph(
            [
                helper.make_node("MatMul", ["h", "w"], ["a"]),
                helper.make_node("MatMul", ["a", "o"], ["b"]),
            ],
            name, [], infos(("b", F, None)), [tensor("w", weight(seed, 64, 64))],
        )
        for name, seed in (("then", 3), ("else", 4))
    ]  # fmt: skip
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["x"], ["h"]),
            helper.make_node("If", ["c"], ["y"], then_branch=branch[0], else_branch=branch[1]),
        ],
        "g", infos(("x", F, ["n", 64]), ("c", TensorProto.BOOL, [])), infos(("y", F, ["n", 64])),
        [tensor("o", weight(5, 64, 64))],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    taken = np.array([[True], [False]])
    return Hard(proto, [{**f, "c": c.reshape(())} for f, c in zip(rows(3, 64), taken, strict=True)])


@hard
def untaken() -> Hard:
    """A branch that no input takes, whose layers and their biases no run shows; LSTMs in both."""

    def branch(name: str, seed: int) -> onnx.GraphProto:
        constants = {
            "w": weight(seed, 64, 32), "b": weight(seed + 1, 32), "wi": weight(seed + 2, 1, 64, 32),
            "r": weight(seed + 3, 1, 64, 16), "first": np.array([0]),
        }  # fmt: skip
        nodes = [
            helper.make_node("Gemm", ["x", "w", "b"], [f"{name}.a"]),
            helper.make_node("Unsqueeze", [f"{name}.a", "first"], ["s"]),
            helper.make_node(
                "LSTM", ["s", "wi", "r"], ["all", "h"], hidden_size=16, layout=0
            ),
            helper.make_node("Squeeze", ["h", "first"], ["z"]),
        ]  # fmt: skip
        initializers = [tensor(key, array) for key, array in constants.items()]
        return helper.make_graph(nodes, name, [], infos(("z", F, None)), initializers)

    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], then_branch=branch("then", 61),
                          else_branch=branch("else", 65))],
        "g", infos(("x", F, ["n", 64]), ("c", TensorProto.BOOL, [])),
        infos(("y", F, ["n", 16])),
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Hard(proto, [{**feed, "c": np.array(True)} for feed in rows(3, 64)])


@hard
def loop() -> Hard:
    """A Loop whose body holds one weight as an initializer, one as a Constant node."""
    body = helper.make_graph(
        [
            helper.make_node("Constant", [], ["v"], value=tensor("", weight(7, 64, 64))),
            helper.make_node("MatMul", ["s", "w"], ["a"]),
            helper.make_node("Tanh", ["a"], ["b"]),
            helper.make_node("MatMul", ["b", "v"], ["s_out"]),
            helper.make_node("Identity", ["go"], ["go_out"]),
        ],
        "body", infos(("i", I64, []), ("go", TensorProto.BOOL, []), ("s", F, ["n", 64])),
        infos(("go_out", TensorProto.BOOL, []), ("s_out", F, ["n", 64])),
        [tensor("w", weight(6, 64, 64))],
    )  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node("Loop", ["count", "", "x"], ["y"], body=body)],
        "g", infos(("x", F, ["n", 64])), infos(("y", F, ["n", 64])),
        [tensor("count", np.array(3))],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Hard(proto, rows(3, 64))


@hard
def function() -> Hard:
    """A local function that owns one weight and is given another, called twice."""
    called = helper.make_function(
        "local", "Block", ["a", "given"], ["b"],
        [
            helper.make_node("Constant", [], ["own"], value=tensor("", weight(8, 64, 64))),
            helper.make_node("MatMul", ["a", "own"], ["c"]),
            helper.make_node("MatMul", ["c", "given"], ["b"]),
        ],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    graph = helper.make_graph(
        [
            helper.make_node("Block", ["x", "v"], ["h"], domain="local"),
            helper.make_node("Block", ["h", "u"], ["y"], domain="local"),
        ],
        "g", infos(("x", F, ["n", 64])), infos(("y", F, ["n", 64])),
        [tensor("v", weight(9, 64, 64)), tensor("u", weight(10, 64, 64))],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    proto = helper.make_model(graph, functions=[called], opset_imports=opsets, ir_version=8)
    return Hard(proto, rows(3, 64))


@hard
def external() -> Hard:
    """Weights in a file beside the model."""
    proto = text(
        """g (float[n, 64] x) => (float[n, 32] y) {
            a = MatMul(x, w)  b = Add(a, bias)  c = Relu(b)  y = MatMul(c, v)
        }""",
        w=weight(11, 64, 128), bias=weight(12, 128), v=weight(13, 128, 32),
    )  # fmt: skip
    return Hard(proto, rows(3, 64), external=True)


@hard
def old_ir() -> Hard:
    """IR version 3, in which every initializer must be an input too."""
    proto = text(
        """<ir_version: 3, opset_import: ["": 8]>
        g (float[n, 64] x, float[64, 128] w, float[32, 128] v, float[32] b) => (float[n, 32] y) {
            a = MatMul(x, w)  c = Relu(a)  y = Gemm<transB = 1>(c, v, b)
        }""",
        w=weight(14, 64, 128), v=weight(15, 32, 128), b=weight(16, 32),
    )  # fmt: skip
    return Hard(proto, rows(3, 64))


@hard
def overridable() -> Hard:
    """IR version 8 with an initializer that the caller may override, and one that he may not."""
    proto = text(
        """g (float[n, 64] x, float[64, 64] w) => (float[n, 64] y) {
            a = MatMul(x, w)  y = MatMul(a, v)
        }""",
        w=weight(17, 64, 64), v=weight(18, 64, 64),
    )  # fmt: skip
    return Hard(proto, rows(3, 64))


@hard
def unnamed() -> Hard:
    """Nodes without names, and weights named like what a pass would make."""
    proto = text(
        """g (float[n, 64] x) => (float[n, 64] y) {
            a = MatMul(x, w)  b = MatMul(a, w2)  y = Identity(b)
        }""",
        w=weight(19, 64, 64), w2=weight(20, 64, 64),
    )  # fmt: skip
    for node in proto.graph.node:
        node.ClearField("name")
    proto.graph.node[0].output[0] = proto.graph.node[1].input[0] = "w.q"
    return Hard(proto, rows(3, 64))


@hard
def empty() -> Hard:
    """No nodes: the output is the input."""
    graph = helper.make_graph([], "g", infos(("x", F, ["n", 4])), infos(("x", F, ["n", 4])))
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Hard(proto, rows(3, 4))


@hard
def no_inputs() -> Hard:
    """The answer is a constant, and a weight is an output itself."""
    proto = text(
        "g () => (float[64, 64] y, float[64, 64] w) { y = MatMul(w, v) }",
        w=weight(21, 64, 64), v=weight(22, 64, 64),
    )  # fmt: skip
    return Hard(proto, [{}])


@hard
def quantized() -> Hard:
    """Quantized already: DequantizeLinear, and INT8 -> Cast -> Mul."""
    rng = np.random.default_rng(23)
    codes = rng.integers(-127, 128, (2, 64, 64)).astype(np.int8)
    proto = text(
        """g (float[n, 64] x) => (float[n, 64] y) {
            w = DequantizeLinear<axis = 1>(q, s, z)  a = MatMul(x, w)
            c = Cast<to = 1>(r)  v = Mul(c, t)  y = MatMul(a, v)
        }""",
        q=codes[0], s=np.full(64, 1e-3, np.float32), z=np.zeros(64, np.int8),
        r=codes[1], t=np.full((1, 64), 1e-3, np.float32),
    )  # fmt: skip
    return Hard(proto, rows(3, 64))


@hard
def dynamic() -> Hard:
    """Quantized already, with activations quantized at run time."""
    rng = np.random.default_rng(24)
    proto = text(
        """g (float[n, 64] x) => (float[n, 64] y) {
            q, s, z = DynamicQuantizeLinear(x)  a = MatMulInteger(q, w, z, wz)
            b = Cast<to = 1>(a)  c = Mul(s, ws)  y = Mul(b, c)
        }""",
        w=rng.integers(-127, 128, (64, 64)).astype(np.int8), wz=np.zeros((), np.int8),
        ws=np.full(64, 1e-3, np.float32),
    )  # fmt: skip
    return Hard(proto, rows(3, 64))


@hard
def float16() -> Hard:
    """A model that computes in float16."""
    proto = text(
        """g (float16[n, 64] x) => (float16[n, 32] y) {
            a = MatMul(x, w)  b = Relu(a)  y = MatMul(b, v)
        }""",
        w=weight(25, 64, 128).astype(np.float16), v=weight(26, 128, 32).astype(np.float16),
    )  # fmt: skip
    return Hard(proto, rows(3, 64, "float16"))


@hard
def bfloat16() -> Hard:
    """Weights stored in bfloat16, used in float32."""
    stored = helper.make_tensor(
        "w", TensorProto.BFLOAT16, [64, 128],
        (weight(27, 64, 128).view(np.uint32) >> 16).astype(np.uint16).tobytes(), raw=True,
    )  # fmt: skip
    proto = text(
        "g (float[n, 64] x) => (float[n, 128] y) { v = Cast<to = 1>(w)  y = MatMul(x, v) }"
    )
    proto.graph.initializer.append(stored)
    return Hard(proto, rows(3, 64))


@hard
def zipmap() -> Hard:
    """A classifier of scikit-learn: strings and a sequence of maps come out."""
    rng = np.random.default_rng(28)
    labels = [f"class {i}" for i in range(20)]
    graph = helper.make_graph(
        [
            helper.make_node(
                "LinearClassifier", ["x"], ["label", "scores"], domain="ai.onnx.ml",
                coefficients=rng.standard_normal(20 * 64).tolist(),
                intercepts=rng.standard_normal(20).tolist(),
                classlabels_strings=labels, multi_class=0, post_transform="SOFTMAX",
            ),
            helper.make_node(
                "ZipMap", ["scores"], ["maps"], domain="ai.onnx.ml", classlabels_strings=labels
            ),
        ],
        "g", infos(("x", F, ["n", 64])),
        [
            *infos(("label", TensorProto.STRING, ["n"])),
            helper.make_value_info(
                "maps",
                helper.make_sequence_type_proto(
                    helper.make_map_type_proto(
                        TensorProto.STRING, helper.make_tensor_type_proto(F, [])
                    )
                ),
            ),
        ],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return Hard(helper.make_model(graph, opset_imports=opsets, ir_version=8), rows(3, 64))


@hard
def sequence() -> Hard:
    """The output is a sequence of tensors."""
    proto = text(
        """g (float[n, 64] x) => (seq(float[n, 32]) y) {
            a = MatMul(x, w)  y = SplitToSequence<axis = 1>(a, half)
        }""",
        w=weight(29, 64, 64), half=np.array([32, 32]),
    )  # fmt: skip
    return Hard(proto, rows(3, 64))


@hard
def zero_size() -> Hard:
    """Constants without any element."""
    proto = text(
        """g (float[n, 64] x) => (float[n, 64] y) {
            v = Concat<axis = 0>(w, nothing)  y = MatMul(x, v)
        }""",
        w=weight(30, 64, 64), nothing=np.zeros((0, 64), np.float32),
    )  # fmt: skip
    return Hard(proto, rows(3, 64))


@hard
def scalars() -> Hard:
    """Constants without a shape, as initializers and in every attribute of Constant."""
    proto = text(
        """g (float[n, 64] x) => (float[n, 64] y) {
            one = Constant<value_float = 1.5>()
            two = Constant<value = float {2.5}>()
            three = Constant<value_int = 3>()
            a = Mul(x, s)  b = Add(a, one)  c = Div(b, two)
            d = Cast<to = 1>(three)  e = Add(c, d)  y = MatMul(e, w)
        }""",
        s=np.array(0.5, np.float32), w=weight(31, 64, 64),
    )  # fmt: skip
    return Hard(proto, rows(3, 64))


@hard
def metadata() -> Hard:
    """Everything that people write about a model, a node and a tensor."""
    proto = text(
        "g (float[n, 64] x) => (float[n, 64] y) { a = MatMul(x, w)  y = Add(a, b) }",
        w=weight(32, 64, 64), b=weight(33, 64),
    )  # fmt: skip
    proto.producer_name, proto.producer_version, proto.domain = "maker", "1.2", "org.example"
    proto.doc_string, proto.model_version = "What it does.", 7
    proto.metadata_props.add(key="classes", value='["cat", "dog"]')
    proto.metadata_props.add(key="stride", value="32")
    graph = proto.graph
    graph.doc_string = "The graph."
    graph.metadata_props.add(key="origin", value="training run 7")
    graph.input[0].doc_string = "An input."
    graph.node[1].doc_string, graph.node[1].name = "A node.", "add"
    graph.node[1].metadata_props.add(key="layer", value="bias")
    graph.initializer[1].doc_string = "A tensor."
    graph.value_info.extend(infos(("a", F, ["n", 64])))
    return Hard(proto, rows(3, 64))


@hard
def duplicates() -> Hard:
    """Equal weights under two names, an Identity, and a weight that nothing uses."""
    proto = text(
        """g (float[n, 64] x) => (float[n, 64] y) {
            a = MatMul(x, first)  b = Identity(a)  c = MatMul(b, second)  d = Add(c, c)
            unread = Relu(x)  y = Identity(d)
        }""",
        first=weight(34, 64, 64), second=weight(34, 64, 64), unused=weight(35, 64, 64),
    )  # fmt: skip
    return Hard(proto, rows(3, 64))


@hard
def forest() -> Hard:
    """Trees, all of whose numbers are attributes."""
    voted = forests.trees("class", 5, 7, (0, 1, 2), low=0.0)
    proto = forests.ensemble("Classifier", **voted, classlabels_int64s=[3, 1, 4])
    return Hard(proto, rows(6, forests.FEATURES))


@hard
def not_finite() -> Hard:
    """A weight with infinities, as masks have them, and one with a NaN that is never picked."""
    mask = np.triu(np.full((64, 64), -np.inf, np.float32), 1)
    table = weight(36, 64, 64)
    table[63] = np.nan
    proto = text(
        """g (float[64, 64] x, int64[64] i) => (float[64, 64] y) {
            a = Add(x, mask)  b = Softmax(a)  c = Gather(table, i)  d = MatMul(b, c)
            y = MatMul(d, w)
        }""",
        mask=mask, table=table, w=weight(37, 64, 64),
    )  # fmt: skip
    return Hard(proto, [{**feed, "i": np.arange(64) % 63} for feed in rows(64, 64)])


@hard
def convolutions() -> Hard:
    """Conv, grouped ConvTranspose and depthwise Conv, each with its BatchNormalization."""
    parameters = {}
    for seed, layer, channels in ((40, "p", 32), (60, "q", 16), (70, "r", 16)):
        for at, name in enumerate(("gamma", "beta", "mean", "var")):
            values = weight(seed + at, channels)
            parameters[f"{layer}_{name}"] = np.abs(values) + 0.5 if at in (0, 3) else values
    proto = text(
        """g (float[n, 8, 9, 9] x) => (float[n, 16, 11, 11] y) {
            a = Conv<pads = [1, 1, 1, 1]>(x, w, b)
            c = BatchNormalization(a, p_gamma, p_beta, p_mean, p_var)  d = Relu(c)
            e = ConvTranspose<group = 4>(d, v)
            f = BatchNormalization(e, q_gamma, q_beta, q_mean, q_var)
            h = Conv<group = 16, pads = [1, 1, 1, 1]>(f, u)
            y = BatchNormalization(h, r_gamma, r_beta, r_mean, r_var)
        }""",
        w=weight(50, 32, 8, 3, 3), b=weight(51, 32), v=weight(52, 32, 4, 3, 3),
        u=weight(53, 16, 1, 3, 3), **parameters,
    )  # fmt: skip
    rng = np.random.default_rng(54)
    return Hard(
        proto, [{"x": rng.standard_normal((n, 8, 9, 9)).astype(np.float32)} for n in (1, 2)]
    )


@hard
def recurrent() -> Hard:
    """A bidirectional LSTM with trailing inputs left out."""
    proto = text(
        """g (float[t, n, 16] x) => (float[t, 2, n, 32] y) {
            y, _h, _c = LSTM<hidden_size = 32, direction = "bidirectional">(x, w, r, b)
        }""",
        w=weight(55, 2, 128, 16), r=weight(56, 2, 128, 32), b=weight(57, 2, 256),
    )  # fmt: skip
    rng = np.random.default_rng(58)
    return Hard(proto, [{"x": rng.standard_normal((5, n, 16)).astype(np.float32)} for n in (1, 2)])


@hard
def one_by_one() -> Hard:
    """Tokens that are joined, positions that are repeated, slopes and gains of several axes."""
    proto = text(
        """g (float[n, 16, 48] x) => (float[n, 24, 48] y) {
            one = Constant <value = int64[1] {1}> ()  all = Shape <end = 1> (x)
            many = Concat <axis = 0> (all, one, one)
            places = Expand(positions, many)  s = Add(x, places)
            h = MatMul(s, w)  a = PRelu(h, slopes)
            m = LayerNormalization <axis = 1> (a, gains)
            queries = Expand(tokens, many)  y = Concat <axis = 1> (queries, m)
        }""",
        w=weight(61, 48, 48), positions=weight(62, 1, 16, 48), slopes=weight(63, 16, 48),
        gains=1 + weight(64, 16, 48), tokens=weight(65, 1, 8, 48),
    )  # fmt: skip
    rng = np.random.default_rng(66)
    return Hard(proto, [{"x": rng.standard_normal((4, 16, 48), np.float32)} for _ in range(2)])


@hard
def sparse() -> Hard:
    """A sparse initializer beside a dense one."""
    proto = text(
        "g (float[n, 64] x) => (float[n, 64] y) { a = MatMul(x, w)  y = Add(a, rare) }",
        w=weight(59, 64, 64),
    )
    proto.graph.sparse_initializer.append(
        helper.make_sparse_tensor(
            tensor("rare", np.array([1.0, 2.0], np.float32)), tensor("", np.array([3, 40])), [64]
        )
    )
    return Hard(proto, rows(3, 64))


@hard
def low_rank() -> Hard:
    """A wide weight of rank 4."""
    proto = text(
        "g (float[n, 64] x) => (float[n, 256] y) { y = MatMul(x, w) }",
        w=weight(60, 64, 4) @ weight(61, 4, 256),
    )
    return Hard(proto, rows(3, 64))
