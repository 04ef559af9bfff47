"""What is put around a network to make it robust?"""

from typing import TYPE_CHECKING

from advseg_bench.lazy import export_lazily

if TYPE_CHECKING:
    from advseg_bench.defences.base import Defended as Defended
    from advseg_bench.defences.base import InputTransformation as InputTransformation
    from advseg_bench.defences.base import pass_through as pass_through
    from advseg_bench.defences.certified import Certificate as Certificate
    from advseg_bench.defences.certified import Smoothing as Smoothing
    from advseg_bench.defences.certified import bound_scores as bound_scores
    from advseg_bench.defences.certified import certify as certify
    from advseg_bench.defences.mirroring import Mirroring as Mirroring
    from advseg_bench.defences.quantised import BitDepth as BitDepth
    from advseg_bench.defences.quantised import Jpeg as Jpeg
    from advseg_bench.defences.randomised import RandomNoise as RandomNoise
    from advseg_bench.defences.randomised import RandomResize as RandomResize
    from advseg_bench.defences.smoothed import GaussianSmoothing as GaussianSmoothing
    from advseg_bench.defences.smoothed import MedianFilter as MedianFilter
    from advseg_bench.defences.smoothed import TotalVariation as TotalVariation

__all__ = [
    "BitDepth",
    "Certificate",
    "Defended",
    "GaussianSmoothing",
    "InputTransformation",
    "Jpeg",
    "MedianFilter",
    "Mirroring",
    "RandomNoise",
    "RandomResize",
    "Smoothing",
    "TotalVariation",
    "bound_scores",
    "certify",
    "pass_through",
]

_HOMES = {
    "BitDepth": "quantised",
    "Certificate": "certified",
    "Defended": "base",
    "GaussianSmoothing": "smoothed",
    "InputTransformation": "base",
    "Jpeg": "quantised",
    "MedianFilter": "smoothed",
    "Mirroring": "mirroring",
    "RandomNoise": "randomised",
    "RandomResize": "randomised",
    "Smoothing": "certified",
    "TotalVariation": "smoothed",
    "bound_scores": "certified",
    "certify": "certified",
    "pass_through": "base",
}

__getattr__, __dir__ = export_lazily(__name__, _HOMES)
