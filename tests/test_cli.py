"""Every command on real models: exit codes, streams, and what is written."""

import io
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import onnx
import pytest
from command_line import Run
from example_files import make_models

from onnxshrink.cli import main
from onnxshrink.cli._terminal import show
from onnxshrink.recipe import pass_names
from onnxshrink.report import Table

MODELS = Path(__file__).parent.parent / "models"
NAMES = ("recommender", "vision_cnn", "logistic_regression")


def model_of(name: str) -> str:
    return str(MODELS / name / "model.onnx")


def data_of(name: str) -> str:
    return str(MODELS / name / "calibration.npz")


@pytest.mark.parametrize("name", NAMES)
def test_shrink_and_apply_give_the_same_bytes(
    cli: Run, name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    models = tmp_path_factory.mktemp("few") / "models"
    make_models(models)
    source, data = models / name / "model.onnx", models / name / "calibration.npz"
    done = cli(
        "shrink", source, "small.onnx", "--calibration", data, "--recipe-out", "recipe.yaml",
        "--json", "--no-bench",
    )  # fmt: skip
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["bytes_before"] == os.path.getsize(source)
    assert report["bytes_after"] == os.path.getsize("small.onnx")
    assert report["ratio"] == pytest.approx(
        report["bytes_before"] / report["bytes_after"], rel=1e-3
    )
    assert report["ratio"] > 3.5  # scores of a recommender are close: their order is dear to keep
    assert report["promises"]
    assert not report["missed"]
    done = cli("apply", "recipe.yaml", source, "-o", "again.onnx", "--calibration", data)
    assert done.code == 0, done.err
    assert Path("again.onnx").read_bytes() == Path("small.onnx").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"small.onnx", "again.onnx", "recipe.yaml"}


def test_shrink_without_data_stays_at_int8_and_warns(cli: Run) -> None:
    done = cli(
        "shrink", model_of("recommender"), "small.onnx", "--no-bench", "--recipe-out", "r.yaml"
    )
    assert done.code == 0
    assert "warning: checked on generated inputs only" in done.err
    assert "int4" not in Path("r.yaml").read_text()
    assert 3.5 < os.path.getsize(model_of("recommender")) / os.path.getsize("small.onnx") < 6


def test_shrink_of_what_is_small_already_says_what_else_there_is(cli: Run, small: Path) -> None:
    assert cli("quantize-weights", small, "int8.onnx").code == 0
    done = cli("shrink", "int8.onnx", "again.onnx", "--no-bench", "--storage", "single")
    assert done.code == 0
    assert "warning: hardly any smaller; --storage packed codes what the weights are" in done.err
    packed = cli("shrink", "int8.onnx", "packed.onnx", "--no-bench", "--storage", "packed")
    assert "hardly any smaller" not in packed.err


