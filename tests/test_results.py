"""A run opened for reading: what is refused, what the tables mean, what is missing."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from runs import STRENGTH, Synthetic, edit_json, rewrite_rows, write_run

import advseg_bench
from advseg_bench.errors import RecordError, SpecError
from advseg_bench.results import records
from advseg_bench.results.arms import find_controls
from advseg_bench.results.run import Run
from advseg_bench.results.scores import find_scored_classes, score_rows
from advseg_bench.results.selection import (
    REFERENCE_EPS,
    Extreme,
    choose_reference,
    choose_strongest,
    find_extremes,
    list_budgets,
    rank_attacks,
)
from advseg_bench.results.tables import SCORES
from advseg_bench.stats import subject_interval
from advseg_bench.suite.specs import Scoring

FOUR = 4 / 255


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A run on one subject."""
    return Run(write_run(tmp_path_factory.mktemp("runs") / "one"))


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """A run on eight subjects."""
    return Run(write_run(tmp_path_factory.mktemp("runs") / "eight", Synthetic(subjects=8, models=("unet-vgg13",))))


def test_the_public_name():
    assert advseg_bench.Run is Run


def test_opening_tells_what_was_run(one):
    assert one.model_names == ("basicunet-s", "unet-mobilenet")
    assert one.task.kind == "multilabel"
    assert one.models["basicunet-s"]["parameters"] == 121_000
    assert (one.failures, one.missing, one.planned) == ([], 0, 2 * (1 + 2 * 2 + 2 * 2 + 2) * 6)
    assert one.controls == {"random_sign", "uniform_noise"}
    assert repr(one).startswith("Run('")


def test_what_asks_no_model_is_a_control_unless_it_follows_a_loss(one):
    rows = one.rows.filter(pl.col("attack").is_in(["random_sign", "fgsm"])).with_columns(
        pl.lit(0.0).alias("forwards"), pl.lit(0.0).alias("backwards"),
        pl.col("attack").replace({"random_sign": "my:noise", "fgsm": "my:transfer"}),
    )  # fmt: skip
    unknown = rows.with_columns(pl.lit(None, dtype=pl.Float64).alias("forwards"), pl.lit("my:other").alias("attack"))
    assert find_controls(pl.concat([rows, unknown.cast(rows.schema)])) == {"my:noise"}


def test_not_a_directory(tmp_path):
    with pytest.raises(RecordError, match=r"nowhere: expected the folder of a run.*Give the --out of a run"):
        Run(tmp_path / "nowhere")


def test_not_a_run(tmp_path):
    with pytest.raises(RecordError, match=r"run\.json: .*not the folder of a run"):
        Run(tmp_path)


def test_damaged_run_json(tmp_path):
    out = write_run(tmp_path / "r")
    (out / "run.json").write_text('{"schema": 1, "suite"')
    with pytest.raises(RecordError, match=r"run\.json: cannot be read"):
        Run(out)


@pytest.mark.parametrize(
    ("schema", "remedy"), [(2, "Upgrade advseg-bench"), (0, "Run the suite again"), (None, "Run the suite again")]
)
def test_another_schema(tmp_path, schema, remedy):
    out = write_run(tmp_path / "r")
    edit_json(out / "run.json", lambda info: info | {"schema": schema})
    with pytest.raises(RecordError, match=f"expected schema 1, got {schema}. {remedy}"):
        Run(out)


@pytest.mark.parametrize("key", ["data", "cells", "suite"])
def test_run_json_without_a_part(tmp_path, key):
    out = write_run(tmp_path / "r")
    edit_json(out / "run.json", lambda info: {k: v for k, v in info.items() if k != key})
    with pytest.raises(RecordError, match=r"run\.json: .*Restore it"):
        Run(out)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda info: info["suite"].pop("name"), "suite.name: Field required"),
        (lambda info: info["suite"].update(scoring={"empty": "maybe"}), "ValidationError: .*"),
        (lambda info: info["data"]["splits"].pop("test"), "data.splits.test: .*"),
        (lambda info: info["data"].update(subjects=3), "data.subjects: .*"),
        (lambda info: info["data"].update(splits={"test": "many"}), "data.splits.test: .*"),
        (lambda info: info["cells"][3].pop("settings"), "cells.3.settings: Field required"),
        (lambda info: info["cells"].append("cell"), "cells.*: .*"),
    ],
)
def test_a_description_with_a_wrong_part_is_one_line(tmp_path, change, reason):
    out = write_run(tmp_path / "r")
    info = json.loads((out / "run.json").read_text())
    change(info)
    (out / "run.json").write_text(json.dumps(info))
    with pytest.raises(RecordError, match=rf"run\.json: is damaged \({reason}\)\. Restore it, or run") as error:
        Run(out)
    assert "\n" not in str(error.value)


