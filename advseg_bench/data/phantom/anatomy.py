"""Constant anatomy of a phantom subject: bones, muscles, vessels and solid organs.

Positions are sampled per subject around plausible values, most of them relative to the trunk, so that organs lie inside
both thin and large subjects. Shapes are based on visual judgement and summary statistics; no image of a patient is
used. The bowel, which changes from day to day, is in `bowel`.
"""

from __future__ import annotations

import numpy as np

from advseg_bench.data.phantom.body import SOFT, VISCERAL, Anatomy, Part, Tissue, Trunk
from advseg_bench.data.phantom.shapes import Doubles, Ellipsoid, Tubes, join_tubes, trace_spline

_ALWAYS = (-1e3, 1e3)
"""Heights of a cylinder that intersects every slice."""

_SACRUM = (-150.0, 6.0)
"""Heights between which the spine is as wide as the sacrum."""


def build_anatomy(rng: np.random.Generator) -> Anatomy:
    """Sample the anatomy of a subject.

    Args:
        rng: Random generator; the same state gives the same subject.

    Returns:
        The trunk and its parts.
    """
    half_width = rng.uniform(171.0, 194.0)
    trunk = Trunk(
        half_width=half_width,
        half_depth=half_width * rng.uniform(0.68, 0.78),
        rim=rng.normal(0, 0.012, (2, 4)),
        fat=rng.uniform(12.0, 32.0),
    )
    parts = [
        *_build_muscles(trunk),
        *_build_pelvis(trunk),
        *_build_spine(trunk),
        *_build_vessels(trunk, rng),
        *_build_kidneys(trunk, rng),
        *_build_liver(trunk, rng),
        *_build_left_organs(trunk, rng),
        *_build_heart(trunk),
    ]
    return Anatomy(trunk, tuple(parts))


def _build_muscles(trunk: Trunk) -> list[Part]:
    """Place the muscles beside the spine."""
    y = trunk.spine_y
    shapes: list[Ellipsoid | Tubes] = [Ellipsoid((0, y + 36, 0), (42, 20, 1), span=_ALWAYS)]
    for side in (-1, 1):
        shapes.append(Ellipsoid((side * 36, y + 38, 0), (31, 22, 1), side * 0.15, span=_ALWAYS))
        shapes.append(Ellipsoid((side * 66, y + 22, 0), (18, 9, 1), side * 0.5, span=(20, 190)))
        psoas = np.array([[side * 30, y - 2, 205], [side * 40, y - 4, 110], [side * 64, y - 34, -90.0]])
        nodes, length = trace_spline(psoas, 12.0)
        shapes.append(join_tubes([(nodes, 9 + 15 * (length / length[-1]) ** 0.7)]))
    return [Part(Tissue.MUSCLE, shape, SOFT) for shape in shapes]


def _build_pelvis(trunk: Trunk) -> list[Part]:
    """Place the iliac wings, the buttocks and the bladder."""
    parts = []
    wide, deep = trunk.inner_width, trunk.inner_depth
    for side in (-1, 1):
        buttock = Ellipsoid((side * 0.5 * wide, 0.75 * deep, -85), (0.45 * wide, 0.5 * deep, 110), side * -0.4)
        parts.append(Part(Tissue.MUSCLE, buttock, SOFT))
        iliacus = Ellipsoid((side * 0.58 * wide, 0.16 * deep, -40), (15, 0.5 * deep, 80), side * 0.55)
        parts.append(Part(Tissue.MUSCLE, iliacus, SOFT))
        wing = Ellipsoid((side * 0.72 * wide, 0.22 * deep, -35), (12, 0.62 * deep, 72), side * 0.55)
        parts.append(Part(Tissue.CORTICAL_BONE, wing, SOFT))
        parts.append(Part(Tissue.MARROW, _shrink(wing, 2.5), frozenset({Tissue.CORTICAL_BONE})))
    bladder = Ellipsoid((0, -0.2 * deep, -58), (44, 33, 40))
    parts.append(Part(Tissue.MUSCLE, bladder))
    parts.append(Part(Tissue.URINE, _shrink(bladder, 3), frozenset({Tissue.MUSCLE})))
    return parts


