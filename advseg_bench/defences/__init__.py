"""What is put around a network to make it robust?"""

from advseg_bench.lazy import export_lazily

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
