"""Joins small parts of a run into larger ones, so that a run has few files however it was computed.

The joined part names the parts that it replaces. Until these are deleted, readers leave them out, so that a process may
be killed at any moment: there are only the old parts; or old and joined ones, of which only the joined ones are read;
or only joined ones.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import polars as pl

from advseg_bench.instruments.profiling import timed
from advseg_bench.results.parts import (
    ROW_SCHEMA,
    UNREADABLE,
    Part,
    claimed_digest,
    count_rows,
    digest_of,
    find_parts,
    list_replaced,
    open_part,
    write_part,
)

MOST_ROWS = 2**18
"""Most rows of a joined part."""

FEW = 200
"""Number of parts from which on a run is compacted, and of new parts after which it is while it is running."""


@timed("records")
def compact(
    out: Path, run: str, *, written: Sequence[Path] | None = None, few: int = FEW, most_rows: int = MOST_ROWS
) -> int:
    """Join the small parts of each model if a run has many parts, and delete what they replace.

    Args:
        out: The run directory, owned by this process.
        run: Id of the run. Parts without a label and parts of other runs stay as they are.
        written: The parts to join, such as those of this process so far; all parts of the run if None.
        few: Largest number of parts that are left alone, unless they are `written`.
        most_rows: Most rows of a joined part; a part with more than half of them is not joined again.

    Returns:
        The number of parts that were joined.

    Raises:
        RecordError: The disk is full; nothing is lost.

    Cost:
        The bytes of these parts are hashed, and the small ones are read and written once.
    """
    opened = find_parts(out, run)[0] if written is None else [open_part(path, run) for path in written]
    found = [part for part in opened if isinstance(part, Part) and part.label and part.label.run == run]
    if written is None and len(found) <= few:
        return 0
    joined = 0
    for model in sorted({_model_of(part) for part in found}):
        small = [part for part in found if _model_of(part) == model]
        for group in _group(small, most_rows):
            rows = pl.concat([rows for _, rows in group]).sort("cell", "image")
            write_part(out, rows, run, [part.path.name for part, _ in group])
            for part, _ in group:
                part.path.unlink()
            joined += len(group)
    return joined


def remove_replaced(out: Path, run: str) -> None:
    """Delete the parts that a joined part replaces, which a process that was killed has left.

    Args:
        out: The run directory, owned by this process.
        run: Id of the run.
    """
    replaced = list_replaced(find_parts(out, run)[0])
    for path in sorted((out / "parts").glob("*.parquet")):
        if path.name in replaced:
            path.unlink()


def _model_of(part: Part) -> str:
    """Return the model in the name of a labelled part."""
    return part.path.stem.rsplit("-", 2)[0]


def _group(small: Iterable[Part], most_rows: int) -> Iterator[list[tuple[Part, pl.DataFrame]]]:
    """Read parts whose bytes are whole, and yield those to join: at least two, with at most `most_rows` rows."""
    group: list[tuple[Part, pl.DataFrame]] = []
    rows = 0
    for part in small:
        frame = _read_whole(part, most_rows // 2)
        if frame is None:
            continue
        if rows + len(frame) > most_rows:
            yield group
            group, rows = [], 0
        group.append((part, frame))
        rows += len(frame)
    if len(group) > 1:
        yield group


def _read_whole(part: Part, most_rows: int) -> pl.DataFrame | None:
    """Read a small part from the bytes whose digest is compared, so that damage never gets a new digest."""
    try:
        if count_rows([part]) > most_rows:
            return None
        data = part.path.read_bytes()
        if digest_of(data) != claimed_digest(part.path):
            return None
        return pl.read_parquet(io.BytesIO(data)).select(pl.col(name).cast(kind) for name, kind in ROW_SCHEMA.items())
    except UNREADABLE:
        return None
