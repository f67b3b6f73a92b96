"""The recipes of the package: they parse, work on every model, and are stored as they say."""

from pathlib import Path

import numpy as np
import pytest
from command_line import Run
from hard_models import HARD

from onnxshrink.contract import Settings
from onnxshrink.errors import RecipeError
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import packed
from onnxshrink.options import build
from onnxshrink.pipeline import run
from onnxshrink.recipe import Recipe, find_pass, recipe_names, recipe_summary, recipe_text
from onnxshrink.runtime.worker import Worker

ROOT = Path(__file__).parent.parent
VISION = ROOT / "models" / "vision_cnn"
NAMES = ("deep-compression", "edge-fast", "edge-small", "web")
PACKED = {"deep-compression", "web"}
CODED = {"edge-fast"}


def test_all_are_found() -> None:
    assert recipe_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_what_it_is_for(name: str) -> None:
    lines = recipe_text(name).splitlines()
    assert lines[0] == f"# {recipe_summary(name)}"
    assert recipe_summary(name).endswith(".")
    assert lines[1] == "#"
    assert max(map(len, lines)) <= 110
    recipe = Recipe.find(name)
    stored = "packed" if name in PACKED else "coded" if name in CODED else "auto"
    assert recipe.storage == stored
    assert Recipe.parse(recipe.to_yaml()) == recipe


def test_storage_is_part_of_a_recipe() -> None:
    text = "version: 1\nstorage: packed\nsteps: [clean]\n"
    assert Recipe.parse(text).storage == "packed"
    assert "storage: packed" in Recipe.parse(text).to_yaml()
    assert "storage" not in Recipe.parse("version: 1\nsteps: [clean]").to_yaml()
    with pytest.raises(RecipeError, match=r"'storage' takes one of auto, .*coded, not 'zip'"):
        Recipe.parse(text.replace("packed", "zip"))
    with pytest.raises(RecipeError, match="unknown key 'storge'; did you mean 'storage'"):
        Recipe.parse(text.replace("storage", "storge"))


def test_what_stands_in_two_places_is_written_twice() -> None:
    same = {"dtype": "int4"}
    step = build(find_pass("quantize-weights"), {"layers": {"a": same, "b": same}}, "here")
    text = Recipe((step,)).to_yaml()
    assert text.count("dtype: int4") == 2
    assert not set("&*") & set(text)
    assert Recipe.parse(text).steps == (step,)


def test_names_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="wob: no such recipe or file; did you mean 'web'"):
        Recipe.find("wob")
    with pytest.raises(RecipeError, match=r"wob\.yaml: cannot be read"):
        Recipe.find("wob.yaml")
    (tmp_path / "own").write_text("version: 1\nsteps: [clean]")
    assert [step.name for step in Recipe.find("own").steps] == ["clean"]
    assert [step.name for step in Recipe.find(tmp_path / "own").steps] == ["clean"]


def test_listed_and_explained(cli: Run) -> None:
    assert all(f"| {name} | {recipe_summary(name)} |" in cli("recipes").out for name in NAMES)
    assert '"web": "' in cli("recipes", "--json").out
    assert cli("explain", "web").out == recipe_text("web")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", ["tied", "branches", "loop", "function"])
def test_on_hard_models(name: str, case: str, worker: Worker, tmp_path: Path) -> None:
    """A step that finds nothing, or may not stand, ends nothing."""
    hard = HARD[case]()
    source = Model.load(hard.save(tmp_path))
    result = run(Recipe.find(name).steps, source, Settings(feeds=hard.feeds), worker)
    assert result.report.bytes_after <= result.report.bytes_before
    assert all(step.reason for step in result.report.steps if step.status == "rolled back")


@pytest.mark.parametrize("name", NAMES)
def test_without_data(name: str, cli: Run) -> None:
    source = ROOT / "models" / "logistic_regression" / "model.onnx"
    done = cli("apply", name, source, "out.onnx")
    assert done.code == 0
    assert Path("out.onnx").is_file()


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("name", "ratio", "agreement"),
    [("deep-compression", 15, 0.9), ("edge-fast", 8, 0.97), ("edge-small", 5, 0.97),
     ("web", 6, 0.95)],
)  # fmt: skip
def test_on_a_real_model(
    name: str, ratio: float, agreement: float, cli: Run, worker: Worker
) -> None:
    with np.load(VISION / "calibration.npz") as inputs:
        np.savez("inputs.npz", image=inputs["image"][:64])
    words = ("apply", name, VISION / "model.onnx", "small.onnx")
    done = cli(*words, "--calibration", "inputs.npz", "--no-budget", "--json")
    assert done.code == 0
    assert packed.is_packed("small.onnx") == (name in PACKED)
    if name in PACKED:  # the command line goes first
        assert cli("unpack", "small.onnx", "plain.onnx").code == 0
    size = sum(path.stat().st_size for path in Path().glob("small.onnx*"))
    assert (VISION / "model.onnx").stat().st_size / size > ratio
    plain = "plain.onnx" if name in PACKED else "small.onnx"
    with np.load(VISION / "test.npz") as unseen:
        feeds = [{"image": unseen["image"][:512]}]
    wanted = worker.run(VISION / "model.onnx", feeds).outputs
    found = worker.run(plain, feeds).outputs
    top = [np.concatenate([out[0] for out in outs]).argmax(1) for outs in (wanted, found)]
    assert np.mean(top[0] == top[1]) >= agreement


def test_the_command_line_overrules_the_storage(cli: Run) -> None:
    Path("recipe.yaml").write_text("version: 1\nstorage: packed\nsteps: [to-float16]")
    source = VISION / "model.onnx"
    assert cli("apply", "recipe.yaml", source, "a.onnx").code == 0
    assert packed.is_packed("a.onnx")
    assert cli("apply", "recipe.yaml", source, "b.onnx", "--storage", "single").code == 0
    assert not packed.is_packed("b.onnx")
