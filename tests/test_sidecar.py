"""The container: every bit comes back, files are replaced whole, updates need their base."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import packs
import pytest
import shares
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from onnxshrink import sidecar
from onnxshrink.errors import SidecarError
from onnxshrink.kernels import entropy
from onnxshrink.sidecar import Sidecar, Writer, head, pack
from onnxshrink.sidecar.header import ALIGN, BASE, BITS, DEFLATE, STORED, nbytes

DATA = "model.onnx.data"


def _unpacked(path, **options):
    with Sidecar.open(path, **options) as opened:
        opened.verify()
        return {entry.name: data.tobytes() for entry, data in opened}


@st.composite
def tensors(draw):
    """A few tensors of any type and shape, 0-d and empty ones too, of few values or of many."""
    found = []
    for number in range(draw(st.integers(0, 4))):
        dtype = draw(st.sampled_from(sorted(BITS)))
        shape = tuple(draw(st.lists(st.integers(0, 9), max_size=3)))
        size = nbytes(dtype, shape)
        few = st.sampled_from([0, 1, 0x11, 0x80, 255])
        values = draw(st.lists(draw(st.sampled_from([few, st.integers(0, 255)])), max_size=40))
        data = (bytes(values) * (size // max(len(values), 1) + 1))[:size].ljust(size, b"\0")
        found.append((f"tensor {number}", dtype, shape, data))
    return found


@settings(max_examples=shares.EXAMPLES)
@given(tensors())
def test_every_bit_comes_back(tmp_path_factory, tensors):
    path = tmp_path_factory.mktemp("pack") / "m.pack"
    header = pack(path, tensors, data_name=DATA)
    assert _unpacked(path) == {name: data for name, _, _, data in tensors}
    assert [(e.dtype, e.shape) for e in header.tensors] == [(d, s) for _, d, s, _ in tensors]
    with Sidecar.open(path) as opened:
        assert opened.header == header
        opened.unpack(path.with_name(DATA))
    flat = path.with_name(DATA).read_bytes()
    assert len(flat) == header.data_length
    for entry, (_, _, _, data) in zip(header.tensors, tensors, strict=True):
        assert flat[entry.offset : entry.offset + entry.nbytes] == data
        assert entry.offset % ALIGN == 0
        assert entry.packed <= entry.nbytes


def _big(kind):
    """A tensor of several blocks."""
    rng = np.random.default_rng(8)
    if kind == "noise":
        return "UINT8", rng.integers(0, 256, 700_001, np.uint8)
    if kind == "uneven":  # the sample sees zeros only; the rest is noise, in which runs do not pay
        data = np.zeros(3_000_000, np.uint8)
        for start in range(100_000, data.size - 100_000, 400_000):
            data[start : start + 280_000] = rng.integers(1, 256, 280_000)
        return "INT8", data
    floats = rng.normal(size=2_200_001).astype(np.float32)
    if kind == "sparse":
        floats[rng.random(floats.size) < 0.9] = 0
    if kind == "sign":
        return "BOOL", (floats > 0).astype(np.uint8)
    if kind == "levels":
        return "FLOAT", np.rint(floats).view(np.uint8)
    if kind == "half":
        return "BFLOAT16", floats.view(np.uint16)[1::2].copy().view(np.uint8)
    return "FLOAT", floats.view(np.uint8)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", ["noise", "uneven", "dense", "sparse", "sign", "levels", "half"])
def test_blocks(tmp_path, kind, threads):
    dtype, data = _big(kind)
    path = tmp_path / "m.pack"
    shape = (data.size * 8 // BITS[dtype],)
    entry = pack(path, [("w", dtype, shape, data)], data_name=DATA, threads=threads).tensors[0]
    assert len(entry.chunks) > entry.how.streams
    assert entry.packed <= data.size
    with Sidecar.open(path, threads=threads) as opened:
        assert np.array_equal(opened.read("w"), data)


def test_same_tensors_give_the_same_bytes_whatever_the_threads(tmp_path):
    dtype, data = _big("sparse")
    for threads in (1, 4):
        pack(
            tmp_path / f"{threads}.pack", [("w", dtype, (2_200_001,), data)],
            data_name=DATA, threads=threads,
        )  # fmt: skip
    assert (tmp_path / "1.pack").read_bytes() == (tmp_path / "4.pack").read_bytes()


def test_identical_tensors_are_stored_once(tmp_path):
    data = np.random.default_rng(0).integers(0, 256, 100_000, np.uint8)
    one = pack(tmp_path / "1", [("a", "UINT8", (100_000,), data)], data_name=DATA)
    two = pack(tmp_path / "2", [(n, "UINT8", (100_000,), data) for n in "ab"], data_name=DATA)
    assert one.chunks == two.chunks
    assert _unpacked(tmp_path / "2") == {"a": data.tobytes(), "b": data.tobytes()}


def test_bytes_that_do_not_compress_lie_in_the_file_as_they_are(tmp_path):
    data = np.random.default_rng(0).integers(0, 256, 600_000, np.uint8)
    path = tmp_path / "m.pack"
    header = pack(path, [("w", "UINT8", (600_000,), data)], data_name=DATA)
    first = header.chunks[header.tensors[0].chunks[0]]
    start = path.stat().st_size - sum(c.packed for c in header.chunks) + first.offset
    assert first.method == STORED
    assert path.read_bytes()[start : start + data.size] == data.tobytes()


def test_entries_tell_what_was_saved(tmp_path):
    dtype, data = _big("sparse")
    pack(
        tmp_path / "m", [("w", dtype, (2_200_001,), data), ("e", "INT8", (0,), b"")], data_name=DATA
    )
    with Sidecar.open(tmp_path / "m") as opened:
        entry = opened.entries["w"]
        assert opened.names == ("w", "e")
        assert len(opened) == 2
    assert entry.nbytes == 4 * 2_200_001
    assert entry.bits_per_weight == 8 * entry.packed / 2_200_001
    assert 2.4 < entry.bits_per_weight < 3.5  # a tenth of the floats, and where they are
    assert str(entry.how) == "runs+rotate+planes"
    assert opened.entries["e"].bits_per_weight == 0


def test_read_into_an_array_and_of_nothing(tmp_path):
    pack(tmp_path / "m", [("w", "INT8", (3,), b"abc")], data_name=DATA)
    with Sidecar.open(tmp_path / "m") as opened:
        out = np.zeros(3, np.uint8)
        assert opened.read("w", out) is out
        assert out.tobytes() == b"abc"
        with pytest.raises(ValueError, match="3 uint8"):
            opened.read("w", np.zeros(4, np.uint8))
        with pytest.raises(SidecarError, match="no tensor 'x'"):
            opened.read("x")


def test_memory_stays_near_the_tensor(tmp_path):
    data = np.random.default_rng(1).normal(size=1 << 23).astype(np.float32).view(np.uint8)
    pack(tmp_path / "m", [("w", "FLOAT", (1 << 23,), data)], data_name=DATA)
    with Sidecar.open(tmp_path / "m", threads=2) as opened:
        tracemalloc.start()
        assert opened.read("w").size == data.size
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < data.size + (16 << 20)


def test_the_writer_holds_one_tensor_at_a_time(tmp_path):
    def many():
        for number in range(12):
            values = np.random.default_rng(number).normal(size=1 << 20).astype(np.float32)
            yield f"w{number}", "FLOAT", (1 << 20,), values.view(np.uint8)

    tracemalloc.start()
    pack(tmp_path / "m", many(), data_name=DATA, threads=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 << 20  # 4 MiB a tensor, 48 in all


@pytest.mark.parametrize(
    ("tensor", "why"),
    [
        (("w", "FLOAT", (2,), b"abc"), "3 bytes for FLOAT"),
        (("w", "INT4", (3,), b"a"), "1 bytes for INT4"),
        (("w", "INT8", (-1,), b""), "shape"),
        (("w", "STRING", (1,), b"a"), "leave it in the .onnx"),
        (("", "INT8", (1,), b"a"), "name"),
        (("a\n", "INT8", (1,), b"a"), "name"),
        (("\ud800", "INT8", (1,), b"a"), "not text"),
        (("taken", "INT8", (1,), b"a"), "two tensors"),
    ],
)
def test_the_writer_refuses(tmp_path, tensor, why):
    with pytest.raises(SidecarError, match=why):
        pack(tmp_path / "m", [("taken", "INT8", (1,), b"a"), tensor], data_name=DATA)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["../w", "a/b", "..", "", "C:w", "a\\b", "\0"])
def test_no_name_leads_elsewhere(tmp_path, name):
    with pytest.raises(SidecarError, match="plain name"):
        pack(tmp_path / "m", [], data_name=name)
    with pytest.raises(SidecarError, match="plain name"):
        sidecar.sibling(tmp_path / "model.onnx", name)


def test_names_of_tensors_are_keys_and_never_paths(tmp_path):
    inside = tmp_path / "in"
    inside.mkdir()
    names = ["../out", "/etc/passwd", "C:\\x", "a/../b", "é\u2028\U0001f600"]
    pack(inside / "m", [(n, "INT8", (1,), b"a") for n in names], data_name=DATA)
    assert list(_unpacked(inside / "m")) == names
    assert os.listdir(tmp_path) == ["in"]
    assert sidecar.sibling(inside / "model.onnx", "m") == inside / "m"


def test_pairing_of_version_1(tmp_path):
    model = tmp_path / "model.onnx"
    model.write_bytes(b"a model")
    document, area = packs.take_apart(packs.sound())
    document["model"] = hashlib.sha256(b"a model").hexdigest()
    (tmp_path / "m").write_bytes(packs.put_together(document, area))
    with Sidecar.open(tmp_path / "m") as opened:
        opened.verify(model)
        model.write_bytes(b"another")
        with pytest.raises(SidecarError, match="was not packed with"):
            opened.verify(model)


def test_a_graph_of_several_chunks(tmp_path):
    graph = np.random.default_rng(9).integers(0, 9, 600_000, np.uint8).tobytes()
    header = pack(tmp_path / "m", [("w", "INT8", (1,), b"a")], data_name=DATA, graph=graph)
    assert len(header.graph) == 3
    assert header.graph_length == len(graph)
    pack(tmp_path / "n", [], data_name=DATA, graph=graph[:-1] + b"!", base=tmp_path / "m")
    with Sidecar.open(tmp_path / "n", base=tmp_path / "m") as update:
        assert update.graph() == graph[:-1] + b"!"
        assert [chunk.method for chunk in update.header.chunks] == [BASE, BASE, DEFLATE]
    with Sidecar.open(tmp_path / "m", limit=len(graph) + 1) as opened:
        assert opened.graph() == graph
    with pytest.raises(SidecarError, match="over the limit"):
        Sidecar.open(tmp_path / "m", limit=len(graph))


@pytest.mark.parametrize("dtype", ["INT8", "INT16"])
def test_rows_that_are_alike_are_coded_together(tmp_path, monkeypatch, dtype):
    """Rows with small and with large steps, mixed: half a bit a weight less."""
    rng = np.random.default_rng(12)
    steps = rng.choice([0.6, 4, 20], 3000)
    codes = (
        np.rint(rng.laplace(size=(3000, 70)) * steps[:, None]).clip(-90, 90).astype(dtype.lower())
    )
    table = [("w", dtype, codes.shape, codes)]
    header = pack(tmp_path / "dealt", table, data_name=DATA)
    (entry,) = header.tensors
    assert 2 <= len(entry.parts) <= 8
    assert _unpacked(tmp_path / "dealt") == {"w": codes.tobytes()}
    with Sidecar.open(tmp_path / "dealt") as opened:
        opened.unpack(tmp_path / DATA)
        assert entry == opened.entries["w"]
    assert (tmp_path / DATA).read_bytes() == codes.tobytes()
    again = pack(tmp_path / "again", table, data_name=DATA, base=tmp_path / "dealt")
    assert _unpacked(tmp_path / "again", base=tmp_path / "dealt") == {"w": codes.tobytes()}
    assert again.tensors[0].packed < 0.1 * entry.packed
    monkeypatch.setattr(entropy, "deal", lambda *_: None)
    (plain,) = pack(tmp_path / "plain", table, data_name=DATA).tensors
    assert entry.packed < 0.92 * plain.packed


def test_many_alike_tensors_keep_the_ratio_of_the_header(tmp_path):
    """Deflate alone would say 70 times as much; every reader refuses that."""
    alike = [(f"{n:05}", "INT8", (1,), b"a") for n in range(9000)]
    header = pack(tmp_path / "m", alike, data_name=DATA)
    assert len(zlib.compress(header.dump(), 9)) < (tmp_path / "m").stat().st_size
    assert len(_unpacked(tmp_path / "m")) == 9000


def test_a_whole_model_is_an_onnx_model_that_says_what_it_is(tmp_path):
    path = tmp_path / "m.onnx"
    for size in (1, 1000, 300_000):
        noise = np.random.default_rng(size).integers(0, 256, size, np.uint8)
        pack(path, [("w", "UINT8", (size,), noise)], data_name=DATA)
        (node,) = onnx.load(path).graph.node
        assert (node.domain, node.op_type[:20]) == ("onnxshrink", "this model is packed")
        onnx.checker.check_model(path)
        with pytest.raises(Fail, match="'onnxshrink unpack' makes it plain"):
            onnxruntime.InferenceSession(path)


# Updates


@pytest.fixture
def versions(tmp_path):
    """Two versions of a tensor that differ in one block of nine; the old one's pack."""
    old = np.random.default_rng(4).normal(size=600_000).astype(np.float32)
    new = old.copy()
    new[300_000] = 1
    pack(tmp_path / "old", [("w", "FLOAT", old.shape, old.view(np.uint8))], data_name=DATA)
    return old, new


