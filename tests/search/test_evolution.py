"""Recipes evolve; nothing is lost of a study, and no evaluation ends one."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dying
import numpy as np
import pytest
from distributed import LocalCluster
from hard_models import text

from onnxshrink import api
from onnxshrink.errors import ModelError, RecipeError
from onnxshrink.evolving import accepted, evolve
from onnxshrink.graph.file.model import Model
from onnxshrink.recipe import Recipe, find_pass
from onnxshrink.search.evaluation import Evaluator, Tried
from onnxshrink.search.evolution import genes, places
from onnxshrink.search.evolution.evaluating import Evaluation
from onnxshrink.search.evolution.generations import Generations, nondominated
from onnxshrink.search.evolution.study import Study, shown

OF = {"model": "a", "data": "b", "goal": "c"}
RNG = np.random.default_rng(3)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A model of two layers, and inputs for it."""
    w, v = (RNG.standard_normal(shape).astype(np.float32) for shape in ((64, 96), (96, 32)))
    graph = """g (float[n, 64] x) => (float[n, 32] y) {
        h = MatMul(x, w) r = Relu(h) y = MatMul(r, v)
    }"""
    Model.from_proto(text(graph, w=w, v=v)).save(tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=RNG.standard_normal((128, 64)).astype(np.float32))
    return tmp_path / "m.onnx", tmp_path / "d.npz"


def study(folder: Path, **of: str) -> Study:
    return Study(f"sqlite:///{folder / 's.db'}", "s", {**OF, **of}, 2, 0)


# ---------------------------------------------------------------------------- genes


def test_genes_make_recipes_and_back() -> None:
    rd = find_pass("quantize-rd")
    made = genes.genes_of([rd(lam=0.004)])  # type: ignore[call-arg]
    assert made is not None
    assert set(made) == set(genes.space())
    assert genes.steps_of(made) == (rd(lam=0.004),)  # type: ignore[call-arg]
    for other in genes.neighbours(made, timed=True):
        steps = genes.steps_of(other)
        assert genes.steps_of(other) != genes.steps_of(made)
        assert Recipe.parse(Recipe(steps).to_yaml()).steps == steps
    both = {**made, "channels": 0.2, "zeros": 0.3}
    first = [[step.name for step in genes.steps_of({**both, "first": part})]
             for part in ("channels", "zeros")]  # fmt: skip
    assert first == [
        ["prune-channels", "prune-sparsegpt", "quantize-rd"],
        ["prune-sparsegpt", "prune-channels", "quantize-rd"],
    ]
    assert genes.genes_of([find_pass("surgeon")()]) is None
    assert genes.genes_of([rd(lam=50.0)]) is None  # type: ignore[call-arg]


def test_a_front_is_what_nothing_beats_in_everything() -> None:
    found = [Evaluation(*values) for values in (
        (10, 0.9, 0.0, 1.0), (20, 0.5, 0.0, 1.0), (20, 0.5, 0.0, 2.0), (30, 0.6, 0.0, 0.5),
        (40, 0.1, 0.0, 1.0),
    )]  # fmt: skip
    assert nondominated(found, timed=False) == [4, 1, 0]
    assert nondominated(found, timed=True) == [4, 3, 1, 0]


def test_a_path_is_taken_until_it_is_refused() -> None:
    def tried(nbytes: int, strain: float, name: str = "quantize-rd") -> Tried:
        return Tried(Recipe((find_pass(name)(),)), nbytes, strain, 0.0, [])

    lucky = tried(20, 0.9)  # behind one that was refused: as likely as not by chance
    path = [tried(50, 0.5), tried(40, 0.8), tried(30, 1.1), lucky]
    assert accepted(path) is path[1]
    other = tried(35, 0.9, "to-float16")
    assert accepted([*path, other]) is other
    assert accepted([tried(30, 1.1), tried(20, 3.0)]).nbytes == 30


# ---------------------------------------------------------------------------- studies


