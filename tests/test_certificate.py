"""Certificates: every changed byte is found, figures can be measured again, bytes made again."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hard_models import text

from onnxshrink.api import Options, apply_recipe
from onnxshrink.certificate import KEY, check_files, path_of, read, stored
from onnxshrink.errors import BudgetMissed, DataError, ModelError, RecipeError
from onnxshrink.passes.quantize_weights import QuantizeWeights
from onnxshrink.recipe import Recipe
from onnxshrink.reproducing import recheck, reproduce

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


def test_a_certificate_says_what_the_result_is(case):
    found = read(path_of(case / "small.onnx"), case / "mine.pub")
    check_files(found, stored(case / "small.onnx"))
    content = found.content
    assert content["data"]["inputs"] == 2  # a quarter of eight pairs: no step saw them
    assert not content["data"]["seen_by_steps"]
    assert content["figures"]["bytes_after"] == (case / "small.onnx").stat().st_size
    assert content["origin"]["original"] == stored(case / "model.onnx")
    note = {entry.key: entry.value for entry in onnx.load(case / "small.onnx").metadata_props}[KEY]
    assert json.loads(note) == content["origin"]
    again = recheck(
        found, case / "model.onnx", case / "small.onnx", Options(calibration=case / "inputs.npz")
    )
    assert again.feeds == 2
    assert again.outputs[0].relative_error == found.figures["y"]["relative_error"] > 0


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
    with pytest.raises(BudgetMissed, match="worse than certified: y: 1, certified"):
        recheck(
            found, case / "model.onnx", tmp_path / "worse.onnx",
            Options(calibration=case / "inputs.npz"),
        )  # fmt: skip


@pytest.mark.parametrize("storage", ["external", "packed", "coded"])
def test_every_storage(storage, case, tmp_path):
    options = Options(calibration=case / "inputs.npz", certificate=True, storage=storage)
    recipe = Recipe((QuantizeWeights(dtype="int4", block_size=32),))
    out = tmp_path / "small.onnx"
    apply_recipe(recipe, case / "model.onnx", out, options)
    found = read(path_of(out))
    check_files(found, stored(out))
    assert recheck(found, case / "model.onnx", out, options).feeds == 8
    again = tmp_path / "again" / "small.onnx"
    again.parent.mkdir()
    reproduce(found, case / "model.onnx", again, Options(calibration=case / "inputs.npz"))
    assert stored(again) == stored(out)
    for name in stored(out).keys() - {"small.onnx"}:
        shutil.move(out.with_name(name), tmp_path / "gone")
        with pytest.raises(ModelError, match="which is not there"):
            check_files(found, stored(out))
    assert Path(out).exists()
