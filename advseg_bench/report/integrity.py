"""The tables on the validity of the numbers: norms, flags, skips, failures, and the environment of the run."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import polars as pl

from advseg_bench.checks.doubts import DOUBTS, TRACED
from advseg_bench.instruments.process_entry import CHANGED
from advseg_bench.registry import catalogue
from advseg_bench.report.document import (
    NOTHING,
    Column,
    Table,
    show_budget,
    show_count,
    show_number,
    show_plural,
    thin,
)
from advseg_bench.report.measured import AVERAGED, NOTES
from advseg_bench.report.summary import Summary
from advseg_bench.results.arms import ARM, WORST, read_arm
from advseg_bench.results.run import Run
from advseg_bench.results.scores import UNMEASURED
from advseg_bench.suite.battery import KEPT_SMALLER, SKIPPED
from advseg_bench.suite.cells import Arm
from advseg_bench.suite.specs import Inference

FLAGS = {
    "over_budget": "the result exceeded its budget; it was projected back, and only the projection is scored",
    "beyond_eps": "the attack exceeds eps by definition and did so here; it is not comparable at equal eps",
    "out_of_bounds": "the result left the intensity range; it was clipped, and only the clipped image is scored",
    "non_finite": "the attack returned NaN or infinity; these values were replaced by those of the clean image",
    "unchanged": "the attack returned the clean image; this is no evidence of robustness, and no mean contains it",
    "non_finite_logits": "the model yields NaN or infinity for the image, clean or attacked; no mean contains it",
    "non_finite_gradient": "the attack met a gradient with NaN or infinity, so it is incomplete; no mean contains it",
    "not_reached": "an attack that stops at success did not exceed its threshold",
    "over_cost": "the attack used more forward or backward passes than it declares",
    "model_changed": "the attack changed the model's weights, mode or gradient flags",
    "input_changed": "the attack modified its input images in place",
    CHANGED: "the attack, or the model itself, changed the state of the process; it was restored, so that no other "
    "result is affected",
    SKIPPED: "not attacked, since an earlier member of the battery left the score at 0; its result is repeated",
    KEPT_SMALLER: "the best result of the battery at a smaller radius was better, and is kept",
    **{name: f"doubt: {DOUBTS[name].cause}; this is a note, and all means contain the result" for name in TRACED},
}
"""The meaning of each flag of a row."""


def explain_flag(name: str) -> str:
    """Return the meaning of a flag in plain words."""
    flag, _, state = name.partition(":")
    if flag == CHANGED and state:
        return f"what was changed and restored: {state}"
    return FLAGS.get(name, "see the attack's documentation")


def describe_checks(summary: Summary) -> tuple[str, ...]:
    """Summarise in sentences what was re-checked in float64."""
    stored = summary.cells.filter(pl.col("attack") != WORST)
    attacked = stored.filter(pl.col("attack") != "none", pl.col("eps") > 0)
    if attacked.is_empty():
        return ("No attack has a result yet.",)
    beyond = attacked.filter(pl.col("beyond") > 0)
    within = attacked.filter(pl.col("beyond") == 0)
    used = within.select((pl.col("furthest") / pl.col("eps")).max()).item()
    results, flagged, noted = (int(attacked[name].sum()) for name in ("results", "at_fault", "noted"))
    sentence = (
        f"Every attacked image was re-measured in float64: the largest perturbation is {show_number(used, 4)} times "
        f"its budget, and {show_count(flagged) if flagged else 'none'} of "
        f"{show_plural(results, 'result')} {'are' if flagged > 1 else 'is'} flagged"
        + (f", apart from {show_count(noted)} with no more than a note." if noted else ".")
    )
    sentences = (sentence, *_describe_battery(summary.run, stored))
    if beyond.is_empty():
        return sentences
    times = show_number(beyond.select((pl.col("furthest_beyond") / pl.col("eps")).max()).item(), 2)
    left_out = show_plural(int(beyond["beyond"].sum()), "result")
    return (
        *sentences,
        f"Not included: {left_out} of attacks that exceed eps by definition, with up to {times} times eps.",
    )


def _describe_battery(run: Run, measured: pl.DataFrame) -> tuple[str, ...]:
    """Compare the passes of a battery with those of its members alone; nothing without a battery."""
    cells = [cell["id"] for cell in run.info["cells"] if cell.get("battery")]
    of_battery = measured.filter(pl.col("cell").is_in(cells))
    sums = of_battery.group_by("attack", "settings").agg(pl.col("results", "forwards", "backwards", "skipped").sum())
    used = [0, 0]
    alone = [0.0, 0.0]
    left_out = 0
    for row in sums.iter_rows(named=True):
        traits = catalogue.ATTACKS[row["attack"]].traits_of(json.loads(row["settings"]))
        for i, name in enumerate(("forwards", "backwards")):
            used[i] += int(row[name])
            alone[i] += row["results"] * (getattr(traits, name) or 0)
        left_out += row["skipped"]
    if not cells or not sum(used):
        return ()
    passes = f"{show_count(used[0])} forwards and {show_count(used[1])} backwards"
    each = f"{show_count(int(alone[0]))} and {show_count(int(alone[1]))} if each member attacked every image"
    return (f"The battery took {passes}, of {each}; {show_plural(left_out, 'result')} needed no attack.",)


def make_norm_table(summary: Summary) -> Table:
    """Make the table of measured perturbation norms and of the cost of the attacks."""
    keys = (*ARM, "eps")
    means = [
        pl.when(pl.col(f"{name}_known").sum() > 0).then(pl.col(name).sum() / pl.col(f"{name}_known").sum()).alias(label)
        for name, label in zip(AVERAGED, ("l2_mean", *AVERAGED[1:]), strict=True)
    ]
    data = (
        summary.cells.filter(pl.col("attack") != "none")
        .group_by(keys)
        .agg(
            pl.col("results").sum(), pl.col("linf_min").min(), pl.col("linf_max").max(), *means, pl.col("flagged").sum()
        )
        .sort(keys)
    )
    found: dict[Arm, list[dict[str, Any]]] = {}
    for row in data.iter_rows(named=True):
        found.setdefault(read_arm(row), []).append(row)
    rows = [(s, row) for s in summary.series for row in found[s.arm]]
    scaled = [(row, row["eps"] or None) for _, row in rows]
    columns = (
        Column("Attack and loss", thin([s.label for s, _ in rows]), number=False),
        Column("eps", tuple(show_budget(row["eps"], s.arm.norm, summary.run.about.data.width) for s, row in rows)),
        Column("Results", tuple(show_count(row["results"]) for _, row in rows)),
        Column("Smallest L_inf / eps", tuple(show_number(eps and row["linf_min"] / eps) for row, eps in scaled)),
        Column("Largest L_inf / eps", tuple(show_number(eps and row["linf_max"] / eps) for row, eps in scaled)),
        Column("Mean L_2", tuple(show_number(row["l2_mean"]) for _, row in rows)),
        Column("Unchanged fraction", tuple(show_number(row["unmoved"]) for _, row in rows)),
        Column("Passes", tuple(_show_passes(row["forwards"], row["backwards"]) for _, row in rows)),
        Column("Flagged", tuple(show_count(row["flagged"]) for _, row in rows)),
    )
    caption = (
        "Over all models and images. L_inf and L_2: norms of the scored image minus the clean one, in the units of "
        "eps. Unchanged fraction: share of values that are exactly those of the clean image, because the "
        "gradient is 0 or because of clipping at the ends of the intensity range. Passes: counted forward + backward "
        "passes of the model that the attack needs for an image by itself, averaged over images; "
        f"{NOTHING} if they cannot be attributed to single images. Flagged: without the notes {', '.join(NOTES)}."
    )
    return Table("integrity", "Measured perturbations", caption, columns, data, detail=True)


def make_flag_table(data: pl.DataFrame) -> Table | None:
    """Make the table of flagged results from their counts, or None where no result is flagged."""
    if data.is_empty():
        return None
    columns = (
        Column("Flag", tuple(data["flag"]), number=False),
        Column("Model", tuple(data["model"]), number=False),
        Column(
            "Attack and loss",
            tuple(f"{a} {b}".strip() for a, b in zip(data["attack"], data["loss"], strict=True)),
            False,
        ),
        Column("Results", tuple(show_count(n) for n in data["results"])),
        Column("Meaning", tuple(map(explain_flag, data["flag"])), False),
    )
    caption = (
        "Number of results (one per image) with each flag. All are scored, except those flagged as "
        f"{', '.join(UNMEASURED[:-1])} or {UNMEASURED[-1]}. {', '.join(NOTES)}: notes, no fault."
    )
    return Table("flags", "Flagged results", caption, columns, data)


def make_skip_table(run: Run) -> Table | None:
    """Make the table of skipped cells, or None if there are none."""
    skipped = [cell for cell in run.about.cells if cell.skip is not None]
    if not skipped:
        return None
    counts = Counter((cell.skip or "", " ".join(filter(None, (cell.arm.attack, cell.arm.loss)))) for cell in skipped)
    columns = (
        Column("Attack and loss", tuple(name for _, name in counts), number=False),
        Column("Cells", tuple(map(show_count, counts.values()))),
        Column("Reason", tuple(reason for reason, _ in counts), number=False),
    )
    data = pl.DataFrame([{"id": cell.id, "label": cell.label, "skip": cell.skip} for cell in skipped])
    caption = "Cells of the suite that do not apply and were not run. They are not failures and enter no score."
    return Table("skipped", "Skipped", caption, columns, data)


def make_failure_table(run: Run) -> Table | None:
    """Make the table of failures, or None if there are none."""
    if not run.failures:
        return None
    labels = {cell.id: cell.label for cell in run.about.cells}
    what = [labels.get(f["cell"], f["cell"]) if f["cell"] else f"all of {f['model']}" for f in run.failures]
    columns = (
        Column("Model", tuple(f["model"] for f in run.failures), number=False),
        Column("Stage", tuple(f["stage"] for f in run.failures), number=False),
        Column("Cell", tuple(what), number=False),
        Column("Reason", tuple(f["message"] for f in run.failures), number=False),
    )
    fields = ("model", "stage", "cell", "message")
    data = pl.DataFrame(
        [{key: f[key] for key in fields} for f in run.failures], schema=dict.fromkeys(fields, pl.String)
    )
    caption = "Models and cells that failed. A failure enters no score above. The next run attempts them again."
    return Table("failed", "Failed", caption, columns, data)


def make_environment_table(run: Run) -> Table:
    """Make the table of versions and machine."""
    entries = {str(key): str(value) for key, value in run.about.environment.items()}
    columns = (
        Column("What", tuple(entries), number=False),
        Column("Version or value", tuple(entries.values()), number=False),
    )
    caption = (
        "Results are bit-identical where all of these are equal. With another compute batch or number of threads, at "
        "most 0.1 % of the pixels of an image may differ."
    )
    data = pl.DataFrame({"what": list(entries), "value": list(entries.values())})
    return Table("environment", "Versions and machine", caption, columns, data)


def make_convention_table(run: Run) -> Table:
    """Make the table of the conventions that the numbers depend on."""
    suite, data = run.about.suite, run.about.data
    splits = ", ".join(f"{name} {count}" for name, count in data.splits.items())
    recipe = ", ".join(
        f"{name.replace('_', ' ')} {json.dumps(value) if isinstance(value, (list, dict)) else value}"
        for name, value in suite.training.items()
    )
    entries = {
        "Data": f"{data.title}, fingerprint {data.fingerprint}",
        "Task": f"{run.task.kind}: {', '.join(run.task.classes)}",
        "Images": splits,
        **data.facts,
        **describe_windows(run),
        "Seed": NOTHING if suite.seed is None else str(suite.seed),
        "Class absent from an image": run.scoring.empty,
        "Dice threshold": f"{run.scoring.dice_threshold:g}",
        "Training": recipe or NOTHING,
    }
    columns = (
        Column("What", tuple(entries), number=False),
        Column("Value", tuple(entries.values()), number=False),
    )
    caption = "The complete suite is in run.json. A report can be recomputed with other scoring without a new run."
    table = pl.DataFrame({"what": list(entries), "value": list(entries.values())})
    return Table("conventions", "Conventions", caption, columns, table)


def describe_windows(run: Run) -> dict[str, str]:
    """Return the sliding windows through which models see images, as an entry of the settings; none without them."""
    suite = run.about.suite.source
    size = suite["data"].get("size")
    edges = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
    given = {name: suite.get("inference") or run.models.get(name, {}).get("inference") for name in run.about.models}
    shown = {name: Inference.model_validate(each).describe(edges) for name, each in given.items() if each and size}
    if not shown:
        return {}
    same = len(shown) == len(given) and len(set(shown.values())) == 1
    named = next(iter(shown.values())) if same else "; ".join(f"{name}: {each}" for name, each in shown.items())
    return {"Sliding windows": named}


def _show_passes(forwards: float | None, backwards: float | None) -> str:
    """Write forward and backward passes as "1 + 1"."""
    return NOTHING if forwards is None or backwards is None else f"{forwards:g} + {backwards:g}"
