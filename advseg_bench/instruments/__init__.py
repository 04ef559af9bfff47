"""What did an attack or a job use? Model guards, pass counters, time and memory meters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from advseg_bench.lazy import export_lazily

if TYPE_CHECKING:
    from advseg_bench.instruments.counter import rows_of

__all__ = ["rows_of"]

__getattr__, __dir__ = export_lazily(__name__, {"rows_of": "counter"})
