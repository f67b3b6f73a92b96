"""Certificates: every changed byte is found, figures can be measured again, bytes made again."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hard_models import text

from onnxshrink.api import Options, apply_recipe
from onnxshrink.certificate import (
    KEY,
    Certificate,
    check_figures,
    check_files,
    check_places,
    path_of,
    read,
    seal,
    stored,
)
from onnxshrink.errors import BudgetMissed, DataError, ModelError, RecipeError
from onnxshrink.goal import Goal
from onnxshrink.passes.quantize_rd import QuantizeRd
from onnxshrink.passes.quantize_weights import QuantizeWeights
from onnxshrink.recipe import Recipe
from onnxshrink.reproducing import certify, recheck, reproduce
from onnxshrink.runtime.places import Finding, providers

STEPS = (QuantizeWeights(dtype="int8"),)


def _keys(folder, name):
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (folder / f"{name}.pem").write_bytes(private)
    (folder / f"{name}.pub").write_bytes(public)
    return folder / f"{name}.pem", folder / f"{name}.pub"


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A folder with a model, inputs and a result that is certified and signed."""
    folder = tmp_path_factory.mktemp("certificate")
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((64, 64)).astype(np.float32)}
    model = text("g (float[N, 64] x) => (float[N, 64] y) { y = MatMul(x, w) }", **weights)
    onnx.save(model, folder / "model.onnx")
    np.savez(folder / "inputs.npz", x=rng.standard_normal((16, 64)).astype(np.float32))
    np.savez(folder / "others.npz", x=rng.standard_normal((16, 64)).astype(np.float32))
    private, _ = _keys(folder, "mine")
    _keys(folder, "theirs")
    options = Options(calibration=folder / "inputs.npz", certificate=True, sign=private, seed=3)
    recipe = Recipe(STEPS, held_back=True)
    apply_recipe(recipe, folder / "model.onnx", folder / "small.onnx", options)
    return folder


@pytest.fixture(scope="module")
def measured(case):
    """The same figures, measured again."""
    options = Options(calibration=case / "inputs.npz")
    found = read(path_of(case / "small.onnx"))
    return recheck(found, case / "model.onnx", case / "small.onnx", options)


def test_a_certificate_says_what_the_result_is(case, measured):
    found = read(path_of(case / "small.onnx"), case / "mine.pub")
    check_files(found, stored(case / "small.onnx"))
    content = found.content
    assert content["data"]["inputs"] == 2  # a quarter of eight pairs: no step saw them
    assert not content["data"]["seen_by_steps"]
    assert content["figures"]["bytes_after"] == (case / "small.onnx").stat().st_size
    assert content["origin"]["original"] == stored(case / "model.onnx")
    note = {entry.key: entry.value for entry in onnx.load(case / "small.onnx").metadata_props}[KEY]
    assert json.loads(note) == content["origin"]
    assert measured.comparison.feeds == 2
    (output,) = measured.comparison.outputs
    assert output.relative_error == found.figures["y"]["relative_error"] > 0
    latency = content["figures"]["latency"]
    assert 0 < latency["low"] <= latency["median"] <= latency["high"]