def test_a_description_is_read_once_with_names_for_its_parts(one):
    about = one.about
    assert (about.suite.name, about.suite.title) == ("quick", "FGSM on small U-Nets, made-up numbers")
    assert (about.suite.training_loss, about.suite.of_volumes) == ("dice_focal", False)
    assert (about.data.name, about.data.images, about.data.subjects) == ("mni152", 6, 1)
    assert (about.task, about.scoring) == (one.task, one.scoring)
    assert [cell.as_record() for cell in about.cells] == one.info["cells"]
    assert about.started == "2026-01-01T12:00:00+00:00"


def test_several_tables_are_those_asked_for_one_by_one(one):
    names, by = ("dice", "diff", "pooled_dice", "drop"), ("model", "attack", "loss")
    tables = one.tables(names, by, where={"eps": [0.0, FOUR]})
    assert list(tables) == list(names)
    for name, table in tables.items():
        assert table.equals(Run(one.path).table(name, by, where={"eps": [0.0, FOUR]})), name


def test_truncated_part_is_named_with_the_remedy(tmp_path):
    out = write_run(tmp_path / "r")
    part = min((out / "parts").iterdir())
    part.write_bytes(part.read_bytes()[:-200])
    with pytest.raises(RecordError, match=rf"{part.name}: is damaged.*Run the same command again"):
        Run(out).table()


def test_counts_of_another_number_of_classes(tmp_path):
    out = write_run(tmp_path / "r")
    edit_json(out / "run.json", lambda info: info | {"data": info["data"] | {"classes": ["a", "b"]}})
    with pytest.raises(RecordError, match="counts of all 2 classes"):
        _ = Run(out).rows


@pytest.mark.parametrize("column", ["model", "image", "subject", "eps", "linf", "flags", "tp"])
def test_a_row_that_lacks_a_value(tmp_path, column):
    out = write_run(tmp_path / "r")
    part = min((out / "parts").iterdir())
    rows = pl.read_parquet(part)
    part.unlink()
    part = records.write_part(out, rows.with_columns(pl.when(pl.int_range(pl.len()) > 0).then(column).alias(column)))
    with pytest.raises(
        RecordError, match=rf"{part.name}: holds rows that cannot be .*with no {column}.*\. Run the same"
    ):
        _ = Run(out).rows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"score": "dise"}, r"score: unknown score 'dise'. Did you mean 'dice'\?"),
        ({"by": ("model", "los")}, r"by: unknown column 'los'. Did you mean 'loss'\?"),
        ({"by": "dice"}, r"by: unknown column 'dice'"),
        ({"score": "apsr", "by": ("model", "class")}, "by: unknown column 'class'"),
        ({"score": "area", "by": ("model", "eps")}, "by: unknown column 'eps'"),
        ({"where": {"modle": "a"}}, r"where: unknown column 'modle'. Did you mean 'model'\?"),
        ({"by": ()}, "by: expected at least one column"),
    ],
)
def test_unknown_names(one, arguments, message):
    with pytest.raises(SpecError, match=message):
        one.table(**arguments)


def test_every_score_makes_a_table(one):
    for score in SCORES:
        by = ("model", "attack") if score in ("area", "smallest_eps") else ("model", "attack", "eps")
        table = one.table(score, by=by)
        assert table.columns == [*by, "mean", "lower", "upper", "n_images", "n_subjects"]
        assert table["mean"].is_not_null().any(), score


