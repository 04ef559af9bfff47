"""Output of a comparison: table on the terminal, certificate, scripts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console

from advseg_bench.cache import write_json
from advseg_bench.crosscheck.certificate import certify, count_verdicts
from advseg_bench.crosscheck.example import save_example
from advseg_bench.crosscheck.grid import Pair
from advseg_bench.crosscheck.plan import Plan, Subject
from advseg_bench.crosscheck.verdict import SOUND
from advseg_bench.suite.cells import show_radii

EXAMPLES = 5
"""Maximum number of scripts: one per implementation and network, the first ones."""


def print_findings(pairs: Sequence[Pair], console: Console) -> None:
    """Print one line per implementation and verdict, then each distinct finding that rounding does not explain."""
    table = [["implementation", "verdict", "points", "pixels equal", "max diff", "loss", "Dice"]]
    for name, counts in count_verdicts(pairs).items():
        for verdict, count in counts.items():
            mine = [p.finding for p in pairs if p.implementation == name and p.finding.verdict == verdict]
            differences = [f.difference for f in mine if f.difference]
            effects = [(f.ours, f.theirs) for f in mine if f.ours and f.theirs]
            row = [name, verdict, str(count), "", "", "", ""]
            if differences:
                row[3] = f">= {min(d.identical for d in differences):.2%}"
                row[4] = f"{max(d.max_abs for d in differences):.2g}"
            if effects:
                row[5] = f"{_mean(t.gain - o.gain for o, t in effects):+.2g}"
                row[6] = f"{_mean(t.dice - o.dice for o, t in effects):+.2g}"
            table.append(row)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        console.print(line.rstrip(), soft_wrap=True, markup=False, highlight=False)
    console.print(
        "max diff in input units; loss increase and Dice: other minus reference, mean over points.",
        soft_wrap=True,
        highlight=False,
    )
    for pair, count in _distinct(pairs):
        place, finding = pair.place, pair.finding
        where = f"{place.subject}, {place.kind}, {place.loss}, {place.norm} {show_radii((place.eps,), place.norm)}"
        more = f" (and {count - 1} more points)" if count > 1 else ""
        line = f"{pair.implementation}: {finding.verdict}: {finding.reason}. First at {where}{more}"
        console.print(line, style=None if finding.verdict in SOUND else "red", markup=False, soft_wrap=True)


def write_findings(plan: Plan, subjects: Sequence[Subject], pairs: Sequence[Pair], out: Path) -> list[Path]:
    """Write certificate.json, and for real disagreements scripts that reproduce them.

    Returns:
        Paths of the certificate and of the scripts, in this order.
    """
    certificate = out / "certificate.json"
    out.mkdir(parents=True, exist_ok=True)
    write_json(certificate, certify(plan, subjects, pairs))
    of = {subject.name: subject for subject in subjects}
    seen: set[tuple[str, str]] = set()
    scripts: list[Path] = []
    for pair in pairs:
        key = (pair.implementation, pair.place.subject)
        if pair.case is None or key in seen or len(scripts) == EXAMPLES:
            continue
        seen.add(key)
        folder = out / "disagreements" / f"{len(scripts)}-{pair.implementation.replace(':', '-')}"
        scripts.append(save_example(pair, plan, of[pair.place.subject], folder))
    return [certificate, *scripts]


def _distinct(pairs: Sequence[Pair]) -> Iterator[tuple[Pair, int]]:
    """Yield findings that rounding does not explain: the first per implementation and cause, with their number."""
    groups: dict[tuple[str, str, str], list[Pair]] = {}
    for pair in pairs:
        if pair.finding.verdict in ("identical", "equal up to rounding"):
            continue
        cause = pair.finding.reason if pair.finding.verdict in SOUND else ""
        groups.setdefault((pair.implementation, pair.finding.verdict, cause), []).append(pair)
    for group in groups.values():
        yield group[0], len(group)


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)
