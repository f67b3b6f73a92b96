"""The files of a run: none is lost, none meets another, none is half written.

A process that dies is played by an audit hook: it raises at the n-th file operation below a folder,
and at every later one, so that nothing is cleaned up.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from command_line import Run
from hard_models import text, weight

from onnxshrink import files
from onnxshrink.errors import OutputError
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import packed

OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate"}
X = {"x": np.ones((2, 64), np.float32)}


class Died(BaseException):
    """Nothing after this happens."""


class _Death:
    folder = ""
    left = -1

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.folder or event not in OPERATIONS or not isinstance(arguments[0], str):
            return
        if arguments[0].startswith(self.folder):
            self.left -= 1
            if self.left < 0:
                raise Died


_death = _Death()
sys.addaudithook(_death)


def dies(work: Callable[[], object], folder: Path, after: int) -> bool:
    """Do some work, and die at a file operation; whether it came to that."""
    _death.folder, _death.left = str(folder), after
    try:
        work()
    except Died:
        return True
    finally:
        _death.folder = ""
    return False


def model(seed: int) -> Model:
    proto = text("g (float[n, 64] x) => (float[n, 64] y) { y = MatMul(x, w) }")
    codes = np.sign(weight(seed, 64, 64)).astype(np.float32) * seed  # packs well
    proto.graph.initializer.append(onnx.numpy_helper.from_array(codes, "w"))
    return Model.from_proto(proto)


def answer(path: Path, folder: Path) -> np.ndarray:
    """What the model there answers; a packed one is unpacked first."""
    if packed.is_packed(path):
        packed.unpack(path, folder / "plain.onnx")
        path = folder / "plain.onnx"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, X)[0]
    return found


SAVES: dict[str, Callable[[Model, Path], object]] = {
    "single": lambda m, p: m.save(p, "single"),
    "external": lambda m, p: m.save(p, "external"),
    "packed": packed.save,
}


@pytest.mark.parametrize("before", ["absent", *SAVES])
@pytest.mark.parametrize("storage", SAVES)
def test_a_run_that_dies_anywhere_leaves_one_whole_model(
    storage: str, before: str, tmp_path: Path
) -> None:
    """Stopped at every file operation: the old model or the new one, with its own answers."""
    old, new = model(1), model(2)
    answers = []
    for number, each in enumerate((old, new)):
        each.save(tmp_path / f"{number}.onnx")
        answers.append(answer(tmp_path / f"{number}.onnx", tmp_path))
    for after in range(1000):
        folder = tmp_path / str(after)
        folder.mkdir()
        out = folder / "out.onnx"
        if before != "absent":
            SAVES[before](old, out)
        died = dies(lambda out=out: SAVES[storage](new, out), folder, after)
        if out.exists():
            found = answer(out, tmp_path)
            stands = [np.array_equal(found, one) for one in answers]
            assert stands[1] or (before != "absent" and stands[0])
        else:
            assert before == "absent"
        if not died:
            break
        # And the next run there does what this one could not, and clears up after it.
        for left in folder.glob(".*"):
            if not (left / "owner").exists():  # it takes a day to know that nobody is making it
                os.utime(left, (time.time() - 90_000,) * 2)
        files.check([], [out])
        SAVES[storage](new, out)
        assert np.array_equal(answer(out, tmp_path), answers[1])
        assert not list(folder.glob(".*"))
        shutil.rmtree(folder)
    assert after > 5
    kinds = {"single": 1, "external": 2, "packed": 1}
    assert len(list(folder.iterdir())) == kinds[storage]  # the old data are gone


def test_data_that_somebody_reads_stay(tmp_path: Path) -> None:
    """An update over the pack that it is an update of; data that another model has, too."""
    out, base = tmp_path / "out.onnx", tmp_path / "base.onnx"
    packed.save(model(1), base)
    packed.save(model(2), out, base=base)
    assert base.exists()
    packed.unpack(out, tmp_path / "plain.onnx", base=base)
    model(1).save(out, "external")
    shutil.copyfile(out, tmp_path / "copy.onnx")
    Model.load(tmp_path / "copy.onnx").save(out, "single")
    Model.load(tmp_path / "copy.onnx")


@pytest.fixture
def named(small: Path) -> dict[str, Path]:
    """Every kind of file that a run can read, by its option."""
    folder = small.parent
    np.savez(folder / "data.npz", x=np.ones((2, 64), np.float32))
    (folder / "recipe.yaml").write_text("version: 1\nsteps: [clean]\n")
    (folder / "mine.py").write_text("def score(outputs):\n    return 1.0\n")
    (folder / "bits.yaml").write_text("{w: 8}\n")
    Model.load(small).save(folder / "outside.onnx", "external")
    (data,) = folder.glob("outside.onnx.*.data")
    return {"in": small, "data": data, "npz": folder / "data.npz", "recipe": folder / "recipe.yaml",
            "metric": folder / "mine.py", "bits": folder / "bits.yaml"}  # fmt: skip


COMMANDS = {
    "shrink": (
        "in npz metric",
        "shrink in.onnx {out} --calibration data.npz --metric mine.py:score --max-drop 1 "
        "--no-bench --recipe-out {recipe_out} --report {report} --calibration-cache {cache}",
    ),
    "apply": ("in npz recipe", "apply recipe.yaml in.onnx {out} --calibration data.npz"),
    "pass": (
        "data npz bits",
        "quantize-weights outside.onnx {out} --calibration data.npz --bits-table bits.yaml "
        "--report {report}",
    ),
    "sensitivity": ("in npz", "sensitivity in.onnx --calibration data.npz --plot {plot}"),
    "pack": ("in", "pack in.onnx {out}"),
}
TARGETS = {"out": "o.onnx", "recipe_out": "o.yaml", "report": "o.json", "cache": "o.zip",
           "plot": "o.svg"}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_is_written_over_what_a_run_reads(
    refused: Run, named: dict[str, Path], command: str
) -> None:
    """Every output over every input, by its name and by links; and two outputs in one place."""
    reads, line = COMMANDS[command]
    for target, usual in TARGETS.items():
        if f"{{{target}}}" not in line:
            continue
        others = TARGETS.items() - {(target, usual)}
        suffix = Path(usual).suffix if target in ("report", "plot") else ""
        for number, kind in enumerate(reads.split()):
            link = Path(f"link{number}{suffix}")
            link.symlink_to(named[kind])
            for place in [str(link)] if suffix else [str(named[kind]), str(link)]:
                words = line.format(**dict(others), **{target: place}).split()
                assert "never modified" in refused(2, *words).err
            link.unlink()
        for other, its in others:
            if not suffix and f"{{{other}}}" in line:
                words = line.format(**dict(others), **{target: its}).split()
                assert "two results" in refused(2, *words).err


def test_every_target_is_looked_at_before_the_work(
    refused: Run, named: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that does not exist, a pipe, a device: for every output of every command."""
    monkeypatch.setattr("onnxshrink.contract.Judge.__init__", lambda *_: 1 / 0)
    os.mkfifo("pipe")
    os.mkfifo("pipe.json")
    os.mkfifo("pipe.svg")
    for _, line in COMMANDS.values():
        for target, usual in TARGETS.items():
            if f"{{{target}}}" not in line:
                continue
            suffix = Path(usual).suffix if target in ("report", "plot") else ""
            places = {f"none/{usual}": "there is no folder", f"pipe{suffix}": "pipe or socket"}
            for place, said in places.items():
                words = line.format(**{**TARGETS, target: place}).split()
                assert said in refused(2, *words).err
    assert "is a device" in refused(2, "clean", "in.onnx", os.devnull).err


