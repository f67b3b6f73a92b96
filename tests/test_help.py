"""What the command line says of itself: every example runs, and every slip gets its hint."""

import logging
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import example_files
import numpy as np
import pytest
from command_line import Run

from onnxshrink.cli import CALLED, FIRST, families, main
from onnxshrink.cli._command import Command
from onnxshrink.cli._inputs import READING
from onnxshrink.cli._terminal import PlainFormatter
from onnxshrink.recipe import pass_names

ROOT = Path(__file__).parent.parent


def commands() -> dict[str, click.Command]:
    context = click.Context(main)
    return {name: main.get_command(context, name) for name in main.list_commands(context)}


COMMANDS = commands()


#: What makes an example take seconds, not minutes.
_SHORTER = {
    "shrink": ("--time-limit", "1", "--no-bench"), "search": ("--time-limit", "1"),
}  # fmt: skip


def examples(command: click.Command) -> list[list[str]]:
    lines = [line.strip() for line in (command.help or "").splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("onnxshrink ")]


@pytest.mark.e2e
@pytest.mark.usefixtures("one_worker")
def test_every_example_of_every_help_runs(cli: Run, tmp_path: Path) -> None:
    example_files.make(tmp_path)
    with np.load("inputs.npz") as inputs:
        few = inputs["image"][:64]
    np.savez("inputs.npz", image=few)
    Path("edit.py").write_text("def edit(graph):\n    return graph\n")
    Path("recipe.yaml").write_text("version: 1\nsteps: [clean, quantize-rd]\n")
    for words in (
        ["apply", "recipe.yaml", "model.onnx", "small.onnx", "--calibration", "inputs.npz",
         "--certificate", "--no-budget"],
        ["quantize-weights", "model.onnx", "old.onnx"],
        ["pack", "old.onnx", "packed.onnx"],
        ["run-inputs", "small.onnx", "there", "--calibration", "inputs.npz"],
    ):  # fmt: skip
        assert cli(*words).code == 0
    script = [sys.executable, "there/run_inputs.py", "small.onnx", "there/inputs.json"]
    subprocess.run([*script, "answers.json"], check=True, timeout=120)
    # Those that look at small.onnx go first, before others write over it.
    writers = {*pass_names(), "apply", "search", "shrink"}
    order = sorted(COMMANDS, key=lambda name: (name in writers, name))
    for name in order:
        found = examples(COMMANDS[name])
        assert found, f"{name} --help has no example"
        for words in found:
            done = cli(*words, *_SHORTER.get(name, ()))
            # Whether a step keeps the goal is the model's affair, not the example's.
            missed = done.code == 1 and "the goal was missed" in done.err and name in writers
            assert done.code == 0 or missed, f"{shlex.join(words)}: {done.err}"


def test_the_first_help_shows_six_commands_first_and_every_step_once(cli: Run) -> None:
    text = cli("--help").out
    places = [text.index(f"\n  {name}") for name in (*FIRST, "apply", "Quantize")]
    assert places == sorted(places)
    assert len(FIRST) == 6
    found = families(pass_names())
    assert sorted(name for names in found.values() for name in names) == list(pass_names())
    assert all(found.values())


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_options_common_to_all_come_last_and_defaults_are_shown(cli: Run, name: str) -> None:
    assert isinstance(COMMANDS[name], Command)
    names = [param.name for param in COMMANDS[name].params]
    assert len(set(names)) == len(names) or name in pass_names()  # a pass's option may have two
    flags = [flag for param in COMMANDS[name].params for flag in param.opts]
    assert len(set(flags)) == len(flags)
    assert all(param.opts for param in COMMANDS[name].params)
    text = cli(name, "--help").out
    assert text.index("--help") < text.index("Common options:") < text.index("--verbose")
    assert "RANGE" not in text
    for param in COMMANDS[name].params:
        if isinstance(param.default, str | int) and param.default and param.type.name != "boolean":
            assert f"default: {param.default}" in " ".join(text.split()), param.name


@pytest.mark.parametrize("name", sorted(CALLED))
def test_words_of_other_tools_lead_to_ours(cli: Run, name: str) -> None:
    ours, _ = CALLED[name]
    done = cli(name, "modl.onnx", "small.onnx")
    assert done.code == 3  # as the command that it stands for
    assert done.err.startswith(f"{name} is called {ours} here: ")
    assert "modl.onnx: no such file" in done.err
    assert cli("-q", name, "--help").err == ""
    assert cli(name, "--help").out == cli(ours, "--help").out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compare", "a", "b", "--target-ratio", "3"], "; apply, search, shrink and "),
        (["inspect", "a", "--max-error", "3"], "--max-error; apply, check, compare and "),
        (["pack", "a", "b", "--plot", "3"], "pack has no option --plot; sensitivity has it\n"),
        (["certify", "a", "b", "--count", "3"], "compare, run-inputs and 1 more have it\n"),
        (["shrink", "a", "b", "--tagret-ratio", "3"], "No such option"),
        (["bench", "a", "--seed", "1", "--seed", "2"], "--seed is given 2 times; it takes one"),
        (["inspect", "a", "--json", "--json"], "--json is given 2 times"),
        (["-v", "nothing"], "no such command 'nothing'"),
    ],
)  # fmt: skip
def test_slips_get_hints(cli: Run, words: list[str], said: str) -> None:
    done = cli(*words)
    assert done.code == 2
    assert said in done.err


def test_what_may_be_repeated_may_be(cli: Run, small: Path) -> None:
    done = cli("quantize-weights", small, "o.onnx", "--only", "Gemm", "--only", "Conv", "-v", "-v")
    assert done.code == 0, done.err


@pytest.mark.parametrize("where", ["before", "behind"])
def test_loudness_before_and_behind_the_command(cli: Run, small: Path, where: str, caplog) -> None:
    def run(*flags: str) -> tuple[str, str]:
        words = ["quantize-weights", small, "out.onnx"]
        done = cli(*flags, *words) if where == "before" else cli(*words, *flags)
        assert done.code == 0
        return done.out, done.err

    out, err = run()
    assert "out.onnx: " in out
    assert err.startswith("warning: ")
    assert run("-q") == ("", "")
    quiet, silent = run("-q", "--json") if where == "behind" else ("{", "")
    assert (quiet[0], silent) == ("{", "")
    assert not caplog.records
    run("-v")
    assert not logging.getLogger("onnxscript").isEnabledFor(logging.INFO)
    (said,) = [PlainFormatter().format(record) for record in caplog.records]
    assert re.fullmatch(r"\[[\d.]+ s\] quantize-weights: done, .* -> .* in [\d.]+ s", said)


@pytest.mark.parametrize(("name", "flag"), [("share-codebook", "--scale"), ("tune", "--rate")])
def test_options_of_a_pass_go_before_those_of_inputs(name: str, flag: str) -> None:
    inputs = {param.name for param in COMMANDS[name].params if param.name.startswith("reading_")}
    owner = [param for param in COMMANDS[name].params if flag in param.opts]
    assert [param.name for param in owner] == [flag.removeprefix("--")]
    assert len(inputs) == len(READING)
