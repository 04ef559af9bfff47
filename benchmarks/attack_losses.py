"""Measure how much Dice APGD takes with each loss, and what each adds to the two losses of the battery.

    python benchmarks/attack_losses.py quick --models unet-resnet18 --store losses.json
    python benchmarks/attack_losses.py mine.toml --organ stomach --store losses.json
    python benchmarks/attack_losses.py --store losses.json

A suite gives data, models and training; its attacks are not run. Every attack has the same step control, which judges
the soft Dice of the classes that are present, and keeps each image's iterate with the lowest hard Dice: only the loss
whose gradient is followed differs. `--store` adds the results of each image to a file; without a suite, the tables
of all stored models are printed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from itertools import combinations
from operator import methodcaller
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from advseg_bench.attacks.apgd import APGD
from advseg_bench.attacks.objective import find_loss
from advseg_bench.batches import Batch, select_images
from advseg_bench.data import load_dataset
from advseg_bench.data.dataset import Dataset, Sample
from advseg_bench.losses import Loss, class_balanced_ce, count_classes, hard_dice
from advseg_bench.models.training import obtain_model
from advseg_bench.suite.suite import Suite
from advseg_bench.types import Task

BATCH = 12
FIXED = ("present_dice", "balanced_ce")
"""The losses of the battery to which others are added."""

SEA = ("masked_ce", "class_balanced_ce", "js")
"""The three losses of SEA (arXiv 2306.12941)."""

LOSSES = (
    "present_dice",
    "balanced_ce",
    "entropy",
    "masked_ce",
    "class_balanced_ce",
    "js",
    "segpgd",
    "tsallis",
    "cosine",
    "masked_spherical",
    "margin",
    "dlr",
    "dice",
    "present_dice, random start",
    "balanced_ce, random start",
)
"""What the gradient follows; "entropy" is `bce` or, in multiclass tasks, `ce`. A second run of one of
the battery's losses, from a random start, shows what any third attack gains by chance."""

RANDOM = ", random start"

Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Measured:
    """One attacked model.

    Attributes:
        data: Data set and task.
        model: Name of the model.
        clean: Hard Dice of each image without an attack.
        dice: Loss -> hard Dice of each image under the attack that follows it.
    """

    data: str
    model: str
    clean: list[float]
    dice: dict[str, list[float]]

    def lost(self, *losses: str) -> float:
        """Return the mean Dice lost to the worst of some losses, image by image."""
        return float(np.mean(np.array(self.clean) - np.min([self.dice[loss] for loss in losses], axis=0)))

    def gain(self, *losses: str) -> float:
        """Return the mean Dice that losses add to the two fixed ones."""
        return self.lost(*FIXED, *losses) - self.lost(*FIXED)


def measure(
    suite: Suite, names: Sequence[str], organ: str, images: int, eps: float, steps: int, losses: Sequence[str]
) -> Iterator[Measured]:
    """Attack the models of a suite, or the named ones, with every loss."""
    dataset = load_dataset(suite.data)
    if organ:
        dataset = choose_organ(dataset, organ)
    batch = dataset.batch(choose_images(dataset, images))
    for spec in suite.models:
        if names and spec.name not in names:
            continue
        model = obtain_model(spec, suite.training, dataset, suite.seed).model.requires_grad_(False)
        dice = {}
        for loss in losses:
            if loss == "dlr" and dataset.task.kind != "multiclass":
                continue  # it is the margin there
            attack = APGD(
                loss=make_loss(loss.removesuffix(RANDOM), dataset),
                steps=steps,
                random_start=loss.endswith(RANDOM),
                objective="present_dice",
                keep="best",
                keep_by="hard_dice",
            )
            dice[loss] = [score for part in split(batch) for score in score_images(model, part, attack, eps)]
            print(f"{spec.name} {loss}: Dice {np.mean(dice[loss]):.3f}", file=sys.stderr)
        clean = [score for part in split(batch) for score in score_images(model, part, None, eps)]
        yield Measured(f"{dataset.name}{' ' * bool(organ)}{organ}, {dataset.task.kind}", spec.name, clean, dice)


def choose_organ(dataset: Dataset, organ: str) -> Dataset:
    """Return a multilabel data set with one of its classes, as a binary task."""
    place = dataset.task.classes.index(organ)

    def read(i: int) -> Sample:
        image, label, valid = dataset.read(i)
        return Sample(image, label[place : place + 1], valid)

    return Dataset(
        name=dataset.name,
        task=Task("binary", (organ,)),
        cases=dataset.cases,
        read=read,
        fingerprint=f"{dataset.fingerprint}-{organ}",
        bounds=dataset.bounds,
    )


def choose_images(dataset: Dataset, count: int) -> list[int]:
    """Return the indices of test images that show a class, evenly spaced in their order."""
    shown = [i for i in dataset.split("test") if dataset.read(i).label.any()]
    places = np.linspace(0, len(shown) - 1, min(count, len(shown))).round().astype(int)
    return [shown[place] for place in places]


def make_loss(name: str, dataset: Dataset) -> Loss:
    """Return a loss for the task of a data set, with the weights of its training split."""
    if name == "entropy":
        name = "ce" if dataset.task.kind == "multiclass" else "bce"
    if name != "class_balanced_ce":
        return find_loss(name)
    train = dataset.batch(dataset.split("train"))
    return class_balanced_ce.counted(count_classes(train.y, train.valid, train.task))