def _build_spine(trunk: Trunk) -> list[Part]:
    """Stack vertebrae and discs, with the spinal canal behind them."""
    y = trunk.spine_y
    over = SOFT | {Tissue.CORTICAL_BONE}
    parts = [
        Part(Tissue.CORTICAL_BONE, Ellipsoid((0, y + 24, 0), (17, 15, 1), span=_ALWAYS), over),
        Part(Tissue.CORTICAL_BONE, Ellipsoid((0, y + 44, 0), (4, 15, 1), span=_ALWAYS), over),
        Part(Tissue.MARROW, Ellipsoid((0, y + 44, 0), (2.5, 13, 1), span=_ALWAYS), over),
        Part(Tissue.CORTICAL_BONE, Ellipsoid((0, y + 8, 0), (50, 15, 1), span=_SACRUM), over),
        Part(Tissue.MARROW, Ellipsoid((0, y + 8, 0), (48, 13, 1), span=_SACRUM), over),
        Part(Tissue.CORTICAL_BONE, Ellipsoid((0, y, 0), (24, 18, 1), span=_ALWAYS), over),
        Part(Tissue.DISC, Ellipsoid((0, y, 0), (23, 17, 1), span=_ALWAYS), over),
        Part(Tissue.SPINAL_FLUID, Ellipsoid((0, y + 25, 0), (10, 8, 1), span=_ALWAYS), over),
    ]
    over_disc = frozenset({Tissue.DISC})
    for bottom in np.arange(-120.0, 420.0, 34.0):
        body = Ellipsoid((0, y, 0), (22, 16, 1), span=(bottom, bottom + 26))
        parts.append(Part(Tissue.MARROW, body, over_disc))
    return parts


def _build_vessels(trunk: Trunk, rng: np.random.Generator) -> list[Part]:
    """Place the great vessels in front of the spine, and vessels that fan out into the mesentery."""
    y, wide, deep = trunk.spine_y, trunk.inner_width, trunk.inner_depth
    aorta = np.array([[11, y - 28, 400.0], [12, y - 30, 180], [6, y - 28, 66]])
    cava = np.array([[-24, y - 45, 330.0], [-22, y - 30, 180], [-14, y - 26, 58]])
    great = []
    for line, radius in ((aorta, 9.5), (cava, 11.0)):
        great.append((line, radius))
        for side in (-1, 1):
            end = np.array([side * 58, y - 45, -100.0])
            great.append((np.stack([line[-1], (line[-1] + end) / 2 + [0, 6, 0], end]), 0.62 * radius))
    root = np.array([4.0, y - 42, 150.0])
    fan = []
    for _ in range(44):
        end = np.array([rng.uniform(-0.7, 0.7) * wide, rng.uniform(-0.75, 0.1) * deep, rng.uniform(0, 150)])
        fan.append(np.stack([root, (root + end) / 2 + rng.normal(0, 10, 3), end]))
    return [
        Part(Tissue.BLOOD, join_tubes([_taper(line, radius, radius) for line, radius in great]), SOFT),
        Part(Tissue.MESENTERIC_VESSEL, join_tubes([_taper(line, 3.2, 1.6) for line in fan])),
    ]


