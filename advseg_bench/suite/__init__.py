"""What is to be run? Suite files, their specifications, shipped suites, and the cells of a suite with their cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from advseg_bench.lazy import export_lazily

if TYPE_CHECKING:
    from advseg_bench.suite.cells import Cell, plan
    from advseg_bench.suite.layers import list_suites
    from advseg_bench.suite.suite import Suite

__all__ = ["Cell", "Suite", "list_suites", "plan"]

__getattr__, __dir__ = export_lazily(
    __name__, {"Cell": "cells", "Suite": "suite", "list_suites": "layers", "plan": "cells"}
)
