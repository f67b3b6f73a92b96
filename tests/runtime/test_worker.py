import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from onnx import numpy_helper, parser

from onnxshrink.errors import DataError, ModelError, RecipeError, UnsupportedModel
from onnxshrink.runtime.session import SessionOptions
from onnxshrink.runtime.worker import Worker

SQUARE = "(float[N] x) => (float[N] y, float[N] z) { y = Mul(x, x) z = Neg(x) }"
ENDLESS = """(float[1] x) => (float[1] y)
<int64 count = {1000000000000}, bool always = {1}> {
    y = Loop(count, always, x) <body = b (int64 i, bool c, float[1] a) => (bool d, float[1] e) {
        d = Identity(c) e = Sin(a)
    }>
}"""
X = np.array([1, 2, 3], np.float32)


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


@pytest.fixture
def only_child():
    """The process id of the one child that was started since the test began."""
    before = children()

    def find() -> int:
        (pid,) = children() - before
        return pid

    yield find
    assert children() <= before  # not even a zombie is left


def test_runs_every_feed(worker, onnx_file):
    run = worker.run(onnx_file(SQUARE), [{"x": X}, {"x": X[:1] * 4}])
    assert run.output_names == ("y", "z")
    np.testing.assert_array_equal(run.outputs[0][0], [1, 4, 9])
    np.testing.assert_array_equal(run.outputs[0][1], -X)
    np.testing.assert_array_equal(run.outputs[1][0], [16])
    assert 0 < run.load_seconds < 60
    assert len(run.seconds) == 2
    assert all(0 < seconds < 60 for seconds in run.seconds)


def test_options_are_those_of_the_call(worker, onnx_file):
    with pytest.raises(RecipeError, match="NoSuchProvider"):
        worker.run(onnx_file(SQUARE), [], SessionOptions(provider="NoSuchProvider"))


def test_errors_of_the_child_arrive_as_they_are(worker, onnx_file):
    with pytest.raises(DataError, match="do not fit"):
        worker.run(onnx_file(SQUARE), [{"y": X}])
    with pytest.raises(UnsupportedModel, match=r"com\.example:Foo"):
        worker.run(onnx_file("(float[2] x) => (float[2] y) { y = com.example.Foo(x) }"), [])
    with pytest.raises(ModelError, match=r"nowhere\.onnx"):
        worker.run("nowhere.onnx", [])
    with pytest.raises(RuntimeError, match="AssertionError"):
        worker.step({"x": X})  # nothing is loaded


def test_check_accepts_valid_models_and_names_what_is_wrong(worker, onnx_file, tmp_path):
    worker.check(onnx_file(SQUARE))
    with pytest.raises(ModelError, match=r"not valid ONNX: .*'z'"):
        worker.check(onnx_file("(float[2] x) => (float[2] y) { y = Add(x, z) }"))
    with pytest.raises(ModelError, match=r"absent.onnx: no such file"):
        worker.check(tmp_path / "absent.onnx")


def test_memory_of_the_model_is_reported(worker, onnx_file):
    model = "(float[N] x) => (float[K] y) <int64[1] n = {50000000}> { e = Expand(x, n) y = Neg(e) }"
    worker.warm_up()
    run = worker.run(onnx_file(model), [{"x": X[:1]}])
    assert run.outputs[0][0].nbytes == 200_000_000
    assert 200e6 < run.peak_bytes < 900e6
    assert worker.run(onnx_file(SQUARE), [{"x": X}]).peak_bytes < 50e6


