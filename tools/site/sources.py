"""Pages of the site that are made from other files of the repository: copies with their links turned; the reference."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path(__file__).parents[2]

COPIED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "developers/contributing.md",
    "RELEASING.md": "developers/releasing.md",
    "SECURITY.md": "developers/security.md",
    "CHANGES.md": "developers/changes.md",
    "benchmarks/README.md": "developers/benchmarks.md",
    "benchmarks/results/targets.md": "developers/targets.md",
}
"""Files of the repository and the addresses of their pages."""

MODULES = {
    "advseg_bench": "advseg_bench",
    "attacks": "advseg_bench.attacks",
    "losses": "advseg_bench.losses",
    "defences": "advseg_bench.defences",
    "geometry": "advseg_bench.geometry",
    "metrics": "advseg_bench.metrics",
    "stats": "advseg_bench.stats",
    "testing": "advseg_bench.testing",
    "art": "advseg_adapters.art",
    "monai": "advseg_adapters.monai",
    "torchattacks": "advseg_adapters.torchattacks",
    "foolbox": "advseg_adapters.foolbox",
}
"""Pages of the reference and the modules that they describe."""

LINK = re.compile(r"(\]\()([\w./-]+)(#[\w-]*)?\)")


def relink(text: str, source: str, address: str) -> str:
    """Turn the links of a file of the repository into links between pages.

    Args:
        text: Markdown.
        source: Path of the file in the repository.
        address: Path of its page in the site.

    Returns:
        The text, with links relative to the page.

    Raises:
        ValueError: a link to a file that has no page.
    """

    def turn(match: re.Match[str]) -> str:
        target = os.path.normpath(PurePosixPath(source).parent / match[2])
        if target.startswith("docs/"):
            page = target.removeprefix("docs/")
        elif target in COPIED:
            page = COPIED[target]
        else:
            raise ValueError(f"{source}: expected a link to a page of the site, got {match[2]}. Write it as `code`.")
        return f"{match[1]}{os.path.relpath(page, PurePosixPath(address).parent)}{match[3] or ''})"

    return LINK.sub(turn, text)


def list_names(module: str) -> list[str]:
    """List a module's public names: its `__all__`, or else its public functions and classes."""
    tree = ast.parse(find_source(module).read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return list(ast.literal_eval(node.value))
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]


def find_source(module: str) -> Path:
    """Find the file of a module of the repository."""
    base = ROOT / ("adapters" if module.startswith("advseg_adapters") else "") / module.replace(".", "/")
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


def describe_module(module: str) -> str:
    """Write the page of a module: its docstring, then each public name."""
    names = [name for name in list_names(module) if f"{module}.{name}" not in MODULES.values()]
    inner = [name for name in list_names(module) if f"{module}.{name}" in MODULES.values()]
    lines = [f"# {module}", "", f"::: {module}", *indent(options(show_root_heading=False, members=False)), ""]
    for name in inner:
        lines.append(f"- [`{module}.{name}`]({name}.md)")
    lines.append("")
    for name in names:
        lines += [f"::: {module}.{name}", *indent(options(show_root_toc_entry=True)), ""]
    return "\n".join(lines)


def options(**chosen: Any) -> list[str]:
    """Write the options of one block."""
    return ["options:", *(f"  {name}: {str(value).lower()}" for name, value in chosen.items())]


def indent(lines: list[str]) -> list[str]:
    """Indent lines, as the content of a block is."""
    return [f"    {line}" for line in lines]
