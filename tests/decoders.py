"""Small decoders in the spellings of those that export them: a state, and feeds that hang together.

Each is random, but answers with confidence: logits are scaled so that probabilities differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from hard_models import I64, F, tensor, weight
from onnx import TensorProto, helper

HEADS, SHARED, SIZE, WIDTH, WORDS, LAYERS = 4, 2, 16, 64, 96, 2
_LONGEST = 64

Dims = Sequence[int | str]


class _Builder:
    """Collects nodes and weights."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def op(self, kind: str, *inputs: str, out: str | list[str] = "", **attributes: object) -> str:
        outputs = out if isinstance(out, list) else [out or f"v{len(self.nodes)}"]
        domain = attributes.pop("domain", "")
        node = helper.make_node(
            kind, inputs, outputs, f"n{len(self.nodes)}", domain=domain, **attributes
        )
        self.nodes.append(node)
        return outputs[0]

    def own(self, kind: str, *inputs: str, out: str | list[str] = "", **attributes: object) -> str:
        return self.op(kind, *inputs, out=out, domain="com.microsoft", **attributes)

    def put(self, name: str, array: object, dtype: object = np.float32) -> str:
        self.weights.append(tensor(name, np.asarray(array, dtype)))
        return name

    def matrix(self, name: str, rows: int, columns: int, seed: int, gain: float = 1.0) -> str:
        return self.put(name, gain * weight(seed, columns, rows).T)

    def graph(self, inputs: Sequence[tuple[str, int, Dims]],
              outputs: Sequence[tuple[str, int, Dims]]) -> onnx.GraphProto:  # fmt: skip
        sides = ([helper.make_tensor_value_info(*each) for each in side]
                 for side in (inputs, outputs))  # fmt: skip
        return helper.make_graph(self.nodes, "g", *sides, self.weights)


def _model(graph: onnx.GraphProto, opset: int = 17, ir_version: int = 9) -> onnx.ModelProto:
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version)


def _caches(
    names: str, length: str, layers: int, size: int | str = SIZE
) -> list[tuple[str, int, Dims]]:
    return [
        (f"{names}.{layer}.{kind}", F, ("batch_size", SHARED, length, size))
        for layer in range(layers)
        for kind in ("key", "value")
    ]


