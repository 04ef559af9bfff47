"""The claims of the study on made-up runs whose truth is known, against averages taken by numpy and tests of SciPy."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
import runs
from runs import Synthetic, edit_json, rewrite_rows, write_run
from scipy.stats import pearsonr, permutation_test

from advseg_bench.claims import Evidence, associate, average, compare_orders, cross, judge_claims, make_arm, name_arm
from advseg_bench.claims.wording import show_p
from advseg_bench.errors import RecordError
from advseg_bench.report import write_claims, write_report
from advseg_bench.report.claims import compose_claims
from advseg_bench.report.claims_tables import make_crossing_table, make_released_table
from advseg_bench.report.document import Table
from advseg_bench.report.verdicts import judge_runs
from advseg_bench.results.run import Run

EIGHT = Synthetic(losses=("bce", "dice_focal"), subjects=8)
BCE, TRAINING = make_arm("fgsm", "bce"), make_arm("fgsm", "dice_focal")
CROSSED = (
    {"name": "fgsm", "losses": ["bce", "dice_focal"], "eps": ["4/255"], "vary": {"order": ["released"]}},
    {"name": "fgsm", "losses": ["bce", "dice_focal"], "eps": ["4/255"], "settings": {"form": "blend"}},
)


def make(tmp_path, plot: Synthetic = EIGHT, **changes: object) -> Run:
    from dataclasses import replace

    return Run(write_run(tmp_path / "run", replace(plot, **changes)))


def verdicts(run: Run) -> dict[str, str | None]:
    return {claim.name: claim.verdict for claim in judge_claims(run)}


def drops_by_hand(run: Run, model: str, attack: str, loss: str) -> dict[str, np.ndarray]:
    """Drop of each image of each subject, from the counts, with draws averaged, at 4/255."""
    rows = run.rows.filter(model=model)

    def dice(row) -> float:
        shown = [k for k in range(3) if row["tp"][k] + row["fn"][k]]
        return np.mean([2 * row["tp"][k] / (2 * row["tp"][k] + row["fp"][k] + row["fn"][k]) for k in shown])

    clean = {row["image"]: dice(row) for row in rows.filter(attack="none").to_dicts()}
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows.filter((pl.col("attack") == attack) & (pl.col("loss") == loss)).to_dicts():
        if abs(row["eps"] - 4 / 255) < 1e-9:
            found.setdefault(row["subject"], {}).setdefault(row["image"], []).append(clean[row["image"]] - dice(row))
    return {subject: np.array([np.mean(v) for v in images.values()]) for subject, images in sorted(found.items())}


def test_a_comparison_is_of_subject_means_and_its_p_is_scipys(tmp_path):
    run = make(tmp_path)
    rewrite_rows(run.path, lambda rows: rows.filter(~pl.col("image").is_in(["s03-z001", "s05-z002", "s05-z003"])))
    run = Run(run.path)
    evidence = Evidence(run)
    test = evidence.compare(average(BCE, ["unet-mobilenet"]) - average(make_arm("random_sign"), ["unet-mobilenet"]))
    ours = drops_by_hand(run, "unet-mobilenet", "fgsm", "bce")
    noise = drops_by_hand(run, "unet-mobilenet", "random_sign", "")
    differences = np.array([ours[s].mean() - noise[s].mean() for s in ours])
    assert test.n == 8
    assert test.mean == pytest.approx(differences.mean(), abs=1e-12)
    theirs = permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert test.p == pytest.approx(theirs.pvalue)


def test_a_mean_over_models_is_the_mean_of_their_images(tmp_path):
    run = make(tmp_path)
    overall = Evidence(run).compare(average(BCE, run.model_names))
    hands = [drops_by_hand(run, model, "fgsm", "bce") for model in run.model_names]
    assert overall.mean == pytest.approx(np.mean([np.mean([v.mean() for v in one.values()]) for one in hands]))


def test_an_image_that_one_arm_lacks_counts_in_neither(tmp_path):
    run = make(tmp_path)
    wild = (pl.col("loss") == "dice_focal") & (pl.col("image") == "s00-z001")
    rewrite_rows(
        run.path,
        lambda rows: rows.with_columns(flags=pl.when(wild).then(pl.lit(["unchanged"])).otherwise("flags")),
    )
    changed = Evidence(Run(run.path)).compare(average(BCE, ["basicunet-s"]) - average(TRAINING, ["basicunet-s"]))
    rewrite_rows(run.path, lambda rows: rows.filter(pl.col("image") != "s00-z001"))
    without = Evidence(Run(run.path)).compare(average(BCE, ["basicunet-s"]) - average(TRAINING, ["basicunet-s"]))
    assert changed.mean == pytest.approx(without.mean, abs=1e-12)


def test_the_reference_is_fgsm_with_the_training_loss_at_four(tmp_path):
    evidence = Evidence(make(tmp_path, eps=(2, 4, 8), extra=CROSSED))
    assert (evidence.reference, evidence.training_loss) == (TRAINING, "dice_focal")
    assert evidence.eps == pytest.approx(4 / 255)
    assert [control.attack for control in evidence.controls] == ["random_sign", "uniform_noise"]
    other = Evidence(make(tmp_path / "other", losses=("dice", "bce")))
    assert other.reference == make_arm("fgsm", "dice"), "the first, where the training loss was not run"


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "supported"),
        ({"subjects": 1}, "undecidable"),
        ({"subjects": 5}, "undecidable"),
        ({"strength": ((("uniform_noise", ""), 1.5),)}, "contradicted"),
        ({"strength": ((("uniform_noise", ""), 0.85),)}, "undecided"),
    ],
)
def test_vulnerable_means_more_than_any_noise_of_equal_norm(tmp_path, changes, verdict):
    assert verdicts(make(tmp_path, **changes))["vulnerable"] == verdict


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "supported"),
        ({"subjects": 5}, "undecidable"),
        ({"strength": ((("fgsm", "bce"), 0.6),)}, "contradicted"),
        ({"strength": ((("fgsm", "bce"), 0.85),)}, "undecided"),
        ({"losses": ("bce", "dice")}, None),
    ],
)
def test_bce_against_the_training_loss(tmp_path, changes, verdict):
    claim = judge_claims(make(tmp_path, **changes))[2]
    assert claim.verdict == verdict
    assert (verdict or "Not asked: the run has no result of fgsm dice_focal") in claim.answer
    if verdict:
        assert f"{claim.estimate.mean:.3f}" in claim.answer


def test_models_trained_with_bce_are_not_asked_about_it(tmp_path):
    run = make(tmp_path)
    edit_json(run.path / "run.json", lambda info: info | {"suite": info["suite"] | {"training": {"loss": "bce"}}})
    assert judge_claims(Run(run.path))[2].answer == "Not asked: the models were trained with BCE itself."


@pytest.mark.parametrize(
    ("models", "subjects", "verdict"),
    [
        (("basicunet-s", "attention-unet"), 8, "supported"),
        (("basicunet-s", "attention-unet"), 4, "undecidable"),
        (("basicunet-s", "attention-unet", "unet-mobilenet"), 8, "contradicted"),
        (("basicunet-s",), 8, None),
    ],
)
def test_the_best_model_may_be_the_most_vulnerable(tmp_path, models, subjects, verdict):
    claim = judge_claims(make(tmp_path, models=models, subjects=subjects))[3]
    assert claim.verdict == verdict
    if verdict:
        assert "basicunet-s has the best clean Dice" in claim.answer
        assert ("one data set" in claim.answer) == (verdict == "contradicted")


def test_few_models_cannot_tell_about_size(tmp_path):
    claim = judge_claims(make(tmp_path))[1]
    assert claim.verdict == "undecidable"
    assert "undecidable: no data of 2 models" in claim.answer
    assert judge_claims(make(tmp_path / "five", models=tuple(runs.MODELS)))[1].verdict == "undecided"


def test_a_correlation_with_size_contradicts(tmp_path):
    run = make(tmp_path, models=tuple(runs.MODELS))
    order = sorted(runs.MODELS, key=lambda name: runs.MODELS[name][4])
    for i, name in enumerate(order):
        edit_json(run.path / "models" / f"{name}.json", lambda entry, i=i: entry | {"parameters": 10 ** (5 + i)})
    run = Run(run.path)
    assert verdicts(run)["size"] == "contradicted"
    found = associate(Evidence(run), "parameters")
    assert found.x == tuple(5.0 + order.index(name) for name in found.models)
    assert found.correlation.pearson.value == pytest.approx(pearsonr(found.x, found.y).statistic)


def test_many_models_of_every_size_and_equal_success_support(tmp_path, monkeypatch):
    many = {f"m{i:02d}": ("monai.UNet", None, 10 ** (5 + i % 4), 0.85, 1.0 + 0.3 * (i // 4 % 2)) for i in range(40)}
    monkeypatch.setattr(runs, "MODELS", many)
    run = make(tmp_path, models=tuple(many), subjects=2, images=2, eps=(4,), draws=1)
    claim = judge_claims(run)[1]
    assert claim.verdict == "supported", claim.answer


def test_the_crossing_tells_an_artefact_from_an_effect(tmp_path):
    """As defined BCE is the weaker loss; with swapped arguments it seems the stronger one, since the other breaks."""
    swapped = '{"order": "released"}'
    strength = (
        (("fgsm", "bce"), 0.7),
        (("fgsm", "bce", swapped), 0.65),
        (("fgsm", "dice_focal", swapped), 0.2),
    )
    run = make(tmp_path, extra=CROSSED, strength=strength)
    evidence = Evidence(run)
    crossings = {(c.order, c.form): c for c in cross(evidence)}
    assert set(crossings) == {("defined", "additive"), ("defined", "blend"), ("released", "additive")}
    assert crossings["defined", "additive"].finding.verdict == "contradicted"
    assert crossings["released", "additive"].finding.verdict == "supported"
    for crossing in crossings.values():
        assert crossing.finding.test.mean == pytest.approx(crossing.bce.mean - crossing.other.mean)
        assert crossing.linf == pytest.approx((4 / 255, 4 / 255))
    artefact = compare_orders(evidence)
    lead = {order: crossings[order, "additive"].finding.test.mean for order in ("defined", "released")}
    assert artefact.mean == pytest.approx(lead["released"] - lead["defined"])
    assert artefact.p == pytest.approx(2 / 2**8)
    assert verdicts(run)["bce"] == "contradicted", "the claim is about the losses as they are defined"


def test_a_run_without_fgsm_or_without_noise_is_not_asked(tmp_path):
    run = make(tmp_path)
    rewrite_rows(run.path, lambda rows: rows.filter(pl.col("attack").is_in(["none", "fgsm"])))
    answers = [claim.answer for claim in judge_claims(Run(run.path))]
    assert answers[0] == "Not asked: the run has no noise of equal norm to compare with."
    assert answers[3] == "Not asked: the run lacks noise of equal norm to compare with."
    rewrite_rows(run.path, lambda rows: rows.filter(pl.col("attack") == "none"))
    assert set(verdicts(Run(run.path)).values()) == {None}
    assert not any(path.name == "claims.html" for path in write_report(Run(run.path)))


def test_the_page_tells_data_sets_apart_and_says_what_is_scaled_down(tmp_path):
    one, two = make(tmp_path / "a", extra=CROSSED), make(tmp_path / "b", subjects=1)
    edit_json(two.path / "run.json", lambda info: info | {"suite": info["suite"] | {"note": "Scaled down."}})
    edit_json(two.path / "run.json", lambda info: info | {"data": info["data"] | {"name": "other"}})
    paths = write_claims([one, Run(two.path)], tmp_path / "page")
    assert len({path.name for path in paths}) == len(paths)
    text = (tmp_path / "page" / "claims.md").read_text()
    assert "other: Scaled down." in text
    assert "On mni152 (8 subjects) at eps 4/255" in text
    assert "On other (1 subject) at eps 4/255" in text
    table = pl.read_csv(tmp_path / "page" / "tables" / "verdicts.csv")
    assert table.height == 8
    assert set(table.filter(data="other")["verdict"]) == {"undecidable"}
    assert table.filter(pl.col("data") == "other")["lower"].null_count() == 4, "one subject has no interval"
    crossing = pl.read_csv(tmp_path / "page" / "tables" / "bce_1_crossing.csv")
    assert crossing["order"].to_list() == ["defined", "defined", "released"]
    page = (tmp_path / "page" / "claims.html").read_text()
    assert "<script" not in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_runs_of_one_data_set_are_told_apart_and_none_is_given_twice(tmp_path):
    one, two = make(tmp_path / "a"), make(tmp_path / "b")
    write_claims([one, two], tmp_path / "page")
    table = pl.read_csv(tmp_path / "page" / "tables" / "verdicts.csv")
    assert table["data"].n_unique() == 2, "both folders are called run"
    with pytest.raises(RecordError, match=r"run: this run is given twice\. Give each run once\."):
        write_claims([one, Run(one.path)], tmp_path / "page")


def test_every_figure_of_the_page_can_be_drawn_at_both_widths(tmp_path):
    from advseg_bench.report.document import NARROW, WIDE, Figure
    from advseg_bench.report.figures import render

    run = make(tmp_path, models=tuple(runs.MODELS), extra=CROSSED)
    figures = [b for s in compose_claims(judge_runs([run])).sections for b in s.blocks if isinstance(b, Figure)]
    assert len(figures) == 5
    for figure in figures:
        for width in (NARROW, WIDE):
            (svg,) = render(figure, width, "svg")
            assert svg.startswith(b"<?xml")


def test_an_unfinished_run_is_judged_as_far_as_it_is(tmp_path):
    run = make(tmp_path)
    rewrite_rows(run.path, lambda rows: rows.filter((pl.col("model") == "basicunet-s") | (pl.col("attack") == "none")))
    run = Run(run.path)
    assert Evidence(run).models == ("basicunet-s",)
    assert verdicts(run)["vulnerable"] == "supported"
    assert "results are missing" in compose_claims(judge_runs([run])).warnings[0]


def test_the_smallest_p_decides_what_is_undecidable(tmp_path):
    for subjects in (4, 5, 6):
        claim = judge_claims(make(tmp_path / str(subjects), subjects=subjects))[2]
        assert claim.estimate.smallest_p == 2 / 2**subjects
        assert claim.verdict == ("supported" if claim.estimate.smallest_p <= 0.05 else "undecidable")
        assert (claim.estimate.interval is None) == (subjects < 5)
        assert not math.isnan(claim.estimate.mean)


def test_the_best_model_is_judged_by_the_share_that_it_loses(tmp_path, monkeypatch):
    """The better one loses more Dice, since it has more, and still the smaller share of it."""
    one, two = ("monai.UNet", None, 100_000, 0.9, 1.0), ("monai.UNet", None, 200_000, 0.45, 0.7)
    monkeypatch.setattr(runs, "MODELS", {"good": one, "poor": two})
    run = make(tmp_path, models=("good", "poor"))
    evidence, claim = Evidence(run), judge_claims(run)[3]
    noise = make_arm("random_sign")
    lost = {m: evidence.compare(average(TRAINING, [m]) - average(noise, [m])).mean for m in ("good", "poor")}
    clean = {m: evidence.compare(average(TRAINING, [m], "dice_clean")).mean for m in ("good", "poor")}
    assert lost["good"] > lost["poor"]
    assert claim.verdict == "contradicted"
    assert claim.estimate.mean == pytest.approx(lost["good"] / clean["good"] - lost["poor"] / clean["poor"])
    assert claim.measure == "share of the clean Dice that is lost"


def test_the_best_model_is_compared_beyond_the_most_harmful_noise(tmp_path):
    run = make(tmp_path, strength=((("uniform_noise", ""), 0.3),))
    evidence, claim = Evidence(run), judge_claims(run)[3]
    clean = {m: evidence.compare(average(TRAINING, [m], "dice_clean")).mean for m in evidence.models}
    lost = {
        m: evidence.compare((average(TRAINING, [m]) - average(make_arm("uniform_noise"), [m])) / clean[m]).mean
        for m in evidence.models
    }
    best = max(clean, key=clean.get)
    assert "beyond uniform_noise, the most harmful noise" in claim.answer
    assert claim.estimate.mean == pytest.approx(min(lost[best] - lost[m] for m in lost if m != best))


def test_the_budget_is_one_of_fgsms(tmp_path):
    run = make(tmp_path, eps=(2, 8), extra=({"name": "pgd", "losses": ["bce"], "eps": ["4/255"]},))
    assert Evidence(run).eps == pytest.approx(2 / 255)
    assert Evidence(run).reference == TRAINING


def test_a_sweep_of_nothing_but_eps_zero_is_not_asked(tmp_path):
    answers = {claim.answer for claim in judge_claims(make(tmp_path, eps=(0,)))}
    (answer,) = answers
    assert answer.startswith("Not asked: the run has no result of FGSM")


@pytest.mark.parametrize(
    ("loss", "lacks"), [("dice_focal", {"vulnerable", "bce", "best"}), ("bce", {"bce"})], ids=["reference", "bce"]
)
def test_an_arm_that_failed_on_a_model_is_named_and_not_called_undecidable(tmp_path, loss, lacks):
    run = make(tmp_path)
    failed = (pl.col("model") == "unet-mobilenet") & (pl.col("loss") == loss)
    rewrite_rows(run.path, lambda rows: rows.filter(~failed))
    claims = [claim for claim in judge_claims(Run(run.path)) if claim.name != "size"]
    assert {claim.name for claim in claims if claim.verdict is None} == lacks
    named = f"Not asked: no image has a score under fgsm {loss} on unet-mobilenet."
    assert {claim.answer for claim in claims if claim.verdict is None} == {named}


def test_answers_tell_how_many_models_and_subjects_they_rest_on(tmp_path):
    run = make(tmp_path)
    lost = (pl.col("model") == "unet-mobilenet") | (pl.col("attack") == "fgsm") & (pl.col("subject") == "s00")
    rewrite_rows(run.path, lambda rows: rows.filter(~lost))
    answer = judge_claims(Run(run.path))[0].answer
    assert answer.startswith("On mni152 (7 subjects) at eps 4/255")
    assert "over 1 of 2 models" in answer


def test_vanished_gradients_and_models_that_find_nothing_are_told(tmp_path):
    run = make(tmp_path)
    masked = (pl.col("attack") == "fgsm") & (pl.col("image").is_in(["s00-z002", "s01-z003"]))
    rewrite_rows(
        run.path,
        lambda rows: rows.with_columns(
            flags=pl.when(masked).then(pl.lit(["unchanged"])).otherwise("flags"),
            tp=pl.when(pl.col("model") == "unet-mobilenet").then(pl.col("tp") * 0).otherwise("tp"),
        ),
    )
    run = Run(run.path)
    warnings = compose_claims(judge_runs([run])).warnings
    assert warnings[0].startswith("mni152: 8 of 192 results of FGSM equal the clean image")
    assert warnings[1].startswith("mni152: the mean clean Dice of unet-mobilenet is under 0.5")
    assert judge_claims(run)[3].answer == "Not asked: the clean Dice of unet-mobilenet is 0."


def test_diff_is_of_the_images_that_have_a_drop(tmp_path):
    run = make(tmp_path)
    masked = (pl.col("loss") == "dice_focal") & pl.col("image").str.ends_with("z001")
    rewrite_rows(
        run.path, lambda rows: rows.with_columns(flags=pl.when(masked).then(pl.lit(["unchanged"])).otherwise("flags"))
    )
    run = Run(run.path)
    where = {"attack": "fgsm", "loss": "dice_focal", "eps": 4 / 255}
    table = run.table("diff", by="model", where=where)
    assert associate(Evidence(run), "parameters").y == pytest.approx(table["mean"].to_list())


def test_a_control_beyond_eps_is_no_control(tmp_path):
    run = make(tmp_path)
    far = pl.col("attack") == "uniform_noise"
    rewrite_rows(
        run.path, lambda rows: rows.with_columns(flags=pl.when(far).then(pl.lit(["beyond_eps"])).otherwise("flags"))
    )
    assert [control.attack for control in Evidence(Run(run.path)).controls] == ["random_sign"]


def test_the_p_of_a_claim_that_needs_every_line_is_the_largest(tmp_path):
    run = make(tmp_path, strength=((("uniform_noise", ""), 0.85),))
    claim = judge_claims(run)[0]
    assert claim.p == max(finding.test.p for finding in claim.findings) > claim.estimate.p
    write_claims([run], tmp_path / "page")
    table = pl.read_csv(tmp_path / "page" / "tables" / "verdicts.csv")
    assert table.filter(claim="vulnerable")["p"].item() == pytest.approx(claim.p)


def test_noise_that_beats_the_gradient_is_no_robustness(tmp_path):
    answer = judge_claims(make(tmp_path, strength=((("uniform_noise", ""), 1.5),)))[0].answer
    assert "The claim is contradicted. A gradient attack that is weaker than noise" in answer


def test_controls_are_all_noise_of_equal_norm(tmp_path):
    shuffled = {"name": "shuffled_sign", "losses": ["bce", "dice_focal"], "eps": ["4/255"]}
    far = {"name": "uniform_noise", "eps": [4 / 255], "norm": "l2"}
    evidence = Evidence(make(tmp_path, extra=(shuffled, far)))
    shuffles = ["shuffled_sign bce", "shuffled_sign dice_focal"]
    assert [name_arm(arm) for arm in evidence.controls] == ["random_sign", *shuffles, "uniform_noise"]
    rows = evidence.values("basicunet-s", make_arm("uniform_noise"))
    alone = Evidence(make(tmp_path / "alone")).values("basicunet-s", make_arm("uniform_noise"))
    assert rows["value"].to_list() == pytest.approx(alone["value"].to_list()), "no L2 result of the same eps among them"


def test_the_estimate_of_the_first_claim_is_over_the_most_harmful_noise(tmp_path):
    run = make(tmp_path, strength=((("uniform_noise", ""), 0.3),))
    claim, evidence = judge_claims(run)[0], Evidence(run)
    noise = average(make_arm("uniform_noise"), run.model_names)
    assert claim.estimate == evidence.compare(average(TRAINING, run.model_names) - noise)
    assert "minus that under uniform_noise, the most harmful noise" in claim.answer


def test_the_rival_of_the_best_model_is_the_one_that_loses_most(tmp_path):
    run = make(tmp_path, models=("basicunet-s", "attention-unet", "unet-mobilenet"))
    claim = judge_claims(run)[3]
    assert claim.estimate.mean == min(finding.test.mean for finding in claim.findings)
    assert "minus that of unet-mobilenet" in claim.answer


@pytest.mark.parametrize("models", [3, 4])
def test_under_five_models_no_order_of_them_decides(tmp_path, models):
    run = make(tmp_path, models=tuple(runs.MODELS)[:models])
    order = sorted(run.model_names, key=lambda name: runs.MODELS[name][4])
    for i, name in enumerate(order):
        edit_json(run.path / "models" / f"{name}.json", lambda entry, i=i: entry | {"parameters": 10 ** (5 + i)})
    claim = judge_claims(Run(run.path))[1]
    assert "rank correlation +1.00" in claim.answer
    assert claim.verdict == "undecidable"


def test_every_line_of_the_crossing_is_one_of_several(tmp_path):
    """Seven subjects are enough for two lines and too few for four."""
    blends = {"name": "fgsm", "losses": ["bce", "dice_focal"], "eps": ["4/255"]}
    blends |= {"vary": {"form": ["blend_released"]}, "settings": {"order": "released"}}
    two, four = (make(tmp_path / str(len(e)), subjects=7, extra=e) for e in (CROSSED[:1], (*CROSSED, blends)))
    assert {c.finding.adjusted_p for c in cross(Evidence(two))} == {2 * 2 / 2**7}
    assert {c.finding.verdict for c in cross(Evidence(four))} == {"undecidable"}


def test_the_studys_own_scores_are_those_of_its_text_and_of_its_code(tmp_path):
    code = {"order": "released", "form": "blend_released"}
    arm = {"name": "fgsm", "losses": ["bce", "dice_focal"], "eps": ["4/255"], "settings": code}
    evidence = Evidence(make(tmp_path, extra=(arm, *CROSSED)))
    data = make_released_table("released", "here", evidence).data
    assert set(data["settings"]) == {"{}", make_arm("fgsm", "bce", code).settings}
    assert data.height == 2 * 2 * 2
    where = {"loss": "bce", "settings": "{}", "eps": 4 / 255, "model": "basicunet-s"}
    row = data.filter(model="basicunet-s", loss="bce", settings="{}").row(0, named=True)
    score = evidence.run.table("dice_released", where=where)["mean"].item()
    assert row["dice_released"] == pytest.approx(score)
    assert row["diff_released"] == pytest.approx(1 - score / row["dice_released_clean"])
    assert score > evidence.run.table("dice", where=where)["mean"].item() + 1e-3, "what is not there scores 1"


def test_the_table_of_the_crossing_holds_the_drops_of_both_losses(tmp_path):
    evidence = Evidence(make(tmp_path, extra=CROSSED))
    crossings = cross(evidence)
    data = make_crossing_table("crossing", "here", crossings, "dice_focal").data
    for name, arm in (("drop_bce", BCE), ("drop_other", TRAINING)):
        assert data[name][0] == pytest.approx(evidence.compare(average(arm, evidence.models)).mean)
    assert data["drop_bce"][0] != pytest.approx(data["drop_other"][0])


@pytest.mark.parametrize("width", [1, 400])
def test_the_page_shows_the_name_of_the_data_and_radii_in_their_units(tmp_path, width):
    folder = make(tmp_path, extra=CROSSED).path
    declared = {"name": "nnunet", "title": "Dataset027_ACDC", "bounds": [-160, width - 160], "attack_space": "stored"}
    edit_json(folder / "run.json", lambda info: info | {"data": info["data"] | declared})
    write_report(Run(folder))
    for page in ("claims.md", "report.md"):
        text = (folder / "report" / page).read_text().partition("complete suite, as JSON")[0]
        assert "Dataset027_ACDC" in text
        assert "nnunet" not in text
        assert ("4/255" in text) == (width == 1), page
        assert ("eps 0.01569" in text) == (width == 400), page
    tables = (block for s in compose_claims(judge_runs([Run(folder)])).sections for block in s.blocks)
    shown = next(each for each in tables if isinstance(each, Table) and each.name == "bce_crossing")
    cells = {column.label: column.cells for column in shown.columns}
    label = "L_inf x 255, bce" if width == 1 else "L_inf x 255 / 400, bce"
    assert cells[label][0] == ("4.00" if width == 1 else "0.01")
    assert shown.data["linf_bce"][0] == pytest.approx(4 / 255)


def test_the_most_harmful_noise_is_named_whatever_its_loss(tmp_path):
    shuffled = {"name": "shuffled_sign", "losses": ["bce", "dice_focal"], "eps": ["4/255"]}
    strength = ((("shuffled_sign", "bce"), 0.5), (("shuffled_sign", "dice_focal"), 0.01))
    claim = judge_claims(make(tmp_path, extra=(shuffled,), strength=strength))[0]
    assert "minus that under shuffled_sign bce, the most harmful noise" in claim.answer


def test_a_contradicted_claim_prints_the_p_that_contradicts_it(tmp_path):
    """One model loses a larger share than the best one, the others a smaller one: the largest p decides nothing."""
    run = make(tmp_path, models=("basicunet-s", "attention-unet", "unet-mobilenet"))
    claim = judge_claims(run)[3]
    against = [f for f in claim.findings if f.verdict == "contradicted"]
    assert claim.verdict == "contradicted"
    assert claim.p == min(f.adjusted_p for f in against) <= 0.05
    assert f"p = {show_p(claim.p)} after Holm's correction for 2 comparisons" in claim.answer
    assert "largest p" not in claim.answer


def test_one_comparison_has_no_largest_p_and_no_model_is_not_0_of_them(tmp_path):
    answers = [claim.answer for claim in judge_claims(make(tmp_path, models=("basicunet-s", "attention-unet")))]
    assert "1 comparison" not in " ".join(answers)
    assert "; p = " in answers[3]
    lost = judge_claims(make(tmp_path / "lost", strength=((("fgsm", "bce"), 0.6),)))[2]
    assert "and above 0 on none of them" in lost.answer
