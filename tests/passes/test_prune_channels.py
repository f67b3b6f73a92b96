from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import channel_oracle as oracle
import numpy as np
import pytest

from onnxshrink.channels.probing import observe
from onnxshrink.channels.shares import Allocation
from onnxshrink.contract import Settings
from onnxshrink.errors import InputsMissing, ModelError, RecipeError, UnsupportedModel
from onnxshrink.passes.prune_channels import PruneChannels
from onnxshrink.passes.reconstruct import Reconstruct
from onnxshrink.pipeline import run
from onnxshrink.runtime import bench

_MLP = (
    '<ir_version: 8, opset_import: ["": 17]> g (float[N,12] x) => (float[N,5] y) {'
    "[one] h = Gemm(x, a, ab) r = Relu(h) [two] i = Gemm(r, b, bb) s = Relu(i)"
    "[three] y = MatMul(s, c)}"
)


def _mlp(seed=0):
    return oracle.build(_MLP, seed, a=(12, 64), ab=(64,), b=(64, 48), bb=(48,), c=(48, 5))


def _feeds(count=4, rows=64):
    rng = np.random.default_rng(9)
    mix = rng.standard_normal((12, 12)) * np.linspace(1, 0.05, 12)
    return [{"x": (rng.standard_normal((rows, 12)) @ mix).astype(np.float32)} for _ in range(count)]


def _pruned(model=None, feeds=None, worker=None, **options):
    settings = Settings(feeds=_feeds() if feeds is None else feeds)
    options = {"scope": "local", **options}
    return run([PruneChannels(**options)], model or _mlp(), settings, worker)


def _shapes(result):
    stored = result.model.ir.graph.initializers
    return {name: tuple(v.const_value.shape.numpy()) for name, v in stored.items()}


def test_ratio_rounds_to_multiples_of_eight(worker):
    result = _pruned(worker=worker, ratio=0.3)
    step = result.report.steps[0]
    assert step.status == "done"
    assert _shapes(result) == {"a": (12, 48), "ab": (48,), "b": (48, 32), "bb": (32,), "c": (32, 5)}
    sizes = {change.what: (change.before, change.after) for change in step.changes}
    assert sizes["b"] == (64 * 48 * 4, 48 * 32 * 4)
    assert {c.note for c in step.changes if c.what == "b"} == {
        "[64, 48] -> [48, 32]; refitted, damping 0.01"
    }
    assert step.bytes_after < step.bytes_before


def test_ratio_to_the_unit(worker):
    result = _pruned(worker=worker, ratio=0.25, round_to=1)
    assert _shapes(result)["b"] == (48, 36)


def test_l2_removes_the_smallest_and_the_rest_is_untouched(worker):
    model = _mlp()
    a, b = (model.ir.graph.initializers[n].const_value.numpy() for n in "ab")
    score = (a.astype(float) ** 2).sum(0) / (a.astype(float) ** 2).sum(0).mean()
    score += (b.astype(float) ** 2).sum(1) / (b.astype(float) ** 2).sum(1).mean()
    kept = np.sort(np.argsort(score)[32:])
    result = _pruned(
        model, worker=worker, ratio=0.5, round_to=1, compensate=False, importance="l2",
        keep=("c",), max_error=10,
    )  # fmt: skip
    stored = result.model.ir.graph.initializers
    np.testing.assert_array_equal(stored["a"].const_value.numpy(), a[:, kept])
    np.testing.assert_array_equal(stored["b"].const_value.numpy(), b[kept])


def test_refitting_is_least_squares_and_helps(worker):
    plain = _pruned(worker=worker, ratio=0.5, compensate=False, max_error=10)
    fitted = _pruned(worker=worker, ratio=0.5)
    errors = [r.report.steps[0].max_error for r in (plain, fitted)]
    assert errors[1] < errors[0] / 3


