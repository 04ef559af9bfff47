"""The certificate of a comparison as JSON: plan, library versions, seeds and every finding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from advseg_bench.crosscheck.grid import Pair
from advseg_bench.crosscheck.plan import Plan, Subject
from advseg_bench.crosscheck.verdict import SOUND, Verdict
from advseg_bench.models.prepare import prepare_checked
from advseg_bench.registry import environment
from advseg_bench.registry.preparation import read_steps
from advseg_bench.suite.specs import Compute

SCHEMA = 1


def certify(plan: Plan, subjects: Sequence[Subject], pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return the certificate as JSON: plan, library versions, seeds, networks and every finding."""
    libraries = environment.describe_libraries() | environment.describe_machine()
    toolkits = environment.describe_packages(sorted({_name_package(name) for name in plan.others}))
    return {
        "schema": SCHEMA,
        "plan": {name: getattr(plan, name) for name in plan.__slots__} | {"others": dict(plan.others)},
        "environment": libraries | toolkits | {"threads": torch.get_num_threads()},
        "subjects": [
            {"name": s.name, "trained": s.trained, "images": list(s.batch.images)}
            | {"spec": s.spec.model_dump(mode="json") if s.spec else None, "prepared": _check_prepared(s)}
            for s in subjects
        ],
        "verdicts": count_verdicts(pairs),
        "findings": [_describe(pair) for pair in pairs],
    }


def _check_prepared(subject: Subject) -> dict[str, Any]:
    """Compare the copy that a run passes to attacks with the model that is compared here."""
    return prepare_checked(subject.model, subject.batch.x, read_steps(Compute().prepare)).as_record()


def count_verdicts(pairs: Sequence[Pair]) -> dict[str, dict[Verdict, int]]:
    """Return the number of points per implementation and verdict; verdicts without a point are omitted."""
    counts: dict[str, dict[Verdict, int]] = {}
    for pair in pairs:
        mine = counts.setdefault(pair.implementation, {})
        mine[pair.finding.verdict] = mine.get(pair.finding.verdict, 0) + 1
    return counts


def is_sound(pairs: Sequence[Pair]) -> bool:
    """Return whether every implementation agrees with the reference, up to rounding and conventions."""
    return all(pair.finding.verdict in SOUND for pair in pairs)


def _name_package(implementation: str) -> str:
    """Return the package that an implementation belongs to."""
    return implementation.partition(":")[0].removeprefix("advseg_adapters.").split(".")[0]


def _describe(pair: Pair) -> dict[str, Any]:
    """One finding as JSON."""
    finding, steps = pair.finding, pair.finding.steps
    return {
        "implementation": pair.implementation,
        **asdict(pair.place),
        "verdict": finding.verdict,
        "reason": finding.reason,
        "free_running": asdict(finding.difference) if finding.difference else None,
        "step_wise": steps
        and {
            "values": steps.values,
            "disagree": steps.disagree,
            "explained_by_rounding": steps.explained,
            "real": steps.disagree - steps.explained,
            "opposite": steps.opposite,
            "step_size": None if math.isnan(steps.size) else steps.size,
        },
        "reference": asdict(finding.ours) if finding.ours else None,
        "other": asdict(finding.theirs) if finding.theirs else None,
        "cost": dict(pair.cost),
    }
