"""The runner refuses a step that breaks the contract, says why, and hides nothing else."""

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hard_models import rows, text, weight

from onnxshrink import fewer_weights
from onnxshrink.contract import Judge, Settings
from onnxshrink.errors import (
    DataError,
    InputsMissing,
    ModelError,
    RecipeError,
    ShrinkError,
    UnsupportedModel,
)
from onnxshrink.graph import surgery
from onnxshrink.graph.analysis import operands
from onnxshrink.graph.file.model import Model
from onnxshrink.options import build, option
from onnxshrink.passes.quantize_weights import QuantizeWeights
from onnxshrink.pipeline import Context, Pass, Result, run
from onnxshrink.report import Report, Step
from onnxshrink.runtime.worker import Worker
from onnxshrink.select import Select

FEEDS = rows(3, 64)


@dataclass(frozen=True, kw_only=True)
class Edit(Pass):
    """Does what its test says. An edit that is not reported is not one: it reports a change."""

    edit: Callable[[Model], None] | None = option(None, help="edits the model")

    def apply(self, model: Model, ctx: Context) -> None:
        assert self.edit is not None
        self.edit(model)
        ctx.changed("w", 1, before=2, kind="test")


@dataclass(frozen=True, kw_only=True)
class Growing(Edit):
    """As ``Edit``, for a step whose result may be bigger."""

    may_grow: ClassVar[bool] = True


@pytest.fixture
def model() -> Model:
    return Model.from_proto(
        text(
            "g (float[n, 64] x) => (float[n, 64] y) { a = MatMul(x, w)  y = Relu(a) }",
            w=weight(1, 64, 64),
        )
    )


@pytest.fixture
def attempt(model: Model, worker: Worker) -> Callable[..., Result]:
    """Runs one step; checks that the input is left as it was, and that a refused step leaves it."""

    def attempt(
        edit: Callable[[Model], None], kind: type[Edit] = Edit, **settings: object
    ) -> Result:
        before = model.digest()
        max_error = settings.pop("max_error", None)
        step = kind(edit=edit, max_error=max_error)
        result = run([step], model, Settings(**{"feeds": FEEDS, **settings}), worker)
        assert model.digest() == before
        row = result.report.steps[0]
        assert (result.model.digest() == before) == (row.status != "done")
        assert result.report.bytes_after == row.bytes_after == result.model.nbytes()
        if row.status == "rolled back":
            assert row.reason
            assert row.changes == []
            assert not result.report.changed
            assert all(effect.relative_error == 0 for effect in result.effect)
        return result

    return attempt


def reason(result: Result) -> str:
    assert result.report.steps[0].status == "rolled back"
    return result.report.steps[0].reason


def scale(factor: float) -> Callable[[Model], None]:
    """Multiply the weight."""

    def edit(model: Model) -> None:
        value = model.ir.graph.initializers["w"]
        array = (value.const_value.numpy() * np.float32(factor)).astype(np.float32)
        value.const_value = ir.Tensor(array, name="w")
        model.touch("w")

    return edit


def pad(model: Model) -> None:
    """Add a constant that nothing uses."""
    array = np.ones(100, np.float32)
    value = ir.Value(name="extra", const_value=ir.Tensor(array, name="extra"))
    value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([100])
    model.ir.graph.register_initializer(value)
    model.touch("extra")


def set_op(name: str, domain: str = "") -> Callable[[Model], None]:
    """Make the last node another operator."""

    def edit(model: Model) -> None:
        node = list(model.ir.graph)[-1]
        node.op_type, node.domain = name, domain
        model.touch_node(node)

    return edit


def rename_output(model: Model) -> None:
    model.touch("y", "z")
    model.ir.graph.outputs[0].name = "z"


