"""What every attack must keep, as tests for its author, and segmenters whose strongest attack is known exactly.

Nothing is imported before it is used: pytest loads this package at every start, through the plug-in beside it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from advseg_bench.testing.case import Case, find_case
    from advseg_bench.testing.contract import RULES, AttackContract, Outcome, Rule, Trial, check_attack
    from advseg_bench.testing.segmenters import LinearSegmenter
    from advseg_bench.testing.violations import ContractViolation, NotApplicable
    from advseg_bench.types import Claims

_HOMES = {
    "AttackContract": "testing.contract",
    "Case": "testing.case",
    "Claims": "types",
    "ContractViolation": "testing.violations",
    "LinearSegmenter": "testing.segmenters",
    "NotApplicable": "testing.violations",
    "Outcome": "testing.contract",
    "RULES": "testing.contract",
    "Rule": "testing.contract",
    "Trial": "testing.contract",
    "check_attack": "testing.contract",
    "find_case": "testing.case",
}

__all__ = [
    "RULES",
    "AttackContract",
    "Case",
    "Claims",
    "ContractViolation",
    "LinearSegmenter",
    "NotApplicable",
    "Outcome",
    "Rule",
    "Trial",
    "check_attack",
    "find_case",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name in _HOMES:
        return getattr(import_module(f"advseg_bench.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'advseg_bench.testing' has no attribute {name!r}")
