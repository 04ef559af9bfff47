from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advseg_bench.data import prepare as module
from advseg_bench.data.prepare import (
    find_frame,
    fingerprint,
    pad_to_frame,
    pad_to_square,
    prepare,
    resize_image,
    resize_masks,
    scaled_spacing,
    task_for,
)
from advseg_bench.suite.specs import FolderData, Mni152Data, NnunetData, PhantomData, UwMadisonData
from advseg_bench.types import Task


def spec(task="multilabel", size=16, channels=1, fit="pad"):
    return Mni152Data(name="mni152", task=task, size=size, channels=channels, fit=fit)


def all_valid(edge):
    return np.ones((edge, edge), bool)


def test_padding_is_centred_and_puts_the_odd_pixel_last():
    wide = np.arange(1, 11).reshape(2, 5)
    padded = pad_to_square(wide, fill=-1)
    assert padded.shape == (5, 5)
    assert (padded[1:3] == wide).all()
    assert (padded[[0, 3, 4]] == -1).all()
    tall = pad_to_square(np.ones((2, 5, 4), bool))
    assert tall.shape == (2, 5, 5)
    assert tall.dtype == bool
    assert tall[..., :4].all()
    assert not tall[..., 4].any()


def test_a_square_is_not_padded():
    square = np.zeros((3, 4, 4))
    assert pad_to_square(square) is square


def test_image_is_the_mean_of_the_area():
    image = np.arange(16, dtype=np.float64).reshape(4, 4) / 15
    expected = np.array([[2.5, 4.5], [10.5, 12.5]]) / 15
    resized = resize_image(image, (2, 2))
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized, expected, rtol=1e-6)


def test_enlarging_repeats_pixels():
    image = np.array([[0.0, 1.0], [0.25, 0.5]])
    assert (resize_image(image, (4, 4)) == np.kron(image, np.ones((2, 2)))).all()


def test_image_stays_inside_the_bounds_after_rounding():
    assert resize_image(np.full((3, 3), 1 + 1e-7), (2, 2)).max() == 1.0
    assert resize_image(np.full((3, 3), -1e-7), (2, 2)).min() == 0.0


@pytest.mark.parametrize(("covered", "present"), [(1, False), (2, True), (3, True)])
def test_a_class_is_present_from_half_of_the_area(covered, present):
    mask = np.zeros((1, 2, 2))
    mask.reshape(-1)[:covered] = 1
    label, valid = resize_masks(mask, all_valid(2), (1, 1), "binary")
    assert label.tolist() == [[[present]]]
    assert valid.tolist() == [[True]]


def test_shares_are_averaged_before_they_are_decided():
    # each pixel alone would round to 0, 0, 1, 0; together they cover .55 of the area
    mask = np.array([[[0.45, 0.45], [0.9, 0.4]]])
    assert resize_masks(mask, all_valid(2), (1, 1), "multilabel")[0].all()


def test_multiclass_takes_the_largest_share_and_the_first_of_equal_ones():
    planes = np.zeros((2, 2, 6), bool)
    planes[0, :, 0:2] = True  # class 1 everywhere
    planes[0, 0, 2] = planes[1, 1, 2:4] = True  # 1 x class 1, 2 x class 2, 1 x background
    planes[1, :, 5] = True  # half class 2, half background
    square = np.concatenate([planes] * 3, axis=1)
    label, _ = resize_masks(square, all_valid(6), (3, 3), "multiclass")
    assert label.dtype == np.int64
    assert label.tolist() == [[1, 2, 0]] * 3


def test_multilabel_may_overlap_but_multiclass_may_not():
    planes = np.zeros((2, 2, 2))
    planes[0, 0] = planes[1, 1] = 1
    assert resize_masks(planes, all_valid(2), (1, 1), "multilabel")[0].tolist() == [[[True]], [[True]]]
    assert resize_masks(planes, all_valid(2), (1, 1), "multiclass")[0].tolist() == [[1]]


@pytest.mark.parametrize(
    ("ignored", "valid", "present"),
    [(0, True, False), (1, True, False), (2, True, True), (3, False, False), (4, False, False)],
)
def test_ignored_pixels_have_no_say(ignored, valid, present):
    mask = np.zeros((1, 2, 2))
    mask[0, 1, 1] = 1
    seen = all_valid(2)
    seen.reshape(-1)[:ignored] = False
    label, still = resize_masks(mask, seen, (1, 1), "multilabel")
    assert (still.item(), label.item()) == (valid, present)


