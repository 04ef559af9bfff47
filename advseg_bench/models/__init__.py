"""Which network is attacked? Building, training, loading and preparing segmentation models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from advseg_bench.lazy import export_lazily

if TYPE_CHECKING:
    from advseg_bench.models.build import build_model
    from advseg_bench.models.weights import load_weights

__all__ = ["build_model", "load_weights"]

__getattr__, __dir__ = export_lazily(__name__, {"build_model": "build", "load_weights": "weights"})
