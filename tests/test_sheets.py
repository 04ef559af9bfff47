"""Pictures on sheets for print: every pixel of a tile is there, nothing is written over an edge."""

import numpy as np
import pytest

from advseg_bench.report.document import Panel, Strip
from advseg_bench.report.panels import TITLES
from advseg_bench.report.sheets import EDGE, draw_sheet, encode_png, encode_sheet

COLOURS = ((200, 30, 30), (30, 160, 30), (30, 30, 180))
KEYS = (("Classes:", tuple((f"organ number {i}", "#F0E442") for i in range(30))), ("Errors:", (("missed", "#D55E00"),)))
WORDS = "x" * 200 + " image of a case with a name long enough for several lines of the sheet, whatever its width is"


def fill(colour, height=24, width=24):
    return np.broadcast_to(np.uint8(colour), (height, width, 3))


def make_panel(*labels, titles=("Image", "Perturbation", "Unforeseeably long title")):
    return Panel("unet: worst case", WORDS, titles, tuple(Strip(label, tuple(map(fill, COLOURS))) for label in labels))


@pytest.mark.parametrize("labels", [("",), ("clean: Dice 0.9", "eps 1/255: Dice 0.123", "eps 2/255: Dice 0.1")])
def test_every_tile_is_shown_at_one_size_and_nothing_runs_over_an_edge(labels):
    image = np.asarray(draw_sheet([make_panel(*labels)] * 2, KEYS))
    edge = round(EDGE * 200) - 2
    for margin in (image[:edge], image[-edge:], image[:, :edge], image[:, -edge:]):
        assert (margin == 255).all()
    width = {False: 1800, True: 1300}[len(labels) > 1]
    assert image.shape[1] == width
    shown = [(image == colour).all(2) for colour in COLOURS]
    for tiles in shown:
        runs = np.flatnonzero(tiles.any(0))
        assert len(runs) == runs[-1] - runs[0] + 1, "one column"
        side = len(runs)
        assert tiles.sum() == 2 * len(labels) * side**2, "no tile hides another, no letter lies on one"
    assert (image == (0xF0, 0xE4, 0x42)).all(2).sum() > 30 * 18**2, "each colour of the legend"


def test_pixels_are_repeated_and_not_blurred_and_shapes_kept():
    tile = np.random.default_rng(0).integers(0, 256, (40, 20, 3), dtype=np.uint8)
    image = np.asarray(draw_sheet([Panel("m", "c", ("Image",), (Strip("", (tile,)),))], KEYS[1:]))
    wanted, found = (np.unique(pixels @ np.array([1 << 16, 1 << 8, 1])) for pixels in (tile, image))
    assert np.isin(wanted, found).all()
    columns = np.flatnonzero((image[600] != 255).any(1))
    rows = np.flatnonzero((image[:, 900] != 255).any(1))
    assert (rows[-1] - rows[0]) / (columns[-1] - columns[0]) == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize(("kind", "magic"), [("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_the_same_sheet_gives_the_same_bytes(kind, magic):
    first, again = (encode_sheet(draw_sheet([make_panel("")], KEYS), kind) for _ in range(2))
    assert first == again
    assert first[:4] == magic
    assert b"DCTDecode" not in first, "no JPEG"


def test_of_pictures_larger_than_their_place_no_pixel_is_lost():
    sheets = []
    for value, row in ((0, 0), (255, 1505), (255, 1506), (255, 1507)):
        tile = np.zeros((3001, 3001, 3), np.uint8)
        tile[row] = value
        sheets.append(np.asarray(draw_sheet([Panel("m", "c", TITLES, (Strip("", (tile,) * 6),))], KEYS[1:])))
    assert all((sheet != sheets[0]).any() for sheet in sheets[1:]), "a thin line is faint, not gone"


def test_large_pictures_are_made_small():
    noise = np.random.default_rng(0).integers(0, 255, (512, 300, 3), dtype=np.uint8)
    assert len(encode_png(noise)) < 3 * 128 * 75 + 1000
