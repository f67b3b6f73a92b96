"""What would fool a run, or end it with a traceback: one kind a test."""

import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import Run
from hard_models import rows, tensor, text, weight
from onnx import numpy_helper

from onnxshrink import plain_yaml
from onnxshrink.errors import DataError, ModelError, RecipeError
from onnxshrink.options import shown
from onnxshrink.passes.quantize_weights import QuantizeWeights
from onnxshrink.report import Table, printable
from onnxshrink.runtime.compare import compare
from onnxshrink.runtime.worker import Worker

ANSWERS = "def metric(outputs):\n    "


def write(path: str, proto: onnx.ModelProto) -> Path:
    Path(path).write_bytes(proto.SerializeToString())
    return Path(path)


# ---------------------------------------------------------------- proofs of nothing


@pytest.mark.parametrize("shape", [(0, 64), (0, 3, 64)])
def test_no_rows_prove_nothing(refused: Run, small: Path, shape: tuple[int, ...]) -> None:
    np.savez("empty.npz", x=np.zeros(shape, np.float32))
    data = ("--calibration", "empty.npz")
    for words in (
        ("quantize-weights", small, "o.onnx", "--dtype", "int4", "--max-error", "1e-4"),
        ("shrink", small, "o.onnx", "--no-bench"),
        ("compare", small, small, "--max-error", "0"),
    ):
        assert "holds no" in refused(3, *words, *data).err


def test_a_comparison_of_nothing_is_no_equality(
    small: Path, tmp_path: Path, worker: Worker
) -> None:
    """Some rows go in, but none comes out."""
    proto = text(
        "g (float[n, 64] x) => (float[m, 64] y, float[n, 64] z) {"
        " y = Compress<axis = 0>(x, keep)  z = Neg(x) }"
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(2, bool), "keep"))
    path = tmp_path / "none.onnx"
    path.write_bytes(proto.SerializeToString())
    feeds = rows(2, 64)
    found = compare(path, path, feeds, worker=worker, max_error=0)
    assert found.missed == ["output 'y': is empty on every input: there is nothing to compare"]
    assert compare(path, path, feeds, worker=worker).missed == []
    del proto.graph.output[1:]
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(DataError, match="nothing to compare"):
        compare(path, path, feeds, worker=worker)


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "1e400", "x"])
@pytest.mark.parametrize(
    "words",
    [
        ["compare", "a", "b", "--max-error"], ["compare", "a", "b", "--atol"],
        ["compare", "a", "b", "--rtol"], ["compare", "a", "b", "--min-agreement"],
        ["shrink", "a", "b", "--target-ratio"], ["shrink", "a", "b", "--max-error"],
        ["shrink", "a", "b", "--max-drop"], ["shrink", "a", "b", "--max-size"],
        ["quantize-weights", "a", "b", "--max-error"],
        ["quantize-weights", "a", "b", "--max-drop"], ["clean", "a", "b", "--timeout"],
    ],
    ids=lambda words: f"{words[0]} {words[-1]}",
)  # fmt: skip
def test_numbers_are_finite(cli: Run, words: list[str], value: str) -> None:
    if words[-1] == "--max-size" and value == "nan":
        value = "nanMB"
    done = cli(*words, value)
    assert done.code == 2
    assert words[-1].strip("-").replace("-", "_") in done.err.replace("-", "_")


def test_numbers_are_finite_in_python(small: Path) -> None:
    with pytest.raises(RecipeError, match="finite"):
        compare(small, small, rows(2, 64), max_error=float("nan"))
    with pytest.raises(RecipeError, match="finite"):
        QuantizeWeights(max_error=float("nan"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["shrink", "{}", "o.onnx", "--max-size", "-5MB"], "takes a size"),
        (["shrink", "{}", "o.onnx", "--max-size", "0"], "takes a size"),
        (["clean", "{}", "o.onnx", "--shape", "x:" + "9" * 30 + ",64"], "digits"),
        (["clean", "{}", "o.onnx", "--shape", "x:40000000,64"], "numbers"),
        (["clean", "{}", "o.onnx", "--memory-limit", "much"], "takes a size"),
    ],
)
def test_options_at_their_edges(refused: Run, small: Path, words: list[str], said: str) -> None:
    assert said in refused(2, *(word.format(small) for word in words)).err


