"""Damaged and hostile packs: always a SidecarError, never a crash, a hang or a bomb."""

import contextlib
import importlib.util
import json
import random
import tracemalloc
import zlib

import numpy as np
import packs
import pytest
import shares

from onnxshrink.errors import SidecarError
from onnxshrink.kernels import entropy
from onnxshrink.sidecar import Sidecar, pack

ATTACKS = list(packs.attacks())
LIMIT = 1 << 20
#: Both decoders, where ``onnxshrink[fast]`` is installed.
DECODERS = ["zlib", "isal"] if importlib.util.find_spec("isal") else ["zlib"]


@pytest.fixture(autouse=True, params=DECODERS)
def decoder(request, monkeypatch):
    if request.param == "zlib":
        monkeypatch.setattr(entropy, "_inflater", lambda: (zlib.decompressobj, (zlib.error,)))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "m.pack"


def _verify(path, limit=LIMIT):
    with Sidecar.open(path, limit=limit, threads=1) as opened:
        opened.verify()
        assert len(opened.graph()) <= limit
        return {entry.name: data.tobytes() for entry, data in opened}


@pytest.fixture(params=[1, 2])
def sound(request):
    """A sound pack of each version."""
    return packs.sound(request.param)


def test_the_packs_that_all_attacks_start_from_are_sound(path, sound):
    path.write_bytes(sound)
    found = _verify(path)
    assert found["f"] == np.random.default_rng(11).normal(size=200).astype("<f4").tobytes()
    assert found["runs/../é"] == bytes([0, 0, 7, 0, 0, 0, 0, 0, 8, 9, 0, 0])
    assert found["table"] == b"abbc"
    assert found.get("dealt") in (None, b"defabcghijkl")
    with Sidecar.open(path) as opened:
        assert opened.graph() == (b"" if opened.version == 1 else b"".join(packs.GRAPH))


@pytest.mark.parametrize("attack", ATTACKS, ids=[name for name, _ in ATTACKS])
def test_attack(path, attack):
    path.write_bytes(attack[1])
    tracemalloc.start()
    with pytest.raises(SidecarError) as caught:
        _verify(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(path) in str(caught.value)
    # An empty list is 3 bytes of JSON, 64 of Python; a header may be deflated.
    assert peak < LIMIT + 24 * packs.text_bytes(attack[1])


def test_no_two_attacks_are_the_same():
    assert len({data for _, data in ATTACKS}) == len(ATTACKS)
    assert not {packs.sound(), packs.sound(2)} & {data for _, data in ATTACKS}


def test_every_flipped_bit_of_stub_head_and_header(path, sound):
    data = bytearray(sound)
    end = packs.header_at(data)[1]
    path.write_bytes(data)
    with open(path, "r+b", buffering=0) as file:
        for bit in range(8 * end):
            file.seek(bit // 8)
            file.write(bytes([data[bit // 8] ^ 1 << bit % 8]))
            with pytest.raises(SidecarError):
                Sidecar.open(path, limit=LIMIT, threads=1)
            file.seek(bit // 8)
            file.write(data[bit // 8 : bit // 8 + 1])
    assert len(_verify(path)) >= 3


def test_flipped_bits_of_the_chunks_give_an_error_or_the_same_bytes(path, sound):
    data = bytearray(sound)
    path.write_bytes(data)
    right = _verify(path)
    with Sidecar.open(path) as opened:
        version = opened.version  # both code chunks alike
    start = packs.header_at(data)[1]
    with open(path, "r+b", buffering=0) as file:
        for bit in range(8 * start, 8 * len(data), shares.BITS * (1 if version == 2 else 7)):
            file.seek(bit // 8)
            file.write(bytes([data[bit // 8] ^ 1 << bit % 8]))
            with contextlib.suppress(SidecarError):
                assert _verify(path) == right
            file.seek(bit // 8)
            file.write(data[bit // 8 : bit // 8 + 1])


def test_every_truncation(path, sound):
    data = sound
    for size in {*range(0, len(data), 64), *range(40), len(data) - 1}:
        path.write_bytes(data[:size])
        with pytest.raises(SidecarError):
            Sidecar.open(path, limit=LIMIT)


def test_padding_hides_nothing(path):
    data = bytearray(packs.sound())
    end = packs.header_at(data)[1]
    for at in (end, -5):
        assert data[at] == 0
        data[at] = 1
        path.write_bytes(data)
        with Sidecar.open(path) as opened, pytest.raises(SidecarError, match="padding"):
            opened.verify()
        data[at] = 0


def test_the_limit_is_the_users(path):
    """A megabyte that a few hundred bytes become, within every other rule."""
    pack(path, [("w", "INT8", (1 << 20,), bytes(1 << 20))], data_name="w.data")
    assert path.stat().st_size < 1000
    assert len(_verify(path, limit=1 << 20)["w"]) == 1 << 20
    with pytest.raises(SidecarError, match=r"over the limit of 1,048,575; raise the limit"):
        _verify(path, limit=(1 << 20) - 1)


def test_an_update_that_lies_about_its_base(tmp_path, path):
    rng = np.random.default_rng(3)
    tensors = [("w", "UINT8", (500,), rng.integers(0, 256, 500, np.uint8))]
    tensors += [("v", "UINT8", (500,), rng.integers(0, 256, 500, np.uint8))]
    pack(tmp_path / "base", tensors, data_name="w.data")
    pack(path, tensors, data_name="w.data", base=tmp_path / "base")
    document, area = packs.take_apart(path.read_bytes())
    assert document["chunks"][0][:2] == [2, 0]
    for change, why in [
        ({1: 1}, "not in the base"),
        ({1: 2}, "not in the base"),
        ({1: packs.BIG}, "not in the base"),
        ({2: 499}, "cannot hold"),
        ({3: 0}, "not in the base"),
        ({4: "ab" * 32}, "not what the base holds"),
        ({4: "AB" * 32}, "not a sha256"),
    ]:
        copy = json.loads(json.dumps(document))
        for field, value in change.items():
            copy["chunks"][0][field] = value
        path.write_bytes(packs.put_together(copy, area))
        with pytest.raises(SidecarError, match=why):  # noqa: SIM117
            with Sidecar.open(path, base=tmp_path / "base") as opened:
                opened.verify()


@pytest.mark.fuzz
def test_fuzz(path, sound):
    """Random changes that keep the checksum right; ONNXSHRINK_FUZZ sets how many."""
    rng = random.Random(shares.SEED)
    document, area = packs.take_apart(sound)
    refused = 0
    tracemalloc.start()
    for _ in range(shares.FUZZ):
        path.write_bytes(packs.mutated(rng, document, area))
        try:
            for data in _verify(path).values():
                assert len(data) <= LIMIT
        except SidecarError:
            refused += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused
    assert peak < 3 * LIMIT
