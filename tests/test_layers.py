"""The house rules that a machine can hold: who imports whom, what, and when."""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import onnxshrink

PACKAGE = Path(onnxshrink.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

#: A room may import those on its own line and above.
LAYERS = (
    ("errors", "report", "page", "kernels", "progress", "heap"),
    ("files",),
    ("options", "functions", "plain_yaml", "graph", "sidecar"),
    ("reading",),
    ("runtime", "target"),
    ("select", "trials", "goal", "contract", "fewer_weights", "pipeline"),
    ("channels",),
    ("passes",),
    ("recipe",),
    ("search", "certificate", "provenance", "budget"),
    ("api",),
    ("reproducing", "bundling", "evolving"),
    ("commands", "one_step"),
    ("gate", "steps", "delivery"),
    ("cli",),
    ("__main__",),
)
#: The rooms of ``graph``, each of which may import those before it.
ROOMS_OF_GRAPH = (
    "file", "read", "surgery", "operators", "weights", "analysis", "rewrite", "gradients", "forms",
    "layers", "inspect",
)  # fmt: skip
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}

#: Who may import what from outside; nobody else may. Whatever is not named is for nobody.
OUTSIDE = {
    "numpy": {
        "kernels",
        "graph",
        "sidecar",
        "runtime",
        "trials",
        "contract",
        "goal",
        "gate",
        "channels",
        "passes",
        "search",
        "bundling",
    },
    "scipy": {"kernels"},
    "onnx": {"graph", "runtime"},
    "onnx_ir": {"graph", "runtime", "channels"},
    "onnx_graphsurgeon": {"graph"},
    "onnxscript": {"graph"},
    "google": {"graph", "runtime"},
    "onnxruntime": {"runtime"},
    "openvino": {"runtime"},
    "cryptography": {"certificate"},
    "ml_dtypes": {"graph", "runtime"},  # numpy types of bfloat16; comes with onnx
    "brotli": {"files"},
    "PIL": {"runtime"},
    "tokenizers": {"runtime"},
    "pyarrow": {"runtime"},
    "psutil": {"runtime"},
    "optuna": {"search"},
    "sqlalchemy": {"search"},
    "distributed": {"search"},
    "yaml": {"plain_yaml"},
    "click": {"cli"},
    "rich": {"cli"},
}
#: Imported inside the functions that use them: ``--help`` must not wait for them.
HEAVY = {"numpy", "scipy", "onnx", "onnx_ir", "onnx_graphsurgeon", "onnxscript", "onnxruntime"}
FORBIDDEN = {
    "utils", "util", "common", "helpers", "helper", "base", "manager", "factory", "registry",
    "constants", "config", "misc",
}  # fmt: skip


@dataclass(frozen=True)
class Import:
    file: Path
    line: int
    module: str
    at_top: bool
    for_types: bool

    def __str__(self) -> str:
        return f"{self.file.relative_to(PACKAGE.parent)}:{self.line} imports {self.module}"


def room(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(file: Path) -> Iterator[Import]:
    """Every import of a file, also those inside functions and for type checkers."""

    def visit(node: ast.AST, at_top: bool, for_types: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name, at_top, for_types)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative import"
            module = node.module or ""
            for alias in node.names:
                # ``from onnxshrink import passes`` names a room, not a value.
                full = f"{module}.{alias.name}" if module == "onnxshrink" else module
                yield Import(file, node.lineno, full, at_top, for_types)
        at_top = at_top and not isinstance(
            node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
        )
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for_types = True
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_top, for_types)

    yield from visit(ast.parse(file.read_text()), True, False)


@functools.cache
def every() -> list[Import]:
    """Those of all files, but for the public names."""
    return [
        found
        for file in FILES
        if file.parent != PACKAGE or file.stem != "__init__"
        for found in imports(file)
    ]


def test_every_room_has_its_place():
    rooms = {room(file) for file in FILES} - {"__init__"}
    assert rooms <= set(RANK)


def test_imports_run_one_way():
    wrong = []
    for found in every():
        top, _, rest = found.module.partition(".")
        target = rest.partition(".")[0]
        if top == "onnxshrink" and target in RANK and RANK[target] > RANK[room(found.file)]:
            wrong.append(str(found))
    assert wrong == []


def test_imports_run_one_way_within_graph():
    wrong = []
    for found in every():
        here, there = found.file.relative_to(PACKAGE).parts, found.module.split(".")[1:]
        if not (here[0] == "graph" and there[:1] == ["graph"] and len(here) > 2 < len(there) + 1):
            continue
        if ROOMS_OF_GRAPH.index(there[1]) > ROOMS_OF_GRAPH.index(here[1]):
            wrong.append(str(found))
    assert wrong == []


def test_no_room_hangs_together_in_a_circle():
    """Within a room, modules that import each other at the top could not be read one by one."""
    needs: dict[str, set[str]] = {}
    modules = {
        ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts): file for file in FILES
    }
    for name, file in modules.items():
        needs[name] = {
            found.module
            for found in imports(file)
            if found.at_top and not found.for_types and found.module in modules
        }
    while ready := [name for name, others in needs.items() if not others & set(needs)]:
        for name in ready:
            del needs[name]
    assert needs == {}


def test_the_work_of_a_pass_does_not_know_the_pass():
    """It takes the few options that it needs: so it is read, tested and used without the pass."""
    knowing = set()
    for found in every():
        parts = found.file.relative_to(PACKAGE).parts
        if parts[0] == "passes" and len(parts) == 3 and parts[2] != "__init__.py":
            own = f"onnxshrink.passes.{parts[1]}"
            if found.module == own and not _is_module(found, own):
                knowing.add(parts[1])
    assert knowing == {"quantize_rd", "reconstruct"}  # and no more of them