def test_mean_is_over_subjects_not_images(tmp_path):
    out = write_run(tmp_path / "r", Synthetic(subjects=6, models=("unet-vgg13",)))
    lonely = (pl.col("subject") != "s00") | (pl.col("image") == "s00-z003")
    rewrite_rows(out, lambda rows: rows.filter(lonely))
    run = Run(out)
    row = run.table("dice", where={"loss": "bce", "eps": FOUR}).row(0, named=True)
    rows = run.scores().filter((pl.col("loss") == "bce") & (pl.col("eps") == FOUR))
    subjects = [np.mean(g["dice"].to_list()) for _, g in rows.group_by("subject", maintain_order=True)]
    assert row["mean"] == pytest.approx(np.mean(subjects))
    assert row["mean"] != pytest.approx(rows["dice"].mean(), abs=1e-4)
    assert (row["n_images"], row["n_subjects"]) == (31, 6)


def test_interval_is_over_subjects(eight):
    rows = eight.scores().filter((pl.col("loss") == "dice") & (pl.col("eps") == FOUR))
    interval = subject_interval(rows["dice"].to_list(), rows["subject"].to_list())
    row = eight.table("dice", where={"loss": "dice", "eps": FOUR}).row(0, named=True)
    assert interval is not None
    assert (row["mean"], row["lower"], row["upper"]) == pytest.approx((interval.mean, interval.lower, interval.upper))
    narrow = eight.table("dice", where={"loss": "dice", "eps": FOUR}, level=0.5).row(0, named=True)
    assert narrow["upper"] < row["upper"]


def test_one_subject_has_no_interval(one):
    assert one.table("dice").select("lower", "upper").null_count().row(0) == (len(one.table("dice")),) * 2


def test_draws_are_averaged_within_an_image(eight):
    table = eight.table("dice", by=("attack", "eps"), where={"attack": "random_sign"})
    assert table["n_images"].to_list() == [48, 48]
    by_draw = eight.table("dice", by=("attack", "eps", "draw"), where={"attack": "random_sign"})
    means = by_draw.group_by("eps").agg(pl.col("mean").mean()).sort("eps")["mean"]
    assert table["mean"].to_list() == pytest.approx(means.to_list())


def test_different_attacks_are_never_averaged(one):
    table = one.table("dice", by=("model", "loss", "eps"))
    assert table.columns[:4] == ["model", "loss", "eps", "attack"], "two controls share the empty loss"
    narrowed = one.table("dice", by=("model", "loss", "eps"), where={"attack": ["fgsm", "random_sign"]})
    assert narrowed.columns[:4] == ["model", "loss", "eps", "mean"]


def test_different_settings_and_norms_are_never_averaged(tmp_path):
    extra = (
        {"name": "fgsm", "losses": ["bce"], "eps": ["4/255"], "settings": {"targeted": True}},
        {"name": "fgsm", "losses": ["bce"], "eps": ["4/255"], "norm": "l2"},
    )
    run = Run(write_run(tmp_path / "r", Synthetic(models=("unet-vgg13",), extra=extra)))
    table = run.table("dice", by=("model", "loss"), where={"loss": "bce", "eps": FOUR})
    assert table.columns[:4] == ["model", "loss", "settings", "norm"]
    assert len(table) == 3


def test_order_is_that_of_the_suite(one):
    table = one.table("dice", by=("model", "attack", "loss"))
    assert table["model"].unique(maintain_order=True).to_list() == list(one.model_names)
    first = table.filter(model="basicunet-s")
    assert first["attack"].to_list() == ["none", "fgsm", "fgsm", "random_sign", "uniform_noise", "worst_case"]
    classes = one.table("dice", by="class", where={"attack": "none"})
    assert classes["class"].to_list() == ["grey matter", "white matter", "csf"]


def test_one_class_can_be_picked(one):
    by_class = one.table("dice", by=("model", "class"), where={"attack": "none"})
    picked = one.table("dice", by="model", where={"attack": "none", "class": "csf"})
    assert picked["mean"].to_list() == by_class.filter(pl.col("class") == "csf")["mean"].to_list()


