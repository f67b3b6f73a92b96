"""Coded models on the command line: written by every command, read by every other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import Run
from hard_models import text, weight
from onnx import numpy_helper

from onnxshrink.cli import main

MODEL = Path(__file__).parents[1] / "models" / "vision_cnn" / "model.onnx"


def onnxshrink(*words: str | Path, code: int = 0) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words], prog_name="onnxshrink")
    assert (stopped.value.code or 0) == code


def values(path: Path) -> dict[str, bytes]:
    stored = onnx.load(path).graph.initializer
    return {tensor.name: numpy_helper.to_array(tensor).tobytes() for tensor in stored}


@pytest.fixture(scope="module")
def codebooks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose weights have few values: floats rounded to a coarse grid."""
    model = onnx.load(MODEL)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.size > 500 and array.dtype == np.float32:
            step = array.std()
            coarse = (np.rint(array / step) * step).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(coarse, tensor.name))
    path = tmp_path_factory.mktemp("coded") / "coarse.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def coded_file(codebooks: Path) -> Path:
    path = codebooks.with_name("coded.onnx")
    onnxshrink("pack", codebooks, path, "--form", "graph")
    assert path.stat().st_size < codebooks.stat().st_size / 5
    return path


def test_unpacked_it_is_the_plain_model(codebooks: Path, coded_file: Path, tmp_path: Path) -> None:
    for storage in ("single", "external"):
        out = tmp_path / f"{storage}.onnx"
        onnxshrink("unpack", coded_file, out, "--storage", storage)
        assert values(out) == values(codebooks)
    onnxshrink("compare", codebooks, coded_file, "--atol", "0")