def test_refitted_weights_equal_the_normal_equations(worker):
    feeds = _feeds(2, 128)
    model = oracle.build(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N,12] x) => (float[N,5] y) {'
        "h = MatMul(x, a) r = Relu(h) y = Gemm(r, b, c)}",
        a=(12, 16), b=(16, 5), c=(5,),
    )  # fmt: skip
    a, b, c = (model.ir.graph.initializers[n].const_value.numpy().astype(float) for n in "abc")
    result = _pruned(model, feeds, worker, ratio=0.25, round_to=1, damping=1e-6)
    stored = result.model.ir.graph.initializers
    kept_a = stored["a"].const_value.numpy()
    kept = [
        next(i for i in range(16) if np.array_equal(a[:, i].astype(np.float32), col))
        for col in kept_a.T
    ]
    hidden = np.maximum(np.vstack([f["x"] for f in feeds]).astype(float) @ a, 0)
    design = np.hstack([hidden[:, kept], np.ones((len(hidden), 1))])
    solution = np.linalg.lstsq(design, hidden @ b + c, rcond=None)[0]
    predicted = design @ solution
    actual = hidden[:, kept] @ stored["b"].const_value.numpy() + stored["c"].const_value.numpy()
    np.testing.assert_allclose(actual, predicted, atol=2e-3 * np.abs(predicted).max())


_CNN = (
    '<ir_version: 8, opset_import: ["": 17]> g (float[N,3,6,6] x) => (float[N,5,3,3] y) {'
    "h = Conv<pads=[1,1,1,1]>(x, a) r = Relu(h) d = Conv<group=16, pads=[1,1,1,1]>(r, w, wb)"
    "q = Relu(d) y = Conv<pads=[1,1,1,1], strides=[2,2]>(q, v, vb)}"
)


def _value(model, name, feed, worker):
    made = {value.name: value for node in model.ir.graph for value in node.outputs}
    return next(observe(model, [made[name]], [feed], worker))[name]


def test_behind_a_depthwise_convolution_refitting_is_least_squares(worker):
    shapes = dict(a=(16, 3, 3, 3), w=(16, 1, 3, 3), wb=(16,), v=(5, 16, 3, 3), vb=(5,))
    rng = np.random.default_rng(4)
    feeds = [{"x": rng.standard_normal((64, 3, 6, 6)).astype(np.float32)} for _ in range(3)]
    options = dict(worker=worker, ratio=0.25, round_to=1, damping=1e-6, max_error=10)
    plain, fitted = (
        _pruned(oracle.build(_CNN, **shapes), feeds, compensate=each, **options)
        for each in (False, True)
    )
    errors = [result.report.outputs["y"]["relative_error"] for result in (plain, fitted)]
    assert errors[1] < 0.9 * errors[0]

    def floats(result, name):
        tensor = result.model.ir.graph.initializers[name].const_value
        return np.asarray(tensor.numpy(), float)

    before, after = (oracle.build(_CNN, **shapes), fitted.model)
    for name in ("a", "w", "wb"):  # they read nothing that went
        np.testing.assert_array_equal(floats(plain, name), floats(fitted, name))
    wanted, read = [], []
    for feed in feeds:
        wanted.append(_value(before, "y", feed, worker))
        read.append(_value(after, "q", feed, worker))
    rows = np.pad(np.concatenate(read).astype(float), [(0, 0), (0, 0), (1, 1), (1, 1)])
    windows = np.lib.stride_tricks.sliding_window_view(rows, (3, 3), (2, 3))[:, :, ::2, ::2]
    design = windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, 12 * 9)
    design = np.hstack([design, np.ones((len(design), 1))])
    goal = np.concatenate(wanted).astype(float).transpose(0, 2, 3, 1).reshape(-1, 5)
    best = design @ np.linalg.lstsq(design, goal, rcond=None)[0]
    found = design[:, :-1] @ floats(fitted, "v").reshape(5, -1).T + floats(fitted, "vb")
    np.testing.assert_allclose(found, best, atol=1e-4 * np.abs(best).max())
    relative = np.linalg.norm(goal - best) / np.linalg.norm(goal)
    assert errors[1] == pytest.approx(relative, rel=1e-4)


