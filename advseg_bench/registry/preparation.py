"""Parses `prepare = "fold+lean"`: the steps that make a copy of a model cheaper to attack."""

from __future__ import annotations

from collections.abc import Sequence

from advseg_bench.errors import SpecError, expected, unknown

STEPS: tuple[str, ...] = ("fold", "lean", "channels_last", "bfloat16", "float16", "compile", "cuda_graph")
"""Preparation steps of `models.prepare`, in the order in which they are applied."""

_CLASHES = (("bfloat16", "float16"), ("lean", "compile"), ("compile", "cuda_graph"))


def read_steps(text: str) -> tuple[str, ...]:
    """Parse "fold+lean" into steps; "raw" means none. Raises: SpecError."""
    return () if text == "raw" else check_steps(text.split("+"))


def check_steps(steps: Sequence[str]) -> tuple[str, ...]:
    """Return steps in the order in which they are applied. Raises: SpecError."""
    for name in steps:
        if name not in STEPS:
            raise SpecError(unknown("prepare", "step", name, STEPS))
    if len(set(steps)) != len(steps):
        raise SpecError(expected("prepare", "each step once", "+".join(steps), "Remove one."))
    for pair in _CLASHES:
        if set(pair) <= set(steps):
            raise SpecError(expected("prepare", f"{pair[0]!r} or {pair[1]!r}", "+".join(steps), "Remove one."))
    return tuple(sorted(steps, key=STEPS.index))
