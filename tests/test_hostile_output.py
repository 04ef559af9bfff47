"""Names from files of strangers: wherever they are shown, they stay text."""

from __future__ import annotations

import csv
import io
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console
from runs import Synthetic, edit_json, rewrite_rows, write_panels, write_run

from advseg_bench.cache import write_json
from advseg_bench.cli.common import PlainConsole
from advseg_bench.errors import LONGEST_MESSAGE, DataError, SpecError, expected, one_line, tidy
from advseg_bench.report import print_summary, summarise, write_report
from advseg_bench.report.contents import compose
from advseg_bench.report.terminal import print_document
from advseg_bench.results.run import Run
from advseg_bench.suite.suite import parse_suite

HOSTILE = {
    "html": "<img src=x onerror=alert(1)>",
    "script": "</title><script>alert(1)</script>",
    "link": "[click](javascript:alert(1))",
    "reference": "[a]: javascript:x",
    "table": "a|b`c|\n| d",
    "formula": '=HYPERLINK("http://evil")',
    "minus": "-2+3+cmd|' /C calc'!A0",
    "colour": "\x1b[31mred\x1b]8;;http://evil\x1b\\link",
    "c1": "a\x9b31mb\x07\x08",
    "bidi": "abc\u202egnp.exe\u2066",
    "math": "$\\frac{x}$ ^_{",
    "long": "n" * 9_000,
    "nul": "a\x00b",
    "template": "{{ 7 * 7 }}{% x %}",
    "heading": "# x\n# y",
}
UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
PLOT = Synthetic(models=("basicunet-s",), losses=("dice",), draws=1, subjects=3, images=2)
FAST = (0, 4, 8)


class Page(HTMLParser):
    """Collects elements with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags |= {f"{tag} {name}" for name, _ in attrs} or {tag}
        self.addresses |= {
            (value or "").split(",")[0][:12] for name, value in attrs if name in ("href", "src", "srcset")
        }


def write_hostile(out: Path, shift: int) -> tuple[Path, list[str]]:
    """A run with a hostile name in every place where a run has names; `shift` decides which is where."""
    write_run(out, PLOT)
    names = [*HOSTILE.values()][shift:] + [*HOSTILE.values()][:shift]
    title, note, named, *classes = names[:6]
    subjects = {f"s{i:02d}": f"{name}" for i, name in enumerate(names[6:9])}
    images = {f"s{s:02d}-z{i:03d}": f"{names[(9 + 2 * s + i) % len(names)]}{i}" for s in range(3) for i in range(2)}

    def change(info: dict) -> dict:
        info["suite"] |= {"title": title[:2000], "note": note[:2000]}
        info["data"] |= {"title": named, "note": note, "classes": classes}
        return info | {"images": [images[name] for name in info["images"]], "command": title}

    edit_json(out / "run.json", change)
    rewrite_rows(
        out,
        lambda rows: rows.with_columns(
            pl.col("image").replace_strict(images), pl.col("subject").replace_strict(subjects), block=pl.col("block")
        ),
    )
    failures = [
        {"model": "basicunet-s", "stage": "attack", "cell": Run(out).about.cells[1].id, "message": message}
        for message in names[:2]
    ]
    write_json(out / "failures.json", failures)
    write_panels(out, PLOT)
    return out, names


@pytest.mark.parametrize(
    "shift", [pytest.param(i, marks=[] if i in FAST else pytest.mark.slow) for i in range(len(HOSTILE))]
)
def test_a_name_stays_text_in_every_format(tmp_path, shift):
    out, _ = write_hostile(tmp_path / "run", shift)
    plain = write_run(
        tmp_path / "plain", Synthetic(models=("basicunet-s",), losses=("dice",), draws=1, subjects=3, images=2)
    )
    write_panels(plain, PLOT)
    summary = summarise(Run(out))
    paths = write_report(summary, tmp_path / "report", formats=("png",))
    write_report(summarise(Run(plain)), tmp_path / "other", formats=("png",))
    assert all(path.resolve().is_relative_to(tmp_path / "report") and len(path.name) < 200 for path in paths)

    page = Page((tmp_path / "report/report.html").read_text())
    assert page.tags <= Page((tmp_path / "other/report.html").read_text()).tags | {"td class", "table class"}
    assert all(address.startswith(("#", "data:image")) for address in page.addresses)
    for path in paths:
        if path.suffix in (".html", ".md", ".csv", ".svg"):
            text = path.read_text()
            if path.suffix != ".csv":
                assert not UNSEEN.search(text), path
        if path.suffix == ".svg":
            assert {each.tag.partition("}")[2] for each in ET.parse(path).iter()}.isdisjoint(("script", "a", "image2"))
        if path.suffix == ".md":
            check_markdown(text)
        if path.suffix == ".csv":
            check_table(text)

    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    print_document(compose(summary), console)
    print_summary(summary, paths, console)
    shown = console.file.getvalue()
    assert "\x1b" not in shown
    assert not UNSEEN.search(shown)


def check_markdown(text: str) -> None:
    """No element, no link but those to figures, and as many cells in a row as in the head of its table."""
    prose = re.sub(r"^(`{3,}).*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert "<" not in prose
    assert all(link.startswith("figures/") for link in re.findall(r"(?<!\\)\]\(([^)]*)", prose))
    assert not re.search(r"^\s*\[[^\]]*\]:", prose, flags=re.MULTILINE)
    cells = 0
    for line in prose.split("\n"):
        found = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("| ") else 0
        assert found in (cells, 0) or not cells
        cells = found


def check_table(text: str) -> None:
    """No cell that a spreadsheet computes; every row has all columns."""
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert len({len(row) for row in rows}) == 1
    for cell in (cell for row in rows for cell in row if cell.startswith(("=", "+", "-", "@", "\t", "\r"))):
        float(cell)


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_messages_and_lines_are_one_line_of_visible_text(name):
    for shown in (
        str(DataError(f"{name}: {name}")),
        str(SpecError(expected(name, name, name, "Remedy."))),
        one_line(ValueError(name * 3)),
        tidy(name),
    ):
        assert shown.isprintable()
        assert len(shown) <= LONGEST_MESSAGE + len("ValueError: ")
    console = PlainConsole(file=io.StringIO(), width=80, force_terminal=True)
    console.print(name, markup=False, highlight=False)
    console.print(name, style="red", markup=False, highlight=False)
    shown = re.sub("\x1b\\[(31|0)m", "", console.file.getvalue())
    assert not UNSEEN.search(shown)


@pytest.mark.parametrize(
    "name", [*(name for key, name in HOSTILE.items()), "", "../up", "a/b", ".hidden", "con", "NUL.x", "a.", "x" * 101]
)
@pytest.mark.parametrize("place", ["suite", "model", "profile"])
def test_a_name_that_becomes_a_file_is_letters_digits_and_dots(name, place):
    names = {"suite": "s", "model": "m", "profile": "p"} | {place: name}
    quoted = {key: json.dumps(value) for key, value in names.items()}
    text = (
        f"name = {quoted['suite']}\n[data]\nname = 'mni152'\nsize = 32\n[training]\nrecipe = 'quick'\n[[models]]\n"
        f"name = {quoted['model']}\narchitecture = 'monai.BasicUNet'\n[[attacks]]\nname = 'fgsm'\nlosses = ['dice']\n"
        f"eps = ['1/255']\n[profiles.{quoted['profile']}]\nseed = 1\n"
    )
    with pytest.raises(SpecError) as caught:
        parse_suite(text, "mine.toml")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) <= LONGEST_MESSAGE