def test_refitting_that_takes_the_outputs_further_away_is_taken_back(worker, monkeypatch):
    """As it can when many weights make up for the same error, each for all of it."""
    from onnxshrink.channels import compensation

    def overshoot(weights, moments, kept, damping, *, bias):
        fitted, shift = refit(weights, moments, kept, damping, bias=bias)
        old = np.where(kept, weights, 0)
        return old - 4 * (fitted - old), -4 * shift

    options = dict(worker=worker, ratio=0.5, max_error=100)
    plain = _pruned(compensate=False, **options)
    refit = compensation.refit
    monkeypatch.setattr(compensation, "refit", overshoot)
    guarded = _pruned(**options)
    assert guarded.model.digest() == plain.model.digest()
    step = guarded.report.steps[0]
    assert step.max_error == plain.report.steps[0].max_error
    reasons = {skip.what: skip.reason for skip in step.skips}
    assert reasons["refit"].startswith("would take the error of the outputs from")
    assert not [change for change in step.changes if "refitted" in change.note]


def test_what_fits_few_inputs_too_closely_is_held_back(worker):
    """Six inputs, 64 neurons: as free as can be their outputs are met, and others are not."""
    model = _mlp(2)
    feeds = _feeds(7, 2)
    options = dict(worker=worker, ratio=0.5, max_error=100)
    held = _pruned(model, feeds, **options)
    changes = {change.what: change for change in held.report.steps[0].changes}
    whole = changes["refit"]
    assert (whole.kind, whole.error["error"] < whole.error["error_without"]) == ("model", True)
    for name in "bc":
        row = changes[name]
        assert float(row.note.rpartition("damping ")[2]) >= 0.01
        assert row.error["error_after"] < row.error["error_before"]
    free = _pruned(model, feeds, damping=1e-6, **options)
    plain = _pruned(model, feeds, compensate=False, **options)
    others = _feeds(30, 2)[7:]
    errors = [_error(model, each.model, others, worker) for each in (held, free, plain)]
    assert errors[0] < min(errors[1:])


@pytest.mark.parametrize("iterations", [1, 2])
def test_reconstruct_holds_what_is_left_against_the_same_channels_of_the_original(
    worker, iterations
):
    model, feeds = _mlp(1), _feeds(8)
    steps = [
        PruneChannels(ratio=0.5, compensate=False, max_error=10, iterations=iterations),
        Reconstruct(damping=1e-9, only=["b"]),
    ]
    plain = run(steps[:1], model, Settings(feeds=feeds), worker)
    result = run(steps, model, Settings(feeds=feeds), worker)
    assert result.report.steps[1].status == "done"
    (left,) = (axis for axis in result.model.kept["i"] if axis is not None)
    wanted, x = (
        np.concatenate([_value(each, name, feed, worker) for feed in feeds]).astype(float)
        for each, name in ((model, "i"), (plain.model, "r"))
    )
    design = np.column_stack([x, np.ones(len(x))])
    best = design @ np.linalg.lstsq(design, wanted[:, left], rcond=None)[0]
    stored = result.model.ir.graph.initializers
    b, bb = (stored[name].const_value.numpy().astype(float) for name in ("b", "bb"))
    np.testing.assert_allclose(x @ b + bb, best, atol=1e-5 * np.abs(best).max())
    errors = [_error(model, each.model, feeds, worker) for each in (plain, result)]
    assert errors[1] < 0.9 * errors[0]


