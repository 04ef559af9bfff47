"""The documentation site: what its tools make and find, and that its navigation and versions agree with the repository.

`tox -e docs` builds the site itself and runs `tools/site/check.py` on it.
"""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = ROOT / "tools"


@pytest.fixture(autouse=True)
def tools(monkeypatch):
    """Put the folders of the tools on the path, and forget their modules afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(TOOLS)
    monkeypatch.syspath_prepend(TOOLS / "site")
    yield
    for name in {"check", "sources", "tables", "prose"} & (set(sys.modules) - before):
        del sys.modules[name]


def tool(name):
    return importlib.import_module(name)


def make_site(folder, body):
    """A site whose reference pages have every name, and one more page."""
    sources = tool("sources")
    (folder / "reference").mkdir()
    for page, module in sources.MODULES.items():
        anchors = "".join(f'<h2 id="{module}.{name}"></h2>' for name in sources.list_names(module))
        (folder / "reference" / f"{page}.html").write_text(anchors)
    (folder / "page.html").write_text(body)
    return folder


def test_a_sound_site_passes(tmp_path):
    body = '<link rel=stylesheet href=a.css><a href="https://example.org">elsewhere</a><p>One - two</p>'
    assert list(tool("check").check_site(make_site(tmp_path, body))) == []


@pytest.mark.parametrize(
    "body",
    [
        "<script src=https://example.org/a.js></script>",
        '<link rel="stylesheet" href="//example.org/a.css">',
        '<link href="https://example.org" rel="preconnect">',
        "<img src='https://example.org/badge.svg'>",
        "<style>@import 'https://example.org/a.css'</style>",
        "<style>@font-face { src: url(https://example.org/a.woff2) }</style>",
    ],
)
def test_what_is_loaded_from_elsewhere_is_found(tmp_path, body):
    (found,) = tool("check").check_site(make_site(tmp_path, body))
    assert found.startswith(f"{tmp_path / 'page.html'}: ")
    assert "example.org" in found


def test_a_style_sheet_that_loads_from_elsewhere_is_found(tmp_path):
    (make_site(tmp_path, "") / "a.css").write_text("a { background: url('https://example.org/a.png') }")
    (found,) = tool("check").check_site(tmp_path)
    assert "https://example.org/a.png" in found


def test_a_list_that_is_left_as_text_is_found(tmp_path):
    (found,) = tool("check").check_site(make_site(tmp_path, "<p>Two things:\n- <b>one</b>\n- two</p>"))
    assert "'Two things:'" in found


@pytest.mark.parametrize("name", ["PGD", "image_generators"])
def test_a_public_name_without_an_anchor_is_found(tmp_path, name):
    page = make_site(tmp_path, "") / "reference" / "attacks.html"
    page.write_text(page.read_text().replace(f'id="advseg_bench.attacks.{name}"', ""))
    (found,) = tool("check").check_site(tmp_path)
    assert f"advseg_bench.attacks.{name}" in found


def test_a_page_that_is_missing_lacks_all_its_names(tmp_path):
    (make_site(tmp_path, "") / "reference" / "stats.html").unlink()
    found = list(tool("check").check_site(tmp_path))
    assert len(found) == len(tool("sources").list_names("advseg_bench.stats"))


@pytest.mark.parametrize(
    "module", ["advseg_bench", "advseg_bench.attacks", "advseg_bench.losses", "advseg_bench.stats"]
)
def test_the_public_names_are_those_of_the_module(module):
    assert tool("sources").list_names(module) == importlib.import_module(module).__all__


def test_a_module_without_a_list_shows_its_functions_and_classes():
    names = tool("sources").list_names("advseg_bench.geometry")
    assert {"project", "Moves"} <= set(names)
    assert not any(name.startswith("_") for name in names)


def test_links_are_turned():
    relink = tool("sources").relink
    text = "[a](docs/runs.md#flags), [b](CONTRIBUTING.md), [c](https://example.org/x.md), [d](#here)"
    expected = "[a](../runs.md#flags), [b](contributing.md), [c](https://example.org/x.md), [d](#here)"
    assert relink(text, "CHANGES.md", "developers/changes.md") == expected
    with pytest.raises(ValueError, match=r"README\.md: .*tox\.ini"):
        relink("[a](tox.ini)", "README.md", "index.md")


def test_every_command_and_option_is_described():
    text = tool("tables").describe_commands()
    assert "## check-attack\n" in text
    (run,) = re.findall(r"^## run\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    assert "advseg-bench run SUITE [OPTIONS]" in run
    assert "| `SUITE` | required |" in run
    assert re.search(r"^\| `--workers\b[^|]*INTEGER` \|", run, re.MULTILINE)
    assert re.search(r"^\| `--verbose` \|", run, re.MULTILINE)
    assert "| `--format TEXT` |" in text
    assert "advseg-bench claims RUN... [OPTIONS]" in text


def test_every_key_of_a_suite_is_described():
    from advseg_bench.suite.suite import Suite

    text = tool("tables").describe_suite()
    for name, definition in Suite.model_json_schema()["$defs"].items():
        (table,) = re.findall(rf"^## .* {{ #{name} }}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
        rows = dict(re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", table, re.MULTILINE))
        assert list(rows) == list(definition["properties"])
        assert all(meaning for key, meaning in rows.items() if key != "name")
        assert "Attributes:" not in table


def test_cells_of_tables_are_escaped_outside_code():
    cell = tool("tables")._cell
    assert cell("A <b> or [x],\n  `a[0] | *b*`") == r"A &#60;b&#62; or &#91;x&#93;, `a[0] \| *b*`"


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    shown = re.findall(r"[\w/-]+\.md", text[text.index("nav:") :])
    sources = tool("sources")
    made = [*sources.COPIED.values(), *(f"reference/{page}.md" for page in sources.MODULES)]
    written = [str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")]
    assert sorted(shown) == sorted([*written, *made, "reference/command-line.md", "reference/suite-keys.md"])


def test_the_version_is_the_same_everywhere():
    import advseg_bench

    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1] == version
    assert f"## {version}" in (ROOT / "CHANGES.md").read_text()
    assert advseg_bench.__version__ == version


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("Fine.\n\nIt was formerly slow.", 3),
        ("It runs, of course.", 1),
        (" ".join(["word"] * 41) + ".", 1),
        ("- one\n- " + " ".join(["word"] * 41), 2),
    ],
)
def test_prose_against_the_style_is_found(text, line):
    ((found, _),) = tool("prose").check(text)
    assert found == line


@pytest.mark.parametrize(
    "text",
    [
        "```\nformerly\n```\n",
        "`formerly` and `of\ncourse`",
        "| formerly |\n    | formerly |\n",
        "\n".join(f"- {' '.join(['word'] * 20)}" for _ in range(3)),
        "Short. " * 41,
    ],
)
def test_code_tables_and_lists_are_exempt_from_the_style(text):
    assert list(tool("prose").check(text)) == []
