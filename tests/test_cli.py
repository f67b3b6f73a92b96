"""Every command on real models, and every bad input: one line, the right code, nothing written."""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import onnx
import pytest
from hard_models import rows, tensor, text, weight

from onnxshrink import commands
from onnxshrink.cli import main
from onnxshrink.recipe import pass_names
from onnxshrink.report import Table
from onnxshrink.runtime.worker import Worker

MODELS = Path(__file__).parent.parent / "models"
NAMES = ("recommender", "vision_cnn", "logistic_regression")


def model_of(name: str) -> str:
    return str(MODELS / name / "model.onnx")


def data_of(name: str) -> str:
    return str(MODELS / name / "calibration.npz")


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def cli(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    worker: Worker,
    tmp_path: Path,
) -> Run:
    """Runs a command in an empty folder; the process that runs models is everybody's."""
    monkeypatch.setattr("onnxshrink.runtime.worker.Worker", lambda: contextlib.nullcontext(worker))
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> Done:
        with pytest.raises(SystemExit) as stopped:
            main([str(word) for word in words], prog_name="onnxshrink")
        code = stopped.value.code
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return Done(code if isinstance(code, int) else 0, said.out, said.err)

    return run


@pytest.fixture
def refused(cli: Run, tmp_path: Path) -> Run:
    """Runs a command that must fail: one line that says why, and not a byte changed."""

    def contents() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in sorted(tmp_path.rglob("*")) if p.is_file()}

    def run(code: int, *words: object) -> Done:
        before = contents()
        done = cli(*words)
        assert done.code == code, done.err
        lines = done.err.splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        assert len(errors) == 1, done.err
        assert len([line for line in lines if not line.startswith("warning: ")]) == 1, done.err
        assert contents() == before
        assert not list(tmp_path.rglob(".*")), "a temporary file was left behind"
        return done

    return run


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A model of one layer."""
    path = tmp_path / "in.onnx"
    proto = text(
        "g (float[n, 64] x) => (float[n, 64] y) { a = MatMul(x, w)  y = Relu(a) }",
        w=weight(1, 64, 64),
    )
    path.write_bytes(proto.SerializeToString())
    return path


# -------------------------------------------------------------------------------- what must work


@pytest.mark.parametrize("name", NAMES)
def test_shrink_and_apply_give_the_same_bytes(cli: Run, name: str, tmp_path: Path) -> None:
    source, data = model_of(name), data_of(name)
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
    assert report["ratio"] > 4
    assert report["warnings"] == []
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
    assert 3.5 < os.path.getsize(model_of("recommender")) / os.path.getsize("small.onnx") < 4.5


def test_shrink_measures_latency_and_writes_every_report(cli: Run) -> None:
    name = "logistic_regression"
    for suffix in ("json", "md", "html"):
        bench = "--bench" if suffix == "json" else "--no-bench"
        done = cli(
            "shrink", model_of(name), "small.onnx", "--calibration", data_of(name), bench,
            "--report", f"report.{suffix}",
        )  # fmt: skip
        assert done.code == 0, done.err
    report = json.loads(Path("report.json").read_text())
    assert report["bench"]["low"] <= report["bench"]["ratio"] <= report["bench"]["high"]
    assert "| lower-ml | done |" in Path("report.md").read_text()
    page = Path("report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "smaller" in page
    assert page.count("<table>") == page.count("</table>") >= 2


def test_a_goal_that_cannot_be_met_is_exit_1_with_the_best_result(cli: Run) -> None:
    name = "recommender"
    done = cli(
        "shrink", model_of(name), "small.onnx", "--calibration", data_of(name), "--no-bench",
        "--max-size", "1kB", "--target-ratio", "100", "--json",
    )  # fmt: skip
    assert done.code == 1
    assert done.err.startswith("error: small.onnx: written, ")
    assert "more than 1.0 kB" in done.err
    assert "less than 100x" in done.err
    assert json.loads(done.out)["bytes_after"] == os.path.getsize("small.onnx")


def test_a_metric_of_ones_own(cli: Run) -> None:
    Path("mine.py").write_text(
        "import numpy as np\n"
        "def spread(outputs):\n"
        "    return float(np.mean([part[0].std() for part in outputs]))\n"
    )
    name = "recommender"
    words = ["shrink", model_of(name), "small.onnx", "--calibration", data_of(name), "--no-bench"]
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
    assert Path("out.onnx.data").stat().st_size >= 64 * 64 * 2
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
    assert done.stderr == "error: none.onnx: no such file\n"


# ------------------------------------------------------------------------------------ bad input


def write(path: Path, proto: onnx.ModelProto) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def missing(folder: Path) -> Path:
    return folder / "none.onnx"


def directory(folder: Path) -> Path:
    (folder / "model.onnx").mkdir()
    return folder / "model.onnx"


def empty(folder: Path) -> Path:
    (folder / "bad.onnx").touch()
    return folder / "bad.onnx"


def truncated(folder: Path) -> Path:
    whole = (folder / "in.onnx").read_bytes()
    (folder / "bad.onnx").write_bytes(whole[: len(whole) // 2])
    return folder / "bad.onnx"


def not_onnx(folder: Path) -> Path:
    (folder / "bad.onnx").write_bytes(b"PK\x03\x04 an archive, say")
    return folder / "bad.onnx"


def cyclic(folder: Path) -> Path:
    proto = text("g (float[n] x) => (float[n] y) { a = Add(x, b)  b = Relu(a)  y = Neg(b) }")
    return write(folder / "bad.onnx", proto)


def dangling(folder: Path) -> Path:
    proto = text("g (float[n, 64] x) => (float[n, 64] y) { y = MatMul(x, w) }")
    return write(folder / "bad.onnx", proto)


def unknown_opset(folder: Path) -> Path:
    proto = text("g (float[n, 64] x) => (float[n, 64] y) { y = Relu(x) }")
    proto.opset_import[0].version = 999
    return write(folder / "bad.onnx", proto)


def custom_operator(folder: Path) -> Path:
    proto = text(
        '<ir_version: 8, opset_import: ["": 17, "acme": 1]>'
        "g (float[n, 64] x) => (float[n, 64] y) { y = acme.Mystery(x) }"
    )
    return write(folder / "bad.onnx", proto)


def wrong_length(folder: Path) -> Path:
    proto = text("g (float[n, 64] x) => (float[n, 64] y) { y = MatMul(x, w) }")
    bad = tensor("w", weight(1, 64, 64))
    bad.raw_data = bad.raw_data[:-4]
    proto.graph.initializer.append(bad)
    return write(folder / "bad.onnx", proto)


def overflowing(folder: Path) -> Path:
    proto = text("g (float[n, 64] x) => (float[n, 64] y) { y = MatMul(x, w) }")
    bad = tensor("w", weight(1, 64, 64))
    bad.dims[:] = [2**62, 2**62]
    proto.graph.initializer.append(bad)
    return write(folder / "bad.onnx", proto)


def external_data(folder: Path, location: str, length: int = 64 * 64 * 4) -> Path:
    proto = text("g (float[n, 64] x) => (float[n, 64] y) { y = MatMul(x, w) }")
    stub = onnx.TensorProto(name="w", dims=[64, 64], data_type=1)
    stub.data_location = onnx.TensorProto.EXTERNAL
    stub.external_data.add(key="location", value=location)
    stub.external_data.add(key="length", value=str(length))
    proto.graph.initializer.append(stub)
    return write(folder / "bad.onnx", proto)


def data_missing(folder: Path) -> Path:
    return external_data(folder, "none.data")


def data_truncated(folder: Path) -> Path:
    (folder / "short.data").write_bytes(bytes(100))
    return external_data(folder, "short.data")


def data_escaping(folder: Path) -> Path:
    inner = folder / "inner"
    inner.mkdir()
    (folder / "secret.data").write_bytes(bytes(64 * 64 * 4))
    return external_data(inner, "../secret.data")


BAD_MODELS = (
    missing, directory, empty, truncated, not_onnx, cyclic, dangling, unknown_opset,
    custom_operator, wrong_length, overflowing, data_missing, data_truncated, data_escaping,
)  # fmt: skip


@pytest.mark.parametrize("make", BAD_MODELS, ids=lambda make: make.__name__)
def test_a_bad_model(
    refused: Run, small: Path, make: Callable[[Path], Path], tmp_path: Path
) -> None:
    bad = make(tmp_path)
    done = refused(3, "shrink", bad, "out.onnx")
    assert str(bad) in done.err
    refused(3, "quantize-weights", bad, "out.onnx")
    refused(3, "compare", small, bad)
    if make not in (cyclic, dangling, custom_operator, unknown_opset):  # these can be looked at
        refused(3, "inspect", bad)


def wrong_name(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"X": feed["x"]}


def wrong_shape(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"x": feed["x"][:, :63]}


def wrong_dtype(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"x": feed["x"].astype("U")}


def with_nan(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    feed["x"][1, 1] = np.nan
    return feed


def nothing(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (wrong_name, "input 'x' is missing; given: 'X'"),
        (wrong_shape, "input 'x' has shape [3, 63], but the model takes [n, 64]"),
        (wrong_dtype, "input 'x' is <U"),
        (with_nan, "input 'x' holds NaN"),
        (nothing, "input 'x' is missing"),
    ],
    ids=["name", "shape", "dtype", "nan", "nothing"],
)
def test_bad_inputs(refused: Run, small: Path, spoil: Callable[..., dict], said: str) -> None:
    np.savez("data.npz", **spoil(rows(3, 64)[0]))
    done = refused(3, "shrink", small, "out.onnx", "--calibration", "data.npz")
    assert said in done.err
    assert "data.npz" in done.err


@pytest.mark.parametrize("name", ["none.npz", "folder", "damaged.npz", "text.txt"])
def test_inputs_that_cannot_be_read(refused: Run, small: Path, name: str) -> None:
    Path("folder").mkdir()
    Path("damaged.npz").write_bytes(b"PK\x03\x04")
    Path("text.txt").write_text("1 2 3")
    assert name in refused(3, "quantize-weights", small, "out.onnx", "--calibration", name).err


def test_out_is_in(refused: Run, small: Path) -> None:
    assert "never modified" in refused(2, "shrink", small, small).err
    Path("link.onnx").hardlink_to(small)
    assert "never modified" in refused(2, "clean", small, "link.onnx").err


def test_out_is_nowhere(refused: Run, small: Path) -> None:
    Path("folder").mkdir()
    assert "there is no folder none" in refused(2, "shrink", small, "none/out.onnx").err
    assert "is a folder" in refused(2, "shrink", small, "folder").err
    assert (
        "there is no folder" in refused(2, "clean", small, "out.onnx", "--report", "none/r.md").err
    )
    assert "takes a .json" in refused(2, "clean", small, "out.onnx", "--report", "r.pdf").err


def test_no_permission(refused: Run, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated: tests may run as root, whom no folder refuses."""
    make_folder, open_file = os.mkdir, open

    def mkdir(path, *rest, **options):
        if "locked" in str(path):
            raise PermissionError(13, "Permission denied")
        return make_folder(path, *rest, **options)

    def opened(path, mode="r", *rest, **options):
        if "locked" in str(path) and ("x" in mode or "w" in mode):
            raise PermissionError(13, "Permission denied")
        return open_file(path, mode, *rest, **options)

    make_folder("locked")
    monkeypatch.setattr("os.mkdir", mkdir)
    monkeypatch.setattr("builtins.open", opened)
    for check in ("full", "off"):
        done = refused(2, "quantize-weights", small, "locked/out.onnx", "--check", check)
        assert "locked" in done.err
        assert "Permission denied" in done.err


