"""Hostile edits of a run directory, with digests and labels made again: each ends in a report or in one line.

An edit is a name such as "run.json-7": the kind of file, and the seed of what is changed. `list_edits` lists as many as
are wanted; `check_edit` applies one and reads the run in every way.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from advseg_bench.errors import UserError
from advseg_bench.report import write_report
from advseg_bench.results import records
from advseg_bench.results.descriptions import write_sealed
from advseg_bench.results.parts import digest_of
from advseg_bench.results.run import Run
from advseg_bench.results.verify import verify_run

VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**53, -(2**70), 0.5, 1e308, float("nan"), float("inf"), "", "x", "../../evil",
    "/etc/passwd", "\x1b[31m\n", "=1+1", "$\\frac{1}$", "<b>&amp;", "a" * 5000, "\ud800"[:0] + "\u202e", [], {}, [[]],
    [1, 2], {"a": 1}, ["x", None], "{}", "none", "linf", "l2", [0, 1],
)  # fmt: skip
"""What a value is replaced by."""

KINDS = ("run.json", "models", "failures.json", "parts", "panels")

LONGEST = 4000
"""Most characters of an error."""


def list_edits(number: int) -> list[str]:
    """Names of some edits, spread over the kinds of files."""
    return [f"{KINDS[seed % len(KINDS)]}-{seed}" for seed in range(number)]


EDITS = list_edits(10)


def check_edit(out: Path, name: str) -> None:
    """Apply an edit to a copy of a run, and read the run in every way: each succeeds or raises a `UserError`."""
    edit(out, name)
    errors = [
        read(lambda: verify_run(out)),
        read(lambda: Run(out).rows),
        read(lambda: write_report(Run(out, strict=False), out.parent / "page" / "report")),
    ]
    for error in filter(None, errors):
        assert "\n" not in error
        assert len(error) <= LONGEST
    assert {each.name for each in out.parent.iterdir()} <= {out.name, "page"}, "nothing is written elsewhere"


def read(action: Callable[[], Any]) -> str:
    """Run an action; return the message of a `UserError`, "" if there was none. Other exceptions are not caught."""
    try:
        action()
    except UserError as error:
        return str(error)
    return ""


def edit(out: Path, name: str) -> None:
    """Change one or two values of one file of a run, and make its digest again."""
    kind, _, seed = name.rpartition("-")
    chosen = random.Random(int(seed))
    if kind == "parts":
        edit_part(out, chosen)
    elif kind == "panels":
        edit_panel(out, chosen)
    else:
        path = out / kind if kind.endswith(".json") else chosen.choice(sorted((out / kind).iterdir()))
        value = json.loads(path.read_text())
        for _ in range(chosen.choice((1, 1, 2))):
            value = change(value, chosen)
        if kind == "run.json" and isinstance(value, dict):
            value.pop("run", None)
        if isinstance(value, dict) or (isinstance(value, list) and all(isinstance(each, dict) for each in value)):
            write_sealed(path, value)
        else:
            path.write_text(json.dumps(value))


def change(value: Any, chosen: random.Random) -> Any:
    """Replace or remove a value somewhere in a JSON value."""
    if isinstance(value, dict) and value and chosen.random() < 0.93:
        key = chosen.choice(sorted(value))
        if chosen.random() < 0.1:
            return {name: value[name] for name in value if name != key}
        return value | {key: change(value[key], chosen)}
    if isinstance(value, list) and value and chosen.random() < 0.93:
        place = chosen.randrange(len(value))
        if chosen.random() < 0.1:
            return [*value, value[place]]
        return [*value[:place], change(value[place], chosen), *value[place + 1 :]]
    return chosen.choice(VALUES)


def edit_part(out: Path, chosen: random.Random) -> None:
    """Change a value, a type, the columns or the number of rows of a part."""
    path = chosen.choice(sorted((out / "parts").iterdir()))
    rows = pl.read_parquet(path)
    run = records.read_description(out).get("run", "")
    name, row = chosen.choice(rows.columns), chosen.randrange(len(rows))
    what = chosen.choice(("value", "value", "value", "type", "column", "rows", "twice"))
    if what == "value":
        values = rows[name].to_list()
        values[row] = change(values[row], chosen)
        try:
            rows = rows.with_columns(pl.Series(name, values, dtype=rows[name].dtype, strict=False))
        except (pl.exceptions.PolarsError, TypeError, OverflowError):
            rows = rows.with_columns(pl.lit(None, dtype=rows[name].dtype).alias(name))
    elif what == "type":
        rows = rows.with_columns(pl.lit(chosen.choice(("x", "1", ""))).alias(name))
    elif what == "column":
        rows = rows.drop(name)
    else:
        rows = pl.concat([rows, rows if what == "rows" else rows[:1]])
    path.unlink()
    label = json.dumps({"run": run, "cells": [], "replaces": chosen.choice(([], ["../../run.json"], [path.name]))})
    buffer = io.BytesIO()
    rows.write_parquet(buffer, metadata={"advseg_bench": label})
    digest = digest_of(buffer.getvalue())
    (out / "parts" / f"net-{'0' * 16}-{digest}.parquet").write_bytes(buffer.getvalue())


def edit_panel(out: Path, chosen: random.Random) -> None:
    """Change the description of a panel or one of its arrays."""
    path = chosen.choice(sorted((out / "panels").iterdir()))
    with np.load(path) as file:
        arrays = dict(file)
    if chosen.random() < 0.5:
        meta = json.dumps(change(json.loads(str(arrays["meta"])), chosen))
        arrays["meta"] = np.array(meta)
    else:
        name = chosen.choice(sorted(arrays))
        array = arrays[name]
        shaped = [array[..., :1], array.astype(np.complex64), array[None], array * 0, array[:0]] if array.ndim else []
        arrays[name] = chosen.choice(shaped or [np.array("{"), np.array(0)])
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    path.unlink()
    (out / "panels" / f"x-worst-{'0' * 16}-{digest_of(buffer.getvalue())}.npz").write_bytes(buffer.getvalue())