@pytest.mark.parametrize("kind", ["binary", "multilabel", "multiclass"])
def test_a_class_on_ignored_pixels_has_no_say(kind):
    mask = np.array([[[1, 1], [0, 0]]])
    half = np.array([[False, False], [True, True]])
    label, valid = resize_masks(mask, half, (1, 1), kind)
    assert (label.item(), valid.item()) == (0, True)


@pytest.mark.parametrize("kind", ["binary", "multilabel", "multiclass"])
def test_label_of_an_ignored_pixel_is_background(kind):
    quarter = np.array([[True, False], [False, False]])
    label, valid = resize_masks(np.ones((1, 2, 2)), quarter, (1, 1), kind)
    assert (label.item(), valid.item()) == (0, False)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_whole_factors_agree_with_counting(size, factor, classes, seed):
    edge = size * factor
    truth = np.random.default_rng(seed).integers(0, classes + 1, (edge, edge))
    planes = truth == np.arange(1, classes + 1)[:, None, None]
    blocks = truth.reshape(size, factor, size, factor).swapaxes(1, 2).reshape(size, size, -1)
    counts = (blocks[..., None] == np.arange(classes + 1)).sum(axis=2)
    multiclass, _ = resize_masks(planes, all_valid(edge), (size, size), "multiclass")
    assert (multiclass == counts.argmax(axis=-1)).all()
    multilabel, _ = resize_masks(planes, all_valid(edge), (size, size), "multilabel")
    assert (multilabel == (2 * counts[..., 1:] >= factor**2).transpose(2, 0, 1)).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_any_size_keeps_the_range_of_the_image(height, width, seed):
    image = np.random.default_rng(seed).random((height, width)).astype(np.float32)
    resized = resize_image(pad_to_square(image, fill=float(image.min())), (16, 16))
    assert resized.shape == (16, 16)
    assert resized.min() >= image.min() - 1e-6
    assert resized.max() <= image.max() + 1e-6


def test_prepare_puts_a_wide_image_where_it_belongs():
    image = np.zeros((16, 32))
    image[2:6, 20:30] = 1.0
    masks = np.stack([image > 0, image < 0])
    sample = prepare(image, masks, None, spec(size=32))
    square = np.zeros((32, 32), np.float32)
    square[10:14, 20:30] = 1.0
    assert sample.image.shape == (1, 32, 32)
    assert sample.image.dtype == np.float32
    assert (sample.image[0] == square).all()
    assert sample.label.dtype == bool
    assert (sample.label[0] == square).all()
    assert not sample.label[1].any()
    assert sample.valid.dtype == bool
    assert sample.valid[8:24].all()
    assert not sample.valid[:8].any()
    assert not sample.valid[24:].any()


def test_prepare_keeps_the_given_invalid_pixels():
    valid = np.ones((16, 16), bool)
    valid[3, 5] = False
    sample = prepare(np.zeros((16, 16)), np.ones((1, 16, 16)), valid, spec("binary"))
    assert np.argwhere(~sample.valid).tolist() == [[3, 5]]
    assert np.argwhere(~sample.label[0]).tolist() == [[3, 5]]


def test_prepare_copies_grey_and_keeps_colour():
    grey = np.random.default_rng(0).random((16, 16))
    masks = np.zeros((1, 16, 16))
    copied = prepare(grey, masks, None, spec("multiclass", channels=3))
    assert copied.image.shape == (3, 16, 16)
    assert (copied.image == grey.astype(np.float32)).all()
    assert copied.image.flags.c_contiguous
    assert copied.label.shape == (16, 16)
    colour = np.stack([grey, grey / 2, grey / 4])
    kept = prepare(colour, masks, None, spec("multiclass", channels=3))
    assert (kept.image == colour.astype(np.float32)).all()


@pytest.mark.parametrize(
    ("image", "masks", "task"),
    [
        (np.full((16, 16), np.nan), np.zeros((1, 16, 16)), "binary"),
        (np.zeros((16, 16)), np.zeros((1, 16, 17)), "binary"),
        (np.zeros((16, 16)), np.zeros((2, 16, 16)), "binary"),
        (np.zeros((16, 16)), np.zeros((16, 16)), "multilabel"),
        (np.zeros((3, 16, 16)), np.zeros((1, 16, 16)), "multilabel"),
    ],
)
def test_prepare_refuses_what_a_data_set_must_not_hand_over(image, masks, task):
    with pytest.raises(AssertionError):
        prepare(image, masks, None, spec(task))


