"""The words of the glossary's left column appear nowhere that a user reads."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GLOSSARY = ROOT / "docs" / "dev" / "glossary.md"
PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")]
    if path != GLOSSARY
)
MODULES = sorted(path for folder in ("advseg_bench", "adapters") for path in (ROOT / folder).rglob("*.py"))
EXEMPT = r"```.*?```|(?:>>>|\.\.\.) [^\n]*|`[^`\n]*(?:\n[^`\n]*)?`|https?://\S+|'[\w.\-]+'|\"[\w.\-]+\"|\]\([^)]*\)|<[^>\n]*>"
"""Names: code, quoted words, addresses, tags."""


def left_column() -> list[str]:
    table = re.findall(r"^\| ([a-z, ]+) \| ", GLOSSARY.read_text(), re.MULTILINE)
    return [word for row in table[1:] for word in row.split(", ")]


WORDS = re.compile(rf"\b(?:{'|'.join(left_column())})\b", re.IGNORECASE)


def find_words(text: str) -> list[str]:
    """Sentences' words that are in the left column."""
    return WORDS.findall(re.sub(EXEMPT, " ", text, flags=re.DOTALL))


def read_prose(source: str) -> Iterator[tuple[int, str]]:
    """Docstrings, comments, and string constants with a space: line and text."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
            yield node.lineno, re.sub(r"^\s*[\w.\[\]]+:", "", node.value, flags=re.MULTILINE)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_use_the_terms_of_the_field(page):
    assert find_words(page.read_text()) == []


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_use_the_terms_of_the_field(module):
    found = [(line, words) for line, text in read_prose(module.read_text()) if (words := find_words(text))]
    assert found == []


def test_the_check_above_can_fail():
    assert len(left_column()) > 30
    assert find_words("The draws of a Control; `draw` is a name, and 'shard' too.") == ["draws", "Control"]
    (first, second) = read_prose('f"{x} says no"  # told\n')
    assert find_words(first[1]) == ["says"]
    assert find_words(second[1]) == ["told"]
