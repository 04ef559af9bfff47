"""Which machine made which rows of a merged run, and how much the results of the machines differ."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from advseg_bench.errors import RecordError
from advseg_bench.results import scores
from advseg_bench.results.descriptions import read_description, write_sealed
from advseg_bench.results.parts import ROW_SCHEMA, first_line
from advseg_bench.suite.specs import Scoring
from advseg_bench.types import Task

REST = "rest"
"""Key of a machine that computed rows that no part held, after the merge."""

Entry = dict[str, Any]
"""A JSON object."""


def group_machines(infos: Sequence[Mapping[str, Any]]) -> list[Entry]:
    """Group parts by machine.

    Args:
        infos: Descriptions of parts or merged runs. Of a part that several hold, the first is taken.

    Returns:
        Entries with "environment", "binding" and the "parts", each with its number "part", "of" and what it "holds":
        model -> first image and the one after the last, as places in the list of images; and "rest" if the machine
        computed what no part held.
    """
    found: list[Entry] = []
    seen: set[int] = set()
    for info in infos:
        alone = [{**info, "parts": [info["part"]]}] if "part" in info else []
        for machine in [*alone, *info.get("machines", ())]:
            described = {name: machine.get(name, {}) for name in ("environment", "binding")}
            same = next((each for each in found if described.items() <= each.items()), None)
            if same is None:
                found.append(same := described | {"parts": []})
            same["parts"] += [entry for entry in machine["parts"] if entry["part"] not in seen]
            seen |= {entry["part"] for entry in machine["parts"]}
            same |= {REST: True} if machine.get(REST) else {}
    for machine in found:
        machine["parts"].sort(key=lambda entry: entry["part"])
    used = [each for each in found if each["parts"] or REST in each]
    return sorted(used, key=lambda each: [entry["part"] for entry in each["parts"]] or [math.inf])


def note_rest(out: Path, environment: Entry, binding: Entry) -> None:
    """Note in the description of a merged run that this machine computes what no part holds."""
    info = read_description(out)
    if "machines" not in info:
        return
    here = json.loads(json.dumps({"environment": environment, "binding": binding}))
    same = next((each for each in info["machines"] if here.items() <= each.items()), None)
    if same is None:
        info["machines"].append(here | {"parts": [], REST: True})
    elif REST not in same:
        same[REST] = True
    else:
        return
    write_sealed(out / "run.json", info)


def compare_machines(info: Mapping[str, Any], calibrations: Mapping[str, Entry]) -> Entry:
    """Compare the calibration rows of machines.

    Args:
        info: The description of a merged run.
        calibrations: Number of a part, as text -> its calibration.

    Returns:
        "dice_difference", the largest difference in Dice of any image between two machines, None if no model was run
        with equal weights on two of them; "where", its model, attack and image; "models", those that were compared.
    """
    data = info["data"]
    task, scoring = Task(data["kind"], tuple(data["classes"])), Scoring.model_validate(info["suite"].get("scoring", {}))
    largest, where, models = None, "", []
    for model in dict.fromkeys(cell["model"] for cell in info["cells"]):
        frames = _list_frames(info["machines"], calibrations, model)
        if len(frames) < 2:
            continue
        models.append(model)
        scored = pl.concat(scores.score_rows(rows, task, scoring) for rows in frames)
        spread = scored.group_by("cell", "attack", "image").agg(
            (pl.col("dice").max() - pl.col("dice").min()).alias("d")
        )
        worst = spread.drop_nulls("d").sort("d", "attack", "image").tail(1).to_dicts()
        if worst and (largest is None or worst[0]["d"] > largest):
            largest, where = worst[0]["d"], f"{model}, {worst[0]['attack']}, {worst[0]['image']}"
    return {"dice_difference": largest, "where": where, "models": models}


def _list_frames(machines: Sequence[Entry], calibrations: Mapping[str, Entry], model: str) -> list[pl.DataFrame]:
    """The calibration rows of a model, of the first part of each machine that has them with the same weights."""
    found: list[pl.DataFrame] = []
    weights = None
    for machine in machines:
        each = (calibrations.get(str(entry["part"]), {}).get(model) for entry in machine["parts"])
        known = next((one for one in each if one and weights in (None, one.get("weights_sha256"))), None)
        if known is not None:
            weights = known["weights_sha256"]
            try:
                found.append(pl.DataFrame(known["rows"], schema=ROW_SCHEMA))
            except (pl.exceptions.PolarsError, TypeError, ValueError) as error:
                raise RecordError(
                    f"calibration of {model}: is damaged ({first_line(error)}). Delete the file."
                ) from None
    return found


def describe_mixture(info: Mapping[str, Any]) -> str:
    """Return a caution about a run whose machines differ in what bits depend on, or in results; else ""."""
    machines, found = info.get("machines", ()), info.get("calibration", {})
    bindings = [machine["binding"] for machine in machines]
    difference = found.get("dice_difference")
    if all(binding == bindings[0] for binding in bindings) and not difference:
        return ""
    types = f"The rows come from {len(machines)} types of machine, whose results may differ in their last bits"
    if difference is None:
        return f"{types}; no model ran with equal weights on two of them, so that the difference is unknown."
    return f"{types}: on the same images and weights, Dice differs by at most {difference:.2g} ({found['where']})."