def test_task_for():
    assert task_for("multilabel", ("a", "b")) == Task("multilabel", ("a", "b"))
    assert task_for("multiclass", ["a", "b"]) == Task("multiclass", ("background", "a", "b"))
    assert task_for("multiclass", ["a"], background="air") == Task("multiclass", ("air", "a"))
    assert task_for("binary", ("a",)) == Task("binary", ("a",))
    for kind, classes in (("binary", ("a", "b")), ("multilabel", ())):
        with pytest.raises(AssertionError, match=kind):
            task_for(kind, classes)


def test_scaled_spacing_follows_the_longer_edge():
    assert scaled_spacing((310, 360), (1.5, 1.25), spec(size=90)) == (6.0, 5.0)
    assert scaled_spacing((3, 32, 16), (1.0, 1.0), spec(size=64)) == (0.5, 0.5)
    unknown = scaled_spacing((8, 8), (float("nan"), float("nan")), spec())
    assert all(np.isnan(edge) for edge in unknown)


def test_scaled_spacing_of_a_stretched_image_scales_each_edge():
    assert scaled_spacing((32, 64), (1.5, 1.5), spec(fit="stretch")) == (3.0, 6.0)


@pytest.mark.parametrize("shape", [(32, 48), (48, 32)])
def test_stretching_averages_over_the_area_and_adds_no_pixels(shape):
    image = np.random.default_rng(0).random(shape)
    masks = image[None] > 0.5
    sample = prepare(image, masks, None, spec(fit="stretch"))
    rows, columns = (n // 16 for n in shape)
    blocks = image.reshape(16, rows, 16, columns)
    np.testing.assert_allclose(sample.image[0], blocks.mean(axis=(1, 3)), rtol=1e-5)
    assert (sample.label[0] == ((blocks > 0.5).mean(axis=(1, 3)) >= 0.5)).all()
    assert sample.valid.all()


def windows(pixels, size):
    """Row i: which share of window i lies on each pixel."""
    weights = np.zeros((size, pixels))
    for i in range(size):
        for j in range(pixels):
            weights[i, j] = max(0.0, min((i + 1) * pixels / size, j + 1) - max(i * pixels / size, j))
    return weights * size / pixels


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 20), st.integers(0, 9))
def test_stretching_shares_pixels_on_a_border_by_area(height, width, size, seed):
    image = np.random.default_rng(seed).random((2, height, width))
    expected = windows(height, size) @ image @ windows(width, size).T
    np.testing.assert_allclose(resize_image(image, (size, size), "stretch"), expected, atol=1e-6)
    mask = image > 0.5
    seen = np.ones((height, width), bool)
    label, valid = resize_masks(mask, seen, (size, size), "multilabel", "stretch")
    shares = windows(height, size) @ mask @ windows(width, size).T
    clear = abs(shares - 0.5) > 1e-9
    assert (label == (shares > 0.5))[clear].all()
    assert label[~clear].all()
    assert valid.all()


def test_how_to_fit_is_said_only_where_it_is_not_the_default():
    assert "fit" not in spec().model_dump()
    assert spec(fit="stretch").model_dump(mode="json")["fit"] == "stretch"
    keys = {"name": "uw_madison", "path": Path("here")}
    for fit in ("pad", "stretch"):
        given = UwMadisonData(**keys, fit=fit)
        assert UwMadisonData(**given.model_dump()) == given
    assert fingerprint(spec(), "c") != fingerprint(spec(fit="stretch"), "c")
    # as it was before the key existed
    assert fingerprint(Mni152Data(name="mni152"), "x").startswith("500bef9367142a51")


def test_fingerprint_sees_every_key_but_the_path():
    folder = {"name": "folder", "classes": ("a",), "path": Path("here")}
    prints = [
        fingerprint(spec(), "c"),
        fingerprint(spec(), "d"),
        fingerprint(spec(size=32), "c"),
        fingerprint(spec("binary"), "c"),
        fingerprint(spec(channels=3), "c"),
        fingerprint(PhantomData(name="phantom"), "c"),
        fingerprint(PhantomData(name="phantom", seed=1), "c"),
        fingerprint(FolderData(**folder), "c"),
        fingerprint(FolderData(**folder, soft=True), "c"),
        fingerprint(FolderData(**folder, seed=1), "c"),
    ]
    assert len(set(prints)) == len(prints)
    moved = FolderData(**folder | {"path": Path("there")})
    assert fingerprint(moved, "c") == prints[7]


