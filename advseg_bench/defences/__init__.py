"""What is put around a network to make it robust?"""

from advseg_bench.lazy import export_lazily

__all__ = [
    "BitDepth",
    "Defended",
    "GaussianSmoothing",
    "InputTransformation",
    "Jpeg",
    "MedianFilter",
    "Mirroring",
    "RandomNoise",
    "RandomResize",
    "TotalVariation",
    "pass_through",
]

_HOMES = {
    "BitDepth": "quantised",
    "Defended": "base",
    "GaussianSmoothing": "smoothed",
    "InputTransformation": "base",
    "Jpeg": "quantised",
    "MedianFilter": "smoothed",
    "Mirroring": "mirroring",
    "RandomNoise": "randomised",
    "RandomResize": "randomised",
    "TotalVariation": "smoothed",
    "pass_through": "base",
}

__getattr__, __dir__ = export_lazily(__name__, _HOMES)