def cast_output(model: Model) -> None:
    node = list(model.ir.graph)[-1]
    cast = ir.Node("", "Cast", [node.inputs[0]], [ir.AttrInt64("to", ir.DataType.FLOAT16)])
    output = model.ir.graph.outputs[0]
    model.ir.graph.append(cast)
    model.ir.graph.outputs[0] = cast.outputs[0]
    model.ir.graph.remove(node)
    cast.outputs[0].name = output.name
    cast.outputs[0].type = ir.TensorType(ir.DataType.FLOAT16)
    cast.outputs[0].shape = output.shape
    model.touch("y")


def test_a_step_that_keeps_the_contract_stands(attempt):
    result = attempt(scale(1 + 1e-5))
    row = result.report.steps[0]
    assert row.status == "done"
    assert [change.what for change in row.changes] == ["w"]
    assert row.max_error == pytest.approx(1e-5, rel=0.05)
    assert row.outputs["y"]["worst"] == row.max_error
    assert result.report.outputs["y"]["worst"] == row.max_error


def test_growth_is_refused_unless_the_step_may(attempt):
    assert "bigger" in reason(attempt(pad))
    assert attempt(pad, Growing).report.steps[0].status == "done"
    assert "bigger" in reason(attempt(pad, check="off"))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (set_op("NoSuchOperator"), "not valid ONNX"),
        (set_op("NoSuchOperator", "com.microsoft"), "does not run"),
        (rename_output, "inputs or outputs changed"),
        (cast_output, "inputs or outputs changed"),
        (scale(1.01), r"'y' changed by 0.01 .*more than 0.001"),
        (scale(np.nan), "'y' changed by inf"),
        (scale(0), r"'y' changed by 1 "),
    ],
    ids=[
        "checker", "no kernel", "output renamed", "output of another type", "error", "nan", "zero",
    ],
)  # fmt: skip
def test_a_step_that_breaks_the_contract_is_rolled_back(attempt, edit, said):
    assert re.search(said, reason(attempt(edit, Growing)))


def test_an_edit_outside_the_journal_is_rolled_back(attempt):
    def edit(model: Model) -> None:
        value = model.ir.graph.initializers["w"]
        value.const_value = ir.Tensor(np.zeros((64, 64), np.float32), name="w")

    assert "internal guard" in reason(attempt(edit))
    assert "internal guard" in reason(attempt(edit, check="off"))


def test_max_error_moves_the_bound(attempt):
    assert attempt(scale(1.01), max_error=0.02).report.steps[0].status == "done"
    assert "more than 0.005" in reason(attempt(scale(1.01), max_error=0.005))


def test_the_bound_is_against_the_step_before(model, worker):
    """Ten steps of 0.9e-3 each may stand; the report adds them up."""
    steps = [Edit(edit=scale(1.0009))] * 10
    result = run(steps, model, Settings(feeds=FEEDS), worker)
    assert {step.status for step in result.report.steps} == {"done"}
    assert all(step.max_error == pytest.approx(0.9e-3, rel=1e-3) for step in result.report.steps)
    assert result.effect[0].relative_error == pytest.approx(1.0009**10 - 1, rel=1e-3)


def test_a_refused_step_does_not_stop_the_others(model, worker):
    steps = [Edit(edit=scale(1.0001)), Edit(edit=scale(2)), Edit(edit=scale(1.0001))]
    result = run(steps, model, Settings(feeds=FEEDS), worker)
    assert [step.status for step in result.report.steps] == ["done", "rolled back", "done"]
    expected = weight(1, 64, 64) * np.float32(1.0001) * np.float32(1.0001)
    found = result.model.ir.graph.initializers["w"].const_value.numpy()
    assert found == pytest.approx(expected, rel=1e-6)


def branches(*spoiled: int, count: int = 6) -> Model:
    """A sum of products; of the spoiled ones, 4 bits keep nothing but an outlier that cancels."""
    weights = {f"w{i}": weight(i, 64, 64) for i in range(count)}
    for i in spoiled:
        weights[f"w{i}"][::32] = 1e4
    lines = " ".join(f"p{i} = MatMul(x, w{i})" for i in range(count))
    names = ", ".join(f"p{i}" for i in range(count))
    header = '<ir_version: 10, opset_import: ["": 21]> g (float[n, 64] x) => (float[n, 64] y)'
    return Model.from_proto(text(f"{header} {{ {lines}  y = Sum({names}) }}", **weights))


