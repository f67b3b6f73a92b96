"""Python, YAML and the command line make the same pass; what does not fit is refused alike."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal

import click
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxshrink.cli import main
from onnxshrink.cli._exclude import exclude_options
from onnxshrink.cli._run import run_options
from onnxshrink.errors import RecipeError
from onnxshrink.options import Option, amended, build, dump, nested, option, options_of
from onnxshrink.pipeline import Pass
from onnxshrink.recipe import Recipe, find_pass, pass_names
from onnxshrink.select import Select

every_pass = pytest.mark.parametrize("name", pass_names())

# What people write in names; a leading dash would be another option, which click says itself.
TEXT = st.text(st.sampled_from("abzAZ09_./:*?[]é {}'\"#,&!%-"), min_size=1, max_size=12).filter(
    lambda text: not text.startswith("-")
)
TABLES = st.dictionaries(TEXT, st.just("skip"), max_size=3)


def values(opt: Option) -> st.SearchStrategy[Any]:
    """Values that an option takes."""
    if opt.many:
        items = st.sampled_from(opt.choices) if opt.choices else TEXT
        return st.lists(items, min_size=1, max_size=3).map(tuple)
    if opt.choices:
        return st.sampled_from(opt.choices)
    kind = str(opt.kind)
    if "Mapping" in kind:
        return TABLES
    low, high = opt.ge if opt.ge is not None else -1000, opt.le if opt.le is not None else 1000
    if "bool" in kind:
        return st.booleans()
    if "int" in kind:
        return st.integers(int(low), int(high))
    if "float" in kind:
        return st.floats(low, high, allow_nan=False)
    return TEXT


@st.composite
def options(draw: st.DrawFn, kind: type[Pass]) -> dict[str, Any]:
    """Some options of a pass with values that they take; a table would have to be a file."""
    known = [opt for opt in options_of(kind) if opt.name != "bits_table"]
    chosen = draw(st.sets(st.sampled_from([opt.name for opt in known])))
    return {opt.name: draw(values(opt)) for opt in known if opt.name in chosen}


class Parsed(BaseException):  # the command line takes an Exception for a bug
    """What the command line made of its words."""


def from_command_line(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> Pass:
    """Let the real command parse, and stop it where it would start to work."""

    def stop(recipe: Recipe, *_: object, **__: object) -> None:
        raise Parsed(recipe.steps[0])

    monkeypatch.setattr("onnxshrink.api.apply_recipe", stop)
    try:
        main(words, standalone_mode=False)
    except Parsed as parsed:
        return parsed.args[0]  # type: ignore[no-any-return]
    raise AssertionError("the command did not get as far as its work")


def as_words(kind: type[Pass], given: dict[str, Any]) -> list[str]:
    words = []
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, tuple):
            words += [word for item in value for word in (flag, item)]
        elif isinstance(value, dict):
            words += [flag, yaml.safe_dump(value)]
        else:
            words += [flag, repr(value) if isinstance(value, float) else str(value)]
    return words


@every_pass
def test_three_ways_make_the_same_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = find_pass(name)

    @given(options(kind))
    @settings(max_examples=15)
    def same(given: dict[str, Any]) -> None:
        words = [name, *as_words(kind, given), "--", "in.onnx", "out.onnx"]
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in given.items()}
        text = yaml.safe_dump({"version": 1, "steps": [{name: plain}]})
        try:
            in_python = build(kind, given, "Python")
        except RecipeError:  # options that contradict each other do so everywhere
            with pytest.raises(RecipeError):
                Recipe.parse(text)
            assert main(words, standalone_mode=False) == RecipeError.exit_code
            return
        again = Recipe.parse(Recipe((in_python,)).to_yaml()).steps[0]
        assert again == in_python
        assert dump(again) == dump(in_python)
        assert Recipe.parse(text).steps[0] == in_python
        assert from_command_line(monkeypatch, words) == in_python
        own = {f.name: getattr(in_python, f.name) for f in fields(in_python)}
        assert kind(**own) == in_python

    same()


@every_pass
def test_defaults_are_the_same_everywhere(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = find_pass(name)
    assert Recipe.parse(f"version: 1\nsteps: [{name}]").steps == (kind(),)
    assert Recipe.parse(f"version: 1\nsteps: [{name}: {{}}]").steps == (kind(),)
    assert from_command_line(monkeypatch, [name, "in.onnx", "out.onnx"]) == kind()
    assert Recipe((kind(),)).to_yaml() == f"version: 1\nsteps:\n- {name}\n"


@every_pass
def test_other_names_and_spellings_of_options(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = find_pass(name)
    for opt in options_of(kind):
        for spelling, meant in opt.spellings.items():
            assert build(kind, {opt.name: spelling}, "here") == build(kind, {opt.name: meant}, "")
            words = [name, f"--{opt.name.replace('_', '-')}", spelling, "in", "out"]
            assert from_command_line(monkeypatch, words) == build(kind, {opt.name: meant}, "")
        for other in opt.also:
            value: Any = ("Conv",) if opt.many else opt.choices[-1] if opt.choices else 0.5
            assert build(kind, {other: value}, "") == build(kind, {opt.name: value}, "")
            word = "Conv" if opt.many else value
            words = [name, f"--{other.replace('_', '-')}", str(word), "in", "out"]
            assert from_command_line(monkeypatch, words) == build(kind, {opt.name: value}, "")


@every_pass
def test_options_are_declared_once_and_explained(name: str) -> None:
    kind = find_pass(name)
    known = options_of(kind)
    names = [n for opt in known for n in (opt.name, *opt.also)]
    assert len(names) == len(set(names))
    assert all(opt.help for opt in known)
    declared = {f.name for f in fields(kind)}
    assert declared == {opt.owner or opt.name for opt in known}, "a field without option()"
    every = exclude_options(run_options(click.command()(lambda: None)))
    shared = {p.name for p in every.params}
    assert not shared & set(names), "hidden by an option of every command"


# ------------------------------------------------------------------------------------ refusals


@dataclass(frozen=True, kw_only=True)
class Example:
    """One option of each kind."""

    bits: int = option(8, help="a whole number", ge=1, le=8)
    ratio: float | None = option(None, help="a number", ge=0)
    fast: bool = option(True, help="a switch")
    mode: Literal["rtn", "best"] = option("rtn", help="a choice", spellings={"RTN": "rtn"})
    names: tuple[str, ...] = option((), help="a list", also=("nodes",))
    title: str = option("", help="text")
    weights: Select = nested(Select, min_size=3)  # noqa: RUF009


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"bit": 4}, "unknown option 'bit'; did you mean 'bits'"),
        ({"xyzzy": 4}, r"unknown option 'xyzzy' \(options: bits, ratio"),
        ({"node": ["a"]}, "did you mean 'nodes'"),
        ({"bits": 0}, "'bits' must be at least 1, not 0"),
        ({"bits": 9}, "'bits' must be at most 8, not 9"),
        ({"bits": 4.5}, "'bits' takes a whole number, not 4.5"),
        ({"bits": "4"}, "'bits' takes a number, not '4'"),
        ({"bits": True}, "'bits' takes a number, not True"),
        ({"bits": None}, "'bits' takes a number, not None"),
        ({"bits": [4]}, r"'bits' takes a number, not \[4\]"),
        ({"bits": float("inf")}, "'bits' takes a finite number, not inf"),
        ({"bits": float("nan")}, "'bits' takes a finite number, not nan"),
        ({"ratio": -0.5}, "'ratio' must be at least 0, not -0.5"),
        ({"ratio": float("nan")}, "'ratio' takes a finite number, not nan"),
        ({"fast": 1}, "'fast' takes true or false, not 1"),
        ({"fast": "yes"}, "'fast' takes true or false, not 'yes'"),
        ({"mode": "worst"}, "'mode' takes one of rtn, best, not 'worst'"),
        ({"mode": ["rtn"]}, r"'mode' takes one of rtn, best, not \['rtn'\]"),
        ({"names": 3}, "'names' takes a list, not 3"),
        ({"names": [3]}, "'names' takes text, not 3"),
        ({"title": 3}, "'title' takes text, not 3"),
        ({"layers": "skip"}, "'layers' takes a mapping"),
        ({"layers": {"a": 3}}, "layers: 'a' takes 'skip' or options"),
        ({"layers": {3: "skip"}}, "layers: takes names and patterns, not 3"),
        ({"min_size": -1}, "'min_size' must be at least 0"),
        ({"bits": 4, "Bits": 3}, "unknown option 'Bits'"),
        ({"names": ["a"], "nodes": ["b"]}, "'names' is given twice"),
    ],
)
def test_values_that_do_not_fit_are_refused(given: dict[Any, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=f"(?s)here.*{said}"):
        build(Example, given, "here")


@given(st.dictionaries(st.sampled_from([o.name for o in options_of(Example)]),
                       st.recursive(st.none() | st.booleans() | st.integers() | st.floats()
                                    | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)
                                    | st.dictionaries(st.text(max_size=3), inner, max_size=2)),
                       min_size=1))  # fmt: skip
@settings(max_examples=80)
def test_any_value_fits_or_is_refused(given: dict[str, Any]) -> None:
    """Nothing that YAML can say raises anything else, and what is taken round-trips."""
    try:
        made = build(Example, given, "here")
    except RecipeError:
        return
    assert build(Example, dump(made), "again") == made


def test_two_names_of_an_option_with_two_values() -> None:
    words = ["quantize-weights", "--bits", "4", "--weight-type", "int8", "in", "out"]
    assert main(words, standalone_mode=False) == RecipeError.exit_code
    kind = find_pass("quantize-weights")
    said = "'dtype' is given twice, as 'int4' and, by 'weight_type', as 'int8'"
    with pytest.raises(RecipeError, match=said):
        build(kind, {"bits": 4, "weight_type": "QInt8"}, "here")
    assert build(kind, {"bits": 4, "dtype": "int4"}, "here") == build(kind, {"bits": "4"}, "here")


def test_amended_options_go_before_those_that_they_amend() -> None:
    kind = find_pass("quantize-weights")
    own = build(kind, {"bits": 4, "block_size": 32, "keep": ["a"]}, "here")
    made = amended(own, [{"dtype": "uint8"}, {"weight_type": "QInt8"}, {"min-size": 3}], "here")
    expected = {"dtype": "int8", "block_size": 32, "keep": ["a"], "min_size": 3}
    assert made == build(kind, expected, "here")
    with pytest.raises(RecipeError, match="here: unknown option 'dtyp'"):
        amended(own, [{"dtyp": "int8"}], "here")


@every_pass
def test_python_is_held_to_the_options_too(name: str) -> None:
    kind: Callable[..., Pass] = find_pass(name)
    with pytest.raises(RecipeError, match=f"{name}: option 'max_error' must be at least 0"):
        kind(max_error=-1)
    with pytest.raises(RecipeError, match="weights: option 'min_size' takes a whole number"):
        Select(min_size=1.5)  # type: ignore[arg-type]
    assert kind(max_error=1).max_error == 1.0
    assert Select(keep=["a"]) == Select(keep=("a",))  # type: ignore[arg-type]


def test_values_are_given_their_type() -> None:
    made = build(Example, {"bits": 4.0, "ratio": 1, "mode": "RTN", "nodes": "a"}, "here")
    assert (made.bits, made.ratio, made.mode, made.names) == (4, 1.0, "rtn", ("a",))
    assert isinstance(made.bits, int)
    assert isinstance(made.ratio, float)
    assert build(Example, {"ratio": None}, "here").ratio is None
    assert build(Example, {}, "here").weights.min_size == 3
    assert build(Example, {"min-size": 0}, "here").weights == Select(min_size=0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a recipe has 'version: 1' and 'steps:'"),
        ("[clean]", "a recipe has 'version: 1' and 'steps:'"),
        ("steps: [clean]", "needs 'version: 1', not None"),
        ("version: 2\nsteps: [clean]", "needs 'version: 1', not 2"),
        ("version: 1", "'steps' takes a list"),
        ("version: 1\nsteps: []", "'steps' takes a list"),
        ("version: 1\nsteps: clean", "'steps' takes a list"),
        ("version: 1\nstep: [clean]", "unknown key 'step'; did you mean 'steps'"),
        ("version: 1\nsteps: [clen]", r"step 1 .*unknown pass 'clen'; did you mean 'clean'"),
        ("version: 1\nsteps: [clean, 7]", "step 2: takes the name of a pass"),
        ("version: 1\nsteps: [clean: 7]", r"step 1 \(clean\): takes options such as"),
        (
            "version: 1\nsteps:\n- clean\n- quantize-weights: {dtyp: int8}",
            r"step 2 \(quantize-weights\): unknown option 'dtyp'; did you mean 'dtype'",
        ),
        (
            "version: 1\nsteps:\n- quantize-weights: {dtype: int5}",
            "'dtype' takes one of int8, uint8",
        ),
        ("version: 1\nsteps: [clean\nx: y: z", "line [23]: not YAML"),
        ("version: 1\nsteps: [!!python/object:os.system {}]", "not YAML"),
        ("version: 1\nsteps: [clean: {max_error: -1}]", "'max_error' must be at least 0"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=f"(?s)^my.yaml.*{said}"):
        Recipe.parse(text, "my.yaml")


def test_a_recipe_file_that_cannot_be_read(tmp_path) -> None:
    with pytest.raises(RecipeError, match="cannot be read: No such file"):
        Recipe.load(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="cannot be read: Is a directory"):
        Recipe.load(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(RecipeError, match="cannot be read"):
        Recipe.load(tmp_path / "binary.yaml")


def test_overrides_of_layers_are_checked_as_options() -> None:
    kind = find_pass("quantize-weights")
    step: Callable[..., Any] = kind
    made = step(weights=Select(layers={"Gather": {"dtype": "int4", "block_size": 32}}))
    text = Recipe((made,)).to_yaml()
    assert Recipe.parse(text).steps == (made,)
