"""The simulated scanner of the phantom: from anatomy to a 16-bit image and the masks of the organs.

The signal resembles a balanced steady-state sequence at 0.35 T: fluid is brighter than fat, fat brighter than
parenchyma, parenchyma brighter than muscle, and gas is black. These effects follow, in this order: partial volume, coil
shading, a k-space window (which causes ringing at edges), Rician noise, and an arbitrary gain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from advseg_bench.data.phantom.anatomy import build_anatomy
from advseg_bench.data.phantom.body import VISCERAL, Anatomy, Tissue, paint_anatomy
from advseg_bench.data.phantom.bowel import ORGANS, Bowel, build_bowel
from advseg_bench.data.phantom.shapes import FAR, Floats, Noise, Plane

FINEST_MM = 1.6
"""Largest edge length of a sub-pixel; a pixel is the mean of at least 2 x 2 sub-pixels."""

SUBSLICES_MM = (-0.75, 0.75)
"""Heights, relative to the centre of a 3 mm slice, of the two planes that are averaged."""

WALL_MM = 2.2
"""Thickness of the bowel wall."""

KEPT_FREQUENCIES = 0.84
"""Share of the frequencies that the k-space window keeps along each axis."""

_SIGNAL: dict[Tissue, tuple[float, float, float]] = {
    # signal; texture at 4 mm and at 10 mm, as fractions of the signal
    Tissue.AIR: (0.0, 0.0, 0.0),
    Tissue.SKIN_FAT: (0.62, 0.03, 0.04),
    Tissue.MUSCLE: (0.13, 0.10, 0.08),
    Tissue.VISCERAL_FAT: (0.54, 0.07, 0.08),
    Tissue.CORTICAL_BONE: (0.06, 0.0, 0.0),
    Tissue.MARROW: (0.36, 0.06, 0.06),
    Tissue.DISC: (0.24, 0.05, 0.05),
    Tissue.SPINAL_FLUID: (0.85, 0.05, 0.05),
    Tissue.BLOOD: (0.44, 0.05, 0.05),
    Tissue.MESENTERIC_VESSEL: (0.25, 0.05, 0.0),
    Tissue.LIVER: (0.29, 0.05, 0.03),
    Tissue.HEPATIC_VESSEL: (0.42, 0.05, 0.0),
    Tissue.BILE: (0.80, 0.04, 0.04),
    Tissue.SPLEEN: (0.38, 0.05, 0.03),
    Tissue.PANCREAS: (0.36, 0.12, 0.05),
    Tissue.KIDNEY_CORTEX: (0.42, 0.05, 0.03),
    Tissue.KIDNEY_MEDULLA: (0.34, 0.10, 0.05),
    Tissue.URINE: (0.85, 0.02, 0.04),
    Tissue.LUNG: (0.05, 0.30, 0.20),
    Tissue.HEART: (0.24, 0.08, 0.05),
    Tissue.BOWEL_WALL: (0.13, 0.10, 0.0),
    Tissue.GAS: (0.02, 0.0, 0.0),
    Tissue.FLUID: (0.62, 0.12, 0.18),
    Tissue.CHYME: (0.15, 0.22, 0.22),
    Tissue.STOOL: (0.54, 0.22, 0.22),
    Tissue.FOOD: (0.24, 0.22, 0.22),
}
_TABLE = np.array([_SIGNAL[tissue] for tissue in Tissue], np.float32)


@dataclass(frozen=True, slots=True)
class View:
    """The pixel grid of an image, centred on the body.

    Attributes:
        height: Rows.
        width: Columns.
        spacing: Edge length of a (square) pixel in mm.
    """

    height: int
    width: int
    spacing: float

    def plane(self, z: float, finer: int = 1) -> Plane:
        """Return the plane at height z (mm) with `finer` x `finer` sub-pixels in each pixel."""
        rows, columns = (
            (np.arange(n * finer) + 0.5 - n * finer / 2) * self.spacing / finer for n in (self.height, self.width)
        )
        return Plane(z, rows, columns)

    @property
    def finer(self) -> int:
        """Sub-pixels along each edge of a pixel."""
        return max(2, math.ceil(self.spacing / FINEST_MM))


class Slice(NamedTuple):
    """One rendered slice.

    Attributes:
        image: uint16 (H, W), arbitrary units.
        masks: bool (3, H, W), in the order of `ORGANS`; they exclude each other.
    """

    image: NDArray[np.uint16]
    masks: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Scan:
    """A scan of one subject on one day: everything that its slices have in common.

    Attributes:
        anatomy: The constant anatomy of the subject.
        bowel: The hollow organs of the day.
        signal: Signal of each `Tissue`, shape (tissues,).
        wobble: Field that makes surfaces irregular; constant for the subject.
        textures: Fine and coarse texture of the day.
        shading: Logarithm of the coil's sensitivity, before `shading_strength`.
        shading_strength: Standard deviation of that logarithm.
        snr: Signal of fat divided by the noise of each of the two channels.
        gain: Image units per unit of signal.
        entropy: Seed, subject and day.
    """

    anatomy: Anatomy
    bowel: Bowel
    signal: Floats
    wobble: Noise
    textures: tuple[Noise, Noise]
    shading: Noise
    shading_strength: float
    snr: float
    gain: float
    entropy: tuple[int, int, int]


def prepare_scan(seed: int, subject: int, day: int) -> Scan:
    """Sample the anatomy and the scanner settings of one scan.

    Args:
        seed: Seed of the population.
        subject: Number of the subject; determines body, bones, solid organs and signal.
        day: Number of the scan; determines the bowel and the settings of the scanner.

    Returns:
        The scan, of which `render_slice` makes slices.
    """
    person = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(subject, 0)))
    today = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(subject, 1, day)))
    anatomy = build_anatomy(person)
    return Scan(
        anatomy=anatomy,
        signal=(_TABLE[:, 0] * np.exp(person.normal(0, 0.07, len(_TABLE)))).astype(np.float32),
        wobble=Noise(person, 13.0),
        bowel=build_bowel(anatomy.trunk, person, today),
        textures=(Noise(today, 2.6), Noise(today, 7.0)),
        shading=Noise(today, 90.0, period=16),
        shading_strength=today.uniform(0.10, 0.30),
        snr=today.uniform(18.0, 40.0),
        gain=today.uniform(600.0, 3000.0),
        entropy=(seed, subject, day),
    )


def render_slice(scan: Scan, z: float, view: View) -> Slice:
    """Render one axial slice.

    The noise depends only on seed, subject, day and z, so that slices can be rendered in any order.

    Args:
        scan: Subject and day.
        z: Height of the centre of the slice, mm.
        view: Pixel grid of the image.

    Returns:
        Image and masks.

    Cost:
        Linear in the number of sub-pixels of two planes.
    """
    signal = np.zeros((view.height, view.width), np.float32)
    covered = np.zeros((len(ORGANS), view.height, view.width), np.float32)
    for offset in SUBSLICES_MM:
        plane = view.plane(z + offset, view.finer)
        tissue, organ = cut_scan(scan, plane)
        signal += _pool(_emit(scan, tissue, plane), view.finer) / len(SUBSLICES_MM)
        planes = organ == np.arange(len(ORGANS), dtype=np.int8)[:, None, None]
        covered += _pool(planes.astype(np.float32), view.finer) / len(SUBSLICES_MM)
    signal *= np.exp(scan.shading_strength * scan.shading.sample(view.plane(z)))
    seed, subject, day = scan.entropy
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(subject, 2, day, round(1e3 * (z + 1e3)))))
    return Slice(_record(scan, _window_frequencies(signal), rng), covered > 0.5)


def cut_scan(scan: Scan, plane: Plane) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    """Find tissue and organ at each point of a plane.

    Args:
        scan: Subject and day.
        plane: The plane, H x W points.

    Returns:
        `Tissue` of each pixel, and which of `ORGANS` it belongs to (-1: none); each (H, W).
    """
    irregular = scan.wobble.sample(plane)
    tissue, cavity = paint_anatomy(scan.anatomy, plane, 1.8 * irregular)
    bowel = scan.bowel
    first, second, node = bowel.tubes.nearest(plane)
    surface = np.maximum(first + irregular, cavity + 1.0)
    inside = (surface < 0) & np.isin(tissue, list(VISCERAL)) & (first < FAR)
    depth = np.maximum(surface, (first - second) / 2)[inside]
    at = node[inside]
    gas = np.broadcast_to(plane.y[:, None], inside.shape)[inside] < bowel.gas_y[at]
    fluid = scan.textures[1].sample(plane)[inside] > bowel.fluid[at]
    content = np.where(fluid, Tissue.FLUID, bowel.content[at])
    filling = np.where(gas, Tissue.GAS, content).astype(np.uint8)
    tissue[inside] = np.where(depth > -WALL_MM, np.uint8(Tissue.BOWEL_WALL), filling)
    organ = np.full(tissue.shape, -1, np.int8)
    organ[inside] = bowel.organ[at]
    return tissue, organ


def _emit(scan: Scan, tissue: NDArray[np.uint8], plane: Plane) -> Floats:
    """Return the signal at each point: that of its tissue, modulated by texture."""
    texture = np.ones(tissue.shape, np.float32)
    for column, field in enumerate(scan.textures, start=1):
        texture += _TABLE[tissue, column] * field.sample(plane)
    return scan.signal[tissue] * np.maximum(texture, 0.1)


def _pool(values: Floats, n: int) -> Floats:
    """Average squares of n x n sub-pixels, (..., n H, n W) -> (..., H, W)."""
    *lead, height, width = values.shape
    pooled: Floats = values.reshape(*lead, height // n, n, width // n, n).mean(axis=(-3, -1))
    return pooled


def _window_frequencies(image: Floats) -> Floats:
    """Remove the highest frequencies along each axis, as a truncated acquisition does."""
    spectrum = fft.rfft2(image)
    keep = [np.abs(f) <= KEPT_FREQUENCIES / 2 for f in (fft.fftfreq(image.shape[0]), fft.rfftfreq(image.shape[1]))]
    windowed: Floats = fft.irfft2(spectrum * (keep[0][:, None] & keep[1]), s=image.shape)
    return windowed


def _record(scan: Scan, image: Floats, rng: np.random.Generator) -> NDArray[np.uint16]:
    """Add noise to both channels, take the magnitude, and scale it to 16 bits."""
    noise = rng.standard_normal((2, *image.shape), dtype=np.float32)
    noise *= scan.signal[Tissue.SKIN_FAT] / scan.snr
    units = np.rint(scan.gain * np.hypot(image + noise[0], noise[1]))
    recorded: NDArray[np.uint16] = np.clip(units, 0, np.iinfo(np.uint16).max).astype(np.uint16)
    return recorded
