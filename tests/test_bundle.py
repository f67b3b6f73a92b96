"""Bundles: what is in them runs, says what the model says, and cannot be changed unseen."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tree_sitter
import tree_sitter_kotlin
import tree_sitter_swift
from browser import needs_browser, value_when_there
from hard_models import text

from onnxshrink import bundling
from onnxshrink.api import Options, apply_recipe
from onnxshrink.errors import ModelError, OutputError, RecipeError
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import packed
from onnxshrink.passes.quantize_weights import QuantizeWeights
from onnxshrink.recipe import Recipe
from onnxshrink.runtime import run_inputs
from onnxshrink.runtime.session import open_session, run_session
from onnxshrink.runtime.worker import Worker

HERE = Path(__file__).parent
JS = HERE / "readers" / "js"
NODE = shutil.which("node")
DATA = "document.body?.dataset"
LIBRARY = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"), None)


@pytest.fixture(scope="module")
def worker():
    """One child for all."""
    with Worker() as worker:
        yield worker


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A folder with a coded, certified model and its licence; a sample of three rows."""
    folder = tmp_path_factory.mktemp("bundle")
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((48, 64)).astype(np.float32)}
    source = "g (float[N, 48] x, int64[N, 1] k) => (float[N, 64] y, int64[N, 1] z) " \
             "{ y = MatMul(x, w)  z = Add(k, k) }"  # fmt: skip
    onnx.save(text(source, **weights), folder / "model.onnx")
    sample = {
        "x": rng.standard_normal((3, 48)).astype(np.float32), "k": np.arange(3).reshape(3, 1),
    }  # fmt: skip
    np.savez(folder / "inputs.npz", **sample)
    (folder / "LICENSE.txt").write_text("as it is")
    options = Options(calibration=folder / "inputs.npz", certificate=True, storage="coded")
    recipe = Recipe((QuantizeWeights(dtype="int2", block_size=16),))
    apply_recipe(recipe, folder / "model.onnx", folder / "small.onnx", options)
    answers = run_session(
        open_session(folder / "small.onnx"), {k: v[:1] for k, v in sample.items()}
    )
    return folder, sample, answers


def _write(case, target, out, worker, **rest):
    folder, sample, _ = case
    wanted = bundling.Bundle(source=folder / "small.onnx", target=target, sample=sample, **rest)
    return wanted.write(out, worker)


@pytest.mark.parametrize("target", bundling.TARGETS)
def test_what_a_bundle_holds(target, case, worker, tmp_path):
    names = _write(case, target, tmp_path / "b", worker)
    always = {"small.onnx", "small.onnx.certificate.json", "LICENSE.txt", "README.md"}
    assert {*always, bundling.MANIFEST} <= set(names)
    assert bundling.verify(tmp_path / "b") == len(names) - 1
    for path in (tmp_path / "b").rglob("*"):
        if path.suffix in (".md", ".html", ".mjs", ".py", ".c", ".kt", ".swift"):
            assert "@@" not in path.read_text(), path
    readme = (tmp_path / "b" / "README.md").read_text()
    assert "| input | x | tensor(float) |" in readme
    assert "smaller than the original" in readme
    assert "A run takes " in readme
    manifest = json.loads((tmp_path / "b" / bundling.MANIFEST).read_text())
    assert manifest["outputs"] == {"y": "tensor(float)", "z": "tensor(int64)"}


def test_the_python_example_runs(case, worker, tmp_path):
    _write(case, "python", tmp_path / "b.zip", worker)
    shutil.unpack_archive(tmp_path / "b.zip", tmp_path / "b")
    bundling.verify(tmp_path / "b")
    done = subprocess.run(
        [sys.executable, tmp_path / "b" / "run.py"], capture_output=True, text=True, check=True
    )
    assert "y float32 (1, 64)\n  differs from the answer in answers.json by 0.0e+00" in done.stdout
    (answers,), _ = run_inputs.read(str(tmp_path / "b" / "answers.json"))
    for found, expected in zip(answers.values(), case[2], strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("target", "name", "grammar"),
    [("android", "Model.kt", tree_sitter_kotlin), ("ios", "Model.swift", tree_sitter_swift)],
)
def test_what_phones_compile_is_well_formed(target, name, grammar, case, worker, tmp_path):
    """By the grammars of editors; docs/measurements.md says what a compiler said."""
    _write(case, target, tmp_path / "b", worker)
    parser = tree_sitter.Parser(tree_sitter.Language(grammar.language()))
    source = (tmp_path / "b" / name).read_bytes()
    assert not parser.parse(source).root_node.has_error
    assert parser.parse(source.rstrip()[:-1]).root_node.has_error


