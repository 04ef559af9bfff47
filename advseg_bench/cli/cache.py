"""The commands `cache list`, `cache verify` and `cache clear`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from advseg_bench.cli.common import print_line

if TYPE_CHECKING:
    from advseg_bench.cache.contents import Entry

DAY_S = 86_400.0
MANY = {"scan": "scans of the phantom", "timing": "run times of models"}
"""Entries that are small and many: listed in one line."""

Keys = Annotated[list[str] | None, typer.Argument(metavar="[KEY]...", help="Keys of entries, or their first digits.")]


def cache_list_command() -> None:
    """List what the cache holds: trained models with their suite and key, phantom data, sizes and ages.

    Exit codes: 0; 2 if the cache cannot be read.
    """
    from advseg_bench.cache import cache_root
    from advseg_bench.cache.contents import list_entries

    entries = list_entries()
    print_line(f"{cache_root()}: {_size(sum(entry.size for entry in entries))} in {_count(len(entries))}")
    for entry in entries:
        if entry.type not in MANY:
            print_line(_describe(entry))
    for name, title in MANY.items():
        found = [entry for entry in entries if entry.type == name]
        if found:
            newest = max(entry.changed for entry in found)
            print_line(f"{len(found)} {title}  {_size(sum(entry.size for entry in found))}  newest {_age(newest)}")


def cache_verify_command() -> None:
    """Compare everything in the cache with its SHA-256 digest. Nothing is changed: runs make damaged files again.

    Exit codes: 0 if all files match; 1 if one is damaged; 2 if the cache cannot be read.
    """
    from collections import Counter

    from advseg_bench.cache.contents import list_entries, verify

    states: Counter[str] = Counter()
    for entry in list_entries():
        state, fault = verify(entry)
        states[state] += 1
        if state == "damaged":
            print_line(f"damaged: {entry.path}: {fault} ({entry.about})")
    parts = [f"{states[state]} {state}" for state in ("whole", "unfinished", "without digest", "damaged")]
    print_line(f"{_count(states.total())}: {', '.join(parts)}")
    if states["damaged"]:
        raise typer.Exit(1)


def cache_clear_command(
    keys: Keys = None,
    older_than: Annotated[
        float | None, typer.Option(min=0, metavar="DAYS", help="Remove entries last written more than DAYS days ago.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Remove every entry.")] = False,
) -> None:
    """Remove entries of the cache without asking, and print each. What a process is writing is kept.

    Exit codes: 0; 1 if an entry was kept because a process is writing it; 2 if nothing was selected, a key is unknown
    or ambiguous, or the cache cannot be written.
    """
    from advseg_bench.cache.contents import list_entries, remove
    from advseg_bench.errors import SpecError

    if bool(keys) + (older_than is not None) + every != 1:
        raise SpecError("cache clear: expected one of KEY, --older-than DAYS and --all. See `advseg-bench cache list`.")
    entries = list_entries()
    if keys:
        chosen = {_choose(entries, key) for key in keys}
        entries = [entry for entry in entries if entry.key in chosen]
    elif older_than is not None:
        entries = [entry for entry in entries if time.time() - entry.changed > older_than * DAY_S]
    removed = size = 0
    for entry in entries:
        reason = remove(entry)
        print_line(f"kept ({reason}): {_describe(entry)}" if reason else f"removed {_describe(entry)}")
        removed, size = removed + (reason is None), size + (entry.size if reason is None else 0)
    print_line(f"{_count(removed)} removed, {_size(size)}")
    if removed < len(entries):
        raise typer.Exit(1)


def _choose(entries: Sequence[Entry], key: str) -> str:
    """Find the key that is, or begins with, the given digits."""
    from advseg_bench.errors import SpecError, expected

    found = {entry.key for entry in entries if entry.key.startswith(key)}
    if len(found) == 1 and len(key) >= 4:
        return found.pop()
    what = "a key of the cache, or at least its first 4 digits"
    raise SpecError(expected("cache clear", what, key, f"Keys with it: {len(found)}. See `advseg-bench cache list`."))


def _describe(entry: Entry) -> str:
    holder = entry.holder
    notes = f"  in use by {holder}" if holder else ""
    state = "  unfinished" if entry.unfinished else ""
    return f"{entry.key}  {entry.type}  {_size(entry.size)}  {_age(entry.changed)}  {entry.about}{state}{notes}"


def _count(entries: int) -> str:
    return f"{entries} {'entry' if entries == 1 else 'entries'}"


def _size(count: float) -> str:
    """Format a number of bytes in decimal units."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _age(changed: float) -> str:
    """Format the time since a file was written."""
    seconds = max(0.0, time.time() - changed)
    for unit, length in (("days", DAY_S), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} seconds ago"
