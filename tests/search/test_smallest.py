"""The search holds inputs back, steps back when they refuse, and keeps the best when it ends."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import decoders
import numpy as np
import pytest
from command_line import Run
from hard_models import text

from onnxshrink import api
from onnxshrink.cli._terminal import Terminated
from onnxshrink.contract import Settings
from onnxshrink.errors import RecipeError
from onnxshrink.goal import Goal, Promise
from onnxshrink.graph import weights
from onnxshrink.graph.file.model import Model
from onnxshrink.kernels.fidelity import Estimate
from onnxshrink.kernels.split import hold_back
from onnxshrink.options import dump
from onnxshrink.passes.clean import Clean
from onnxshrink.passes.quantize_rd import QuantizeRd
from onnxshrink.passes.to_float16 import ToFloat16
from onnxshrink.passes.tune import Tune
from onnxshrink.pipeline import Pass, run
from onnxshrink.recipe import Recipe
from onnxshrink.runtime.inputs import load_inputs
from onnxshrink.runtime.worker import Worker
from onnxshrink.search import smallest
from onnxshrink.search.evaluation import Evaluator, Tried
from onnxshrink.search.smallest import Search


def model_of(largest: int) -> Model:
    """A product with whole numbers."""
    weight = np.random.default_rng(1).integers(-largest, largest + 1, (64, 64))
    graph = "g (float[n, 64] x) => (float[n, 64] y) { y = MatMul(x, w) }"
    return Model.from_proto(text(graph, w=weight.astype(np.float32)))


def feeds(count: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(5)
    return [{"x": rng.standard_normal((16, 64)).astype(np.float32)} for _ in range(count)]


@pytest.mark.parametrize(("count", "most"), [(1, 64), (3, 64), (4, 64), (64, 64), (128, 64)])
def test_inputs_are_held_back(count: int, most: int) -> None:
    seen, unseen = hold_back(count, most)
    assert sorted(seen + unseen) == list(range(count))
    assert len(seen) <= most
    assert len(unseen) == (count - most if count > 85 else count // 4)


def test_a_look_that_refuses_makes_it_finer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    looks: list[int] = []
    model_of(1000).save(source)
    real = Goal.promises

    def refusing(goal: Goal, *asked: Any) -> list[Promise]:
        looks.append(asked[2])
        if len(looks) == 1:
            return [Promise("y", Estimate("error", 1.0, 1.0, 8), 0.05, 0.9)]
        return real(goal, *asked)

    monkeypatch.setattr(Goal, "promises", refusing)
    report = api.shrink(source, out, api.Options(calibration=feeds(8)))
    assert looks[:2] == [1, 1]  # the same path: one test
    refused, *_ = (one.recipe for one in report.tried if one.verdict == "not kept on unseen inputs")
    taken, *_ = (one.recipe for one in report.tried if one.taken)
    assert float(taken.split()[-1]) < float(refused.split()[-1])
    assert " unseen inputs or rows: " in report.promises[0]


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_ctrl_c_keeps_the_best_so_far_and_says_so(
    stop: type[BaseException], code: int, tmp_path: Path, cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(search: Search) -> Iterator[float]:
        yield from ()
        raise stop

    monkeypatch.setattr(Search, "_explore", interrupted)
    source, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    model_of(7).save(source)
    report = api.shrink(source, out, api.Options(calibration=feeds(4)))
    assert out.exists()
    assert any(line.startswith("interrupted: ") for line in report.warnings)
    assert report.signal == code
    out.unlink()
    np.savez("data.npz", x=np.concatenate([feed["x"] for feed in feeds(4)]))
    assert cli("shrink", source, out, "--calibration", "data.npz").code == code
    assert out.exists()


@pytest.mark.parametrize(("keep_names", "storage"), [(False, "coded"), (True, "single")])
def test_recipes_are_compared_by_the_bytes_that_are_written(
    keep_names: bool, storage: Any, tmp_path: Path
) -> None:
    """Long names are most of what a small model has beside its weights."""
    long = {name: name * 300 for name in "tu"}
    graph = f"""g (float[n, 64] x) => (float[n, 64] y) {{
        {long["t"]} = MatMul(x, w)  {long["u"]} = Tanh({long["t"]})  y = MatMul({long["u"]}, w)
    }}"""
    w = np.random.default_rng(1).integers(-7, 8, (64, 64)).astype(np.float32)
    source, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    Model.from_proto(text(graph, w=w)).save(source)
    options = api.Options(calibration=feeds(4), keep_names=keep_names, storage=storage)
    report = api.shrink(source, out, options)
    (taken,) = (one for one in report.tried if one.taken)
    assert taken.nbytes == report.bytes_after == out.stat().st_size
    assert bool(report.renamed) is not keep_names


def test_what_few_inputs_cannot_promise_is_said(tmp_path: Path) -> None:
    source, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    model_of(7).save(source)
    for count in (1, 2, 3):
        report = api.shrink(source, out, api.Options(calibration=feeds(count)), time_limit=0)
        assert any("nothing is promised" in line for line in report.warnings)
        assert not report.promises


def test_an_output_that_is_not_there_is_told(tmp_path: Path) -> None:
    source = tmp_path / "in.onnx"
    model_of(7).save(source)
    options = api.Options(calibration=feeds(4))
    with pytest.raises(RecipeError, match="no such output"):
        api.shrink(source, tmp_path / "o.onnx", options, goal=Goal(measures={"z": "classes"}))
    with pytest.raises(RecipeError, match="takes one of"):
        Goal(measures={"y": "boxes"})  # type: ignore[dict-item]


def deep_net() -> Model:
    """Layers that lose enough with few bits for biases and scales to make up for."""
    rng = np.random.default_rng(7)
    w, v = (rng.standard_normal((64, 64)).astype(np.float32) / 8 for _ in range(2))
    b, c = (rng.standard_normal(64).astype(np.float32) / 4 for _ in range(2))
    graph = """g (float[n, 64] x) => (float[n, 64] y) {
        t = Gemm(x, w, b)  u = Relu(t)  y = Gemm(u, v, c)
    }"""
    return Model.from_proto(text(graph, w=w, v=v, b=b, c=c))


def test_a_tuned_recipe_holds_the_steps_it_had_time_for(worker: Worker) -> None:
    model, settings = deep_net(), Settings(feeds=feeds(8))
    ask = Evaluator(model, [Clean()], settings, Goal(), worker, "coded")
    one = ask.evaluate([QuantizeRd(lam=0.02), Tune(steps=20, time_limit=60)])
    assert one is not None
    assert one.eased < 1
    tune = dump(one.recipe.steps[2])
    assert 0 < tune["steps"] <= 20
    assert tune.get("time_limit") is None
    again = run(one.recipe.steps, model, settings, worker)
    held = ask.result(one)  # cleaning was run once for all
    assert again.model.digest() == held.model.digest()
    assert [step.name for step in held.report.steps] == ["clean", "quantize-rd", "tune"]
    assert held.report.bytes_before == again.report.bytes_before
    finer = ask.again(one, 0.001)
    assert finer is not None
    assert [step.name for step in finer.recipe.steps] == ["clean", "quantize-rd", "tune"]
    assert dump(finer.recipe.steps[2]) == tune


def test_steps_that_give_nothing_are_not_in_the_recipe(worker: Worker) -> None:
    """There is no time to tune, and nothing that codes have left."""
    ask = Evaluator(model_of(7), (), Settings(feeds=feeds(4)), Goal(), worker, "coded")
    one = ask.evaluate([QuantizeRd(lam=1e-6), ToFloat16(), Tune(time_limit=0)])
    assert one is not None
    assert [step.name for step in one.recipe.steps] == ["quantize-rd"]
    assert [step.name for step in ask.result(one).report.steps] == ["quantize-rd"]


def test_what_codes_leave_is_stored_in_float16(worker: Worker) -> None:
    ask = Evaluator(deep_net(), (), Settings(feeds=feeds(8)), Goal(), worker, "plain")
    best = Search(ask).run().best
    assert [step.name for step in best.recipe.steps[:2]] == ["quantize-rd", "to-float16"]
    stored = [view for view in weights.find(ask.result(best).model) if view.size >= 64]
    assert {view.dtype.name for view in stored} == {"INT8", "FLOAT16"}


@pytest.mark.parametrize("even", [True, False])
def test_integers_are_rounded_once_more_where_nothing_else_saves_much(
    even: bool, worker: Worker
) -> None:
    """Evenly spread codes of 8 bits cannot be coded in fewer; those of trained weights can."""
    rng = np.random.default_rng(2)
    spread = rng.integers(-127, 128, (64, 256)) if even else rng.normal(0, 3, (64, 256))
    graph = """g (float[n, 64] x) => (float[n, 256] y) {
        q, s, z = DynamicQuantizeLinear(x)  i = MatMulInteger(q, w, z)
        f = Cast <to = 1> (i)  t = Mul(s, scale)  y = Mul(f, t)
    }"""
    codes = np.rint(spread).astype(np.int8)
    model = Model.from_proto(text(graph, w=codes, scale=np.float32(0.01)))
    goal = Goal(max_error=0.1)
    ask = Evaluator(model, (), Settings(feeds=feeds(16)), goal, worker, "coded")
    best = Search(ask).run().best
    assert any(dump(step).get("requantize") for step in best.recipe.steps) == even
    assert best.nbytes < (0.8 if even else 0.9) * model.nbytes()


@pytest.mark.parametrize("fault", ["to-float16", "quantize-rd"])
def test_codes_alone_are_tried_where_float16_does_not_stand(fault: str) -> None:
    tried: list[list[str]] = []

    def evaluate(steps: Sequence[Pass]) -> Tried | None:
        tried.append([step.name for step in steps])
        return None if len(steps) == 2 else Tried(Recipe(tuple(steps)), 100, 0.5, 0.1, [])

    settings = SimpleNamespace(progress=lambda *told: None, unseen=[])
    ask = SimpleNamespace(
        evaluate=evaluate, settings=settings, why_not=f"{fault}: too much", model=deep_net()
    )
    search = Search(ask)  # type: ignore[arg-type]
    search._try(())
    next(search._explore())
    assert tried == [[], ["quantize-rd", "to-float16"], ["quantize-rd"]]
    spent = dump(search._tried[-1].recipe.steps[0]).get("lam")
    assert (spent is None) == (fault == "to-float16")


@pytest.mark.parametrize(
    ("left", "seen", "steps", "taken"),
    [
        (0.97, 0.5, 20, True),  # of the error
        (0.985, 0.5, 20, False),  # too little to go on
        (0.8, 1.0, 20, False),  # what is asked for is not served
        (0.8, 0.5, 9, False),  # too few steps in the time there was
        (None, 0.5, 20, False),  # too slow
    ],
)
def test_tuning_goes_on_where_it_wins_enough_and_unseen_inputs_are_not_asked(
    monkeypatch: pytest.MonkeyPatch, left: float | None, seen: float, steps: int, taken: bool
) -> None:
    tried = []

    def evaluate(recipe: tuple[Any, ...], known: Tried) -> Tried | None:
        assert known is plain
        *first, tune = recipe
        tried.append(tune)
        monkeypatch.setattr(Tried, "eased", left)
        done = Recipe((*first, replace(tune, steps=steps)))
        return None if left is None else Tried(done, 90, seen, 0.1, [])

    plain = Tried(Recipe((QuantizeRd(lam=0.1),)), 100, 0.5, 0.1, [], spend=0.1)
    ask = SimpleNamespace(evaluate=evaluate, behind=lambda one: one.recipe.steps)
    found = Search(ask)._tuned(plain)  # type: ignore[arg-type]
    assert found is not None
    assert [step.name for step in found.recipe.steps] == ["quantize-rd", "tune"][: 1 + taken]
    assert [tune.steps for tune in tried] == [20]


def test_more_is_spent_until_it_is_refused_and_then_less() -> None:
    """Bytes fall by a twentieth at least from look to look, whatever the figures say."""

    def tried(spend: float, strain: float) -> Tried:
        return Tried(Recipe(()), 1, strain, 0.0, [], spend=spend)

    points = [tried(1.0, 0.95)]
    assert smallest._next(points) == pytest.approx(smallest._STRIDE)
    points.append(tried(2.0, 0.99))
    assert smallest._next(points) == pytest.approx(2 * smallest._STRIDE)
    points.append(tried(4.0, 1.5))
    between = smallest._next(points)
    assert between is not None
    assert 2 < between < 4
    points.append(tried(2.2, 1.1))
    assert smallest._next(points) is None


@pytest.mark.parametrize(("most", "kinds"), [(9.0, {4}), (0.03, {4, 8})])
def test_for_memory_a_decoder_gets_codes_that_stay_small(
    most: float, kinds: set[int], worker: Worker
) -> None:
    """Of token ids alone; eight bits for what hurts where four for all are too much."""
    model = Model.from_proto(decoders.genai(packed=True))
    sizes = smallest.block_sizes(model)
    assert sizes == [64, 32]  # a block of 128 is longer than a row of the table
    feeds = load_inputs({"input_ids": decoders.tokens(32, 8)}, model)
    settings = Settings(feeds=feeds[::2], unseen=feeds[1::2])
    search = Search(Evaluator(model, (), settings, Goal(max_kl=most), worker, "single"), "memory")
    search._try(())
    for _ in search._blocks(sizes):
        pass
    best = search._smallest()
    assert best.keeps
    nodes = list(search._ask.result(best).model.nodes)
    assert {"MatMulNBits", "GatherBlockQuantized"} <= {node.op_type for node in nodes}
    assert {
        node.attributes["bits"].as_int() for node in nodes if "bits" in node.attributes
    } == kinds
