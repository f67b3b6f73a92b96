"""The documentation does what it says: every command, every block of Python, every link."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import example_files
import pytest
import yaml
from click.shell_completion import get_completion_class

from onnxshrink.cli import main
from onnxshrink.recipe import Recipe
from onnxshrink.report import Report

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    tomllib = None  # type: ignore[assignment]

ROOT = Path(__file__).parent.parent
#: Their examples name the files of example_files.py.
WITH_FILES = tuple(
    ROOT / "docs" / f"{name}.md"
    for name in (
        "guide",
        "inputs",
        "goals",
        "for-web",
        "for-mobile",
        "for-servers",
        "for-pipelines",
    )
)
DOCUMENTS = (ROOT / "README.md", *WITH_FILES)
EVERY = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("models/**/*.md")})
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    kind: str
    text: str
    place: str


def blocks(document: Path) -> Iterator[Block]:
    source = document.read_text()
    for found in BLOCK.finditer(source):
        line = source.count("\n", 0, found.start()) + 1
        yield Block(found[1], found[2], f"{document.name}:{line}")


def commands(block: Block) -> Iterator[list[str]]:
    """The commands of a block, one for each part that ``&&`` joins; not what they print."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.kind == "console":
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    for line in lines:
        for part in line.split("&&"):
            if words := shlex.split(part, comments=True):
                yield words


def execute(words: list[str], place: str) -> None:
    """Run one of our own commands; hold any other against the project's files."""
    if words[0] == "onnxshrink":
        with pytest.raises(SystemExit) as stopped:
            main(words[1:], prog_name="onnxshrink")
        assert not stopped.value.code, f"{place}: {shlex.join(words)}: exit {stopped.value.code}"
    elif words[:2] == ["pip", "install"]:
        *flags, what = words[2:]
        assert set(flags) <= {"-e"}, place
        path, _, extras = what.rstrip("]").partition("[")
        assert path in (".", "onnxshrink"), place
        if tomllib is not None:
            project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            assert set(filter(None, extras.split(","))) <= set(project["optional-dependencies"])
            assert project["scripts"] == {"onnxshrink": "onnxshrink.cli:main"}
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file(), f"{place}: no {words[1]}"
    else:
        script = ROOT / words[0]
        assert script.is_file(), f"{place}: what is {words[0]}?"
        assert os.access(script, os.X_OK), f"{place}: {words[0]} cannot be executed"


@pytest.mark.e2e
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
@pytest.mark.usefixtures("one_worker")
def test_examples_run_in_the_order_of_the_text(
    document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example_files.make_models(tmp_path / "models")
    if document in WITH_FILES:
        example_files.make(tmp_path)
    monkeypatch.chdir(tmp_path)
    ran = 0
    for block in blocks(document):
        ran += 1
        if block.kind == "python":
            exec(compile(block.text, block.place, "exec"), {"__name__": "__main__"})
        elif block.kind in ("sh", "console"):
            for words in commands(block):
                execute(words, block.place)
        elif block.kind == "yaml":
            Recipe.parse(block.text, block.place)
        else:
            raise AssertionError(f"{block.place}: a block of {block.kind!r} is not tested")
    assert ran


@pytest.mark.parametrize("document", EVERY, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for link in LINK.findall(
        re.sub(r"```.*?```|`[^`\n]*`", "", document.read_text(), flags=re.DOTALL)
    ):
        if not re.match(r"https?:|mailto:|#", link):
            assert (document.parent / link.partition("#")[0]).exists(), link


def test_the_commands_of_the_readme_are_those_that_ci_runs() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    assert "tools/check" in ci
    assert "tools/check" in (ROOT / "README.md").read_text()


def test_no_place_of_a_machine_is_named() -> None:
    """No absolute path, that is: the whole of the system's own, such as /proc/cpuinfo, apart."""
    places = re.compile(r"""(?:^|[\s"'(`])/(?!proc/|dev/|sys/|usr/)[a-z]+/[\w.-]+/""", re.M)
    for path in [
        *EVERY,
        *ROOT.glob("onnxshrink/**/*.py"),
        *ROOT.glob("tools/*"),
        ROOT / "pyproject.toml",
    ]:
        if path.is_file() and path.suffix != ".pyc":
            assert not places.search(path.read_text()), path


@pytest.mark.e2e
@pytest.mark.usefixtures("one_worker")
def test_the_steps_of_the_workflow_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example_files.make(tmp_path)
    workflow = yaml.safe_load((ROOT / "docs" / "ci" / "github.yml").read_text())
    steps = [step["run"] for step in workflow["jobs"]["shrink"]["steps"] if "run" in step]
    assert len(steps) == 3
    for step in steps:
        execute(shlex.split(step), step)
    kept = [s["with"]["path"] for s in workflow["jobs"]["shrink"]["steps"] if "upload" in str(s)]
    assert all((tmp_path / name).exists() for name in kept[0].split())


@pytest.mark.e2e
def test_the_hook_holds_models_to_their_size(tmp_path: Path) -> None:
    example_files.make(tmp_path)
    config = yaml.safe_load((ROOT / "docs" / "ci" / "pre-commit.yaml").read_text())
    (hook,) = config["repos"][0]["hooks"]
    assert re.search(hook["files"], "models/a.onnx")
    assert not re.search(hook["files"], "models/a.onnx.txt")
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    shell = "onnxshrink() { " + shlex.quote(sys.executable) + ' -m onnxshrink "$@"; }; '
    entry = shlex.split(hook["entry"])
    entry[2] = shell + entry[2]
    for names, code in ((["speech.onnx"], 0), (["speech.onnx", "bad.onnx"], 1)):
        done = subprocess.run([*entry, *names], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert done.stdout == ""
    assert "bad.onnx" in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_completes_commands(shell: str) -> None:
    """With the line that the page says, and by what click then asks."""
    page = (ROOT / "docs" / "goals.md").read_text()
    assert f"_ONNXSHRINK_COMPLETE={shell}_source onnxshrink" in page
    made = get_completion_class(shell)
    assert made is not None
    completion = made(main, {}, "onnxshrink", "_ONNXSHRINK_COMPLETE")
    if shell != "bash":  # click asks bash itself for its version
        assert "_ONNXSHRINK_COMPLETE" in completion.source()
    assert [item.value for item in completion.get_completions([], "quantize-d")] == [
        "quantize-dynamic"
    ]
    options = [item.value for item in completion.get_completions(["clean"], "--image")]
    assert options == ["--image-size"]


def test_the_readme_says_which_pythons() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    least = re.search(r'requires-python = ">=([\d.]+)"', text)
    assert least is not None
    said = re.search(r"Python ([\d.]+) to ([\d.]+)", (ROOT / "README.md").read_text())
    assert said is not None
    classified = re.findall(r"Programming Language :: Python :: (3\.\d+)", text)
    assert (said[1], said[2]) == (least[1], classified[-1])
    assert classified[0] == least[1]


@pytest.mark.e2e
@pytest.mark.usefixtures("one_worker")
def test_the_notebook_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    example_files.make(tmp_path)
    notebook = json.loads((ROOT / "docs" / "first_steps.ipynb").read_text())
    names: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"], "a notebook is kept without its outputs"
            exec("".join(cell["source"]), names)
    assert isinstance(names["report"], Report)
    assert "it may go out" in capsys.readouterr().out
