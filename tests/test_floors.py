"""The structure of the package: a module imports lower floors or its own folder, and no attack toolkit."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

PACKAGE = Path(find_spec("advseg_bench").origin).parent
TOOLKITS = ("art", "torchattacks", "foolbox", "ray", "advseg_adapters")

FLOORS = [
    {"types", "errors", "lazy"},
    {"arguments", "cache", "geometry", "losses", "protocols", "stats"},
    {"batches", "instruments", "registry"},
    {"checks", "metrics"},
    {"attacks", "defences"},
    {"suite"},
    {"specs"},
    {"data", "results"},
    {"claims", "models"},
    {"report", "running"},
    {"crosscheck", "testing", "throughput"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}


def rooms() -> dict[Path, str]:
    return {path: path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")}


def imports(source: str) -> set[str]:
    """Names of `advseg_bench` that a module imports when it runs; imports for type checkers do not count."""
    found = set()
    skipped = [
        child
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    ]
    typing_only = {ast.unparse(node) for node in skipped if isinstance(node, ast.ImportFrom)}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and ast.unparse(node) not in typing_only:
            if node.module == "advseg_bench":
                found |= {alias.name for alias in node.names}
            elif node.module.startswith("advseg_bench."):
                found.add(node.module.split(".")[1])
            else:
                found.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
    return found


@pytest.mark.parametrize("path", rooms(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_lower_floors_and_no_toolkit(path):
    room = rooms()[path]
    used = imports(path.read_text())
    assert not used & set(TOOLKITS)  # `ray` is imported by name, when it is chosen
    if room in ("__init__", "__main__"):
        return
    assert room in LEVEL, f"give {room} a floor"
    higher = {name for name in used if name in LEVEL and name != room and LEVEL[name] >= LEVEL[room]}
    assert not higher, f"{room} (floor {LEVEL[room]}) imports {higher} of the same or a higher floor"


def find_circle(graph: dict[str, set[str]]) -> list[str]:
    """The names that are left when those that import no other one are taken away, again and again."""
    left = dict(graph)
    while free := [name for name, used in left.items() if not used & set(left) - {name}]:
        for name in free:
            del left[name]
    return sorted(left)


def test_there_is_no_import_circle():
    """Not between files either; packages, which export names lazily, and imports for type checkers do not count."""
    names = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path
        for path in rooms()
        if path.name != "__init__.py"
    }
    graph = {name: runtime(path) & set(names) for name, path in names.items()}
    assert find_circle(graph) == []
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == ["a", "b", "c", "d"]


def runtime(path: Path) -> set[str]:
    """As `modules`, without imports for type checkers."""
    tree = ast.parse(path.read_text())
    typed = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    only = {ast.unparse(n) for block in typed for n in ast.walk(block) if isinstance(n, ast.ImportFrom)}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and ast.unparse(node) not in only:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_the_package_stays_small_enough_to_find_things():
    assert len([path for path in PACKAGE.iterdir() if path.name not in ("__pycache__", "py.typed")]) <= 30
    lines = sorted(len(path.read_text().splitlines()) for path in rooms())
    assert lines[-1] <= 320
    assert lines[len(lines) // 2] < 150


@pytest.mark.parametrize("path", [p for p in rooms() if p.name == "__init__.py" and p.parent != PACKAGE], ids=str)
def test_every_folder_says_which_question_it_answers(path):
    first = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n\n")[0]
    assert "?" in first


def test_the_check_above_can_fail():
    source = "from advseg_bench.cli.app import app\nfrom advseg_bench import runner\nimport torchattacks.attack"
    assert imports(source) == {"cli", "runner", "torchattacks"}
    typed = "if TYPE_CHECKING:\n    from advseg_bench.cli.app import app"
    assert imports(typed) == set()


def test_every_floor_is_lived_on():
    assert set(LEVEL) == set(rooms().values()) - {"__init__", "__main__"}


def test_the_core_loads_no_attack_toolkit():
    names = [name for name in LEVEL if name != "cli"]
    code = f"import sys, importlib\nfor n in {names!r}: importlib.import_module('advseg_bench.' + n)\n"
    code += f"print(sorted(set({TOOLKITS!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
