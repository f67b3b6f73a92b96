"""Packed models: written, opened, made plain again, bit for bit."""

from __future__ import annotations

import gc
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
from onnxshrink import sidecar
from onnxshrink.errors import BudgetMissed, ModelError, OutputError, SidecarError
from onnxshrink.graph.file import round_trip
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import coded_read, packed
from onnxshrink.runtime.bench import stored_bytes
from onnxshrink.runtime.compare import compare
from onnxshrink.runtime.session import open_session, run_session
from onnxshrink.runtime.worker import Worker
from onnxshrink.sidecar.header import BASE, BITS

MODELS = Path(__file__).parents[3] / "models"
#: A pair of version 1, of which the writer is gone: MatMul by `w` and Add of `b`.
PAIR = Path(__file__).parents[2] / "golden" / "pair"
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
    assert packed.pack_path(small) == small
    assert packed.stored_bytes(small) == small.stat().st_size
    assert packed.stored_bytes(small) < 0.84 * plain.stat().st_size
    assert sorted(os.listdir(small.parent)) == ["plain.onnx", "small.onnx"]


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
        files, graph = {opened.header.data_name: data}, opened.graph()
    right = run_session(open_session(graph, files=files), FEED)[0]
    real = onnxruntime.InferenceSession

    def late(*arguments: Any, **options: Any) -> onnxruntime.InferenceSession:
        data[:] = 0  # as if it had been let go, and its memory used for something else
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(onnxruntime, "InferenceSession", late)
        wrong = run_session(open_session(graph, files=files), FEED)[0]
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
    base = small
    packed.save(Model.load(newer), update, base=base)
    assert update.stat().st_size < 0.4 * base.stat().st_size
    with packed.open_pack(update, base=base) as opened:  # the graph is the base's
        assert {opened.header.chunks[number].method for number in opened.header.graph} == {BASE}
    packed.unpack(update, back, base=base)
    assert values(back) == values(newer)
    with pytest.raises(SidecarError, match="is an update"):
        packed.unpack(update, tmp_path / "no.onnx")
    with pytest.raises(SidecarError, match="is not its base"):
        packed.unpack(update, tmp_path / "no.onnx", base=update)
    expected = run_session(open_session(newer), FEED)[0]
    found = run_session(onnxshrink.session(update, base=base), FEED)[0]
    np.testing.assert_array_equal(found, expected)
    assert not (tmp_path / "no.onnx").exists()


def test_a_damaged_pack_is_refused(small: Path, tmp_path: Path) -> None:
    out, good = tmp_path / "out.onnx", small.read_bytes()
    for damaged in (good[:-100] + bytes(100), good[:-1], good + b"\0"):
        small.write_bytes(damaged)
        with pytest.raises(SidecarError):
            packed.unpack(small, out)
    small.write_bytes(good)
    with pytest.raises(SidecarError, match="over the limit"):
        packed.unpack(small, out, limit=1000)
    assert not out.exists()


