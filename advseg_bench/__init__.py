"""A robustness benchmark for medical image segmentation models and the attacks on them.

Public names are imported on first use, so importing the package loads no library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from advseg_bench.lazy import export_lazily

if TYPE_CHECKING:
    from advseg_bench import attacks, geometry, losses, metrics, stats, testing
    from advseg_bench.attacks.function import attack
    from advseg_bench.batches import Batch
    from advseg_bench.checks.outputs import as_segmenter
    from advseg_bench.claims import Claim, judge_claims
    from advseg_bench.models.inference import SlidingWindow
    from advseg_bench.protocols import Attack
    from advseg_bench.registry import catalogue
    from advseg_bench.results.run import Run
    from advseg_bench.running.benchmark import run
    from advseg_bench.running.evaluate import evaluate
    from advseg_bench.running.merge import merge
    from advseg_bench.suite.cells import Cell, plan
    from advseg_bench.suite.layers import list_suites
    from advseg_bench.suite.suite import Suite
    from advseg_bench.types import Bounds, Budget, Task, Traits

    __version__: str

__all__ = [
    "Attack",
    "Batch",
    "Bounds",
    "Budget",
    "Cell",
    "Claim",
    "Run",
    "SlidingWindow",
    "Suite",
    "Task",
    "Traits",
    "as_segmenter",
    "attack",
    "attacks",
    "catalogue",
    "defences",
    "evaluate",
    "geometry",
    "judge_claims",
    "list_suites",
    "losses",
    "merge",
    "metrics",
    "plan",
    "run",
    "stats",
    "testing",
]

_HOMES = {
    "Attack": "protocols",
    "Batch": "batches",
    "Bounds": "types",
    "Budget": "types",
    "Cell": "suite.cells",
    "Claim": "claims",
    "Run": "results.run",
    "SlidingWindow": "models.inference",
    "Suite": "suite.suite",
    "Task": "types",
    "Traits": "types",
    "as_segmenter": "checks.outputs",
    "attack": "attacks.function",
    "attacks": "",
    "defences": "",
    "catalogue": "registry",
    "evaluate": "running.evaluate",
    "geometry": "",
    "judge_claims": "claims",
    "list_suites": "suite.layers",
    "losses": "",
    "merge": "running.merge",
    "metrics": "",
    "plan": "suite.cells",
    "run": "running.benchmark",
    "stats": "",
    "testing": "",
}

_get, _list = export_lazily(__name__, _HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name, or read the version, on first access."""
    if name == "__version__":
        from importlib.metadata import version

        return version("advseg-bench")
    return _get(name)


def __dir__() -> list[str]:
    """List the public names."""
    return sorted([*_list(), "__version__"])