def _update(tmp_path, new):
    return pack(
        tmp_path / "new", [("w", "FLOAT", new.shape, new.view(np.uint8))],
        data_name=DATA, base=tmp_path / "old",
    )  # fmt: skip


def test_an_update_holds_only_what_changed(tmp_path, versions):
    header = _update(tmp_path, versions[1])
    assert [c.method for c in header.chunks].count(BASE) == 8
    assert (tmp_path / "new").stat().st_size < (tmp_path / "old").stat().st_size / 2
    assert _unpacked(tmp_path / "new", base=tmp_path / "old") == {"w": versions[1].tobytes()}


def test_an_update_needs_its_base(tmp_path, versions):
    _update(tmp_path, versions[1])
    with Sidecar.open(tmp_path / "new") as opened, pytest.raises(SidecarError, match="the base"):
        opened.read("w")
    other = versions[0] + 1
    pack(tmp_path / "other", [("w", "FLOAT", other.shape, other.view(np.uint8))], data_name=DATA)
    for wrong in ("other", "new"):
        with pytest.raises(SidecarError, match="not its base"):
            Sidecar.open(tmp_path / "new", base=tmp_path / wrong)
    with pytest.raises(SidecarError, match="no base at all"):
        Sidecar.open(tmp_path / "old", base=tmp_path / "other")
    with pytest.raises(SidecarError, match="is an update itself"):
        pack(tmp_path / "newer", [], data_name=DATA, base=tmp_path / "new")