def test_a_study_is_of_one_thing_and_says_which_is_another(tmp_path: Path) -> None:
    study(tmp_path)
    for key, what in (
        ("model", "another model"),
        ("data", "other inputs"),
        ("goal", "another goal"),
    ):
        with pytest.raises(RecipeError, match=f"is of {what} than this; name another folder"):
            study(tmp_path, **{key: "x"})
    study(tmp_path)  # a refusal changes nothing
    (tmp_path / "no.db").write_bytes(b"this is no database, whatever its name says" * 50)
    for url in (f"sqlite:///{tmp_path}/no.db", "nosql://u:secret@h/d", "words"):
        with pytest.raises(RecipeError, match="cannot be used as a database") as raised:
            Study(url, "s", OF, 2, 0)
        assert "secret" not in str(raised.value)
    assert shown("a postgresql://me:pa55@host/x b") == "a postgresql://me:***@host/x b"


def test_trials_whose_process_died_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = study(tmp_path)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with monkeypatch.context() as patched:
        patched.setattr(os, "getpid", lambda: gone.pid)
        lost, _ = first.ask()
    kept, _ = first.ask()
    first.tell(kept, Evaluation(100, 0.5, 0.1))
    again = study(tmp_path)
    assert again.count == 1
    trial, known = again.ask()
    assert trial.params == lost.params
    assert known is None
    again.tell(trial, Evaluation(why_not="it did not stand"))
    assert again.failures == ["it did not stand"]
    assert [found.nbytes for _, found in again.finished()] == [100]


# ---------------------------------------------------------------------------- places


def test_a_process_that_dies_is_a_failed_trial(tmp_path: Path) -> None:
    one = study(tmp_path)
    good = genes.genes_of([find_pass("quantize-rd")(lam=0.01)])  # type: ignore[call-arg]
    assert good is not None
    stores = ("int8", "share-codebook", "quantize-rd", "int4", "to-float16")
    one.begin("steps: [clean]", [], [{**good, "store": store} for store in stores])

    def refuse(recipe: str) -> Evaluation:
        raise AssertionError(recipe)

    with places.place(2, None, None) as where:
        remote = (dying.evaluated, str(tmp_path))
        Generations(one, where, refuse, remote, 5, None, lambda *_: None).run()
    assert one.count == 5
    done = {trial.params["store"] for trial, _ in one.finished()}
    assert {"int8", "int4", "to-float16"} >= done
    died = [why for why in one.failures if "its process died, 2 times" in why]
    assert died
    assert len(one.failures) == 5 - len(done)


@pytest.mark.parametrize("fault", [BrokenExecutor("gone"), OSError("handle is closed")], ids=str)
def test_a_pool_that_breaks_while_it_starts_a_process_is_replaced(fault: Exception) -> None:
    class Breaking(ThreadPoolExecutor):
        def submit(self, *_: Any, **__: Any) -> Any:
            raise fault

    where = places.Workplace(1, Breaking(1), lambda: ThreadPoolExecutor(1))
    assert where.submit(int, "7").result() == 7
    where.close()
    with pytest.raises(BrokenExecutor, match=str(fault)):
        places.Workplace(1, Breaking(1)).submit(int, "7")


