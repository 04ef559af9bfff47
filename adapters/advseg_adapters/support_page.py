"""Render the support tables as a Markdown page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Json = Mapping[str, Any]

HEAD = """\
# Attack classes of the toolkits on segmentation models

All results are measured: `python -m advseg_adapters.measure_support torchattacks foolbox art --page docs/support.md`
runs every class and writes this page. Tests compare the adapters with it.

- **view**: what the class attacks. *loss*: a two-class view whose cross-entropy follows the loss of the suite.
  *margin*: a two-class view whose class changes where the loss exceeds a threshold. *native*: an estimator with masks
  as labels. *none*: the class ignores the model.
- **objective**: *follows loss*: it increases the loss of the suite. *success-gated*: it stops, or returns the clean
  image, by its own criterion of success, so it has a threshold (a loss {share} above the clean one, unless `threshold`
  or `rise` is set) and reports how many images exceed it. *own loss*: it increases a loss of the class.
- **images per call**: *many*: one call with four images is bit-identical to four calls with one. *1*: it is not, the
  class uses random numbers, or the cost of an image depends on the other images; each image then gets a separate call.
- **loss**: mean over the images, clean -> attacked, for binary / multilabel / multiclass tasks; in parentheses the
  noise baseline, a random sign of the same norm and radius. *Italics*: the attacked loss is not above both, and no
  image reached the threshold; or the class ignores the model, so that any harm is by chance.
- **reached**: images beyond the threshold, of {images}, for the three task types.
- **unchanged**: results equal to the clean image, over all task types and norms. Every run flags such a result, which
  is no evidence of robustness.
- **cost**: forwards + backwards per image.

Network: {model}; loss `{loss}`; L_inf 8/255, L2 1.0; seed {seed}; settings as listed, otherwise defaults of the class.
"""


def read_tables(folder: Path) -> list[Json]:
    """Return the tables of a folder, sorted by the name of the toolkit."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def render(tables: Iterable[Json]) -> str:
    """Return the page as Markdown."""
    tables = list(tables)
    setting = tables[0]["measured_with"]
    head = HEAD.format(
        share="10 %", images=len(setting["images"]), model=setting["model"], loss=setting["loss"], seed=setting["seed"]
    )
    return "\n".join([head, *(_render_table(table) for table in tables)])


def _render_table(table: Json) -> str:
    runs = [row for row in table["rows"] if row["status"] == "runs"]
    cannot = [row for row in table["rows"] if row["status"] != "runs"]
    strong = sum(row["raises"] for row in runs)
    lines = [
        f"## {table['toolkit']} {table['version']}",
        "",
        f"{len(runs)} of {len(table['rows'])} classes run; {strong} of them raise the loss above the noise baseline "
        "or reach the threshold for every task type.",
        "",
        "| class | view | objective | norm | loss: clean -> attacked (noise baseline) | reached | unchanged "
        "| images per call | cost | changed defaults, notes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_render_run(row, norm) for row in runs for norm in row["norms"]]
    lines += ["", "| unsupported class | reason | outcome of a run |", "|---|---|---|"]
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
        many = "1; many without a random start"
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
