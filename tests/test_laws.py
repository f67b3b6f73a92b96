"""What holds for every pass on every hard model. A new pass joins by being there.

A pass that does nothing without options needs a row in ``EXAMPLES``; one whose identity setting
is not "no weight is large enough" a row in ``IDENTITY``. Neither is needed for anything else.
"""

import functools
import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hard_models import HARD, Hard, coarse
from onnx import numpy_helper

from onnxshrink.contract import Settings
from onnxshrink.graph.file import round_trip
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import coded, coded_read
from onnxshrink.options import build, options_of
from onnxshrink.passes import clean
from onnxshrink.pipeline import Pass, run
from onnxshrink.recipe import Recipe, find_pass, pass_names
from onnxshrink.report import Report, Step
from onnxshrink.runtime.worker import Worker

SURGERY = """
def nothing(graph):
    return graph

def tidy(graph):
    return graph.cleanup().toposort()
"""


def shapes_of_a_feed(hard: Hard) -> dict[str, Any]:
    """Every input has the shape that it has in the first feed."""
    feed = hard.feeds[0] if hard.feeds else {}
    return {"shapes": {name: list(array.shape) for name, array in feed.items() if array.size}}


#: Options with which a pass does its work, where the defaults do not; some depend on the model.
EXAMPLES: dict[str, dict[str, Any] | Callable[[Hard], dict[str, Any]]] = {
    "distill": {"steps": 10, "batch": 4},
    "specialize": shapes_of_a_feed,
    "split-lowrank": {"ratio": 0.9},
    "surgeon": {"function": "{surgery}:tidy"},
    "round-trees": {"bits": 3},
    "tune": {"steps": 10},
}
#: What a pass repairs: steps that run before it.
BEFORE: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "correct-bias": (("prune-magnitude", {"scope": "weight", "max_error": 1.0}),),
    "reconstruct": (("prune-magnitude", {"scope": "weight", "max_error": 1.0}),),
    "round-trees": (("merge-trees", {}),),
    "tune": (("prune-magnitude", {"scope": "weight", "max_error": 1.0}),),
    "distill": (("prune-magnitude", {"scope": "weight", "max_error": 1.0}),),
}
#: Options with which a pass must change nothing. None: it has no such setting.
IDENTITY: dict[str, dict[str, Any] | None] = {
    "clean": {"keep": clean.REWRITERS},
    "correct-bias": {"keep": ["*"]},
    "lower-ml": None,
    "merge-trees": None,
    "round-trees": {"bits": 0},
    "prune-channels": {"ratio": 0.0},
    "specialize": {},
    "reconstruct": {"keep": ["*"]},
    "surgeon": {"function": "{surgery}:nothing"},
    "distill": {"keep": ["*"]},
    "tune": {"keep": ["*"]},
}
NOTHING_IS_LARGE_ENOUGH = {"min_size": 2**40}
#: Models on which a pass runs twice: every home of a weight, and every kind of layer. What would
#: differ (numbers drawn, the order of a set, what an earlier run left behind) differs on these.
AGAIN = ("branches", "convolutions", "external", "function", "loop", "recurrent", "tied_copies")


def identity(name: str) -> dict[str, Any] | None:
    """Options with which this pass must change nothing; None where it has no such setting."""
    known = {option.name for option in options_of(find_pass(name))}
    return IDENTITY.get(name, NOTHING_IS_LARGE_ENOUGH if "min_size" in known else None)


@pytest.fixture(scope="session")
def step_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, dict[str, Any]], Pass]:
    """A pass with these options, in which ``{surgery}`` is the file of a user's function."""
    surgery = tmp_path_factory.mktemp("surgery") / "surgery.py"
    surgery.write_text(SURGERY)

    def make(name: str, options: dict[str, Any]) -> Pass:
        given = {
            key: value.format(surgery=surgery) if isinstance(value, str) else value
            for key, value in options.items()
        }
        return build(find_pass(name), given, name)

    return make


@dataclass(frozen=True)
class Outcome:
    """A pass on a hard model: the files before and after, and the report."""

    case: str
    hard: Hard
    steps: tuple[Pass, ...]
    source: Path
    result: Path
    report: Report
    told: list[tuple[str, int, int]]

    @property
    def step(self) -> Pass:
        return self.steps[-1]

    @property
    def row(self) -> Step:
        return self.report.steps[-1]

    @functools.cached_property
    def before(self) -> onnx.ModelProto:
        return loaded(self.source)

    @functools.cached_property
    def after(self) -> onnx.ModelProto:
        return loaded(self.result)


