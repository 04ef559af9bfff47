"""A robustness benchmark for medical image segmentation models and the attacks on them.

The public names are imported when they are first used, so that importing the package loads no library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from advseg_bench import attacks, geometry, losses, metrics, stats, testing
    from advseg_bench.attacks.function import attack
    from advseg_bench.benchmark import run
    from advseg_bench.cells import Cell, plan
    from advseg_bench.claims import Claim, judge_claims
    from advseg_bench.results import Run
    from advseg_bench.suite import Suite, list_suites
    from advseg_bench.types import Attack, Batch, Bounds, Budget, Task

    __version__: str

__all__ = [
    "Attack",
    "Batch",
    "Bounds",
    "Budget",
    "Cell",
    "Claim",
    "Run",
    "Suite",
    "Task",
    "attack",
    "attacks",
    "geometry",
    "judge_claims",
    "list_suites",
    "losses",
    "metrics",
    "plan",
    "run",
    "stats",
    "testing",
]

_HOMES = {
    "Attack": "types",
    "Batch": "types",
    "Bounds": "types",
    "Budget": "types",
    "Cell": "cells",
    "Claim": "claims",
    "Run": "results",
    "Suite": "suite",
    "Task": "types",
    "attack": "attacks.function",
    "judge_claims": "claims",
    "list_suites": "suite",
    "plan": "cells",
    "run": "benchmark",
}


def __getattr__(name: str) -> Any:
    """Import a public name, or read the version, when it is first asked for."""
    if name in _HOMES:
        return getattr(import_module(f"advseg_bench.{_HOMES[name]}"), name)
    if name in __all__:
        return import_module(f"advseg_bench.{name}")
    if name == "__version__":
        return import_module("importlib.metadata").version("advseg-bench")
    raise AttributeError(f"module 'advseg_bench' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names."""
    return sorted([*__all__, "__version__"])