COARSE = QuantizeWeights(dtype="int4", per_channel=True, clip="minmax", max_error=0.3)
#: Nothing in these meets the outliers.
CALM = [{"x": feed["x"] * (np.arange(64) % 32 > 0).astype(np.float32)} for feed in FEEDS]


@pytest.mark.parametrize("spoiled", [(3,), (0, 5), (1, 2, 4)])
def test_a_step_that_is_too_much_stands_on_the_weights_that_bear_it(
    spoiled: tuple[int, ...], worker: Worker
) -> None:
    model, names = branches(*spoiled), tuple(f"w{i}" for i in spoiled)
    result = run([COARSE], model, Settings(feeds=CALM), worker)
    row = result.report.steps[0]
    assert row.status == "done"
    assert {change.what for change in row.changes} == {f"w{i}" for i in range(6)} - set(names)
    assert {skip.what for skip in row.skips} == set(names)
    assert row.skips[0].reason.startswith("beyond what the outputs tolerate (relative error 0.3")
    assert row.warnings[0].startswith(f"{len(names)} of 6 weights are left alone")
    # The options that are reported do the same in one go.
    again = build(QuantizeWeights, row.options, "again")
    assert set(again.weights.keep) == set(names)
    direct = run([again], model, Settings(feeds=CALM), worker)
    assert direct.model.digest() == result.model.digest()
    assert direct.report.steps[0].max_error == row.max_error


@pytest.mark.parametrize(("width", "worth"), [(16, False), (256, True)])
def test_the_last_few_bytes_are_not_worth_the_accuracy(
    width: int, worth: bool, worker: Worker
) -> None:
    """The large weight is ruined by 4 bits; what the small one saves must be 3 % of the file."""
    large = weight(1, 64, 1024)
    large[::32] = 1e4
    model = Model.from_proto(
        text(
            f"g (float[n, 64] x) => (float[n, 1024] y, float[n, {width}] z) "
            "{ y = MatMul(x, v)  z = MatMul(x, w) }",
            v=large, w=weight(2, 64, width),
        )
    )  # fmt: skip
    step = QuantizeWeights(dtype="int4", clip="minmax")
    row = run([step], model, Settings(feeds=CALM), worker).report.steps[0]
    assert row.status == ("done" if worth else "rolled back")
    assert {change.what for change in row.changes} - {"opset"} == ({"w"} if worth else set())


def test_what_no_weight_bears_is_rolled_back(worker: Worker) -> None:
    model = branches(*range(6))
    result = run([COARSE], model, Settings(feeds=CALM), worker)
    assert "more than 0.3; --max-error allows more" in reason(result)
    assert result.model.digest() == model.digest()
    assert result.report.steps[0].warnings == []


def test_what_leaves_every_weight_alone_does_not_stand(worker: Worker) -> None:
    """A pass may narrow biases beside weights only: those alone are no reason to go on."""
    proto = branches(0, count=1).to_proto()
    proto.graph.node[-1].output[0] = "s"
    proto.graph.node.append(onnx.helper.make_node("Add", ["s", "bias"], ["y"]))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight(9, 64), "bias"))
    result = run([COARSE], Model.from_proto(proto), Settings(feeds=CALM), worker)
    assert "more than 0.3" in reason(result)


