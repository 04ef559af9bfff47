"""The phantom against the statistics it aims at, its anatomy, and its scanner."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from advseg_bench.data.phantom import dataset as phantom
from advseg_bench.data.phantom import scanner
from advseg_bench.data.phantom.body import ABDOMEN_MM, Tissue, paint_anatomy
from advseg_bench.data.phantom.bowel import ORGANS
from advseg_bench.data.phantom.scanner import View, cut_scan, prepare_scan, render_slice

SIZE, SUBJECTS, SLICES = 64, 8, 20
VIEW = View(SIZE, SIZE, phantom.FIELD_MM / SIZE)


@pytest.fixture(scope="module")
def population():
    """Every slice of eight scans: grey levels 0-255 (by the slice's maximum), masks, body."""
    greys, masks, bodies = [], [], []
    for subject in range(1, SUBJECTS + 1):
        scan = prepare_scan(0, subject, 0)
        for z in phantom.slice_heights(SLICES):
            image, planes = render_slice(scan, z, VIEW)
            greys.append(255.0 * image / image.max())
            masks.append(planes)
            bodies.append(scan.anatomy.trunk.layers(VIEW.plane(z))[0] < 0)
    return np.stack(greys), np.stack(masks), np.stack(bodies)


# Statistics: bands around what 36 annotated slices of the UW-Madison GI Tract set measure.


@pytest.mark.parametrize(("organ", "low", "high"), [(0, 0.008, 0.024), (1, 0.010, 0.035), (2, 0.010, 0.030)])
def test_organs_cover_the_stated_share_of_the_image(population, organ, low, high):
    share = population[1][:, organ].mean(axis=(1, 2))
    present = share[share > 0]
    assert low < np.median(present) < high
    assert np.percentile(present, 10) < 0.75 * np.median(present)
    assert 1.3 * np.median(present) < np.percentile(present, 90) < 0.06


@pytest.mark.parametrize(("organ", "low", "high"), [(0, 1, 3), (1, 2, 4), (2, 1, 1)])
def test_organs_fall_into_the_stated_number_of_pieces(population, organ, low, high):
    pieces = [ndimage.label(mask)[1] for mask in population[1][:, organ] if mask.any()]
    assert low <= np.median(pieces) <= high


def test_about_a_third_of_the_slices_show_no_organ_and_they_lie_at_both_ends(population):
    shown = population[1].any(axis=(1, 2, 3)).reshape(SUBJECTS, SLICES)
    assert 0.25 < 1 - shown.mean() < 0.45
    assert not shown[:, [0, -1]].any()
    assert shown[:, 5:15].all()


def test_body_fills_the_stated_share_of_the_image(population):
    _, masks, bodies = population
    share = bodies[masks.any(axis=(1, 2, 3))].mean(axis=(1, 2))
    assert 0.42 < np.median(share) < 0.56
    assert share.min() > 0.36
    assert share.max() < 0.66


def test_grey_levels_have_the_stated_means_and_order(population):
    greys, masks, bodies = population
    large, small, stomach = (
        np.mean([g[m].mean() for g, m in zip(greys, masks[:, k], strict=True) if m.any()]) for k in range(3)
    )
    shown = masks.any(axis=(1, 2, 3))
    rest = [
        np.percentile(g[b & ~m.any(axis=0)], [5, 50, 95])
        for g, m, b in zip(greys[shown], masks[shown], bodies[shown], strict=True)
    ]
    p5, p50, p95 = np.median(rest, axis=0)
    assert small < stomach < large < p50
    assert 60 < large < 105
    assert 39 < small < 65
    assert 45 < stomach < 82
    assert p5 < 40
    assert 80 < p50 < 120
    assert 155 < p95 < 215


@pytest.mark.parametrize("organ", range(3))
def test_organs_are_not_uniform(population, organ):
    greys, masks, _ = population
    spread = [g[m].std() for g, m in zip(greys, masks[:, organ], strict=True) if m.sum() > 8]
    assert 20 < np.median(spread) < 48


# Anatomy


def test_tissue_signals_are_in_the_order_of_the_sequence():
    signal = np.mean([prepare_scan(0, subject, 0).signal for subject in range(1, 6)], axis=0)
    order = [Tissue.SPINAL_FLUID, Tissue.SKIN_FAT, Tissue.SPLEEN, Tissue.LIVER, Tissue.MUSCLE, Tissue.GAS]
    assert (np.diff(signal[order]) < 0).all()


@pytest.mark.parametrize("subject", [1, 2, 3])
def test_sides_follow_the_radiological_convention(subject):
    scan = prepare_scan(0, subject, 0)
    plane = VIEW.plane(0.8 * ABDOMEN_MM)
    tissue, organ = cut_scan(scan, plane)
    assert plane.x[np.nonzero(tissue == Tissue.LIVER)[1]].mean() < -20
    assert plane.x[np.nonzero(tissue == Tissue.SPLEEN)[1]].min() > 20
    assert plane.x[np.nonzero(organ == ORGANS.index("stomach"))[1]].mean() > 20
    assert plane.y[np.nonzero(tissue == Tissue.SPINAL_FLUID)[0]].mean() > 20


def test_a_day_moves_the_bowel_and_leaves_the_anatomy():
    first, second = prepare_scan(0, 1, 0), prepare_scan(0, 1, 1)
    for z in (0.1, 0.35, 0.7, 1.1):
        plane = VIEW.plane(z * ABDOMEN_MM)
        painted = [paint_anatomy(scan.anatomy, plane, 1.8 * scan.wobble.sample(plane))[0] for scan in (first, second)]
        np.testing.assert_array_equal(*painted)
    np.testing.assert_array_equal(first.signal, second.signal)
    assert _course(first, "large_bowel", second) < 15
    assert _course(first, "stomach", second) < 15
    assert _course(first, "large_bowel", second) > 2
    assert _course(first, "small_bowel", second) > 15


def test_a_subject_keeps_its_loops_and_their_calibre_over_days():
    for subject in range(1, 11):
        bowels = [prepare_scan(0, subject, day).bowel for day in range(4)]
        assert len({bowel.tubes.path[-1] for bowel in bowels}) == 1
        calibres = [bowel.tubes.radius[bowel.organ == ORGANS.index("small_bowel")].mean() for bowel in bowels]
        assert np.ptp(calibres) < 1.5


def _course(scan, organ, other):
    """Mean distance (mm) from the nodes of an organ on one day to the nearest of the same organ on another day."""
    here, there = (s.bowel.tubes.points[s.bowel.organ == ORGANS.index(organ)] for s in (scan, other))
    return np.linalg.norm(here[:, None] - there, axis=-1).min(axis=1).mean()


def test_loops_persist_over_neighbouring_slices():
    scan = prepare_scan(0, 2, 0)
    overlaps = []
    for z in np.linspace(30, 130, 6):
        near, far = (render_slice(scan, z + step, VIEW).masks[1] for step in (3.0, 45.0))
        here = render_slice(scan, z, VIEW).masks[1]
        overlaps.append([2 * (here & m).sum() / max(1, here.sum() + m.sum()) for m in (near, far)])
    near, far = np.mean(overlaps, axis=0)
    assert near > 0.75
    assert far < 0.5


def test_gas_lies_in_front_of_the_rest_of_the_lumen():
    heights = {Tissue.GAS: [], Tissue.FOOD: []}
    for subject in range(1, 7):
        plane = View(128, 128, 3.0).plane(0.65 * ABDOMEN_MM)
        tissue, organ = cut_scan(prepare_scan(0, subject, 0), plane)
        for kind, rows in heights.items():
            rows.extend(plane.y[np.nonzero((tissue == kind) & (organ == 2))[0]])
    assert np.mean(heights[Tissue.GAS]) < np.mean(heights[Tissue.FOOD]) - 10


# Scanner


def test_rendering_is_deterministic_in_any_order():
    heights = (20.0, 60.0, 200.0)
    forwards = {z: render_slice(prepare_scan(3, 1, 0), z, VIEW) for z in heights}
    scan = prepare_scan(3, 1, 0)
    for z in reversed(heights):
        again = render_slice(scan, z, VIEW)
        np.testing.assert_array_equal(again.image, forwards[z].image)
        np.testing.assert_array_equal(again.masks, forwards[z].masks)


@pytest.mark.parametrize("other", [(4, 1, 0), (3, 2, 0), (3, 1, 1)])
def test_seed_subject_and_day_each_change_image_and_masks(other):
    one, two = (render_slice(prepare_scan(*key), 60.0, VIEW) for key in ((3, 1, 0), other))
    assert (one.image != two.image).mean() > 0.9
    assert (one.masks != two.masks).any()


def test_noise_differs_between_slices_and_is_rician_in_air():
    scan = prepare_scan(0, 1, 0)
    view = View(128, 128, 3.2)
    corners = [render_slice(scan, z, view).image[:14, :14].astype(float) for z in (0.0, 3.0, 90.0, 150.0)]
    assert abs(np.corrcoef(corners[0].ravel(), corners[1].ravel())[0, 1]) < 0.25
    ratio = np.mean(corners) / np.std(corners)
    assert ratio == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), rel=0.08)


