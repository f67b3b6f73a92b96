"""reconstruct: what is left of a layer is what numpy's least squares makes of it."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from weight_models import normal, parsed

from onnxshrink.contract import Settings
from onnxshrink.errors import RecipeError
from onnxshrink.graph.file.model import Model
from onnxshrink.kernels.metrics import compare_outputs
from onnxshrink.options import build
from onnxshrink.passes.reconstruct import Reconstruct
from onnxshrink.pipeline import Context, Pass, Result, run
from onnxshrink.recipe import find_pass
from onnxshrink.report import Step
from onnxshrink.runtime.inputs import load_inputs
from onnxshrink.runtime.worker import Worker

ROOT = Path(__file__).parents[2]
RNG = np.random.default_rng(3)
MIX = RNG.standard_normal((24, 24)).astype(np.float32) / 3
FEEDS = [{"x": (RNG.standard_normal((40, 24)).astype(np.float32) @ MIX + 1)} for _ in range(6)]
ROWS = np.concatenate([feed["x"] for feed in FEEDS]).astype(np.float64)
#: Images of neighbours that are alike, so that those that stay can make up for those that go.
IMAGES = [{"x": np.cumsum(normal(2, 4, 9, 9, seed=seed), axis=3) / 2 + 1} for seed in range(4)]
ONE = "g (float[n, 24] x) => (float[n, 16] y) { %s }"


def step(name: str, **options: Any) -> Pass:
    return build(find_pass(name), options, name)


def rebuilt(
    model: onnx.ModelProto, worker: Worker, *before: Pass, feeds: Any = FEEDS, **options: Any
) -> Result:
    steps = [*before, Reconstruct(**options)]
    return run(steps, Model.from_proto(model), Settings(feeds=feeds), worker)


def stored(result: Result) -> dict[str, np.ndarray]:
    graph = result.model.to_proto().graph
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def skips(result: Result) -> dict[str, str]:
    return {skip.what: skip.reason for skip in result.report.steps[-1].skips}


def answers(result: Result, feed: dict[str, np.ndarray]) -> np.ndarray:
    session = ort.InferenceSession(
        result.model.to_proto().SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, feed)[0]  # type: ignore[no-any-return]


def damping(result: Result) -> float:
    change = result.report.steps[-1].changes[0]
    return float(change.note.rpartition(" ")[2])


def ridge(x: np.ndarray, y: np.ndarray, start: np.ndarray, strength: float) -> np.ndarray:
    """Least squares for one output, drawn to where it starts; zeros stay. x is centred."""
    kept = start != 0
    pull = np.sqrt(strength * (x**2).mean(0).mean() * len(x)) * np.eye(len(start))[:, kept]
    system = np.concatenate([x[:, kept], pull])
    found = np.zeros(len(start))
    target = np.concatenate([y, pull @ start[kept]])
    found[kept] = np.linalg.lstsq(system, target, rcond=None)[0]
    return found


PRODUCTS = {
    "MatMul": ("y = MatMul(x, W)", False),
    "MatMul and Add": ("h = MatMul(x, W) y = Add(b, h)", True),
    "Gemm": ("y = Gemm(x, W, b)", True),
    "Gemm with factors": ("y = Gemm<alpha = 0.5, beta = 2.0>(x, W, b)", True),
}


@pytest.mark.parametrize("case", PRODUCTS)
def test_pruned_weights_are_those_of_lstsq(case: str, worker: Worker) -> None:
    body, shift = PRODUCTS[case]
    arrays = {"W": normal(24, 16)} | ({"b": normal(16, seed=1)} if shift else {})
    alpha, beta = (0.5, 2.0) if "alpha" in body else (1.0, 1.0)
    prune = step("prune-magnitude", ratio=0.5, max_error=2.0)
    result = rebuilt(parsed(ONE % body, **arrays), worker, prune)
    after, cut = stored(result), arrays["W"] * (stored(result)["W"] != 0)
    assert np.mean(cut == 0) == 0.5
    y = ROWS @ arrays["W"] * alpha
    x = ROWS - ROWS.mean(0) if shift else ROWS
    wanted = y - y.mean(0) if shift else y
    for column in range(16):
        found = ridge(x, wanted[:, column], cut[:, column] * alpha, damping(result)) / alpha
        np.testing.assert_allclose(after["W"][:, column], found, rtol=1e-3, atol=1e-5)
    if shift:
        moved = (y - ROWS @ after["W"] * alpha).mean(0) / beta + arrays["b"]
        np.testing.assert_allclose(after["b"], moved, rtol=1e-4, atol=1e-4)
    exact = FEEDS[0]["x"] @ after["W"] * alpha + (beta * after["b"] if shift else 0)
    np.testing.assert_allclose(answers(result, FEEDS[0]), exact, rtol=1e-4, atol=1e-4)
    changes = result.report.steps[-1].changes
    assert {change.what for change in changes} == set(arrays)
    for change in changes:
        assert 0 < change.error["error_after"] < change.error["error_before"]
        assert change.before == change.after == arrays[change.what].nbytes


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution(groups: int, worker: Worker) -> None:
    text = "g (float[2, 4, 9, 9] x) => (float[2, 6, 7, 7] y) { y = Conv<group = %d>(x, W, b) }"
    w, b = normal(6, 4 // groups, 3, 3), normal(6, seed=1)
    prune = step("prune-magnitude", ratio=0.4, max_error=2.0, min_size=0)
    result = rebuilt(parsed(text % groups, W=w, b=b), worker, prune, feeds=IMAGES)
    after = stored(result)
    every = np.concatenate([feed["x"] for feed in IMAGES]).astype(np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(every, (3, 3), (2, 3))
    for row in range(6):
        width = 4 // groups
        group = row * groups // 6
        part = windows[:, group * width : (group + 1) * width]
        x = part.transpose(0, 2, 3, 1, 4, 5).reshape(-1, width * 9)
        y = x @ w[row].ravel()
        centred, start = x - x.mean(0), (w[row] * (after["W"][row] != 0)).ravel()
        found = ridge(centred, y - y.mean(), start, damping(result))
        np.testing.assert_allclose(after["W"][row].ravel(), found, rtol=1e-3, atol=1e-5)
        moved = (y - x @ found).mean() + b[row]
        np.testing.assert_allclose(after["b"][row], moved, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("form", ["cast-mul", "dq"])
def test_scales_of_integers(form: str, worker: Worker) -> None:
    model = parsed(ONE % "y = Gemm(x, W, b)", W=normal(24, 16), b=normal(16, seed=1))
    quantize = step("quantize-weights", dtype="int4", form=form, max_error=2.0, vectors="keep")
    plain = run([quantize], Model.from_proto(model), Settings(feeds=FEEDS), worker)
    result = rebuilt(model, worker, quantize)
    codes, before, after = (stored(r) for r in (plain, plain, result))
    (scale,) = [name for name in after if name.endswith(".s")]
    (code,) = [name for name in after if name.endswith(".q")]
    np.testing.assert_array_equal(after[code], codes[code])
    assert not np.array_equal(after[scale], before[scale])
    integers = after[code].astype(np.float64)
    x = ROWS - ROWS.mean(0)
    mean = (x**2).mean(0).mean()
    strength = damping(result)
    for column in range(16):
        q, start = integers[:, column], float(before[scale][column])
        made, y = x @ q, x @ normal(24, 16)[:, column]
        pull = strength * mean * len(x) * (q @ q)
        exact = (made @ y + pull * start) / (made @ made + pull)
        assert float(after[scale][column]) == pytest.approx(exact, rel=1e-3)


def test_one_scale_of_a_whole_weight(worker: Worker) -> None:
    codes = np.rint(normal(24, 16) * 3).clip(-7, 7)
    text = "g (float[n, 24] x) => (float[n, 16] y) { w = DequantizeLinear(q, s) y = MatMul(x, w) }"
    source = parsed(ONE % "y = MatMul(x, W)", W=(codes * 0.3).astype(np.float32))
    quantized = parsed(text, q=codes.astype(np.int8), s=np.array(0.2, np.float32))
    model, row = Model.from_proto(quantized), Step("reconstruct")
    ctx = Context(row, FEEDS, original=Model.from_proto(source), worker=worker)
    Reconstruct(damping=1e-9).apply(model, ctx)
    (change,) = row.changes
    assert change.what == "s"
    after = numpy_helper.to_array(model.to_proto().graph.initializer[1])
    assert after.shape == ()  # as it was: no byte more
    assert float(after) == pytest.approx(0.3, rel=1e-6)


def test_tables_keep_their_zero(worker: Worker) -> None:
    model = parsed(ONE % "y = MatMul(x, W)", W=normal(24, 16))
    prune = step("prune-magnitude", ratio=0.3, max_error=2.0)
    share = step("share-codebook", bits=2, scale="none", max_error=2.0, min_size=0)
    before = run([prune, share], Model.from_proto(model), Settings(feeds=FEEDS), worker)
    result = rebuilt(model, worker, prune, share)
    (change,) = result.report.steps[-1].changes
    assert change.note.startswith("tables of W refitted")
    old, new = (stored(r)[change.what].ravel() for r in (before, result))
    assert (old == 0).any()
    np.testing.assert_array_equal(new == 0, old == 0)
    assert not np.array_equal(new, old)
    assert result.effect[0].relative_error < before.effect[0].relative_error


def test_values_that_a_float_weight_shares_stay_shared(worker: Worker) -> None:
    """So that the sidecar still takes them for a codebook."""
    grid = np.rint(normal(24, 16) * 2).clip(-3, 3) / 2
    split = np.where(np.abs(normal(24, 16)) < 0.5, 0, grid).astype(np.float32)
    source = parsed(ONE % "y = MatMul(x, W)", W=normal(24, 16))
    shared = parsed(ONE % "y = MatMul(x, W)", W=split)
    step_ = Step("reconstruct")
    model = Model.from_proto(shared)
    ctx = Context(step_, FEEDS, original=Model.from_proto(source), worker=worker)
    Reconstruct().apply(model, ctx)
    (change,) = step_.changes
    assert change.note.startswith("tables of W refitted")
    after = numpy_helper.to_array(model.to_proto().graph.initializer[0])
    table = np.unique(split)
    assert 4 < len(table) < 10
    for value in table:
        new = np.unique(after[split == value])
        assert len(new) == 1
        assert (new == 0) == (value == 0)
    assert not np.array_equal(after, split)


def test_both_factors_are_those_of_reduced_rank_regression(worker: Worker) -> None:
    for body in ("y = MatMul(x, W)", "y = Gemm(x, W, b)"):
        arrays = {"W": normal(24, 16)} | ({"b": normal(16, seed=1)} if "b" in body else {})
        split = step("split-lowrank", rank=4, force=True, whiten="false", max_error=2.0, min_size=0)
        model = parsed(ONE % body, **arrays)
        result = rebuilt(model, worker, split, damping=1e-6)
        kinds = {change.note.partition(" ")[0] for change in result.report.steps[-1].changes}
        assert kinds == {"factors", "bias"} if "b" in body else {"factors"}
        x = ROWS - ROWS.mean(0) if "b" in body else ROWS
        y = x @ arrays["W"]
        _, _, main = np.linalg.svd(y, full_matrices=False)
        best = np.linalg.norm(y - y @ main[:4].T @ main[:4])
        after = stored(result)
        (a,), (b,) = ([after[n] for n in after if n.endswith(end)] for end in (".a", ".b"))
        assert np.linalg.norm(y - x @ a @ b) == pytest.approx(best, rel=1e-4)
        plain = run([split], Model.from_proto(model), Settings(feeds=FEEDS), worker)
        assert result.effect[0].relative_error < 0.9 * plain.effect[0].relative_error


def test_both_kernels_of_a_split_convolution(worker: Worker) -> None:
    text = "g (float[2, 8, 9, 9] x) => (float[2, 12, 7, 7] y) { y = Conv(x, W, b) }"
    mix = normal(8, 8, seed=5)
    feeds = [{"x": np.einsum("nchw,cd->ndhw", normal(2, 8, 9, 9, seed=s), mix)} for s in range(4)]
    model = parsed(text, W=normal(12, 8, 3, 3), b=normal(12, seed=1))
    for way, kinds in (("channel", {"factors", "bias"}), ("spatial", {"weights", "bias"})):
        split = step("split-lowrank", rank=4, split=way, whiten="false", max_error=2.0, min_size=0)
        plain = run([split], Model.from_proto(model), Settings(feeds=feeds), worker)
        result = rebuilt(model, worker, split, feeds=feeds)
        found = {change.note.partition(" ")[0] for change in result.report.steps[-1].changes}
        assert found == kinds
        assert result.effect[0].relative_error < plain.effect[0].relative_error


@pytest.mark.parametrize(
    "norm",
    [
        "y = LayerNormalization(h, g, c)",
        "z = LayerNormalization(h, one) m = Mul(g, z) y = Add(m, c)",
    ],
)
def test_gains_and_shifts_of_a_norm(norm: str, worker: Worker) -> None:
    """Of weights that cannot be refitted: they are integers whose scale is shared."""
    body = f"h = MatMul(x, W) {norm}"
    arrays = {"W": normal(24, 16), "g": normal(16, seed=1), "c": normal(16, seed=2)}
    if "one" in norm:
        arrays["one"] = np.ones(16, np.float32)
    prune = step("prune-magnitude", ratio=0.6, only=["MatMul"], max_error=2.0)
    model = parsed(ONE % body, **arrays)
    plain = run([prune], Model.from_proto(model), Settings(feeds=FEEDS), worker)
    result = rebuilt(model, worker, prune, refit=["gains", "biases"], damping=1e-9, only=["g"])
    assert {change.what for change in result.report.steps[-1].changes} == {"g", "c"}
    before = np.concatenate([answers(plain, feed) for feed in FEEDS]).astype(np.float64)
    h = ROWS @ arrays["W"]
    unit = (h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + 1e-5)
    wanted = unit * arrays["g"] + arrays["c"]
    after = stored(result)
    for channel in range(16):
        slope, shift = np.polyfit(before[:, channel], wanted[:, channel], 1)
        assert after["g"][channel] == pytest.approx(slope * arrays["g"][channel], rel=1e-3)
        moved = slope * arrays["c"][channel] + shift
        assert after["c"][channel] == pytest.approx(moved, rel=1e-3, abs=1e-4)


def test_layers_behind_see_what_became_of_those_before(worker: Worker) -> None:
    text = ONE % "h = Gemm(x, A, a) t = Tanh(h) y = Gemm(t, B, b)"
    arrays = {"A": normal(24, 24) / 3, "a": normal(24, seed=1), "B": normal(24, 16, seed=2),
              "b": normal(16, seed=3)}  # fmt: skip
    prune = step("prune-magnitude", ratio=0.5, max_error=2.0)
    result = rebuilt(parsed(text, **arrays), worker, prune)
    after = stored(result)
    t = np.tanh(ROWS @ after["A"] + after["a"])
    y = np.tanh(ROWS @ arrays["A"] + arrays["a"]) @ arrays["B"] + arrays["b"]
    strength = next(
        float(c.note.rpartition(" ")[2]) for c in result.report.steps[-1].changes if c.what == "B"
    )
    for column in range(16):
        start = arrays["B"][:, column] * (after["B"][:, column] != 0)
        found = ridge(t - t.mean(0), y[:, column] - y[:, column].mean(), start, strength)
        np.testing.assert_allclose(after["B"][:, column], found, rtol=2e-3, atol=1e-4)
    once = rebuilt(parsed(text, **arrays), worker, prune, rounds=1)
    assert result.effect[0].relative_error <= once.effect[0].relative_error


def test_a_bias_alone(worker: Worker) -> None:
    model = parsed(ONE % "y = Gemm(x, W, b)", W=normal(24, 16), b=normal(16, seed=1))
    prune = step("prune-magnitude", ratio=0.5, max_error=2.0)
    result = rebuilt(model, worker, prune, refit=["biases"])
    (change,) = result.report.steps[-1].changes
    assert change.what == "b"
    after = stored(result)
    moved = (ROWS @ (normal(24, 16) - after["W"])).mean(0) + normal(16, seed=1)
    np.testing.assert_allclose(after["b"], moved, rtol=1e-3, atol=1e-4)


# ------------------------------------------------------------------------- bad input


def pruned(ratio: float = 0.5, **options: Any) -> Pass:
    return step("prune-magnitude", ratio=ratio, max_error=9.0, **options)


GEMM = {"W": normal(24, 16), "b": normal(16, seed=1)}


def test_nothing_was_lost(worker: Worker) -> None:
    result = rebuilt(parsed(ONE % "y = Gemm(x, W, b)", **GEMM), worker)
    assert result.report.steps[-1].status == "nothing to do"
    assert skips(result) == {"W": "is as in the original"}


@pytest.mark.parametrize(
    "settings", [{}, {"feeds": FEEDS[:1]}, {"feeds": FEEDS, "generated": True}]
)
def test_it_needs_real_inputs(settings: dict[str, Any], worker: Worker) -> None:
    model = Model.from_proto(parsed(ONE % "y = Gemm(x, W, b)", **GEMM))
    result = run([pruned(), Reconstruct()], model, Settings(**settings), worker)
    assert result.report.steps[-1].status == "rolled back"
    assert "--calibration" in result.report.steps[-1].reason


def test_a_layer_that_is_new_or_makes_fewer_channels(worker: Worker, tmp_path: Path) -> None:
    edits = tmp_path / "edit.py"
    edits.write_text(
        "def rename(graph):\n"
        "    node = next(n for n in graph.nodes if n.op == 'Gemm')\n"
        "    node.outputs[0].name = 'k'\n"
        "    return graph\n"
    )
    text = ONE % "h = Gemm(x, A, a) t = Tanh(h) y = Gemm(t, B, b)"
    arrays = {"A": normal(24, 24), "a": normal(24), "B": normal(24, 16), "b": normal(16)}
    rename = step("surgeon", function=f"{edits}:rename")
    result = rebuilt(parsed(text, **arrays), worker, rename, pruned())
    assert skips(result)["A"] == "the model before the first step has no value 'k'"
    assert {change.what for change in result.report.steps[-1].changes} == {"B", "b"}
    cut = step("prune-channels", ratio=0.5, round_to=1, compensate=False)
    result = rebuilt(parsed(text, **arrays), worker, cut)
    assert skips(result)["A"] == "is as in the original"
    assert {change.what for change in result.report.steps[-1].changes} == {"B", "b"}


def test_nan_and_dead_inputs(worker: Worker) -> None:
    spoiled = normal(24, 16)
    spoiled[3, 3] = np.nan
    text = ONE % "h = Gemm(x, W, b) k = Gemm(x, V, b) y = Where(c, h, k)"
    model = parsed(text, W=spoiled, V=normal(24, 16, seed=1), b=normal(16), c=np.array(False))
    result = rebuilt(model, worker, pruned(only=["V"]))
    assert skips(result)["W"] == "holds NaN or infinity"
    assert [c.what for c in result.report.steps[-1].changes] == ["V"]  # the bias is of both
    dead = [{"x": feed["x"] * (np.arange(24) % 3 > 0)} for feed in FEEDS]
    dead = [{"x": feed["x"].astype(np.float32)} for feed in dead]
    result = rebuilt(
        parsed(ONE % "y = MatMul(x, W)", W=normal(24, 16)), worker, pruned(), feeds=dead
    )
    after, cut = stored(result)["W"], normal(24, 16)
    cut = cut * (after != 0)
    np.testing.assert_array_equal(after[::3], cut[::3])  # what nobody saw stays
    assert not np.array_equal(after, cut)
    zero = [{"x": 0 * feed["x"]} for feed in FEEDS]
    result = rebuilt(
        parsed(ONE % "y = MatMul(x, W)", W=normal(24, 16)), worker, pruned(), feeds=zero
    )
    assert result.report.steps[-1].status == "nothing to do"


def test_fewer_rows_than_inputs(worker: Worker) -> None:
    """It must not get worse where it was not looked at."""
    model = parsed(ONE % "y = MatMul(x, W)", W=normal(24, 16))
    few = [{"x": feed["x"][:3]} for feed in FEEDS[:4]]
    plain = run([pruned()], Model.from_proto(model), Settings(feeds=few), worker)
    result = rebuilt(model, worker, pruned(), feeds=few)
    others = [feed["x"] for feed in FEEDS[4:]]
    exact = [x @ normal(24, 16) for x in others]
    errors = [
        sum(
            float(((answers(r, {"x": x}) - y) ** 2).sum())
            for x, y in zip(others, exact, strict=True)
        )
        for r in (plain, result)
    ]
    assert errors[1] <= errors[0]


def test_an_integer_bias_holds_its_scales(worker: Worker) -> None:
    arrays: dict[str, np.ndarray] = {
        "q": RNG.integers(-100, 100, (6, 4, 3, 3)).astype(np.int8),
        "s": np.full(6, 0.01, np.float32), "z": np.zeros(6, np.int8),
        "B": np.arange(6, dtype=np.int32),
        "u": np.full(6, 0.02, np.float32), "v": np.zeros(6, np.int32),
    }  # fmt: skip
    text = """g (float[2, 4, 9, 9] x) => (float[2, 6, 5, 5] y) {
        w = DequantizeLinear<axis = 0>(q, s, z)  b = DequantizeLinear<axis = 0>(B, u, v)
        h = Conv(x, K)  y = Conv(h, w, b) }"""
    result = rebuilt(
        parsed(text, K=normal(4, 4, 3, 3), **arrays),
        worker,
        pruned(only=["K"], min_size=0),
        feeds=IMAGES,
    )
    assert [change.what for change in result.report.steps[-1].changes] == ["K"]
    assert skips(result)["w"] == "has nothing that can be refitted"


def test_only_and_keep_and_refit(worker: Worker) -> None:
    text = ONE % "h = Gemm(x, A, a) t = Tanh(h) y = MatMul(t, B)"
    model = parsed(text, A=normal(24, 24), a=normal(24), B=normal(24, 16))

    def changed(**options: Any) -> set[str]:
        result = rebuilt(model, worker, pruned(), **options)
        return {change.what for change in result.report.steps[-1].changes}

    assert changed() == {"A", "a", "B"}
    assert changed(only=["MatMul"]) == {"B"}
    assert changed(keep=["B"]) == {"A", "a"}
    assert changed(refit=["weights"]) == {"A", "B"}
    assert changed(refit=["biases"]) == {"a"}
    assert changed(refit=["scales", "tables"]) == set()
    with pytest.raises(RecipeError, match="no layer matches 'C'"):
        changed(only=["C"])
    with pytest.raises(RecipeError, match="option 'rounds' must be at least 1"):
        Reconstruct(rounds=0)


def test_damping_as_asked(worker: Worker) -> None:
    model = parsed(ONE % "y = MatMul(x, W)", W=normal(24, 16))
    start = normal(24, 16)
    moved = {}
    for strength in (0.01, 10.0):
        result = rebuilt(model, worker, pruned(), damping=strength)
        assert damping(result) == strength
        after = stored(result)["W"]
        moved[strength] = np.linalg.norm(after - start * (after != 0))
    assert 0 < moved[10.0] < 0.5 * moved[0.01]


# ------------------------------------------------------------------------- a real model


@pytest.mark.e2e
def test_a_pruned_image_classifier(worker: Worker) -> None:
    """On inputs that it never saw, the outputs of a model pruned by 60 % are 5 times closer."""
    folder = ROOT / "models" / "vision_cnn"
    model = Model.load(folder / "model.onnx")
    feeds = load_inputs(folder / "calibration.npz", model, limit=64)
    steps = [step("clean"), step("prune-magnitude", ratio=0.6)]
    with np.load(folder / "test.npz") as test:
        unseen = {"image": test["image"][:500]}
    plain = run(steps, model, Settings(feeds=feeds), worker)
    result = run([*steps, Reconstruct()], model, Settings(feeds=feeds), worker)
    original = Result(model, plain.report)
    wanted = answers(original, unseen)
    errors = [
        compare_outputs(["y"], [[wanted]], [[answers(r, unseen)]])[0].relative_error
        for r in (plain, result)
    ]
    assert errors[1] < errors[0] / 5