def test_what_needs_finer_codes_gets_them(worker: Worker) -> None:
    """Blocks where some columns dwarf the others, 8 bits where that is not enough."""
    blocks, bits = weight(1, 64, 64), weight(2, 64, 64)
    blocks[:32] *= 1000  # of inputs that are hardly there
    x = np.where(np.arange(64) < 32, 1e-6, 1).astype(np.float32)
    bits -= bits.mean(axis=0)  # its output is the small difference of large numbers
    model = Model.from_proto(
        text(
            """g (float[n, 64] x) => (float[n, 64] a, float[n, 64] b, float[n, 64] c) {
                a = MatMul(x, plain)  b = MatMul(x, blocks)  even = Add(x, one)
                c = MatMul(even, bits) }""",
            plain=weight(3, 64, 64), blocks=blocks, bits=bits, one=np.full(64, 10, np.float32),
        )
    )  # fmt: skip
    feeds = [{"x": feed["x"] * x} for feed in FEEDS]
    step = QuantizeWeights(dtype="int4", clip="minmax", rounding="rtn", max_error=0.3)
    (row,) = run([step], model, Settings(feeds=feeds), worker).report.steps
    assert row.options["layers"] == {"blocks": {"block_size": 32}, "bits": {"dtype": "int8"}}
    assert {change.what for change in row.changes} >= {"plain", "blocks", "bits"}
    assert row.warnings[0].startswith("2 of 4 weights are stored finer than asked")


