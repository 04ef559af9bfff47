"""What `prepare = "fold+lean"` means: the steps that make a copy of a model cheaper to attack, read and checked."""

from __future__ import annotations

from collections.abc import Sequence

from advseg_bench.errors import SpecError, expected, unknown

STEPS: tuple[str, ...] = ("fold", "lean", "channels_last", "bfloat16", "float16", "compile", "cuda_graph")
"""What `models.prepare` can do to a model, in the order in which it is done."""

_CLASHES = (("bfloat16", "float16"), ("lean", "compile"), ("compile", "cuda_graph"))


def read_steps(text: str) -> tuple[str, ...]:
    """Read "fold+lean"; "raw" is no step at all. Raises: SpecError."""
    return () if text == "raw" else check_steps(text.split("+"))


def check_steps(steps: Sequence[str]) -> tuple[str, ...]:
    """Return steps in the order in which they are done. Raises: SpecError: unknown, twice, or not together."""
    for name in steps:
        if name not in STEPS:
            raise SpecError(unknown("prepare", "step", name, STEPS))
    if len(set(steps)) != len(steps):
        raise SpecError(expected("prepare", "each step once", "+".join(steps)))
    for pair in _CLASHES:
        if set(pair) <= set(steps):
            raise SpecError(expected("prepare", f"{pair[0]!r} or {pair[1]!r}", "+".join(steps), "Remove one."))
    return tuple(sorted(steps, key=STEPS.index))
