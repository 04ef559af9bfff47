"""The TOML files of a suite: the suite that it extends, its profiles, and what overrides what."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from advseg_bench.errors import LONGEST_NAME as MESSAGE_NAME
from advseg_bench.errors import SpecError, expected, tidy, unknown
from advseg_bench.suite.specs import ImageData
from advseg_bench.suite.specs.limits import (
    LONGEST_NAME,
    MOST_BYTES,
    MOST_FILES,
    check_text,
    check_values,
    is_file_name,
)
from advseg_bench.suite.text import read_text

Tables = dict[str, Any]
FILE_KEYS = ["extends", "profiles"]
"""Keys of a file that are resolved before validation: the suite it extends, and its profiles."""


def list_suites() -> list[str]:
    """Return the names of the shipped suites.

    Returns:
        Names for `Suite.load`, sorted.

    Example:
        >>> import advseg_bench as ab
        >>> ab.list_suites()
        ['quick', 'smoke', 'standard', 'wang2024']
    """
    return sorted(
        f.name.removesuffix(".toml") for f in files("advseg_bench.suite.shipped").iterdir() if f.name.endswith(".toml")
    )


def read_tables(source: str | Path, folder: Path) -> tuple[str, Tables]:
    """Read a shipped suite, or a file relative to a folder; return its name for error messages, and its tables."""
    text = str(source)
    if text in list_suites():
        return text, parse_tables(files("advseg_bench.suite.shipped").joinpath(f"{text}.toml").read_text(), text)
    path = folder / source
    try:
        if not path.is_file():
            where = tidy(source, MESSAGE_NAME)
            raise SpecError(f"{unknown(where, 'suite', text, list_suites())} Or give the path of a TOML file.")
        if (size := path.stat().st_size) > MOST_BYTES:
            remedy = "Give the path of a suite."
            raise SpecError(expected(path, f"a suite of at most {MOST_BYTES:,} bytes", f"{size:,}", remedy))
        return str(path), parse_tables(read_text(path), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read as text: {error}") from None


def parse_tables(text: str, where: str) -> Tables:
    """Read TOML; refuse what no suite needs, see `limits`."""
    check_text(text, where)
    try:
        tables = tomllib.loads(text)
    except RecursionError:
        what, remedy = "tables and lists that a parser can follow", "Flatten them."
        raise SpecError(expected(where, what, "too many inside each other", remedy)) from None
    except ValueError as error:  # of its syntax, or of an integer with thousands of digits
        cause = str(error) if isinstance(error, tomllib.TOMLDecodeError) else "an integer has too many digits"
        raise SpecError(f"{where}: is not valid TOML: {cause}.") from None
    check_values(tables, where)
    return tables


def _read_chain(tables: Tables, where: str, folder: Path) -> list[Tables]:
    """Return the tables of a file, then those of the suite it extends, and so on."""
    chain, seen = [tables], set[str]()
    while True:
        profiles, extends = tables.get("profiles", {}), tables.get("extends")
        if not isinstance(profiles, dict) or not all(isinstance(table, dict) for table in profiles.values()):
            raise SpecError(expected(where, "profiles to be tables [profiles.NAME]", profiles))
        wrong = next((name for name in profiles if not is_file_name(name)), None)
        if wrong is not None:
            what = (
                f"names of profiles of 1 to {LONGEST_NAME} letters, digits, '.', '_' and '-', since folders have them"
            )
            raise SpecError(expected(where, what, wrong, "Rename it."))
        if not isinstance(tables.get("profile", ""), str):
            raise SpecError(expected(where, "profile to be one of the names of its profiles", tables["profile"]))
        if extends is None:
            return chain
        if not isinstance(extends, str) or extends in seen or len(seen) >= MOST_FILES:
            what = "extends to name another suite, or a TOML file beside this one"
            raise SpecError(expected(where, what, extends))
        seen.add(extends)
        where, tables = read_tables(extends, folder)
        folder = (folder / extends).parent
        chain.append(tables)


def unfold(tables: Tables, where: str, profile: str | None, folder: Path) -> Tables:
    """Merge a file over the suite that it extends, applying the chosen profile at each step."""
    chain = _read_chain(tables, where, folder)
    known = {name for each in chain for name in each.get("profiles", {})}
    named = [each["profile"] for each in chain if each.get("profile")] if profile is None else [profile]
    if named and named[0] and named[0] not in known:
        raise SpecError(unknown(where, "profile", str(named[0]), known) if known else f"{where}: has no profiles.")
    return _lay_over(chain, profile)


def _lay_over(chain: Sequence[Tables], profile: str | None) -> Tables:
    """Merge the first of several files over the rest; if the rest lack the profile, they keep their default one."""
    tables, rest = chain[0], chain[1:]
    chosen = tables.get("profile", "") if profile is None else profile
    passed_on = chosen if any(chosen in each.get("profiles", {}) for each in rest) else None
    base = _lay_over(rest, passed_on) if rest else {}
    own = {key: value for key, value in tables.items() if key not in FILE_KEYS}
    named = {"profile": chosen or base.get("profile", "")}
    return overlay(overlay(base, own | named), tables.get("profiles", {}).get(chosen, {}))


def overlay(base: Tables, over: Tables) -> Tables:
    """Override the values of one table with those of another; tables are merged, lists are replaced.

    If the data set changes, only the keys common to all data sets are kept: task, size, channels and fit. If its
    path changes, `phantom` is dropped, since it stands in for the old path.
    """
    merged = dict(base)
    for key, value in over.items():
        old = base.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            if key == "data" and value.get("name", old.get("name")) != old.get("name"):
                old = {name: old[name] for name in old if name in ImageData.model_fields}
            if key == "data" and "path" in value:
                old = {name: old[name] for name in old if name != "phantom"}
            value = overlay(old, value)
        merged[key] = value
    return merged
