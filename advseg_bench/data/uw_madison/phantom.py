"""Phantom data in the format of UW-Madison GI Tract: their folder and size. Imports no torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from advseg_bench.cache import cache_root, content_hash
from advseg_bench.suite.specs import PhantomFolder, UwMadisonData

DRAWING_VERSION = 1
"""Part of the name of every folder in the cache: increase it when any generated file changes."""

LOWEST_MM, HIGHEST_MM = -30.0, 330.0
"""Range of heights of a scan; a sixth of its slices show no organ."""

ORGANS_MM = (-6.0, 296.0)
"""Range of heights at which most subjects show an organ."""


def locate_phantom(phantom: PhantomFolder) -> Path:
    """Return the folder of the cache for phantom data; if it exists, it is complete."""
    return cache_root() / "drawn" / content_hash([DRAWING_VERSION, phantom.model_dump(mode="json")])


def slice_heights(slices: int) -> NDArray[np.float64]:
    """Return the heights (mm) of the centres of evenly spaced slices, from inferior to superior."""
    return LOWEST_MM + (HIGHEST_MM - LOWEST_MM) * (np.arange(slices) + 0.5) / slices


def expect_images(spec: UwMadisonData, phantom: PhantomFolder) -> tuple[int, int]:
    """Return the numbers of training and test images that phantom data will have.

    All cases have the same number of slices, so the number of cases in each split is known. Whether a slice
    shows an organ is estimated from its height.

    Args:
        spec: How the data are split, and which slices are used.
        phantom: Size of the phantom data.
    """
    test = len(range(spec.fold, phantom.cases, spec.folds))
    rest = phantom.cases - test
    heights = slice_heights(phantom.slices)[:: spec.every]
    shown = (heights > ORGANS_MM[0]) & (heights < ORGANS_MM[1]) if spec.labelled_only else np.isfinite(heights)
    train = rest - max(1, round(spec.validation * rest))
    return train * phantom.days * len(heights), test * phantom.days * int(shown.sum())
