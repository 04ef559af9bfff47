"""Rows: what is written down of one cell on each image of a batch, columns as in `results.records.ROW_SCHEMA`."""

from __future__ import annotations

from typing import Any

from advseg_bench.batches import Batch
from advseg_bench.geometry import Moves
from advseg_bench.instruments.profiling import timed
from advseg_bench.metrics import Counts
from advseg_bench.running.work import Row
from advseg_bench.suite.cells import Cell

Passes = list[tuple[int, int]]
"""Forwards and backwards of each image."""


@timed("records")
def make_rows(
    cell: Cell,
    batch: Batch,
    n: int,
    *,
    dataset: str,
    moves: Moves,
    flags: list[set[str]],
    passes: Passes | None,
    counts: Counts,
) -> list[Row]:
    """Return one row for each of the first `n` images of a batch; the others are padding.

    Args:
        cell: What was run.
        batch: On what.
        n: Images without padding.
        dataset: The data set's name.
        moves: How far each scored image is from the clean one.
        flags: What was wrong with each image's result.
        passes: What the attack asked of the model for each image; None if that is not known exactly.
        counts: Pixels of each image and class.
    """
    arm = cell.arm
    fixed = {
        "cell": cell.id,
        "dataset": dataset,
        "model": cell.model,
        "attack": arm.attack,
        "loss": arm.loss,
        "settings": arm.settings,
        "norm": arm.norm,
        "eps": cell.eps,
        "draw": cell.draw,
    }
    columns: dict[str, list[Any]] = {
        "image": list(batch.images),
        "subject": list(batch.subjects),
        "block": list(batch.blocks),
        "tp": counts.tp.tolist(),
        "fp": counts.fp.tolist(),
        "fn": counts.fn.tolist(),
        "valid_pixels": counts.valid.tolist(),
        "wrong_pixels": counts.wrong.tolist(),
        "flipped_pixels": counts.flipped.tolist(),
        "linf": moves.linf.tolist(),
        "l2": moves.l2.tolist(),
        "unmoved": moves.unmoved.tolist(),
        "forwards": [None if passes is None else passes[i][0] for i in range(len(flags))],
        "backwards": [None if passes is None else passes[i][1] for i in range(len(flags))],
        "flags": [sorted(names) for names in flags],
    }
    return [fixed | {name: values[i] for name, values in columns.items()} for i in range(n)]
