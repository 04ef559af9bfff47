"""The project's prose style, which `tox -e lint` runs over the pages beside codespell and proselint.

Code blocks, code spans, tables and addresses are exempt.

Usage: `python tools/prose.py [PAGE...]`, by default all pages.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    path
    for folder in (ROOT, ROOT / "docs", ROOT / "docs/dev", ROOT / "benchmarks", ROOT / "benchmarks/results")
    for path in sorted(folder.glob("*.md"))
    if path.name != "support.md"  # made by `advseg_adapters.support_page`
]
MOST_WORDS = 40
"""Words of a sentence; lists and code do not count."""

RULES = {
    r"formerly|previously|no longer|used to|earlier (?:program|version)s?|nowadays|since then": "state what is",
    r"for ever|hitherto|whence|wherein|thereby|lest|thus|withal|of old|whosoever|whoever wrote": "use a plain word",
    r"of course|obviously|clearly|simply|really|basically|to speak of|needless to": "leave it out",
    r"in order to|due to the fact that|a number of|the fact that": "shorten it",
    r"and so on|etc\.": "name them all, or say what they have in common",
}
EXEMPT = re.compile(
    r"```.*?```|`[^`\n]*(?:\n[^`\n]*)?`|^ *\|.*?$|https?://\S+|\]\([^)]*\)|<[^>\n]*>", re.DOTALL | re.MULTILINE
)


def check(text: str) -> Iterator[tuple[int, str]]:
    """Find what breaks the style: line and message."""
    prose = EXEMPT.sub(lambda match: re.sub(r"[^\n]+", " code ", match[0]), text)
    for pattern, advice in RULES.items():
        for match in re.finditer(rf"\b(?:{pattern})(?!\w)", prose, re.IGNORECASE):
            yield _line(prose, match.start()), f"{match[0]!r}: {advice}."
    for match in re.finditer(r"(?:[^.:;!?\n]|\n(?!\s*(?:\n|[-#]|\d+\.))|[.:;](?=\S))+", prose):
        words = match[0].split()
        if len(words) > MOST_WORDS:
            yield _line(prose, match.start()), f"{len(words)} words in one sentence, at most {MOST_WORDS}: split it."


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def main(arguments: Sequence[str]) -> int:
    """Check pages; return 1 if any breaks the style."""
    found = 0
    for page in [Path(argument) for argument in arguments] or PAGES:
        for line, message in sorted(check(page.read_text())):
            print(f"{page}:{line}: {message}")
            found = 1
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