def test_a_damaged_base_is_refused(tmp_path, versions):
    _update(tmp_path, versions[1])
    data = bytearray((tmp_path / "old").read_bytes())
    data[-1] ^= 1
    (tmp_path / "old").write_bytes(data)
    opened = Sidecar.open(tmp_path / "new", base=tmp_path / "old")
    with opened, pytest.raises(SidecarError, match="damaged"):
        opened.verify()
    with pytest.raises(SidecarError, match="damaged"):
        _update(tmp_path, versions[1])


# Files


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "folder"])
def test_only_plain_files_are_opened(tmp_path, kind):
    pack(tmp_path / "m", [], data_name=DATA)
    path = tmp_path / "x"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / ("m" if kind == "link" else "nothing"))
    with pytest.raises(SidecarError, match="plain file"):
        Sidecar.open(path)


def test_writing_over_a_link_replaces_the_link(tmp_path):
    (tmp_path / "target").write_bytes(b"precious")
    (tmp_path / "m").symlink_to(tmp_path / "target")
    pack(tmp_path / "m", [("w", "INT8", (1,), b"a")], data_name=DATA)
    assert (tmp_path / "target").read_bytes() == b"precious"
    assert _unpacked(tmp_path / "m") == {"w": b"a"}


def test_an_error_leaves_the_old_pack_and_nothing_else(tmp_path):
    pack(tmp_path / "m", [("w", "INT8", (1,), b"a")], data_name=DATA)

    def broken():
        yield "w", "INT8", (1,), b"b"
        raise KeyError("the model is gone")

    with pytest.raises(KeyError):
        pack(tmp_path / "m", broken(), data_name=DATA)
    assert _unpacked(tmp_path / "m") == {"w": b"a"}
    assert os.listdir(tmp_path) == ["m"]


