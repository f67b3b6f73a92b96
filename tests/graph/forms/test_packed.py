"""Packed models: written, opened, made plain again, bit for bit."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import shares
from onnx import TensorProto, helper, numpy_helper

import onnxshrink
from onnxshrink.errors import BudgetMissed, ModelError, OutputError, SidecarError
from onnxshrink.graph.file import round_trip
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import packed
from onnxshrink.runtime.session import open_session, run_session
from onnxshrink.runtime.worker import Worker
from onnxshrink.sidecar.header import BITS

MODELS = Path(__file__).parents[3] / "models"
FEED = {"image": np.random.default_rng(0).standard_normal((2, 1, 28, 28)).astype(np.float32)}


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "plain.onnx"
    shutil.copyfile(MODELS / "vision_cnn" / "model.onnx", path)
    return path


@pytest.fixture
def small(plain: Path, tmp_path: Path) -> Path:
    path = tmp_path / "small.onnx"
    packed.save(Model.load(plain), path)
    return path


def values(path: Path) -> dict[str, bytes]:
    model = onnx.load(path)
    return {t.name: numpy_helper.to_array(t).tobytes() for t in round_trip.tensors(model)}


def test_unpacked_tensors_are_the_originals_bit_for_bit(
    plain: Path, small: Path, tmp_path: Path
) -> None:
    for storage in ("single", "external"):
        out = tmp_path / f"{storage}.onnx"
        packed.unpack(small, out, storage)
        assert values(out) == values(plain)
        assert not [e for e in onnx.load(out).metadata_props if e.key.startswith("onnxshrink")]


def test_a_pack_is_smaller_and_its_size_is_told_right(plain: Path, small: Path) -> None:
    pack = packed.pack_path(small)
    assert packed.stored_bytes(small) == small.stat().st_size + pack.stat().st_size
    assert packed.stored_bytes(small) < 0.86 * plain.stat().st_size


def test_a_session_answers_exactly_as_the_plain_model(plain: Path, small: Path) -> None:
    expected = run_session(open_session(plain), FEED)
    session = onnxshrink.session(small)
    junk = [np.full(200_000, 7, np.uint8) for _ in range(50)]  # over whatever was let go
    np.testing.assert_array_equal(run_session(session, FEED)[0], expected[0])
    assert len(junk) == 50


def test_onnxruntime_reads_the_arrays_only_when_the_session_is_made(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So they must live until then: what happens to them before, the session computes with."""
    with packed.open_pack(small) as opened:
        data = np.zeros(opened.header.data_length, np.uint8)
        for entry in opened.header.tensors:
            opened.read(entry.name, out=data[entry.offset : entry.offset + entry.nbytes])
        files = {opened.header.data_name: data}
    right = run_session(open_session(small, files=files), FEED)[0]
    real = onnxruntime.InferenceSession

    def late(*arguments: Any, **options: Any) -> onnxruntime.InferenceSession:
        data[:] = 0  # as if it had been let go, and its memory used for something else
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(onnxruntime, "InferenceSession", late)
        wrong = run_session(open_session(small, files=files), FEED)[0]
    assert np.abs(wrong - right).max() > 0.1

    def crowded(*arguments: Any, **options: Any) -> onnxruntime.InferenceSession:
        junk = [np.full(data.size, 7, np.uint8) for _ in range(20)]  # over whatever was let go
        assert len(junk) == 20
        return real(*arguments, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", crowded)
    np.testing.assert_array_equal(run_session(onnxshrink.session(small), FEED)[0], right)


def test_weights_in_constant_nodes_and_branches_are_packed(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    weights = [rng.standard_normal((100, 100)).astype(np.float32) for _ in range(3)]

    def branch(name: str, weight: np.ndarray) -> onnx.GraphProto:
        constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weight))
        product = helper.make_node("MatMul", ["h", "w"], [name])
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph([constant, product], name, [], [out])

    nodes = [
        helper.make_node("Constant", [], ["w0"], value=numpy_helper.from_array(weights[0])),
        helper.make_node("MatMul", ["x", "w0"], ["h"]),
        helper.make_node(
            "If", ["c"], ["y"], then_branch=branch("a", weights[1]),
            else_branch=branch("b", weights[2]),
        ),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 100]),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 100])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    plain, small = tmp_path / "m.onnx", tmp_path / "p.onnx"
    onnx.save(model, plain)
    packed.save(Model.load(plain), small)
    with packed.open_pack(small) as opened:
        assert sorted(opened.read(n).tobytes() for n in opened.names) == sorted(
            w.tobytes() for w in weights
        )
    session = onnxshrink.session(small)
    for condition in (True, False):
        feed = {"x": rng.standard_normal((1, 100)).astype(np.float32), "c": np.array(condition)}
        np.testing.assert_array_equal(
            run_session(session, feed)[0], run_session(open_session(plain), feed)[0]
        )


