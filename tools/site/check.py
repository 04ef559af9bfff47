"""Check a built site: it loads nothing from elsewhere, shows every public name, and has no list left as plain text.

Usage: `python tools/site/check.py SITE`. Exit code 1 and one line per finding.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from sources import MODULES, list_names

LOADED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "object": "data",
}
"""Elements that load what an attribute names."""
LINKED = {"stylesheet", "icon", "preload", "preconnect", "dns-prefetch", "modulepreload", "manifest", "prefetch"}
"""Relations of a `link` element that load."""
REMOTE = re.compile(r"(?:https?:)?//")
IN_STYLES = re.compile(r"(?:url\(\s*[\"']?|@import\s+[\"'])((?:https?:)?//[^\"')]+)")


class Page(HTMLParser):
    """What a page loads from elsewhere, its anchors, and its paragraphs.

    Attributes:
        remote: Addresses on other machines.
        anchors: The values of `id`.
        lists: Paragraphs that hold the lines of a list.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.remote: list[str] = IN_STYLES.findall(text)
        self.anchors: set[str] = set()
        self.lists: list[str] = []
        self._paragraph: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what an element loads and how it is named."""
        given = {name: value or "" for name, value in attrs}
        loaded = given.get(LOADED.get(tag, ""), "")
        if tag == "link" and LINKED & set(given.get("rel", "").split()):
            loaded = given.get("href", "")
        if REMOTE.match(loaded):
            self.remote.append(loaded)
        if "id" in given:
            self.anchors.add(given["id"])
        if tag == "p":
            self._paragraph = ""

    def handle_endtag(self, tag: str) -> None:
        """Judge a paragraph at its end."""
        if tag == "p" and self._paragraph is not None:
            if re.search(r"\n\s*(?:-|\d+\.) ", self._paragraph):
                self.lists.append(self._paragraph.strip().splitlines()[0])
            self._paragraph = None

    def handle_data(self, data: str) -> None:
        """Collect the text of a paragraph."""
        if self._paragraph is not None:
            self._paragraph += data


def check_site(site: Path) -> Iterator[str]:
    """Find what is wrong with a built site, one line each."""
    pages = {path: Page(path.read_text()) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        yield from (f"{path}: expected no address on another machine, got {address}." for address in page.remote)
        yield from (f"{path}: expected a list, got the paragraph {text!r}. Put an empty line." for text in page.lists)
    for path in sorted(site.rglob("*.css")):
        for address in IN_STYLES.findall(path.read_text()):
            yield f"{path}: expected no address on another machine, got {address}."
    for name, module in MODULES.items():
        path = site / "reference" / f"{name}.html"
        anchors = pages[path].anchors if path in pages else set()
        expected = [one for one in list_names(module) if f"{module}.{one}" not in MODULES.values()]
        yield from (
            f"{path}: expected {module}.{one}, got none." for one in expected if f"{module}.{one}" not in anchors
        )


def main(site: str) -> int:
    """Print the findings; return 1 if there are any."""
    found = list(check_site(Path(site)))
    print("\n".join(found) or f"{site}: every public name is there, and nothing is loaded from elsewhere.")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
