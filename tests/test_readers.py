"""The readers in Python, C and JavaScript: the same bytes of every sound pack, none of others."""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import packs
import pytest
import shares

from onnxshrink.errors import SidecarError
from onnxshrink.sidecar import Sidecar, pack
from onnxshrink.sidecar.header import BITS

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
#: Of both versions: what is in each.
GOLDENS = {
    (folder, name): expected
    for folder in ("", "2/")
    for name, expected in json.loads(
        (GOLDEN / folder / "expected.json").read_text(encoding="ascii")
    ).items()
}
READERS = HERE.parent / "onnxshrink" / "readers"
LIMIT = 1 << 24  # as in the programs of tests/readers

_C = {
    "c": ["gcc", "-std=c99", "-pedantic", "-O2"],
    "c sanitized": ["gcc", "-std=c99", "-O1", "-g", "-fsanitize=address,undefined",
                    "-fno-sanitize-recover=all"],
}  # fmt: skip
needs_gcc, needs_cxx, needs_node = (
    pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not installed")
    for tool in ("gcc", "g++", "node")
)
needs_inflate = pytest.mark.skipif("not inflates()", reason="node is not installed, or before 20")
IN_C = [pytest.param("c", marks=needs_gcc), pytest.param("c sanitized", marks=needs_gcc)]
LANGUAGES = [
    "python",
    *IN_C,
    pytest.param("node", marks=needs_node),
    pytest.param("browser", marks=needs_inflate),
]


def inflates():
    """Whether Node has the decompression of browsers."""
    script = "new DecompressionStream('deflate-raw')"
    return shutil.which("node") and not _run(["node", "-e", script]).returncode


