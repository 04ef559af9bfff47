"""The JSON files of a run: `run.json`, `models/*.json` and `failures.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advseg_bench.cache import content_hash, write_json
from advseg_bench.errors import RecordError, expected

RUN_SCHEMA = 1

PRESENTATION = ("title", "scoring")
"""Keys of a suite that do not affect the rows."""


def identify_run(info: Mapping[str, Any]) -> str:
    """Return the id of a run: a hash of its suite, apart from `PRESENTATION`, its data and its binding.

    Args:
        info: The content of a `run.json`.

    Returns:
        16 hex digits, equal on every machine that computes the same rows with the same versions.
    """
    suite = {name: value for name, value in info["suite"].items() if name not in PRESENTATION}
    return content_hash([suite, info["data"], info["binding"]])


def read_json(path: Path) -> Any:
    """Read a JSON file of a run; a missing or damaged one raises `RecordError`."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise RecordError(f"{path}: missing, so this is not the folder of a run. Pass the --out of a run.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RecordError(f"{path}: cannot be read: {error}. Restore it, or start again in a new --out.") from None


def read_description(out: Path) -> dict[str, Any]:
    """Read `run.json`; a missing or damaged one, or another schema version, raises `RecordError`."""
    info = read_json(out / "run.json")
    found = info.get("schema") if isinstance(info, dict) else None
    if found != RUN_SCHEMA:
        newer = isinstance(found, int) and found > RUN_SCHEMA
        remedy = "Upgrade advseg-bench." if newer else "Run the suite again in a new --out."
        raise RecordError(expected(out / "run.json", f"schema {RUN_SCHEMA}", found, remedy))
    kinds = {"suite": dict, "data": dict, "binding": dict, "cells": list, "images": list}
    for key, kind in kinds.items():
        if not isinstance(info.get(key), kind) or (kind is list and not info[key]):
            remedy = "Restore it, or run the suite again in a new --out."
            raise RecordError(
                expected(out / "run.json", f"a filled {kind.__name__} under {key!r}", info.get(key), remedy)
            )
    return dict(info)


def read_model(path: Path) -> dict[str, Any]:
    """Read a model's entry in a run; a damaged one, which the next run can recreate, raises `RecordError`."""
    try:
        entry = json.loads(path.read_text())
    except (OSError, ValueError):
        entry = None
    wanted = {"name": str, "architecture": str, "parameters": int, "weights_sha256": str}
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), kind) for key, kind in wanted.items()):
        raise RecordError(f"{path}: is damaged. Delete this file and run the same command again: it is recreated.")
    return entry


def read_failures(out: Path) -> list[dict[str, Any]]:
    """Read the failures of a run; a damaged file, which the next run can recreate, raises `RecordError`."""
    path = out / "failures.json"
    failures = read_json(path) if path.exists() else []
    keys = {"model", "stage", "cell", "message"}
    if not isinstance(failures, list) or not all(isinstance(f, dict) and keys <= {*f} for f in failures):
        raise RecordError(f"{path}: is damaged. Delete this file and run the same command again: it is recreated.")
    return failures


def describe(out: Path, info: dict[str, Any]) -> None:
    """Write `run.json`, or check that the existing one describes the same run.

    The title and the scoring of a suite do not affect the rows, so new values replace the old ones.

    Raises:
        RecordError: Naming the first difference that would make old and new rows incomparable.
    """
    if not (out / "run.json").exists():
        write_json(out / "run.json", info)
        return
    old, new = read_description(out), json.loads(json.dumps(info))
    presentation = {name: new["suite"][name] for name in PRESENTATION if name in new["suite"]}
    for key, what in (("suite", "suite"), ("data", "data"), ("binding", "environment")):
        before = old.get(key, {}) | presentation if key == "suite" else old.get(key)
        if before != new[key]:
            raise RecordError(
                f"{out}: holds a run of another {what}: {first_difference(before, new[key])}. "
                "Nothing was changed; choose another --out."
            )
    if old["suite"] != new["suite"]:
        write_json(out / "run.json", old | {"suite": new["suite"]})


def first_difference(old: Any, new: Any, where: str = "") -> str:
    """Name the first place where two JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            if old.get(key) != new.get(key):
                return first_difference(old.get(key), new.get(key), f"{where}.{key}".lstrip("."))
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (before, after) in enumerate(zip(old, new, strict=True)):
            if before != after:
                return first_difference(before, after, f"{where}.{i}")
    return f"{where or 'it'} was {_short(old)}, is {_short(new)}"


def _short(value: Any) -> str:
    """Return a value as JSON in at most 60 characters."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
