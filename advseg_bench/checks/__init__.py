"""Is a result or a model valid? Checks shared by the harness, cross-checks, the contract and transforms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from advseg_bench.lazy import export_lazily

if TYPE_CHECKING:
    from advseg_bench.checks.logits import probe
    from advseg_bench.checks.outputs import as_segmenter
    from advseg_bench.checks.results import BUDGET_TOLERANCE, Checked, check_form, inspect, name_of, traits_of

__all__ = ["BUDGET_TOLERANCE", "Checked", "as_segmenter", "check_form", "inspect", "name_of", "probe", "traits_of"]

__getattr__, __dir__ = export_lazily(
    __name__,
    {
        "BUDGET_TOLERANCE": "results",
        "Checked": "results",
        "as_segmenter": "outputs",
        "check_form": "results",
        "inspect": "results",
        "name_of": "results",
        "probe": "logits",
        "traits_of": "results",
    },
)