def _run(command):
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert "Sanitizer" not in done.stderr, done.stderr
    assert "runtime error" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    """The C program, built when it is first asked for."""
    folder, built = tmp_path_factory.mktemp("readers"), {}

    def program(language):
        if language not in built:
            compiler, *flags = _C[language]
            built[language] = folder / language.replace(" ", "_")
            done = _run(
                [compiler, *flags, "-Wall", "-Wextra", "-Werror", f"-I{READERS}",
                 HERE / "readers/check_pack.c", "-o", built[language], "-lz"]
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
        return str(built[language])

    return program


@pytest.fixture(params=LANGUAGES)
def reader(request, programs):
    """A reader: a function of (command, paths) that runs its program."""
    language = request.param
    if language == "python":
        return None
    program = [programs(language)] if language in _C else ["node", HERE / "readers/check_pack.mjs"]

    def run(command, *paths):
        if program[0] != "node":
            return _run([*program, command, *paths])
        if language == "browser" and command == "read":
            command = "browse"
        return _run([*program, command, READERS / "onnxshrink_pack.mjs", *paths])

    return run


def _read(reader, path, base=None):
    """What a reader finds: a row per tensor, and one for the whole data file and the graph."""
    if reader is not None:
        done = reader("read", path, *([base] if base else []))
        assert done.returncode == 0, (done.stdout, done.stderr)
        *rows, whole = [line.split("\t") for line in done.stdout.splitlines()]
        tensors = [[h, dtype, int(at), name, json.loads(dims)] for h, dtype, at, name, dims in rows]
        return tensors, [*whole[:2], *(None if word == "-" else word for word in whole[2:])]
    with Sidecar.open(path, base=base, limit=LIMIT) as opened:
        opened.verify()
        tensors = [
            [hashlib.sha256(data).hexdigest(), e.dtype, e.offset, e.name, list(e.shape)]
            for e, data in opened
        ]
        header, graph = opened.header, opened.graph()
        data = path.parent / header.data_name
        opened.unpack(data)
    digest = hashlib.sha256(data.read_bytes()).hexdigest()
    graph = hashlib.sha256(graph).hexdigest() if graph else None
    return tensors, [digest, header.data_name, header.model, graph]


@pytest.mark.parametrize("name", [f"{folder}{name}" for folder, name in GOLDENS])
def test_golden_packs(reader, name, tmp_path):
    """These files can be read for ever."""
    folder = (GOLDEN / name).parent
    expected = GOLDENS[f"{folder.relative_to(GOLDEN)}/".removeprefix("./"), Path(name).name]
    path = Path(shutil.copy(GOLDEN / name, tmp_path))
    assert hashlib.sha256(path.read_bytes()).hexdigest() == expected["file"]
    base = expected["base"] and folder / expected["base"]
    tensors, whole = _read(reader, path, base)
    assert tensors == expected["tensors"]
    assert whole == expected["data"]


@pytest.mark.parametrize("version", ["", "2"])
def test_golden_packs_hold_every_filter_and_type(version):
    with Sidecar.open(GOLDEN / version / "filters.pack") as opened:
        filters = {entry.how for entry in opened.entries.values()}
        assert {(how.unit, how.gaps) for how in filters} == {
            (unit, gaps)
            for unit in (2, 4, 8, 16, 32, 64)
            for gaps in ("none", "mask", "runs", "joint")
        }
        assert {how.bits for how in filters if how.table} == {1, 2, 4, 8}
        assert {how.bits for how in filters if how.rotate} == {16, 32, 64}
    with Sidecar.open(GOLDEN / version / "types.pack") as opened:
        assert {entry.dtype for entry in opened.entries.values()} == set(BITS)
    if version:
        with Sidecar.open(GOLDEN / version / "table.pack") as opened:
            assert len(opened.entries["table"].parts) >= 2
    new, base = (GOLDEN / version / f"{name}.pack" for name in ("update", "base"))
    with Sidecar.open(new, base=base) as opened:
        assert 2 in {chunk.method for chunk in opened.header.chunks}
        assert opened.version == int(version or 1)


def test_golden_packs_are_never_written_twice(tmp_path):
    tool = HERE.parent / "tools" / "build_golden_packs.py"
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    build = [sys.executable, tool, tmp_path / "new"]
    subprocess.run(build, env=environment, check=True)
    again = subprocess.run(build, env=environment, check=False, capture_output=True)
    assert again.returncode == 1
    assert b"never written twice" in again.stderr
    made = json.loads((tmp_path / "new" / "expected.json").read_text(encoding="ascii"))
    for (folder, name), expected in GOLDENS.items():  # another zlib may code it otherwise
        if folder:
            assert made[name]["tensors"] == expected["tensors"]


@pytest.fixture(scope="session")
def large(tmp_path_factory):
    """A pack of blocks of the full size, each of the filters that real weights get, and hashes."""
    rng = np.random.default_rng(6)
    weights = rng.normal(size=700_001).astype(np.float32)
    sparse = np.where(rng.random(weights.size) < 0.9, 0, weights).astype(np.float32)
    codes = np.clip(np.rint(sparse * 3), -8, 7).astype(np.int8)
    tensors = [
        ("f32", "FLOAT", weights), ("bf16", "BFLOAT16", weights.view(np.uint16)[1::2].copy()),
        ("sparse f32", "FLOAT", sparse), ("i8", "INT8", np.rint(weights * 40).astype(np.int8)),
        ("sparse i8", "INT8", np.rint(sparse * 40).astype(np.int8)), ("i4", "UINT8", codes & 15),
        ("u8", "UINT8", (codes + np.int16(128)).astype(np.uint8)), ("sign", "BOOL", weights > 0),
    ]  # fmt: skip
    path = tmp_path_factory.mktemp("large") / "m.pack"
    pack(path, [(n, d, a.shape, a.view(np.uint8)) for n, d, a in tensors], data_name="m.data")
    return path, [hashlib.sha256(a.tobytes()).hexdigest() for *_, a in tensors]


def test_large_tensors(reader, large):
    path, hashes = large
    found, _ = _read(reader, path)
    assert [row[0] for row in found] == hashes


@pytest.fixture(scope="session")
def attacks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attacks")
    names, paths = [], []
    for number, (name, data) in enumerate(packs.attacks()):
        names.append(name)
        paths.append(folder / f"{number}.pack")
        paths[-1].write_bytes(data)
    return names, paths


def test_attacks(reader, attacks):
    """Each is refused, with an error code or a PackError; the sanitizers have nothing to say."""
    names, paths = attacks
    if reader is None:
        for path in paths:
            with pytest.raises(SidecarError), Sidecar.open(path, limit=LIMIT) as opened:
                opened.verify()
        return
    done = reader("refuse", *paths)
    assert done.returncode == 0, done.stderr
    accepted = ("0", "")
    found = done.stdout.splitlines()
    assert len(found) == len(names)
    assert [n for n, status in zip(names, found, strict=True) if status in accepted] == []


@pytest.fixture(params=[1, 2])
def sound(request, tmp_path):
    path = tmp_path / "sound.pack"
    path.write_bytes(packs.sound(request.param))
    return path


@pytest.mark.parametrize("reader", LANGUAGES[1:], indirect=True)  # Python: test_sidecar.py
@pytest.mark.parametrize("version", ["", "2"])
def test_a_wrong_base(reader, version, tmp_path):
    new, base = GOLDEN / version / "update.pack", GOLDEN / version / "base.pack"
    for wrong in ([], [GOLDEN / "types.pack"], [new]):
        assert reader("read", new, *wrong).returncode != 0
    assert reader("read", base, GOLDEN / "types.pack").returncode != 0
    damaged = bytearray(base.read_bytes())
    damaged[-len(packs.take_apart(base.read_bytes())[1]) + 20] ^= 1
    (tmp_path / "damaged").write_bytes(damaged)
    assert reader("read", new, tmp_path / "damaged").returncode != 0
    document, area = packs.take_apart(new.read_bytes())
    row = next(row for row in document["chunks"] if row[0] == 2)
    row[-1] = "ab" * 32
    (tmp_path / "lie").write_bytes(packs.put_together(document, area))
    assert reader("read", tmp_path / "lie", base).returncode != 0


@needs_cxx
def test_the_header_is_good_cxx_too(tmp_path):
    source = tmp_path / "main.cpp"
    source.write_text(
        """
        #define ONNXSHRINK_PACK_IMPLEMENTATION
        #include "onnxshrink_pack.h"
        int main() { oxp_pack *pack; return oxp_open_memory("", 0, 0, nullptr, &pack); }
        """
    )
    build = ["g++", "-std=c++11", "-Wall", "-Wextra", "-Werror", f"-I{READERS}", source]
    done = _run([*build, "-o", tmp_path / "main", "-lz"])
    assert done.returncode == 0, done.stderr
    assert _run([tmp_path / "main"]).returncode == 3  # OXP_FORMAT


@pytest.mark.parametrize("language", IN_C)
@pytest.mark.parametrize("damage", ["flips", "truncations"])
def test_all_damage_to_the_header_is_seen_in_c(programs, sound, language, damage):
    done = _run([programs(language), damage, sound])
    assert done.stdout.endswith(" refused, 0 passed\n"), done
    assert int(done.stdout.split()[0]) >= min(2000, sound.stat().st_size)


@needs_node
def test_all_damage_to_the_header_is_seen_in_javascript(sound):
    program = ["node", HERE / "readers/check_pack.mjs", "damage", READERS / "onnxshrink_pack.mjs"]
    assert _run([*program, sound]).stdout == "0 flips and 0 cuts passed\n"


@needs_node
def test_javascript_checks_that_the_model_is_the_right_one(tmp_path):
    document, area = packs.take_apart(packs.by_hand([b"a"], shape=[1]))
    document |= {"model": hashlib.sha256(b"model").hexdigest()}
    (tmp_path / "m").write_bytes(packs.put_together(document, area))
    script = f"""
        import {{ readFileSync }} from "node:fs";
        import {{ externalData }} from {json.dumps((READERS / "onnxshrink_pack.mjs").as_uri())};
        const pack = readFileSync({json.dumps(str(tmp_path / "m"))});
        const [{{ path, data }}] = await externalData(pack, {{ model: Buffer.from("model") }});
        console.log(path, data[0]);
        const wrong = externalData(pack, {{ model: Buffer.from("other") }});
        await wrong.catch((error) => console.log(error.message));
    """
    done = _run(["node", "--input-type=module", "--eval", script])
    assert done.stdout == "w.data 97\nthis pack belongs to another model\n", done.stderr


@pytest.mark.fuzz
def test_fuzz_c(programs, sound):
    """Random changes with a right checksum, under sanitizers; ONNXSHRINK_FUZZ sets how many."""
    for path in (sound, GOLDEN / "base.pack", GOLDEN / "2" / "base.pack"):
        done = _run([programs("c sanitized"), "fuzz", path, str(shares.SEED), str(shares.FUZZ)])
        assert done.returncode == 0, done.stderr
        refused, passed = (int(word) for word in done.stdout.split() if word.isdigit())
        assert refused + passed == shares.FUZZ
        assert refused


@pytest.mark.fuzz
@pytest.mark.parametrize("version", [1, 2])
def test_fuzzed_packs_mean_the_same_to_every_reader(programs, tmp_path, version):
    """Where one reader gives bytes, all give the same; where one refuses, all do."""
    rng = random.Random(shares.SEED)
    document, area = packs.take_apart(packs.sound(version))
    paths, right = [], []
    for number in range(shares.FUZZ // 10):
        paths.append(tmp_path / f"{number}.pack")
        paths[-1].write_bytes(packs.mutated(rng, document, area))
        try:
            with Sidecar.open(paths[-1], limit=LIMIT, threads=1) as opened:
                opened.graph()
                right.append(all(opened.read(name) is not None for name in opened.names))
        except SidecarError:
            right.append(False)
    found = _run([programs("c"), "refuse", *paths]).stdout.splitlines()
    assert [status == "0" for status in found] == right
    if shutil.which("node"):
        program = [
            "node",
            HERE / "readers/check_pack.mjs",
            "refuse",
            READERS / "onnxshrink_pack.mjs",
        ]
        assert [line == "" for line in _run([*program, *paths]).stdout.splitlines()] == right