def test_unpacking_a_damaged_pack_leaves_no_file(tmp_path):
    pack(tmp_path / "m", [("w", "INT8", (4,), b"abcd")], data_name=DATA)
    data = bytearray((tmp_path / "m").read_bytes())
    data[-1] ^= 1
    (tmp_path / "m").write_bytes(data)
    with Sidecar.open(tmp_path / "m") as opened, pytest.raises(SidecarError, match="damaged"):
        opened.unpack(tmp_path / DATA)
    assert os.listdir(tmp_path) == ["m"]


_WRITER = """
import os
import signal
import sys
import numpy as np
from onnxshrink.sidecar import pack
seed = int(sys.argv[2])
rng = np.random.default_rng(seed)
data = [(f"w{i}", "FLOAT", (200_000,), rng.normal(size=200_000).astype("f4")) for i in range(6)]
if sys.argv[3].startswith("die"):
    real = os.replace
    def replace(*paths):
        if sys.argv[3] == "die after":
            real(*paths)
        os.kill(os.getpid(), signal.SIGKILL)
    os.replace = replace
while True:
    print("go", flush=True)
    pack(sys.argv[1], data, data_name="model.onnx.data")
    if sys.argv[3] == "once":
        break
"""


def _writer(path, seed, times):
    command = [sys.executable, "-c", _WRITER, str(path), str(seed), times]
    environment = os.environ | {"PYTHONPATH": str(Path(sidecar.__file__).parents[2])}
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)


