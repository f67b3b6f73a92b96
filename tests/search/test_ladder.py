"""The search moves up the layers that hurt, and no others."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from command_line import Run
from hard_models import text
from onnx import helper
from weight_models import waves

from onnxshrink import api
from onnxshrink.contract import Judge, Settings
from onnxshrink.errors import BudgetMissed, ModelError
from onnxshrink.goal import Goal
from onnxshrink.graph.file.model import Model
from onnxshrink.kernels.metrics import compare_outputs
from onnxshrink.recipe import Recipe
from onnxshrink.runtime.worker import Worker
from onnxshrink.search.ladder import FoundRecipe, find_recipe

WIDTH = 64
OUTLIERS = [0, 32]  # one row of every block; the inputs are zero there


def integers(seed: int, largest: int, outlier: int) -> np.ndarray:
    """[64, 64] whole numbers up to ``largest``, which all reach, under rows of outliers."""
    rng = np.random.default_rng(seed)
    array = rng.integers(-largest, largest + 1, (WIDTH, WIDTH)).astype(np.float32)
    array[[1, 33]] = largest
    array[OUTLIERS] = outlier
    return array / 16


def layers() -> dict[str, np.ndarray]:
    """Each is exact on one rung and hopeless below it."""
    blocks = integers(3, 127, 127) * 16
    blocks[32:] /= 512  # int8 with one scale for a channel loses these rows
    return {
        "int4": integers(1, 7, 7),
        "int8": integers(2, 7, 127),
        "int8 in blocks of 32": blocks,
        "float16": integers(4, 7, 2048),
    }


def model_of(*names: str) -> Model:
    """The sum of some layers; the third reads an input of its own scale."""
    every = layers()
    weights = {f"w{at}": every[name] for at, name in enumerate(names)}
    lines, total = [], ""
    for at, name in enumerate(names):
        source = "z" if "blocks" in name else "x"
        lines.append(f"a{at} = MatMul({source}, w{at})")
        if at:
            lines.append(f"s{at} = Add({total}, a{at})")
        total = f"s{at}" if at else "a0"
    return Model.from_proto(
        text(
            "g (float[n, 64] x, float[n, 64] z) => (float[n, 64] y) {"
            f"{' '.join(lines)} y = Identity({total}) }}",
            **weights,
        )
    )


def feeds(count: int = 4) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(5)
    found = []
    for _ in range(count):
        x, z = rng.standard_normal((2, 16, WIDTH)).astype(np.float32)
        x[:, OUTLIERS] = 0
        z[:, :32] /= 512
        found.append({"x": x, "z": z})
    return found


def search(model: Model, goal: Goal, worker: Worker) -> tuple[FoundRecipe, list[int]]:
    judge = Judge(model, Settings(feeds=feeds()), worker)
    told: list[tuple[int, int]] = []
    found = find_recipe(model, judge, goal, lambda what, done, total: told.append((done, total)))
    *before, (done, total) = told
    assert done == total  # the end
    return found, [done for done, _ in before]


GOALS = {
    "nothing said": Goal(),
    "agreement": Goal(min_agreement=1.0),
    "error": Goal(max_error=1e-3),
    "drop of agreement": Goal(max_drop=0.0),
    "drop of a metric": Goal(
        max_drop=1e-3, metric=lambda outputs: -float(np.mean([y.std() for (y,) in outputs]))
    ),
}


@pytest.mark.parametrize("goal", GOALS.values(), ids=GOALS)
def test_exactly_the_sensitive_layer_moves_up(goal: Goal, worker: Worker) -> None:
    model = model_of("int4", "int4", "int8", "int4")
    found, _ = search(model, goal, worker)
    assert found.moved == {"w2": "int8"}
    assert found.misses == []
    (step,) = found.recipe.steps
    assert (step.dtype, step.block_size) == ("int4", 32)
    assert step.weights.layers == {"w2": {"dtype": "int8", "block_size": 0}}


@pytest.mark.parametrize("rung", layers())
def test_every_rung_is_reached_and_no_other_weight_pays(rung: str, worker: Worker) -> None:
    found, _ = search(model_of("int4", rung, "int4"), Goal(max_error=1e-3), worker)
    assert found.moved == ({} if rung == "int4" else {"w1": rung})
    assert found.misses == []


def test_each_layer_ends_on_its_own_rung(worker: Worker) -> None:
    names = ("float16", "int4", "int8", "int8 in blocks of 32", "int4")
    found, tried = search(model_of(*names), Goal(max_error=1e-3), worker)
    expected = {f"w{at}": name for at, name in enumerate(names) if name != "int4"}
    assert found.moved == expected
    assert found.misses == []
    assert tried == list(range(1, len(tried) + 1))
    assert len(tried) < 30


def test_nothing_moves_where_nothing_hurts(worker: Worker) -> None:
    found, tried = search(model_of("int4", "int4"), Goal(max_error=1e-3), worker)
    assert found.moved == {}
    assert tried == [1]


def test_a_goal_that_no_narrower_type_meets_leaves_everything(worker: Worker) -> None:
    rng = np.random.default_rng(6)
    model = model_of("int4", "int4")
    for value in model.ir.graph.initializers.values():
        noise = rng.standard_normal((WIDTH, WIDTH)).astype(np.float32)
        value.const_value = ir.Tensor(noise, name=value.name)
        model.touch(value.name)
    found, _ = search(model, Goal(max_error=1e-9), worker)
    assert found.recipe.steps == ()
    assert found.misses == []


@pytest.mark.parametrize("shape", [(WIDTH,), (1, WIDTH), (2, WIDTH)])
def test_a_table_that_needs_its_bits_is_all_that_stays(
    shape: tuple[int, ...], worker: Worker
) -> None:
    proto, inputs = waves(layers()["int4"], *shape)
    model = Model.from_proto(proto)
    judge = Judge(model, Settings(feeds=inputs), worker)
    found = find_recipe(model, judge, Goal(max_error=1e-3), lambda *_: None)
    assert found.moved == {"table": "float32"}
    assert found.misses == []
    (step,) = found.recipe.steps
    assert step.dtype == "int4"  # type: ignore[attr-defined]


def test_a_model_without_weights_has_nothing_to_search(worker: Worker) -> None:
    model = Model.from_proto(
        text("g (float[n, 64] x, float[n, 64] z) => (float[n, 64] y) { y = Add(x, z) }")
    )
    found, _ = search(model, Goal(), worker)
    assert found.recipe.steps == ()
    assert found.misses == []


# ------------------------------------------------------------------------------- through the API


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.onnx"
    model_of("int4", "int8", "int4").save(path)
    return path


def test_shrink_keeps_its_goal_and_its_recipe_gives_the_same_bytes(
    source: Path, tmp_path: Path
) -> None:
    options = api.Options(calibration=feeds(8))
    out, recipe = tmp_path / "out.onnx", tmp_path / "recipe.yaml"
    report = api.shrink(source, out, options, goal=Goal(max_error=0.05), recipe_out=recipe)
    assert report.missed == []
    assert report.ratio > 4
    assert report.measures["y"].startswith("vectors: ")
    assert "relative error of 'y' on 32 unseen" in report.promises[0]
    assert report.checks["feeds"] == 6  # two of eight were seen by no step
    assert sum(one.taken for one in report.tried) == 1
    assert report.bytes_after == out.stat().st_size
    again = tmp_path / "again.onnx"
    api.apply_recipe(Recipe.load(recipe), source, again, options)
    assert again.read_bytes() == out.read_bytes()


def test_inputs_that_show_nothing_are_as_good_as_none(
    cli: Run, source: Path, tmp_path: Path
) -> None:
    """All outputs are zero for them: shrink stays at 8 bits, and --strict wants more."""
    silent = [{name: 0 * array for name, array in feed.items()} for feed in feeds()]
    out = tmp_path / "out.onnx"
    report = api.shrink(source, out, api.Options(calibration=silent))
    assert [step.name for step in report.steps] == ["clean", "quantize-weights"]
    notes = " ".join(change.note for change in report.steps[1].changes)
    assert "int8" in notes
    assert "int4" not in notes
    assert report.unproven
    assert any("output 'y' is 0 throughout" in warning for warning in report.warnings)
    stacked = {name: np.concatenate([feed[name] for feed in silent]) for name in silent[0]}
    np.savez(tmp_path / "silent.npz", **stacked)
    command = ("quantize-weights", source, out, "--calibration", tmp_path / "silent.npz")
    assert cli(*command).code == 0
    done = cli(*command, "--strict")
    assert done.code == 1
    assert "could not have shown a difference" in done.err


def test_a_missed_budget_raises_with_the_best_result_written(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    with pytest.raises(
        BudgetMissed, match=r"written.*less than 50x.*more than 1.0 kB|more.*less"
    ) as e:
        api.shrink(
            source, out, api.Options(calibration=feeds()), goal=Goal(max_error=1e-3),
            max_size=1000, target_ratio=50,
        )  # fmt: skip
    assert e.value.exit_code == 1
    assert e.value.report.missed
    assert e.value.report.bytes_after == out.stat().st_size
    assert e.value.report.ratio > 2  # the smallest that keeps what the answers must keep
    assert all(row["relative_error"] <= 1e-3 for row in e.value.report.outputs.values())


def test_a_rung_on_which_the_model_does_not_run(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime may refuse what an operator set or a type brings; others are tried then."""
    effect = Judge.effect

    def refuse(judge: Judge, model: Model, count: int | None = None) -> object:
        if model.opset >= 21:  # that of int4
            raise ModelError("not with this runtime")
        return effect(judge, model, count)

    monkeypatch.setattr(Judge, "effect", refuse)
    model = model_of("int4", "int8")
    judge = Judge(model, Settings(feeds=feeds()), worker)
    found = find_recipe(model, judge, Goal(max_error=0.05), lambda *_: None)
    assert found.misses == []
    (step,) = found.recipe.steps
    assert step.dtype == "int8"  # type: ignore[attr-defined]