@pytest.mark.skipif(sys.platform != "linux", reason="only there memory can be given back")
def test_memory_that_the_last_model_left_is_not_reused_unseen(worker, onnx_file):
    nodes = " ".join(f"h{i + 1} = Add(h{i}, w{i})" for i in range(200))
    text = f"(float[4096] h0) => (float[4096] h200) {{ {nodes} }}"
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {text}')
    weights = [(f"w{i}", np.full(4096, i, np.float32)) for i in range(200)]
    model.graph.initializer.extend(numpy_helper.from_array(w, name) for name, w in weights)
    path, feed = onnx_file(model), {"h0": np.zeros(4096, np.float32)}
    worker.warm_up()
    for _ in range(3):
        run = worker.run(path, [feed])
        assert run.outputs[0][0][0] == sum(range(200))
        assert run.peak_bytes > 200 * 4096 * 4


def test_refusals_end_with_the_first_feed_that_is_taken(worker, onnx_file):
    feeds = [{"x": X}, {"x": X[:2]}, {"x": X[:1]}]
    model = onnx_file("(float[2] x) => (float[2] y) { y = Neg(x) }")
    first, second = worker.refusals(model, feeds)
    assert "Got: 3 Expected: 2" in first
    assert second is None
    assert len(worker.refusals(model, feeds[::2])) == 2
    assert None not in worker.refusals(model, feeds[::2])


@pytest.mark.skipif(os.name == "nt", reason="signals are those of POSIX")
def test_a_crash_is_an_error_and_the_next_request_works(onnx_file, only_child):
    with Worker() as worker:
        worker.run(onnx_file(SQUARE), [{"x": X}])
        os.kill(only_child(), signal.SIGSEGV)
        path = onnx_file(SQUARE)
        with pytest.raises(
            ModelError, match=r"crashed \(signal 11, SIGSEGV\) while loading .*onnx"
        ):
            worker.run(path, [{"x": X}])
        np.testing.assert_array_equal(worker.run(path, [{"x": X}]).outputs[0][0], X * X)


def test_a_crash_in_the_middle_of_a_run(onnx_file, only_child):
    with Worker() as worker:
        worker.open(onnx_file(ENDLESS))
        killer = subprocess.Popen(
            [sys.executable, "-c", f"import os, time; time.sleep(.3); os.kill({only_child()}, 9)"]
        )
        with pytest.raises(ModelError, match=r"crashed \(signal 9, SIGKILL.* while running"):
            worker.step({"x": X[:1]})
        killer.wait()


def test_a_run_that_takes_too_long_is_ended(onnx_file, only_child):
    with Worker(timeout=60) as worker:
        worker.open(onnx_file(ENDLESS))
        only_child()
        worker._timeout = 1  # a busy machine may take longer to start the child
        with pytest.raises(ModelError, match=r"took longer than 1 s while running .*model.onnx"):
            worker.step({"x": X[:1]})


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is enforced on Linux")
def test_a_model_that_unfolds_to_gigabytes_meets_the_limit(onnx_file, only_child):
    bomb = """() => (float[N] y) <int64[1] n = {4000000000}> {
        big = ConstantOfShape(n) y = Neg(big)
    }"""
    with Worker(memory_limit=2 * 2**30, timeout=60) as worker:
        assert worker.run(onnx_file(SQUARE), [{"x": X}]).outputs[0][0][2] == 9
        only_child()
        with pytest.raises(ModelError, match=r"memory|crashed"):
            worker.run(onnx_file(bomb), [{}])


@pytest.mark.skipif(os.name == "nt", reason="alarms are those of POSIX")
def test_ctrl_c_ends_the_child_and_leaves_the_worker_usable(onnx_file, only_child):
    def interrupt(*_):
        raise KeyboardInterrupt

    with Worker() as worker:
        worker.open(onnx_file(ENDLESS))
        pid = only_child()
        previous = signal.signal(signal.SIGALRM, interrupt)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(KeyboardInterrupt):
                worker.step({"x": X[:1]})
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
        assert not psutil.pid_exists(pid)
        assert worker.run(onnx_file(SQUARE), [{"x": X}]).outputs[0][0][1] == 4


def test_a_worker_that_is_dropped_takes_its_child_along(only_child):
    worker = Worker()
    worker.start()
    only_child()
    del worker  # the fixture looks for what is left


