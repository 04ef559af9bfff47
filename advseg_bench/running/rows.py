"""Creates rows, one per cell and image of a batch, with the columns of `results.records.ROW_SCHEMA`."""

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
        cell: The cell.
        batch: The images.
        n: Number of images without padding.
        dataset: Name of the data set.
        moves: Distance of each scored image from the clean one.
        flags: Flags of each image's result.
        passes: Forwards and backwards of the attack for each image; None if they are not known exactly.
        counts: Pixel counts of each image and class.
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
