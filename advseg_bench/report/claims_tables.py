"""The tables of the claims page."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from advseg_bench.claims import Association, Claim, Crossing, Evidence, make_arm
from advseg_bench.claims.wording import show_p
from advseg_bench.report.claims_figures import FORMS
from advseg_bench.report.document import NOTHING, Column, Table, show_grey, show_number, thin
from advseg_bench.stats import Coefficient, Interval, PairedTest


def make_finding_table(name: str, data: str, claim: Claim) -> Table:
    """Make the table of the tests behind a claim."""
    findings = claim.findings
    tests = [finding.test for finding in findings]
    columns = (
        Column("Comparison", tuple(finding.what for finding in findings), number=False),
        *_show_tests(tests),
        Column("p (Holm)", tuple(show_p(finding.adjusted_p) for finding in findings)),
        Column("Verdict", tuple(finding.verdict for finding in findings), number=False),
    )
    caption = (
        f"Differences in the {claim.measure}, above 0 where the claim holds. d_z: mean divided by standard deviation "
        "of the subjects' differences. Smallest p: the smallest p value that any data of so many subjects can give. "
        "Verdict: of this comparison alone, after Holm's correction; without correction where the claim needs every "
        "comparison and this one supports it."
    )
    return Table(name, f"Tests, {data}", caption, columns, _frame(tests, what=[f.what for f in findings]))


def make_association_table(name: str, data: str, found: Sequence[Association]) -> Table:
    """Make the table of correlations of model properties with attack success."""
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
        Column(
            "Negligible?", tuple("yes" if each.equivalence.equivalent else "not shown" for each in found), number=False
        ),
    )
    caption = (
        "Correlation with Diff, the share of the clean Dice that is lost; each model is one point. Detectable |r|: the "
        "smallest |r| that is significant at 5 % with so many models. p: of the rank correlation, exact up to 8 "
        f"models. Negligible: whether |r| is shown to be under {found[0].equivalence.margin if found else 0.3:g} (two "
        "one-sided tests)."
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


def make_crossing_table(name: str, data: str, crossings: Sequence[Crossing], loss: str, width: float = 1.0) -> Table:
    """Make the table of BCE against the training loss under each argument order and step form."""
    tests = [crossing.finding.test for crossing in crossings]
    unit = "" if width == 1 else f" / {width:g}"
    columns = (
        Column("Argument order", tuple(f"as {crossing.order}" for crossing in crossings), number=False),
        Column("Step", tuple(FORMS[crossing.form] for crossing in crossings), number=False),
        Column(f"L_inf x 255{unit}, bce", tuple(show_grey(crossing.linf[0], width, 2) for crossing in crossings)),
        Column(f"L_inf x 255{unit}, {loss}", tuple(show_grey(crossing.linf[1], width, 2) for crossing in crossings)),
        Column("Drop, bce", tuple(show_number(crossing.bce.mean) for crossing in crossings)),
        Column(f"Drop, {loss}", tuple(show_number(crossing.other.mean) for crossing in crossings)),
        *_show_tests(tests),
        Column("p (Holm)", tuple(show_p(crossing.finding.adjusted_p) for crossing in crossings)),
    )
    caption = (
        "Mean over models. L_inf: mean of the measured L_inf norm of the perturbations"
        + ("" if width == 1 else ", in units of 1/255 of the range of intensities")
        + ". For each image, the scaled "
        "blend has the same norm as the additive step; the blend as released has a larger one, so it is not "
        f"comparable. Difference: drop under BCE minus drop under {loss}."
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


def make_released_table(name: str, data: str, evidence: Evidence) -> Table | None:
    """Make the table of the scores that the study's code prints, for the losses as in its text and as in its code.

    Returns:
        None if no attack has a result.
    """
    if evidence.eps is None:
        return None
    released = {"order": "released", "form": "blend_released"}
    losses = dict.fromkeys(arm.loss for arm in sorted(evidence.arms, key=lambda arm: arm.loss) if arm.attack == "fgsm")
    arms = [make_arm("fgsm", loss, settings) for loss in losses for settings in ({}, released)]
    arms = [arm for arm in arms if arm in evidence.arms]
    means = evidence.released
    rows = [(model, arm) for model in evidence.models for arm in arms if (model, arm) in means["diff_released"]]
    if not rows:
        return None
    values = {score: [means[score][row]["mean"] for row in rows] for score in means}
    models = [model for model, _ in rows]
    columns = (
        Column("Model", thin(models), number=False),
        Column("Loss", tuple(arm.loss for _, arm in rows), number=False),
        Column("Attack", tuple("as released" if "order" in arm.settings else "as defined" for _, arm in rows), False),
        Column("Clean score", tuple(show_number(v) for v in values["dice_released_clean"])),
        Column("Score", tuple(show_number(v) for v in values["dice_released"])),
        Column("Diff", tuple(show_number(v) for v in values["diff_released"])),
    )
    caption = (
        "Score: 1 - MONAI's Dice loss of mask and thresholded prediction, averaged over all classes, for images that "
        "show any class. A class that is neither present nor predicted scores 1; the other tables leave it out. Diff: "
        "share of the clean score that is lost. As released: swapped arguments and blend with the nominal eps, whose "
        "L_inf norm is larger."
    )
    frame = pl.DataFrame(
        {"model": models, "loss": [a.loss for _, a in rows], "settings": [a.settings for _, a in rows]}
    )
    return Table(
        name,
        f"Scores as in the study's code, {data}",
        caption,
        columns,
        frame.with_columns(**{score: pl.Series(column, dtype=pl.Float64) for score, column in values.items()}),
    )


def _show_tests(tests: Sequence[PairedTest]) -> tuple[Column, ...]:
    """Make the columns that all tables of tests have."""
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
    """Return the unrounded numbers of tests."""
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
    """Write the ends of an interval, if there is one."""
    if interval is None or interval.lower is None or interval.upper is None:
        return NOTHING
    return f"{show_number(interval.lower, digits)} to {show_number(interval.upper, digits)}"
