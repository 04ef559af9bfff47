"""Writes run directories with made-up counts, for the tests of scores, results and the report. No model is run."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from advseg_bench.cache import write_json
from advseg_bench.results import records
from advseg_bench.results.descriptions import SEAL, identify_run, seal, write_sealed
from advseg_bench.suite.cells import Cell, plan
from advseg_bench.suite.suite import Suite

MODELS = {
    "basicunet-s": ("monai.BasicUNet", None, 121_000, 0.89, 0.9),
    "unet-mobilenet": ("smp.Unet", "mobilenet_v2", 6_600_000, 0.84, 1.4),
    "attention-unet": ("monai.AttentionUnet", None, 480_000, 0.87, 0.7),
    "unetpp-resnet18": ("smp.UnetPlusPlus", "resnet18", 15_970_000, 0.85, 1.1),
    "unet-vgg13": ("smp.Unet", "vgg13", 18_438_000, 0.83, 1.0),
}
"""Name -> architecture, encoder, parameters, clean Dice, vulnerability: the last two are what the rows show."""

STRENGTH = {
    ("fgsm", "bce"): 1.0,
    ("fgsm", "dice"): 0.8,
    ("fgsm", "dice_focal"): 0.85,
    ("random_sign", ""): 0.04,
    ("uniform_noise", ""): 0.015,
    ("none", ""): 0.0,
}
"""How much of a class an attack takes at 4/255, before the model's vulnerability."""

CLASSES = ("grey matter", "white matter", "csf")


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """What the made-up run looks like.

    Attributes:
        models: Names of `MODELS`.
        losses: Losses of FGSM.
        eps: Budgets in grey levels.
        draws: Draws of random signs.
        subjects: People in the test split.
        images: Images of each subject, in three blocks.
        kind: The task; a multiclass one has a background class in front.
        extra: Further attack tables of the suite.
        strength: Replaces entries of `STRENGTH`; a third part of a key is the settings as JSON.
        side: Edge length of the pictures in pixels.
        seed: Of everything made up.
    """

    models: tuple[str, ...] = ("basicunet-s", "unet-mobilenet")
    losses: tuple[str, ...] = ("bce", "dice")
    eps: tuple[int, ...] = (2, 4)
    draws: int = 2
    subjects: int = 1
    images: int = 6
    kind: str = "multilabel"
    extra: tuple[dict[str, Any], ...] = ()
    strength: tuple[tuple[tuple[str, ...], float], ...] = ()
    side: int = 32
    seed: int = 0


def make_suite(plot: Synthetic) -> Suite:
    """The suite that such a run would come from."""
    eps = [f"{value}/255" for value in plot.eps]
    attacks = [
        {"name": "fgsm", "losses": list(plot.losses), "eps": eps},
        {"name": "random_sign", "eps": eps, "draws": plot.draws},
        {"name": "uniform_noise", "eps": eps},
        *plot.extra,
    ]
    models = [{"name": n, "architecture": MODELS[n][0], "encoder": MODELS[n][1]} for n in plot.models]
    return Suite.model_validate(
        {
            "name": "quick",
            "title": "FGSM on small U-Nets, made-up numbers",
            "data": {"name": "mni152", "task": plot.kind},
            "models": models,
            "attacks": attacks,
        }
    )


def write_run(out: Path, plot: Synthetic | None = None, *, panels: bool = False, sealed: bool = False) -> Path:
    """Write a whole run directory and return it; `sealed` with ids and digests, which older versions did not write."""
    plot = plot or Synthetic()
    suite = make_suite(plot)
    cells = plan(suite)
    for folder in ("models", "parts", "panels"):
        (out / folder).mkdir(parents=True)
    describe_run(out, plot, suite, cells)
    rows = [row for cell in cells if cell.skip is None for row in make_rows(cell, plot)]
    run = seal_run(out) if sealed else ""
    for model in plot.models:
        records.write_part(out, [row for row in rows if row["model"] == model], run)
    if panels:
        write_panels(out, plot)
    return out