def test_diff_is_a_ratio_of_means(eight):
    where = {"loss": "bce", "eps": FOUR}
    diff = eight.table("diff", where=where)["mean"].item()
    clean, hit = (eight.table(score, where=where)["mean"].item() for score in ("dice_clean", "dice"))
    assert diff == pytest.approx((clean - hit) / clean)
    scored = eight.scores().filter((pl.col("loss") == "bce") & (pl.col("eps") == FOUR))
    assert diff != pytest.approx((scored["drop"] / scored["dice_clean"]).mean(), abs=1e-5)


def test_the_released_diff_is_a_ratio_of_the_released_scores(eight):
    where = {"loss": "bce", "eps": FOUR}
    diff, hit, clean = (
        eight.table(score, where=where)["mean"].item()
        for score in ("diff_released", "dice_released", "dice_released_clean")
    )
    assert diff == pytest.approx(1 - hit / clean)
    assert diff != pytest.approx(eight.table("diff", where=where)["mean"].item(), abs=1e-4)


def test_diff_compares_the_same_images(tmp_path):
    out = write_run(tmp_path / "r", Synthetic(models=("unet-vgg13",)))
    before = Run(out).table("diff", where={"loss": "bce", "image": ["s00-z000", "s00-z001"]})
    few = (pl.col("loss") != "bce") | pl.col("image").is_in(["s00-z000", "s00-z001"])
    rewrite_rows(out, lambda rows: rows.filter(few))
    assert Run(out).table("diff", where={"loss": "bce"})["mean"].to_list() == before["mean"].to_list()


def test_conventions_can_be_changed_afterwards(one):
    missing = "white matter"
    by_rule = {
        rule: one.table("dice", by="class", where={"attack": "none"}, scoring=Scoring(empty=rule))
        for rule in ("skip", "one", "zero")
    }
    found = {rule: table.filter(**{"class": missing}).row(0, named=True) for rule, table in by_rule.items()}
    assert [found[rule]["n_images"] for rule in ("skip", "one", "zero")] == [5, 6, 6]
    assert found["zero"]["mean"] == pytest.approx(found["skip"]["mean"] * 5 / 6)
    assert found["one"]["mean"] == pytest.approx((found["skip"]["mean"] * 5 + 1) / 6)
    strict = one.table("dice_below", by=("model", "attack"), scoring=Scoring(dice_threshold=0.79))
    assert strict["n_images"].sum() < one.table("dice_below", by=("model", "attack"))["n_images"].sum()


def test_scores_are_those_of_the_module(one):
    assert one.scores().head(len(one.rows)).equals(score_rows(one.rows, one.task, one.scoring))
    assert set(one.scores()[len(one.rows) :]["attack"]) == {"worst_case"}
    assert one.scores() is one.scores(Scoring()), "computed once"


def test_a_group_without_any_score_is_kept(tmp_path):
    out = write_run(tmp_path / "r", Synthetic(models=("unet-vgg13",)))
    row = Run(out).table("dice_below", by="attack", scoring=Scoring(dice_threshold=0.99)).row(0, named=True)
    assert row == {"attack": "none", "mean": None, "lower": None, "upper": None, "n_images": 0, "n_subjects": 0}


def test_order_of_parts_and_rows_does_not_matter(tmp_path, one):
    out = write_run(tmp_path / "r")
    rewrite_rows(out, lambda rows: rows.sample(fraction=1, shuffle=True, seed=3))
    run = Run(out)
    assert run.rows.equals(one.rows)
    for score in ("dice", "diff", "pooled_dice"):
        assert run.table(score).equals(one.table(score))


def test_multiclass_background_is_no_class_of_the_tables(tmp_path):
    run = Run(write_run(tmp_path / "r", Synthetic(kind="multiclass", models=("unet-vgg13",), losses=("ce",))))
    assert run.table("dice", by="class", where={"attack": "none"})["class"].to_list() == list(
        find_scored_classes(run.task)
    )


