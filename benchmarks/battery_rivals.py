"""Compare the fast battery with every toolkit class that follows a loss, on models of `quick`, image by image.

    python benchmarks/battery_rivals.py --models unet-resnet18 --out runs/rivals

The classes are those that the support tables list as "follows loss" for multilabel tasks in L_inf, with the settings of
their routes, about ten steps; all follow the loss that the battery's first APGD follows. Images are neither skipped nor
started from other results. `--steps` runs the classes whose number of steps can be set with another number.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

import advseg_bench as ab
from advseg_adapters.loading import SUPPORT
from advseg_bench.results.run import Run
from advseg_bench.suite.cells import plan

LOSS = "present_dice"
TOOLKITS = ("torchattacks", "foolbox", "art")
STEPS = {"torchattacks": "steps", "foolbox": "steps", "art": "max_iter"}
"""The setting of a toolkit that is the number of steps."""


def list_rivals(eps: str, steps: int | None, most: int, only: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Yield the classes that follow a loss with at most `most` forwards, or those named, as attacks of a suite."""
    for toolkit in TOOLKITS:
        for row in json.loads((SUPPORT / f"{toolkit}.json").read_text())["rows"]:
            fits = "linf" in row["norms"] and "multilabel" in row["kinds"]
            if row["objective"] != "follows loss" or not fits or (only and row["name"] not in only):
                continue
            cost = next(e for e in row["evidence"] if (e["norm"], e["kind"]) == ("linf", "multilabel"))
            if cost["forwards"] > most or (steps is not None and not 10 <= cost["backwards"] < 20):
                continue
            settings = {} if steps is None else {STEPS[toolkit]: steps}
            yield {"name": row["name"], "losses": [LOSS], "eps": [eps], "settings": settings}


def make_suite(models: list[str], eps: str, steps: int | None, most: int, only: Sequence[str] = ()) -> ab.Suite:
    """Return `quick` with some models, the fast battery and its rivals."""
    tables = ab.Suite.load("quick").as_json()
    tables["models"] = [model for model in tables["models"] if model["name"] in models]
    tables["attacks"] = list(list_rivals(eps, steps, most, only))
    tables["battery"] = {"name": "standard-1", "profile": "fast", "eps": [eps], "skip": False, "warm_start": False}
    return ab.Suite.model_validate(tables)


def tabulate(suite: ab.Suite, run: Run) -> pl.DataFrame:
    """Return for each model and attack the mean Dice lost and its passes, with the worst case of the battery.

    The column `ahead` counts the images on which an attack takes more than the battery, by more than 0.001 Dice.
    """
    members = [cell.id for cell in plan(suite) if cell.member is not None]
    rows = run.scores().filter(pl.col("attack") != "none")
    rows = rows.with_columns(pl.col("cell").is_in(members).alias("member"))
    worst = (
        rows.filter("member")
        .group_by("model", "image")
        .agg(pl.max("drop").alias("worst"), pl.sum("forwards"), pl.sum("backwards"))
    )
    battery = worst.select(
        "model",
        "image",
        pl.lit("worst of the battery").alias("attack"),
        pl.lit("").alias("settings"),
        pl.lit("").alias("loss"),
        pl.lit(True).alias("member"),
        pl.col("worst").alias("drop"),
        "forwards",
        "backwards",
    )
    rows = pl.concat([battery, rows.select(battery.columns)], how="vertical_relaxed")
    rows = rows.join(worst.select("model", "image", "worst"), on=["model", "image"])
    return (
        rows.group_by("model", "attack", "loss", "settings", "member")
        .agg(
            pl.mean("drop"),
            pl.mean("forwards"),
            pl.mean("backwards"),
            (pl.col("drop") > pl.col("worst") + 1e-3).sum().alias("ahead"),
        )
        .sort(["model", "drop"], descending=[False, True])
    )


def main() -> None:
    """Read the command line, run the suite, and print a table as Markdown."""
    parser = argparse.ArgumentParser(description="Compare the fast battery with the attacks of toolkits.")
    parser.add_argument("--models", nargs="+", default=["unetplusplus-resnet10t", "unet-resnet18"])
    parser.add_argument("--eps", default="4/255")
    parser.add_argument("--steps", type=int, help="Steps of each class; only classes of one pass a step run.")
    parser.add_argument("--only", nargs="*", default=(), help="Names of classes; by default all.")
    parser.add_argument("--most", type=int, default=1000, help="Leave out classes with more forwards per image.")
    parser.add_argument("--out", type=Path, required=True, help="Folder of the run, which is resumed.")
    given = parser.parse_args()
    suite = make_suite(given.models, given.eps, given.steps, given.most, given.only)
    run = ab.run(suite, given.out)
    for failure in run.failures:
        print(failure)
    print("| model | attack | loss | Dice lost | forwards | backwards | images ahead |\n|---|---|---|---|---|---|---|")
    for row in tabulate(suite, run).iter_rows(named=True):
        name = f"`{row['attack']}`" if row["loss"] or not row["member"] else row["attack"]
        where = " (battery)" if row["member"] and row["attack"] != "worst of the battery" else ""
        print(
            f"| {row['model']} | {name}{where} | {row['loss']} | {row['drop']:.4f} | {row['forwards']:.0f} | "
            f"{row['backwards']:.0f} | {row['ahead']} |"
        )


if __name__ == "__main__":
    main()