def genai(*, layers: int = LAYERS, tied: bool = False, packed: bool = False) -> onnx.ModelProto:
    """A decoder as onnxruntime-genai's builder writes it: attention and norms in one operator.

    Args:
        layers: How many.
        tied: Whether the table of the tokens is the head, too.
        packed: As its version 0.18 writes it: queries, keys and values are one product, the head is
            looked up through a Transpose, and the file does not say how large a head is.
    """
    b = _Builder()
    angles = np.outer(np.arange(_LONGEST), 1e4 ** -(np.arange(SIZE // 2) / (SIZE // 2)))
    cos, sin = b.put("cos_cache", np.cos(angles)), b.put("sin_cache", np.sin(angles))
    if not packed:
        table = b.put("embed_tokens", 2 * weight(1, WORDS, WIDTH) * np.sqrt(WIDTH))
    summed = b.op("ReduceSum", "attention_mask", b.put("axis", [1], np.int64), keepdims=0)
    lengths = b.op("Cast", b.op("Sub", summed, b.put("one", 1, np.int64)), to=TensorProto.INT32)
    whole = b.op("Gather", b.op("Shape", "attention_mask"), b.put("second", 1, np.int64))
    total = b.op("Cast", whole, to=TensorProto.INT32)
    if packed:
        table = b.op("Transpose", b.matrix("head", WIDTH, WORDS, 99, 3.0), perm=[1, 0])
    hidden = b.op("Gather", table, "input_ids")
    gain = b.put("gain", np.ones(WIDTH))
    read = b.op("SimplifiedLayerNormalization", hidden, gain, axis=-1, epsilon=1e-6)
    for i in range(layers):
        if packed:
            whole_width = (HEADS + 2 * SHARED) * SIZE
            parts = [b.op("MatMul", read, b.matrix(f"qkv.{i}", WIDTH, whole_width, 10 * i)), "", ""]
        else:
            parts = [
                b.op("MatMul", read, b.matrix(f"{part}.{i}", WIDTH, heads * SIZE, 10 * i + seed))
                for seed, (part, heads) in enumerate((("q", HEADS), ("k", SHARED), ("v", SHARED)))
            ]
        kinds = ("key", "value")
        past = [f"past_key_values.{i}.{kind}" for kind in kinds]
        now = [f"present.{i}.{kind}" for kind in kinds]
        attended = b.own(
            "GroupQueryAttention", *parts, *past, lengths, total, cos, sin, out=[f"a{i}", *now],
            num_heads=HEADS, kv_num_heads=SHARED, do_rotary=1,
        )  # fmt: skip
        mixed = b.op("MatMul", attended, b.matrix(f"o.{i}", HEADS * SIZE, WIDTH, 10 * i + 4))
        skip = [f"s{i}", "", "", f"r{i}"]
        b.own("SkipSimplifiedLayerNormalization", hidden, mixed, gain, out=skip, epsilon=1e-6)
        up = b.op("MatMul", f"s{i}", b.matrix(f"up.{i}", WIDTH, 2 * WIDTH, 10 * i + 5))
        gated = b.op("Mul", up, b.op("Sigmoid", up))
        down = b.op("MatMul", gated, b.matrix(f"down.{i}", 2 * WIDTH, WIDTH, 10 * i + 6))
        skip = [f"t{i}", "", "", f"u{i}"]
        b.own("SkipSimplifiedLayerNormalization", f"r{i}", down, gain, out=skip, epsilon=1e-6)
        hidden, read = f"u{i}", f"t{i}"
    head = (
        "head"
        if packed
        else (
            b.op("Transpose", table, perm=[1, 0])
            if tied
            else b.matrix("head", WIDTH, WORDS, 99, 3.0)
        )
    )
    b.op("MatMul", read, head, out="logits")
    tokens = ("input_ids", I64, ("batch_size", "sequence_length"))
    mask = ("attention_mask", I64, ("batch_size", "total_sequence_length"))
    size = "kv_cache_dim" if packed else SIZE
    return _model(
        b.graph(
            [tokens, mask, *_caches("past_key_values", "past_sequence_length", layers, size)],
            [("logits", F, ("batch_size", "sequence_length", WORDS)),
             *_caches("present", "total_sequence_length", layers, size)],
        )
    )  # fmt: skip


def packed() -> onnx.ModelProto:
    """See :func:`genai`."""
    return genai(packed=True)


def dynamo() -> onnx.ModelProto:
    """A decoder as torch's exporter writes it: plain operators, and sums of symbols as lengths."""
    b = _Builder()
    table = b.put("model.embed.weight", 2 * weight(1, WORDS, WIDTH) * np.sqrt(WIDTH))
    places = b.put("model.places.weight", weight(2, _LONGEST, WIDTH) * np.sqrt(WIDTH))
    hidden = b.op("Add", b.op("Gather", table, "tokens"), b.op("Gather", places, "index"))
    # A query at place p sees the keys at places up to p that are no padding.
    keys = b.op("Range", b.put("zero", 0, np.int64),
                b.op("Gather", b.op("Shape", "seen"), b.put("second", 1, np.int64)),
                b.put("one", 1, np.int64))  # fmt: skip
    last = b.put("last", [-1], np.int64)
    causal = b.op("LessOrEqual", keys, b.op("Unsqueeze", "index", last))
    between = b.put("between", [1], np.int64)
    padding = b.op("Unsqueeze", b.op("Cast", "seen", to=TensorProto.BOOL), between)
    allowed = b.op("Unsqueeze", b.op("And", causal, padding), between)
    bias = b.op("Where", allowed, b.put("nothing", 0.0), b.put("lowest", -3.4e38))
    split = b.put("split", [0, 0, SHARED, SIZE], np.int64)
    merge = b.put("merge", [0, 0, SHARED * SIZE], np.int64)
    root = b.put("root", SIZE**-0.5)
    for i in range(LAYERS):
        seeds = {"q": 0, "k": 1, "v": 2}
        q, k, v = (
            b.op("Transpose", b.op("Reshape", b.op(
                "MatMul", hidden, b.matrix(f"model.{i}.{part}", WIDTH, SHARED * SIZE, 10 * i + s)
            ), split), perm=[0, 2, 1, 3])
            for part, s in seeds.items()
        )  # fmt: skip
        k = b.op("Concat", f"kv_{i}_k", k, axis=-2, out=f"cat_{2 * i}")
        v = b.op("Concat", f"kv_{i}_v", v, axis=-2, out=f"cat_{2 * i + 1}")
        scores = b.op("MatMul", b.op("Mul", q, root), b.op("Transpose", k, perm=[0, 1, 3, 2]))
        heads = b.op("MatMul", b.op("Softmax", b.op("Add", scores, bias), axis=-1), v)
        flat = b.op("Reshape", b.op("Transpose", heads, perm=[0, 2, 1, 3]), merge)
        out = b.op("MatMul", flat, b.matrix(f"model.{i}.o", SHARED * SIZE, WIDTH, 10 * i + 4))
        hidden = b.op("Add", hidden, out)
    b.op("MatMul", hidden, b.matrix("lm_head", WIDTH, WORDS, 99), out="linear_7")
    caches = [(f"kv_{i}_{kind}", F, ("s0", SHARED, "s70", SIZE))
              for i in range(LAYERS) for kind in "kv"]  # fmt: skip
    return _model(
        b.graph(
            [("tokens", I64, ("s0", "s69")), ("seen", I64, ("s0", "s69 + s70")),
             ("index", I64, ("s0", "s69")), *caches],
            [("linear_7", F, ("s0", "s69", WORDS)),
             *((f"cat_{n}", F, ("s0", SHARED, "s69 + s70", SIZE)) for n in range(2 * LAYERS))],
        ),
        18, 10,
    )  # fmt: skip


def merged() -> onnx.ModelProto:
    """The decoder of an encoder-decoder with both branches: without a cache, and with one."""
    width = SHARED * SIZE

    def attention(b: _Builder, hidden: str, k: str, v: str, name: str) -> str:
        q = b.op("MatMul", hidden, f"{name}.q")
        q = b.op("Transpose", b.op("Reshape", q, "split"), perm=[0, 2, 1, 3])
        scores = b.op("Mul", b.op("MatMul", q, b.op("Transpose", k, perm=[0, 1, 3, 2])), "root")
        if name == "self":  # no query sees a later key
            keys, new = b.op("Shape", k, start=2, end=3), b.op("Shape", hidden, start=1, end=2)
            ones = b.op("Expand", "one", b.op("Concat", new, keys, axis=0))
            past = b.op("Squeeze", b.op("Sub", keys, new))
            seen = b.op("Trilu", ones, past, upper=0)
            scores = b.op("Add", scores, b.op("Mul", b.op("Sub", "one", seen), "lowest"))
        heads = b.op("MatMul", b.op("Softmax", scores, axis=-1), v)
        flat = b.op("Reshape", b.op("Transpose", heads, perm=[0, 2, 1, 3]), "merge")
        return b.op("Add", hidden, b.op("MatMul", flat, f"{name}.o"))

    def projected(b: _Builder, value: str, name: str, out: str = "") -> str:
        made = b.op("Reshape", b.op("MatMul", value, name), "split")
        return b.op("Transpose", made, perm=[0, 2, 1, 3], out=out)

    def branch(cached: bool) -> onnx.GraphProto:
        b = _Builder()
        prefix = "c" if cached else "n"
        b.op("Identity", "input_ids", out=f"{prefix}_ids")
        hidden = b.op("Gather", "table", f"{prefix}_ids")
        outs = [f"{prefix}_{side}_{kind}" for side in ("decoder", "encoder") for kind in "kv"]
        own = outs[:2]
        if cached:
            for name, out in zip("kv", own, strict=True):
                past = f"past_key_values.0.decoder.{'key' if name == 'k' else 'value'}"
                b.op("Concat", past, projected(b, hidden, f"self.{name}"), axis=2, out=out)
            crossed = ["past_key_values.0.encoder.key", "past_key_values.0.encoder.value"]
            for out in outs[2:]:  # callers keep those of the first run
                b.op("ConstantOfShape", "empty", out=out)
        else:
            for name, out in zip("kv", own, strict=True):
                projected(b, hidden, f"self.{name}", out)
            crossed = outs[2:]
            for name, out in zip("kv", crossed, strict=True):
                projected(b, "encoder_hidden_states", f"cross.{name}", out)
        hidden = attention(b, hidden, *own, "self")
        hidden = attention(b, hidden, *crossed, "cross")
        for place, node in enumerate(b.nodes):  # names are unique in the whole model
            for side in (node.input, node.output):
                side[:] = [f"{prefix}{n}" if n[0] == "v" and n[1:].isdigit() else n for n in side]
            node.name = f"{prefix}_{place}"
        b.op("MatMul", f"{prefix}{hidden}", "head", out=f"{prefix}_logits")
        shape = ("b", SHARED, f"{prefix}_l", SIZE)
        return b.graph([], [(f"{prefix}_logits", F, ("b", "t", WORDS)),
                            *((name, F, shape) for name in outs)])  # fmt: skip

    b = _Builder()
    b.put("table", 2 * weight(1, WORDS, WIDTH) * np.sqrt(WIDTH))
    b.matrix("head", WIDTH, WORDS, 9)
    b.put("root", SIZE**-0.5)
    b.put("one", 1.0)
    b.put("lowest", -1e9)
    b.put("split", [0, 0, SHARED, SIZE], np.int64)
    b.put("merge", [0, 0, width], np.int64)
    b.put("empty", [0, SHARED, 1, SIZE], np.int64)
    for seed, name in enumerate(("self", "cross")):
        for part in "qkv":
            b.matrix(f"{name}.{part}", WIDTH, width, 20 + 10 * seed + ord(part))
        b.matrix(f"{name}.o", width, WIDTH, 11 + seed)
    sides, kinds = ("decoder", "encoder"), ("key", "value")
    presents = [f"present.0.{side}.{kind}" for side in sides for kind in kinds]
    b.op(
        "If", "use_cache_branch", out=["logits", *presents], then_branch=branch(True),
        else_branch=branch(False),
    )  # fmt: skip
    lengths = {"decoder": "past_decoder_sequence_length", "encoder": "encoder_sequence_length"}
    return _model(
        b.graph(
            [("input_ids", I64, ("batch_size", "decoder_sequence_length")),
             ("encoder_hidden_states", F, ("batch_size", "encoder_sequence_length", WIDTH)),
             *((f"past_key_values.0.{side}.{kind}", F, ("batch_size", SHARED, lengths[side], SIZE))
               for side in sides for kind in kinds),
             ("use_cache_branch", TensorProto.BOOL, (1,))],
            [("logits", F, ("batch_size", "decoder_sequence_length", WORDS)),
             *((name, F, ("batch_size", SHARED, f"{name}_length", SIZE)) for name in presents)],
        )
    )  # fmt: skip


def recurrent(kind: str = "LSTM") -> onnx.ModelProto:
    """A net of one layer whose state goes in and comes out."""
    b = _Builder()
    gates = {"LSTM": 4, "GRU": 3}[kind]
    names = ["h", "c"][: 2 if kind == "LSTM" else 1]
    w = b.put("w", weight(1, 1, gates * WIDTH, 8))
    r = b.put("r", weight(2, 1, gates * WIDTH, WIDTH))
    b.op(kind, "frames", w, r, "", "", *(f"{n}0" for n in names), hidden_size=WIDTH,
         out=["y", *(f"{n}n" for n in names)])  # fmt: skip
    rows = b.op("Squeeze", "y", b.put("axis", [1], np.int64))
    b.op("MatMul", rows, b.matrix("head", WIDTH, 5, 3), out="scores")
    state = (1, "batch", WIDTH)
    return _model(
        b.graph(
            [("frames", F, ("time", "batch", 8)), *((f"{n}0", F, state) for n in names)],
            [("scores", F, ("time", "batch", 5)), *((f"{n}n", F, state) for n in names)],
        )
    )


def tokens(rows: int, length: int, seed: int = 0) -> np.ndarray:
    """Ids of words: an array of rows."""
    return np.random.default_rng(seed).integers(0, WORDS, (rows, length))


def genai_feed(new: int, past: int, seed: int = 0, layers: int = LAYERS) -> dict[str, np.ndarray]:
    """One feed of :func:`genai`, written by hand."""
    rng = np.random.default_rng([seed, new, past])
    caches = {
        f"past_key_values.{i}.{kind}":
            rng.standard_normal((1, SHARED, past, SIZE)).astype(np.float32)
        for i in range(layers) for kind in ("key", "value")
    }  # fmt: skip
    ids, mask = rng.integers(0, WORDS, (1, new)), np.ones((1, past + new), np.int64)
    return {"input_ids": ids, "attention_mask": mask, **caches}
