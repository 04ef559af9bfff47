"""The images behind single results: the case, the perturbation, the predictions and their errors."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from functools import partial
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure as Drawing
from matplotlib.patches import Patch
from PIL import Image

from advseg_bench.errors import RecordError
from advseg_bench.report.document import Figure, show_budget, show_number
from advseg_bench.results import Run
from advseg_bench.scores import find_scored_classes

CLASS_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#F0E442", "#0072B2", "#D55E00")
ERROR_COLOURS = {"true positive": "#0072B2", "false positive": "#F0E442", "false negative": "#D55E00"}
"""Okabe and Ito's palette: three colours that differ in lightness as well as in hue."""

TITLES = ("Image", "Perturbation", "Ground truth", "Clean prediction", "Attacked prediction", "Errors")
LARGEST_SIDE = 128
LARGEST_GALLERY = 1_500_000
"""Bytes of all pictures in the HTML page together; cases beyond that are left to the figure file."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One case.

    Attributes:
        title: Model and kind of case.
        caption: Image, attack, scores, and the class of the error map.
        tiles: Pictures as uint8 (H, W, 3), one per entry of `TITLES`.
    """

    title: str
    caption: str
    tiles: tuple[np.ndarray[Any, Any], ...]


def load_panels(run: Run) -> tuple[Panel, ...]:
    """Read the pictures that a run has kept, in the order of the models, the worst case first.

    Raises: RecordError: naming a file that cannot be read.
    """
    order = {name: i for i, name in enumerate(run.model_names)}
    found = []
    for path in sorted((run.path / "panels").glob("*.npz")):
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                meta = json.loads(str(arrays["meta"]))
                key = (order.get(meta["model"], len(order)), meta["kind"] != "worst", path.name)
                found.append((key, _make_panel(run, meta, {name: arrays[name] for name in arrays.files})))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise RecordError(
                f"{path}: is damaged ({type(error).__name__}). Delete this file and run the same command again: only "
                "its picture is made again."
            ) from None
    return tuple(panel for _, panel in sorted(found, key=lambda pair: pair[0]))


def caption_panels(run: Run) -> str:
    """Say what the columns show and what the colours mean."""
    return (
        "Worst: the image whose mean Dice the model's strongest attack lowers most; best: least. Only images at or "
        f"above Dice {run.scoring.dice_threshold:g} when clean. Perturbation: attacked minus clean image, white is 0, "
        "red up to +eps, blue down to -eps (amplified to the full colour scale; first channel). Errors: of the one "
        "class whose Dice falls most, named with each case."
    )


def make_panel_figure(run: Run, panels: tuple[Panel, ...]) -> Figure:
    """Make the figure of all cases, for print."""
    colours = (*list_class_colours(run), *ERROR_COLOURS.items())
    return Figure("panels", "Best and worst cases", caption_panels(run), partial(_draw, panels, colours))


def list_class_colours(run: Run) -> tuple[tuple[str, str], ...]:
    """Return the colour of each scored class in the predictions."""
    names = list(find_scored_classes(run.task))
    return tuple((name, CLASS_COLOURS[i % len(CLASS_COLOURS)]) for i, name in enumerate(names))


