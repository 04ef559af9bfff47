"""The claims page: for each claim and data set, the estimate, the test, the verdict and a quotable sentence."""

from __future__ import annotations

from collections.abc import Sequence

from advseg_bench.claims import ALPHA, PROPERTIES, Claim, associate, compare_orders, cross
from advseg_bench.claims.wording import show_difference, show_p
from advseg_bench.report.claims_figures import make_association_figure, make_crossing_figure, make_finding_figure
from advseg_bench.report.claims_tables import (
    make_association_table,
    make_crossing_table,
    make_finding_table,
    make_released_table,
)
from advseg_bench.report.document import Block, Document, Section, Text, show_plural, show_radius
from advseg_bench.report.verdicts import Judged, make_verdicts

METHOD = (
    "The unit is the subject: the score of an image is the mean of its repeats, the score of a subject is the mean of "
    "its images, and tests and intervals are over subjects. Intervals are from a studentised bootstrap and need at "
    "least five subjects. p values are two-sided and from the sign-flip test of the mean (exact up to 17 subjects); "
    f"the level is {ALPHA:g}. Where one of several tests suffices for a verdict, p is adjusted by Holm's method. "
    "Undecided: not significant. Undecidable: there are so few subjects or models that no data can be significant. "
    "There is no correction for testing several claims.",
    "Vulnerability is the drop of Dice beyond that under noise of equal L_inf norm, not the score under attack.",
)


def compose_claims(judged: Sequence[Judged]) -> Document:
    """Compose the claims page of the runs that `judge_runs` judged."""
    facts = [("Claims of", "Wang and Xu, ISBI 2023, arXiv 2401.11224")]
    for each in judged:
        about = each.evidence.run.about
        parts = [show_plural(about.data.images, "image")]
        if about.data.subjects and not about.data.by_image:
            parts.append(show_plural(about.data.subjects, "subject"))
        parts += [show_plural(len(each.evidence.models), "model")]
        known = each.evidence.eps
        eps = "no L_inf attack" if known is None else f"eps {show_radius(known, width=about.data.width)}"
        facts.append((f"Data {each.label}", f"{', '.join(parts)}, {eps}; suite {about.suite.name}"))
    sections = [Section("verdicts", "Verdicts", (*make_verdicts(judged), Text(METHOD)))]
    for i in range(len(judged[0].claims)):
        claim = judged[0].claims[i]
        blocks: list[Block] = [Text((f"Question: {claim.question}",))]
        for each in judged:
            blocks += _show_claim(each, each.claims[i])
        sections.append(Section(claim.name, f"Claim {i + 1}: {claim.statement}", tuple(blocks)))
    tables = tuple(make_released_table(f"released{each.suffix}", each.label, each.evidence) for each in judged)
    sections.append(Section("released", "Scores as in the study's code", tuple(t for t in tables if t is not None)))
    shown = tuple(section for section in sections if section.blocks)
    return Document("Claims of arXiv 2401.11224", tuple(facts), _warn(judged), shown)


def _warn(judged: Sequence[Judged]) -> tuple[str, ...]:
    """Return the cautions to show before the verdicts."""
    warnings = []
    for each in judged:
        run = each.evidence.run
        if run.about.suite.note:
            warnings.append(f"{each.label}: {run.about.suite.note}")
        if run.missing:
            warnings.append(f"{each.label}: {run.missing:,} of {run.planned:,} results are missing.")
        unchanged, there = each.evidence.count_unchanged()
        if unchanged:
            warnings.append(
                f"{each.label}: {unchanged:,} of {there:,} results of FGSM equal the clean image, as happens where the "
                "gradient vanishes. These images enter no comparison, so the others may not be representative."
            )
        if weak := each.evidence.list_weak_models():
            warnings.append(
                f"{each.label}: the mean clean Dice of {', '.join(weak)} is under {run.scoring.dice_threshold:g}. Such "
                "a model has little Dice to lose, so the verdicts are weak evidence."
            )
    return tuple(warnings)


def _show_claim(each: Judged, claim: Claim) -> list[Block]:
    """Show the answer of one run to one claim."""
    blocks: list[Block] = [Text((claim.answer,))]
    if claim.verdict is None:
        return blocks
    name = f"{claim.name}{each.suffix}"
    if claim.findings:
        blocks.append(make_finding_figure(name, each.label, claim))
        blocks.append(make_finding_table(name, each.label, claim))
    if claim.name == "size":
        found = [association for what in PROPERTIES if len((association := associate(each.evidence, what)).models) > 1]
        blocks.append(make_association_figure(f"{name}_models", each.label, found))
        blocks.append(make_association_table(f"{name}_models", each.label, found))
    if claim.name == "bce":
        blocks += _show_crossing(each, f"{name}_crossing")
    return blocks


def _show_crossing(each: Judged, name: str) -> list[Block]:
    """Show the two losses under each argument order and step form."""
    crossings, width = cross(each.evidence), each.evidence.run.about.data.width
    if len(crossings) < 2:
        return []
    blocks: list[Block] = [
        make_crossing_figure(name, each.label, crossings, each.evidence.training_loss, width),
        make_crossing_table(name, each.label, crossings, each.evidence.training_loss, width),
    ]
    artefact = compare_orders(each.evidence)
    if artefact is not None:
        blocks.insert(
            0,
            Text(
                (
                    f"Swapping the arguments of both losses changes BCE's advantage over "
                    f"{each.evidence.training_loss} by {show_difference(artefact)} with the additive step; "
                    f"p = {show_p(artefact.p)}.",
                )
            ),
        )
    return blocks