def seal_run(out: Path) -> str:
    """Give run.json its id, and every JSON file its digest; return the id."""
    info = json.loads((out / "run.json").read_text())
    info["run"] = identify_run(info)
    write_sealed(out / "run.json", info)
    for path in [*(out / "models").iterdir(), out / "failures.json"]:
        write_sealed(path, json.loads(path.read_text()))
    return info["run"]


def describe_run(out: Path, plot: Synthetic, suite: Suite, cells: tuple[Cell, ...]) -> None:
    """Write run.json, models/*.json and failures.json."""
    background = ["background"] if plot.kind == "multiclass" else []
    classes = ["grey matter"] if plot.kind == "binary" else [*background, *CLASSES]
    test = plot.subjects * plot.images
    info = {
        "schema": records.RUN_SCHEMA,
        "suite": suite.as_json(),
        "data": {
            "name": "mni152",
            "note": "Slices of one average head: no statement about people follows from it.",
            "fingerprint": "0123456789abcdef",
            "kind": plot.kind,
            "classes": classes,
            "splits": {"train": 91, "validation": 12, "test": test},
            "subjects": {"test": plot.subjects},
        },
        "binding": {},
        "environment": {
            "advseg-bench": "0.1.0",
            "python": "3.11.7",
            "torch": "2.14.1",
            "platform": "Linux-6.1.0-x86_64-with-glibc2.36",
            "cpu": "An Example CPU @ 2.50GHz",
            "device": "cpu",
            "threads": 1,
            "compute_batch": 8,
        },
        "command": "advseg-bench run quick --out runs/quick",
        "started": "2026-01-01T12:00:00+00:00",
        "images": [image for image, *_ in list_images(plot)],
        "cells": [cell.as_record() for cell in cells],
    }
    write_json(out / "run.json", info)
    for name in plot.models:
        architecture, encoder, parameters, dice, _ = MODELS[name]
        model = {"name": name, "architecture": architecture, "encoder": encoder, "parameters": parameters}
        write_json(
            out / "models" / f"{name}.json",
            model | {"validation_dice": dice, "train_seconds": 61.5, "weights_sha256": "0"},
        )
    write_json(out / "failures.json", [])


def list_images(plot: Synthetic) -> list[tuple[str, str, str, float]]:
    """Image, subject, block, and place in the head from 0 to 1."""
    return [
        (f"s{s:02d}-z{i:03d}", f"s{s:02d}", f"s{s:02d}-b{3 * i // plot.images}", (i + 0.5) / plot.images)
        for s in range(plot.subjects)
        for i in range(plot.images)
    ]


def make_rows(cell: Cell, plot: Synthetic) -> list[dict[str, Any]]:
    """One row per image; the first image shows no white matter, so that the empty rule matters."""
    _, _, _, clean_dice, vulnerability = MODELS[cell.model]
    known: dict[tuple[str, ...], float] = {**STRENGTH, **dict(plot.strength)}
    arm = cell.arm
    strength = known.get((arm.attack, arm.loss, arm.settings), known.get((arm.attack, arm.loss), 0.5))
    grey_levels = cell.eps * 255 if cell.arm.norm == "linf" else cell.eps * 8
    loss = 0.2 * vulnerability * strength * (grey_levels / 4) ** 0.8
    passes = {"fgsm": 1.0, "none": 0.0, "random_sign": 0.0, "uniform_noise": 0.0}.get(cell.arm.attack)
    rows = []
    first = 1 if plot.kind == "multiclass" else 0
    for i, (image, subject, block, place) in enumerate(list_images(plot)):
        quirk = np.random.default_rng([plot.seed, i]).normal(0, 0.02) + 0.03 * (int(subject[1:]) % 3 - 1)
        noise = np.random.default_rng([plot.seed, i, *cell.id.encode()]).normal(0, 0.002)
        pixels = plot.side**2
        size = (pixels * np.array([0.14, 0.12, 0.05]) * (0.3 + np.sin(np.pi * place))).astype(int)
        size[1] *= i > 0
        dice = clean_dice + quirk - (1 + place) * loss + noise - np.array([0, 0.02, 0.1])
        dice = dice.clip(0.02, 0.99)
        if plot.kind == "binary":
            size, dice = size[:1], dice[:1]
        wrong = np.round(size * (1 - dice)).astype(int)
        flipped = np.round(size * ((1 + place) * loss + abs(noise)) * (cell.arm.attack != "none")).astype(int)
        counts = {"tp": size - wrong, "fp": wrong, "fn": wrong}
        if first:
            counts = {
                name: np.concatenate([[pixels - size.sum()] if name == "tp" else [0], value])
                for name, value in counts.items()
            }
        rows.append(
            {
                "cell": cell.id,
                "dataset": "mni152",
                **{name: cell.as_record()[name] for name in ("model", "attack", "loss", "settings", "norm")},
                "eps": cell.eps,
                "draw": cell.draw,
                "image": image,
                "subject": subject,
                "block": block,
                **{name: value.tolist() for name, value in counts.items()},
                "valid_pixels": pixels,
                "wrong_pixels": int(wrong.sum()),
                "flipped_pixels": int(flipped.sum()),
                "linf": grey_levels / 255,
                "l2": cell.eps if cell.arm.norm == "l2" else cell.eps * plot.side * 0.98,
                "unmoved": 0.31 if cell.arm.attack != "none" else 1.0,
                "forwards": passes,
                "backwards": passes,
                "flags": [],
            }
        )
    return rows


