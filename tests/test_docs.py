"""The pages of docs/ are run: each page's Python in one namespace, in a folder of its own."""

from __future__ import annotations

import random
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from advseg_bench.attacks.function import GIVEN

DOCS = Path(__file__).parent.parent / "docs"
OPTIONAL = ("art", "torchattacks", "foolbox", "ray", "ignite", "einops")
BLOCK = re.compile(r"^```(python|toml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# ([\w.-]+\.(?:py|toml))\n")


def blocks(text: str) -> list[tuple[int, str, str]]:
    """The Python and TOML blocks of a page: line of the first line, language, source."""
    return [(text.count("\n", 0, m.start()) + 2, m[1], m[2]) for m in BLOCK.finditer(text)]


def missing(text: str) -> list[str]:
    """Optional packages that the Python of a page imports, by itself or by an adapter, and that are not installed."""
    source = "\n".join(source for _, language, source in blocks(text) if language == "python")
    named = r"""^\s*(?:from|import)\s+(?:advseg_adapters\.)?{0}\b|["']{0}(?:\.\w+)?["']"""
    return [n for n in OPTIONAL if re.search(named.format(n), source, re.MULTILINE) and find_spec(n) is None]


def run_page(text: str, name: str, folder: Path) -> None:
    """Run a page; a block that begins with the name of a file, as a comment, is written to that file instead."""
    namespace = {"__name__": "__main__"}
    for line, language, source in blocks(text):
        if file := FILE.match(source):
            (folder / file[1]).write_text(source)
        elif language == "python":
            exec(compile("\n" * (line - 1) + source, name, "exec"), namespace)


@contextmanager
def contained(folder: Path) -> Iterator[None]:
    """What a page changes in this process is put back: folder, path, modules of its own, random states, warnings."""
    of_numpy, of_python = np.random.get_state(), random.getstate()  # noqa: NPY002
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        try:
            yield
        finally:
            np.random.set_state(of_numpy)  # noqa: NPY002
            random.setstate(of_python)
            for file in folder.glob("*.py"):
                sys.modules.pop(file.stem, None)


PAGES = [path for path in sorted(DOCS.glob("*.md")) if any(lang == "python" for _, lang, _ in blocks(path.read_text()))]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_the_page_runs(page, tmp_path, capsys):
    text = page.read_text()
    if lacking := missing(text):
        pytest.skip(f"{page.name} needs {', '.join(lacking)}, not installed here")
    with contained(tmp_path):
        run_page(text, str(page), tmp_path)


def test_the_check_above_can_fail(tmp_path):
    sources = ("# it.py\nA = 3\n", "import it\nb = it.A\n", 'assert b == 4, "no"\n')
    text = "One\n\n" + "\n".join(f"```python\n{source}```\n" for source in sources)
    with contained(tmp_path), pytest.raises(AssertionError, match="no") as error:
        run_page(text, "page.md", tmp_path)
    assert error.traceback[-1].lineno + 1 == text.splitlines().index('assert b == 4, "no"') + 1
    assert "it" not in sys.modules


def test_pages_that_need_what_is_not_installed_are_told(monkeypatch):
    assert DOCS / "plugins.md" in PAGES
    text = '```python\nfrom advseg_adapters.art import x\nload("foolbox.LinfPGD")\n```\n```toml\na = "ray"\n```'
    monkeypatch.setattr(sys.modules[__name__], "find_spec", lambda name: None)
    assert missing(text) == ["art", "foolbox"]


def test_the_page_tells_all_that_a_function_may_ask_for():
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", (DOCS / "plugins.md").read_text(), re.MULTILINE)
    assert dict(rows).items() >= GIVEN.items()
