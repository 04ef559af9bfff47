"""The claims page: for each claim and each data set the estimate, the test, the verdict and a sentence to quote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from advseg_bench.cells import show_eps
from advseg_bench.claims import (
    ALPHA,
    PROPERTIES,
    Association,
    Claim,
    Crossing,
    Evidence,
    Finding,
    associate,
    compare_orders,
    cross,
    judge_claims,
)
from advseg_bench.claims.wording import show_difference, show_p
from advseg_bench.report.claims_figures import FORMS, make_association_figure, make_crossing_figure, make_finding_figure
from advseg_bench.report.document import (
    NOTHING,
    Block,
    Column,
    Document,
    Section,
    Table,
    Text,
    show_number,
    show_plural,
)
from advseg_bench.results import Run
from advseg_bench.stats import Coefficient, Interval, PairedTest

METHOD = (
    "The unit is the subject: an image's score is the mean of its draws, a subject's the mean of its images, and tests "
    "and intervals are over subjects. Intervals are studentised bootstrap, from five subjects on. p is of the "
    f"sign-flip test of the mean (exact up to 17 subjects), two-sided, against {ALPHA:g}; where one of several lines "
    "would do for a verdict, after Holm's correction. Undecided: not significant. Undecidable: so few subjects or "
    "models that no data could have been significant. Each claim is a question of its own: none is corrected for the "
    "others.",
    "Vulnerability is the drop of Dice beyond that under noise of equal L_inf norm, not the score under attack.",
)


@dataclass(frozen=True, slots=True)
class _Judged:
    """One run with everything that was found in it; the suffix tells its files from those of other runs."""

    label: str
    suffix: str
    evidence: Evidence
    claims: tuple[Claim, ...]


def compose_claims(runs: Sequence[Run]) -> Document:
    """Compose the claims page of one or more runs, each on a data set of its own."""
    judged = tuple(_judge(run, runs) for run in runs)
    facts = [("Claims of", "Wang and Xu, ISBI 2023, arXiv 2401.11224")]
    for each in judged:
        run, data = each.evidence.run, each.evidence.run.info["data"]
        subjects = data.get("subjects", {}).get("test")
        parts = [show_plural(data["splits"]["test"], "image")]
        parts += [show_plural(subjects, "subject")] if subjects else []
        parts += [show_plural(len(each.evidence.models), "model")]
        eps = f"eps {show_eps(each.evidence.eps)}" if each.evidence.eps is not None else "no L_inf attack"
        facts.append((f"Data {each.label}", f"{', '.join(parts)}, {eps}; suite {run.info['suite']['name']}"))
    sections = [Section("verdicts", "Verdicts", (*make_verdicts(judged), Text(METHOD)))]
    for i in range(len(judged[0].claims)):
        claim = judged[0].claims[i]
        blocks: list[Block] = [Text((f"Question: {claim.question}",))]
        for each in judged:
            blocks += _show_claim(each, each.claims[i])
        sections.append(Section(claim.name, f"Claim {i + 1}: {claim.statement}", tuple(blocks)))
    return Document("Claims of arXiv 2401.11224", tuple(facts), _warn(judged), tuple(sections))


def summarise_claims(run: Run) -> tuple[Block, ...]:
    """Return the verdicts on one run, for its report; nothing if no claim could be asked."""
    judged = _judge(run, (run,))
    return make_verdicts((judged,)) if any(claim.verdict for claim in judged.claims) else ()


def make_verdicts(judged: Sequence[_Judged]) -> tuple[Block, ...]:
    """Make the table of verdicts and the list of sentences to quote."""
    lines = [(i + 1, claim, each) for each in judged for i, claim in enumerate(each.claims)]
    tests = [claim.estimate for _, claim, _ in lines]
    intervals = [test.interval if test else None for test in tests]
    data = pl.DataFrame(
        {
            "claim": [claim.name for _, claim, _ in lines],
            "data": [each.label for _, _, each in lines],
            "verdict": [claim.verdict for _, claim, _ in lines],
            "estimate": [test and test.mean for test in tests],
            "lower": [ends and ends.lower for ends in intervals],
            "upper": [ends and ends.upper for ends in intervals],
            "p": [test and test.p for test in tests],
            "smallest_p": [test and test.smallest_p for test in tests],
            "answer": [claim.answer for _, claim, _ in lines],
        },
        schema_overrides=dict.fromkeys(("estimate", "lower", "upper", "p", "smallest_p"), pl.Float64)
        | {"verdict": pl.String},
    )
    columns = [
        Column("", tuple(str(number) for number, _, _ in lines)),
        Column("Claim", tuple(claim.statement for _, claim, _ in lines), number=False),
        Column("Verdict", tuple(claim.verdict or "not asked" for _, claim, _ in lines), number=False),
    ]
    if len(judged) > 1:
        columns.insert(2, Column("Data", tuple(each.label for _, _, each in lines), number=False))
    caption = "What each verdict rests on is in the sentences below, which may be quoted."
    return (
        Table("verdicts", "Verdicts", caption, tuple(columns), data),
        Text(tuple(claim.answer for _, claim, _ in lines), bullets=True),
    )


def _judge(run: Run, among: Sequence[Run]) -> _Judged:
    """Judge a run; its label tells it from other runs of the same data set."""
    name = str(run.info["data"]["name"])
    alike = sum(other.info["data"]["name"] == name for other in among) > 1
    suffix = f"_{among.index(run) + 1}" if len(among) > 1 else ""
    return _Judged(f"{name} ({run.path.name})" if alike else name, suffix, Evidence(run), judge_claims(run))


def _warn(judged: Sequence[_Judged]) -> tuple[str, ...]:
    """What a reader must know before any verdict."""
    warnings = []
    for each in judged:
        run = each.evidence.run
        if note := run.info["suite"].get("note"):
            warnings.append(f"{each.label}: {note}")
        if run.missing:
            warnings.append(f"{each.label}: {run.missing:,} of {run.planned:,} results are missing.")
    return tuple(warnings)


def _show_claim(each: _Judged, claim: Claim) -> list[Block]:
    """What one run says of one claim."""
    blocks: list[Block] = [Text((claim.answer,))]
    if claim.verdict is None:
        return blocks
    name = f"{claim.name}{each.suffix}"
    if claim.findings:
        blocks.append(make_finding_figure(name, each.label, claim))
        blocks.append(make_finding_table(name, each.label, claim.findings))
    if claim.name == "size":
        found = [association for what in PROPERTIES if len((association := associate(each.evidence, what)).models) > 1]
        blocks.append(make_association_figure(f"{name}_models", each.label, found))
        blocks.append(make_association_table(f"{name}_models", each.label, found))
    if claim.name == "bce":
        blocks += _show_crossing(each, f"{name}_crossing")
    return blocks


def _show_crossing(each: _Judged, name: str) -> list[Block]:
    """The two losses under each argument order and step form."""
    crossings = cross(each.evidence)
    if len(crossings) < 2:
        return []
    blocks: list[Block] = [
        make_crossing_figure(name, each.label, crossings, each.evidence.training_loss),
        make_crossing_table(name, each.label, crossings, each.evidence.training_loss),
    ]
    artefact = compare_orders(each.evidence)
    if artefact is not None:
        blocks.insert(
            0,
            Text(
                (
                    f"Swapping the arguments of both losses changes BCE's lead over {each.evidence.training_loss} by "
                    f"{show_difference(artefact)} at an additive step; p = {show_p(artefact.p)}.",
                )
            ),
        )
    return blocks


def make_finding_table(name: str, data: str, findings: Sequence[Finding]) -> Table:
    """Make the table of the tests behind a claim."""
    tests = [finding.test for finding in findings]
    columns = (
        Column("What", tuple(finding.what for finding in findings), number=False),
        *_show_tests(tests),
        Column("p (Holm)", tuple(show_p(finding.adjusted_p) for finding in findings)),
        Column("Line", tuple(finding.verdict for finding in findings), number=False),
    )
    caption = (
        "Differences in the drop of mean Dice, above 0 where the claim is right. d_z: mean over standard deviation of "
        "the subjects' differences. Smallest p: what no data of so many subjects could have undercut. Line: what it "
        "says, after Holm's correction over the lines; a claim that needs every line is supported without it."
    )
    return Table(name, f"Tests, {data}", caption, columns, _frame(tests, what=[f.what for f in findings]))


def make_association_table(name: str, data: str, found: Sequence[Association]) -> Table:
    """Make the table of how properties of the models go with attack success."""
    linear = [each.correlation.pearson for each in found]
    ranks = [each.correlation.spearman for each in found]
    titles = {
        "parameters": "log parameters",
        "flops": "log operations of a forward pass",
        "receptive_field_px": "effective receptive field",
        "clean Dice": "clean Dice",
    }
    columns = (
        Column("Property", tuple(titles[each.what] for each in found), number=False),
        Column("Models", tuple(str(len(each.models)) for each in found)),
        Column("r", tuple(show_number(c.value if c else None, 2) for c in linear)),
        Column("95 % interval", tuple(_show_interval(c, 2) for c in linear), number=False),
        Column("Detectable |r|", tuple(show_number(c.smallest_detectable if c else None, 2) for c in linear)),
        Column("Rank correlation", tuple(show_number(c.value if c else None, 2) for c in ranks)),
        Column("95 % interval", tuple(_show_interval(c, 2) for c in ranks), number=False),
        Column("p", tuple(show_p(c.p if c else None) for c in ranks)),
        Column("Smallest p", tuple(show_p(c.smallest_p if c else None) for c in ranks)),
        Column("None?", tuple("yes" if each.equivalence.equivalent else "not shown" for each in found), number=False),
    )
    caption = (
        "With Diff, the share of the clean Dice that is lost; one point is a model. Detectable: the smallest |r| of so "
        "many models that differs from chance at 5 %. p: of the rank correlation, exact up to 8 models. None: whether "
        f"|r| is shown to be under {found[0].equivalence.margin if found else 0.3:g} (two one-sided tests)."
    )
    frame = pl.DataFrame(
        {
            "property": [each.what for each in found],
            "models": [len(each.models) for each in found],
            "pearson": [c and c.value for c in linear],
            "pearson_lower": [c and c.lower for c in linear],
            "pearson_upper": [c and c.upper for c in linear],
            "spearman": [c and c.value for c in ranks],
            "spearman_p": [c and c.p for c in ranks],
            "equivalence_p": [each.equivalence.p for each in found],
        },
        infer_schema_length=None,
    )
    return Table(name, f"Properties of the models and attack success, {data}", caption, columns, frame)


def make_crossing_table(name: str, data: str, crossings: Sequence[Crossing], loss: str) -> Table:
    """Make the table of BCE against the training loss under each argument order and step form."""
    tests = [crossing.finding.test for crossing in crossings]
    columns = (
        Column("Argument order", tuple(f"as {crossing.order}" for crossing in crossings), number=False),
        Column("Step", tuple(FORMS[crossing.form] for crossing in crossings), number=False),
        Column("L_inf x 255, bce", tuple(_show_grey(crossing.linf[0]) for crossing in crossings)),
        Column(f"L_inf x 255, {loss}", tuple(_show_grey(crossing.linf[1]) for crossing in crossings)),
        Column("Drop, bce", tuple(show_number(crossing.bce.mean) for crossing in crossings)),
        Column(f"Drop, {loss}", tuple(show_number(crossing.other.mean) for crossing in crossings)),
        *_show_tests(tests),
        Column("p (Holm)", tuple(show_p(crossing.finding.adjusted_p) for crossing in crossings)),
    )
    caption = (
        "Mean over models. L_inf: mean of the measured largest change of an image. The scaled blend goes as far as the "
        "additive step, image by image; the blend as released goes further and is no fair rival. Difference: drop "
        f"under BCE less drop under {loss}."
    )
    extra: dict[str, Sequence[object]] = {
        "order": [c.order for c in crossings],
        "form": [c.form for c in crossings],
        "linf_bce": [c.linf[0] for c in crossings],
        "linf_other": [c.linf[1] for c in crossings],
        "drop_bce": [c.bce.mean for c in crossings],
        "drop_other": [c.other.mean for c in crossings],
    }
    return Table(name, f"Argument order and step form, {data}", caption, columns, _frame(tests, **extra))


def _show_tests(tests: Sequence[PairedTest]) -> tuple[Column, ...]:
    """The columns that every table of tests has."""
    return (
        Column("Difference", tuple(show_number(test.mean) for test in tests)),
        Column(
            "95 % interval",
            tuple(_show_interval(test.interval) for test in tests),
            number=False,
        ),
        Column("d_z", tuple(show_number(test.d_z, 2) for test in tests)),
        Column("Subjects", tuple(str(test.n) for test in tests)),
        Column("p", tuple(show_p(test.p) for test in tests)),
        Column("Smallest p", tuple(show_p(test.smallest_p) for test in tests)),
    )


def _frame(tests: Sequence[PairedTest], **extra: Sequence[object]) -> pl.DataFrame:
    """The unrounded numbers of tests."""
    intervals = [test.interval for test in tests]
    return pl.DataFrame(
        {
            **extra,
            "difference": [test.mean for test in tests],
            "lower": [ends and ends.lower for ends in intervals],
            "upper": [ends and ends.upper for ends in intervals],
            "d_z": [test.d_z for test in tests],
            "rank_biserial": [test.rank_biserial for test in tests],
            "subjects": [test.n for test in tests],
            "p": [test.p for test in tests],
            "smallest_p": [test.smallest_p for test in tests],
            "method": [test.method for test in tests],
        },
        schema_overrides=dict.fromkeys(("lower", "upper", "d_z", "rank_biserial", "p", "difference"), pl.Float64),
    )


def _show_interval(interval: Interval | Coefficient | None, digits: int = 3) -> str:
    """The ends of an interval, if there is one."""
    if interval is None or interval.lower is None or interval.upper is None:
        return NOTHING
    return f"{show_number(interval.lower, digits)} to {show_number(interval.upper, digits)}"


def _show_grey(value: float | None) -> str:
    """A norm in grey levels of 255."""
    return show_number(None if value is None else 255 * value, 2)