def test_verify_and_inspect(
    codebooks: Path, coded_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnxshrink("verify", coded_file)
    assert "tensors, every checksum is right" in capsys.readouterr().out
    onnxshrink("inspect", coded_file, "--json")
    found = json.loads(capsys.readouterr().out)
    assert "bits a weight" in found["notes"][0]
    names = {name for name, data in values(coded_file).items() if data}
    assert {tensor["name"] for tensor in found["coded"]} == set(values(codebooks)) - names
    for tensor in found["coded"]:
        # Nodes and tables are dear beside so few weights.
        assert tensor["entropy_bits"] < tensor["bits_per_weight"] < tensor["entropy_bits"] + 1
    plain, stored = (sum(t[key] for t in found["coded"]) for key in ("nbytes", "coded"))
    rest = codebooks.stat().st_size - plain
    assert abs(coded_file.stat().st_size - rest - stored) < 2000  # the note, and headers
    onnxshrink("inspect", coded_file)
    columns = "| tensor | type | shape | plain | coded | bits a weight | entropy |"
    assert columns in capsys.readouterr().out
    model = onnx.load(coded_file)
    stream = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    stream.raw_data = stream.raw_data[::-1]
    damaged = tmp_path / "damaged.onnx"
    onnx.save(model, damaged)
    onnxshrink("verify", damaged, code=3)
    assert "is damaged" in capsys.readouterr().err


def test_passes_see_the_weights_and_what_they_write_is_coded_again(
    codebooks: Path, coded_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, again = tmp_path / "plain.onnx", tmp_path / "again.onnx"
    step = ("prune-magnitude", "--ratio", "0.5", "--check", "quick", "--max-error", "9")
    onnxshrink(step[0], codebooks, plain, *step[1:])
    onnxshrink(step[0], coded_file, again, *step[1:])
    text = capsys.readouterr()
    assert "were made plain to work on" in text.err
    assert "at every run" in text.err
    out = tmp_path / "out.onnx"
    onnxshrink("unpack", again, out)
    assert values(out) == values(plain)
    onnxshrink(step[0], coded_file, tmp_path / "single.onnx", *step[1:], "--storage", "single")
    assert values(tmp_path / "single.onnx") == values(plain)


def test_commands_that_measure_see_the_weights(
    codebooks: Path, coded_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    for path in (codebooks, coded_file):
        onnxshrink("sensitivity", path, "--count", "1", "--json")
        said.append(json.loads(capsys.readouterr().out))
    assert said[0] == said[1]
    step = ("correct-bias", "--check", "quick", "--reference")
    for name, reference in (("one", codebooks), ("other", coded_file)):
        onnxshrink(step[0], codebooks, tmp_path / name, *step[1:], reference)
    assert values(tmp_path / "one") == values(tmp_path / "other")


def test_a_recipe_says_that_its_result_is_coded(codebooks: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("version: 1\nstorage: coded\nsteps: [clean]\n")
    onnxshrink("apply", recipe, codebooks, tmp_path / "out.onnx", "--check", "quick")
    onnxshrink("verify", tmp_path / "out.onnx")


def test_options_of_sidecars_are_not_for_graphs(codebooks: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    onnxshrink("pack", codebooks, out, "--form", "graph", "--with-reader", "c", code=2)
    onnxshrink("pack", MODEL, out, "--form", "graph", code=1)  # floats of many values
    assert not out.exists()


def test_a_coded_model_is_updated_by_a_patch(
    codebooks: Path, coded_file: Path, tmp_path: Path
) -> None:
    """What is sent is small, and the device ends up with the very file."""
    here, device = tmp_path / "here", tmp_path / "device"
    changed = onnx.load(codebooks)
    tensor = sorted(changed.graph.initializer, key=lambda t: len(t.raw_data))[-4]
    array = numpy_helper.to_array(tensor).copy()
    array.flat[:90:3] = array.flat[1:91:3]
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for folder in (here, device):
        folder.mkdir()
        onnxshrink("pack", coded_file, folder / "base.onnx")
    onnx.save(changed, here / "plain.onnx")
    onnxshrink("pack", here / "plain.onnx", here / "new.onnx", "--form", "graph")
    onnxshrink("pack", here / "new.onnx", here / "patch.onnx", "--base", here / "base.onnx")
    sent = sorted(here.glob("patch.onnx*"))
    assert sum(file.stat().st_size for file in sent) < (here / "new.onnx").stat().st_size / 2
    for file in sent:
        (device / file.name).write_bytes(file.read_bytes())
    base = ("--base", device / "base.onnx")
    onnxshrink("unpack", device / "patch.onnx", device / "plain.onnx", *base)
    onnxshrink("pack", device / "plain.onnx", device / "new.onnx", "--form", "graph")
    assert (device / "new.onnx").read_bytes() == (here / "new.onnx").read_bytes()


def test_codes_beyond_8_bits_are_coded_unless_another_storage_is_asked_for(cli: Run) -> None:
    proto = text(
        "g (float[n, 128] x) => (float[n, 256] y) { y = MatMul(x, w) }", w=weight(1, 128, 256)
    )
    Path("in.onnx").write_bytes(proto.SerializeToString())
    np.savez("in.npz", x=weight(2, 64, 128))
    words = ("quantize-rd", "in.onnx", "--calibration", "in.npz", "--lam", "1e-4", "-o")
    done = cli(*words, "coded.onnx")
    assert "stored with coded weights: as 16-bit integers they would take 65.7 kB" in done.err
    done = cli(*words, "plain.onnx", "--storage", "single")
    size = Path("plain.onnx").stat().st_size
    assert f"take whole bytes, {size / 1e3:.1f} kB in all; --storage packed makes" in done.err
    told = float(done.err.split("makes about ")[1].split(" kB")[0]) * 1e3
    cli(*words, "packed.onnx", "--storage", "packed")
    assert told == pytest.approx(Path("packed.onnx").stat().st_size, rel=0.03)
    assert Path("coded.onnx").stat().st_size < 0.75 * Path("plain.onnx").stat().st_size
    assert cli("compare", "plain.onnx", "coded.onnx", "--atol", "0").code == 0


def test_an_update_ends_at_the_released_bytes(coded_file: Path, tmp_path: Path) -> None:
    """As docs/guide.md says: whichever command wrote the new version, `pack` releases it."""
    made, plain, new = (tmp_path / f"{name}.onnx" for name in ("made", "plain", "new"))
    options = ("--bits", "3", "--storage", "coded", "--check", "off")
    onnxshrink("share-codebook", MODEL, made, *options)
    onnxshrink("unpack", made, plain)
    onnxshrink("pack", plain, new, "--form", "graph")
    base, patch, there, again = (
        tmp_path / f"{n}.onnx" for n in ("base", "patch", "there", "again")
    )
    onnxshrink("pack", coded_file, base)
    onnxshrink("pack", new, patch, "--base", base)
    onnxshrink("unpack", patch, there, "--base", base)
    onnxshrink("pack", there, again, "--form", "graph")
    assert again.read_bytes() == new.read_bytes()
