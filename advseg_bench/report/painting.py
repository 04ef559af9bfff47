"""Rendering of images, segmentations, perturbations and errors as (H, W, 3) in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb

from advseg_bench.report.document import Array
from advseg_bench.results.scores import find_scored_classes
from advseg_bench.types import Task

CLASS_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#F0E442", "#0072B2", "#D55E00")
ERROR_COLOURS = {"true positive": "#0072B2", "false positive": "#F0E442", "false negative": "#D55E00"}
"""Okabe and Ito's palette: three colours that differ in lightness as well as in hue."""


def list_class_colours(task: Task) -> tuple[tuple[str, str], ...]:
    """Return name and colour of each scored class in the predictions."""
    names = list(find_scored_classes(task))
    return tuple((name, CLASS_COLOURS[i % len(CLASS_COLOURS)]) for i, name in enumerate(names))


def make_grey(x: Array) -> Array:
    """Return an image (C, H, W) as RGB if it has three channels, else its first channel in grey."""
    x = _to_unit(x)
    channels = x if len(x) == 3 else np.repeat(x[:1], 3, axis=0)
    return np.moveaxis(channels.astype(np.float64), 0, -1)


def paint_change(change: Array, scale: float) -> Array:
    """Return a perturbation (H, W) from blue over white to red; +-`scale` has the full colour."""
    painted: Array = matplotlib.colormaps["RdBu_r"](0.5 + change / (2 * scale))[..., :3]
    return painted


def paint_classes(grey: Array, masks: Array, task: Task) -> Array:
    """Overlay a segmentation (K, H, W) on an image, in the colours of its classes."""
    colours = dict(list_class_colours(task))
    return _paint(grey, [(masks[k], colours[name]) for name, k in find_scored_classes(task).items()])


def paint_errors(grey: Array, truth: Array, found: Array) -> Array:
    """Overlay true positives, false positives and false negatives of one class, (H, W) each, on an image."""
    masks = (truth & found, ~truth & found, truth & ~found)
    return _paint(grey, list(zip(masks, ERROR_COLOURS.values(), strict=True)), alpha=0.85)


def _to_unit(x: Array) -> Array:
    """Scale an image of other units to [0, 1], which pictures have."""
    low, high = float(x.min()), float(x.max())
    return x if low >= 0 and high <= 1 else (x.astype(np.float64) - low) / max(high - low, 1e-12)


def as_pictures(tiles: Sequence[Array]) -> tuple[Array, ...]:
    """Convert colours in [0, 1] to uint8."""
    return tuple((np.clip(tile, 0, 1) * 255).round().astype(np.uint8) for tile in tiles)


def _paint(grey: Array, layers: Sequence[tuple[Array, str]], alpha: float = 0.6) -> Array:
    """Overlay translucent colours on an image."""
    out = grey.copy()
    for mask, colour in layers:
        out[mask] = (1 - alpha) * out[mask] + alpha * np.array(to_rgb(colour))
    return out