def write_panels(out: Path, plot: Synthetic) -> None:
    """Draw what the run's best and worst cases could look like."""
    from advseg_bench.results.panels import describe_panel, write_panel
    from advseg_bench.results.run import Run
    from advseg_bench.results.selection import find_extremes

    run = Run(out)
    for case in find_extremes(run):
        generator = np.random.default_rng(plot.seed)
        y, x = np.mgrid[-1 : 1 : plot.side * 1j, -1 : 1 : plot.side * 1j]
        wave = 0.06 * np.sin(5 * np.arctan2(y, x))
        radius = np.hypot(x / 0.8, y / 0.95) + wave
        shift = 0.02 if case.kind == "best" else 0.12
        layers = [np.digitize(radius + d * np.sin(9 * x), [0.45, 0.7, 0.9]) for d in (0, 0.02, shift)]
        image = np.choose(layers[0], [0.8, 0.55, 0.2, 0.02]) + generator.normal(0, 0.02, x.shape)
        sign = np.sign(generator.normal(size=x.shape) + 2 * np.sin(14 * radius))
        order = (1, 0, 2)
        masks = [np.stack([layer == k for k in order]) for layer in layers]
        if plot.kind == "multiclass":
            masks = [np.concatenate([~m.any(0, keepdims=True), m]) for m in masks]
        if plot.kind == "binary":
            masks = [m[:1] for m in masks]
        clean_image = np.clip(image, 0, 1)[None].astype(np.float32)
        arrays = dict(zip(("truth", "clean", "attacked"), masks, strict=True))
        steps = [step.eps for step in case.sweep]
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            x=clean_image,
            x_adv=np.stack([np.clip(clean_image + eps * sign, 0, 1).astype(np.float32) for eps in steps]),
            **arrays | {"attacked": np.stack([arrays["attacked"]] * len(steps))},
            meta=np.array(describe_panel(case, run.info.get("run", ""))),
        )
        if "run" in run.info:
            write_panel(out / "panels", case, buffer.getvalue())
        else:
            (out / "panels" / f"{case.model}-{case.kind}.npz").write_bytes(buffer.getvalue())


def rewrite_rows(out: Path, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    """Replace a run's rows by what `change` makes of them."""
    rows = change(records.read_rows(out).cast({pl.Categorical(): pl.String}))
    for part in (out / "parts").iterdir():
        part.unlink()
    if len(rows):
        records.write_part(out, rows.to_dicts())


def edit_json(path: Path, change: Callable[[Any], Any]) -> None:
    """Replace a JSON file by what `change` makes of it."""
    value = json.loads(path.read_text())
    sealed = isinstance(value, dict) and value.pop(SEAL, None)
    changed = change(value)
    write_json(path, seal(changed) if sealed else changed)
    if path.name == "run.json" and (name := changed.get("data", {}).get("name")) not in (None, value["data"]["name"]):
        rewrite_rows(path.parent, lambda rows: rows.with_columns(dataset=pl.lit(name)))
