"""Every public name has a docstring that an API reference can render, with an example that runs."""

from __future__ import annotations

import ast
import doctest
import inspect
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from importlib import import_module
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest

import advseg_bench

PACKAGES = ("", ".attacks", ".losses", ".defences", ".geometry", ".metrics", ".stats", ".testing")
SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises", "Warns", "Cost", "Source", "Example", "Examples")
HEADER = rf"(?:{'|'.join(SECTIONS)}):"


def list_names() -> list[str]:
    """All names as `package.name`, submodules aside."""
    modules = {name: import_module(name) for name in (f"advseg_bench{package}" for package in PACKAGES)}
    assert all(module.__all__ == sorted(module.__all__, key=sort_key) for module in modules.values())
    names = [f"{module}.{name}" for module in modules for name in modules[module].__all__]
    return [name for name in names if not isinstance(find(name), ModuleType)]


def sort_key(name: str) -> tuple[int, str]:
    """Constants, classes, functions: the order of ruff."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def find(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


NAMES = list_names()
FUNCTIONS = [name for name in NAMES if inspect.isfunction(find(name))]
CLASSES = [name for name in NAMES if inspect.isclass(find(name))]
CONSTANTS = [name for name in NAMES if name not in {*FUNCTIONS, *CLASSES}]


def read_docstrings(path: str) -> dict[str, str]:
    """The docstring of a name and, for a class, those of the public methods and properties it defines."""
    found = find(path)
    docs = {path: own_doc(found)}
    for name, member in vars(found).items() if inspect.isclass(found) else ():
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if inspect.isfunction(function) and (not name.startswith("_") or name == "__call__"):
            docs[f"{path}.{name}"] = own_doc(function)
    return docs


def own_doc(found: Any) -> str:
    """A docstring, not an inherited one and not the signature that a dataclass puts there."""
    doc = (found.__dict__.get("__doc__") if inspect.isclass(found) else found.__doc__) or ""
    return "" if doc.startswith(f"{found.__name__}(") else inspect.cleandoc(doc)


def read_sections(doc: str) -> dict[str, str]:
    """The block sections of a docstring: name -> dedented body."""
    parts = re.split(rf"^({HEADER})$", doc, flags=re.MULTILINE)
    return {name[:-1]: inspect.cleandoc(body) for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def entries(body: str) -> set[str]:
    return {name.lstrip("*") for name in re.findall(r"^(\*{0,2}\w+)(?: \(.*?\))?: ", body, re.MULTILINE)}


def find_faults_of_form(doc: str) -> Iterator[str]:
    """Lines that are meant as a section and would not be rendered as one."""
    lines = re.sub(r"`[^`]*`", "code", doc).split("\n")
    for i, line in enumerate(lines):
        if re.match(rf"\s*{HEADER}$", line):
            block = i + 1 < len(lines) and re.match(r" {4}\S", lines[i + 1])
            if line != line.strip() or lines[i - 1] or not block:
                yield line
        elif re.search(rf"(?:^|[.;] ){HEADER}", line.strip()):
            yield line


@pytest.mark.parametrize("path", [*FUNCTIONS, *CLASSES])
def test_it_has_an_example_and_block_sections(path):
    docs = read_docstrings(path)
    assert re.match(r"[A-Z][^\n]*[.:]$", docs[path].partition("\n\n")[0].replace("\n", " ")), "no one-sentence summary"
    assert ">>> " in read_sections(docs[path]).get("Example", ""), "no section `Example:` with `>>> `"
    assert {name: faults for name, doc in docs.items() if (faults := list(find_faults_of_form(doc)))} == {}


@pytest.mark.parametrize("path", FUNCTIONS)
def test_a_function_has_its_arguments_and_result(path):
    function = find(path)
    sections = read_sections(own_doc(function))
    signature = inspect.signature(function)
    assert entries(sections.get("Args", "")) == set(signature.parameters)
    if signature.return_annotation not in (None, "None"):
        assert "Returns" in sections or "Yields" in sections


@pytest.mark.parametrize("path", CLASSES)
def test_a_class_has_its_fields_or_arguments(path):
    found = find(path)
    sections = read_sections(own_doc(found))
    declared = set(vars(found).get("__annotations__", {}))
    if is_dataclass(found):
        wanted = {field.name for field in fields(found)} & declared
        assert {name for name in wanted if not name.startswith("_")} <= entries(sections.get("Attributes", ""))
    elif "__init__" in vars(found) and not getattr(found, "_is_protocol", False):
        wanted = set(inspect.signature(found).parameters)
        assert wanted <= entries(sections.get("Args", "")) | entries(sections.get("Attributes", ""))


@pytest.mark.parametrize("path", [*FUNCTIONS, *CLASSES])
def test_its_examples_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    reports: list[str] = []
    for name, doc in read_docstrings(path).items():
        test = doctest.DocTestParser().get_doctest(doc, {}, name, None, 0)
        assert not any(doctest.SKIP in example.options for example in test.examples), f"{name} skips a line"
        runner.run(test, out=reports.append)
    assert not runner.failures, "".join(reports)


@pytest.mark.parametrize("path", CONSTANTS)
def test_a_constant_has_a_string_under_it(path):
    module, _, name = path.rpartition(".")
    homes = [import_module(module), *(import_module(home) for home in find_homes(module, name))]
    assert any(name in read_documented(inspect.getsource(home)) for home in homes)


def find_homes(module: str, name: str) -> set[str]:
    """The modules that an `__init__` names as sources of a name, here or under `TYPE_CHECKING`."""
    tree = ast.parse(inspect.getsource(import_module(module)))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    return {node.module for node in imports if name in {alias.name for alias in node.names}}


def read_documented(source: str) -> set[str]:
    """Names assigned at the top level with a string on the next line."""
    body = ast.parse(source).body
    found = set()
    for node, below in pairwise(body):
        is_string = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if is_string and isinstance(below.value.value, str):
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def test_the_checks_above_can_fail():
    assert len(FUNCTIONS) > 30
    assert len(CLASSES) > 20
    assert "advseg_bench.losses.SMOOTH" in CONSTANTS
    assert list(find_faults_of_form("Do it. Returns: A number.")) == ["Do it. Returns: A number."]
    assert list(find_faults_of_form("Do it.\n\nCost: 1 forward.")) == ["Cost: 1 forward."]
    assert list(find_faults_of_form("Do it.\nArgs:\n    x: Images.")) == ["Args:"]
    assert list(find_faults_of_form("Do it.\n\nReturns:\n  A number.")) == ["Returns:"]
    assert list(find_faults_of_form("Do it.\n\nArgs:\n    x: Images.\n\nReturns:\n    A number.")) == []
    assert entries("x: Images,\n    inside: bounds.\n**options: More.\ny (int): Labels.") == {"x", "options", "y"}
    assert read_documented('A = 1\n"""Ours."""\nB = 2\nC: int = 3\n"""Theirs."""') == {"A", "C"}
    assert advseg_bench.Task.__doc__