def test_the_window_drops_high_frequencies_and_keeps_the_others(monkeypatch):
    scan = dataclasses.replace(prepare_scan(0, 1, 0), snr=1e9, gain=10000.0)
    powers = []
    for kept in (scanner.KEPT_FREQUENCIES, 1.0):
        monkeypatch.setattr(scanner, "KEPT_FREQUENCIES", kept)
        image = render_slice(scan, 60.0, View(128, 128, 3.0)).image.astype(float)
        powers.append(np.abs(np.fft.fft2(image)) ** 2)
    frequency = np.abs(np.fft.fftfreq(128))
    dropped = np.maximum(frequency, frequency[:, None]) > 0.43
    windowed, full = powers
    # The magnitude puts back a little of what the window took.
    assert windowed[dropped].sum() < 0.3 * full[dropped].sum()
    assert windowed[~dropped].sum() == pytest.approx(full[~dropped].sum(), rel=1e-2)


@pytest.mark.parametrize(("height", "width"), [(266, 266), (310, 360), (50, 81)])
def test_any_shape_can_be_rendered(height, width):
    image, masks = render_slice(prepare_scan(0, 1, 0), 60.0, View(height, width, 1.5))
    assert (image.shape, image.dtype) == ((height, width), np.uint16)
    assert (masks.shape, masks.dtype) == ((3, height, width), np.bool_)
    assert masks.any()
    assert masks.sum(axis=0).max() == 1


def test_a_larger_field_shows_the_same_pixels_around_the_middle():
    scan = prepare_scan(0, 1, 0)
    small, large = (render_slice(scan, 60.0, View(size, size, 3.0)).masks for size in (100, 140))
    np.testing.assert_array_equal(large[:, 20:-20, 20:-20], small)
