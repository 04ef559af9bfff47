"""The support tables as a page of Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Json = Mapping[str, Any]

HEAD = """\
# What each attack class can do on a segmenter

Measured, not written: `python -m advseg_adapters.measure_support torchattacks foolbox art --page docs/support.md`
runs every class and makes this page. Tests hold the adapters to it.

- **view**: *loss*: the class climbs the loss of the suite through a two-class view. *margin*: it asks "is this
  segmentation still good?", and the answer flips where the loss passes a threshold. *native*: it sees masks. *none*:
  it never looks at the model.
- **objective**: *follows loss*; *success-gated*: it stops, or returns the clean image, by its own test of success, so
  it has a threshold (a loss {rise} above the clean one, unless `threshold` or `rise` is set) and reports how many
  images got past it; *own loss*: it climbs something of its own.
- **images a call**: *many*: one call of four images gave the bits of four calls of one. *1*: it did not, the class
  draws random numbers, or what an image costs depends on its neighbours; the harness then calls it for each image.
- **loss**: mean over the images: clean -> attacked, for binary / multilabel / multiclass, and under it what a random
  sign of the same norm and radius reaches. A result in *italics* is not above both, and no image reached the threshold;
  or the class never looks at the model, and harms by chance.
- **reached**: images past the threshold, of {images}, for the three kinds.
- **unchanged**: results equal to the clean image, over all kinds and norms; such a result is flagged in every run and
  is no sign of robustness.
- **cost**: forwards + backwards an image.

Network: {model}; loss `{loss}`; L_inf 8/255, L2 1.0; seed {seed}; the settings of the table and else the class's own.
"""


def read_tables(folder: Path) -> list[Json]:
    """Return the tables of a folder, by name of the toolkit."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def render(tables: Iterable[Json]) -> str:
    """Return the page."""
    tables = list(tables)
    setting = tables[0]["measured_with"]
    head = HEAD.format(
        rise="10 %", images=len(setting["images"]), model=setting["model"], loss=setting["loss"], seed=setting["seed"]
    )
    return "\n".join([head, *(_render_table(table) for table in tables)])


def _render_table(table: Json) -> str:
    runs = [row for row in table["rows"] if row["status"] == "runs"]
    cannot = [row for row in table["rows"] if row["status"] != "runs"]
    strong = sum(row["raises"] for row in runs)
    lines = [
        f"## {table['toolkit']} {table['version']}",
        "",
        f"{len(runs)} of {len(table['rows'])} classes run; {strong} of them raise the loss above that of a random sign "
        "or reach the threshold on every kind of task.",
        "",
        "| class | view | objective | norm | loss: clean -> attacked (random sign) | reached | unchanged "
        "| images a call | cost | settings of ours, notes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_render_run(row, norm) for row in runs for norm in row["norms"]]
    lines += ["", "| class that cannot | why | what happens if it is run |", "|---|---|---|"]
    lines += [f"| {_class(row)} | {row['reason']} | {_escape(row.get('attempt', ''))} |" for row in cannot]
    return "\n".join([*lines, ""])


def _render_run(row: Json, norm: str) -> str:
    entries = [entry for entry in row["evidence"] if entry["norm"] == norm]
    losses = " / ".join(_render_loss(entry) for entry in entries)
    gated = entries[0]["reached"] is not None
    reached = " / ".join(str(entry["reached"]) for entry in entries) if gated else ""
    unchanged = sum(entry["unchanged"] for entry in entries) or ""
    cost = f"{entries[1]['forwards']:.0f} + {entries[1]['backwards']:.0f}"
    settings = ", ".join(f"`{name} = {value!r}`" for name, value in row["settings"].items()).replace("'", '"')
    notes = [text for text in (settings, row["note"]) if text]
    many = "many" if row["batching"] == "batch-preserving" else "1"
    if many == "many" and row["settings"].get("random_start"):
        many = "1; many without its random start"
    cells = [_class(row), row["view"] or "none", row["objective"] or "none", norm, losses, reached]
    return "| " + " | ".join(map(str, [*cells, unchanged, many, cost, ". ".join(notes)])) + " |"


def _render_loss(entry: Json) -> str:
    loss = entry["loss"]
    text = f"{loss['clean']:.3f} -> {loss['attacked']:.3f} ({loss['random_sign']:.3f})"
    return text if entry["raises"] else f"*{text}*"


def _class(row: Json) -> str:
    return f"`{row['name'].partition('.')[2]}`"


def _escape(text: str) -> str:
    return text.replace("|", "\\|")
