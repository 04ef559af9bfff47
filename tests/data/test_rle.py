import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from advseg_bench.data.uw_madison.rle import decode_runs, encode_runs, parse_runs
from advseg_bench.errors import DataError

masks = arrays(bool, st.tuples(st.integers(1, 7), st.integers(1, 9)))


def parse(codes, pixels=20):
    return parse_runs(pl.Series(codes, dtype=pl.String), np.full(len(codes), pixels), lambda row: f"row {row}")


def naive(code, rows, columns):
    """Pixel by pixel, as the data's description says: from 1, along the rows."""
    numbers = [int(word) for word in code.split()]
    image = [[False] * columns for _ in range(rows)]
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        for pixel in range(start - 1, start - 1 + length):
            image[pixel // columns][pixel % columns] = True
    return np.array(image)


def test_known_codes():
    mask = np.zeros((3, 4), bool)
    mask[0, 1:3] = mask[1, 3] = mask[2, 0] = True
    assert encode_runs(mask) == "2 2 8 2"
    assert encode_runs(np.zeros((2, 2), bool)) == ""
    assert encode_runs(np.ones((2, 3), np.uint8)) == "1 6"
    assert (parse(["2 2 8 2"], 12).paint(0, (3, 4)) == mask).all()


@given(masks)
def test_a_mask_comes_back(mask):
    code = encode_runs(mask)
    runs = parse([code], mask.size)
    assert (runs.paint(0, mask.shape) == mask).all()
    assert (naive(code, *mask.shape) == mask).all()


@given(st.lists(masks, min_size=1, max_size=6))
def test_masks_of_a_table_do_not_mix(several):
    runs = parse_runs(pl.Series([encode_runs(m) or None for m in several], dtype=pl.String), sizes(several), str)
    for index, mask in enumerate(several):
        assert (runs.paint(index, mask.shape) == mask).all()


def sizes(several):
    return np.array([mask.size for mask in several])


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_chunks_do_not_show(monkeypatch, chunk):
    codes = ["2 2", None, "", "1 1 4 2", "5 1", None]
    whole = parse(codes)
    monkeypatch.setattr("advseg_bench.data.uw_madison.rle.CHUNK", chunk)
    for one, other in zip(parse(codes), whole, strict=True):
        assert one.dtype == other.dtype
        assert (one == other).all()
    with pytest.raises(DataError, match="row 4: expected pairs"):
        parse([*codes[:4], "1 2 3"])


def test_touching_runs_are_no_overlap():
    assert (decode_runs(np.array([0, 3, 5]), np.array([3, 2, 1]), (2, 4)).reshape(-1) == [1] * 6 + [0] * 2).all()
    assert parse(["1 3 4 2"]).starts.tolist() == [0, 3]


def test_no_code_and_blank_codes_are_empty():
    runs = parse([None, "", "  ", "20 1"])
    assert runs.offsets.tolist() == [0, 0, 0, 0, 1]
    assert not runs.paint(1, (4, 5)).any()
    assert runs.paint(3, (4, 5))[3, 4]
    assert parse([None, None]).offsets.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("3 x", "row 1: expected whole numbers separated by single spaces, got 'x'"),
        ("3.0 2", "whole numbers separated by single spaces, got '3.0'"),
        ("3  2", "whole numbers separated by single spaces, got ''"),
        ("3,2", "got '3,2'"),
        ("99999999999999999999 1", "got '99999999999999999999'"),
        ("3 2 7", "row 1: expected pairs of start and length, got '3 numbers'"),
        ("0 2", "row 1: expected runs of at least one pixel within 1 to 20, got '0 2'"),
        ("-1 2", "got '-1 2'"),
        ("3 0", "runs of at least one pixel within 1 to 20, got '3 0'"),
        ("1 1 20 2", "within 1 to 20, got '20 2'"),
        ("21 1", "got '21 1'"),
        ("3 9223372036854775807", "got '3 9223372036854775807'"),
        ("-9223372036854775808 5", "within 1 to 20"),
        ("3 4 6 2", "row 1: expected runs in order that do not overlap, after '3 4', got '6 2'"),
        ("9 2 3 2", "after '9 2', got '3 2'"),
        ("3 2 3 2", "after '3 2', got '3 2'"),
    ],
)
def test_wrong_codes_are_named(code, message):
    with pytest.raises(DataError, match=message) as caught:
        parse(["1 4", code, "9 2"])
    assert "\n" not in str(caught.value)


def test_the_limit_is_that_of_the_mask_and_the_first_wrong_one_is_named():
    codes = pl.Series(["12 1", None, "12 1", "13 1"])
    with pytest.raises(DataError, match=r"row 2: expected runs .* 1 to 11, got '12 1'"):
        parse_runs(codes, np.array([12, 1, 11, 11]), lambda row: f"row {row}")
