"""The gate of a pipeline: what it holds a model to, its exit codes and its JSON."""

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import Run
from onnx import numpy_helper

import onnxshrink

COUNT = 4


@pytest.fixture
def old(small: Path, tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    np.savez(tmp_path / "data.npz", x=rng.normal(size=(COUNT, 64)).astype(np.float32))
    return small


@pytest.fixture
def new(old: Path) -> Path:
    """The same model with its first weight 10 % larger."""
    proto = onnx.load(old)
    weight = proto.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.1, weight.name))
    onnx.save(proto, "new.onnx")
    return Path("new.onnx")


def test_every_limit_holds_or_is_said(cli: Run, old: Path, new: Path) -> None:
    Path("mine.py").write_text(
        "import numpy as np\ndef norm(outputs):\n"
        "    return -float(np.linalg.norm([o[0] for o in outputs]))\n"
    )
    words = [
        "check", new, "--baseline", old, "--calibration", "data.npz", "--json", "--metric",
        "mine.py:norm", "--max-latency", "1000000ms", "--count", COUNT,
    ]  # fmt: skip
    done = cli(*words, "--max-size", "1MB", "--max-error", "0.2", "--max-drop", "1e9")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["passed"]
    assert (report["version"], report["feeds"], report["generated"]) == (1, COUNT, False)
    found = {held["what"]: held for held in report["held"]}
    assert {"runs", "error", "metric", "drop", "latency", "slowdown"} <= found.keys()
    assert found["size"]["value"] == os.path.getsize(new)
    assert found["error"]["value"] > 0.05
    assert found["latency"]["unit"] == "ms"
    done = cli(*words, "--max-size", "1kB", "--max-error", "0.01", "--max-drop", "0")
    report = json.loads(done.out)
    assert done.code == 1
    missed = {held["what"] for held in report["held"] if not held["passed"]}
    drop = found["drop"]["value"] > 0
    assert missed == {"size", "error", *(["drop"] if drop else [])}
    assert done.err.startswith("error: size ")
    assert "(asked for: 1.0 kB)" in done.err
    assert len(done.err.splitlines()) == 1


def test_a_model_alone(cli: Run, old: Path) -> None:
    done = cli("check", old, "--calibration", "data.npz", "--max-latency", "1000000")
    assert done.code == 0
    assert done.out.endswith("passed\n")
    proto = onnx.load(old)
    weight = proto.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.nan, weight.name))
    onnx.save(proto, "broken.onnx")
    done = cli("check", "broken.onnx", "--calibration", "data.npz")
    assert (done.code, done.err) == (
        1, f"error: runs -: {COUNT} outputs hold NaN or infinity\n",
    )  # fmt: skip
    assert cli("check", old).err == "warning: inputs are generated; pass --calibration\n"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--max-error", "1"], 2, "--max-error needs a --baseline to hold against"),
        (["--max-latency", "1.1x"], 2, "--max-slowdown needs a --baseline"),
        (["--max-latency", "fast"], 2, "--max-latency takes 12ms or 1.1x, not 'fast'"),
        (["--baseline", "none.onnx", "--max-drop", "1"], 2, "--max-drop needs a --metric"),
        (["--baseline", "none.onnx"], 3, "none.onnx: no such file"),
        (["--baseline", "data.npz"], 3, "data.npz: holds arrays; name the model"),
        (["--max-size", "big"], 2, "--max-size takes a size such as 5MB"),
    ],
)
def test_what_it_cannot_hold(cli: Run, old: Path, words: list[str], code: int, said: str) -> None:
    done = cli("check", old, "--calibration", "data.npz", *words)
    assert done.code == code
    assert said in done.err


@pytest.mark.usefixtures("one_worker")
def test_from_python(old: Path, new: Path) -> None:
    found = onnxshrink.check(new, baseline=old, max_error=1e-9, max_slowdown=1e9)
    assert [line.split()[0] for line in found.missed] == ["error"]
    assert found.generated
    assert found.held[-1].what == "slowdown"


def test_a_missed_goal_leaves_an_older_result(cli: Run, small: Path) -> None:
    """With its data; where nothing stands, or where that is asked for, the best is written."""
    words = ["shrink", small, "out.onnx", "--no-bench", "--max-size", "1kB"]
    done = cli(*words)
    assert (done.code, "error: out.onnx: written, " in done.err) == (1, True)
    best = Path("out.onnx").read_bytes()
    assert cli("clean", small, "out.onnx", "--storage", "external").code == 0
    (data,) = Path().glob("out.onnx.*.data")
    older = {path: path.read_bytes() for path in (Path("out.onnx"), data)}
    done = cli(*words)
    assert done.code == 1
    assert "out.onnx: left as it was, but the goal was missed: " in done.err
    assert "out.onnx is as it was; --keep-best" in done.out
    assert {path: path.read_bytes() for path in Path().glob("out.onnx*")} == older
    done = cli(*words, "--keep-best")
    assert (done.code, "error: out.onnx: written, " in done.err) == (1, True)
    assert {path.name: path.read_bytes() for path in Path().glob("out.onnx*")} == {"out.onnx": best}