@pytest.mark.e2e
@pytest.mark.parametrize("language", [("cc", "-std=c99"), ("c++", "-xc++", "-std=c++17")])
@pytest.mark.skipif(
    LIBRARY is None or None in map(shutil.which, ("cc", "c++")),
    reason="there is no C or C++ compiler, or no library",
)
def test_the_c_example_runs(language, case, worker, tmp_path):
    """Against ONNX Runtime's own library, which comes with its Python package."""
    assert LIBRARY is not None
    folder = tmp_path / "b"
    _write(case, "linux-c", folder, worker)
    (folder / "libonnxruntime.so.1").symlink_to(LIBRARY)
    compiler, *flags = language
    flags += ["-Wall", "-Wextra", "-Werror", "-O2", f"-I{HERE / 'readers'}", "main.c", "-xnone"]
    built = [compiler, *flags, "libonnxruntime.so.1", "-Wl,-rpath,.", "-lm", "-o", "run"]
    subprocess.run(built, cwd=folder, check=True)
    done = subprocess.run(["./run"], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"y: {case[2][0][0, 0]:.4g} ")
    assert "differs from the answer in sample/ by 0.0e+00" in done.stdout
    assert done.stdout.endswith("z: equal\n")


def test_the_same_bytes_every_time(case, worker, tmp_path):
    for name in ("a.zip", "b.zip"):
        _write(case, "web", tmp_path / name, worker)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_what_was_changed_is_found(case, worker, tmp_path):
    _write(case, "python", tmp_path / "b", worker)
    for name in ("run.py", "small.onnx", bundling.MANIFEST, "LICENSE.txt"):
        path = tmp_path / "b" / name
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(ModelError, match=r"was changed|not an onnxshrink bundle"):
            bundling.verify(tmp_path / "b")
        path.unlink()
        with pytest.raises(ModelError, match=r"not there|cannot be read"):
            bundling.verify(tmp_path / "b")
        path.write_bytes(data)
    (tmp_path / "b" / "more").write_text("x")
    with pytest.raises(ModelError, match="does not certify more"):
        bundling.verify(tmp_path / "b")


def test_what_cannot_be_bundled(case, worker, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    with pytest.raises(OutputError, match="has something in it"):
        _write(case, "python", tmp_path / "full", worker)
    with pytest.raises(RecipeError, match="has no onnxruntime-web"):
        _write(case, "web", tmp_path / "b", worker, web_runtime=tmp_path)
    with pytest.raises(RecipeError, match="there is no such file"):
        _write(case, "python", tmp_path / "b", worker, licences=(tmp_path / "LICENCE",))
    pack = tmp_path / "packed.onnx"
    packed.save(Model.load(case[0] / "model.onnx"), pack)
    wanted = bundling.Bundle(source=pack, target="ios", sample=case[1])
    with pytest.raises(RecipeError, match="the example for ios does not read"):
        wanted.write(tmp_path / "b", worker)
    changed = tmp_path / "small.onnx"
    shutil.copy(case[0] / "model.onnx", changed)
    shutil.copy(f"{case[0] / 'small.onnx'}.certificate.json", f"{changed}.certificate.json")
    with pytest.raises(ModelError, match=r"small\.onnx: was changed"):
        bundling.Bundle(source=changed, target="ios", sample=case[1]).write(tmp_path / "b", worker)
    assert not (tmp_path / "b").exists()


@pytest.mark.e2e
@pytest.mark.parametrize("storage", ["coded", "packed", "external"])
@pytest.mark.skipif(
    NODE is None or not (JS / "node_modules" / "onnxruntime-web").is_dir(),
    reason="node or onnxruntime-web is not installed: tests/readers/js/install",
)
@needs_browser
def test_the_page_shows_the_answer(storage, case, worker, tmp_path):
    """In a real browser, with what the bundle's own server sends."""
    source = case[0] / "small.onnx"
    if storage != "coded":
        source = tmp_path / "other.onnx"
        if storage == "packed":
            packed.save(Model.load(case[0] / "model.onnx"), source)
        else:
            Model.load(case[0] / "model.onnx").save(source, "external")
    wanted = bundling.Bundle(source=source, target="web", sample=case[1], web_runtime=JS)
    wanted.write(tmp_path / "b", worker)
    serve = [NODE, tmp_path / "b" / "serve.mjs", "0"]
    with subprocess.Popen(serve, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().decode().strip()
            shown = "document.documentElement.outerHTML"
            done = f"{DATA}.difference || {DATA}.error ? {shown} : null"
            page = value_when_there(address, done, tmp_path)
        finally:
            server.kill()
    assert "data-error" not in page, page
    difference = float(page.partition('data-difference="')[2].partition('"')[0])
    assert difference < 1e-5
    assert "y [1,64]" in page