def test_what_decides_is_asked_last(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """It saves most, and a little noise of it turns what is multiplied with weights behind it."""
    model = Model.from_proto(
        text(
            """g (float[n, 64] x) => (float[n, 32] y, float[n, 32] z) {
                a = MatMul(x, first)  b = MatMul(a, second)  r = Round(b)  y = MatMul(r, third)
                z = MatMul(x, fourth) }""",
            first=weight(1, 64, 64), second=weight(2, 64, 64), third=weight(3, 32, 64).T,
            fourth=weight(4, 32, 64).T,
        )
    )  # fmt: skip
    monkeypatch.setattr(fewer_weights, "_TRIES", 1)
    monkeypatch.setattr(fewer_weights, "_FINER", 0)
    step = QuantizeWeights(dtype="int4", max_error=0.25)
    (row,) = run([step], model, Settings(feeds=FEEDS), worker).report.steps
    assert {change.what for change in row.changes} >= {"third", "fourth"}
    assert not {"third", "fourth"} & set(row.options["layers"])  # as asked, and at once


def test_outputs_whose_shape_changes_are_told_so(worker: Worker) -> None:
    """As those of speech synthesis, whose length follows from rounded values."""
    model = Model.from_proto(
        text(
            """g (float[64] x) => (float[n, 1] y) {
                a = Mul(x, w)  b = Greater(a, half)  c = NonZero(b)  d = Transpose(c)
                e = Cast <to = 1> (d)  y = MatMul(e, one) }""",
            w=np.ones(64, np.float32), half=np.array(0.5, np.float32),
            one=np.ones((1, 1), np.float32),
        )
    )  # fmt: skip

    def double(copy: Model) -> None:
        scale(2)(copy)

    feeds = [{"x": np.linspace(0, 1, 64, dtype=np.float32)}]
    result = run([Edit(edit=double, max_error=9.0)], model, Settings(feeds=feeds), worker)
    assert reason(result).startswith("output 'y' changed its shape, (32, 1) -> (48, 1)")
    assert "--check off" in reason(result)


def test_models_that_rank_are_told_of_rows_that_swap(worker: Worker) -> None:
    model = Model.from_proto(
        text(
            """g (float[n, 64] x) => (float[n, 5] y) {
                a = MatMul(x, w)  k = Constant<value = int64[1] {5}>()  b, i = TopK(a, k)
                y = MatMul(b, v) }""",
            w=weight(1, 64, 64), v=weight(2, 5, 5),
        )
    )  # fmt: skip
    result = run([Edit(edit=scale(1.5))], model, Settings(feeds=FEEDS), worker)
    assert reason(result).endswith(
        "--max-error allows more (the model ranks: rows whose scores are close swap places, "
        "which counts as an error)"
    )


def test_a_search_for_what_may_stand_ends(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not tried is left alone."""
    monkeypatch.setattr(fewer_weights, "_TRIES", 2)
    monkeypatch.setattr(fewer_weights, "_FINER", 0)
    result = run([COARSE], branches(0), Settings(feeds=CALM), worker)
    changed = {change.what for change in result.report.steps[0].changes}
    assert changed == {"w3", "w4", "w5"}


def test_where_fewer_weights_are_no_better_the_search_ends_early(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sine of large numbers turns over whatever weight is touched."""
    names = [f"w{number}" for number in range(32)]
    body = "".join(f"a{n + 1} = Add(a{n}, c{n})  c{n + 1} = MatMul(x, {name})  "
                   for n, name in enumerate(names, 1))  # fmt: skip
    net = (
        "g (float[n, 64] x) => (float[n, 8] y) { "
        f"a1 = MatMul(x, w)  c1 = MatMul(x, w0)  {body} "
        "b = Mul(a33, large)  y = Sin(b) }"
    )
    weights = {name: weight(n, 8, 64).T for n, name in enumerate(names)}
    model = Model.from_proto(
        text(net, **weights, w=weight(99, 8, 64).T, large=np.array(1e5, np.float32))
    )
    tries: list[float] = []
    verify = Judge.verify

    def counted(judge: Judge, trial: Model, bound: float) -> str:
        tries.append(bound)
        return verify(judge, trial, bound)

    monkeypatch.setattr(Judge, "verify", counted)
    step = QuantizeWeights(weights=Select(min_size=64))
    result = run([step], model, Settings(feeds=FEEDS), worker)
    assert result.report.steps[0].status == "rolled back"
    assert len(tries) == 6


def test_a_refusal_by_the_pass_is_rolled_back(attempt):
    def refuse(model: Model) -> None:
        scale(2)(model)
        raise ShrinkError("no such thing here")

    assert reason(attempt(refuse)) == "no such thing here"


@pytest.mark.parametrize("error", [RecipeError, ZeroDivisionError, AssertionError])
def test_other_errors_are_not_hidden(attempt, error):
    def fail(model: Model) -> None:
        raise error("on purpose")

    with pytest.raises(error, match="on purpose"):
        attempt(fail)


def test_no_change_is_nothing_to_do(model, worker):
    @dataclass(frozen=True, kw_only=True)
    class Idle(Pass):
        def apply(self, model: Model, ctx: Context) -> None:
            ctx.skip("w", "not today")

    result = run([Idle()], model, Settings(feeds=FEEDS), worker)
    assert result.report.steps[0].status == "nothing to do"
    assert not result.report.changed
    assert result.model.digest() == model.digest()


def test_check_off_compares_nothing_and_says_so(attempt):
    result = attempt(scale(2), check="off")
    assert result.report.steps[0].status == "done"
    assert result.report.checks == {"level": "off"}
    assert "not checked" in result.report.warnings[0]
    assert result.effect == ()


def test_check_quick_looks_at_two_inputs(model, worker):
    zeros = {"x": np.zeros((3, 64), np.float32)}
    settings = Settings(check="quick", feeds=[zeros, zeros, *FEEDS])
    result = run([Edit(edit=scale(2))], model, settings, worker)
    assert result.report.steps[0].status == "done"  # doubling nothing is no difference
    assert result.report.checks["feeds"] == 2
    full = Settings(feeds=settings.feeds)
    assert run([Edit(edit=scale(2))], model, full, worker).report.checks["feeds"] == 4


def test_outputs_that_show_no_difference_are_named_and_prove_nothing(worker):
    """Boxes that no input gives, a label that is always the same: their being kept is no proof."""
    branches = Model.from_proto(
        text(
            "g (float[n, 64] x) => (float[n, 64] y, float[n, 64] dead, float[m, 2] none) "
            "{ a = MatMul(x, w)  y = Relu(a)  b = Mul(x, zero)  dead = Relu(b)"
            "  c = Cast<to = 9>(b)  d = NonZero(c)  e = Transpose(d)  f = Cast<to = 1>(e)"
            "  none = MatMul(f, turn) }",
            w=weight(1, 64, 64), zero=np.zeros(1, np.float32), turn=weight(2, 2, 2),
        )
    )  # fmt: skip
    report = run([Edit(edit=scale(1))], branches, Settings(feeds=FEEDS), worker).report
    told = [warning for warning in report.warnings if "proves nothing" in warning]
    assert [line.split("'")[1] for line in told] == ["dead", "none"]
    assert "is 0 throughout" in told[0]
    assert "is empty" in told[1]
    assert not report.unproven
    zeros = [{"x": np.zeros((3, 64), np.float32)}] * 3
    report = run([Edit(edit=scale(1))], branches, Settings(feeds=zeros), worker).report
    assert report.unproven
    assert "no more than one on generated inputs" in report.warnings[-1]
    made = Settings(feeds=zeros, generated=True)
    report = run([Edit(edit=scale(1))], branches, made, worker).report
    assert not report.unproven  # what generated inputs are worth is known
    assert any("'y' is 0 throughout" in warning for warning in report.warnings)
    assert "no more than an unchecked one" in report.warnings[-1]


def test_the_worst_slice_of_an_output_counts_and_is_named(worker):
    """Scores that are 13 % off beside boxes in pixels."""
    both = Model.from_proto(
        text(
            "g (float[n, 64] x) => (float[n, 8] y) "
            "{ a = MatMul(x, w)  s = Relu(a)  y = Mul(s, sizes) }",
            w=weight(1, 64, 8), sizes=np.array([400, 300, 500, 300, 1, 1, 1, 1], np.float32),
        )
    )  # fmt: skip

    def louder(model: Model) -> None:
        for value, tensor in operands.constants(model):
            if value.name == "sizes":
                sizes = tensor.numpy() * np.array([1, 1, 1, 1, 1.13, 1, 1, 1], np.float32)
                surgery.set_constant(model, value, sizes)

    loose = run([Edit(edit=louder, max_error=0.2)], both, Settings(feeds=FEEDS), worker).report
    figures = loose.outputs["y"]
    assert figures["relative_error"] < 1e-3
    assert (figures["slice"], figures["worst"]) == ("[:, 4]", pytest.approx(0.13, rel=0.4))
    assert loose.tables()[1].rows[0][-1].endswith("at [:, 4]")
    strict = run([Edit(edit=louder, max_error=0.05)], both, Settings(feeds=FEEDS), worker).report
    assert strict.steps[0].status == "rolled back"
    assert "output 'y' [:, 4] changed by" in strict.steps[0].reason


def test_checks_are_described(model, worker):
    report = run([Edit(edit=scale(1))], model, Settings(feeds=FEEDS, generated=True), worker).report
    assert report.checks["inputs"] == "generated"
    assert report.checks["provider"] == "CPUExecutionProvider"
    assert "--calibration" in report.warnings[0]
    report = run([Edit(edit=scale(1))], model, Settings(), worker).report
    assert "no inputs" in report.warnings[0]


def test_the_worker_is_our_own_when_none_is_given(model):
    assert run([Edit(edit=scale(1.0001))], model, Settings(feeds=FEEDS)).report.changed


def test_an_input_model_that_does_not_run_is_an_error(worker):
    unknown = text("g (float[n, 64] x) => (float[n, 64] y) { y = NoSuchOperator(x) }")
    with pytest.raises(ModelError, match="not valid ONNX"):
        run([], Model.from_proto(unknown), Settings(feeds=FEEDS), worker)
    custom = text(
        '<ir_version: 8, opset_import: ["": 17, "acme": 1]>'
        "g (float[n, 64] x) => (float[n, 64] y) { y = acme.Mystery(x) }"
    )
    with pytest.raises(UnsupportedModel, match="Mystery"):
        run([], Model.from_proto(custom), Settings(feeds=FEEDS), worker)


def test_a_pass_may_ask_the_judge(model, worker):
    said = []

    @dataclass(frozen=True, kw_only=True)
    class Careful(Pass):
        def apply(self, model: Model, ctx: Context) -> None:
            for factor in (1.5, 1 + 1e-6):
                trial = model.clone()
                scale(factor)(trial)
                said.append(ctx.verify(trial))
                if not said[-1]:
                    model.adopt(trial)
                    ctx.changed("w", 1, before=2)

    result = run([Careful()], model, Settings(feeds=FEEDS), worker)
    assert "'y' changed by 0.5" in said[0]
    assert said[1] == ""
    error = result.report.steps[0].outputs["y"]["relative_error"]
    assert error == pytest.approx(1e-6, rel=0.2)


@dataclass(frozen=True, kw_only=True)
class Restore(Pass):
    """Puts back the weight of the original."""

    max_error: float | None = option(9.0, help="it may change all")

    def apply(self, model: Model, ctx: Context) -> None:
        assert ctx.original is not None
        value = model.ir.graph.initializers["w"]
        value.const_value = ctx.original.ir.graph.initializers["w"].const_value
        model.touch("w")
        ctx.changed("w", 1, before=1)


def test_a_pass_sees_the_model_before_the_first_step(model, worker):
    steps = [Edit(edit=scale(2.0), max_error=9), Restore()]
    result = run(steps, model, Settings(feeds=FEEDS), worker)
    assert [row.status for row in result.report.steps] == ["done", "done"]
    assert result.model.digest() == model.digest()


def missing(model: Model) -> None:
    raise InputsMissing("edit needs real inputs")


def test_want_of_inputs_is_an_error_of_one_step_and_a_warning_among_others(model, worker):
    settings = Settings(feeds=FEEDS)
    with pytest.raises(InputsMissing, match="edit needs real inputs"):
        run([Edit(edit=missing)], model, settings, worker)
    result = run([Edit(edit=missing), Edit(edit=scale(1.0001))], model, settings, worker)
    left_out, done = result.report.steps
    assert (left_out.status, done.status) == ("rolled back", "done")
    assert left_out.reason == "edit needs real inputs"
    assert f"{left_out.name}: left out: it needs real inputs" in result.report.warnings


def test_a_feed_that_does_not_fit_is_the_callers_error(model, worker: Worker):
    with pytest.raises(DataError):
        run([], model, Settings(feeds=rows(3, 5)), worker)


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (250, "4.00x smaller"),
        (1000, "the same size"),
        (999, "the same size"),
        (1500, "1.50x bigger"),
    ],
)
def test_a_size_that_stays_or_grows_is_not_called_smaller(after: int, words: str) -> None:
    steps = [Step("clean", status="done")]
    headline = Report(result="m.onnx", bytes_before=1000, bytes_after=after, steps=steps).headline()
    assert headline.endswith(words)


