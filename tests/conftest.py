"""What tests in several folders share: one process that runs models, and the command line."""

import contextlib
import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when numpy is loaded; the models are tiny

import hypothesis
import pytest
from command_line import Done, Run
from hard_models import text, weight

from onnxshrink.cli import main
from onnxshrink.runtime.worker import Worker

TESTS = Path(__file__).parent

#: The machine may be busy, and a failure of CI must be one that anybody can repeat.
hypothesis.settings.register_profile(
    "onnxshrink", deadline=None, derandomize="CI" in os.environ, print_blob=True
)
hypothesis.settings.load_profile("onnxshrink")


def pytest_collection_finish() -> None:
    """What collection made stays: no search for garbage looks at it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest go first, so that all processes end at about the same time."""
    items.sort(key=lambda item: item.get_closest_marker("e2e") is None)


@pytest.fixture(autouse=True)
def _no_step_hides_a_bug(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    """In a recipe a bug is a step that is rolled back; in a test it is a bug."""
    yield
    if request.node.get_closest_marker("bug") is None:
        said = [*caplog.get_records("setup"), *caplog.get_records("call")]
        assert not [row for row in said if "internal error" in row.getMessage()]


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    with Worker(timeout=600) as shared:  # the machine may be busy, or emulated
        yield shared


@pytest.fixture
def one_worker(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands and the API use that process too, instead of starting one each."""
    lent = False

    @contextlib.contextmanager
    def lend(**settings: Any) -> Iterator[Worker]:
        nonlocal lent
        if lent or settings:  # a pass that wants one beside its caller's
            with Worker(**settings) as another:
                yield another
            return
        lent = True
        try:
            yield worker
        finally:
            lent = False

    monkeypatch.setattr("onnxshrink.runtime.worker.Worker", lend)


@pytest.fixture(autouse=True)
def _warm(request: pytest.FixtureRequest) -> None:
    """Where processes are not what is tested, nobody waits for another to import ONNX Runtime."""
    if request.path.relative_to(TESTS).parts[0] in ("channels", "graph", "passes", "search"):
        request.getfixturevalue("one_worker")


@pytest.fixture(autouse=True)
def _hasty(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where latency is not what is tested, models run once where they are timed."""
    if request.path.stem not in ("test_bench", "test_latency"):
        for name, hasty in (("_TURNS", 1), ("_BURST_SECONDS", 0.0), ("_PROFILED_SECONDS", 0.0)):
            monkeypatch.setattr(f"onnxshrink.runtime.bench.{name}", hasty)


@pytest.fixture
def folder_of_nobody(tmp_path: Path) -> Iterator[Path]:
    """An empty folder. Root may read and write everything: for this test it is another user."""
    if os.geteuid():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory() as folder:  # those of pytest are closed to others
        os.chmod(folder, 0o777)
        os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            os.seteuid(0)


@pytest.fixture
def cli(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    one_worker: None,
    tmp_path: Path,
) -> Run:
    """Runs a command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> Done:
        with pytest.raises(SystemExit) as stopped:
            main([str(word) for word in words], prog_name="onnxshrink")
        code = stopped.value.code
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return Done(code if isinstance(code, int) else 0, said.out, said.err)

    return run


@pytest.fixture
def refused(cli: Run, tmp_path: Path) -> Run:
    """Runs a command that must fail: one line that says why, and not a byte changed."""

    def contents() -> dict[str, bytes]:
        # Python keeps bytecode of the user's own modules, as it does of any.
        found = (p for p in sorted(tmp_path.rglob("*")) if "__pycache__" not in p.parts)
        return {str(p): p.read_bytes() for p in found if p.is_file()}

    def run(code: int, *words: object) -> Done:
        before = contents()
        done = cli(*words)
        assert done.code == code, done.err
        lines = done.err.splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        assert len(errors) == 1, done.err
        assert len([line for line in lines if not line.startswith("warning: ")]) == 1, done.err
        assert contents() == before
        assert not list(tmp_path.rglob(".*")), "a temporary file was left behind"
        return done

    return run


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A model of one layer."""
    path = tmp_path / "in.onnx"
    proto = text(
        "g (float[n, 64] x) => (float[n, 64] y) { a = MatMul(x, w)  y = Relu(a) }",
        w=weight(1, 64, 64),
    )
    path.write_bytes(proto.SerializeToString())
    return path