def test_disk_full(refused: Run, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    done = refused(2, "quantize-weights", small, "out.onnx")
    assert "No space left on device" in done.err
    done = refused(2, "quantize-weights", small, "out.onnx", "--check", "off")
    assert "out.onnx: cannot be written: No space left" in done.err


def test_ctrl_c_leaves_nothing(cli: Run, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("onnxshrink.kernels.affine.quantize", interrupt)
    done = cli("quantize-weights", small, "out.onnx")
    assert done.code == 1
    assert {path.name for path in small.parent.iterdir()} == {"in.onnx"}


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("[clean, quantise-weights]", "step 2 (quantise-weights): unknown pass"),
        ("[clean: {kep: []}]", "unknown option 'kep'; did you mean 'keep'?"),
        ("[quantize-weights: {keep: [nothing*]}]", "no weight matches 'nothing*'"),
        ("[quantize-weights: {layers: {w: {dtype: int3}}}]", "takes one of int8"),
        ("[", "not YAML"),
    ],
    ids=["pass", "option", "pattern", "override", "syntax"],
)
def test_bad_recipes(refused: Run, small: Path, recipe: str, said: str) -> None:
    Path("recipe.yaml").write_text(f"version: 1\nsteps: {recipe}")
    assert said in refused(2, "apply", "recipe.yaml", small, "out.onnx").err


