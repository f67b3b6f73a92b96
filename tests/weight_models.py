"""Tiny models for every operator that has weights, and for every place where a weight can live."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from onnx import numpy_helper, parser

HEADER = '<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1, "local": 1]>'
Array = npt.NDArray[np.floating]
Feed = dict[str, np.ndarray]
#: What an operator makes of its weights as matrices of [outputs, inputs], by numpy alone.
Formula = Callable[[dict[str, Array], Feed], np.ndarray]


#: Cases whose weight is in no sum: its numbers are used one by one.
ONE_BY_ONE = (
    "Add", "Sub", "Mul", "Where", "Expand", "Reshape", "ScatterND", "Concat", "PRelu",
    "gains of several axes", "places of four numbers",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A model and how to run it.

    Attributes:
        name: What it shows.
        model: Its initializers included.
        weights: Names of the weights that passes must find.
        feed: Its inputs.
        formula: Its one output from the weights' matrices, where that is worth checking.
        dims: [outputs, inputs] of the first weight's matrix.
    """

    name: str
    model: onnx.ModelProto
    weights: tuple[str, ...]
    feed: Feed
    formula: Formula | None = None
    dims: tuple[int, int] | None = None

    def __repr__(self) -> str:
        return self.name


def normal(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def parsed(text: str, header: str = HEADER, **arrays: np.ndarray) -> onnx.ModelProto:
    model = parser.parse_model(f"{header} {text}")
    for name, array in arrays.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def _case(
    name: str,
    text: str,
    feed: Feed,
    formula: Formula | None,
    dims: tuple[int, int],
    **arrays: np.ndarray,
) -> Case:
    return Case(name, parsed(text, **arrays), tuple(arrays), feed, formula, dims)


# ------------------------------------------------------------------------- numpy's own answers


def _conv(matrix: Array, x: np.ndarray, kernel: tuple[int, ...], group: int) -> np.ndarray:
    rank = len(kernel)
    windows = sliding_window_view(x, kernel, axis=tuple(range(2, 2 + rank)))
    count = x.shape[0]
    place = windows.shape[2 : 2 + rank]
    windows = np.moveaxis(windows, 1, 1 + rank).reshape(count, -1, group, matrix.shape[1])
    filters = matrix.reshape(group, -1, matrix.shape[1])
    return np.einsum("npgi,goi->ngop", windows, filters).reshape(count, -1, *place)


def _conv_transpose(
    matrix: Array, x: np.ndarray, kernel: tuple[int, ...], group: int
) -> np.ndarray:
    count, channels, *place = x.shape
    filters = matrix.reshape(group, -1, channels // group, *kernel)
    inputs = x.reshape(count, group, channels // group, *place)
    size = [p + k - 1 for p, k in zip(place, kernel, strict=True)]
    y = np.zeros((count, group, filters.shape[1], *size), np.float32)
    for offset in np.ndindex(*kernel):
        tap = filters[(..., *offset)]
        where = tuple(slice(o, o + p) for o, p in zip(offset, place, strict=True))
        y[(slice(None), slice(None), slice(None), *where)] += np.einsum(
            "goc,ngc...->ngo...", tap, inputs
        )
    return y.reshape(count, -1, *size)


def _conv_of(m: dict[str, Array], feed: Feed, *, kernel: tuple[int, ...], group: int) -> np.ndarray:
    return _conv(m["W"], feed["x"], kernel, group)


def _conv_transpose_of(
    m: dict[str, Array], feed: Feed, *, kernel: tuple[int, ...], group: int
) -> np.ndarray:
    return _conv_transpose(m["W"], feed["x"], kernel, group)


def _normalized(m: dict[str, Array], feed: Feed) -> np.ndarray:
    x = feed["x"] - feed["x"].mean((1, 2), keepdims=True)
    return m["W"] * x / x.std((1, 2), keepdims=True)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _lstm(m: dict[str, Array], feed: Feed) -> np.ndarray:
    h = c = np.zeros((2, 10), np.float32)
    for x in feed["x"]:
        i, o, f, g = np.split(x @ m["W"].T + h @ m["R"].T, 4, axis=1)
        c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        h = _sigmoid(o) * np.tanh(c)
    return h[None]


def _gru(m: dict[str, Array], feed: Feed) -> np.ndarray:
    h = np.zeros((2, 10), np.float32)
    for x in feed["x"]:
        xz, xr, xh = np.split(x @ m["W"].T, 3, axis=1)
        rz, rr, rh = np.split(m["R"], 3, axis=0)
        z, r = _sigmoid(xz + h @ rz.T), _sigmoid(xr + h @ rr.T)
        h = (1 - z) * np.tanh(xh + (r * h) @ rh.T) + z * h
    return h[None]


def _rnn(m: dict[str, Array], feed: Feed) -> np.ndarray:
    """Both directions: the rows of the matrices are theirs one after the other."""
    results = []
    for way, w, r in zip((1, -1), np.split(m["W"], 2), np.split(m["R"], 2), strict=True):
        h = np.zeros((2, 10), np.float32)
        for x in feed["x"][::way]:
            h = np.tanh(x @ w.T + h @ r.T)
        results.append(h)
    return np.stack(results)


def waves(w: Array, *shape: int) -> tuple[onnx.ModelProto, list[Feed]]:
    """A product with ``w``, and waves of frequencies in a table: in float16 phases are lost."""
    rng, rows = np.random.default_rng(7), shape[0] if len(shape) > 1 else 1
    proto = parsed(
        f"""g (float[n, {len(w)}] x, float[n, {rows}, 1] t) => (float[n, {shape[-1]}] y) {{
            first = Constant <value = int64[1] {{1}}> ()
            h = MatMul(x, w)  r = Mul(h, gains)  many = Mul(t, table)  each = Sin(many)
            s = ReduceSum <keepdims = 0> (each, first)  y = Add(r, s)
        }}""",
        '<ir_version: 8, opset_import: ["": 17]>',
        w=w, gains=rng.integers(1, 9, shape[-1]).astype(np.float32),
        table=rng.uniform(1, 2, shape).astype(np.float32),
    )  # fmt: skip
    feeds = [
        {"x": rng.standard_normal((16, len(w)), np.float32),
         "t": rng.uniform(0, 1e4, (16, rows, 1)).astype(np.float32)}
        for _ in range(8)
    ]  # fmt: skip
    for feed in feeds:
        feed["x"][:, [0, 32]] = 0  # rows that tests give outliers
    return proto, feeds


# ------------------------------------------------------------------------- every operator


def operators() -> list[Case]:
    cases = []

    def matmul(
        name: str,
        op: str,
        x: tuple[int, ...],
        w: tuple[int, ...],
        formula: Formula,
        dims: tuple[int, int],
    ) -> None:
        sizes = ", ".join(map(str, x))
        text = f"g (float[{sizes}] x) => (float y) {{ y = {op} }}"
        cases.append(_case(name, text, {"x": normal(*x, seed=1)}, formula, dims, W=normal(*w)))

    def right(m: dict[str, Array], f: Feed) -> np.ndarray:
        return f["x"] @ m["W"].T

    def left(m: dict[str, Array], f: Feed) -> np.ndarray:
        return m["W"] @ f["x"]

    matmul("MatMul right", "MatMul(x, W)", (3, 64), (64, 40), right, (40, 64))
    matmul("MatMul left", "MatMul(W, x)", (64, 3), (40, 64), left, (40, 64))
    matmul("MatMul N-D activation", "MatMul(x, W)", (2, 3, 64), (64, 40), right, (40, 64))
    matmul(
        "MatMul N-D weight",
        "MatMul(x, W)",
        (4, 3, 32),
        (4, 32, 20),
        lambda m, f: np.einsum("bmk,bnk->bmn", f["x"], m["W"].reshape(4, 20, 32)),
        (80, 32),
    )
    matmul(
        "MatMul N-D weight left",
        "MatMul(W, x)",
        (4, 32, 3),
        (4, 20, 32),
        lambda m, f: np.einsum("bnk,bkm->bnm", m["W"].reshape(4, 20, 32), f["x"]),
        (80, 32),
    )
    matmul(
        "MatMul vector", "MatMul(x, W)", (3, 512), (512,), lambda m, f: f["x"] @ m["W"][0], (1, 512)
    )
    matmul("Gemm", "Gemm(x, W)", (3, 64), (64, 40), right, (40, 64))
    matmul("Gemm transB", "Gemm<transB = 1>(x, W)", (3, 64), (40, 64), right, (40, 64))
    matmul(
        "Gemm transA transB alpha",
        "Gemm<transA = 1, transB = 1, alpha = 0.5>(x, W)",
        (64, 3),
        (40, 64),
        lambda m, f: 0.5 * f["x"].T @ m["W"].T,
        (40, 64),
    )
    matmul("Gemm left", "Gemm(W, x)", (64, 3), (40, 64), left, (40, 64))
    matmul("Gemm left transA", "Gemm<transA = 1>(W, x)", (64, 3), (64, 40), left, (40, 64))
    for name, x, w, group in (
        ("Conv 1-D", (2, 8, 20), (24, 8, 5), 1),
        ("Conv 2-D", (2, 8, 7, 9), (16, 8, 3, 3), 1),
        ("Conv 3-D", (1, 4, 5, 5, 6), (12, 4, 3, 2, 2), 1),
        ("Conv grouped", (2, 16, 7, 7), (24, 4, 3, 3), 4),
        ("Conv depthwise", (2, 32, 9, 9), (64, 1, 3, 3), 32),
    ):
        matmul(
            name,
            f"Conv<group = {group}>(x, W)",
            x,
            w,
            partial(_conv_of, kernel=w[2:], group=group),
            (w[0], int(np.prod(w[1:]))),
        )
    for name, x, w, group in (
        ("ConvTranspose 1-D", (2, 16, 9), (16, 12, 4), 1),
        ("ConvTranspose 2-D", (2, 8, 5, 6), (8, 16, 3, 3), 1),
        ("ConvTranspose 3-D", (1, 4, 3, 4, 3), (4, 12, 2, 3, 2), 1),
        ("ConvTranspose grouped", (2, 12, 5, 6), (12, 8, 3, 3), 3),
    ):
        matmul(
            name,
            f"ConvTranspose<group = {group}>(x, W)",
            x,
            w,
            partial(_conv_transpose_of, kernel=w[2:], group=group),
            (group * w[1], int(np.prod(w)) // (group * w[1])),
        )
    matmul(
        "Einsum right", 'Einsum<equation = "bi,oi->bo">(x, W)', (3, 64), (40, 64), right, (40, 64)
    )
    matmul(
        "Einsum left", 'Einsum<equation = "io, bi -> bo">(W, x)', (3, 64), (64, 40), right, (40, 64)
    )
    matmul(
        "Einsum heads",
        'Einsum<equation = "bhi,hio->bho">(x, W)',
        (3, 4, 32),
        (4, 32, 20),
        lambda m, f: np.einsum("bhi,hoi->bho", f["x"], m["W"].reshape(4, 20, 32)),
        (80, 32),
    )
    matmul("Add", "Add(x, W)", (2, 20, 32), (20, 32), lambda m, f: f["x"] + m["W"], (20, 32))
    matmul("Sub", "Sub(W, x)", (2, 20, 32), (20, 32), lambda m, f: m["W"] - f["x"], (20, 32))
    matmul("Mul", "Mul(x, W)", (2, 20, 32), (20, 32), lambda m, f: f["x"] * m["W"], (20, 32))
    matmul(
        "FusedMatMul",
        "com.microsoft.FusedMatMul<transB = 1, alpha = 2.0>(x, W)",
        (3, 64),
        (40, 64),
        lambda m, f: 2 * f["x"] @ m["W"].T,
        (40, 64),
    )
    matmul(
        "FusedGemm",
        'com.microsoft.FusedGemm<activation = "Relu", transB = 1>(x, W)',
        (3, 64),
        (40, 64),
        lambda m, f: np.maximum(f["x"] @ m["W"].T, 0),
        (40, 64),
    )
    matmul(
        "FusedConv",
        'com.microsoft.FusedConv<activation = "Relu", group = 2>(x, W)',
        (2, 8, 20),
        (24, 4, 5),
        lambda m, f: np.maximum(_conv(m["W"], f["x"], (5,), 2), 0),
        (24, 20),
    )

    feed = {"x": normal(20, 32, seed=1)}
    ends = "a = Constant<value = int64[1] {0}>() b = Constant<value = int64[1] {1}>() "
    one_by_one: list[tuple[str, str, Formula]] = [
        ("Where", "n = Neg(x) m = Less(n, x) y = Where(m, x, W)",
         lambda m, f: np.where(f["x"] > 0, f["x"], m["W"])),
        ("Expand", "s = Shape(x) e = Expand(W, s) y = Mul(x, e)", lambda m, f: f["x"] * m["W"]),
        ("Reshape", "s = Shape(x) e = Reshape(W, s) y = Sub(x, e)", lambda m, f: f["x"] - m["W"]),
        ("ScatterND", ends + "k = Unsqueeze(a, b) v = Slice(x, a, b) y = ScatterND(W, k, v)",
         lambda m, f: np.concatenate([f["x"][:1], m["W"][1:]])),
    ]  # fmt: skip
    for name, body, formula in one_by_one:
        text = f"g (float[20, 32] x) => (float y) {{ {body} }}"
        cases.append(_case(name, text, feed, formula, (20, 32), W=normal(20, 32)))
    matmul(
        "Concat", "Concat<axis = 1>(W, x)", (1, 3, 64), (1, 40, 64),
        lambda m, f: np.concatenate([m["W"][None], f["x"]], 1), (40, 64),
    )  # fmt: skip
    matmul(
        "PRelu", "PRelu(x, W)", (3, 8, 7, 9), (8, 7, 9),
        lambda m, f: np.where(f["x"] > 0, f["x"], m["W"].reshape(8, 7, 9) * f["x"]), (8, 63),
    )  # fmt: skip
    matmul(
        "gains of several axes", "LayerNormalization<axis = 1, epsilon = 0.0>(x, W)",
        (3, 20, 32), (20, 32), _normalized, (20, 32),
    )  # fmt: skip
    matmul(
        "places of four numbers", "Add(x, W)", (2, 300, 4), (300, 4),
        lambda m, f: f["x"] + m["W"].T, (4, 300),
    )  # fmt: skip
    deformed = "g (float[2, 8, 7, 9] x, float[2, 18, 5, 7] o) => (float y) "
    deformed += "{ y = DeformConv<kernel_shape = [3, 3]>(x, W, o) }"
    feed = {"x": normal(2, 8, 7, 9, seed=1), "o": np.zeros((2, 18, 5, 7), np.float32)}
    cases.append(
        Case(
            "DeformConv",
            parsed(deformed, HEADER.replace("21", "22"), W=normal(16, 8, 3, 3)), ("W",), feed,
            lambda m, f: _conv(m["W"], f["x"], (3, 3), 1), (16, 72),
        )
    )  # fmt: skip
    for axis, shape in ((0, (40, 32)), (1, (32, 40)), (0, (300, 8))):
        out = shape[axis]
        cases.append(
            _case(
                f"Gather axis {axis} {shape}",
                f"g (int64[2, 5] x) => (float y) {{ y = Gather<axis = {axis}>(W, x) }}",
                {"x": np.random.default_rng(1).integers(-out, out, (2, 5))},
                (lambda m, f: m["W"][f["x"]]) if axis == 0 else (lambda m, f: m["W"].T[:, f["x"]]),
                (out, int(np.prod(shape)) // out),
                W=normal(*shape),
            )
        )
    for op, steps, gates, ways in (
        ("LSTM", _lstm, 4, 1),
        ("GRU", _gru, 3, 1),
        ("RNN", _rnn, 1, 2),
    ):
        direction = "forward" if ways == 1 else "bidirectional"
        body = f'all, y = {op}<hidden_size = 10, direction = "{direction}">(x, W, R)'
        cases.append(
            _case(
                op,
                f"g (float[3, 2, 60] x) => (float y) {{ {body} }}",
                {"x": normal(3, 2, 60, seed=1)},
                steps,
                (ways * gates * 10, 60),
                W=normal(ways, gates * 10, 60) / 5,
                R=normal(ways, gates * 10, 10, seed=2) / 5,
            )
        )
    attention = "com.microsoft.Attention<num_heads = 2>(x, W, b)"
    cases.append(
        Case(
            "Attention",
            parsed(
                f"g (float[1, 4, 16] x) => (float y) {{ y = {attention} }}",
                W=normal(16, 48),
                b=normal(48, seed=2),
            ),
            ("W",),
            {"x": normal(1, 4, 16, seed=1)},
            None,
            (48, 16),
        )
    )
    embed = "com.microsoft.EmbedLayerNormalization(ids, kinds, W, P, K, gamma, beta)"
    cases.append(
        Case(
            "EmbedLayerNormalization",
            parsed(
                f"g (int32[1, 6] ids, int32[1, 6] kinds) => (float y) {{ y, mask = {embed} }}",
                W=normal(40, 64),
                P=normal(16, 64, seed=2),
                K=normal(8, 64, seed=3),
                gamma=normal(64, seed=4),
                beta=normal(64, seed=5),
            ),
            ("W", "P", "K"),
            {
                "ids": np.array([[3, 1, 4, 1, 5, 39]], np.int32),
                "kinds": np.array([[0, 0, 7, 0, 1, 1]], np.int32),
            },
            None,
            (40, 64),
        )
    )
    return cases


# ------------------------------------------------------------------------- every home

_BRANCH = (
    "g (float[3, 64] x, bool c) => (float[3, 40] y) { y = If(c) <"
    "then_branch = t () => (float[3, 40] p) <float[64, 40] A = {%s}> { p = MatMul(x, A) }, "
    "else_branch = e () => (float[3, 40] q) <float[64, 40] B = {%s}> { q = MatMul(x, B) }> }"
)


def _values(array: np.ndarray) -> str:
    return ", ".join(f"{value:.6f}" for value in array.reshape(-1))


def homes() -> list[Case]:
    x, w = normal(3, 64, seed=1), normal(64, 40)
    square, feed = normal(40, 40), {"x": normal(3, 40, seed=1)}
    data = _values(w)
    plain = "(float[3, 64] x) => (float[3, 40] y)"
    step = (
        "(float[3, 40] x) => (float[3, 40] y) {{ n = Constant<value = int64 {{3}}>() "
        "k = Constant<value = bool {{1}}>() y = Loop(n, k, x) <body = b "
        "(int64 i, bool go, float[3, 40] h) => (bool on, float[3, 40] o) {weight} {{ "
        "on = Identity(go) "
        "{constant} m = MatMul(h, A) o = Tanh(m) }}> }}"
    )
    scan = (
        "(float[3, 40] x) => (float[40] s, float[3, 40] y) { "
        "z = Constant<value = float[40] {%s}>() "
        "s, y = Scan<num_scan_inputs = 1, body = b (float[40] h, float[40] v) => "
        "(float[40] o, float[40] r) <float[40, 40] A = {%s}> "
        "{ m = MatMul(h, A) o = Add(m, v) r = Identity(o) }>(z, x) }"
    )
    function = (
        '<opset_import: ["": 21], domain: "local"> F (a) => (b) '
        "{ k = Constant<value = float[64, 40] {%s}>() b = MatMul(a, k) }"
    )
    called = '<opset_import: ["": 21], domain: "local"> F (a, k) => (b) { b = MatMul(a, k) }'
    old = '<ir_version: 3, opset_import: ["": 9]>'
    half = w.astype(np.float16)
    brain, double = w.astype(ml_dtypes.bfloat16), w.astype(np.float64)
    cases = [
        Case("initializer", parsed(f"g {plain} {{ y = MatMul(x, W) }}", W=w), ("W",), {"x": x}),
        Case(
            "Constant node",
            parsed(
                f"g {plain} {{ k = Constant<value = float[64, 40] {{{data}}}>() y = MatMul(x, k) }}"
            ),
            ("k",),
            {"x": x},
        ),
        *(
            Case(
                f"If, {word}",
                parsed(_BRANCH % (data, _values(normal(64, 40, seed=9)))),
                ("A", "B"),
                {"x": x, "c": np.array(word == "then")},
            )
            for word in ("then", "else")
        ),
        Case(
            "Loop body",
            parsed(
                "g " + step.format(weight=f"<float[40, 40] A = {{{_values(square)}}}>", constant="")
            ),
            ("A",),
            feed,
        ),
        Case(
            "Constant in a Loop body",
            parsed(
                "g "
                + step.format(
                    weight="",
                    constant=f"A = Constant<value = float[40, 40] {{{_values(square)}}}>()",
                )
            ),
            ("A",),
            feed,
        ),
        Case(
            "used in a Loop body",
            parsed("g " + step.format(weight="", constant=""), A=square),
            ("A",),
            feed,
        ),
        Case(
            "Scan body",
            parsed("g " + scan % (_values(np.zeros(40)), _values(square))),
            ("A",),
            feed,
        ),
        Case(
            "function body",
            parsed(f"g {plain} {{ y = local.F(x) }} " + function % data),
            ("k",),
            {"x": x},
        ),
        Case(
            "function argument",
            parsed(f"g {plain} {{ y = local.F(x, W) }} {called}", W=w),
            ("W",),
            {"x": x},
        ),
        Case(
            "tied",
            parsed(
                "g (float[3, 40] x) => (float[3, 40] y) { h = MatMul(x, W) y = MatMul(h, W) }",
                W=square,
            ),
            ("W",),
            feed,
        ),
        Case(
            "tied, turned",
            parsed(
                "g (int64[3] x) => (float[3, 64] y) "
                "{ e = Gather(W, x) t = Transpose<perm = [1, 0]>(W) y = MatMul(e, t) }",
                W=normal(64, 40),
            ),
            ("W",),
            {"x": np.array([3, 63, 0])},
        ),
        Case(
            "turned, Gemm",
            parsed(f"g {plain} {{ t = Transpose(W) y = Gemm(x, t) }}", W=np.ascontiguousarray(w.T)),
            ("W",),
            {"x": x},
        ),
        Case(
            "shared by Gemm both ways",
            parsed(
                "g (float[3, 40] x) => (float[3, 40] y) "
                "{ h = Gemm(x, W) y = Gemm<transB = 1>(h, W) }",
                W=square,
            ),
            ("W",),
            feed,
        ),
        Case(
            "IR 3",
            parsed(
                "g (float[3, 64] x, float[64, 40] W) => (float[3, 40] y) { y = MatMul(x, W) }",
                old,
                W=w,
            ),
            ("W",),
            {"x": x},
        ),
        Case(
            "float16",
            parsed("g (float16[3, 64] x) => (float16[3, 40] y) { y = MatMul(x, W) }", W=half),
            ("W",),
            {"x": x.astype(np.float16)},
        ),
        Case(
            "double",
            parsed("g (double[3, 64] x) => (double[3, 40] y) { y = MatMul(x, W) }", W=double),
            ("W",),
            {"x": x.astype(np.float64)},
        ),
        Case(
            "float16 behind a Cast",
            parsed(f"g {plain} {{ w = Cast<to = 1>(W) y = MatMul(x, w) }}", W=half),
            ("W",),
            {"x": x},
        ),
        Case(
            "bfloat16 behind a Cast",
            parsed(f"g {plain} {{ w = Cast<to = 1>(W) y = MatMul(x, w) }}", W=brain),
            ("W",),
            {"x": x},
        ),
        Case(
            "LSTM put together",
            parsed(
                "g (float[3, 2, 24] x) => (float y) { a = Constant<value = int64[1] {0}>() "
                "s = Constant<value = int64[1] {0}>() m = Constant<value = int64[1] {20}>() "
                "e = Constant<value = int64[1] {40}>() i = Slice(W, s, m, a) "
                "rest = Slice(W, m, e, a) "
                "joined = Concat<axis = 0>(i, rest) w = Unsqueeze(joined, a) r = Unsqueeze(R, a) "
                "all, y = LSTM<hidden_size = 10>(x, w, r) }",
                W=normal(40, 24) / 5,
                R=normal(40, 10, seed=2) / 5,
            ),
            ("W", "R"),
            {"x": normal(3, 2, 24, seed=1)},
        ),
        Case(
            "Squeeze on the way",
            parsed(
                f"g {plain} {{ a = Constant<value = int64[1] {{0}}>() w = Squeeze(W, a) "
                "y = MatMul(x, w) }",
                W=w[None],
            ),
            ("W",),
            {"x": x},
        ),
        Case(
            "also used elsewhere",
            parsed(
                "g (float[3, 64] x) => (float[3, 40] y) "
                "{ s = ReduceMax(W) p = MatMul(x, W) y = Mul(p, s) }",
                W=w,
            ),
            ("W",),
            {"x": x},
        ),
    ]
    return cases