def _is_module(found: Import, package: str) -> bool:
    """Whether an import from a package names one of its modules."""
    line = found.file.read_text().splitlines()[found.line - 1]
    names = [name.strip() for name in line.partition(" import ")[2].split(",")]
    folder = PACKAGE.joinpath(*package.split(".")[1:])
    return all((folder / f"{name}.py").exists() for name in names)


def test_outside_imports_keep_to_their_rooms():
    wrong = [
        str(found)
        for found in every()
        if (top := found.module.partition(".")[0]) not in ("onnxshrink", "__future__")
        and top not in sys.stdlib_module_names
        and room(found.file) not in OUTSIDE.get(top, set())
    ]
    assert wrong == []


def test_rich_is_for_terminals_and_kernels_are_pure():
    kernels = {f.module.partition(".")[0] for f in every() if room(f.file) == "kernels"}
    assert kernels - set(sys.stdlib_module_names) <= {"numpy", "scipy", "onnxshrink", "__future__"}
    inside = {f.module for f in every() if room(f.file) == "kernels" and "onnxshrink" in f.module}
    assert all(module.startswith(("onnxshrink.kernels", "onnxshrink.errors")) for module in inside)
    sidecar = {f.module.partition(".")[0] for f in every() if room(f.file) == "sidecar"}
    assert not sidecar & {"onnx", "onnx_ir", "onnxruntime"}


def test_heavy_imports_wait_in_passes():
    """What the list of passes, a recipe or a command line needs must not load onnx."""
    light = {
        "passes", "options", "select", "trials", "contract", "pipeline", "recipe", "api", "cli",
        "report", "errors", "functions",
    }  # fmt: skip
    wrong = [
        str(found)
        for found in every()
        if found.at_top
        and not found.for_types
        and found.module.partition(".")[0] in HEAVY
        and (
            room(found.file) in light
            or (room(found.file) == "search" and "numpy" not in str(found))
        )
    ]
    assert wrong == []


def test_files_are_short_and_well_named():
    wrong = []
    for file in FILES:
        source, name = file.read_text(), str(file.relative_to(PACKAGE))
        if source.count("\n") > 500:
            wrong.append(f"{name}: more than 500 lines")
        if {file.stem, file.parent.name} & FORBIDDEN:
            wrong.append(f"{name}: does not say what it holds")
        if "print" in source and room(file) not in ("cli", "__main__"):
            called = [n.func for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call)]
            if any(isinstance(f, ast.Name) and f.id == "print" for f in called):
                wrong.append(f"{name}: prints")
    assert wrong == []


def test_one_name_is_one_thing():
    """Who reads of a ``Step`` need not ask which: no two classes share a name."""
    places: dict[str, list[str]] = {}
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                name = node.name.lstrip("_")
                places.setdefault(name, []).append(str(file.relative_to(PACKAGE)))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


#: Modules of ``graph`` without a test beside them, and the test that holds them.
HELD_ELSEWHERE = {
    "file/round_trip": "graph/file/test_model.py",
    "forms/coded_nodes": "graph/forms/test_coded.py",
    "forms/coded_read": "graph/forms/test_coded.py",
    "forms/integer_codes": "passes/test_requantize.py",
    "inspect/coded_file": "test_coded_commands.py",
    "operators/memory": "graph/analysis/test_states.py",
    "operators/one_by_one": "graph/weights/test_views.py",
    "operators/rows": "graph/weights/test_views.py",
    "operators/table": "graph/weights/test_views.py",
    "rewrite/surgeon": "passes/test_surgeon.py",
    "rewrite/tree_values": "passes/test_round_trees.py",
    "rewrite/trees": "passes/test_merge_trees.py",
}


def test_every_module_of_graph_has_a_test():
    tests, graph = Path(__file__).parent, PACKAGE / "graph"
    assert all((tests / place).exists() for place in HELD_ELSEWHERE.values())
    untested = set()
    for file in graph.rglob("[!_]*.py"):
        name = file.relative_to(graph).with_suffix("")
        # Every rule of derivatives is held against differences by one test.
        rule = name.parts[0] == "gradients"
        if not rule and not (tests / "graph" / name.parent / f"test_{name.name}.py").exists():
            untested.add(name.as_posix())
    assert untested == set(HELD_ELSEWHERE)


def modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh process has loaded after running some code."""
    script = f"import sys\n{code}\nsys.stderr.write(' '.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stderr.split())


def test_help_loads_nothing_heavy():
    code = "from onnxshrink.cli import main\nmain(['--help'], standalone_mode=False)"
    heavy = {"numpy", "onnx", "onnx_ir", "onnxruntime", "scipy", "yaml", "rich", "onnxscript"}
    assert modules_after(code) & heavy == set()


def test_catching_an_error_loads_nothing_heavy():
    assert modules_after("import onnxshrink; onnxshrink.RecipeError") & HEAVY == set()


def test_exported_names_resolve():
    assert len(set(onnxshrink.__all__)) == len(onnxshrink.__all__)
    for name in onnxshrink.__all__:
        assert getattr(onnxshrink, name).__name__ == name
    with pytest.raises(AttributeError, match="no_such_name"):
        onnxshrink.no_such_name  # noqa: B018
    typed = {
        alias.name
        for node in ast.walk(ast.parse((PACKAGE / "__init__.py").read_text()))
        if isinstance(node, ast.ImportFrom) and "onnxshrink." in (node.module or "")
        for alias in node.names
    }
    assert typed == {*onnxshrink.__all__, "*"}  # what type checkers see is what there is


def test_the_version_is_said_once():
    import tomllib

    metadata = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    assert metadata.get("version", onnxshrink.__version__) == onnxshrink.__version__