def test_shrink_measures_latency_and_writes_every_report(cli: Run, small: Path) -> None:
    for suffix in ("json", "md", "html"):
        bench = "--bench" if suffix == "json" else "--no-bench"
        done = cli("shrink", small, "small.onnx", bench, "--report", f"report.{suffix}")
        assert done.code == 0, done.err
    report = json.loads(Path("report.json").read_text())
    assert report["bench"]["low"] <= report["bench"]["ratio"] <= report["bench"]["high"]
    assert re.search(r"\| quantize-[a-z]+ \| done \|", Path("report.md").read_text())
    page = Path("report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "smaller" in page
    assert page.count("<table>") == page.count("</table>") >= 2


def test_a_goal_that_cannot_be_met_is_exit_1_with_the_best_result(cli: Run, small: Path) -> None:
    np.savez("x.npz", x=np.random.default_rng(0).normal(size=(32, 64)).astype(np.float32))
    done = cli(
        "shrink", small, "small.onnx", "--calibration", "x.npz", "--no-bench",
        "--max-size", "1kB", "--target-ratio", "100", "--json",
    )  # fmt: skip
    assert done.code == 1
    assert done.err.startswith("error: small.onnx: written, ")
    assert "more than 1.0 kB" in done.err
    assert "less than 100x" in done.err
    assert json.loads(done.out)["bytes_after"] == os.path.getsize("small.onnx")


def test_a_metric_of_ones_own(cli: Run, small: Path) -> None:
    Path("mine.py").write_text(
        "import numpy as np\n"
        "def spread(outputs):\n"
        "    return float(np.mean([part[0].std() for part in outputs]))\n"
    )
    np.savez("x.npz", x=np.random.default_rng(0).normal(size=(32, 64)).astype(np.float32))
    words = ["shrink", small, "small.onnx", "--calibration", "x.npz", "--no-bench"]
    done = cli(*words, "--metric", "mine.py:spread", "--max-drop", "0.001")
    assert done.code == 0, done.err
    done = cli(*words, "--metric", "mine.py:spred", "--max-drop", "0.001")
    assert done.code == 3
    assert "has no function 'spred'; did you mean 'spread'" in done.err


def test_compare(cli: Run) -> None:
    source, data = model_of("vision_cnn"), data_of("vision_cnn")
    assert cli("quantize-weights", source, "small.onnx", "--calibration", data).code == 0
    done = cli("compare", source, "small.onnx", "--calibration", data, "--json")
    found = json.loads(done.out)
    assert done.code == 0
    assert 0 < found["outputs"][0]["relative_error"] < 0.05
    done = cli("compare", source, "small.onnx", "--inputs", data, "--max-error", "1e-9")
    assert done.code == 1
    assert done.err.startswith("error: ")
    assert len(done.err.splitlines()) == 1
    assert "| output |" in done.out
    done = cli("compare", source, source, "--inputs", data, "--max-error", "0", "--atol", "0")
    assert done.code == 0
    assert cli("compare", source, "small.onnx", "--min-agreement", "0.9").code == 0


def test_bench(cli: Run) -> None:
    source = model_of("logistic_regression")
    done = cli("bench", source, source, "--rounds", "10", "--json")
    assert done.code == 0
    models = json.loads(done.out)["models"]
    assert [row["file_bytes"] for row in models] == [os.path.getsize(source)] * 2
    assert models[1]["ratio_low"] < models[1]["ratio"] < models[1]["ratio_high"]
    assert done.err == "warning: inputs are generated; pass --calibration\n"
    with_data = ("--calibration", data_of("logistic_regression"), "--rounds", "10")
    assert "| model |" in cli("bench", source, *with_data).out


def test_inspect(cli: Run) -> None:
    source = model_of("vision_cnn")
    done = cli("inspect", source, "--json")
    assert done.code == 0
    assert json.loads(done.out)
    assert "Conv" in cli("inspect", source).out
    assert cli("shrink", source, "small.onnx", "--no-bench").code == 0
    both = cli("inspect", source, "small.onnx")
    assert both.code == 0
    assert both.out.strip()
    assert len(json.loads(cli("inspect", source, "small.onnx", "--json").out)) == 2
    stored = onnx.load(source).graph.initializer[0].name
    assert "| operator | Conv |" in cli("inspect", source, "--layer", stored).out


def test_passes_and_explain(cli: Run) -> None:
    done = cli("passes", "--json")
    assert tuple(json.loads(done.out)) == pass_names()
    for name in pass_names():
        assert name in cli("passes").out
        said = cli("explain", name)
        assert said.code == 0
        assert said.out.startswith(f"{name}\n")
        assert "max_error: " in said.out


def test_help_of_everything(cli: Run) -> None:
    top = cli("--help").out
    with click.Context(main) as context:
        names = main.list_commands(context)
    for name in names:
        assert name in top
        done = cli(name, "--help")
        assert done.code == 0
        assert "Usage: onnxshrink" in done.out
        if name in pass_names():
            assert "--max-error" in done.out


@pytest.mark.parametrize("name", sorted(set(pass_names()) - {"surgeon"}))
def test_every_pass_is_a_command(cli: Run, name: str) -> None:
    """On the model whose weights are in attributes, which only one of them can change."""
    source = model_of("logistic_regression")
    done = cli(name, source, "out.onnx", "--json", "--seed", "1")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert [step["name"] for step in report["steps"]] == [name]
    assert Path("out.onnx").stat().st_size == report["bytes_after"]


def test_strict_is_exit_1_when_nothing_was_changed(cli: Run, small: Path) -> None:
    done = cli("quantize-weights", small, "out.onnx", "--min-size", 10**9, "--strict")
    assert done.code == 1
    assert done.err.splitlines()[-1] == "error: nothing was changed"
    assert "nothing was changed" in done.out
    assert onnx.load("out.onnx") == onnx.load(small)
    assert cli("quantize-weights", small, "out.onnx", "--strict").code == 0


def test_external_data_on_request(cli: Run, small: Path) -> None:
    assert cli("to-float16", small, "out.onnx", "--storage", "external").code == 0
    (data,) = Path().glob("out.onnx.*.data")
    assert data.stat().st_size >= 64 * 64 * 2
    assert Path("out.onnx").stat().st_size < 1000
    done = cli("compare", small, "out.onnx", "--max-error", "1e-3")
    assert done.code == 0


def test_check_off_says_so(cli: Run, small: Path) -> None:
    done = cli("quantize-weights", small, "out.onnx", "--check", "off")
    assert done.code == 0
    assert "warning: the outputs were not checked" in done.err


def test_a_process_of_its_own(small: Path) -> None:
    """Nothing of the above patched: exit codes, streams, and the worker."""
    command = [sys.executable, "-m", "onnxshrink"]
    done = subprocess.run(
        [*command, "quantize-weights", small, small.parent / "out.onnx", "--json"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ratio"] > 3
    done = subprocess.run(
        [*command, "quantize-weights", "none.onnx", "out.onnx"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("error: none.onnx: no such file")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["shrnk", "a", "b"], "no such command 'shrnk'; did you mean 'shrink'?"),
        (["shrink", "a"], "name the output once"),
        (["shrink", "a", "b", "-o", "c"], "name the output once"),
        (["shrink"], "Missing argument 'IN'"),
        (["shrink", "a", "b", "--target-ration", "3"], "--target-ratio"),
        (["quantize-weights", "a", "b", "--dtype", "int5"], "'int5' is not one of"),
        (["quantize-weights", "a", "b", "--check", "some"], "'some' is not one of"),
    ],
)
def test_usage(cli: Run, words: list[str], said: str) -> None:
    done = cli(*words)
    assert done.code == 2
    assert said in done.err
    assert done.out == ""


def test_a_bug_is_named_and_has_an_exit_code_of_its_own(
    refused: Run, small: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def bug(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("onnxshrink.kernels.affine.quantize", bug)
    done = refused(70, "quantize-weights", small, "out.onnx")
    assert "internal error, please report it: ZeroDivisionError: a bug" in done.err
    with caplog.at_level(logging.DEBUG, "onnxshrink"):
        refused(70, "quantize-weights", small, "out.onnx")
    assert [row.exc_info and row.exc_info[0] for row in caplog.records if row.exc_info] == [
        ZeroDivisionError
    ]


@pytest.mark.bug
def test_a_bug_in_one_of_several_steps_is_a_step_rolled_back(
    cli: Run, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("onnxshrink.kernels.affine.quantize", bug)
    Path("recipe.yaml").write_text("version: 1\nsteps:\n- quantize-weights: {}\n- to-float16: {}\n")
    done = cli("apply", "recipe.yaml", small, "out.onnx", "--json")
    assert done.code == 0
    first, second = json.loads(done.out)["steps"]
    assert (first["status"], second["status"]) == ("rolled back", "done")
    assert "internal error, please report it: ZeroDivisionError: a bug" in first["reason"]
    assert any("internal error" in warning for warning in json.loads(done.out)["warnings"])


def test_a_terminal_gets_drawn_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    table = Table("sizes", ("name", "bytes"))
    table.add("w", 12)
    show(table)
    assert "sizes" in screen.getvalue()
    assert "│" in screen.getvalue()


def test_calibration_is_kept_for_the_next_run(
    cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [
        "quantize-weights", model_of("recommender"), "small.onnx", "--rounding", "gptq",
        "--dtype", "int4", "--calibration", data_of("recommender"), "--calibration-cache", "cache",
        "--no-budget",
    ]  # fmt: skip
    assert cli(*words).code == 0
    first, kept = (tmp_path / "small.onnx").read_bytes(), (tmp_path / "cache").read_bytes()

    def observe(*_: object) -> None:
        raise AssertionError("observed again")

    monkeypatch.setattr("onnxshrink.graph.analysis.instrument.instrument", observe)
    assert cli(*words).code == 0
    assert (tmp_path / "small.onnx").read_bytes() == first
    assert (tmp_path / "cache").read_bytes() == kept
    (tmp_path / "cache").write_bytes(kept[:-9])
    done = cli(*words)
    assert done.code == 3
    assert "not a calibration cache, or a damaged one" in done.err