def _build_kidneys(trunk: Trunk, rng: np.random.Generator) -> list[Part]:
    """Place the kidneys: cortex, medulla, and the fat of the hilum towards the spine."""
    parts = []
    for side in (-1, 1):
        x, y, z = side * 68 + rng.normal(0, 3), trunk.spine_y - 2 + rng.normal(0, 3), 159 + 4.5 * side
        kidney = Ellipsoid((x, y, z), (28, 24, 69), side * 0.45)
        hilum = Ellipsoid((x - side * 17, y - 6, z), (15, 8, 32), side * 0.3)
        parts.append(Part(Tissue.KIDNEY_CORTEX, kidney))
        parts.append(Part(Tissue.KIDNEY_MEDULLA, _shrink(kidney, 9), frozenset({Tissue.KIDNEY_CORTEX})))
        inside = frozenset({Tissue.KIDNEY_CORTEX, Tissue.KIDNEY_MEDULLA})
        parts.append(Part(Tissue.VISCERAL_FAT, hilum, inside))
    return parts


def _build_liver(trunk: Trunk, rng: np.random.Generator) -> list[Part]:
    """Place the liver on the patient's right, with vessels and gall bladder."""
    wide, deep = trunk.inner_width, trunk.inner_depth
    swell = rng.uniform(0.92, 1.06)
    right = Ellipsoid((-0.5 * wide, 0.0, 256), (0.58 * wide * swell, 0.98 * deep, 118 * swell), -0.2)
    left = Ellipsoid((-0.05 * wide, -0.5 * deep, 262), (0.58 * wide * swell, 0.42 * deep, 58), -0.12)
    hilum = np.array([-0.2 * wide, -0.1 * deep, 225])
    veins = []
    for _ in range(14):
        end = np.array([rng.uniform(-0.9, 0.1) * wide, rng.uniform(-0.7, 0.6) * deep, rng.uniform(180, 310)])
        line = np.stack([hilum, (hilum + end) / 2 + rng.normal(0, 12, 3), end])
        veins.append(_taper(line, 4.5, 1.5))
    gall = Ellipsoid((-0.38 * wide, -0.5 * deep, 172 + rng.normal(0, 6)), (14, 17, 26), 0.4)
    return [
        Part(Tissue.BILE, gall),
        Part(Tissue.LIVER, right),
        Part(Tissue.LIVER, left),
        Part(Tissue.HEPATIC_VESSEL, join_tubes(veins), frozenset({Tissue.LIVER})),
    ]


def _build_left_organs(trunk: Trunk, rng: np.random.Generator) -> list[Part]:
    """Place spleen and pancreas."""
    wide, deep, y = trunk.inner_width, trunk.inner_depth, trunk.spine_y
    spleen = Ellipsoid((0.74 * wide, 0.26 * deep, 240), (rng.uniform(26, 34), 0.6 * deep, 57), -0.4)
    line = np.array([[-40, y - 42, 160.0], [-15, y - 58, 172], [20, y - 52, 185], [0.5 * wide, y - 30, 205]])
    pancreas = _taper(line + rng.normal(0, 3, line.shape), 14.0, 9.0)
    return [Part(Tissue.SPLEEN, spleen), Part(Tissue.PANCREAS, join_tubes([pancreas]))]


def _build_heart(trunk: Trunk) -> list[Part]:
    """Place the heart above the diaphragm."""
    heart = Ellipsoid((0.15 * trunk.inner_width, -0.3 * trunk.inner_depth, 352), (66, 52, 62), 0.5)
    over = frozenset({Tissue.LUNG, Tissue.MUSCLE, *VISCERAL})
    return [
        Part(Tissue.HEART, heart, over),
        Part(Tissue.BLOOD, _shrink(heart, 14), frozenset({Tissue.HEART})),
    ]


def _shrink(shape: Ellipsoid, by: float) -> Ellipsoid:
    """Return an ellipsoid with axes shortened by `by` mm."""
    a, b, c = (axis - by for axis in shape.axes)
    return Ellipsoid(shape.centre, (a, b, c), shape.angle, shape.span)


def _taper(line: Doubles, start: float, end: float) -> tuple[Doubles, Doubles]:
    """Return nodes and radii of a tube through given points, with linearly changing radius."""
    nodes, length = trace_spline(line, 12.0)
    return nodes, start + (end - start) * length / length[-1]
