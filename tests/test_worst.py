"""The worst case over attacks: of each image against the definition, of the data set against brute force."""

from __future__ import annotations

from itertools import product

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import Synthetic, rewrite_rows, write_run

from advseg_bench.claims import judge_claims
from advseg_bench.report.contents import compose
from advseg_bench.report.document import Table
from advseg_bench.report.findings import write_findings
from advseg_bench.report.measured import measure_cells
from advseg_bench.report.panels import make_galleries
from advseg_bench.report.series import list_series
from advseg_bench.report.summary import summarise
from advseg_bench.results import records
from advseg_bench.results.arms import find_controls
from advseg_bench.results.run import Run
from advseg_bench.results.scores import pool_counts, score_rows
from advseg_bench.results.selection import find_extremes, list_budgets, rank_attacks
from advseg_bench.results.worst import _make_judge, add_pooled_worst_case, add_worst_case, find_members, search
from advseg_bench.suite.specs import Scoring
from advseg_bench.types import Task

TASK = Task("multilabel", ("a", "b"))
FOUR = 4 / 255
NOISE = frozenset({"random_sign"})
WORST = pl.col("attack") == "worst_case"


def make_rows(seed: int, *, arms: int = 3, images: int = 5, draws: int = 2, eps: tuple[float, ...] = (FOUR,)):
    """Rows of a model: the clean image, FGSM with several losses, and noise with repeats; small random counts."""
    random = np.random.default_rng(seed)
    size = random.integers(0, 5, (images, 2))
    planned = [("none", "", 0.0, 0)]
    planned += [("fgsm", f"loss{i}", e, 0) for e in eps for i in range(arms)]
    planned += [("random_sign", "", e, d) for e in eps for d in range(draws)]
    rows = []
    for attack, loss, e, draw in planned:
        for image in range(images):
            tp = random.integers(0, size[image] + 1)
            wrong = int(random.integers(0, 9))
            cost = 0.0 if attack == "random_sign" else 1.0
            rows.append(
                {
                    "cell": f"{attack}-{loss}-{255 * e:.0f}-{draw}",
                    "dataset": "d",
                    "model": "m",
                    "attack": attack,
                    "loss": loss,
                    "settings": "{}",
                    "norm": "linf",
                    "eps": e,
                    "draw": draw,
                    "image": f"i{image}",
                    "subject": f"s{image}",
                    "block": "b",
                    "tp": tp.tolist(),
                    "fp": random.integers(0, 5, 2).tolist(),
                    "fn": (size[image] - tp).tolist(),
                    "valid_pixels": 20,
                    "wrong_pixels": wrong,
                    "flipped_pixels": wrong,
                    "linf": e,
                    "l2": e,
                    "unmoved": 0.0,
                    "forwards": cost,
                    "backwards": cost,
                    "flags": [],
                }
            )
    frame = pl.DataFrame(rows, schema=records.ROW_SCHEMA)
    return records.arrange_rows(frame, set(frame["cell"]))


def plan_of(rows: pl.DataFrame) -> dict[str, int]:
    return {cell: i for i, cell in enumerate(sorted(set(rows["cell"])))}


def find_worst(rows: pl.DataFrame, scoring: Scoring | None = None) -> pl.DataFrame:
    """The rows of the worst case alone."""
    scored = score_rows(rows, TASK, scoring or Scoring())
    return add_worst_case(scored, NOISE, plan_of(rows)).filter(WORST)


@pytest.mark.parametrize("empty", ["skip", "one", "zero"])
@pytest.mark.parametrize("seed", range(12))
def test_it_is_the_lowest_dice_of_each_image(seed, empty):
    scoring = Scoring(empty=empty)
    rows = make_rows(seed, eps=(FOUR, 2 * FOUR))
    scored = score_rows(rows, TASK, scoring)
    worst = find_worst(rows, scoring)
    assert len(worst) == 2 * 5
    for row in worst.iter_rows(named=True):
        mine = scored.filter((pl.col("image") == row["image"]) & pl.col("eps").is_in([0.0, row["eps"]]))
        assert row["dice"] == mine["dice"].min()
        equal = mine.filter(pl.col("dice").eq_missing(pl.lit(row["dice"], dtype=pl.Float64)))
        assert row["iou"] == equal["iou"].min()
        assert (row["forwards"], row["backwards"]) == (3, 3), "the clean image is free"
        same = ("tp", "fp", "fn", "wrong_pixels", "linf", "drop", "apsr")
        assert any(all(row[name] == other[name] for name in same) for other in mine.to_dicts())
        assert (row["loss"], row["settings"], row["draw"], row["flags"]) == ("", "{}", 0, [])
    assert worst["cell"].n_unique() == 2
    assert not set(worst["cell"]) & set(rows["cell"])