def test_every_type_is_packed_bit_for_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    tensors = []
    for name, bits in BITS.items():
        raw = rng.integers(0, 2 if name == "BOOL" else 16, 8000 * bits // 8).astype(np.uint8)
        kind = TensorProto.DataType.Value(name)
        tensors.append(helper.make_tensor(name, kind, [8000], raw.tobytes(), raw=True))
    texts = helper.make_tensor("STRING", TensorProto.STRING, [8000], [b"text"] * 8000)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [8000])
    nodes = [helper.make_node("Identity", ["FLOAT"], ["y"])]
    graph = helper.make_graph(nodes, "g", [], [output], [*tensors, texts])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=13)
    plain, small, back = (tmp_path / f"{n}.onnx" for n in "abc")
    onnx.save(model, plain)
    packed.save(Model.load(plain), small)
    with packed.open_pack(small) as opened:
        assert {entry.dtype for entry in opened.entries.values()} == set(BITS)
    packed.unpack(small, back)
    found = onnx.load(back).graph.initializer
    assert {t.name: t.raw_data for t in found if t.name != "STRING"} == {
        t.name: t.raw_data for t in tensors
    }
    (strings,) = (t for t in found if t.name == "STRING")
    assert list(strings.string_data) == [b"text"] * 8000


def test_what_would_grow_is_not_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    noise = rng.integers(0, 256, 2000).astype(np.uint8)
    graph = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"])], "g", [],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [2000])],
        [numpy_helper.from_array(noise, "w")],
    )  # fmt: skip
    plain, out = tmp_path / "m.onnx", tmp_path / "p.onnx"
    onnx.save(helper.make_model(graph), plain)
    with pytest.raises(BudgetMissed, match="not packed: that would take"):
        packed.save(Model.load(plain), out)
    assert sorted(os.listdir(tmp_path)) == ["m.onnx"]


def test_an_update_stores_what_changed(plain: Path, small: Path, tmp_path: Path) -> None:
    model = onnx.load(plain)
    changed = next(t for t in model.graph.initializer if np.prod(t.dims) > 1000)
    array = numpy_helper.to_array(changed).copy()
    array.flat[:3] += 1
    changed.CopyFrom(numpy_helper.from_array(array, changed.name))
    newer, update, back = (tmp_path / f"{n}.onnx" for n in ("newer", "update", "back"))
    onnx.save(model, newer)
    base = packed.pack_path(small)
    packed.save(Model.load(newer), update, base=base)
    assert packed.pack_path(update).stat().st_size < 0.5 * base.stat().st_size
    packed.unpack(update, back, base=base)
    assert values(back) == values(newer)
    with pytest.raises(SidecarError, match="is an update"):
        packed.unpack(update, tmp_path / "no.onnx")
    with pytest.raises(SidecarError, match="is not its base"):
        packed.unpack(update, tmp_path / "no.onnx", base=packed.pack_path(update))
    assert not (tmp_path / "no.onnx").exists()


def test_a_damaged_or_wrong_pack_is_refused(small: Path, tmp_path: Path) -> None:
    pack, out = packed.pack_path(small), tmp_path / "out.onnx"
    good = pack.read_bytes()
    pack.write_bytes(good[:-100] + bytes(100))
    with pytest.raises(SidecarError):
        packed.unpack(small, out)
    pack.unlink()
    with pytest.raises(SidecarError, match=r"put it beside small\.onnx"):
        packed.unpack(small, out)
    pack.write_bytes(good)
    with pytest.raises(SidecarError, match=r"limit|more than"):
        packed.unpack(small, out, limit=1000)
    text = small.read_bytes()
    small.write_bytes(text + b"\x08\x08")  # the same model, but another file
    with pytest.raises(SidecarError, match="was not packed with"):
        packed.unpack(small, out)
    assert not out.exists()


def test_a_plain_model_is_not_a_packed_one(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a packed model"):
        packed.unpack(plain, tmp_path / "out.onnx")
    with pytest.raises(ModelError, match="is not a packed model"):
        onnxshrink.session(plain)


def test_a_packed_model_says_so_when_it_is_loaded(small: Path) -> None:
    with pytest.raises(ModelError, match="its weights are packed; 'onnxshrink unpack' it first"):
        Model.load(small)


def test_no_runtime_mistakes_packed_bytes_for_weights(small: Path) -> None:
    with Worker() as worker, pytest.raises(ModelError, match="'onnxshrink unpack' it first"):
        worker.open(small)


def test_the_input_is_not_written_over(plain: Path, small: Path) -> None:
    for path in (small, packed.pack_path(small)):
        with pytest.raises(OutputError):
            packed.unpack(small, path)
    with pytest.raises(OutputError):
        packed.save(Model.load(plain), plain)


def test_readers_are_written_on_request(tmp_path: Path) -> None:
    for kind, name in (("c", "onnxshrink_pack.h"), ("js", "onnxshrink_pack.mjs")):
        assert packed.write_reader(kind, tmp_path) == tmp_path / name
        assert b"ONXSPAK1" in (tmp_path / name).read_bytes()


@pytest.mark.fuzz
def test_a_killed_pack_leaves_the_old_files(plain: Path, small: Path) -> None:
    before = small.read_bytes(), packed.pack_path(small).read_bytes()
    code = (
        "import sys\n"
        "from onnxshrink.graph.forms import packed; from onnxshrink.graph.file.model import Model\n"
        "model = Model.load(sys.argv[1]); print('go', flush=True)\n"
        "while True: packed.save(model, sys.argv[2])"
    )
    rng = np.random.default_rng(4)
    for _ in range(shares.KILLS):
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(plain), str(small)], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(float(rng.uniform(0, 0.2)))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        # The same model packs to the same bytes, so old and new pairs are alike.
        assert (small.read_bytes(), packed.pack_path(small).read_bytes()) == before
    packed.save(Model.load(plain), small)
    with packed.open_pack(small) as opened:
        opened.verify()