def test_a_link_is_replaced_and_said(cli: Run, small: Path) -> None:
    Path("target").write_bytes(b"as it was")
    Path("out.onnx").symlink_to("target")
    done = cli("quantize-weights", small, "out.onnx")
    assert done.code == 0
    assert "out.onnx was a link; it is a file now" in done.err
    assert Path("target").read_bytes() == b"as it was"


def test_another_storage_removes_the_old_data_and_says_so(cli: Run, small: Path) -> None:
    words = ("quantize-weights", small, "out.onnx", "--storage")
    assert cli(*words, "external").code == 0
    (data,) = Path().glob("out.onnx.*")
    done = cli(*words, "single")
    assert f"removed {data.name}" in done.err
    assert not list(Path().glob("out.onnx.*"))


def test_a_pack_stays_as_long_as_another_is_its_update(cli: Run, tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("two", 2)):
        proto = text(
            "g (float[n, 64] x) => (float[n, 64] y) { a = MatMul(x, v)  y = MatMul(a, w) }",
            v=np.round(weight(0, 64, 64), 2), w=np.round(weight(seed, 64, 64), 2),
        )  # fmt: skip
        Path(f"{name}.onnx").write_bytes(proto.SerializeToString())
    assert cli("pack", "one.onnx", "base.onnx").code == 0
    assert cli("pack", "two.onnx", "new.onnx", "--base", "base.onnx").code == 0
    before = Path("base.onnx").read_bytes()
    done = cli("pack", "two.onnx", "base.onnx")
    (base,) = Path().glob("base.onnx.*.pack")
    assert base.read_bytes() == before
    assert f"left {base.name}, the packed model that was there: base of new.onnx" in done.err
    assert cli("unpack", "new.onnx", "back.onnx", "--base", base).code == 0
    assert Model.load("back.onnx").digest() == Model.load("two.onnx").digest()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    proto = text("g (float[n, 64] x) => (uint8[64, 64] y) { y = Identity(w) }", w=noise)
    Path("noise.onnx").write_bytes(proto.SerializeToString())
    assert cli("pack", "noise.onnx", "base.onnx").code == 1  # it would grow: all is as it was
    assert list(Path().glob("base.onnx.*.pack")) == [base]
    Path("new.onnx").unlink()
    assert "left" not in cli("quantize-weights", "one.onnx", "base.onnx").err


