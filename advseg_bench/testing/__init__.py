"""Does an attack obey the contract? The contract as tests, and segmenters whose strongest attack is known exactly.

Everything is imported on first use, because pytest loads this package at every start for the plug-in in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from advseg_bench.lazy import export_lazily

if TYPE_CHECKING:
    from advseg_bench.testing.case import Case, find_case
    from advseg_bench.testing.contract import RULES, AttackContract, Outcome, Rule, Trial, check_attack
    from advseg_bench.testing.segmenters import LinearSegmenter
    from advseg_bench.testing.violations import ContractViolation, NotApplicable
    from advseg_bench.types import Traits

__all__ = [
    "RULES",
    "AttackContract",
    "Case",
    "ContractViolation",
    "LinearSegmenter",
    "NotApplicable",
    "Outcome",
    "Rule",
    "Traits",
    "Trial",
    "check_attack",
    "find_case",
]


__getattr__, __dir__ = export_lazily(
    __name__,
    {
        "AttackContract": "contract",
        "Case": "case",
        "Traits": "case",
        "ContractViolation": "violations",
        "LinearSegmenter": "segmenters",
        "NotApplicable": "violations",
        "Outcome": "contract",
        "RULES": "contract",
        "Rule": "contract",
        "Trial": "contract",
        "check_attack": "contract",
        "find_case": "case",
    },
)