def test_missing_counts_pairs_and_leaves_out_what_is_skipped(tmp_path):
    out = write_run(tmp_path / "r", Synthetic(losses=("bce", "ce"), models=("unet-vgg13",)))
    run = Run(out)
    assert (run.planned, run.missing) == (6 * (1 + 2 + 4 + 2), 0), "ce has no meaning here, so it is not planned"
    rewrite_rows(out, lambda rows: rows.filter((pl.col("loss") != "bce") | (pl.col("image") == "s00-z001")))
    run = Run(out)
    assert run.missing == 2 * 5
    assert set(run.missing_by_cell.values()) == {5}
    rewrite_rows(out, lambda rows: rows.clear())
    run = Run(out)
    assert run.missing == run.planned
    assert run.table("dice").is_empty()
    assert find_extremes(run) == ()


def test_extremes_are_the_largest_and_smallest_drop(one):
    cases = find_extremes(one)
    assert [(c.model, c.kind) for c in cases] == [(m, k) for m in one.model_names for k in ("worst", "best")]
    at_four = one.scores().filter((pl.col("eps") == FOUR) & (pl.col("model") == "basicunet-s"))
    rows = at_four.filter(pl.col("attack") == "worst_case")
    assert (cases[0].arm.attack, cases[0].eps) == ("fgsm", FOUR)
    for case, pick in zip(cases, ("max", "min"), strict=False):
        assert case.dice_clean - case.dice_attacked == pytest.approx(getattr(rows["drop"], pick)())
        (member,) = at_four.filter(cell=case.cell, image=case.image).to_dicts()
        assert (member["attack"], member["dice"]) == ("fgsm", case.dice_attacked)


def test_the_worst_case_is_followed_over_eps(tmp_path):
    eps = (1, 2, 3, 4, 6, 8, 10, 12, 16)
    out = write_run(tmp_path / "r", Synthetic(models=("unet-vgg13",), losses=("bce",), eps=eps))
    run = Run(out)
    worst, best = find_extremes(run)
    assert [round(255 * step.eps) for step in worst.sweep] == [1, 4, 6, 10, 16]
    for step in worst.sweep:
        row = run.scores().filter(cell=step.cell, image=worst.image).row(0, named=True)
        assert (row["attack"], row["loss"], row["eps"], row["dice"]) == ("fgsm", "bce", step.eps, step.dice)
    assert [(step.cell, step.eps, step.dice) for step in best.sweep] == [(best.cell, best.eps, best.dice_attacked)]
    gone = worst.sweep[0].cell
    rewrite_rows(out, lambda rows: rows.filter((pl.col("cell") != gone) | (pl.col("image") != worst.image)))
    sweep = find_extremes(Run(out))[0].sweep
    assert gone not in {step.cell for step in sweep}, "what failed is not shown"
    assert [round(255 * step.eps) for step in sweep] == [2, 4, 8, 10, 16]


def test_a_case_is_written_flat_and_read_back(one):
    worst = find_extremes(one)[0]
    record = worst.as_record()
    names = ["kind", "model", "image", "cell", "attack", "loss", "settings", "norm", "eps", "dice_clean"]
    assert list(record) == [*names, "dice_attacked", "sweep"]
    assert (record["attack"], record["loss"], record["settings"], record["norm"]) == ("fgsm", "bce", "{}", "linf")
    assert [list(step) for step in record["sweep"]] == [["cell", "eps", "dice"]] * 2
    assert Extreme.from_record(json.loads(json.dumps(record))) == worst
    del record["norm"]
    with pytest.raises(KeyError, match="norm"):
        Extreme.from_record(record)


def test_what_is_shown_over_eps_is_the_strongest_attack_with_several(tmp_path):
    alone = {"name": "fgsm", "losses": ["dice_focal"], "eps": ["4/255"]}
    loud = ((("fgsm", "dice_focal"), 2.0),)
    out = write_run(tmp_path / "r", Synthetic(models=("unet-vgg13",), losses=("bce",), extra=(alone,), strength=loud))
    run = Run(out)
    (budgets,) = list_budgets(run)
    ranked = rank_attacks(run, budgets)
    assert choose_strongest(ranked)["unet-vgg13"].arm.loss == "dice_focal"
    assert choose_strongest(ranked, swept=True)["unet-vgg13"].arm.loss == "bce"
    assert {case.arm.loss for case in find_extremes(run)} == {"bce"}
    rewrite_rows(out, lambda rows: rows.filter(pl.col("loss").is_in(["", "dice_focal"])))
    assert choose_strongest(rank_attacks(Run(out), budgets), swept=True)["unet-vgg13"].arm.loss == "dice_focal"


