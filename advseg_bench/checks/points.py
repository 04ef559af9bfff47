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
            pl.concat_list("tp", "fp", "fn", pl.col("draw").cast(pl.Int64)).hash(0).alias("counts"),
        )
        .collect()
    )
    images = rows.select(IMAGE).unique().sort(IMAGE).with_row_index("place")
    values = ("dice", "dice_clean", "unmoved", *has)
    per_image = rows.group_by(*_POINT, *IMAGE).agg(
        pl.col(*values).mean(), pl.max("backwards"), pl.col("counts").bitwise_xor()
    )
    numbered = per_image.join(images, on=IMAGE).sort("place")
    points = []
    for key, part in numbered.group_by(_POINT, maintain_order=True):
        _, attack, loss, settings, norm, eps = (str(value) for value in key)
        place = part["place"].to_numpy()
        full = {name: np.full(len(images), np.nan) for name in values}
        for name, column in full.items():
            column[place] = part[name].to_numpy()
        steps = part["backwards"].max()
        role = _find_role(attack, steps, controls)
        counts = place.tobytes() + part["counts"].to_numpy().tobytes()
        points.append(
            Point(
                model,
                (attack, loss, settings, norm),
                float(eps),
                role,
                None if steps is None else float(steps),  # type: ignore[arg-type]
                full["dice"],
                full["dice_clean"],
                full["unmoved"],
                {name: full[name] for name in has},
                counts,
            )
        )
    return sorted(points, key=lambda point: (point.arm[3], point.arm, point.eps))


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
