"""Small nets in every spelling that exporters and ONNX Runtime's optimizer write them in.

The spellings of one net give the same answers, and their weights go by the same names. A new
operator that computes what another one does is one more line in the table of its net; the law in
``test_spellings`` then holds every pass to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from weight_models import Array, normal, parsed

_HEADER = '<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]>'
_NEWER = '<ir_version: 10, opset_import: ["": 23]>'
_FEEDS = 4


@dataclass(frozen=True)
class Net:
    """One net.

    Attributes:
        spellings: Models by what they are written with; the first is the plain one.
        feeds: Inputs.
    """

    spellings: Mapping[str, onnx.ModelProto]
    feeds: tuple[dict[str, np.ndarray], ...]

    @property
    def plain(self) -> str:
        """The spelling that the others are held to."""
        return next(iter(self.spellings))


def _model(text: str, header: str = _HEADER, **arrays: Array) -> onnx.ModelProto:
    return parsed(text, header, **arrays)


def _feeds(*shape: int) -> tuple[dict[str, np.ndarray], ...]:
    """Values whose channels hang together, as those of real inputs do."""
    mixing = normal(shape[1], shape[1], seed=70) / np.sqrt(shape[1])
    values = [normal(*shape, seed=80 + number) for number in range(_FEEDS)]
    mixed = (np.moveaxis(np.moveaxis(v, 1, -1) @ mixing, -1, 1) + 0.3 * v for v in values)
    return tuple({"x": each.astype(np.float32)} for each in mixed)


# ------------------------------------------------------------------------------------ products


def _dense() -> Net:
    """Two layers with biases, Relu between."""
    w1, w2 = normal(48, 64, seed=1) / 7, normal(64, 24, seed=2) / 8
    b1, b2 = normal(64, seed=3) / 4, normal(24, seed=4) / 4
    plain = {"w1": w1, "w2": w2, "b1": b1, "b2": b2}
    turned = {**plain, "w1": w1.T.copy(), "w2": w2.T.copy()}
    scaled = {**plain, "w1": 4 * w1, "w2": 4 * w2}

    def net(body: str, arrays: Mapping[str, Array]) -> onnx.ModelProto:
        return _model(f"g (float[n, 48] x) => (float[n, 24] y) {{ {body} }}", **arrays)

    def separate(
        product: str, arrays: Mapping[str, Array], *, turned: bool = False
    ) -> onnx.ModelProto:
        first, second = ("x", "h")
        moved = ("", "")
        if turned:
            first, second = "xt", "ht"
            moved = "xt = Transpose<perm = [1, 0]>(x)", "ht = Transpose<perm = [1, 0]>(h)"
        return net(
            f"""{moved[0]} p1 = {product}({first}, w1)  s1 = Add(p1, b1)  h = Relu(s1)
            {moved[1]} p2 = {product}({second}, w2)  y = Add(p2, b2)""",
            arrays,
        )

    def whole(product: str, options: str, arrays: Mapping[str, Array]) -> onnx.ModelProto:
        return net(
            f"""s1 = {product}<{options}>(x, w1, b1)  h = Relu(s1)
            y = {product}<{options}>(h, w2, b2)""",
            arrays,
        )

    def fused(options: str, arrays: Mapping[str, Array]) -> onnx.ModelProto:
        return net(
            f"""h = com.microsoft.FusedGemm<activation = "Relu", {options}>(x, w1, b1)
            y = Gemm<{options}>(h, w2, b2)""",
            arrays,
        )

    matmul = "com.microsoft.FusedMatMul"
    return Net(
        {
            "MatMul, Add": separate("MatMul", plain),
            "Gemm": whole("Gemm", "transB = 0", plain),
            "Gemm transB": whole("Gemm", "transB = 1", turned),
            "Gemm alpha": whole("Gemm", "alpha = 0.25", scaled),
            "FusedMatMul": separate(matmul, plain),
            "FusedMatMul transB": separate(f"{matmul}<transB = 1>", turned),
            "FusedMatMul transA": separate(f"{matmul}<transA = 1>", plain, turned=True),
            "FusedMatMul alpha": separate(f"{matmul}<alpha = 0.25>", scaled),
            "FusedGemm": fused("transB = 0", plain),
            "FusedGemm transB": fused("transB = 1", turned),
            "Einsum": separate('Einsum<equation = "nc,cd->nd">', plain),
            "Einsum turned": separate('Einsum<equation = "nc,dc->nd">', turned),
        },
        _feeds(64, 48),
    )


def _convolutions() -> Net:
    """Two layers with biases, Relu behind each."""
    w1, w2 = normal(16, 8, 3, 3, seed=5) / 8, normal(16, 16, 3, 3, seed=6) / 12
    plain = {"w1": w1, "w2": w2, "b1": normal(16, seed=7) / 4, "b2": normal(16, seed=8) / 4}
    turned = {
        **plain, **{name: plain[name].transpose(1, 0, 2, 3)[..., ::-1, ::-1].copy()
                    for name in ("w1", "w2")},
    }  # fmt: skip

    def net(body: str, arrays: Mapping[str, Array]) -> onnx.ModelProto:
        head = "g (float[n, 8, 10, 10] x) => (float[n, 16, 1, 1] y)"
        return _model(f"{head} {{ {body} y = GlobalAveragePool(h2) }}", **arrays)

    def separate(operator: str) -> str:
        return f"""s1 = {operator}<pads = [1, 1, 1, 1]>(x, w1, b1)  h1 = Relu(s1)
            s2 = {operator}<pads = [1, 1, 1, 1]>(h1, w2, b2)  h2 = Relu(s2)"""

    fused = 'com.microsoft.FusedConv<activation = "Relu", pads = [1, 1, 1, 1]>'
    return Net(
        {
            "Conv": net(separate("Conv"), plain),
            "FusedConv": net(f"h1 = {fused}(x, w1, b1)  h2 = {fused}(h1, w2, b2)", plain),
            "ConvTranspose": net(separate("ConvTranspose"), turned),
        },
        _feeds(4, 8, 10, 10),
    )


# --------------------------------------------------------------------------------------- norms


def _batch_norms() -> Net:
    """A normalization by constants, in one operator and in two."""
    w1, w2 = normal(16, 8, 3, 3, seed=9) / 8, normal(16, 16, 3, 3, seed=10) / 12
    gamma, beta = 1 + normal(16, seed=11) / 4, normal(16, seed=12) / 4
    mean, var = normal(16, seed=13) / 4, 1 + np.abs(normal(16, seed=14))
    factor = gamma / np.sqrt(var + np.float32(1e-5))
    small = {"gamma": factor.reshape(-1, 1, 1), "beta": (beta - factor * mean).reshape(-1, 1, 1)}

    def net(norm: str, **arrays: Array) -> onnx.ModelProto:
        return _model(
            f"""g (float[n, 8, 10, 10] x) => (float[n, 16, 1, 1] y) {{
                c1 = Conv<pads = [1, 1, 1, 1]>(x, w1)  {norm}  h1 = Relu(s1)
                s2 = Conv<pads = [1, 1, 1, 1]>(h1, w2)  h2 = Relu(s2)
                y = GlobalAveragePool(h2)
            }}""",
            w1=w1, w2=w2, **arrays,
        )  # fmt: skip

    whole = {"gamma": gamma, "beta": beta, "mean": mean, "var": var}
    return Net(
        {
            "BatchNormalization": net(
                "s1 = BatchNormalization(c1, gamma, beta, mean, var)", **whole
            ),
            "Mul, Add": net("t1 = Mul(c1, gamma)  s1 = Add(t1, beta)", **small),
        },
        _feeds(4, 8, 10, 10),
    )


def _token_net(norm: str, header: str = _HEADER, **arrays: Array) -> onnx.ModelProto:
    """A product, its sum with what it read, a norm of that, a product."""
    w1, w2 = normal(32, 32, seed=15) / 6, normal(32, 24, seed=16) / 6
    return _model(
        f"""g (float[n, 32] x) => (float[n, 24] y) {{
            p1 = MatMul(x, w1)  {norm}  y = MatMul(h, w2)
        }}""",
        header, w1=w1, w2=w2, **arrays,
    )  # fmt: skip


def _layer_norms() -> Net:
    given = {"gain": 1 + normal(32, seed=17) / 4, "shift": normal(32, seed=18) / 4}
    skip = "com.microsoft.SkipLayerNormalization"
    return Net(
        {
            "Add, LayerNormalization": _token_net(
                "r = Add(p1, x)  h = LayerNormalization(r, gain, shift)", **given
            ),
            "SkipLayerNormalization": _token_net(
                f"p3 = Unsqueeze(p1, zero)  x3 = Unsqueeze(x, zero)  "
                f"h3 = {skip}<epsilon = 1e-5>(p3, x3, gain, shift)  h = Squeeze(h3, zero)",
                zero=np.zeros(1, np.int64), **given,  # type: ignore[arg-type]
            ),
        },
        _feeds(64, 32),
    )  # fmt: skip


def _rms_norms() -> Net:
    given = {"gain": 1 + normal(32, seed=19) / 4}
    skip = "com.microsoft.SkipSimplifiedLayerNormalization"
    small = """r = Add(p1, x)  q = Mul(r, r)  v = ReduceMean<keepdims = 1>(q, last)
        ve = Add(v, eps)  d = Sqrt(ve)  u = Div(r, d)  h = Mul(u, gain)"""
    options = "<axis = -1, epsilon = 1e-5>"
    return Net(
        {
            "Add, RMSNormalization": _token_net(
                f"r = Add(p1, x)  h = RMSNormalization{options}(r, gain)", _NEWER, **given
            ),
            "Add, SimplifiedLayerNormalization": _token_net(
                f"r = Add(p1, x)  h = SimplifiedLayerNormalization{options}(r, gain)", **given
            ),
            "SkipSimplifiedLayerNormalization": _token_net(
                f"p3 = Unsqueeze(p1, zero)  x3 = Unsqueeze(x, zero)  "
                f"h3 = {skip}<epsilon = 1e-5>(p3, x3, gain)  h = Squeeze(h3, zero)",
                zero=np.zeros(1, np.int64), **given,  # type: ignore[arg-type]
            ),
            "small operators": _token_net(
                small, last=np.array([-1]), eps=np.float32(1e-5), **given
            ),
        },
        _feeds(64, 32),
    )  # fmt: skip


def _image_norms() -> Net:
    """Each channel normalized by itself: a group of one channel is an instance."""
    w1, w2 = normal(16, 8, 3, 3, seed=20) / 8, normal(16, 16, 3, 3, seed=21) / 12
    given = {"gain": 1 + normal(16, seed=22) / 4, "shift": normal(16, seed=23) / 4}

    def net(norm: str) -> onnx.ModelProto:
        return _model(
            f"""g (float[n, 8, 10, 10] x) => (float[n, 16, 1, 1] y) {{
                c1 = Conv<pads = [1, 1, 1, 1]>(x, w1)  s1 = {norm}(c1, gain, shift)  h1 = Relu(s1)
                s2 = Conv<pads = [1, 1, 1, 1]>(h1, w2)  h2 = Relu(s2)
                y = GlobalAveragePool(h2)
            }}""",
            w1=w1, w2=w2, **given,
        )  # fmt: skip

    return Net(
        {
            "InstanceNormalization": net("InstanceNormalization<epsilon = 1e-5>"),
            "GroupNormalization": net("GroupNormalization<num_groups = 16, epsilon = 1e-5>"),
        },
        _feeds(4, 8, 10, 10),
    )


NETS = {
    "dense": _dense,
    "convolutions": _convolutions,
    "batch-norms": _batch_norms,
    "layer-norms": _layer_norms,
    "rms-norms": _rms_norms,
    "image-norms": _image_norms,
}