def test_extremes_prefer_images_that_were_good(tmp_path):
    out = write_run(tmp_path / "r", Synthetic(models=("unet-vgg13",)))
    bad = (pl.col("image") == "s00-z005") & (pl.col("attack") == "none")
    zero = pl.lit([0, 0, 0], dtype=pl.List(pl.Int64))
    rewrite_rows(out, lambda rows: rows.with_columns(tp=pl.when(bad).then(zero).otherwise("tp")))
    assert all(case.image != "s00-z005" for case in find_extremes(Run(out)))


def test_the_strongest_attack_is_no_control(tmp_path):
    loud = tuple((key, 3.0) for key in STRENGTH if key[0] == "random_sign")
    run = Run(write_run(tmp_path / "r", Synthetic(models=("unet-vgg13",), strength=loud)))
    (top,) = choose_strongest(rank_attacks(run, list_budgets(run)[0])).values()
    assert (top.arm.attack, top.arm.loss) == ("fgsm", "bce")


@pytest.mark.parametrize(
    ("eps", "reference"),
    [
        ([0.0, REFERENCE_EPS, 8 / 255], REFERENCE_EPS),
        ([0.1, 0.3, 0.2], 0.2),
        ([0.1, 0.2], 0.1),
        ([0.0], None),
        ([], None),
    ],
)
def test_reference_budget(eps, reference):
    assert choose_reference(eps) == reference


def test_reading_a_run_needs_no_torch():
    code = "import sys; from advseg_bench import report, results; print('torch' in sys.modules, 'monai' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_sweep_that_lacks_an_eps_has_no_area(tmp_path):
    run = Run(write_run(tmp_path / "run"))
    whole = run.table("area", by=("model", "attack", "loss"))
    assert whole["mean"].null_count() == 0
    largest = max(cell["eps"] for cell in run.info["cells"])
    model = run.model_names[0]
    rewrite_rows(run.path, lambda rows: rows.filter((pl.col("model") != model) | (pl.col("eps") != largest)))
    table = Run(run.path).table("area", by=("model", "attack", "loss"))
    assert table.filter(model=model)["mean"].null_count() == len(table.filter(model=model))
    assert table.filter(pl.col("model") != model)["mean"].null_count() == 0


def test_rows_of_another_run_are_refused(tmp_path):
    out = write_run(tmp_path / "run")
    rewrite_rows(out, lambda rows: rows.with_columns(pl.lit("foreign").alias("cell")))
    with pytest.raises(RecordError, match="holds rows of another run"):
        Run(out).rows  # noqa: B018


@pytest.mark.parametrize("flag", ["skipped", "kept_smaller"])
def test_no_picture_is_made_of_a_result_that_a_cell_took_over(tmp_path, flag):
    """Running the cell alone would make another image than the one that was scored."""
    out = write_run(tmp_path / "r", Synthetic(models=("unet-vgg13",), losses=("bce",), eps=(1, 2, 4, 8)))
    worst = find_extremes(Run(out))[0]

    def take_over(cell: str) -> None:
        here = (pl.col("cell") == cell) & (pl.col("image") == worst.image)
        flags = pl.when(here).then(pl.concat_list(pl.lit(flag))).otherwise("flags")
        rewrite_rows(out, lambda rows: rows.with_columns(flags.alias("flags")))

    take_over(worst.sweep[0].cell)
    shown = find_extremes(Run(out))[0]
    assert (shown.cell, shown.image) == (worst.cell, worst.image)
    assert [step.cell for step in shown.sweep] == [step.cell for step in worst.sweep[1:]]
    take_over(worst.cell)
    shown = find_extremes(Run(out))[0]
    assert shown.image != worst.image