def split(batch: Batch) -> Iterator[Batch]:
    """Yield the images in groups."""
    for start in range(0, len(batch.x), BATCH):
        yield select_images(batch, range(start, min(start + BATCH, len(batch.x))))


def score_images(model: nn.Module, batch: Batch, attack: APGD | None, eps: float) -> list[float]:
    """Return the hard Dice of each image, of the clean one without an attack."""
    x = batch.x if attack is None else attack(model, batch, eps=eps)
    with torch.no_grad():
        found: list[float] = (1 - hard_dice(model(x), batch.y, batch.valid, batch.task)).tolist()
    return found


class Tables:
    """Markdown tables with one column per model; the last column is the mean over data sets.

    Args:
        measured: The models.
    """

    def __init__(self, measured: Sequence[Measured]) -> None:
        self.measured = measured
        heads = " | ".join(f"{each.data}: {each.model}" for each in measured)
        self.top = f"| | {heads} | mean |\n|{'---|' * (len(measured) + 2)}"
        self.names = [loss for loss in LOSSES if any(loss in each.dice for each in measured)]
        self.common = [loss for loss in self.names if all(loss in each.dice for each in measured)]

    def row(self, title: str, value: Callable[[Measured], float], *losses: str) -> tuple[float, str]:
        """Return the mean over data sets, and a row; without a mean where a model has not met a loss."""
        values: dict[str, list[float]] = {}
        cells = []
        for each in self.measured:
            if all(loss in each.dice for loss in losses):
                values.setdefault(each.data, []).append(value(each))
                cells.append(f"{value(each):.4f}")
            else:
                cells.append("")
        mean = -1.0 if "" in cells else float(np.mean([np.mean(of_data) for of_data in values.values()]))
        return mean, f"| {title} | {' | '.join(cells)} | {'' if '' in cells else f'{mean:.4f}'} |"

    def alone(self) -> list[str]:
        """Rows of each loss, and of the worst of several."""
        rows = [self.row(show(name), methodcaller("lost", name), name) for name in self.names]
        rows.sort(key=lambda row: -row[0])
        several = {"SEA's three": SEA, "the two of the battery": FIXED, "all": self.common}
        rows += [self.row(title, methodcaller("lost", *losses), *losses) for title, losses in several.items()]
        rows.append(self.row("Dice of clean images", lambda each: float(np.mean(each.clean))))
        return [row for _, row in rows]

    def gains(self, count: int) -> list[str]:
        """Rows of what more losses add to the two of the battery, the largest gain first."""
        others = [name for name in (self.names if count == 1 else self.common) if name not in FIXED]
        rows = [
            self.row(" + ".join(map(show, more)), methodcaller("gain", *more), *more)
            for more in combinations(others, count)
        ]
        return [row for _, row in sorted(rows, key=lambda row: -row[0])]

    def __str__(self) -> str:
        parts = {
            "Mean Dice lost": self.alone(),
            "Gain of a third loss": self.gains(1),
            "Gain of two more losses": self.gains(2)[:10],
        }
        return "\n\n".join("\n".join([f"{title}:", "", self.top, *rows]) for title, rows in parts.items())


def show(name: str) -> str:
    """Return the name of a loss as Markdown."""
    return f"`{name.removesuffix(RANDOM)}`" + RANDOM * name.endswith(RANDOM)


def main() -> None:
    """Read the command line, measure, and print the tables."""
    parser = argparse.ArgumentParser(description="Measure how much Dice APGD takes with each loss.")
    parser.add_argument("suite", nargs="?", help="Name or file of a suite; without it, stored results are printed.")
    parser.add_argument("--data", help="Folder of the data set of the suite.")
    parser.add_argument("--models", nargs="*", default=(), help="Names of models; by default all of the suite.")
    parser.add_argument("--title", default="", help="Name of the data set in the tables.")
    parser.add_argument("--organ", default="", help="Attack this class of a multilabel data set as a binary task.")
    parser.add_argument("--losses", nargs="*", default=LOSSES, help="Losses to follow.")
    parser.add_argument("--images", type=int, default=36, help="Number of test images.")
    parser.add_argument("--eps", type=Fraction, default=Fraction(4, 255))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--store", type=Path, help="File of results, to which those of this call are added.")
    given = parser.parse_args()
    stored = json.loads(given.store.read_text()) if given.store and given.store.exists() else []
    measured = [Measured(**each) for each in stored]
    if given.suite:
        suite = Suite.load(given.suite, data=given.data)
        of_call = (given.models, given.organ, given.images, float(given.eps), given.steps, given.losses)
        for each in measure(suite, *of_call):
            each = replace(each, data=f"{given.title}, {each.data.split(', ')[-1]}") if given.title else each
            known = {(old.data, old.model): old for old in measured}
            old = known.get((each.data, each.model))
            each = replace(each, dice=old.dice | each.dice) if old else each
            measured = list((known | {(each.data, each.model): each}).values())
            if given.store:
                given.store.write_text(json.dumps([asdict(each) for each in measured]))
    print(Tables(measured))


if __name__ == "__main__":
    main()
