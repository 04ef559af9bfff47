"""The command `check-attack`, which prints one line per rule."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from rich.console import Console

from advseg_bench.errors import SpecError, expected
from advseg_bench.testing.case import Case, find_case
from advseg_bench.testing.contract import RULES, Trial


def run(name: str, loss: str | None, settings: Iterable[str], device: str, console: Console) -> bool:
    """Check an attack against the contract and print the verdict of each rule.

    Returns:
        Whether the attack violates no rule.

    Raises:
        UserError: The attack cannot be built.
    """
    case = find_case(name, loss=loss, settings=read_settings(settings), device=device)
    for line in describe(case):
        _print_line(console, line)
    trial = Trial(case)
    verdicts = []
    for rule in RULES:
        outcome = trial.ask(rule)
        verdicts.append(outcome.verdict)
        _print_line(console, f"{outcome.verdict:<15} {rule.name:<12} {outcome.message}", outcome.verdict)
    counts = [f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts)]
    _print_line(console, f"{len(RULES)} rules: {', '.join(counts)}.")
    return not {"FAILED", "not checked"} & set(verdicts)


def describe(case: Case) -> list[str]:
    """Return lines that describe what is tested."""
    tasks = (f"{kind} ({case.losses[kind]})" if case.losses[kind] else kind for kind in case.kinds)
    axes = ", ".join(f"{dims}-D" for dims in sorted(case.traits.dims))
    lines = [f"{case.name}: {', '.join(tasks)}; {', '.join(case.traits.norms)}; {axes}"]
    return lines + [f"left out        {kind}: {reason}" for kind, reason in case.left_out.items()]


def read_settings(pairs: Iterable[str]) -> dict[str, Any]:
    """Parse settings such as "steps=10"; a value is JSON, or else text.

    Raises:
        SpecError: An equals sign is missing, or a key occurs twice.
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise SpecError(expected("--settings", "key=value, such as steps=10", pair))
        if key.strip() in settings:
            raise SpecError(f"--settings: expected each key once, got {key.strip()!r} twice. Remove one.")
        try:
            settings[key.strip()] = json.loads(text)
        except ValueError:
            settings[key.strip()] = text.strip()
    return settings


def _print_line(console: Console, line: str, verdict: str = "") -> None:
    style = "red" if verdict == "FAILED" else None
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)