def test_fingerprint_sees_the_version_of_the_arithmetic(monkeypatch):
    before = fingerprint(spec(), "c")
    monkeypatch.setitem(module.PREPARATION, "pad", module.PREPARATION["pad"] + 1)
    assert fingerprint(spec(), "c") != before


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.integers(1, 12)] * 3), st.tuples(*[st.integers(1, 8)] * 3), st.integers(0, 99))
def test_a_volume_is_averaged_over_whole_voxels_or_by_share(shape, edges, seed):
    image = np.random.default_rng(seed).random((2, *shape))
    whole = np.empty((2, *edges))
    for place in np.ndindex(*edges):
        ends = [(i * n // e, -(-(i + 1) * n // e)) for i, n, e in zip(place, shape, edges, strict=True)]
        whole[(..., *place)] = image[(..., *(slice(*pair) for pair in ends))].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(resize_image(image, edges), whole, atol=1e-6)
    by_share = np.einsum("zd,yh,xw,cdhw->czyx", *(windows(n, e) for n, e in zip(shape, edges, strict=True)), image)
    np.testing.assert_allclose(resize_image(image, edges, "stretch"), by_share, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.tuples(*[st.integers(1, 4)] * 3), st.tuples(*[st.integers(1, 4)] * 3), st.integers(1, 3), st.integers(0, 99))
def test_labels_of_a_volume_agree_with_counting(edges, factors, classes, seed):
    draw = np.random.default_rng(seed)
    shape = [e * f for e, f in zip(edges, factors, strict=True)]
    truth, seen = draw.integers(0, classes + 1, shape), draw.random(shape) < 0.8
    planes = truth == np.arange(1, classes + 1)[:, None, None, None]
    split = [n for pair in zip(edges, factors, strict=True) for n in pair]
    blocks = np.where(seen, truth, -1).reshape(split).transpose(0, 2, 4, 1, 3, 5).reshape(*edges, -1)
    counts = (blocks[..., None] == np.arange(classes + 1)).sum(axis=-2)
    total, share = blocks.shape[-1], counts.sum(axis=-1)
    for fit in ("pad", "stretch"):
        multiclass, valid = resize_masks(planes, seen, edges, "multiclass", fit)
        assert (valid == (2 * share >= total)).all()
        assert (multiclass == np.where(valid, counts.argmax(axis=-1), 0)).all()
        multilabel, _ = resize_masks(planes, seen, edges, "multilabel", fit)
        assert (multilabel == (np.moveaxis(2 * counts[..., 1:], -1, 0) >= share) & valid).all()


@pytest.mark.parametrize(
    ("shape", "edges", "frame"),
    [
        ((20, 40, 30), (8, 16, 16), (20, 40, 40)),
        ((5, 40, 30), (8, 16, 16), (8, 40, 40)),
        ((8, 40, 30), (8, 16, 32), (8, 40, 80)),
        ((8, 20, 80), (8, 16, 32), (8, 40, 80)),
        ((3, 8, 8), (8, 16, 16), (8, 8, 8)),
    ],
)
def test_a_volume_keeps_the_form_of_its_planes(shape, edges, frame):
    padded = NnunetData(name="nnunet", path=Path("x"), size=edges)
    assert find_frame(shape, padded) == frame
    spacing = scaled_spacing(shape, (5.0, 0.5, 0.75), padded)
    assert spacing == tuple(mm * n / e for mm, n, e in zip((5.0, 0.5, 0.75), frame, edges, strict=True))
    assert spacing[1] / 0.5 == spacing[2] / 0.75
    assert find_frame(shape, padded.model_copy(update={"fit": "stretch"})) == shape


def test_padding_a_volume_is_centred():
    volume = np.arange(1, 9).reshape(2, 2, 2)
    padded = pad_to_frame(volume, (5, 2, 3))
    assert (padded[1:3, :, :2] == volume).all()
    assert padded.sum() == volume.sum()
    assert pad_to_frame(volume, (2, 2, 2)) is volume
