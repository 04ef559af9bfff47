"""What are the results? Stored rows, and the scores and tables that are computed from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from advseg_bench.lazy import export_lazily

if TYPE_CHECKING:
    from advseg_bench.results.run import Run

__all__ = ["Run"]

__getattr__, __dir__ = export_lazily(__name__, {"Run": "run"})
