"""The shipped defences as literals, for `list` and the validation of suites. Does not import torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from advseg_bench.types import DefenceTraits


@dataclass(frozen=True, slots=True)
class DefenceEntry:
    """A shipped defence.

    Attributes:
        target: `module:object` to import.
        summary: One line for `list`.
        traits: Capabilities and cost with default settings on 2-D images.
        with_settings: Function (settings, number of space axes) -> traits, if they depend on those.
    """

    target: str
    summary: str
    traits: DefenceTraits = field(default_factory=DefenceTraits)
    with_settings: Callable[[Mapping[str, object], int], DefenceTraits] | None = None

    def traits_of(self, settings: Mapping[str, object], axes: int = 2) -> DefenceTraits:
        """Return the traits for given settings and number of space axes."""
        return self.with_settings(settings, axes) if self.with_settings else self.traits


def mirroring_traits(settings: Mapping[str, object], axes: int) -> DefenceTraits:
    """Return the traits of `defences.Mirroring`: one forward for each combination of mirrored axes and rotation."""
    chosen = settings.get("axes")
    mirrored = len(chosen) if isinstance(chosen, (list, tuple)) else axes
    return DefenceTraits(
        forwards=2**mirrored * (4 if settings.get("rotations") else 1), differentiable=settings.get("combine") != "vote"
    )


_ROUNDED = DefenceTraits(differentiable=False)

DEFENCES: dict[str, DefenceEntry] = {
    "bit_depth": DefenceEntry(
        "advseg_bench.defences.quantised:BitDepth",
        "intensities rounded to 2^bits levels; attacked by BPDA (arXiv 1704.01155)",
        _ROUNDED,
    ),
    "jpeg": DefenceEntry(
        "advseg_bench.defences.quantised:Jpeg",
        "8-bit 2-D images compressed and decoded; attacked by BPDA (arXiv 1711.00117)",
        replace(_ROUNDED, dims=(2,)),
    ),
    "gaussian_smoothing": DefenceEntry(
        "advseg_bench.defences.smoothed:GaussianSmoothing",
        "convolution with a Gaussian (arXiv 1704.01155)",
    ),
    "median": DefenceEntry(
        "advseg_bench.defences.smoothed:MedianFilter",
        "median of each pixel's neighbourhood (arXiv 1704.01155)",
    ),
    "total_variation": DefenceEntry(
        "advseg_bench.defences.smoothed:TotalVariation",
        "least total variation by Chambolle's projection (arXiv 1711.00117)",
    ),
    "random_noise": DefenceEntry(
        "advseg_bench.defences.randomised:RandomNoise",
        "Gaussian noise at the input (arXiv 1712.00673)",
        DefenceTraits(random=True),
    ),
    "random_resize": DefenceEntry(
        "advseg_bench.defences.randomised:RandomResize",
        "a random size and place, logits moved back (arXiv 1711.01991)",
        DefenceTraits(random=True),
    ),
    "mirroring": DefenceEntry(
        "advseg_bench.defences.mirroring:Mirroring",
        "predictions of mirrored and rotated images combined, as nnU-Net",
        mirroring_traits({}, 2),
        with_settings=mirroring_traits,
    ),
}
