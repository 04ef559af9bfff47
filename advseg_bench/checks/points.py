"""The points of a run that doubts are about: each arm at each radius on each model, with its images."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from advseg_bench.checks.doubts import TRACED, Finding, Reason
from advseg_bench.registry import catalogue

Floats = NDArray[np.float64]

VIRTUAL = ("none", "worst_case")
"""Names in the column `attack` that are no attacks: the clean prediction, and the minimum over attacks."""

IMAGE = ("subject", "image")
"""Columns that identify an image."""

_WITHOUT_GRADIENT = ("square", "transfer")
_POINT = ("model", "attack", "loss", "settings", "norm", "eps")


@dataclass(frozen=True, slots=True)
class Point:
    """One arm at one radius on one model, averaged over repeats.

    Attributes:
        model: Name of the model.
        arm: Attack, loss, settings and norm.
        eps: The radius.
        role: "noise", "gradient", "free" (an attack without gradients), or "unknown" where its passes are not known.
        steps: Number of backward passes; None if not known.
        dice: Dice of each image of the run, that of the clean image where the attack returned it; NaN where it has
            none.
        clean: Dice of the clean images.
        unmoved: Share of the values that the attack left as they were.
        marks: Name -> share of the repeats of each image with this flag, for "unchanged" and those of `TRACED`.
        counts: The pixel counts of all images and repeats, as hashes.
    """

    model: str
    arm: tuple[str, str, str, str]
    eps: float
    role: str
    steps: float | None
    dice: Floats
    clean: Floats
    unmoved: Floats
    marks: Mapping[str, Floats]
    counts: bytes

    @property
    def label(self) -> str:
        """Attack and loss."""
        return " ".join(filter(None, self.arm[:2]))

    @property
    def images(self) -> int:
        """Number of images."""
        return int((~np.isnan(self.clean)).sum())

    @property
    def options(self) -> dict[str, object]:
        """The settings."""
        return dict(json.loads(self.arm[2] or "{}"))

    @property
    def lowers_dice(self) -> bool:
        """Whether the attack is meant to lower Dice: not if it has a target or other labels than the true ones."""
        options = self.options
        return not options.get("targeted", False) and options.get("label", "true") == "true"

    def find(self, doubt: str, reason: Reason) -> Finding:
        """Return a finding about this point."""
        observed, images = reason
        return Finding(doubt, self.model, observed, self.arm, (self.eps,), images)


def read_points(scored: pl.DataFrame, model: str, controls: Collection[str] = ()) -> list[Point]:
    """Return the points of one model, sorted by norm, arm and radius; images without a clean Dice are left out."""
    has = {name: pl.col("flags").list.contains(name) for name in ("unchanged", *TRACED)}
    rows = (
        scored.lazy()
        .filter(
            pl.col("model") == model,
            ~pl.col("attack").is_in(VIRTUAL),
            pl.col("eps") > 0,
            pl.col("dice_clean").is_not_null(),
        )
        .select(
            *_POINT,
            *IMAGE,
            "unmoved",
            "dice_clean",
            "backwards",
            pl.when(has["unchanged"]).then("dice_clean").otherwise("dice").alias("dice"),
            *(mask.cast(pl.Float64).alias(name) for name, mask in has.items()),
            pl.struct("tp", "fp", "fn", "draw").hash(0).alias("counts"),
        )
        .collect()
    )
    images = rows.select(IMAGE).unique().sort(IMAGE).with_row_index("image_at")
    keys = rows.group_by(_POINT).agg(pl.max("backwards")).with_row_index("point_at")
    shape = len(keys), len(images)
    of_rows = rows.select(*_POINT, *IMAGE).join(images, on=IMAGE, maintain_order="left")
    of_rows = of_rows.join(keys.drop("backwards"), on=_POINT, maintain_order="left")
    point_at, image_at = (of_rows[name].to_numpy().astype(np.int64) for name in ("point_at", "image_at"))
    place = point_at * shape[1] + image_at
    values = ("dice", "dice_clean", "unmoved", *has)
    full = {name: _average(place, rows[name], shape) for name in values}
    hashes = np.zeros(shape[0] * shape[1], dtype=np.uint64)
    np.bitwise_xor.at(hashes, place, rows["counts"].to_numpy())
    there = np.bincount(place, minlength=len(hashes)).reshape(shape) > 0
    points = []
    for at, key in enumerate(keys.drop("point_at").iter_rows()):
        _, attack, loss, settings, norm, eps, steps = key
        known = np.flatnonzero(there[at])
        points.append(
            Point(
                model,
                (attack, loss, settings, norm),
                eps,
                _find_role(attack, steps, controls),
                steps,
                full["dice"][at],
                full["dice_clean"][at],
                full["unmoved"][at],
                {name: full[name][at] for name in has},
                known.tobytes() + hashes.reshape(shape)[at, known].tobytes(),
            )
        )
    return sorted(points, key=lambda point: (point.arm[3], point.arm, point.eps))


def _average(place: NDArray[np.int64], values: pl.Series, shape: tuple[int, int]) -> Floats:
    """Average values by their place in an array; NaN where there are none."""
    floats = values.to_numpy()
    known = ~np.isnan(floats)
    size = shape[0] * shape[1]
    counts = np.bincount(place[known], minlength=size)
    sums = np.bincount(place[known], floats[known], minlength=size)
    means: Floats = np.divide(sums, counts, out=np.full(size, np.nan), where=counts > 0)
    return means.reshape(shape)


def _find_role(attack: str, steps: object, controls: Collection[str]) -> str:
    """Return how an attack finds its direction."""
    entry = catalogue.ATTACKS.get(attack)
    if attack in _WITHOUT_GRADIENT:
        return "free"
    if attack in controls or (entry is not None and entry.traits.control):
        return "noise"
    if entry is not None:
        return "gradient" if entry.traits.gradient else "free"
    return "unknown" if steps is None else "gradient" if steps else "free"