@pytest.mark.parametrize(
    "words",
    [
        ["compare", "a", "b", "--count", "0"], ["compare", "a", "b", "--count", "-1"],
        ["sensitivity", "a", "--count", "0"], ["clean", "a", "b", "--seed", "-1"],
        ["bench", "a", "--seed", "-1"], ["bench", "a", "--threads", "-1"],
        ["bench", "a", "--rounds", "0"], ["bench", "a", "--accuracy-level", "9"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_counts_and_seeds(cli: Run, words: list[str]) -> None:
    assert cli(*words).code == 2


@pytest.mark.parametrize(
    ("shape", "numbers"),
    [("40000000, 64", "2,560,000,000"), ("0, 3000000000, 3000000000", "9,000,000,000,000,000,000")],
)
def test_inputs_of_any_size_are_not_made_up(refused: Run, shape: str, numbers: str) -> None:
    path = write("wide.onnx", text(f"g (float[{shape}] x) => (float[m, 64] y) {{ y = Neg(x) }}"))
    done = refused(3, "clean", path, "o")
    assert f"generated inputs would hold {numbers} numbers" in done.err


# ------------------------------------------------------------------- code of the user


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("sys.exit(0)", "mine.py:metric ended the program with sys.exit(0)"),
        ("raise KeyError('a')", "mine.py:metric raised KeyError: 'a'"),
        ("return None", "mine.py:metric returned None, not a number"),
        ("return 'good'", "returned 'good', not a number"),
        ("return np.zeros(3)", "returned array([0., 0., 0.]), not a number"),
        ("return float('nan')", "returned NaN, not a number"),
    ],
)
def test_a_metric_that_is_none(refused: Run, small: Path, body: str, said: str) -> None:
    Path("mine.py").write_text(f"import sys\nimport numpy as np\n{ANSWERS}{body}\n")
    np.savez("data.npz", **rows(3, 64)[0])
    words = ["shrink", small, "o.onnx", "--calibration", "data.npz", "--no-bench"]
    done = refused(3, *words, "--metric", "mine.py:metric", "--max-drop", "0.1")
    assert said in done.err
    Path("mine.py").write_text("def metric():\n    return 1\n")
    done = refused(3, *words, "--metric", "mine.py:metric", "--max-drop", "0.1")
    assert "mine.py:metric raised TypeError" in done.err


def test_what_user_code_does_beside_its_work(cli: Run, small: Path) -> None:
    """It prints, and changes the directory: neither is ours."""
    Path("elsewhere").mkdir()
    Path("mine.py").write_text(
        "import os, sys\nimport numpy as np\nprint('imported')\n"
        "def data():\n"
        "    os.chdir('elsewhere')\n"
        "    for i in range(3):\n"
        "        print('fed')\n"
        "        os.chdir('..')\n"
        "        yield {'x': np.ones((2, 64), np.float32)}\n"
        "def edit(graph):\n    print('edited')\n    os.chdir('elsewhere')\n    return graph\n"
        "def leave(*_):\n    sys.exit(0)\n"
    )
    done = cli("quantize-weights", "in.onnx", "o.onnx", "--calibration", "mine.py:data", "--json",
               "--report", "r.json")  # fmt: skip
    assert done.code == 0, done.err
    assert json.loads(done.out)["checks"]["feeds"] == 3
    assert "imported\nfed\n" in done.err
    assert Path("o.onnx").exists()
    assert Path("r.json").exists()
    done = cli("surgeon", "in.onnx", "s.onnx", "--function", "mine.py:edit", "--json")
    assert done.code == 0
    assert json.loads(done.out)
    assert Path("s.onnx").exists()
    assert cli("clean", small, "c.onnx", "--calibration", "mine.py:leave").code == 3
    done = cli("surgeon", small, "s.onnx", "--function", "mine.py:leave", "--json")
    assert "ended the program with sys.exit(0)" in json.loads(done.out)["steps"][0]["reason"]


# ------------------------------------------------------------------------------ YAML

BOMB = "\n".join(
    ["a: &a [x, x, x, x, x, x, x, x, x]"]
    + [f"{c}: &{c} [{', '.join([f'*{p}'] * 9)}]" for p, c in zip("abcdefg", "bcdefgh", strict=True)]
)


@pytest.mark.parametrize(
    "value",
    ["!!bool x", "!!timestamp x", "!!python/object:os.system x", "9" * 5000, "[" * 1200,
     "[" * 1200 + "]" * 1200, '"\\ud800"', "&a [*a]", BOMB, "a: {<<: 3}", "{? [a] : b}", "\0",
     "!!float x", "!!int x", "{a: &a {b: c}, <<: [*a, 3]}"],
    ids=range(15),
)  # fmt: skip
def test_odd_yaml(refused: Run, small: Path, value: str) -> None:
    with pytest.raises(RecipeError) as caught:
        plain_yaml.parse(value, "here")
    assert len(str(caught.value)) < 200
    Path("recipe.yaml").write_text(value)
    refused(2, "apply", "recipe.yaml", small, "o.onnx")
    refused(2, "quantize-weights", small, "o.onnx", "--bits-table", "recipe.yaml")
    if "\0" not in value:
        refused(2, "quantize-weights", small, "o.onnx", "--layers", value)


@pytest.mark.parametrize(
    "steps",
    ["2020-13-45", "[clean: {max_error: 2020-01-01}]", "[quantize-weights: {block_size: %s}]",
     "[clean: {max_error: %s}]", "[clean: {keep: {a: [[[[%s]]]]}}]", "[%s: 3]", "[3]", "[[clean]]",
     "[clean: {3: 4}]", "[quantize-weights: {dtype: [int8]}]", "[clean: {max_error: .inf}]",
     "[quantize-weights: {layers: {a: {dtype: {b: c}}}}]"],
)  # fmt: skip
def test_odd_values_in_a_recipe(refused: Run, small: Path, steps: str) -> None:
    Path("recipe.yaml").write_text(f"version: 1\nsteps: {steps.replace('%s', '9' * 4000)}")
    assert len(refused(2, "apply", "recipe.yaml", small, "o.onnx").err) < 1000


def test_plain_yaml_is_as_before() -> None:
    assert plain_yaml.parse("a: &x [1, 2.5, yes]\nb: *x\nc: 2020-01-01\nd:", "here") == {
        "a": [1, 2.5, True], "b": [1, 2.5, True], "c": "2020-01-01", "d": None,
    }  # fmt: skip
    assert plain_yaml.parse("", "here") is None
    assert len(shown(list(range(10**5)))) < 80
    assert shown(10**5000) == "a number of thousands of digits"


# -------------------------------------------------------------------------- data files


def archive(path: str, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(f"{name}.npy", data)


def npy(header: bytes, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def header(shape: str, descr: str = "'<f4'") -> bytes:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()


def spoilt_zip(path: str, at: int, value: int) -> None:
    """Change a field of both headers of the one member."""
    archive(path, x=npy(header("(2, 64)"), bytes(512)))
    data = bytearray(Path(path).read_bytes())
    for magic, shift in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
        data[data.index(magic) + at + shift] = value
    Path(path).write_bytes(data)


DATA: dict[str, Callable[[], object]] = {
    "text.npz": lambda: Path("text.npz").write_text("x,y\n1,2\n"),
    "text.npy": lambda: Path("text.npy").write_text("1 2 3"),
    "header.npz": lambda: archive("header.npz", x=npy(b"{'descr': ")),
    "nested.npz": lambda: archive("nested.npz", x=npy(b"(" * 5000)),
    "keys.npz": lambda: archive("keys.npz", x=npy(b"{1: 2}\n")),
    "type.npz": lambda: archive("type.npz", x=npy(header("(2, 64)", "'<q9'"), bytes(512))),
    "tera.npz": lambda: archive("tera.npz", x=npy(header("(1000000000000, 64)"), bytes(512))),
    "tera.npy": lambda: Path("tera.npy").write_bytes(npy(header("(10000000000000, 64)"))),
    "huge.npz": lambda: archive("huge.npz", x=npy(header("(10000000000000000000000, 64)"))),
    "negative.npz": lambda: archive("negative.npz", x=npy(header("(-2, 64)"), bytes(512))),
    "short.npz": lambda: archive("short.npz", x=npy(header("(2, 64)"), bytes(100))),
    "bytes.npz": lambda: archive("bytes.npz", x=b"no array"),
    "encrypted.npz": lambda: spoilt_zip("encrypted.npz", 6, 1),
    "method.npz": lambda: spoilt_zip("method.npz", 8, 97),
    "version.npz": lambda: spoilt_zip("version.npz", 4, 99),
    "outside.pb": lambda: outside_pb("outside.pb"),
    "type.pb": lambda: Path("type.pb").write_bytes(
        onnx.TensorProto(dims=[2, 64], data_type=99, raw_data=bytes(512)).SerializeToString()
    ),
    "tera.pb": lambda: Path("tera.pb").write_bytes(
        onnx.TensorProto(dims=[2**40, 64], data_type=1, raw_data=bytes(512)).SerializeToString()
    ),
}  # fmt: skip


def outside_pb(path: str) -> None:
    Path("secret").write_bytes(bytes(512))
    stub = onnx.TensorProto(dims=[2, 64], data_type=1)
    stub.data_location = onnx.TensorProto.EXTERNAL
    stub.external_data.add(key="location", value="secret")
    Path(path).write_bytes(stub.SerializeToString())


@pytest.mark.parametrize("name", DATA)
def test_odd_data_files(refused: Run, small: Path, name: str) -> None:
    DATA[name]()
    assert name in refused(3, "clean", small, "o.onnx", "--calibration", name).err


def test_an_archive_unpacks_to_no_more_than_it_may(refused: Run, cli: Run, small: Path) -> None:
    with io.BytesIO() as buffer:
        np.save(buffer, np.zeros((3000, 64), np.float32))
        archive("zeros.npz", x=buffer.getvalue())
    words = ("clean", small, "o.onnx", "--calibration", "zeros.npz", "--data-limit")
    assert "unpacks to 768,128 bytes, more than 700,000" in refused(3, *words, "700kB").err
    assert cli(*words, "800kB").code == 0


# ------------------------------------------------------------------------------ models


def test_hard_linked_data(cli: Run, small: Path) -> None:
    """ONNX Runtime takes them, so do we."""
    onnx.save_model(onnx.load(small), "m.onnx", save_as_external_data=True, location="m.data",
                    size_threshold=10)  # fmt: skip
    os.link("m.data", "other")
    assert cli("inspect", "m.onnx").code == 0
    assert cli("quantize-weights", "m.onnx", "o.onnx").code == 0
    assert cli("clean", "m.onnx", "c.onnx", "--storage", "external").code == 0
    assert cli("compare", small, "m.onnx", "--max-error", "0").code == 0


def test_a_mask_of_the_lowest_float(cli: Run) -> None:
    lowest = np.triu(np.full((64, 64), np.finfo(np.float32).min, np.float32), 1)
    proto = text("g (float[n, 64] x) => (float[n, 64] y) { a = MatMul(x, w)  y = Add(a, mask) }",
                 w=weight(1, 64, 64))  # fmt: skip
    proto.graph.initializer.append(tensor("mask", lowest))
    del proto.graph.output[0].type.tensor_type.shape.dim[0]
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 64
    proto.graph.output[0].type.tensor_type.shape.dim.insert(0, onnx.TensorShapeProto.Dimension())
    done = cli("inspect", write("mask.onnx", proto))
    assert done.code == 0, done.err
    assert "-3.403e+38" in cli("inspect", "mask.onnx", "--layer", "mask").out


def test_an_output_that_is_listed_twice(cli: Run) -> None:
    proto = text("g (float[n, 64] x) => (float[n, 64] y) { y = MatMul(x, w) }", w=weight(1, 64, 64))
    proto.graph.output.append(proto.graph.output[0])
    path = write("twice.onnx", proto)
    assert cli("compare", path, path, "--max-error", "0").code == 0


def test_an_invalid_model_is_named_invalid_when_looked_at(refused: Run) -> None:
    """The walks trust attributes; the checker says what they must not trust."""
    proto = text(
        "g (float[n, 64] x) => (float[n, 64] y) {"
        " most = Constant<value = int64 {3}>()  go = Constant<value = bool {1}>()"
        " y = Loop(most, go, x)<body = b (int64 i, bool c, float[n, 64] a) =>"
        " (bool d, float[n, 64] e) { d = Identity(c)  e = Neg(a) }> }"
    )
    del proto.graph.node[-1].attribute[:]
    path = write("bad.onnx", proto)
    assert "not valid ONNX" in refused(3, "inspect", path).err


def test_an_input_of_an_undefined_type(refused: Run) -> None:
    proto = text("g (float[n, 64] x) => (float[n, 64] y) { y = Neg(x) }")
    proto.graph.input[0].type.tensor_type.elem_type = 0
    refused(3, "clean", write("odd.onnx", proto), "o.onnx")


def test_an_endless_loop_ends(refused: Run) -> None:
    proto = text(
        "g (float[4] x) => (float[4] y) {"
        " most = Constant<value = int64 {9223372036854775807}>()"
        " go = Constant<value = bool {1}>()"
        " y = Loop(most, go, x)<body = b (int64 i, bool c, float[4] a) => (bool d, float[4] e)"
        " { d = Identity(c)  e = Neg(a) }> }"
    )
    path = write("loop.onnx", proto)
    began = time.monotonic()
    done = refused(3, "compare", path, path, "--timeout", "2")
    assert "took longer than 2 s" in done.err
    assert time.monotonic() - began < 100


# ------------------------------------------------------------------------ worker and pipes


def test_every_worker_of_a_run_obeys_its_limits(
    cli: Run, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, begun, make = {"timeout": 77.0, "memory_limit": 2**35}, [], Worker.__init__

    def recorded(self: Worker, **limits: Any) -> None:
        begun.append({name: limits[name] for name in asked})
        make(self, **limits)

    monkeypatch.setattr(Worker, "__init__", recorded)
    limits = ("--timeout", 77, "--memory-limit", "32GiB")
    for words, workers in (
        (("prune-channels", small, "--dry-run"), 1),
        (("prune-channels", small, "--explain", "w"), 1),
        (("bench", small, "--rounds", 6), 2),
        (("shrink", small, "o.onnx"), 4),  # for the run, for inputs, and for two models on a clock
    ):
        begun.clear()
        done = cli(*words, *limits)
        assert done.code == 0, done.err
        assert begun == [asked] * workers


def test_a_worker_that_dies_in_the_middle_of_an_answer(tmp_path: Path, small: Path) -> None:
    """Part of a message is no message."""
    code = (
        "import os, pickle, sys\n"
        "sys.stdin.buffer.read(8)\n"
        "data = pickle.dumps(('value', 'a' * 1000))\n"
        "sys.stdout.buffer.write(len(data).to_bytes(8, 'little') + data[:500])\n"
    )
    with Worker() as worker:
        worker.start()
        child = worker._child
        assert child is not None
        child.kill()
        child.wait()
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.close()
        child.stdout.close()
        worker._child = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        other = worker._child
        with pytest.raises(ModelError, match="ended with exit code 0"):
            worker.check(small)
        other.wait()
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdin.close()
        other.stdout.close()


# ------------------------------------------------------------------------------- names

NAMES = (
    "emb[user]",
    "[link=file:///x]y",
    "[/x]",
    "a\x1b[31mred\x07",
    "line\nline",
    "\u202etxt.exe",
)


def test_names_are_data(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Brackets are not markup, escape codes and line ends are shown and not done."""
    from onnxshrink.cli._terminal import show

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    table = Table(f"names {NAMES[3]}", ("name", "[/y]"))
    for name in NAMES:
        table.add(name, "1")
    screen = Terminal()
    with monkeypatch.context() as patched:
        patched.setattr("sys.stdout", screen)
        patched.setenv("COLUMNS", "200")
        patched.setenv("NO_COLOR", "1")
        show(table)
    for shown_ in (screen.getvalue(), table.to_markdown()):
        for name in NAMES:
            assert printable(name) in shown_
        for code in ("\x1b[31m", "\x07", "\u202e", "\x1b]8"):
            assert code not in shown_
    assert printable("a\nb\x1b\ud800é") == "a\\nb\\x1b\\ud800é"
    nodes = "".join(f" w{i} = Identity(x)" for i in range(1))
    proto = text(f"g (float[n, 64] x) => (float[n, 64] y) {{{nodes} y = MatMul(x, w) }}",
                 w=weight(1, 64, 64))  # fmt: skip
    for name in NAMES:
        proto.graph.initializer[0].name = proto.graph.node[-1].input[1] = name
        write("named.onnx", proto)
        for words in (
            ("inspect", "named.onnx"), ("inspect", "named.onnx", "--layer", name),
            ("quantize-weights", "named.onnx", "o.onnx", "--report", "r.md"),
            ("quantize-weights", "named.onnx", "o.onnx", "--keep", name + "x"),
            ("inspect", "named.onnx", "--layer", name + "x"),
        ):  # fmt: skip
            done = cli(*words)
            for code in ("\x1b", "\x07", "\u202e", "line\nline"):
                assert code not in done.out + done.err
        assert "\x1b" not in Path("r.md").read_text()


# ------------------------------------------------------------------------------ stopping


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_stopped_cleans_up(
    tmp_path: Path, small: Path, number: int, code: int
) -> None:
    (tmp_path / "mine.py").write_text(
        "import time\n"
        "def data():\n    print('ready', flush=True)\n    time.sleep(60)\n    return []\n"
    )
    command = [sys.executable, "-B", "-m", "onnxshrink", "quantize-weights", str(small), "o.onnx"]
    child = subprocess.Popen(
        [*command, "--calibration", "mine.py:data"], cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # A shell that runs the tests in the background has them ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert child.stderr is not None
    assert child.stderr.readline() == "ready\n"  # what users print goes to stderr
    child.send_signal(number)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out) == (code, "")
    assert err == "error: stopped\n"
    assert {path.name for path in tmp_path.iterdir()} == {"in.onnx", "mine.py"}


# ------------------------------------------------------------------------------- budgets


def calling_twice(levels: int) -> onnx.ModelProto:
    """Functions, each of which calls the one below it twice."""
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("f", 1)]
    functions = []
    for level in range(levels):
        kind, domain = ("Neg", "") if not level else (f"f{level - 1}", "f")
        nodes = [
            onnx.helper.make_node(kind, ["a"], ["b"], domain=domain),
            onnx.helper.make_node(kind, ["b"], ["c"], domain=domain),
        ]
        functions.append(onnx.helper.make_function("f", f"f{level}", ["a"], ["c"], nodes, opsets))
    x, y = (onnx.helper.make_tensor_value_info(n, 1, ["n", 64]) for n in "xy")
    call = onnx.helper.make_node(f"f{levels - 1}", ["x"], ["y"], domain="f")
    graph = onnx.helper.make_graph([call], "g", [x], [y])
    return onnx.helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize(
    "words", [["inspect", "deep.onnx"], ["quantize-weights", "deep.onnx", "o.onnx"]]
)
def test_functions_that_double_at_every_level(words: list[str], refused: Run) -> None:
    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.rewrite.inline import inline_functions

    write("deep.onnx", calling_twice(40))
    assert "its functions are 1.1e+12 nodes when they are inlined" in refused(3, *words).err
    assert inline_functions(Model.load(write("flat.onnx", calling_twice(3)))) == 5


def test_walking_has_a_budget(refused: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxshrink.graph.analysis.shapes._MOST_VISITS", 20)
    path = write("deep.onnx", calling_twice(6))
    assert "nested too deeply" in refused(3, "inspect", path).err


def test_a_scan_that_says_it_takes_millions_of_inputs(refused: Run) -> None:
    proto = text(
        "g (float[4] x) => (float[4] y) {"
        " y = Scan<num_scan_inputs = 300000000, body = b (float a) => (float e) { e = Neg(a) }>(x)"
        " }"
    )
    path = write("scan.onnx", proto)
    refused(3, "clean", path, "o.onnx")


@pytest.mark.parametrize(
    "node",
    ["Conv<pads = [2000000, 2000000, 2000000, 2000000], strides = [3000000, 3000000]>(c, k)",
     "Pad(c, far)", "Tile(c, much)"],
)  # fmt: skip
def test_folding_has_a_budget(node: str, tmp_path: Path) -> None:
    from onnxshrink.graph.analysis.shapes import walk
    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.rewrite.clean import fold_constants

    proto = text(f"g (float[n, 64] x) => (float[n, 64] y) {{ f = {node}  y = Neg(x) }}")
    for name, values in (
        ("c", np.ones((1, 1, 2, 2), np.float32)), ("k", np.ones((1, 1, 1, 1), np.float32)),
        ("far", np.full(8, 10**6, np.int64)), ("much", np.full(4, 10**4, np.int64)),
    ):  # fmt: skip
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    path = tmp_path / "folded.onnx"
    path.write_bytes(proto.SerializeToString())
    model = Model.load(path)
    walk(model)
    fold_constants(model)
    assert [n.op_type for n in model.ir.graph] == [node.partition("<")[0].partition("(")[0], "Neg"]
