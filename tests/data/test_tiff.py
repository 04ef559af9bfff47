"""TIFF files whose tags Pillow does not follow: planes, signs, alpha that multiplies colours, and inverted values."""

import struct

import numpy as np
import pytest

from advseg_bench.data.formats import read_header, read_slices
from advseg_bench.errors import DataError

PLANAR, PHOTOMETRIC, EXTRA, FORMAT = 284, 262, 338, 339


def write_tiff(path, pixels, order="<", **tags):
    """Write the bytes of (H, W) or (H, W, C) uncompressed, in one strip or, if `planar`, one per channel."""
    height, width, *rest = pixels.shape
    channels = rest[0] if rest else 1
    planes = [pixels[..., c] for c in range(channels)] if tags.get("planar") == 2 else [pixels]
    content, starts, counts = b"", [], []
    for plane in planes:
        data = plane.astype(plane.dtype.newbyteorder(order)).tobytes()
        starts.append(8 + len(content))
        counts.append(len(data))
        content += data + b"\0" * (len(data) % 2)
    entries = {256: [width], 257: [height], 258: [8 * pixels.itemsize] * channels, 259: [1]}
    entries |= {PHOTOMETRIC: [tags.get("photometric", 2 if channels > 2 else 1)], 273: starts, 277: [channels]}
    entries |= {278: [height], 279: counts, PLANAR: [tags.get("planar", 1)]}
    if "extra" in tags:
        entries[EXTRA] = [tags["extra"]]
    entries[FORMAT] = [{"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]] * channels
    body = struct.pack(f"{order}H", len(entries))
    for tag, values in sorted(entries.items()):
        kind, letter = (4, "I") if tag in (273, 279) else (3, "H")
        packed = struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(packed) > 4:
            start = 8 + len(content)
            content += packed + b"\0" * (len(packed) % 2)
            packed = struct.pack(f"{order}I", start)
        body += struct.pack(f"{order}HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    start = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(content))
    path.write_bytes(start + content + body + struct.pack(f"{order}I", 0))


def refuse(path, message):
    for read in (read_header, lambda file: next(read_slices(file, channels=3))):
        with pytest.raises(DataError, match=message) as caught:
            read(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("order", ["<", ">"])
def test_planar_colour_of_16_bits_is_refused(tmp_path, order):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    write_tiff(tmp_path / "a.tif", pixels, order, planar=2)
    assert (next(read_slices(tmp_path / "a.tif", channels=3)) == pixels.transpose(2, 0, 1)).all()
    write_tiff(tmp_path / "b.tif", 200 * pixels.astype(np.uint16), order, planar=2)
    refuse(tmp_path / "b.tif", r"b\.tif: expected interleaved .*, got 'planar channels'\. Save it with Planar")


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize(
    ("kind", "order", "values", "largest"),
    [
        ("i1", "<", (-33, 5), 127),
        ("i1", ">", (-33, 5), 127),
        ("u1", "<", (223, 5), 255),
        ("u4", "<", (3_000_000_000, 5), 2**32 - 1),
        ("i4", ">", (-3, 5), 2**31 - 1),
        ("i2", ">", (-3, 5), 2**15 - 1),
    ],
)
def test_signs_are_read_as_stored(tmp_path, kind, order, values, largest, labels):
    write_tiff(tmp_path / "a.tif", np.array([values], kind), order)
    assert next(read_slices(tmp_path / "a.tif", labels=labels)).tolist() == [list(values)]
    assert read_header(tmp_path / "a.tif").largest == largest


@pytest.mark.parametrize("kind", ["u1", "u2"])
def test_colours_multiplied_by_alpha_are_refused(tmp_path, kind):
    pixels = np.array([[(100, 50, 20, 128), (9, 8, 7, 255)]], kind)
    write_tiff(tmp_path / "a.tif", pixels, extra=2)
    assert (next(read_slices(tmp_path / "a.tif", channels=4)) == pixels.transpose(2, 0, 1)).all()
    write_tiff(tmp_path / "b.tif", pixels, extra=1)
    refuse(tmp_path / "b.tif", r"b\.tif: expected colours that are not .*, got 'associated .*'\. Save it without")


@pytest.mark.parametrize("kind", ["u2", "f4"])
def test_inverted_values_of_more_than_8_bits_are_refused(tmp_path, kind):
    write_tiff(tmp_path / "a.tif", np.array([[10, 200]], np.uint8), photometric=0)
    assert next(read_slices(tmp_path / "a.tif")).tolist() == [[245, 55]]
    write_tiff(tmp_path / "b.tif", np.array([[10, 200]], kind), photometric=0)
    refuse(tmp_path / "b.tif", r"b\.tif: expected a TIFF .* in which 0 is black, got 'WhiteIsZero .*'\. Invert")