@pytest.mark.skipif(os.name == "nt", reason="signals are those of POSIX")
def test_a_worker_ends_with_its_parent_in_the_middle_of_a_run(onnx_file):
    script = (
        "import sys, numpy\n"
        "from onnxshrink.runtime.worker import Worker\n"
        "worker = Worker(timeout=None)\n"
        "worker.open(sys.argv[1])\n"
        "print(worker._child.pid, flush=True)\n"
        "worker.step({'x': numpy.ones(1, numpy.float32)})\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(entry or "." for entry in sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", script, onnx_file(ENDLESS)], stdout=subprocess.PIPE, env=env
    ) as parent:
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    psutil.wait_procs([child], timeout=60)
    assert not child.is_running()


def test_prints_in_the_child_do_not_get_between_the_messages(tmp_path, monkeypatch, onnx_file):
    noisy = "import os\nprint('noise', flush=True)\nos.write(1, b'noise' * 100)\n"
    (tmp_path / "onnxruntime.py").write_text(noisy)
    monkeypatch.syspath_prepend(tmp_path)
    with Worker(timeout=60) as worker:
        worker.check(onnx_file(SQUARE))


def test_scripts_need_no_main_guard(tmp_path, onnx_file):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
            from onnxshrink.runtime.worker import Worker
            print("once")
            worker = Worker()
            worker.check({str(onnx_file(SQUARE))!r})
        """)
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(entry or "." for entry in sys.path)}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=env)
    assert (done.stdout, done.stderr, done.returncode) == ("once\n", "", 0)


def test_relative_paths_follow_the_parent(worker, onnx_file, monkeypatch):
    path = onnx_file(SQUARE)
    monkeypatch.chdir(path.parent)
    assert worker.run(path.name, [{"x": X}]).outputs[0][0][2] == 9


def test_whole_runs_of_two_threads_wait_for_each_other(worker, onnx_file):
    from concurrent.futures import ThreadPoolExecutor

    paths = {
        sign: onnx_file(f"(float[4] x) => (float[4] y) {{y = {op}(x)}}", f"{op}.onnx")
        for sign, op in ((-1, "Neg"), (1, "Abs"))
    }
    feeds = [{"x": np.full(4, value, np.float32)} for value in range(1, 20)]

    def total(sign):
        return sum(outputs[0].sum() for outputs in worker.run(paths[sign], feeds).outputs)

    signs = [-1, 1] * 6
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(total, signs)) == [sign * 4 * 190 for sign in signs]


LIBRARY = r"""
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
void *RegisterCustomOps(void *options, const void *api) {
  FILE *file = fopen(getenv("LOADED_BY"), "w");
  fprintf(file, "%d", (int)getppid());
  fclose(file);
  return NULL;
}
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_custom_operators_are_loaded_in_the_child(
    tmp_path: Path, onnx_file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ops.c").write_text(LIBRARY)
    library, told = tmp_path / "ops.so", tmp_path / "parent"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "ops.c"], check=True, timeout=60
    )
    monkeypatch.setenv("LOADED_BY", str(told))
    path = onnx_file("(float[N] x) => (float[N] y) { y = Neg(x) }")
    with Worker(custom_ops=[library]) as worker, worker.another() as other:
        for each in (worker, other):
            each.open(path)
            assert told.read_text() == str(os.getpid())
            told.unlink()


def test_a_library_that_does_not_load_is_told(tmp_path: Path, onnx_file: Any) -> None:
    (tmp_path / "ops.so").write_text("no library")
    path = onnx_file("(float[N] x) => (float[N] y) { y = Neg(x) }")
    with (
        Worker(custom_ops=[tmp_path / "ops.so"]) as worker,
        pytest.raises(RecipeError, match=r"--custom-ops .*ops\.so: does not load"),
    ):
        worker.open(path)