@pytest.mark.parametrize(
    ("graph", "why"), [(b"", "holds weights, but no graph"), (b"\xff", "is no ONNX model")]
)
def test_packs_of_something_else(graph: bytes, why: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    sidecar.pack(path, [("w", "INT8", (2,), b"ab")], data_name="weights", graph=graph)
    with pytest.raises(ModelError, match=why):
        packed.unpack(path, tmp_path / "out.onnx")


def test_a_packed_model_may_have_any_name_and_place(small: Path, tmp_path: Path) -> None:
    expected = run_session(onnxshrink.session(small), FEED)[0]
    (tmp_path / "elsewhere").mkdir()
    for name in ("other.onnx", "small.pack", "elsewhere/noname"):
        moved = small.rename(tmp_path / name)
        np.testing.assert_array_equal(run_session(onnxshrink.session(moved), FEED)[0], expected)
        small = moved


def test_the_bytes_do_not_depend_on_the_name(plain: Path, small: Path, tmp_path: Path) -> None:
    packed.save(Model.load(plain), tmp_path / "another.onnx")
    assert (tmp_path / "another.onnx").read_bytes() == small.read_bytes()


# Version 1: two files


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    shutil.copytree(PAIR, tmp_path, dirs_exist_ok=True)
    return tmp_path / "model.onnx"


def test_a_pair_of_version_1_is_read(pair: Path, tmp_path: Path) -> None:
    assert packed.is_packed(pair)
    assert packed.stored_bytes(pair) == 960
    with pytest.raises(ModelError, match="its weights are packed; 'onnxshrink unpack' it first"):
        Model.load(pair)
    packed.unpack(pair, tmp_path / "plain.onnx")
    plain = onnx.load(tmp_path / "plain.onnx")
    tensors = {t.name: numpy_helper.to_array(t) for t in plain.graph.initializer}
    weight, bias = tensors["w"], tensors["b"]
    assert set(np.unique(weight)) == {-1, 0, 1}
    np.testing.assert_array_equal(bias, np.linspace(-1, 1, 24, dtype=np.float32))
    x = np.arange(128, dtype=np.float32).reshape(2, 64)
    (found,) = run_session(onnxshrink.session(pair), {"x": x})
    np.testing.assert_allclose(found, x @ weight + bias, rtol=1e-6)
    assert not plain.metadata_props


def test_a_model_may_update_a_pair_of_version_1(pair: Path, tmp_path: Path) -> None:
    packed.unpack(pair, tmp_path / "plain.onnx")
    update = tmp_path / "update.onnx"
    packed.save(Model.load(tmp_path / "plain.onnx"), update, base=pair)
    packed.unpack(update, tmp_path / "again.onnx", base=pair)
    digests = {Model.load(tmp_path / f"{name}.onnx").digest() for name in ("plain", "again")}
    assert len(digests) == 1


def test_a_damaged_or_wrong_pair_is_refused(pair: Path, tmp_path: Path) -> None:
    pack, out = packed.pack_path(pair), tmp_path / "out.onnx"
    good = pack.read_bytes()
    pack.write_bytes(good[:-100] + bytes(100))
    with pytest.raises(SidecarError):
        packed.unpack(pair, out)
    pack.unlink()
    with pytest.raises(SidecarError, match=r"put it beside model\.onnx"):
        packed.unpack(pair, out)
    pack.write_bytes(good)
    pair.write_bytes(pair.read_bytes() + b"\x08\x08")  # the same model, but another file
    with pytest.raises(SidecarError, match="was not packed with"):
        packed.unpack(pair, out)
    assert not out.exists()


def test_what_a_pair_leaves_when_it_is_written_over(pair: Path, plain: Path) -> None:
    old = packed.pack_path(pair)
    packed.save(Model.load(plain), pair)
    assert packed.pack_path(pair) == pair
    assert not old.exists()


def test_a_plain_model_is_not_a_packed_one(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a packed model"):
        packed.unpack(plain, tmp_path / "out.onnx")
    with pytest.raises(ModelError, match="is not a packed model"):
        onnxshrink.session(plain)


def test_a_packed_model_says_so_when_it_is_loaded(small: Path) -> None:
    with pytest.raises(ModelError, match="its weights are packed; 'onnxshrink unpack' it first"):
        Model.load(small)


def test_no_runtime_mistakes_packed_bytes_for_weights(small: Path) -> None:
    with pytest.raises(Exception, match="this model is packed: 'onnxshrink unpack' makes it"):
        onnxruntime.InferenceSession(small)


def test_what_runs_models_runs_packed_ones(plain: Path, small: Path, worker: Worker) -> None:
    """And measures them as they are: the bytes of the pack, with its reader."""
    for pair in ((plain, small), (small, plain)):
        found = compare(*pair, [FEED], worker=worker)
        assert (found.a, found.b) == tuple(map(str, pair))
        assert found.relative_error == 0
    worker.check(small)
    assert stored_bytes(small) == small.stat().st_size
    assert worker.run(PAIR / "model.onnx", [{"x": np.ones((1, 64), np.float32)}]).outputs


def test_what_works_on_models_takes_packed_ones(plain: Path, small: Path, tmp_path: Path) -> None:
    model, coded = coded_read.load(small)
    assert (coded, model.label, model.stored_bytes()) == ((), str(small), small.stat().st_size)
    assert model.digest() == Model.load(plain).digest()
    copy, place = model.clone(), model.path
    assert place is not None
    with pytest.raises(OutputError, match="is the input, which is never modified"):
        copy.save(small)
    del model
    gc.collect()
    assert place.exists()  # the copy reads its weights there
    del copy
    gc.collect()
    assert not place.exists()
    out = tmp_path / "out.onnx"
    report = onnxshrink.clean(small, out, onnxshrink.Options(check="off"))
    assert packed.is_packed(out)  # not plain, which would be bigger
    assert "the packed input was made plain to work on" in report.warnings
    assert coded_read.load(PAIR / "model.onnx")[0].own_files == {
        PAIR / "model.onnx", packed.pack_path(PAIR / "model.onnx"),
    }  # fmt: skip


def test_the_input_is_not_written_over(plain: Path, small: Path) -> None:
    with pytest.raises(OutputError):
        packed.unpack(small, small)
    with pytest.raises(OutputError):
        packed.save(Model.load(plain), plain)


def test_readers_are_written_on_request(tmp_path: Path) -> None:
    for kind, name in (("c", "onnxshrink_pack.h"), ("js", "onnxshrink_pack.mjs")):
        assert packed.write_reader(kind, tmp_path) == tmp_path / name
        assert b"ONXSPAK1" in (tmp_path / name).read_bytes()


@pytest.mark.fuzz
def test_a_killed_pack_leaves_the_old_files(plain: Path, small: Path) -> None:
    before = small.read_bytes()
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
        assert small.read_bytes() == before  # the same model packs to the same bytes
    packed.save(Model.load(plain), small)
    with packed.open_pack(small) as opened:
        opened.verify()