def test_the_sidecar_of_version_1_stays_as_long_as_it_is_a_base(cli: Run, tmp_path: Path) -> None:
    pair = Path(__file__).parent / "golden" / "pair"
    for name in ("model.onnx", "model.onnx.b626692e0b0292f9.pack"):
        shutil.copyfile(pair / name, name)
    assert cli("unpack", "model.onnx", "plain.onnx").code == 0
    assert cli("pack", "plain.onnx", "new.onnx", "--base", "model.onnx").code == 0
    done = cli("pack", "plain.onnx", "model.onnx")
    (base,) = Path().glob("model.onnx.*.pack")
    assert f"left {base.name}, the pack of the model there: base of new.onnx" in done.err
    assert cli("unpack", "new.onnx", "back.onnx", "--base", base).code == 0
    Path("new.onnx").unlink()
    shutil.copyfile(pair / "model.onnx", "model.onnx")
    assert f"removed {base.name}" in cli("clean", "plain.onnx", "model.onnx").err


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    """A scratch folder whose owner lives."""
    with files.scratch(tmp_path) as folder:
        yield folder


def test_only_scratch_folders_of_the_dead_are_swept(locked: Path, tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from onnxshrink import files\n"
        "with files.scratch(Path(sys.argv[1])) as folder: print(folder, flush=True); time.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    other = Path(child.stdout.readline().strip())
    files.check([], [tmp_path / "out.onnx"])
    assert other.exists()
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    files.check([], [tmp_path / "out.onnx"])
    assert not other.exists()
    assert locked.exists()


def test_the_systems_temporary_folder_is_swept_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with files.scratch() as mine:
        left = tmp_path / ".onnxshrink-left"
        left.mkdir()
        (left / "owner").touch()  # nobody has it locked
        files._sweep_once.cache_clear()
        with files.scratch():
            assert not left.exists()
            assert mine.exists()


def test_a_scratch_folder_that_was_never_marked_goes_after_a_day(tmp_path: Path) -> None:
    new, old = tmp_path / ".onnxshrink-new", tmp_path / ".onnxshrink-old"
    for folder in (new, old):
        folder.mkdir()
    os.utime(old, (time.time() - 90_000,) * 2)
    files.check([], [tmp_path / "out.onnx"])
    assert new.exists()
    assert not old.exists()


def test_names_of_data() -> None:
    name = files.data_name("m.onnx", "0123456789abcdef" * 4, "data")
    assert name == "m.onnx.0123456789abcdef.data"
    assert files.is_data_of(name, "m.onnx")
    assert files.is_data_of("m.onnx.pack", "m.onnx")  # of earlier versions
    for other in ("m.onnx.data.bak", "weights.data", "m.onnx.other.data", "m.onnx2.data", "m.onnx"):
        assert not files.is_data_of(other, "m.onnx")


def test_errors_name_the_output(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="there is no folder"):
        packed.unpack(_packed(tmp_path), tmp_path / "none" / "out.onnx")


def _packed(folder: Path) -> Path:
    packed.save(model(1), folder / "packed.onnx")
    return folder / "packed.onnx"


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("m.onnx.data", True),
        ("m.onnx.0123456789abcdef.data", True),
        ("m.onnx.0123456789abcdef.pack", True),
        ("m.onnx.0123456789abcde.data", False),  # a digit short: of another program
        ("m.onnx.0123456789abcdeg.data", False),
        ("m.onnx.0123456789abcdef.onnx", False),
        ("m.onnx2.0123456789abcdef.data", False),
        ("n.onnx.0123456789abcdef.data", False),
    ],
)
def test_names_of_the_data_of_a_model(name: str, own: bool) -> None:
    assert files.is_data_of(name, "m.onnx") == own
