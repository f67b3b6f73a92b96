"""Random graphs: whatever operators follow each other, the removal agrees with the oracle."""

from __future__ import annotations

from collections.abc import Callable

import channel_oracle as oracle
import numpy as np
import pytest
import shares
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

_HEAD = '<ir_version: 8, opset_import: ["": 17]> g (float[N,4,6,6] x) => (float[N,3] y) {'


class Graph:
    """Text of a graph that grows node by node; images are [N, C, 6, 6], rows [N, S, C]."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.lines: list[str] = []
        self.tensors: dict[str, object] = {}
        self.count = 0

    def node(self, op: str, inputs: list[str], attributes: str = "", outputs: int = 1) -> list[str]:
        made = [f"t{self.count + i}" for i in range(outputs)]
        self.count += outputs
        self.lines.append(f"{', '.join(made)} = {op}{attributes}({', '.join(inputs)})")
        return made

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.tensors)}"
        self.tensors[name] = shape
        return name

    def constant(self, *values: object, kind: type = np.int64) -> str:
        name = f"c{len(self.tensors)}"
        self.tensors[name] = np.array(values, kind)
        return name

    def bodies(self, op: str, x: str, shape: str, layers: Callable[[str], str]) -> str:
        """An If or Loop around layers, which lead from a value of a shape to another like it."""

        def body(signature: str, begin: str) -> str:
            outside, self.lines = self.lines, []
            end = self.node("Identity", [layers(begin)])[0]
            text = signature.replace("END", f"float{shape} {end}") + f" {{{' '.join(self.lines)}}}"
            self.lines = outside
            return text

        if op == "branch":
            most = self.node("ReduceMax", ["x"], "<keepdims=0>")[0]
            condition = self.node("Greater", [most, self.constant(2.7, kind=np.float32)])
            scalar = self.node("Squeeze", condition)[0]
            branches = [body(f"{name}=g () => (END)", x) for name in ("then_branch", "else_branch")]
            return self.node("If", [scalar], f"<{', '.join(branches)}>")[0]
        going, state = (f"t{self.count + i}" for i in range(2))
        self.count += 2
        text = body(
            f"body=b (int64 {going}i, bool {going}, float{shape} {state}) => (bool {going}o, END)",
            state,
        ).replace("{", f"{{{going}o = Identity({going}) ", 1)
        return self.node("Loop", [self.constant(2), "", x], f"<{text}>")[0]

    # ------------------------------------------------------------- images

    def conv(self, x: str, c: int, out: int, group: int = 1) -> tuple[str, int]:
        w, b = self.weight(out, c // group, 3, 3), self.weight(out)
        how = f"<pads=[1,1,1,1], group={group}>"
        return self.node("Conv", [x, w, b] if self.rng.random() < 0.5 else [x, w], how)[0], out

    def image(self, op: str, x: str, c: int, pool: list[tuple[str, int]]) -> tuple[str, int]:
        pick = int(self.rng.integers(len(pool)))
        other, d = pool[pick]
        if op == "conv":
            return self.conv(x, c, int(self.rng.integers(2, 13)))
        if op == "depthwise":
            return self.conv(x, c, c * int(self.rng.integers(1, 3)), c)
        if op == "grouped":
            groups = [g for g in (2, 3, 4) if c % g == 0]
            return self.conv(x, c, 2 * groups[-1], groups[-1]) if groups else (x, c)
        if op == "norm":
            vectors = [self.weight(c) for _ in range(3)]
            variance = f"v{len(self.tensors)}"
            self.tensors[variance] = self.rng.uniform(0.5, 1.5, c).astype(np.float32)
            return self.node("BatchNormalization", [x, *vectors, variance])[0], c
        if op in ("Relu", "Sigmoid", "Tanh", "Neg", "HardSwish", "Softplus"):
            return self.node(op, [x])[0], c
        if op in ("Add", "Mul", "Max", "Sub"):
            if d != c:
                other, _ = self.conv(other, d, c)
            return self.node(op, [x, other])[0], c
        if op == "concat":
            return (
                (self.node("Concat", [x, other, x], "<axis=1>")[0], 2 * c + d) if c < 20 else (x, c)
            )
        if op == "split" and c > 3:
            first = int(self.rng.integers(1, c - 1))
            a, b = self.node("Split", [x, self.constant(first, c - first)], "<axis=1>", 2)
            pool += [(a, first), (b, c - first)]
            return b, c - first
        if op == "slice" and c > 3:
            start, end = sorted(self.rng.choice(c, 2, replace=False).tolist())
            names = [self.constant(v) for v in (start, end + 1, 1)]
            return self.node("Slice", [x, *names])[0], end + 1 - start
        if op == "gather":
            index = self.rng.integers(0, c, int(self.rng.integers(2, 9)))
            return self.node("Gather", [x, self.constant(*index.tolist())], "<axis=1>")[0], len(
                index
            )
        if op == "shuffle" and c % 2 == 0 and c > 2:
            a = self.node("Reshape", [x, self.constant(-1, 2, c // 2, 6, 6)])[0]
            b = self.node("Transpose", [a], "<perm=[0,2,1,3,4]>")[0]
            return self.node("Reshape", [b, self.constant(-1, c, 6, 6)])[0], c
        if op == "excite":
            p = self.node("GlobalAveragePool", [x])[0]
            a = self.node("Conv", [p, self.weight(4, c, 1, 1)])[0]
            b = self.node("Conv", [self.node("Relu", [a])[0], self.weight(c, 4, 1, 1)])[0]
            return self.node("Mul", [x, self.node("Sigmoid", [b])[0]])[0], c
        if op == "group_norm" and c % 2 == 0 and c > 2:
            a = self.node("Reshape", [x, self.constant(0, 2, -1)])[0]
            ones = [self.weight(2), self.weight(2)]
            b = self.node("InstanceNormalization", [a, *ones])[0]
            return self.node("Reshape", [b, self.constant(-1, c, 6, 6)])[0], c
        if op == "scale":
            return self.node("Mul", [x, self.weight(c, 1, 1)])[0], c
        if op == "pad":
            pads = self.constant(0, 1, 0, 0, 0, 2, 0, 0)
            return self.node("Pad", [x, pads])[0], c + 3
        if op in ("branch", "loop"):

            def layers(y: str) -> str:
                d, known = c, list(pool)
                for each in self.rng.choice(_IMAGES, 3):
                    y, d = self.image(str(each), y, d, known)
                return self.conv(y, d, c)[0]

            return self.bodies(op, x, f"[N,{c},6,6]", layers), c
        return x, c

    # --------------------------------------------------------------- rows

    def rows(self, op: str, x: str, c: int) -> tuple[str, int]:
        if op == "linear":
            out = int(self.rng.integers(2, 13))
            h = self.node("MatMul", [x, self.weight(c, out)])[0]
            return self.node("Add", [h, self.weight(out)])[0], out
        if op == "ffn":
            h = self.node("MatMul", [x, self.weight(c, 10)])[0]
            y = self.node("MatMul", [self.node("Relu", [h])[0], self.weight(10, c)])[0]
            return self.node("Add", [x, y])[0], c
        if op == "glu":
            a, b = (self.node("MatMul", [x, self.weight(c, 8)])[0] for _ in range(2))
            h = self.node("Mul", [self.node("Sigmoid", [a])[0], b])[0]
            return self.node("MatMul", [h, self.weight(8, c)])[0], c
        if op == "layer_norm":
            return self.node("LayerNormalization", [x, self.weight(c), self.weight(c)])[0], c
        if op == "rms":
            q = self.node("Mul", [x, x])[0]
            m = self.node("ReduceMean", [q], "<axes=[-1]>")[0]
            r = self.node("Sqrt", [self.node("Add", [m, self.constant(1e-2, kind=np.float32)])[0]])[
                0
            ]
            return self.node("Mul", [self.node("Div", [x, r])[0], self.weight(c)])[0], c
        if op == "attention":
            heads, size = 3, 4
            parts = []
            if self.rng.random() < 0.5:
                fused = self.node("MatMul", [x, self.weight(c, 3 * heads * size)])[0]
                parts = self.node("Split", [fused], "<axis=-1>", 3)
            else:
                parts = [
                    self.node("MatMul", [x, self.weight(c, heads * size)])[0] for _ in range(3)
                ]
            q, k, v = (
                self.node("Reshape", [p, self.constant(0, 0, heads, size)])[0] for p in parts
            )
            q, v = (self.node("Transpose", [p], "<perm=[0,2,1,3]>")[0] for p in (q, v))
            k = self.node("Transpose", [k], "<perm=[0,2,3,1]>")[0]
            a = self.node("Softmax", [self.node("MatMul", [q, k])[0]])[0]
            o = self.node("Transpose", [self.node("MatMul", [a, v])[0]], "<perm=[0,2,1,3]>")[0]
            o = self.node("Reshape", [o, self.constant(0, 0, heads * size)])[0]
            y = self.node("MatMul", [o, self.weight(heads * size, c)])[0]
            return self.node("Add", [x, y])[0], c
        if op == "gru":
            t = self.node("Transpose", [x], "<perm=[1,0,2]>")[0]
            weights = [self.weight(1, 15, c), self.weight(1, 15, 5), self.weight(1, 30)]
            o = self.node("GRU", [t, *weights], "<hidden_size=5>")[0]
            s = self.node("Squeeze", [o, self.constant(1)])[0]
            return self.node("Transpose", [s], "<perm=[1,0,2]>")[0], 5
        if op in ("branch", "loop"):

            def layers(y: str) -> str:
                d = c
                for each in self.rng.choice(_ROWS, 2):
                    y, d = self.rows(str(each), y, d)
                return self.node("MatMul", [y, self.weight(d, c)])[0]

            return self.bodies(op, x, f"[N,36,{c}]", layers), c
        return x, c


_IMAGES = ("conv", "conv", "depthwise", "grouped", "norm", "Relu", "Sigmoid", "Tanh", "Neg",
           "HardSwish", "Softplus", "Add", "Mul", "Max", "Sub", "concat", "split", "slice",
           "gather", "shuffle", "excite", "group_norm", "scale", "pad")  # fmt: skip
_ROWS = ("linear", "linear", "ffn", "glu", "layer_norm", "rms", "attention", "gru")
_BODIES = ("branch", "loop")


@given(
    st.lists(st.sampled_from(_IMAGES + _BODIES), min_size=2, max_size=10),
    st.lists(st.sampled_from(_ROWS + _BODIES), max_size=4), st.booleans(), st.integers(0, 2**20),
    st.sampled_from([0.1, 0.3, 0.5, 0.7]),
)  # fmt: skip
@settings(
    max_examples=shares.FUZZ // 8, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip
@pytest.mark.fuzz
def test_random_graphs_agree_with_the_zeroed_original(worker, images, rows, flatten, seed, ratio):
    graph = Graph(seed)
    x, c = graph.conv("x", 4, 6)
    pool = [("x", 4), (x, c)]
    for op in images:
        x, c = graph.image(op, x, c, pool)
        pool.append((x, c))
    if rows:
        x = graph.node("Reshape", [x, graph.constant(0, c, 36)])[0]
        x = graph.node("Transpose", [x], "<perm=[0,2,1]>")[0]
        for op in rows:
            x, c = graph.rows(op, x, c)
        x = graph.node("ReduceMean", [x], "<axes=[1], keepdims=0>")[0]
    elif flatten:
        x, c = graph.node("Flatten", [x])[0], c * 36
    else:
        x = graph.node("Flatten", [graph.node("GlobalAveragePool", [x])[0]])[0]
    graph.lines.append(f"y = Gemm({x}, {graph.weight(c, 3)})")
    model = oracle.build(_HEAD + " ".join(graph.lines) + "}", seed=seed, **graph.tensors)
    feeds = [
        {"x": np.random.default_rng(seed).standard_normal((n, 4, 6, 6)).astype(np.float32)}
        for n in (2, 3)
    ]
    verdict = oracle.prune(model, feeds[0], worker, ratio, seed, also=feeds[1:])
    assert not verdict.walk.barriers
    assert verdict.error < 1e-4, verdict.where