def test_every_changed_bit_is_found(case, tmp_path):
    data = path_of(case / "small.onnx").read_bytes()
    rng = np.random.default_rng(0)
    places = {*rng.choice(len(data) * 8, 400, replace=False).tolist(), *range(16)}
    changed = tmp_path / "c.json"
    for place in sorted(places):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        changed.write_bytes(flipped)
        with pytest.raises(ModelError, match=r"c\.json: "):
            read(changed)
    for other in (data + b" ", data[:-1], data.replace(b"\n", b"\r\n"), b"[]", b""):
        changed.write_bytes(other)
        with pytest.raises(ModelError, match=r"c\.json: "):
            read(changed)
    model = bytearray((case / "small.onnx").read_bytes())
    for place in rng.choice(len(model) * 8, 40, replace=False).tolist():
        model[place // 8] ^= 1 << place % 8
        (tmp_path / "small.onnx").write_bytes(model)
        with pytest.raises(ModelError, match=r"small\.onnx: was changed"):
            check_files(read(path_of(case / "small.onnx")), stored(tmp_path / "small.onnx"))
        model[place // 8] ^= 1 << place % 8


def test_a_certificate_of_somebody_else(case, tmp_path):
    path = path_of(case / "small.onnx")
    with pytest.raises(ModelError, match="signed with another key"):
        read(path, case / "theirs.pub")
    with pytest.raises(RecipeError, match="not a key in PEM"):
        read(path, case / "mine.pem")
    content = json.loads(path.read_text())
    content.pop("signature")
    unsigned = tmp_path / "unsigned.json"
    unsigned.write_text(json.dumps(content, sort_keys=True, indent=1) + "\n")
    assert read(unsigned).content["digest"] == content["digest"]
    with pytest.raises(ModelError, match="is not signed"):
        read(unsigned, case / "mine.pub")
    options = Options(certificate=True, sign=case / "mine.pub", check="off")
    with pytest.raises(RecipeError, match=r"mine\.pub: not a key"):
        apply_recipe(Recipe(STEPS), case / "model.onnx", tmp_path / "x.onnx", options)


def test_the_same_bytes_again(case, tmp_path):
    found = read(path_of(case / "small.onnx"))
    options = Options(calibration=case / "inputs.npz")
    reproduce(found, case / "model.onnx", tmp_path / "again.onnx", options)
    assert (tmp_path / "again.onnx").read_bytes() == (case / "small.onnx").read_bytes()
    other = onnx.load(case / "small.onnx")
    other.producer_name = "other"
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(ModelError, match="is not the original"):
        reproduce(found, tmp_path / "other.onnx", tmp_path / "x.onnx", options)
    others = Options(calibration=case / "others.npz")
    content = {**found.content, "files": {"small.onnx": "0" * 64}}
    with pytest.raises(BudgetMissed, match="not the certified bytes; it was made with other inpu"):
        reproduce(replace(found, content=content), case / "model.onnx", tmp_path / "y.onnx", others)


def test_worse_than_certified(case, tmp_path):
    found = read(path_of(case / "small.onnx"))
    with pytest.raises(DataError, match="of other inputs"):
        recheck(
            found, case / "model.onnx", case / "small.onnx",
            Options(calibration=case / "others.npz"),
        )  # fmt: skip
    worse = onnx.load(case / "small.onnx")
    codes = next(t for t in worse.graph.initializer if t.data_type == onnx.TensorProto.INT8)
    codes.raw_data = bytes(len(codes.raw_data))
    onnx.save(worse, tmp_path / "worse.onnx")
    with pytest.raises(BudgetMissed, match="worse than certified: y: relative_error 1, certified"):
        recheck(
            found, case / "model.onnx", tmp_path / "worse.onnx",
            Options(calibration=case / "inputs.npz"),
        )  # fmt: skip


def _resealed(path, figures):
    """A certificate whose figures were exchanged by somebody who knows the format."""
    content = json.loads(path.read_text())
    content = {name: content[name] for name in content if name not in ("digest", "signature")}
    content["figures"]["outputs"]["y"].update(figures)
    path.write_bytes(seal(content))


@pytest.mark.parametrize("made_up", ["relative_error", "worst", "top1", ""])
def test_figures_that_were_made_up(made_up, case, measured, tmp_path):
    """A seal is not a signature, but measuring tells."""
    path = tmp_path / "c.json"
    shutil.copy(path_of(case / "small.onnx"), path)
    _resealed(path, {made_up: 0.0 if made_up != "top1" else 1.5} if made_up else {})
    if not made_up:
        check_figures(read(path), measured)
        return
    with pytest.raises(BudgetMissed, match=rf"worse than certified: y: {made_up} [^;]+$"):
        check_figures(read(path), measured)
    session = {**read(path).content["session"], "onnxruntime": "1.2.3"}
    elsewhere = Certificate(str(path), {**read(path).content, "session": session})
    with pytest.raises(BudgetMissed, match=r"; certified with onnxruntime 1\.2\.3$"):
        check_figures(elsewhere, measured)


def test_other_places_are_certified_and_checked(case, tmp_path):
    """With a signature that stays; what a place does not run is certified, too."""
    path, small = tmp_path / "c.json", case / "small.onnx"
    shutil.copy(path_of(small), path)
    options = Options(calibration=case / "inputs.npz")
    where, signed = providers(["CPU", "MIGraphX"]), case / "mine.pem"
    with pytest.raises(RecipeError, match="takes a key, too: --sign KEY"):
        certify(read(path), case / "model.onnx", small, options, where)
    findings = certify(read(path), case / "model.onnx", small, options, where, signed)
    found = read(path, case / "mine.pub")
    own, other = found.places["CPU"], found.places["MIGraphX"]
    assert own["outputs"] == found.figures
    assert own["latency"] > 0
    assert "is not installed here" in other["refusal"]
    assert other["outputs"] == {}
    check_places(found, findings)
    with pytest.raises(DataError, match="certifies nothing of web"):
        check_places(found, [replace(findings[0], label="web")])
    with pytest.raises(BudgetMissed, match="worse than certified: CPU: broke"):
        check_places(found, [Finding(label="CPU", refusal="broke")])


@pytest.mark.parametrize("storage", ["external", "packed", "coded"])
def test_every_storage(storage, case, tmp_path):
    options = Options(calibration=case / "inputs.npz", certificate=True, storage=storage)
    recipe = Recipe((QuantizeWeights(dtype="int4", block_size=32),))
    out = tmp_path / "small.onnx"
    apply_recipe(recipe, case / "model.onnx", out, options)
    found = read(path_of(out))
    check_files(found, stored(out))
    assert recheck(found, case / "model.onnx", out, options).comparison.feeds == 8
    again = tmp_path / "again" / "small.onnx"
    again.parent.mkdir()
    reproduce(found, case / "model.onnx", again, Options(calibration=case / "inputs.npz"))
    assert stored(again) == stored(out)
    for name in stored(out).keys() - {"small.onnx"}:
        shutil.move(out.with_name(name), tmp_path / "gone")
        with pytest.raises(ModelError, match="which is not there"):
            check_files(found, stored(out))
    assert Path(out).exists()


@pytest.mark.parametrize(
    "step", [QuantizeRd(), QuantizeWeights(rounding="gptq")], ids=lambda s: s.name
)
@pytest.mark.usefixtures("one_worker")
def test_what_was_judged_on_inputs_held_back_is_made_and_measured_again(case, tmp_path, step):
    """Every fourth input was kept from the steps; what quantize-rd chose to spend stands there."""
    rng = np.random.default_rng(1)
    np.savez(tmp_path / "data.npz", x=rng.standard_normal((64, 64)).astype(np.float32))
    options = Options(calibration=tmp_path / "data.npz", certificate=True)
    source, made, again = case / "model.onnx", tmp_path / "made.onnx", tmp_path / "again.onnx"
    apply_recipe(Recipe((step,)), source, made, options, goal=Goal())
    found = read(path_of(made))
    recipe = Recipe.parse(found.content["origin"]["recipe"], "here")
    assert recipe.held_back
    assert getattr(recipe.steps[0], "lam", 0) is not None
    options = Options(calibration=tmp_path / "data.npz")
    reproduce(found, source, again, options)
    assert again.read_bytes() == made.read_bytes()
    assert recheck(found, source, made, options).comparison.outputs