def test_bad_values(refused: Run, small: Path) -> None:
    words = ("quantize-weights", small, "out.onnx")
    assert "not YAML" in refused(2, *words, "--layers", "{a: ").err
    assert "'layers' takes a mapping" in refused(2, *words, "--layers", "skip").err
    assert "'block_size' must be at least 0" in refused(2, *words, "--block-size", -1).err
    assert "no weight matches 'v'" in refused(2, *words, "--keep", "v").err
    for bad in ("x", "x:", ":1,64", "x:1;64", "x:-1,64"):
        assert "--shape takes NAME:1,3,224,224" in refused(2, *words, "--shape", bad).err
    assert "no such input" in refused(3, *words, "--shape", "z:1,64").err
    assert "takes n,64" in refused(3, *words, "--shape", "x:1,63").err.replace("?", "n")
    assert "--max-size takes" in refused(2, "shrink", small, "out.onnx", "--max-size", "big").err
    assert "unknown pass 'clen'; did you mean 'clean'" in refused(2, "explain", "clen").err


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


def test_a_bug_keeps_its_traceback(cli: Run, small: Path, monkeypatch) -> None:
    def bug(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("onnxshrink.kernels.affine.quantize", bug)
    with pytest.raises(ZeroDivisionError):
        main(["quantize-weights", str(small), "out.onnx"])
    assert not Path("out.onnx").exists()


def test_a_terminal_gets_drawn_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    table = Table("sizes", ("name", "bytes"))
    table.add("w", 12)
    commands.show(table)
    assert "sizes" in screen.getvalue()
    assert "│" in screen.getvalue()