@pytest.mark.parametrize(("features", "lowered"), [(4, False), (200, True)])
def test_classifiers_with_few_coefficients_stay_as_they_are(
    features: int, lowered: bool, tmp_path: Path
) -> None:
    """Lowered they would be bigger, and nothing could make up for that."""
    rng = np.random.default_rng(0)
    node = helper.make_node(
        "LinearClassifier", ["x"], ["label", "scores"], domain="ai.onnx.ml",
        coefficients=rng.standard_normal(3 * features).tolist(), intercepts=[0.1, 0.2, 0.3],
        classlabels_ints=[0, 1, 2], post_transform="SOFTMAX",
    )  # fmt: skip
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node], "g", [info("x", 1, ["n", features])],
        [info("label", 7, ["n"]), info("scores", 1, ["n", 3])],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    source, out = tmp_path / "m.onnx", tmp_path / "o.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), source)
    inputs = [{"x": rng.standard_normal((8, features)).astype(np.float32)} for _ in range(4)]
    report = api.shrink(source, out, api.Options(calibration=inputs))
    assert ("lower-ml" in [step.name for step in report.steps]) == lowered
    assert out.stat().st_size <= source.stat().st_size


# -------------------------------------------------------------------------------------- the goal


def misses(goal: Goal, before: list[np.ndarray], after: list[np.ndarray]) -> list[str]:
    from onnxshrink.trials import Answers

    a, b = Answers(("y",), [before]), Answers(("y",), [after])
    return goal.misses(compare_outputs(["y"], [before], [after]), a, b)