def loaded(path: Path) -> onnx.ModelProto:
    proto = onnx.load(path)
    for tensor in proto.graph.initializer:  # left over where its data were in another file
        if tensor.data_location == onnx.TensorProto.DEFAULT:
            tensor.ClearField("data_location")
    return proto


@pytest.fixture(scope="session")
def outcome_of(
    worker: Worker,
    step_of: Callable[[str, dict[str, Any]], Pass],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str, str], Outcome]:
    """Each pass runs once on each model; every law looks at the same outcome."""

    @functools.cache
    def outcome(name: str, case: str) -> Outcome:
        hard, options = HARD[case](), EXAMPLES.get(name, {})
        step = step_of(name, options(hard) if callable(options) else options)
        steps = (*(step_of(*before) for before in BEFORE.get(name, ())), step)
        folder = tmp_path_factory.mktemp(f"{name}-{case}")
        source, result = hard.save(folder), folder / "result.onnx"
        told: list[tuple[str, int, int]] = []
        settings = Settings(feeds=hard.feeds, progress=lambda *words: told.append(words))
        done = run(steps, Model.load(source), settings, worker)
        done.model.save(result, durable=False)
        return Outcome(case, hard, steps, source, result, done.report, told)

    return outcome


#: One test for each pass and model, and all of a pass in one process, which keeps its outcomes.
each_pass = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in pass_names()]
)
#: Models that a pass gets with coded weights.
CODED = ("convolutions", "recurrent")
LAWS: list[Callable[[Outcome], None]] = []


def law(check: Callable[[Outcome], None]) -> Callable[[Outcome], None]:
    LAWS.append(check)
    return check


@each_pass
@pytest.mark.parametrize("case", HARD)
def test_every_law(name: str, case: str, outcome_of: Callable[[str, str], Outcome]) -> None:
    """All that broke are named, with the traceback of the first."""
    outcome = outcome_of(name, case)
    broken: list[tuple[str, Exception]] = []
    for check in LAWS:
        try:
            check(outcome)
        except Exception as error:
            broken.append((check.__name__, error))
    if broken:
        told = "\n".join(f"{broke}: {error!r}" for broke, error in broken)
        said = f"{name} on {case} breaks {len(broken)} laws\n{told}"
        raise AssertionError(said) from broken[0][1]