@pytest.mark.parametrize("version", [3, 8])
def test_a_convolution_without_a_bias_gets_one_and_the_report_says_so(worker, version):
    given = ", float[12,3,3,3] a, float[5,12,1,1] b" if version == 3 else ""
    model = oracle.build(
        f'<ir_version: {version}, opset_import: ["": 8]> g (float[N,3,7,6] x{given}) => '
        "(float[N,5,7,6] y) {h = Conv<pads=[1,1,1,1]>(x, a) r = Relu(h) y = Conv(r, b)}",
        a=(12, 3, 3, 3), b=(5, 12, 1, 1),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((4, 3, 7, 6)).astype(np.float32)} for _ in range(8)]
    options = dict(ratio=0.3, round_to=1, max_error=10)
    plain, fitted = (
        _pruned(model, feeds, worker, compensate=each, **options).report.steps[0]
        for each in (False, True)
    )
    rows = {change.what: (change.before, change.after) for change in fitted.changes}
    assert rows["b"] == (5 * 12 * 4, 5 * 8 * 4)
    assert rows["b.bias"] == (0, 5 * 4)
    assert fitted.max_error < plain.max_error


def test_reconstruct_in_a_later_run_holds_against_what_that_run_began_with(worker):
    feeds = _feeds(8)
    first = _pruned(_mlp(1), feeds, worker, ratio=0.25, max_error=10).model
    steps = [PruneChannels(ratio=0.25, compensate=False, max_error=10), Reconstruct()]
    plain, result = (run(steps[:n], first, Settings(feeds=feeds), worker) for n in (1, 2))
    assert {"b", "c"} <= {change.what for change in result.report.steps[1].changes}
    errors = [_error(first, each.model, feeds, worker) for each in (plain, result)]
    assert errors[1] < 0.9 * errors[0]


def test_reconstruct_brings_norms_and_depthwise_convolutions_back_to_their_channels(worker):
    model = oracle.build(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N,3,6,6] x) => (float[N,5,6,6] y) {'
        "h = Conv<pads=[1,1,1,1]>(x, a) r = Relu(h) c = Conv(r, b)"
        "n = BatchNormalization(c, s, t, m, v) q = Relu(n)"
        "d = Conv<group=16, pads=[1,1,1,1]>(q, w, wb) p = Relu(d) y = Conv(p, e, eb)}",
        a=(16, 3, 3, 3), b=(16, 16, 1, 1), s=np.ones(16, np.float32), t=(16,), m=(16,),
        v=np.full(16, 4, np.float32), w=(16, 1, 3, 3), wb=(16,), e=(5, 16, 1, 1), eb=(5,),
    )  # fmt: skip
    rng = np.random.default_rng(4)
    feeds = [{"x": rng.standard_normal((8, 3, 6, 6)).astype(np.float32)} for _ in range(8)]
    steps = [PruneChannels(ratio=0.5, compensate=False, max_error=10), Reconstruct()]
    plain, result = (run(steps[:n], model, Settings(feeds=feeds), worker) for n in (1, 2))
    changed = {change.what for change in result.report.steps[1].changes}
    assert {"b", "s", "t", "w", "wb", "e", "eb"} <= changed
    assert {skip.what for skip in result.report.steps[1].skips} <= {"a"}
    errors = [_error(model, each.model, feeds, worker) for each in (plain, result)]
    assert errors[1] < 0.9 * errors[0]


def _error(model, other, feeds, worker):
    wanted, found = (
        [next(observe(each, each.ir.graph.outputs, [feed], worker))["y"] for feed in feeds]
        for each in (model, other)
    )
    gap = np.subtract(wanted, found, dtype=float)
    return np.linalg.norm(gap) / np.linalg.norm(wanted)


@pytest.mark.parametrize("goal", [0.8, 0.4])
@pytest.mark.parametrize("kind", ["flops", "bytes"])
def test_goals_are_reached(kind, goal, worker):
    pass_ = PruneChannels(**{kind: goal}, round_to=1, max_error=10)
    plan = pass_.preview(_mlp(), _feeds())
    costs = plan.to_dict()
    measure = "macs" if kind == "flops" else "nbytes"
    left = costs["after"][measure] / costs["before"][measure]
    assert goal * 0.9 <= left <= goal