@given(seed=st.integers(0, 2**31), gone=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_an_attack_more_can_only_lower_it(seed, gone):
    rows = make_rows(seed, arms=4)
    fewer = rows.filter(pl.col("loss") != f"loss{gone}")
    less, more = (find_worst(each).sort("image")["dice"].fill_null(2.0) for each in (fewer, rows))
    assert (more <= less).all()


@given(seed=st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_the_order_of_the_rows_does_not_matter(seed):
    rows = make_rows(seed)
    shuffled = rows.sample(fraction=1, shuffle=True, seed=seed % 1000)
    assert find_worst(rows).sort("image").equals(find_worst(shuffled).sort("image"))


def test_equal_candidates_are_taken_by_wrong_pixels_and_then_by_the_plan():
    rows = make_rows(0, arms=2, draws=0)
    rows = rows.with_columns(pl.lit([0, 0]).alias("tp"), pl.lit([1, 1]).alias("fp"), pl.lit([2, 2]).alias("fn"))
    first = rows.with_columns(pl.lit(7).cast(pl.Int64).alias("wrong_pixels"), unmoved=pl.col("cell").rank("dense") / 10)
    assert (find_worst(first)["unmoved"] == 0.1).all(), "the first cell of the plan"
    second = first.with_columns(wrong_pixels=pl.when(pl.col("loss") == "loss1").then(8).otherwise("wrong_pixels"))
    assert (find_worst(second)["wrong_pixels"] == 8).all()


def test_what_is_no_measurement_or_exceeds_eps_is_no_candidate():
    rows = make_rows(3, arms=4).with_columns(fp=pl.lit([1, 1]), fn=pl.lit([1, 1]), tp=pl.lit([8, 8]))
    best_of_all = pl.col("loss") == "loss2"
    lost = rows.with_columns(tp=pl.when(best_of_all).then(pl.lit([0, 0])).otherwise("tp"))
    assert (find_worst(lost)["dice"] == 0).all()
    for flag in ("unchanged", "non_finite_logits", "non_finite_gradient"):
        some = best_of_all & (pl.col("image") == "i1")
        flags = pl.when(some).then(pl.lit([flag])).otherwise("flags")
        found = find_worst(lost.with_columns(flags=flags)).sort("image")
        assert [dice == 0 for dice in found["dice"]] == [True, False, True, True, True]
        assert found["forwards"].to_list() == [4, 3, 4, 4, 4]
    beyond = pl.when(best_of_all & (pl.col("image") == "i1")).then(pl.lit(["beyond_eps"])).otherwise("flags")
    assert (find_worst(lost.with_columns(flags=beyond))["dice"] > 0).all(), "the attack is left out on every image"
    kept = pl.when(best_of_all).then(pl.lit(["over_budget"])).otherwise("flags")
    assert (find_worst(lost.with_columns(flags=kept))["dice"] == 0).all()


def test_an_unknown_cost_stays_unknown():
    rows = make_rows(1).with_columns(forwards=pl.when(pl.col("loss") == "loss1").then(None).otherwise("forwards"))
    worst = find_worst(rows)
    assert worst["forwards"].null_count() == 5
    assert worst["backwards"].to_list() == [3.0] * 5


def test_noise_is_no_second_attack():
    assert find_worst(make_rows(0, arms=1)).is_empty()
    assert len(find_worst(make_rows(0, arms=2))) == 5


def test_members_are_stored_rows_and_never_clean():
    rows = make_rows(5)
    scored = add_worst_case(score_rows(rows, TASK, Scoring()), NOISE, plan_of(rows))
    members = find_members(scored, NOISE, plan_of(rows))
    assert len(members) == 5
    assert set(members["cell"]) <= set(rows["cell"])
    assert "none" not in set(members["attack"])
    joined = members.join(scored.filter(WORST), on="image", suffix="_worst").drop_nulls("dice")
    assert (joined["dice_worst"] <= joined["dice"]).all()
    attacked = joined.filter(pl.col("dice_worst") < pl.col("dice_clean"))
    assert (attacked["dice_worst"] == attacked["dice"]).all()


@pytest.mark.parametrize("score", ["pooled_dice", "pooled_iou"])
@pytest.mark.parametrize("empty", ["skip", "one", "zero"])
def test_the_greedy_search_is_between_brute_force_and_the_best_attack(score, empty):
    judge = _make_judge(TASK, Scoring(empty=empty), score)
    optimal = 0
    for seed in range(60):
        random = np.random.default_rng(seed)
        size = random.integers(0, 6, (4, 1, 2))
        tp = random.integers(0, size + 1, (4, 4, 2))
        counts = np.stack([tp, random.integers(0, 6, tp.shape), size - tp], -1).reshape(16, 2, 3)
        table = np.arange(16).reshape(4, 4)
        found = judge(counts[search(counts, table, judge)].sum(0))
        singles = judge(counts[table].sum(0))
        lowest = min(float(judge(counts[list(each)].sum(0))) for each in product(*table))
        assert lowest <= found <= singles.min()
        optimal += bool(found == lowest)
    assert optimal >= 48


@pytest.mark.parametrize("score", ["pooled_dice", "pooled_iou"])
@pytest.mark.parametrize("seed", range(8))
def test_a_pooled_table_has_the_score_of_the_rows_that_were_chosen(score, seed):
    rows = make_rows(seed, images=7)
    chosen = add_pooled_worst_case(rows, NOISE, TASK, Scoring(), score)
    pooled = pool_counts(chosen, TASK, Scoring(), ("attack", "loss", "draw")).to_dicts()
    worst = next(row[score] for row in pooled if row["attack"] == "worst_case")
    assert all(worst <= row[score] for row in pooled)
    assert len(chosen.filter(WORST)) == 7
    reduced = rows.filter((pl.col("image") != "i3") | (pl.col("loss") != "loss1"))
    assert len(add_pooled_worst_case(reduced, NOISE, TASK, Scoring(), score).filter(WORST)) == 7


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """A run of eight subjects with two attacks, which take turns as the worst of an image, and pictures."""
    strength = ((("fgsm", "bce"), 0.81), (("fgsm", "dice"), 0.8))
    plot = Synthetic(subjects=8, strength=strength)
    return Run(write_run(tmp_path_factory.mktemp("runs") / "eight", plot, panels=True))


def test_every_table_has_it_with_an_interval(eight):
    for score in ("dice", "drop", "diff", "dice_below", "apsr", "pooled_dice", "pooled_iou", "area"):
        by = ("model", "attack", "loss") if score == "area" else ("model", "attack", "loss", "eps")
        table = eight.table(score, by=by)
        worst = table.filter(WORST)
        assert len(worst) == (2 if score == "area" else 4), score
        if score in ("dice", "pooled_dice", "pooled_iou", "area"):
            others = table.filter(pl.col("attack").is_in(["fgsm", "random_sign", "uniform_noise"]))
            on = [name for name in by if name in ("model", "eps")]
            joined = others.join(worst, on=on, suffix="_worst")
            assert (joined["mean_worst"] <= joined["mean"]).all(), score
        if score in ("dice", "drop", "area"):
            assert worst["lower"].null_count() == 0
            assert worst["n_subjects"].to_list() == [8] * len(worst)
    by_class = eight.table("dice", by=("attack", "class"))
    assert by_class.filter(WORST)["class"].to_list() == ["grey matter", "white matter", "csf"]
    assert eight.table("pooled_dice", by="attack", where={"attack": ["fgsm", "none"]})["attack"].to_list() == [
        "none",
        "fgsm",
    ]
    assert eight.rows.filter(WORST).is_empty(), "it is not stored"


def test_it_is_no_single_attack(eight):
    assert "worst_case" not in find_controls(eight.scores())
    ranked = rank_attacks(eight, list_budgets(eight)[0])
    assert {rival.arm.attack for rivals in ranked.values() for rival in rivals} == {"fgsm"}
    summary = summarise(eight)
    assert "worst_case" not in set(summary.flags["attack"])
    for contrast in summary.contrasts:
        assert contrast.arm.attack == "fgsm"
        assert contrast.worst.drop["mean"] > contrast.drop["mean"]
        assert contrast.test.mean == pytest.approx(contrast.drop["mean"] - contrast.noise["mean"])
    (series,) = [s for s in list_series(eight, measure_cells(eight)) if s.label == "worst case"]
    assert (series.colour, series.single, series.control) == ("#000000", False, False)


def test_headlines_name_it_with_the_strongest_attack_beside_it(eight):
    summary = summarise(eight)
    drops = [contrast.worst.drop["mean"] for contrast in summary.contrasts]
    text = " ".join(write_findings(summary))
    lowered = f"lowers mean Dice by {min(drops):.3f} to {max(drops):.3f};"
    assert f"worst case over the attacks on each model {lowered}" in text
    assert "The strongest single attack" in text
    blocks = [block for section in compose(summary).sections for block in section.blocks]
    tables = {block.name: block for block in blocks if isinstance(block, Table)}
    labels = {name: {cell for row in tables[name].rows() for cell in row} for name in tables}
    for name in ("dice", "diff", "success", "curves", "integrity", "classes", "worst_case"):
        assert "worst case" in labels[name], name
    assert tables["noise"].data["worst_case_drop"].to_list() == drops
    rows = [row for row in tables["worst_case"].rows() if row[1] != "worst case"]
    assert sum(int(row[2]) for row in rows) == 2 * 48
    assert all(int(row[2]) > 0 for row in rows if row[1].startswith("fgsm")), "both take turns"
    answer = judge_claims(eight)[0].answer
    assert "The worst case over the attacks, image by image, lowers Dice by 0." in answer


def test_pictures_name_the_attack_behind_it(eight):
    drops = eight.scores().filter(WORST & (pl.col("eps") == FOUR))
    for case in find_extremes(eight):
        mine = drops.filter(model=case.model)
        assert case.dice_attacked == mine.filter(image=case.image)["dice"].item()
        extreme = mine["drop"].max() if case.kind == "worst" else mine["drop"].min()
        assert case.dice_clean - case.dice_attacked == extreme
        cells = {cell.id: cell.arm for cell in eight.about.cells}
        assert {cells[step.cell] for step in case.sweep} == {case.arm}
    alone, swept = make_galleries(eight)
    assert all(", fgsm " in panel.caption for panel in (*alone.panels, *swept.panels))


def test_one_attack_has_none_and_the_report_remarks_it(tmp_path):
    run = Run(write_run(tmp_path / "r", Synthetic(losses=("bce",))))
    assert run.scores().filter(WORST).is_empty()
    assert run.find_members().is_empty()
    text = " ".join(write_findings(summarise(run)))
    assert "attack on all 2 models is fgsm bce. A worst case needs at least two attacks at this eps." in text
    assert "the strongest attack on each model lowers mean Dice" in text


def test_an_incomplete_sweep_has_no_area(tmp_path):
    run = Run(write_run(tmp_path / "r", Synthetic(models=("unet-vgg13",))))
    largest = max(cell.eps for cell in run.about.cells)
    gone = (pl.col("loss") == "bce") & (pl.col("eps") == largest)
    rewrite_rows(run.path, lambda rows: rows.filter(~gone))
    table = Run(run.path).table("area", by=("attack", "loss"))
    assert table.filter(WORST)["mean"].to_list() == [None]
    assert table.filter(loss="dice")["mean"].null_count() == 0


@pytest.mark.parametrize("noise", [True, False])
def test_a_worst_case_below_a_single_attack_is_explained(tmp_path, noise):
    out = write_run(tmp_path / "r")
    gone = (pl.col("attack") == "fgsm") & (pl.col("image") < pl.col("image").max())
    flags = pl.when(gone).then(pl.lit(["unchanged"])).otherwise("flags")
    kept = pl.col("attack").is_in(["none", "fgsm"]) | noise
    rewrite_rows(out, lambda rows: rows.filter(kept).with_columns(flags=flags))
    (contrast, *_) = summarise(Run(out)).contrasts
    assert contrast.worst is not None
    assert contrast.worst.drop["mean"] < contrast.drop["mean"]
    sentences = write_findings(summarise(Run(out)))
    under = "the strongest single attack" + " and noise" * noise
    assert sentences[1].startswith(f"The drops under {under} leave out up to 5 images")
    assert sentences[1].endswith("The worst case counts these images, so its drop may be smaller.")


def test_tables_remark_that_sweeps_differ(tmp_path):
    out = write_run(tmp_path / "r")
    captions = []
    for _ in range(2):
        blocks = [block for section in compose(summarise(Run(out))).sections for block in section.blocks]
        captions.append({block.name: block.caption for block in blocks if isinstance(block, Table)})
        gone = (pl.col("loss") == "dice") & (pl.col("eps") != FOUR)
        rewrite_rows(out, lambda rows, gone=gone: rows.filter(~gone))
    same, different = captions
    for name, remark in (
        ("dice", "not all were run at every eps"),
        ("diff", "may seem stronger. It is over"),
        ("curves", "only between those"),
    ):
        assert remark not in same[name]
        assert remark in different[name]
