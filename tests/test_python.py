"""Everything that the command line does is a typed function, and the pages about it are fresh."""

import inspect
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxshrink
from onnxshrink.cli import command_names
from onnxshrink.recipe import find_pass, pass_names

ROOT = Path(__file__).parent.parent
MODEL = str(ROOT / "models" / "vision_cnn" / "model.onnx")
DATA = str(ROOT / "models" / "vision_cnn" / "calibration.npz")
#: Commands that have another name in Python, and those that show what Python sees by itself.
WITHOUT = {
    "apply": "apply_recipe", "explain": "", "passes": "", "recipes": "", "search": "evolve",
}  # fmt: skip


def test_every_command_is_a_function() -> None:
    names = dir(onnxshrink)
    for command in [*command_names(), *pass_names()]:
        name = WITHOUT.get(command, command.replace("-", "_"))
        if name:
            assert name in names
            assert callable(getattr(onnxshrink, name)), name
            assert inspect.getdoc(getattr(onnxshrink, name)), name
    assert set(onnxshrink.__all__) <= set(names)


@pytest.mark.parametrize("name", pass_names())
def test_steps_have_the_options_of_their_pass(name: str) -> None:
    step = getattr(onnxshrink, name.replace("-", "_"))
    parameters = list(inspect.signature(step).parameters)
    assert parameters[:3] == ["source", "out", "options"]
    assert parameters[3:] == list(inspect.signature(find_pass(name)).parameters)


@pytest.mark.usefixtures("one_worker")
def test_functions_do_what_commands_do(tmp_path: Path) -> None:
    options = onnxshrink.Options(calibration=DATA)
    small, packed = tmp_path / "small.onnx", tmp_path / "packed.onnx"
    report = onnxshrink.quantize_weights(MODEL, small, options, dtype="int8")
    assert report.ratio > 3
    assert "<table>" in report._repr_html_()
    assert "<body" not in report._repr_html_()
    found = onnxshrink.compare(MODEL, small, options, count=8, max_error=1e-9)
    assert 0 < found.relative_error < 0.1
    assert len(found.missed) == 1
    stored = onnxshrink.pack(small, packed)
    assert stored.bytes_after < stored.bytes_before == small.stat().st_size
    assert onnxshrink.verify(packed).tensors > 3
    plain = onnxshrink.unpack(packed, tmp_path / "plain.onnx")
    assert plain.bytes_before == stored.bytes_after
    weights = {w.name: w for w in onnx.load(tmp_path / "plain.onnx").graph.initializer}
    for tensor in onnx.load(small).graph.initializer:
        np.testing.assert_array_equal(
            onnx.numpy_helper.to_array(weights[tensor.name]), onnx.numpy_helper.to_array(tensor)
        )
    assert onnxshrink.inspect(small).to_dict()
    bench = onnxshrink.bench([MODEL, small], options, rounds=6)
    assert [model.path for model in bench.models] == [MODEL, str(small)]
    parts = onnxshrink.sensitivity(MODEL, options=options, settings={"dtype": "int4"}, count=2)
    assert len(parts.parts) > 3


def test_slips_get_hints() -> None:
    with pytest.raises(AttributeError, match="no attribute 'shrnk'; did you mean 'shrink'"):
        onnxshrink.shrnk  # type: ignore[attr-defined]  # noqa: B018
    for step in (onnxshrink.clean, onnxshrink.shrink, onnxshrink.compare, onnxshrink.check):
        given = ("in.onnx", "out.onnx", DATA)[: 2 if step is onnxshrink.check else 3]
        with pytest.raises(onnxshrink.RecipeError, match=r"options takes .*, not a str"):
            step(*given)  # type: ignore[arg-type]
    with pytest.raises(onnxshrink.RecipeError, match="did you mean 'edge-fast'"):
        onnxshrink.apply_recipe("edgefast", MODEL, "out.onnx")
    with pytest.raises(onnxshrink.RecipeError, match="takes a share of 0 to 1"):
        onnxshrink.Goal(min_agreement=99)


def test_what_is_written_from_the_code_is_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["api_reference.py", "--check"])
    runpy.run_path(str(ROOT / "tools" / "api_reference.py"), run_name="__main__")


def test_it_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "onnxshrink", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert onnxshrink.__version__ in done.stdout
