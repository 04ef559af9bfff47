"""Which object does a name refer to? The catalogue, plug-ins, toolkits, and how they are loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from advseg_bench.lazy import export_lazily

if TYPE_CHECKING:
    from advseg_bench.registry import catalogue
    from advseg_bench.registry.loading import load_attack, load_loss

__all__ = ["catalogue", "load_attack", "load_loss"]

__getattr__, __dir__ = export_lazily(__name__, {"catalogue": "", "load_attack": "loading", "load_loss": "loading"})