@pytest.mark.parametrize("goal", ["flops", "bytes", "latency"])
def test_a_goal_out_of_reach_is_said_and_the_most_goes(goal, worker, monkeypatch):
    monkeypatch.setattr("onnxshrink.channels.latency._ROUNDS", bench.FEWEST_ROUNDS)
    monkeypatch.setattr(bench, "_PATIENCE", 1)
    result = _pruned(worker=worker, **{goal: 0.01}, round_to=1, minimum=30, max_error=10)
    (step,) = result.report.steps
    assert step.warnings == ["the goal is out of reach: this is the most that can go"]
    assert _shapes(result)["b"] == (30, 30)


def test_a_latency_goal_is_met_by_no_more_than_it_takes(worker, monkeypatch):
    """With a clock that tells bytes, on which each unit saves what it weighs."""

    def by_bytes(paths, feeds, *, rounds, within=None, worker):
        assert worker is runs_in  # what is timed obeys the limits of the run
        before, after = (path.stat().st_size for path in paths)
        ratio = after / before
        return SimpleNamespace(models=[None, SimpleNamespace(
            ratio=ratio, ratio_low=ratio, ratio_high=ratio
        )])  # fmt: skip

    runs_in = worker
    monkeypatch.setattr("onnxshrink.channels.latency.bench", by_bytes)
    model = oracle.build(_MLP, a=(12, 128), ab=(128,), b=(128, 256), bb=(256,), c=(256, 5))
    result = _pruned(model, _feeds(1, 64), worker, latency=0.7, max_error=10)
    (step,) = result.report.steps
    assert step.status == "done"
    assert 0.6 < step.bytes_after / step.bytes_before <= 0.7


def test_time_is_saved_where_units_are_seen_to_save_it():
    """The group that saves nothing is left alone; the other gives what was asked for."""
    plan = PruneChannels(ratio=0.5).preview(_mlp())
    costs = {"a[1]": 1.0, "b[1]": 0.0}
    allocation = Allocation({}, True, round_to=8, minimum=1, costs=costs)
    chosen = allocation.choose(plan, 0.5).choice
    assert [len(units) for units in chosen] == [32, 0]
    assert [len(units) for units in allocation.only(plan, 1).choice] == [0, 24]


@pytest.mark.parametrize(
    ("importance", "scope"),
    [
        *((each, "local") for each in (
            "l1", "bn-gamma", "activation", "variance", "hessian", "greedy", "random",
        )),
        *((each, scope) for each in ("l1", "greedy") for scope in ("global", "measured")),
    ],
)  # fmt: skip
def test_every_importance_and_scope(importance, scope, worker):
    result = _pruned(worker=worker, importance=importance, scope=scope, ratio=0.25)
    assert result.report.steps[0].status == "done"
    assert result.report.bytes_after < result.report.bytes_before


def test_iterations_end_where_one_step_does(worker):
    once = _pruned(worker=worker, ratio=0.5)
    thrice = _pruned(worker=worker, ratio=0.5, iterations=3, round_to=1)
    assert _shapes(once)["b"] == (32, 24)
    assert abs(_shapes(thrice)["b"][0] - 32) <= 1


def test_ratio_zero_and_kept_groups_change_nothing(worker):
    assert _pruned(worker=worker, ratio=0).report.steps[0].status == "nothing to do"
    kept = _pruned(worker=worker, keep=("Gemm", "MatMul")).report.steps[0]
    assert kept.status == "nothing to do"
    assert "kept as asked" in {skip.reason for skip in kept.skips}


def test_nothing_prunable_says_what_blocks(worker):
    model = oracle.build(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N,12] x) => (float[N,5] y)'
        "{y = MatMul(x, a)}",
        a=(12, 5),
    )
    step = _pruned(model, worker=worker).report.steps[0]
    assert step.status == "nothing to do"
    assert {skip.reason for skip in step.skips} == {"graph input 'x'", "graph output 'y'"}


