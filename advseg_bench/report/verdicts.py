"""The verdicts on the study's claims: in full for the claims page, and in short for a report and a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from advseg_bench.claims import Claim, Evidence, Shortage, judge
from advseg_bench.report.document import Block, Column, Table, Text, show_plural
from advseg_bench.results.run import Run


@dataclass(frozen=True, slots=True)
class Judged:
    """One run with its evidence and the verdicts on the claims.

    Attributes:
        label: Name of its data set, with the run where several have the same.
        suffix: Suffix of the names of its files, where several runs are reported.
        evidence: The results that the claims are judged by.
        claims: The claims with their verdicts.
    """

    label: str
    suffix: str
    evidence: Evidence
    claims: tuple[Claim, ...]

    @property
    def asked(self) -> bool:
        """Whether the run has the arms for at least one claim."""
        return any(claim.verdict for claim in self.claims)

    @property
    def shown(self) -> tuple[tuple[int, Claim], ...]:
        """The claims that data of this size can decide, with their numbers, for a summary.

        Empty if there are too few subjects and no other claim is supported or contradicted.
        """
        found = [(i, c) for i, c in enumerate(self.claims, 1) if c.verdict not in (None, "undecidable")]
        settled = any(claim.verdict != "undecided" for _, claim in found)
        too_few = any(claim.shortage and claim.shortage.noun == "subject" for claim in self.claims)
        return () if too_few and not settled else tuple(found)


def judge_evidence(run: Run, evidence: Evidence) -> Judged:
    """Judge the claims on one run by its evidence."""
    return _judge(run, 0, (run,), evidence)


def judge_runs(runs: Sequence[Run]) -> tuple[Judged, ...]:
    """Judge the claims on one or more runs, each by itself."""
    return tuple(_judge(run, i, runs, Evidence(run)) for i, run in enumerate(runs))


def make_verdicts(judged: Sequence[Judged]) -> tuple[Block, ...]:
    """Make the table of verdicts and the list of quotable answers."""
    lines = [(i, claim, each) for each in judged for i, claim in enumerate(each.claims, 1)]
    return (_make_table(lines, judged), Text(tuple(claim.answer for _, claim, _ in lines), bullets=True))


def summarise_claims(judged: Judged) -> tuple[Block, ...]:
    """Summarise the verdicts on one run for its report.

    Returns:
        The verdicts on the claims that the run can decide, and what the other claims need; empty if it has the arms for
        no claim.
    """
    if not judged.asked:
        return ()
    lines = [(i, claim, judged) for i, claim in judged.shown]
    answers = Text(tuple(claim.answer for _, claim, _ in lines), bullets=True)
    rest = describe_shortage(judged)
    return (
        *((_make_table(lines, (judged,)), answers) if lines else ()),
        *((Text((f"{rest} See claims.html.",)),) if rest else ()),
    )


def describe_shortage(judged: Judged) -> str:
    """Return a sentence on what a run lacks for the claims that it cannot decide; "" if it can decide all."""
    lacking: dict[Shortage, list[int]] = {}
    for i, claim in enumerate(judged.claims, 1):
        if claim.shortage:
            lacking.setdefault(claim.shortage, []).append(i)
    if lacking and not judged.shown:
        first = min(lacking, key=lambda shortage: shortage.noun != "subject")
        needed = show_plural(first.needed, first.noun)
        return f"The study's claims need at least {needed}; this run has {first.there:,}."
    parts = [
        f"{_number(claims)} at least {show_plural(shortage.needed, shortage.noun)} (this run has {shortage.there:,})"
        for shortage, claims in lacking.items()
    ]
    for i, claim in enumerate(judged.claims, 1):
        if claim.verdict is None:
            reason = claim.answer.removeprefix("Not asked: ").removesuffix(".")
            parts.append(f"claim {i} was not asked ({reason})")
    return f"Not decided: {'; '.join(parts)}." if parts else ""


def _number(claims: Sequence[int]) -> str:
    """Write the numbers of claims as the subject of a sentence, with "needs" or "need"."""
    if len(claims) == 1:
        return f"claim {claims[0]} needs"
    return f"claims {', '.join(map(str, claims[:-1]))} and {claims[-1]} need"


def _make_table(lines: Sequence[tuple[int, Claim, Judged]], judged: Sequence[Judged]) -> Table:
    """Make the table of verdicts; its CSV has every claim."""
    columns = [
        Column("", tuple(str(number) for number, _, _ in lines), number=False),
        Column("Verdict", tuple(claim.verdict or "not asked" for _, claim, _ in lines), number=False),
        Column("Claim", tuple(claim.statement for _, claim, _ in lines), number=False),
    ]
    if len(judged) > 1:
        columns.insert(2, Column("Data", tuple(each.label for _, _, each in lines), number=False))
    caption = "The sentences below give the numbers behind each verdict and can be quoted."
    return Table("verdicts", "Verdicts", caption, tuple(columns), _frame(judged))


def _frame(judged: Sequence[Judged]) -> pl.DataFrame:
    """Return the unrounded numbers of all claims."""
    lines = [(claim, each) for each in judged for claim in each.claims]
    tests = [claim.estimate for claim, _ in lines]
    intervals = [test.interval if test else None for test in tests]
    return pl.DataFrame(
        {
            "claim": [claim.name for claim, _ in lines],
            "data": [each.label for _, each in lines],
            "verdict": [claim.verdict for claim, _ in lines],
            "estimate": [test and test.mean for test in tests],
            "lower": [ends and ends.lower for ends in intervals],
            "upper": [ends and ends.upper for ends in intervals],
            "p": [claim.p for claim, _ in lines],
            "smallest_p": [test and test.smallest_p for test in tests],
            "answer": [claim.answer for claim, _ in lines],
        },
        schema_overrides=dict.fromkeys(("estimate", "lower", "upper", "p", "smallest_p"), pl.Float64)
        | {"verdict": pl.String},
    )


def _judge(run: Run, place: int, among: Sequence[Run], evidence: Evidence) -> Judged:
    """Judge a run; label and suffix distinguish it from other runs, even on the same data set."""
    name = run.about.data.title
    alike = [other for other in among if other.about.data.title == name]
    label = name
    if len(alike) > 1:
        folders = {other.path.name for other in alike if other.path}
        where = run.path.name if run.path and len(folders) == len(alike) else run.path or f"run {place + 1}"
        label = f"{name} ({where})"
    suffix = f"_{place + 1}" if len(among) > 1 else ""
    return Judged(label, suffix, evidence, judge(evidence))
