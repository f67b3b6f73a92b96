"""Write what follows from the code: onnxshrink/steps.py and docs/api.md.

Run it when a pass or a public name was added, or a docstring of one was changed; a test says so.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnxshrink
from onnxshrink.options import Option, options_of
from onnxshrink.recipe import find_pass, pass_names

ROOT = Path(__file__).parent.parent
STEPS, REFERENCE = ROOT / "onnxshrink" / "steps.py", ROOT / "docs" / "api.md"
_SECTIONS = {
    "Make a model smaller": ("shrink", "evolve", "apply_recipe", "apply_excluding", "Options",
                             "Reading", "Goal", "Recipe"),
    "Look at models, and hold them against each other": (
        "compare", "bench", "inspect", "check", "sensitivity"),
    "Packed and certified models": ("pack", "unpack", "verify", "certify", "session"),
    "Elsewhere, and once more": ("bundle", "run_inputs", "reproduce"),
    "What comes back": ("Report",),
    "Errors": tuple(n for n in onnxshrink.__all__ if n.endswith(("Error", "Missed", "Model"))
                    and n != "Model"),
    "For passes of your own": ("Pass", "Context", "Model", "run"),
}  # fmt: skip


def steps() -> str:
    """The module with one function for each pass."""
    kinds = {name.replace("-", "_"): find_pass(name) for name in pass_names()}
    imports = [f"from {kind.__module__} import {kind.__name__}" for kind in kinds.values()]
    lines = [
        '"""Every pass as a function; written by tools/api_reference.py."""',
        "",
        "from onnxshrink.one_step import OneStep",
        *imports,
        "",
        *(f"{name} = OneStep({kind.__name__})" for name, kind in kinds.items()),
    ]
    return "\n".join(lines) + "\n"


def reference() -> str:
    """The page of the public names."""
    listed = {name for names in _SECTIONS.values() for name in names}
    if missing := sorted(set(onnxshrink.__all__) - listed):
        raise SystemExit(f"tools/api_reference.py: no section has {', '.join(missing)}")
    parts = [
        "# Python\n\nWritten by `tools/api_reference.py` from the docstrings. Every name is in "
        "`onnxshrink`; type checkers know all of them, the options of steps included.\n"
    ]
    for title, names in _SECTIONS.items():
        parts.append(f"## {title}\n")
        parts += [_entry(name, getattr(onnxshrink, name)) for name in names]
    parts.append("## Steps\n")
    parts.append(
        "Each is called as `onnxshrink.NAME(IN, OUT, Options(...), option=value)` and gives a "
        "`Report`. All have `max_error`; `onnxshrink explain NAME` says more.\n"
    )
    parts += [_step(name) for name in pass_names()]
    return "\n".join(parts)


def _entry(name: str, value: Any) -> str:
    lines = [f"### {name}\n"]
    if inspect.isclass(value) and issubclass(value, onnxshrink.ShrinkError):
        lines = [f"### {name} (exit code {value.exit_code})\n"]
    elif inspect.isfunction(value):
        returned = inspect.signature(value).return_annotation
        lines.append(f"```text\n{name}({_signature(value)}\n) -> {returned}\n```\n")
    lines.append(_markdown(inspect.getdoc(value) or ""))
    if options := options_of(value) if name == "Reading" else ():
        lines += [*map(_option, options), ""]
    if name in ("Report", "Recipe"):
        for method, member in sorted(vars(value).items()):
            doc = (inspect.getdoc(getattr(value, method)) or "").partition("\n")[0]
            if not method.startswith("_") and doc and (callable(member) or isinstance(
                member, property | classmethod)):  # fmt: skip
                lines.append(f"- `{method}`: {doc}")
        lines.append("")
    return "\n".join(lines)


def _step(name: str) -> str:
    kind = find_pass(name)
    called = name.replace("-", "_")
    summary = _markdown((inspect.getdoc(kind) or "").partition("\n")[0])
    rows = [_option(option) for option in options_of(kind) if option.name != "max_error"]
    return "\n".join([f"### {called}\n", summary, *rows, ""])


def _option(option: Option) -> str:
    return f"- `{option.name}` = `{option.default!r}`: {option.help}"


def _signature(value: Any) -> str:
    """The arguments of a function, one a line; the same in every version of Python."""
    lines: list[str] = []
    keywords = False
    for name, parameter in inspect.signature(value).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and not keywords:
            lines, keywords = [*lines, "*"], True
        default, ending = parameter.default, ""
        if default is not parameter.empty:
            ending = f" = {default.__qualname__ if callable(default) else repr(default)}"
        lines.append(f"{name}: {parameter.annotation}{ending}")
    return "".join(f"\n    {line}," for line in lines)


def _markdown(doc: str) -> str:
    """A Google docstring: its sections as lists."""
    return "\n".join(_lines(doc.splitlines())) + "\n"


def _lines(lines: list[str]) -> Iterator[str]:
    section = False
    for line in lines:
        line = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", line).replace("``", "`")
        if re.fullmatch(r"(Args|Returns|Raises|Attributes):", line):
            section = True
            yield f"{line}\n"
        elif section and (found := re.match(r" {4}(\w[\w. ]*): (.*)", line)):
            yield f"- `{found[1]}`: {found[2]}"
        elif section and line.startswith("    "):
            yield f"  {line.strip()}" if line.startswith("        ") else line.strip()
        else:
            section = section and not line
            yield line


def main() -> None:
    """Write both files; ``--check`` exits with 1 where one is not as it should be."""
    stale = []
    for path, text in ((STEPS, steps()), (REFERENCE, reference())):
        if not path.exists() or path.read_text() != text:
            stale.append(path.name)
            if "--check" not in sys.argv:
                path.write_text(text)
    if stale:
        sys.stdout.write(f"{'not fresh' if '--check' in sys.argv else 'written'}: {stale}\n")
        sys.exit("--check" in sys.argv)


if __name__ == "__main__":
    main()