def test_same_seed_same_bytes(worker):
    first, second = (_pruned(worker=worker, importance="random") for _ in range(2))
    assert first.model.digest() == second.model.digest()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": ("nowhere*",)}, "keep: nothing matches 'nowhere\\*'"),
        ({"layers": {"nowhere": 0.5}}, "layers: nothing matches 'nowhere'"),
    ],
)
def test_patterns_of_nothing_are_refused(options, message, worker):
    with pytest.raises(RecipeError, match=message):
        _pruned(worker=worker, **options)


def test_bad_options_are_refused(worker):
    with pytest.raises(RecipeError, match="one of flops and bytes"):
        PruneChannels(flops=0.5, bytes=0.5)
    with pytest.raises(RecipeError, match=r"'two' takes a ratio from 0 to 0\.95, not 1\.5"):
        PruneChannels(layers={"two": 1.5})
    with pytest.raises(InputsMissing, match="activation needs real inputs: give --calibration"):
        _pruned(feeds=[], worker=worker, importance="activation")
    with pytest.raises(InputsMissing, match="measured needs real inputs: give --calibration"):
        _pruned(feeds=[], worker=worker, scope="measured")


def test_explain_names_what_goes_together_and_what_blocks(worker):
    tables = PruneChannels().explain(_mlp(), "two")
    titles = [table.title for table in tables]
    assert titles == ["a[1]: 64 channels", "b[1]: 48 channels", "blocked"]
    assert {row[0] for row in tables[0].rows} >= {"a", "ab", "h", "r", "b"}
    with pytest.raises(RecipeError, match="no 'nowhere'"):
        PruneChannels().explain(_mlp(), "nowhere")


def test_preview_leaves_the_model_and_lists_groups():
    model = _mlp()
    before = model.digest()
    plan = PruneChannels(ratio=0.5).preview(model)
    assert model.digest() == before
    assert [row[:4] for row in plan.table().rows] == [
        ("a[1]", "channels", "64", "32"), ("b[1]", "channels", "48", "24"),
    ]  # fmt: skip
    assert plan.to_dict()["after"]["parameters"] == 12 * 32 + 32 + 32 * 24 + 24 + 24 * 5


# ---------------------------------------------------------------------------- the command line


def _saved(model, name="model.onnx"):
    model.save(name)
    return name


def test_dry_run_shows_groups_and_costs_and_writes_nothing(cli):
    path = _saved(_mlp())
    done = cli("prune-channels", path, "--dry-run", "--ratio", "0.5", "--json")
    assert done.code == 0, done.err
    shown = json.loads(done.out)
    assert [len(group["removed"]) for group in shown["groups"]] == [32, 24]
    assert shown["before"]["parameters"] == 12 * 64 + 64 + 64 * 48 + 48 + 48 * 5
    assert shown["after"]["nbytes"] == 4 * (12 * 32 + 32 + 32 * 24 + 24 + 24 * 5)
    table = cli("prune-channels", path, "--dry-run", "--ratio", "0.5")
    assert "| a[1] | channels | 64 | 32 |" in table.out
    assert f"| parameters | {shown['before']['parameters']} | {shown['after']['parameters']} |" in (
        table.out
    )
    assert [file.name for file in Path().iterdir()] == [path]


def test_explain_on_the_command_line(cli):
    path = _saved(_mlp())
    done = cli("prune-channels", path, "--explain", "two", "--json")
    assert done.code == 0, done.err
    shown = json.loads(done.out)
    assert list(shown) == ["a[1]: 64 channels", "b[1]: 48 channels", "blocked"]
    assert {row["value"] for row in shown["a[1]: 64 channels"]} == {"a", "ab", "h", "r", "b"}
    output = cli("prune-channels", path, "--explain", "y")
    assert "graph output 'y'" in output.out
    assert cli("prune-channels", path, "--explain", "nowhere").code == 2