# ----------------------------------------------------------------------------- random models


DRAWS = {
    "noise": "r = RandomNormalLike(a) y = Add(a, r)",
    "uniform": "r = RandomUniformLike<low = -3.0, high = 3.0>(a) y = Add(a, r)",
    "dropout": "y = Dropout(a, half, always)",
}


@pytest.mark.parametrize("case", DRAWS)
def test_a_random_model_is_judged_without_its_noise(case: str, worker: Worker) -> None:
    """The same numbers are drawn while answers are compared; the result draws as before."""
    extra = {"half": np.array(0.5, np.float32), "always": np.array(True)}
    proto = text(
        f"g (float[4, 64] x) => (float[4, 48] y) {{ a = MatMul(x, w) {DRAWS[case]} }}",
        w=weight(1, 64, 48), **(extra if case == "dropout" else {}),
    )  # fmt: skip
    feeds = [{"x": weight(seed, 4, 64)} for seed in (2, 3)]
    result = run([QuantizeWeights()], Model.from_proto(proto), Settings(feeds=feeds), worker)
    assert 0 < result.report.steps[0].max_error < 0.01
    assert not result.report.warnings
    assert not any("seed" in node.attributes for node in result.model.nodes)


# ------------------------------------------------------------------------- what is not worth it


@dataclass(frozen=True, kw_only=True)
class Saving(Edit):
    """As ``Edit``, for a step that is there to save bytes."""

    saves: ClassVar[bool] = True

    @property
    def bound(self) -> float:
        return 0.1


