"""The effect of every weight on the outputs is that of numpy, and outliers are left alone."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from command_line import Run
from hard_models import text

from onnxshrink import api
from onnxshrink.contract import Settings
from onnxshrink.errors import RecipeError
from onnxshrink.goal import Goal
from onnxshrink.graph.file.model import Model
from onnxshrink.kernels.metrics import compare_outputs
from onnxshrink.pipeline import Pass, run
from onnxshrink.recipe import Recipe, find_pass
from onnxshrink.runtime.worker import Worker
from onnxshrink.search import exclude, sensitivity
from onnxshrink.search.partial_step import PartialStep
from onnxshrink.select import Select
from onnxshrink.trials import Figures

WIDTH = 64
SOURCE = """g (float[n, 64] x) => (float[n, 64] y) {
    a = MatMul(x, w0)  b = MatMul(x, w1)  c = MatMul(x, w2)
    s = Add(a, b)  y = Add(s, c)
}"""


def arrays(outlier: float = 0.0) -> dict[str, np.ndarray]:
    """Three layers of different weight in the sum; one may have an outlier in every channel."""
    rng = np.random.default_rng(0)
    found = {
        f"w{at}": (rng.standard_normal((WIDTH, WIDTH)) * factor).astype(np.float32)
        for at, factor in enumerate((0.3, 1.0, 0.6))
    }
    if outlier:
        found["w2"][0] = outlier  # its input is zero
    return found


def feeds(count: int = 4) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    every = [rng.standard_normal((8, WIDTH)).astype(np.float32) for _ in range(count)]
    for x in every:
        x[:, 0] = 0
    return [{"x": x} for x in every]


def parts(step: Pass, worker: Worker, **weights: np.ndarray) -> PartialStep:
    model = Model.from_proto(text(SOURCE, **(weights or arrays())))
    return PartialStep(model, step, Settings(feeds=feeds()), worker)


def pruned(array: np.ndarray) -> np.ndarray:
    """Half of the weights at zero, by numpy."""
    limit = np.sort(np.abs(array).reshape(-1))[array.size // 2]
    return np.where(np.abs(array) >= limit, array, 0)


HALF: Pass = find_pass("prune-magnitude")(ratio=0.5, scope="weight")  # type: ignore[call-arg]


def expected(names: tuple[str, ...]) -> float:
    weights = arrays()
    x = np.concatenate([feed["x"] for feed in feeds()]).astype(np.float64)
    exact = sum(x @ w for w in weights.values())
    found = sum(x @ (pruned(w) if name in names else w) for name, w in weights.items())
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def test_figures_are_those_of_numpy(worker: Worker) -> None:
    found = sensitivity.measure(parts(HALF, worker))
    assert [part.name for part in found.parts] == ["w1", "w2", "w0"]
    names = [part.name for part in found.parts]
    for at, part in enumerate(found.parts):
        alone, together = expected((part.name,)), expected(tuple(names[at:]))
        np.testing.assert_allclose(part.alone.relative_error, alone, rtol=1e-5)
        np.testing.assert_allclose(part.together.relative_error, together, rtol=1e-5)
    assert found.parts[-1].alone == found.parts[-1].together
    assert found.feeds == 4


def test_both_ways_of_measuring_agree(worker: Worker) -> None:
    """Weights exchanged in a loaded model, and models changed and loaded anew."""
    step = find_pass("quantize-weights")(dtype="int4")  # type: ignore[call-arg]
    one = parts(step, worker)
    with sensitivity.exchange(one) as fast:
        assert isinstance(fast, sensitivity.Exchanged)
        quick = {name: fast.figures([name]) for name in one.changes}
    slow = sensitivity.Anew(one)
    for name, figures in quick.items():
        again = slow.figures([name])
        np.testing.assert_allclose(figures.relative_error, again.relative_error, rtol=1e-4)
        np.testing.assert_allclose(figures.cosine, again.cosine, rtol=1e-6)


def test_a_step_that_does_more_than_exchange_weights(worker: Worker) -> None:
    step = find_pass("split-lowrank")(rank=20)  # type: ignore[call-arg]
    one = parts(step, worker)
    with sensitivity.exchange(one) as measuring:
        assert isinstance(measuring, sensitivity.Anew)
    found = sensitivity.measure(one)
    whole = compare_outputs(["y"], one.original.outputs, one.effect(one.whole)[1].outputs)
    np.testing.assert_allclose(found.parts[0].together.relative_error, whole[0].relative_error)
    assert all(part.after < part.before for part in found.parts)


def test_weights_of_one_operator_are_one_part(worker: Worker) -> None:
    source = """g (float[s, b, 16] x) => (float[s, 1, b, 16] y) {
        y, h = LSTM<hidden_size = 16>(x, w, r) }"""
    rng = np.random.default_rng(0)
    proto = text(source, **{n: rng.standard_normal((1, 64, 16)).astype(np.float32) for n in "wr"})
    proto.graph.node[0].name = "cell"
    inputs = [{"x": rng.standard_normal((5, 2, 16)).astype(np.float32)}]
    one = PartialStep(Model.from_proto(proto), HALF, Settings(feeds=inputs), worker)
    (part,) = sensitivity.measure(one, by="node").parts
    assert (part.name, set(part.weights), part.kind) == ("cell", {"w", "r"}, "LSTM")
    assert part.before == 2 * 64 * 16 * 4
    assert {part.name for part in sensitivity.measure(one).parts} == {"w", "r"}


def test_steps_without_weights_are_refused(worker: Worker) -> None:
    with pytest.raises(RecipeError, match="clean: does not work weight by weight"):
        parts(find_pass("clean")(), worker)


def test_outputs_of_zeros_have_no_error() -> None:
    zeros = [[np.zeros((2, 3), np.float32)]]
    tiny = [[np.full((2, 3), 1e-9, np.float32)]]
    assert Figures.of(compare_outputs(["y"], zeros, tiny)).relative_error == 0


# -------------------------------------------------------------------------------- auto-exclude

INT4: Pass = find_pass("quantize-weights")(dtype="int4")  # type: ignore[call-arg]


def test_the_outlier_layer_alone_is_left_alone(worker: Worker) -> None:
    one = parts(INT4, worker, **arrays(outlier=60.0))
    found = exclude.find_exclusions(one, Goal(max_error=0.2), lambda *_: None)
    assert found.moved == {"w2": "float"}
    assert found.recipe.steps[0].weights.keep == ("w2",)  # type: ignore[attr-defined]
    result = run(found.recipe.steps, one.model, one.settings, worker)
    assert result.report.steps[0].status == "done"
    assert result.effect[0].relative_error <= 0.2
    changed = {row.what for row in result.report.steps[0].changes}
    assert changed & set(arrays()) == {"w0", "w1"}


def test_nothing_is_left_alone_where_the_goal_is_kept(worker: Worker) -> None:
    found = exclude.find_exclusions(parts(INT4, worker), Goal(max_error=0.3), lambda *_: None)
    assert found.moved == {}
    assert found.recipe.steps == (INT4,)


def test_a_goal_that_nothing_keeps_leaves_all_alone(worker: Worker) -> None:
    one = parts(INT4, worker)
    found = exclude.find_exclusions(one, Goal(max_error=1e-7), lambda *_: None)
    assert set(found.moved) == {"w0", "w1", "w2"}
    result = run(found.recipe.steps, one.model, one.settings, worker)
    assert result.report.steps[0].status == "nothing to do"


def test_the_fewest_are_left_alone(worker: Worker) -> None:
    """Whatever the goal, no subset of what is kept would do."""
    one = parts(HALF, worker)
    for limit in (0.25, 0.4, 0.5):
        kept = set(exclude.find_exclusions(one, Goal(max_error=limit), lambda *_: None).moved)
        every = set(arrays())
        assert expected(tuple(every - kept)) <= limit
        assert all(expected(tuple(every - kept | {name})) > limit for name in kept)


def test_the_goal_goes_before_the_bound_of_the_pass(worker: Worker) -> None:
    """What was asked for is not rolled back because the pass usually does better."""
    step = find_pass("quantize-weights")(dtype="int2", weights=Select(keep=("w0",)))  # type: ignore[call-arg]
    one = parts(step, worker)
    whole = max(row.worst for row in one.effect(one.whole)[0])
    found = exclude.find_exclusions(one, Goal(max_error=whole * 1.01), lambda *_: None)
    assert found.moved == {}
    result = run(found.recipe.steps, one.model, one.settings, worker)
    assert result.report.steps[0].status == "done"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Model.from_proto(text(SOURCE, **arrays(outlier=60.0))).save("model.onnx")
    np.savez("inputs.npz", x=np.stack([feed["x"] for feed in feeds()]))
    return tmp_path


def test_the_command_leaves_alone_and_writes_the_recipe(files: Path, cli: Run) -> None:
    result = cli(
        "quantize-weights", "model.onnx", "small.onnx", "--dtype", "int4",
        "--calibration", "inputs.npz", "--auto-exclude", "--max-error", "0.2",
        "--recipe-out", "found.yaml",
    )  # fmt: skip
    assert result.code == 0
    assert "kept at float: w2" in result.out
    api.apply_recipe(
        Recipe.load("found.yaml"), "model.onnx", "again.onnx", api.Options(calibration="inputs.npz")
    )
    assert Path("again.onnx").read_bytes() == Path("small.onnx").read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--auto-exclude"], "found on --calibration inputs"),
        (["--min-agreement", "0.9"], "--min-agreement goes with --auto-exclude"),
        (["--recipe-out", "x.yaml"], "--recipe-out goes with --auto-exclude"),
        (["--auto-exclude", "--metric", "a.py:b"], "--metric goes with --max-drop"),
        (
            ["--auto-exclude", "--calibration", "inputs.npz", "--check", "off"],
            "found on --calibration inputs",
        ),
    ],
)
def test_options_that_miss_others(words: list[str], said: str, files: Path, cli: Run) -> None:
    result = cli("quantize-weights", "model.onnx", "small.onnx", *words)
    assert result.code == 2
    assert said in result.err
    assert not Path("small.onnx").exists()


def test_a_drop_of_a_metric_is_a_goal(files: Path, cli: Run) -> None:
    Path("metric.py").write_text(
        "import numpy as np\n"
        "def score(outputs):\n"
        "    return -float(np.abs(np.concatenate([o[0] for o in outputs])).max())\n"
    )
    result = cli(
        "quantize-weights", "model.onnx", "small.onnx", "--dtype", "int4",
        "--calibration", "inputs.npz", "--auto-exclude", "--max-drop", "1e9",
        "--metric", "metric.py:score",
    )  # fmt: skip
    assert result.code == 0
    assert "kept at" not in result.out


def test_the_sensitivity_command(files: Path, cli: Run) -> None:
    words = ("sensitivity", "model.onnx", "--set", "dtype=int4", "--inputs", "inputs.npz")
    result = cli(*words, "--plot", "plot.svg")
    assert result.code == 0
    lines = [line for line in result.out.splitlines() if line.startswith("| w")]
    assert [line.split("|")[1].strip() for line in lines[1:]] == ["w2", "w1", "w0"]
    drawing = ElementTree.parse("plot.svg").getroot()
    assert len(drawing.findall("{http://www.w3.org/2000/svg}circle")) == 3
    data = json.loads(cli(*words, "--json").out)
    assert data["step"] == "quantize-weights"
    assert data["feeds"] == 4
    assert data["parts"][0]["weights"] == ["w2"]
    assert data["parts"][0]["alone"]["relative_error"] > 0.5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--step", "quantize"], "unknown pass 'quantize'"),
        (["--step", "clean"], "does not work weight by weight"),
        (["--set", "dtype"], "--set takes OPTION=VALUE, not 'dtype'"),
        (["--set", "dtyp=int4"], "did you mean 'dtype'"),
        (["--set", "layers={"], "not YAML"),
        (["--set", "only=[nothing]"], "no weight matches 'nothing'"),
        (["--plot", "plot.png"], "takes an .svg file"),
        (["--plot", "none/plot.svg"], "there is no folder none"),
    ],
)
def test_what_the_sensitivity_command_refuses(
    words: list[str], said: str, files: Path, cli: Run
) -> None:
    result = cli("sensitivity", "model.onnx", "--inputs", "inputs.npz", *words)
    assert result.code == 2
    assert said in result.err


def test_nothing_to_measure_is_said(files: Path, cli: Run) -> None:
    result = cli("sensitivity", "model.onnx", "--set", "min_size=999999")
    assert result.code == 0
    assert "quantize-weights changes nothing in model.onnx" in result.out
    assert "inputs are generated" in result.err