def test_without_a_goal_probabilities_must_keep_their_largest() -> None:
    rows = np.full((100, 3), 0.3, np.float32)
    rows[:, 0] = 0.4
    swapped = rows.copy()
    swapped[:2] = [0.39, 0.4, 0.21]
    assert misses(Goal(), [rows], [rows]) == []
    assert misses(Goal(), [rows], [swapped]) == ["top-1 agreement of 'y' is 0.9800, below 0.99"]
    # The same rows as scores say nothing about classes; the likeness is well above .99.
    assert misses(Goal(), [rows * 2], [swapped * 2]) == []


def test_the_scale_of_outputs_must_stay() -> None:
    """Their cosine is 1: an embedding that is 40 % too long."""
    rows = np.linspace(1, 2, 40, dtype=np.float32).reshape(5, 8)
    assert misses(Goal(), [rows], [rows * 1.1]) == []
    assert misses(Goal(), [rows], [rows * 1.4]) == ["likeness of 'y' is 0.9459, below 0.99"]


def test_measures_must_keep_each_of_their_values() -> None:
    """One number a row, or numbers of several kinds, mean something each."""
    one = np.linspace(1, 2, 40, dtype=np.float32)[:, None]
    assert misses(Goal(), [one], [one * 1.04]) == []
    assert misses(Goal(), [one], [one * 1.1]) == ["relative error of 'y' is 0.1, above 0.05"]
    boxes = np.concatenate([300 * one, 200 * one, *[one / 3] * 8], axis=1)
    off = boxes.copy()
    off[:, 4] *= 1.13
    assert misses(Goal(), [boxes], [off]) == ["relative error of 'y' [:, 4] is 0.13, above 0.05"]
    assert misses(Goal(max_error=0.1), [boxes], [off])
    assert not misses(Goal(max_error=0.2), [boxes], [off])


def test_probabilities_in_half_precision_are_classes() -> None:
    """Rows of float16 miss a sum of 1 by up to .01."""
    rows = np.full((100, 3), 0.3, np.float16)
    rows[:, 0] = 0.405
    swapped = rows.copy()
    swapped[:2] = [0.3, 0.405, 0.3]
    assert misses(Goal(), [rows], [swapped]) == ["top-1 agreement of 'y' is 0.9800, below 0.99"]


def test_texts_may_differ_as_often_as_numbers() -> None:
    texts = np.array(["a", "b"] * 100)
    other = texts.copy()
    other[0] = "b"
    assert misses(Goal(), [texts], [other]) == []


def test_labels_must_agree() -> None:
    labels = np.arange(100)
    wrong = labels.copy()
    wrong[:2] += 1
    assert misses(Goal(), [labels], [labels]) == []
    assert misses(Goal(), [labels], [wrong])


def test_nan_is_a_miss_of_every_goal() -> None:
    good, bad = np.ones((4, 3), np.float32), np.full((4, 3), np.nan, np.float32)
    for goal in (
        Goal(),
        Goal(max_error=100.0),
        Goal(max_drop=0.5, metric=lambda o: o[0][0].mean()),
    ):
        assert misses(goal, [good], [bad]), goal
