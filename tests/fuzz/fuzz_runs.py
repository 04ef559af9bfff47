"""Hostile edits of a run folder, with digests and labels made again, as somebody who knows the format would."""

from __future__ import annotations

import shutil
import tempfile
from functools import cache
from pathlib import Path
from random import Random

from run_edits import KINDS, check_edit
from runs import Synthetic, write_run

from advseg_bench.results import records
from advseg_bench.results.run import Run

SECONDS, MEGABYTES = 20.0, 2_000
PLOT = Synthetic(models=("unet-vgg13",), losses=("bce",), eps=(4,), draws=1, images=3, side=16)


@cache
def make_run() -> tuple[tempfile.TemporaryDirectory[str], Path]:
    """A run with panels and a failure, which cases copy, in a folder that lives as long as the process."""
    folder = tempfile.TemporaryDirectory()
    out = write_run(Path(folder.name) / "whole", PLOT, panels=True, sealed=True)
    failure = {"model": "unet-vgg13", "stage": "attack", "cell": Run(out).about.cells[1].id, "message": "no luck"}
    records.write_sealed(out / "failures.json", [failure])
    return folder, out


def run(rng: Random, folder: Path) -> None:
    """Copy the run, edit it once, and read it in every way."""
    out = Path(shutil.copytree(make_run()[1], folder / "run"))
    check_edit(out, f"{rng.choice(KINDS)}-{rng.randrange(2**31)}")