def encode_png(tile: np.ndarray[Any, Any]) -> bytes:
    """Write a picture as PNG, reduced to at most `LARGEST_SIDE` pixels."""
    image = Image.fromarray(tile)
    largest = max(image.size)
    if largest > LARGEST_SIDE:
        size = tuple(max(1, round(side * LARGEST_SIDE / largest)) for side in image.size)
        image = image.resize(size, Image.Resampling.BOX)  # type: ignore[arg-type]
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _make_panel(run: Run, meta: dict[str, Any], arrays: dict[str, np.ndarray[Any, Any]]) -> Panel:
    """Turn arrays into pictures."""
    grey = _grey(arrays["x"])
    scored = find_scored_classes(run.task)
    colours = dict(list_class_colours(run))
    name = max(scored, key=lambda c: _dice(arrays, "clean", scored[c]) - _dice(arrays, "attacked", scored[c]))
    masks = [
        _paint(grey, [(arrays[key][k], colours[c]) for c, k in scored.items()])
        for key in ("truth", "clean", "attacked")
    ]
    delta = (arrays["x_adv"][0] - arrays["x"][0]).astype(np.float64)
    largest = meta["eps"] if meta.get("norm", "linf") == "linf" else float(abs(delta).max())
    scale = max(largest, 1e-12)
    perturbation = matplotlib.colormaps["RdBu_r"](0.5 + delta / (2 * scale))[..., :3]
    truth, attacked = (arrays[key][scored[name]] for key in ("truth", "attacked"))
    errors = _paint(
        grey,
        list(zip((truth & attacked, ~truth & attacked, truth & ~attacked), ERROR_COLOURS.values(), strict=True)),
        alpha=0.85,
    )
    tiles = (grey, perturbation, *masks, errors)
    attack = " ".join(part for part in (meta["attack"], meta["loss"]) if part)
    caption = (
        f"image {meta['image']}, {attack} at eps {show_budget(meta['eps'])}: Dice {show_number(meta['dice_clean'])} "
        f"clean, {show_number(meta['dice_attacked'])} attacked; perturbation \u00b1{show_budget(scale)}; "
        f"errors of {name}"
    )
    pictures = tuple((np.clip(tile, 0, 1) * 255).round().astype(np.uint8) for tile in tiles)
    return Panel(f"{meta['model']}: {meta['kind']} case", caption, pictures)


def _grey(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """An image as (H, W, 3) in [0, 1]: colours if it has three channels, else its first channel in grey."""
    channels = x[:3] if len(x) >= 3 else np.repeat(x[:1], 3, axis=0)
    return np.moveaxis(channels.astype(np.float64), 0, -1)


def _paint(
    grey: np.ndarray[Any, Any], layers: list[tuple[np.ndarray[Any, Any], str]], alpha: float = 0.6
) -> np.ndarray[Any, Any]:
    """Lay colours over an image; the image's own light and dark stay visible."""
    out = grey.copy()
    for mask, colour in layers:
        out[mask] = (1 - alpha) * out[mask] + alpha * np.array(to_rgb(colour))
    return out


def _dice(arrays: dict[str, np.ndarray[Any, Any]], which: str, k: int) -> float:
    """Dice of one class of a prediction; 1 where neither shows it."""
    truth, found = arrays["truth"][k], arrays[which][k]
    total = int(truth.sum()) + int(found.sum())
    return 2 * int((truth & found).sum()) / total if total else 1.0


def _draw(panels: tuple[Panel, ...], colours: tuple[tuple[str, str], ...], width: float) -> Drawing:
    """One row of pictures for each case, placed by hand: a layout engine takes seconds for so many axes."""
    edge, gap, line, head, foot = 0.1, 0.06, 0.22, 0.25, 0.3
    side = (width - 2 * edge - gap * (len(TITLES) - 1)) / len(TITLES)
    height = head + len(panels) * (side + line + gap) + foot
    drawing = Drawing(figsize=(width, height))
    for column, title in enumerate(TITLES):
        x = (edge + column * (side + gap)) / width
        drawing.text(x, 1 - 0.7 * head / height, title, fontsize=8, weight="bold")
    for row, panel in enumerate(panels):
        top = height - head - row * (side + line + gap) - line
        drawing.text(edge / width, (top + 0.06) / height, f"{panel.title}, {panel.caption}", fontsize=7)
        for column, picture in enumerate(panel.tiles):
            left = edge + column * (side + gap)
            ax = drawing.add_axes((left / width, (top - side) / height, side / width, side / height))
            ax.imshow(_enlarge(picture), interpolation="none")
            ax.set_axis_off()
    handles = [Patch(facecolor=colour, edgecolor="#555555", linewidth=0.5, label=name) for name, colour in colours]
    drawing.legend(handles=handles, loc="lower left", ncols=len(handles), fontsize=7, handlelength=1, borderaxespad=0.3)
    return drawing


def _enlarge(picture: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Repeat pixels until no viewer has a reason to blur them."""
    times = max(1, 256 // max(picture.shape[:2]))
    return picture.repeat(times, axis=0).repeat(times, axis=1)