def narrower(model: Model) -> None:
    """Make the weight slightly different, and the file slightly smaller."""
    scale(1.01)(model)
    del model.ir.graph.initializers["spare"]
    model.touch("spare")


@pytest.mark.parametrize(("spare", "worth"), [(100, False), (4000, True)])
def test_answers_are_not_spent_for_next_to_nothing(spare: int, worth: bool, worker: Worker) -> None:
    proto = text(
        "g (float[n, 64] x) => (float[n, 64] y) { a = MatMul(x, w)  y = Relu(a) }",
        w=weight(1, 64, 64), spare=np.ones(spare, np.float32),
    )  # fmt: skip
    model = Model.from_proto(proto)
    given = Settings(feeds=FEEDS)
    (row,) = run([Saving(edit=narrower, max_error=None)], model, given, worker).report.steps
    assert (row.status == "done") == worth
    assert worth or (row.reason.startswith("saves 4") and "would change by 0.01" in row.reason)
    (row,) = run([Saving(edit=narrower, max_error=0.1)], model, given, worker).report.steps
    assert row.status == "done"


def test_one_input_cannot_hide_among_others(worker: Worker) -> None:
    proto = text("g (float[1, 8] x) => (float[1, 8] y) { y = MatMul(x, w) }",
                 w=np.ones((8, 8), np.float32))  # fmt: skip
    feeds = [{"x": row[None]} for row in np.eye(8, dtype=np.float32)]

    def edit(model: Model) -> None:
        value = model.ir.graph.initializers["w"]
        array = value.const_value.numpy().copy()
        array[0] *= np.float32(1.3)
        value.const_value = ir.Tensor(array, name="w")
        model.touch("w")

    def step(max_error: float) -> Step:
        settings, model = Settings(feeds=feeds), Model.from_proto(proto)
        return run([Edit(edit=edit, max_error=max_error)], model, settings, worker).report.steps[0]

    assert step(0.12).reason.startswith("output 'y' changed by 0.3 (relative) on one input")
    assert (done := step(0.16)).status == "done"
    assert done.max_error == pytest.approx(0.3 / np.sqrt(8), rel=1e-5)


