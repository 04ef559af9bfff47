"""The body of the phantom: tissues, the trunk's layers, and the painting of shapes into a slice.

Heights are measured from the lower end of the sigmoid colon (0) to about the dome of the diaphragm (`ABDOMEN_MM`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from advseg_bench.data.phantom.shapes import Doubles, Ellipsoid, Floats, Plane, Tubes

ABDOMEN_MM = 300.0
"""Height of the abdomen in mm."""


class Tissue(IntEnum):
    """The tissue at a point of the phantom."""

    AIR = 0
    SKIN_FAT = 1
    MUSCLE = 2
    VISCERAL_FAT = 3
    CORTICAL_BONE = 4
    MARROW = 5
    DISC = 6
    SPINAL_FLUID = 7
    BLOOD = 8
    MESENTERIC_VESSEL = 9
    LIVER = 10
    HEPATIC_VESSEL = 11
    BILE = 12
    SPLEEN = 13
    PANCREAS = 14
    KIDNEY_CORTEX = 15
    KIDNEY_MEDULLA = 16
    URINE = 17
    LUNG = 18
    HEART = 19
    BOWEL_WALL = 20
    GAS = 21
    FLUID = 22
    CHYME = 23
    STOOL = 24
    FOOD = 25


VISCERAL = frozenset({Tissue.VISCERAL_FAT, Tissue.MESENTERIC_VESSEL})
"""Tissues that organs are painted over."""

SOFT = VISCERAL | {Tissue.SKIN_FAT, Tissue.MUSCLE, Tissue.LUNG}
"""Tissues that the skeleton and its muscles are painted over."""


@dataclass(frozen=True, slots=True)
class Part:
    """A shape of one tissue; parts are painted in order, each only over the tissues in `over`."""

    tissue: Tissue
    shape: Ellipsoid | Tubes
    over: frozenset[Tissue] = VISCERAL


@dataclass(frozen=True, slots=True)
class Trunk:
    """The body's outline and its layers.

    Attributes:
        half_width: Semi-axis from left to right at the waist, mm.
        half_depth: Semi-axis from front to back, mm.
        rim: Amplitudes (2, 4) of cos and sin of 2 to 5 times the angle, as shares of the radius.
        fat: Mean thickness of the subcutaneous fat, mm.
        muscle: Thickness of the abdominal wall, mm.
    """

    half_width: float
    half_depth: float
    rim: Doubles
    fat: float
    muscle: float = 10.0

    @property
    def inner_width(self) -> float:
        """Semi-axis of the abdominal cavity from left to right, mm."""
        return self.half_width - self.fat - self.muscle

    @property
    def inner_depth(self) -> float:
        """Semi-axis of the abdominal cavity from front to back, mm."""
        return self.half_depth - self.fat - self.muscle

    @property
    def spine_y(self) -> float:
        """Position of the centres of the vertebral bodies from front to back, mm."""
        return self.inner_depth - 50.0

    def layers(self, plane: Plane) -> tuple[Floats, Floats, Floats]:
        """Return the distances to the surfaces of the trunk's layers.

        Args:
            plane: The plane, H x W pixels.

        Returns:
            Signed distances in mm, measured along the radius and negative inside, to the skin, to the outer surface of
            the muscles and to the cavity of abdomen and chest; each (H, W).
        """
        height = plane.z / ABDOMEN_MM
        hips = 1 + 0.07 * min(abs(height - 0.42) / 0.5, 1.2) ** 2
        x = (plane.x / (self.half_width * hips)).astype(np.float32)
        y = (plane.y / self.half_depth).astype(np.float32)[:, None]
        angle = np.arctan2(y, x)
        outline = 1 - np.float32(0.07) * np.exp(-(((angle - np.pi / 2) / 0.22) ** 2))  # the furrow along the spine
        for k, (even, odd) in enumerate(self.rim.T.astype(np.float32), start=2):
            outline += even * np.cos(k * angle) + odd * np.sin(k * angle)
        share = (np.abs(x) ** 2.3 + np.abs(y) ** 2.3) ** np.float32(1 / 2.3) / outline
        skin = (np.hypot(*_grid(plane)) * (1 - 1 / np.maximum(share, 1e-3))).astype(np.float32)
        belly = 1 - 0.35 * np.clip((height - 0.5) / 0.3, 0, 1)
        wall = skin + np.float32(self.fat * belly) * (1 + 0.2 * np.sin(angle) + 0.15 * np.cos(2 * angle))
        pelvis = 12 * np.clip(0.1 - height, 0, 0.3) / 0.3
        flank = 1 + 0.25 * np.cos(2 * angle) + 0.3 * np.cos(6 * angle)
        cavity = wall + np.float32(self.muscle) * flank + np.float32(pelvis)
        return skin, wall, cavity

    def dome(self, plane: Plane) -> Floats:
        """Return the height of the diaphragm in mm, (H, W): a dome on each side, lower at the back."""
        x, y = _grid(plane)
        x, y = x / self.inner_width, y / self.inner_depth
        right = 1.05 - 0.75 * (x + 0.42) ** 2
        left = 1.0 - 0.75 * (x - 0.42) ** 2
        back = 0.3 * np.clip(y, 0, None) ** 2 + 0.12 * np.clip(-y, 0, None) ** 2
        height: Floats = np.float32(ABDOMEN_MM) * (np.maximum(right, left) - back)
        return height


def _grid(plane: Plane) -> tuple[Floats, Floats]:
    """Return x as a row (W,) and y as a column (H, 1)."""
    return plane.x.astype(np.float32), plane.y.astype(np.float32)[:, None]


@dataclass(frozen=True, slots=True)
class Anatomy:
    """The constant anatomy of a subject: the trunk and the parts inside, in painting order."""

    trunk: Trunk
    parts: tuple[Part, ...]


def paint_anatomy(anatomy: Anatomy, plane: Plane, wobble: Floats) -> tuple[NDArray[np.uint8], Floats]:
    """Paint everything except the bowel.

    Args:
        anatomy: The subject.
        plane: The plane, H x W pixels.
        wobble: Inward displacement of surfaces in mm, shape (H, W).

    Returns:
        `Tissue` of each pixel; signed distance in mm to the wall of the abdominal cavity, including the diaphragm.
    """
    skin, wall, cavity = anatomy.trunk.layers(plane)
    above = np.float32(plane.z) - anatomy.trunk.dome(plane)
    x, y = _grid(plane)
    chest = np.abs(x) + 3 * wobble > 0.2 * anatomy.trunk.inner_width  # the mediastinum lies between the lungs
    ribs = np.cos(11 * np.arctan2(y, x / 1.4) + plane.z / 9.0) > 0.55
    ribs &= (np.abs(cavity - 5.5) < 3.5) & (plane.z > 0.62 * ABDOMEN_MM)
    layers = {
        Tissue.AIR: skin >= 0,
        Tissue.SKIN_FAT: wall >= 0,
        Tissue.MARROW: ribs,
        Tissue.MUSCLE: (cavity >= 0) | ((above > -3) & (above <= 0) & chest),
        Tissue.LUNG: (above > 0) & chest,
    }
    tissue = np.select(list(layers.values()), [np.uint8(t) for t in layers], np.uint8(Tissue.VISCERAL_FAT))
    for part in anatomy.parts:
        _paint(part, plane, wobble, tissue)
    return tissue, np.maximum(cavity, above + 3)


def _paint(part: Part, plane: Plane, wobble: Floats, tissue: NDArray[np.uint8]) -> None:
    """Paint one part into `tissue`."""
    gives_way = np.zeros(len(Tissue), np.bool_)
    gives_way[list(part.over)] = True
    if isinstance(part.shape, Tubes):
        inside = part.shape.nearest(plane)[0] < 0
        tissue[inside & gives_way[tissue]] = part.tissue
        return
    window = part.shape.cut(plane)
    if window is not None:
        view = tissue[window.rows, window.columns]
        push = wobble[window.rows, window.columns]
        view[(window.distance + push < 0) & gives_way[view]] = part.tissue