def test_a_scheduler_that_is_not_there(
    tmp_path: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "_PATIENCE", 0.5)
    options = api.Options(calibration=files[1])
    with pytest.raises(RecipeError, match="no Dask scheduler answers there within"):
        evolve(files[0], tmp_path / "o", options, scheduler="tcp://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(RecipeError, match=r"pip install 'onnxshrink\[search\]'"):
        evolve(files[0], tmp_path / "o", options, scheduler="tcp://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(RecipeError, match=r"pip install 'onnxshrink\[search\]'"):
        evolve(files[0], tmp_path / "o", options)


# ---------------------------------------------------------------------------- the whole


def test_a_search_goes_on_where_it_was(
    tmp_path: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = files
    folder, options = tmp_path / "out", api.Options(calibration=data)
    report = evolve(model, folder, options, trials=2)
    assert sum(one.taken for one in report.tried) == 1
    assert len(report.unseen) == 32
    assert report.front is not None
    for row in report.front.to_dicts():
        assert (folder / row["file"]).exists()
    again = api.apply_recipe(
        Recipe.load(folder / "recipe.yaml"), model, tmp_path / "a.onnx", options
    )
    assert again.bytes_after == report.bytes_after
    assert (tmp_path / "a.onnx").read_bytes() == (folder / "best.onnx").read_bytes()

    def fails(self: Evaluator, steps: Any, *, looks: int = 0) -> None:
        if looks:
            return evaluate(self, steps, looks=looks)
        raise ModelError("it broke")

    evaluate: Callable[..., Any] = Evaluator.evaluate
    monkeypatch.setattr(Evaluator, "evaluate", fails)
    more = evolve(model, folder, options, trials=3)
    assert any(line.endswith("of 3 trials failed, the last one because: it broke")
               for line in more.warnings), more.warnings  # fmt: skip
    assert more.bytes_after == report.bytes_after

    def stops(self: Evaluator, steps: Any, *, looks: int = 0) -> None:
        if looks:
            return evaluate(self, steps, looks=looks)
        raise KeyboardInterrupt

    monkeypatch.setattr(Evaluator, "evaluate", stops)
    (folder / "front.md").write_text("| 77-1.0x.onnx | of an earlier run |")
    (folder / "77-1.0x.onnx").touch()
    (folder / "78-1.0x.onnx").touch()  # somebody else's
    kept = evolve(model, folder, options, trials=9)
    assert not (folder / "77-1.0x.onnx").exists()
    assert (folder / "78-1.0x.onnx").exists()
    assert any(line.startswith("interrupted: this is the best") for line in kept.warnings)
    assert kept.bytes_after == report.bytes_after
    np.savez(data, x=np.ones((128, 64), np.float32) * np.arange(128, dtype=np.float32)[:, None])
    with pytest.raises(RecipeError, match="of other inputs"):
        evolve(model, folder, options, trials=3)


def finished(folder: Path) -> int:
    """How many trials of a study are complete, looked up behind the back of its process."""
    try:
        with sqlite3.connect(f"file:{folder / 'study.db'}?mode=ro", uri=True) as database:
            rows = database.execute("select count(*) from trials where state = 'COMPLETE'")
            return int(rows.fetchone()[0])
    except sqlite3.Error:
        return 0
    finally:
        if "database" in locals():
            database.close()


@pytest.mark.e2e
def test_a_search_that_is_killed_goes_on(tmp_path: Path, files: tuple[Path, Path]) -> None:
    folder = tmp_path / "out"
    words = [sys.executable, "-m", "onnxshrink", "search", *map(str, (files[0], folder)),
             "--calibration", str(files[1]), "--trials"]  # fmt: skip
    run = subprocess.Popen([*words, "1000"])
    while finished(folder) < 8:
        assert run.poll() is None
        time.sleep(0.1)
    run.send_signal(signal.SIGKILL)
    run.wait()
    kept = finished(folder)
    assert not (folder / "best.onnx").exists()
    subprocess.run([*words, "1"], check=True)  # enough are there already
    assert finished(folder) == kept
    assert (folder / "best.onnx").exists()
    assert "onnxshrink search" in (folder / "report.html").read_text()


@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore")  # of dask and tornado, about what is killed here
def test_a_cluster_may_lose_a_worker(tmp_path: Path, files: tuple[Path, Path]) -> None:
    killed: list[int] = []
    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=":0", host="127.0.0.1"
    ) as cluster:

        def watch(what: str, done: int, total: int) -> None:
            if what.startswith("trying recipes") and done >= 1 and not killed:
                killed.append(next(iter(cluster.workers.values())).pid)
                os.kill(killed[0], signal.SIGKILL)

        options = api.Options(calibration=files[1], progress=watch)
        report = evolve(
            files[0], tmp_path / "out", options, trials=4, scheduler=cluster.scheduler_address
        )
    assert killed
    assert sum(one.taken for one in report.tried) == 1
    assert not any("died" in line for line in report.warnings)
    stored = Study(f"sqlite:///{tmp_path}/out/study.db", "onnxshrink", {}, 2, 0)
    assert stored.count == 4