NOISE = text(
    "g (float[n, 64] x) => (float[n, 64] y, float[n, 64] z) "
    "{ z = MatMul(x, w)  r = RandomNormalLike(z)  s = Mul(r, w0)  y = Add(z, s) }",
    w=weight(1, 64, 64), w0=np.full(64, 0.5, np.float32),
)  # fmt: skip


@pytest.mark.parametrize(("factor", "stands"), [(1.02, True), (1.5, False)])
def test_of_a_model_that_no_seed_tames_distributions_are_held(
    factor: float, stands: bool, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its values differ by half of their size from run to run."""
    seeds = itertools.count(1)

    def untamed(model: Model) -> Model:
        copy = model.clone()
        (node,) = (node for node in copy.nodes if node.op_type == "RandomNormalLike")
        node.attributes["seed"] = ir.AttrFloat32("seed", float(next(seeds)))
        copy.touch_node(node)
        return copy

    monkeypatch.setattr("onnxshrink.graph.analysis.noise.seeded", untamed)
    feeds = [{"x": weight(seed, 64, 64)} for seed in range(4)]
    step = Edit(edit=scale(factor), max_error=0.05)
    report = run([step], Model.from_proto(NOISE), Settings(feeds=feeds), worker).report
    assert (
        "this model is random: two runs of it on the same input differ in 'y'" in report.warnings[0]
    )
    assert (report.steps[0].status == "done") == stands
    if stands:
        assert report.outputs["z"]["relative_error"] == pytest.approx(0.02, rel=1e-3)
        assert report.outputs["y"]["relative_error"] < 0.1
