"""Masks with a palette: its table, not the values in use, decides between colours and indices."""

import numpy as np
import pytest
from PIL import Image

from advseg_bench.data.formats import read_slices
from advseg_bench.errors import DataError

BINARY, THREE_AND_IGNORED = {0, 1, 255}, {0, 1, 2, 255}


def read(path, indices, colours, known):
    image = Image.fromarray(np.array([indices], np.uint8))
    colours = [colour if isinstance(colour, tuple) else (colour,) * 3 for colour in colours]
    image.putpalette([level for colour in colours for level in colour])
    image.save(path)
    return next(read_slices(path, labels=True, known=known))[0].tolist()


@pytest.mark.parametrize("ending", ["png", "tif", "bmp"])
@pytest.mark.parametrize("indices", [[0, 2, 0], [0, 1, 2], [2, 2, 2]])
def test_files_with_one_palette_are_read_alike(tmp_path, indices, ending):
    assert read(tmp_path / f"a.{ending}", indices, [0, 127, 255], THREE_AND_IGNORED) == indices


@pytest.mark.parametrize("ending", ["png", "tif", "bmp"])
def test_black_that_fills_a_table_does_not_count(tmp_path, ending):
    assert read(tmp_path / f"a.{ending}", [0, 1, 1], [0, 255, 0, 0], BINARY) == [0, 255, 255]
    assert read(tmp_path / f"b.{ending}", [0, 0, 0], [255, 0, 0, 0], BINARY) == [255, 255, 255]


@pytest.mark.parametrize("colours", [[200, 0], [0, 255, 128], [0, 200, 200, 9], [255, 0, (200, 0, 0)]])
def test_grey_levels_that_contradict_their_indices_are_refused(tmp_path, colours):
    with pytest.raises(DataError, match=r"a\.png: expected a palette whose grey levels .*, got \[.*\]\. Save the mask"):
        read(tmp_path / "a.png", [0, 1, 1], colours, BINARY)