def stored(proto: onnx.ModelProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Every constant, wherever it lives, with the name of its value."""
    for graph in round_trip.graphs(proto):
        for tensor in graph.initializer:
            yield tensor.name, tensor
        for sparse in graph.sparse_initializer:
            yield sparse.values.name, sparse.values
    for nodes in round_trip.node_lists(proto):
        for node in nodes:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield node.output[0], attribute.t


def names(proto: onnx.ModelProto) -> set[str]:
    """Names of all values and nodes."""
    found = {name for name, _ in stored(proto)}
    for nodes in round_trip.node_lists(proto):
        for node in nodes:
            found |= {node.name, *node.input, *node.output}
    return found


@functools.cache
def expected(case: str) -> list[list[Any]]:
    """What a hard model answers."""
    hard = HARD[case]()
    with tempfile.TemporaryDirectory() as folder:
        return answers(hard.save(Path(folder)), hard.feeds)


def answers(path: Path, feeds: list[dict[str, np.ndarray]]) -> list[list[Any]]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [session.run(None, feed) for feed in feeds]


def distance(before: list[Any], after: list[Any]) -> float:
    """Relative L2 error of one output over all feeds; 0 or 1 for what has no norm."""
    x, y = list(numbers(before)), list(numbers(after))
    if [v.shape for v in x] != [v.shape for v in y] or labels(before) != labels(after):
        return 1.0
    error = sum(float(((a - b) ** 2).sum()) for a, b in zip(x, y, strict=True))
    return (error / max(sum(float((a**2).sum()) for a in x), 1e-30)) ** 0.5


def numbers(answer: Any) -> Iterator[np.ndarray]:
    """All floats of an answer, which may be nested in lists and maps."""
    for part in answer.values() if isinstance(answer, dict) else answer:
        if isinstance(part, list | dict):
            yield from numbers(part)
        elif np.asarray(part).dtype.kind == "f":
            yield np.asarray(part, np.float64)


def labels(answer: Any) -> list[Any]:
    """All else of an answer."""
    found: list[Any] = []
    for part in answer:
        if isinstance(part, list):
            found += labels(part)
        elif isinstance(part, dict):
            found += part
        elif np.asarray(part).dtype.kind != "f":
            found += np.asarray(part).ravel().tolist()
    return found


# ------------------------------------------------------------------------------------------ laws


@law
def signature_and_metadata_are_kept(outcome: Outcome) -> None:
    own = {tensor.name for tensor in outcome.before.graph.initializer}

    def said(proto: onnx.ModelProto) -> list[Any]:
        graph = proto.graph
        return [
            [v.SerializeToString() for v in graph.input if v.name not in own],
            [v.SerializeToString() for v in graph.output],
            [p.SerializeToString() for p in (*proto.metadata_props, *graph.metadata_props)],
            proto.producer_name, proto.producer_version, proto.domain, proto.doc_string,
            proto.model_version, graph.name, graph.doc_string,
        ]  # fmt: skip

    assert said(outcome.after) == said(outcome.before)
    if outcome.before.ir_version >= 4:  # what the caller may override stays so
        assert list(outcome.after.graph.input) == list(outcome.before.graph.input)


@law
def what_is_told_of_progress_has_a_total_and_ends(outcome: Outcome) -> None:
    last = {what.partition(": ")[0]: (done, total) for what, done, total in outcome.told}
    assert all(0 <= done <= total for _, done, total in outcome.told)
    if (
        outcome.row.status != "rolled back"
    ):  # an error ends it as well, and what it is part of goes on
        assert not {what for what, (done, total) in last.items() if done != total}


@law
def the_result_is_valid_and_answers_within_the_bound(outcome: Outcome) -> None:
    onnx.checker.check_model(outcome.result)
    before = expected(outcome.case)
    after = answers(outcome.result, outcome.hard.feeds)
    # One list of answers to all feeds for each output.
    worst = max(map(distance, zip(*before, strict=True), zip(*after, strict=True)))
    assert worst <= (outcome.step.bound if outcome.report.changed else 0)
    if outcome.row.max_error is not None and outcome.report.changed and len(outcome.steps) == 1:
        assert worst <= outcome.row.max_error * 1.001 + 1e-7


@law
def what_was_not_touched_has_the_same_bytes(outcome: Outcome) -> None:
    changed = {change.what for row in outcome.report.steps for change in row.changes}
    after: dict[str, list[bytes]] = {}

    def text(tensor: onnx.TensorProto) -> bytes:
        """Without the name, which a node's constant gets when it becomes an initializer."""
        copy = onnx.TensorProto.FromString(tensor.SerializeToString())
        copy.ClearField("name")
        return copy.SerializeToString()

    for name, tensor in stored(outcome.after):
        after.setdefault(name, []).append(text(tensor))
    for name, tensor in stored(outcome.before):
        if name not in changed and name in after:
            # Two branches of an If may both have a weight of that name.
            assert text(tensor) in after[name], name
    if not outcome.report.changed:
        assert outcome.after == outcome.before


@law
def the_report_agrees_with_the_files(outcome: Outcome) -> None:
    report, row = outcome.report, outcome.row
    on_disk = sum(p.stat().st_size for p in outcome.source.parent.glob("model.*"))
    assert report.bytes_before == on_disk
    assert report.bytes_after == row.bytes_after == outcome.result.stat().st_size
    sizes: dict[str, list[int]] = {}
    for name, tensor in stored(outcome.before):
        sizes.setdefault(name, []).append(numpy_helper.to_array(tensor).nbytes)
    rows_of_weights = [c for c in row.changes if c.kind not in ("graph", "model", "bias")]
    for change in rows_of_weights:
        assert change.what in names(outcome.before)
        if change.what in sizes:
            assert change.before in sizes[change.what]
            assert 0 < change.after <= change.before
    assert all(skip.reason for skip in row.skips)


@law
def a_replaced_weight_is_gone(outcome: Outcome) -> None:
    """Not left dead in the file, and not there twice."""
    contents = {
        hashlib.sha256(tensor.raw_data).hexdigest()
        for _, tensor in stored(outcome.after)
        if tensor.raw_data
    }
    replaced = {c.what for c in outcome.row.changes if c.kind not in ("graph", "model", "bias")}
    # Two branches may both have a weight of one name, of which one stays.
    twins = Counter(name for name, _ in stored(outcome.before))
    for name, tensor in stored(outcome.before):
        twin = [t for n, t in stored(outcome.before) if t.raw_data == tensor.raw_data]
        if name in replaced and len(twin) == twins[name] == 1:
            assert hashlib.sha256(tensor.raw_data).hexdigest() not in contents, name


@law
def it_never_grows(outcome: Outcome) -> None:
    if not (outcome.step.may_grow or outcome.row.may_grow):
        assert outcome.report.bytes_after <= outcome.report.bytes_before


@law
def it_works_or_says_why_not(outcome: Outcome) -> None:
    row = outcome.row
    if row.status == "rolled back":
        assert row.reason
        assert not row.changes
    elif row.status == "nothing to do":
        large = [t for _, t in stored(outcome.before) if len(t.raw_data) >= 4096]
        weights = "weights" in type(outcome.step).__dataclass_fields__
        assert row.skips or not (large and weights)
    else:
        assert row.changes


@each_pass
def test_the_same_bytes_again(
    name: str, outcome_of: Callable[[str, str], Outcome], worker: Worker, tmp_path: Path
) -> None:
    """Also from the YAML of its recipe."""
    differ = []
    for case in AGAIN:
        first = outcome_of(name, case)
        if not first.report.changed:
            continue
        recipe = Recipe.parse(Recipe(first.steps).to_yaml())
        settings = Settings(feeds=first.hard.feeds)
        second = run(recipe.steps, Model.load(first.source), settings, worker)
        second.model.save(tmp_path / "again.onnx", durable=False)
        if (tmp_path / "again.onnx").read_bytes() != first.result.read_bytes():
            differ.append(case)
    assert not differ


@pytest.mark.parametrize("name", [name for name in pass_names() if identity(name) is not None])
def test_the_identity_setting_changes_nothing(
    name: str, step_of: Callable[[str, dict[str, Any]], Pass], worker: Worker, tmp_path: Path
) -> None:
    changed = []
    for case, hard in HARD.items():
        folder = tmp_path / case
        folder.mkdir()
        model = Model.load(hard().save(folder))
        done = run([step_of(name, identity(name) or {})], model, Settings(check="off"), worker)
        status = done.report.steps[0].status
        if status != "nothing to do" or done.model.digest() != model.digest():
            changed.append(case)
    assert not changed


@each_pass
@pytest.mark.parametrize("case", CODED)
def test_a_coded_model_is_what_its_weights_are(
    name: str, case: str, step_of: Callable[[str, dict[str, Any]], Pass], worker: Worker,
    tmp_path: Path,
) -> None:  # fmt: skip
    """A pass sees the weights, not what rebuilds them: it does and says the same."""
    hard = HARD[case]()
    plain, small = coarse(hard).save(tmp_path), tmp_path / "coded.onnx"
    _, coding = coded.save(Model.load(plain), small)
    assert coding.coded
    options = EXAMPLES.get(name, {})
    step = step_of(name, options(hard) if callable(options) else options)
    found = []
    for path in (plain, small):
        model, _ = coded_read.load(path)
        done = run([step], model, Settings(check="off", feeds=hard.feeds), worker)
        done.model.save(tmp_path / "result.onnx", durable=False)
        row = done.report.steps[0]
        said = (row.status, sorted(map(repr, row.changes)), sorted(map(repr, row.skips)))
        found.append((said, answers(tmp_path / "result.onnx", hard.feeds)))
    assert found[0][0] == found[1][0]
    for one, other in zip(found[0][1], found[1][1], strict=True):
        for a, b in zip(one, other, strict=True):
            assert np.array_equal(a, b)


@each_pass
def test_every_pass_changes_some_hard_model(
    name: str, outcome_of: Callable[[str, str], Outcome]
) -> None:
    """So that the laws above are about something."""
    assert any(outcome_of(name, case).row.changes for case in HARD)