def test_looking_takes_no_output_and_strict_wants_something_to_go(cli):
    path = _saved(_mlp())
    assert cli("prune-channels", path, "out.onnx", "--dry-run").code == 2
    assert cli("prune-channels", path, "--dry-run", "--strict").code == 0
    done = cli("prune-channels", path, "--dry-run", "--strict", "--ratio", "0")
    assert (done.code, "nothing would be changed" in done.err) == (1, True)


# ---------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("ratio", ["1", "0.96", "-0.1"])
def test_a_ratio_that_would_empty_a_group_is_refused(ratio, cli):
    done = cli("prune-channels", _saved(_mlp()), "out.onnx", "--ratio", ratio)
    assert done.code == 2
    assert "--ratio" in done.err or "ratio" in done.err
    assert not Path("out.onnx").exists()


def test_the_largest_ratio_leaves_every_group_something(worker):
    model = oracle.build(_MLP, a=(12, 3), ab=(3,), b=(3, 2), bb=(2,), c=(2, 5))
    result = _pruned(model, worker=worker, ratio=0.95, round_to=1, max_error=10)
    assert _shapes(result) == {"a": (12, 1), "ab": (1,), "b": (1, 1), "bb": (1,), "c": (1, 5)}
    kept = _pruned(worker=worker, ratio=0.95, round_to=1, minimum=40, max_error=10)
    assert _shapes(kept)["b"] == (40, 40)


def test_unknown_names_and_nothing_prunable_on_the_command_line(cli):
    path = _saved(_mlp())
    done = cli("prune-channels", path, "out.onnx", "--keep", "nowhere*")
    assert (done.code, "nothing matches 'nowhere*'" in done.err) == (2, True)
    flat = oracle.build(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N,12] x) => (float[N,5] y)'
        "{y = MatMul(x, a)}",
        a=(12, 5),
    )
    done = cli("prune-channels", _saved(flat, "flat.onnx"), "out.onnx", "--strict")
    assert done.code == 1
    assert "graph output 'y'" in done.out


def test_operators_that_nobody_knows(worker):
    head = '<ir_version: 8, opset_import: ["": 17, "{}": 1]> g (float[N,12] x) => (float[N,5] y) '
    text = head + "{{h = MatMul(x, a) r = {}.{}(h) y = MatMul(r, b)}}"
    opaque = oracle.build(text.format("mine", "mine", "Opaque"), check=False, a=(12, 8), b=(8, 5))
    with pytest.raises(UnsupportedModel, match="Opaque"):
        _pruned(opaque, worker=worker)
    known = oracle.build(
        '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]> g (float[N,12] x) => '
        "(float[N,5] y) {h = MatMul(x, a) "
        'y = com.microsoft.CDist<metric="euclidean">(h, b)}',
        check=False, a=(12, 8), b=(5, 8),
    )  # fmt: skip
    step = _pruned(known, worker=worker).report.steps[0]
    assert step.status == "nothing to do"
    assert any("no rule for this operator" in skip.reason for skip in step.skips)


def test_shapes_that_disagree_are_an_error(worker):
    model = oracle.build(_MLP, check=False, a=(12, 64), ab=(64,), b=(60, 48), bb=(48,), c=(48, 5))
    with pytest.raises(ModelError, match="60"):
        _pruned(model, worker=worker)


def test_sequences_as_outputs(worker):
    model = oracle.build(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N,12] x) => (float[N,5] y, '
        "seq(float[N,2]) z) {h = MatMul(x, a) r = Relu(h) y = MatMul(r, b) g = MatMul(r, c)"
        " z = SplitToSequence<axis=1>(g, two)}",
        a=(12, 32), b=(32, 5), c=(32, 4), two=np.array(2),
    )  # fmt: skip
    result = _pruned(model, worker=worker, ratio=0.25, max_error=10)
    assert result.report.steps[0].status == "done"
    assert _shapes(result) == {"a": (12, 24), "b": (24, 5), "c": (24, 4), "two": ()}
