"""Does an attack keep the rules? The contract as tests for its author; segmenters with a known strongest attack.

Nothing is imported before it is used: pytest loads this package at every start, through the plug-in beside it.
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