@pytest.fixture
def old(tmp_path):
    """A pack, and its bytes."""
    with _writer(tmp_path / "m", 1, "once") as process:
        assert process.wait() == 0
    return tmp_path / "m", (tmp_path / "m").read_bytes()


def test_a_killed_writer_leaves_a_whole_pack(old):
    """kill -9 at random moments of packing over an old file; then the retry works."""
    path, before = old
    moments = random.Random(0)
    with _writer(path, 2, "again and again") as process:
        process.stdout.readline()
        start = time.perf_counter()
        process.stdout.readline()
        once = time.perf_counter() - start
        process.kill()
    after = path.read_bytes()
    assert after != before
    for _ in range(shares.KILLS):
        path.write_bytes(before)
        with _writer(path, 2, "again and again") as process:
            process.stdout.readline()
            time.sleep(moments.uniform(0, 1.5 * once))
            process.kill()
        assert path.read_bytes() in (before, after)
    with _writer(path, 2, "once") as process:
        assert process.wait() == 0
    assert path.read_bytes() == after
    assert len(_unpacked(path)) == 6


@pytest.mark.parametrize("moment", ["die before", "die after"])
def test_a_writer_killed_beside_its_rename(old, moment):
    path, before = old
    with _writer(path, 2, moment) as process:
        assert process.wait() == -signal.SIGKILL
    assert (path.read_bytes() == before) == (moment == "die before")
    assert len(_unpacked(path)) == 6


def test_concurrent_writers_leave_one_whole_pack(tmp_path):
    path = tmp_path / "m"
    writers = [_writer(path, seed, "once") for seed in range(4)]
    for writer in writers:
        assert writer.wait() == 0
        writer.stdout.close()
    assert len(_unpacked(path)) == 6
    assert os.listdir(tmp_path) == ["m"]


def test_a_file_cut_short_under_the_reader_is_an_error(tmp_path):
    dtype, data = _big("noise")
    pack(tmp_path / "m", [("w", dtype, data.shape, data)], data_name=DATA)
    with Sidecar.open(tmp_path / "m") as opened:
        os.truncate(tmp_path / "m", 1000)
        with pytest.raises(SidecarError, match="cut short"):
            opened.read("w")


def test_leaving_the_writer_without_finishing_writes_nothing(tmp_path):
    with Writer(tmp_path / "m", data_name=DATA) as writer:
        assert writer.add("w", "INT8", (1,), b"a").offset == 0
        assert writer.add("v", "INT8", (1,), b"a").offset == ALIGN
    assert not any(tmp_path.iterdir())


def test_the_specification_shows_the_stub():
    text = (Path(__file__).parent.parent / "docs" / "sidecar.md").read_text()
    shown = text.partition("The stub in hexadecimal:\n\n```\n")[2].partition("```")[0]
    assert head.stub(0).startswith(bytes.fromhex(shown))
    assert len(bytes.fromhex(shown)) == head.STUB - 5
    assert f"| {head.STUB}-{head.STUB + 7} | `ONXSPAK2` |" in text
