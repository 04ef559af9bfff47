"""Scores against values computed by hand, by numpy from masks, and by MONAI and torchmetrics."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
import torch
from clocks import count_calls
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import DiceLoss
from monai.metrics import compute_dice, compute_iou
from scipy.integrate import trapezoid
from torchmetrics.functional.segmentation import dice_score

from advseg_bench.results.records import ROW_SCHEMA
from advseg_bench.results.scores import find_scored_classes, pool_counts, score_classes, score_rows
from advseg_bench.results.sweeps import score_curves
from advseg_bench.suite.specs import Scoring
from advseg_bench.types import Task

TWO = Task("multilabel", ("a", "b"))
BASE = {
    "cell": "c",
    "dataset": "d",
    "model": "m",
    "attack": "none",
    "loss": "",
    "settings": "{}",
    "norm": "linf",
    "eps": 0.0,
    "draw": 0,
    "image": "i",
    "subject": "s",
    "block": "b",
    "tp": [0, 0],
    "fp": [0, 0],
    "fn": [0, 0],
    "valid_pixels": 100,
    "wrong_pixels": 0,
    "flipped_pixels": 0,
    "linf": 0.0,
    "l2": 0.0,
    "unmoved": 1.0,
    "forwards": 0.0,
    "backwards": 0.0,
    "flags": [],
}


def make_frame(*changes: dict) -> pl.DataFrame:
    return pl.DataFrame([BASE | change for change in changes], schema=ROW_SCHEMA)


def make_counts(dice: float, n: int = 100) -> dict:
    """Counts of two equal classes with this Dice."""
    wrong = round(n * (1 - dice))
    return {"tp": [n - wrong] * 2, "fp": [wrong] * 2, "fn": [wrong] * 2}


def count_masks(truth: np.ndarray, found: np.ndarray) -> dict:
    axes = tuple(range(1, truth.ndim))
    return {
        "tp": (truth & found).sum(axes).tolist(),
        "fp": (~truth & found).sum(axes).tolist(),
        "fn": (truth & ~found).sum(axes).tolist(),
    }


def test_dice_and_iou_are_means_over_classes():
    scored = score_rows(make_frame({"tp": [6, 1], "fp": [2, 1], "fn": [2, 2]}), TWO, Scoring())
    assert scored["dice"].item() == pytest.approx((12 / 16 + 2 / 5) / 2)
    assert scored["iou"].item() == pytest.approx((6 / 10 + 1 / 4) / 2)


@pytest.mark.parametrize(
    ("counts", "skip", "one", "zero"),
    [
        ({"tp": [5, 0], "fp": [0, 0], "fn": [5, 0]}, 2 / 3, (2 / 3 + 1) / 2, 1 / 3),  # b absent, not predicted
        ({"tp": [5, 0], "fp": [0, 3], "fn": [5, 0]}, 2 / 3, 1 / 3, 1 / 3),  # b absent, predicted
        ({"tp": [0, 0], "fp": [0, 0], "fn": [0, 0]}, None, 1.0, 0.0),  # nothing there, nothing predicted
        ({"tp": [0, 0], "fp": [9, 0], "fn": [0, 0]}, None, 0.5, 0.0),  # nothing there, a predicted
        ({"tp": [0, 0], "fp": [0, 0], "fn": [4, 4]}, 0.0, 0.0, 0.0),  # all missed
    ],
)
def test_the_three_rules_for_absent_classes(counts, skip, one, zero):
    for rule, value in (("skip", skip), ("one", one), ("zero", zero)):
        dice = score_rows(make_frame(counts), TWO, Scoring(empty=rule))["dice"].item()
        assert dice == (value if value is None else pytest.approx(value)), rule


def test_the_background_of_a_multiclass_task_is_left_out():
    task = Task("multiclass", ("background", "a"))
    counts = {"tp": [90, 4], "fp": [1, 5], "fn": [5, 1]}
    assert find_scored_classes(task) == {"a": 1}
    assert score_rows(make_frame(counts), task, Scoring())["dice"].item() == pytest.approx(8 / 14)
    assert score_classes(make_frame(counts), task, Scoring())["class"].to_list() == ["a"]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.floats(0, 1))
def test_equal_to_the_definition_on_masks(seed, p, q):
    generator = np.random.default_rng(seed)
    truth, found = generator.random((2, 7, 5)) < p, generator.random((2, 7, 5)) < q
    scored = score_rows(make_frame(count_masks(truth, found)), TWO, Scoring())
    kept = [(t, f) for t, f in zip(truth, found, strict=True) if t.any()]
    if not kept:
        assert scored["dice"].item() is None
        return
    dice = np.mean([2 * (t & f).sum() / (t.sum() + f.sum()) for t, f in kept])
    iou = np.mean([(t & f).sum() / (t | f).sum() for t, f in kept])
    assert scored["dice"].item() == pytest.approx(dice)
    assert scored["iou"].item() == pytest.approx(iou)


def test_equal_to_monai_and_torchmetrics():
    generator = np.random.default_rng(1)
    truth, found = generator.random((6, 2, 9, 9)) < 0.4, generator.random((6, 2, 9, 9)) < 0.5
    truth[0, 1] = truth[1] = False
    rows = make_frame(
        *(count_masks(t, f) | {"image": str(i)} for i, (t, f) in enumerate(zip(truth, found, strict=True)))
    )
    scored = score_rows(rows, TWO, Scoring())
    y, y_pred = torch.from_numpy(truth).float(), torch.from_numpy(found).float()
    for name, reference in (("dice", compute_dice), ("iou", compute_iou)):
        theirs = reference(y_pred, y, include_background=True, ignore_empty=True).nanmean(1)
        ours = torch.tensor([np.nan if v is None else v for v in scored[name].to_list()])
        assert torch.allclose(ours, theirs, equal_nan=True), name
    there = slice(2, None)
    theirs = dice_score(y_pred[there].bool(), y[there].bool(), 2, average="none", input_format="one-hot").mean(1)
    assert scored["dice"].to_list()[there] == pytest.approx(theirs.tolist(), abs=1e-6)


def test_classes_scored_one_by_one_average_to_the_image():
    clean, hit = make_counts(0.9), {"tp": [60, 30], "fp": [40, 70], "fn": [40, 70]}
    rows = make_frame(clean, hit | {"attack": "fgsm", "cell": "x", "eps": 0.1})
    classes = score_classes(rows, TWO, Scoring())
    assert len(classes) == 4
    attacked = classes.filter(attack="fgsm").sort("class")
    assert attacked["dice"].to_list() == pytest.approx([0.6, 0.3])
    assert attacked["dice_clean"].to_list() == pytest.approx([0.9, 0.9])
    assert attacked["drop"].to_list() == pytest.approx([0.3, 0.6])
    assert score_rows(rows, TWO, Scoring()).filter(attack="fgsm")["dice"].item() == pytest.approx(0.45)


def test_pixel_success_and_its_clean_value():
    rows = make_frame(
        make_counts(1) | {"wrong_pixels": 5, "valid_pixels": 80},
        make_counts(1) | {"attack": "fgsm", "wrong_pixels": 20, "flipped_pixels": 25, "valid_pixels": 80},
    )
    attacked = score_rows(rows, TWO, Scoring()).filter(attack="fgsm").row(0, named=True)
    assert (attacked["apsr"], attacked["apsr_clean"], attacked["flipped"]) == (0.25, 0.0625, 0.3125)


@pytest.mark.parametrize(
    ("wrong", "valid", "reached"), [(99, 100, 1.0), (98, 100, 0.0), (693, 700, 1.0), (692, 700, 0.0)]
)
def test_apsr99_is_exact_at_its_border(wrong, valid, reached):
    scored = score_rows(make_frame({"wrong_pixels": wrong, "valid_pixels": valid}), TWO, Scoring())
    assert scored["apsr99"].item() == reached


def test_no_valid_pixel_is_no_score():
    scored = score_rows(make_frame({"valid_pixels": 0}), TWO, Scoring())
    assert scored.select("apsr", "flipped", "apsr99", "dice").row(0) == (None,) * 4


@pytest.mark.parametrize(
    ("clean", "attacked", "below"),
    [(0.9, 0.4, 1.0), (0.9, 0.5, 0.0), (0.5, 0.4, 1.0), (0.4, 0.1, None)],
)
def test_dice_below_asks_only_images_that_were_good(clean, attacked, below):
    rows = make_frame(make_counts(clean), make_counts(attacked) | {"attack": "fgsm"})
    scored = score_rows(rows, TWO, Scoring(dice_threshold=0.5)).filter(attack="fgsm")
    assert scored["dice_below"].item() == below
    assert scored["drop"].item() == pytest.approx(clean - attacked)


def test_without_a_clean_row_nothing_is_compared_with_it():
    scored = score_rows(make_frame(make_counts(0.4) | {"attack": "fgsm"}), TWO, Scoring())
    assert scored.select("dice_clean", "drop", "dice_below", "apsr_clean").row(0) == (None,) * 4
    assert scored["dice"].item() == pytest.approx(0.4)


def test_the_clean_value_is_that_of_the_same_image_and_model():
    keys = [("m", "i"), ("m", "j"), ("n", "i")]
    clean = [make_counts(0.7 + k / 10) | {"model": m, "image": i} for k, (m, i) in enumerate(keys)]
    attacked = [make_counts(0.1) | {"model": m, "image": i, "attack": "fgsm"} for m, i in keys]
    scored = score_rows(make_frame(*attacked, *clean), TWO, Scoring())
    assert scored["attack"].to_list() == ["fgsm"] * 3 + ["none"] * 3, "the order of rows is kept"
    assert scored["dice_clean"].to_list() == pytest.approx([0.7, 0.8, 0.9] * 2)


def test_pooled_scores_sum_counts_first():
    rows = make_frame(
        {"tp": [10, 0], "fp": [0, 0], "fn": [0, 0], "image": "i"},
        {"tp": [10, 0], "fp": [70, 1], "fn": [10, 0], "image": "j", "subject": "t"},
    )
    (pooled,) = pool_counts(rows, TWO, Scoring(), ["model"]).to_dicts()
    assert pooled["pooled_dice"] == pytest.approx(40 / (40 + 70 + 10))
    assert pooled["pooled_iou"] == pytest.approx(20 / 100)
    assert (pooled["n_images"], pooled["n_subjects"]) == (2, 2)
    assert score_rows(rows, TWO, Scoring())["dice"].mean() == pytest.approx((1 + 20 / 100) / 2)
    (one,) = pool_counts(rows, TWO, Scoring(empty="zero"), ["model"]).to_dicts()
    assert one["pooled_dice"] == pytest.approx(pooled["pooled_dice"] / 2)


BITS = """
import sys
import polars as pl
from advseg_bench.results.scores import pool_counts, score_rows
from advseg_bench.results.sweeps import score_curves
from advseg_bench.suite.specs import Scoring
from advseg_bench.types import Task
rows, task = pl.read_parquet(sys.argv[1]), Task("multilabel", tuple("abcdefgh"))
for _ in range(4):
    scored = score_rows(rows, task, Scoring())
    curves = score_curves(scored, Scoring())
    pooled = [pool_counts(rows, task, Scoring(), [by]) for by in ("model", "cell")]
    print([int(frame.select(pl.selectors.float()).hash_rows().sum()) for frame in (scored, curves, *pooled)])
"""


def test_scores_have_the_same_bits_each_time_and_for_any_number_of_threads(tmp_path):
    rows = []
    for k, counts in enumerate(np.random.default_rng(0).integers(0, 1000, (4000, 3, 8)).tolist()):
        named = {
            "cell": f"c{k}",
            "image": f"i{k % 400}",
            "eps": k // 400 / 255,
            "attack": "pgd" if k >= 400 else "none",
        }
        rows.append(named | dict(zip(("tp", "fp", "fn"), counts, strict=True)))
    make_frame(*rows).write_parquet(tmp_path / "rows")
    command = [sys.executable, "-c", BITS, str(tmp_path / "rows")]
    environments = [os.environ | {"POLARS_MAX_THREADS": threads} for threads in ("1", "2", "5")]
    told = [subprocess.run(command, env=env, check=True, capture_output=True, text=True) for env in environments]
    lines = {line for done in told for line in done.stdout.splitlines()}
    assert len(lines) == 1, lines


def test_pooled_draws_are_averaged_after_the_ratio():
    draws = [
        {"attack": "random_sign", "cell": "x", "draw": 0, "tp": [1, 1], "fp": [0, 0], "fn": [0, 0]},
        {"attack": "random_sign", "cell": "y", "draw": 1, "tp": [0, 0], "fp": [9, 9], "fn": [9, 9]},
    ]
    assert pool_counts(make_frame(*draws), TWO, Scoring(), ["attack"])["pooled_dice"].item() == 0.5


def make_sweep(clean: float, points: dict[float, float], **changes) -> list[dict]:
    rows = [make_counts(clean, 1000) | changes]
    return rows + [
        make_counts(d, 1000) | {"attack": "fgsm", "eps": eps, "cell": f"x{eps}"} | changes for eps, d in points.items()
    ]


def test_area_and_smallest_eps_by_hand():
    rows = make_frame(*make_sweep(0.8, {0.1: 0.6, 0.3: 0.2}))
    (curve,) = score_curves(score_rows(rows, TWO, Scoring()), Scoring()).to_dicts()
    assert curve["area"] == pytest.approx((0.1 * 0.7 + 0.2 * 0.4) / 0.3)
    assert curve["smallest_eps"] == 0.3


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.01, 0.9), min_size=1, max_size=6, unique=True), st.randoms(use_true_random=False))
def test_area_equals_numpy(eps, random):
    levels = {e: random.randrange(0, 1000) / 1000 for e in sorted(eps)}
    rows = make_sweep(0.75, levels)
    random.shuffle(rows)
    (curve,) = score_curves(score_rows(make_frame(*rows), TWO, Scoring()), Scoring()).to_dicts()
    assert curve["area"] == pytest.approx(trapezoid([0.75, *levels.values()], [0, *levels]) / max(eps))
    broken = [e for e, d in levels.items() if d < 0.5]
    assert curve["smallest_eps"] == (min(broken) if broken else None)


def test_curves_do_not_run_into_each_other():
    rows = make_frame(
        *make_sweep(0.9, {0.1: 0.9, 0.2: 0.9}, image="i"), *make_sweep(0.6, {0.1: 0.3, 0.2: 0.1}, image="j")
    )
    curves = score_curves(score_rows(rows, TWO, Scoring()), Scoring()).sort("image")
    assert curves["area"].to_list() == pytest.approx([0.9, (0.45 + 0.2) / 2])
    assert curves["smallest_eps"].to_list() == [None, 0.1]


def test_a_curve_with_a_gap_has_no_area():
    rows = make_frame(
        *make_sweep(0.9, {0.1: 0.8, 0.2: 0.7}, image="i"),
        *make_sweep(0.9, {0.2: 0.4}, image="gap"),
        make_counts(0.9) | {"attack": "fgsm", "eps": 0.1, "image": "no clean"},
        make_counts(0.9) | {"attack": "fgsm", "eps": 0.2, "image": "no clean"},
    )
    curves = score_curves(score_rows(rows, TWO, Scoring()), Scoring())
    found = {row["image"]: (row["area"], row["smallest_eps"]) for row in curves.to_dicts()}
    assert found["i"][0] == pytest.approx(0.8)
    assert found["gap"] == (None, 0.2)
    assert found["no clean"] == (None, None)


def test_an_image_that_was_bad_when_clean_is_never_broken():
    rows = make_frame(*make_sweep(0.4, {0.1: 0.2}))
    assert score_curves(score_rows(rows, TWO, Scoring()), Scoring())["smallest_eps"].item() is None


def test_the_curve_of_a_random_attack_is_that_of_its_mean():
    sweep = make_sweep(0.9, {})
    for draw, levels in enumerate(({0.1: 0.2, 0.2: 0.3}, {0.1: 0.9, 0.2: 0.5})):
        sweep += [make_counts(d) | {"attack": "random_sign", "eps": e, "draw": draw} for e, d in levels.items()]
    (curve,) = score_curves(score_rows(make_frame(*sweep), TWO, Scoring()), Scoring()).to_dicts()
    assert curve["smallest_eps"] == 0.2, "0.55 at 0.1, 0.4 at 0.2"
    assert curve["area"] == pytest.approx(((0.9 + 0.55) / 2 + (0.55 + 0.4) / 2) / 2)


def test_only_eps_zero_has_no_area():
    rows = make_frame(*make_sweep(0.9, {0.0: 0.9}))
    assert score_curves(score_rows(rows, TWO, Scoring()), Scoring())["area"].item() is None


def test_the_clean_image_is_no_measurement():
    hit = {"attack": "fgsm", "eps": 0.1, "cell": "a"} | make_counts(0.4)
    kept = hit | {"image": "other"} | make_counts(0.8) | {"flags": ["unchanged"]}
    frame = make_frame(
        {"attack": "none"} | make_counts(0.8), {"attack": "none", "image": "other"} | make_counts(0.8), hit, kept
    )
    task = Task("binary", ("a",))
    scored = score_rows(frame, task, Scoring()).filter(pl.col("attack") == "fgsm")
    assert scored["dice"].to_list() == [pytest.approx(0.4), None]
    assert scored["drop"].to_list() == [pytest.approx(0.4), None]
    assert scored["dice_clean"].null_count() == 0
    assert scored["apsr"].null_count() == scored["flipped"].null_count() == scored["dice_below"].null_count() == 1
    pooled = pool_counts(frame.filter(pl.col("attack") == "fgsm"), task, Scoring(), ("attack",))
    assert pooled["pooled_dice"].to_list() == [pytest.approx(0.4)]
    assert score_classes(frame, task, Scoring()).filter(pl.col("attack") == "fgsm").height == 1


def test_a_hundred_times_the_rows_take_as_many_calls():
    task = Task("multilabel", ("a", "b", "c"))

    def score(rows):
        scored = score_rows(rows, task, Scoring())
        assert scored["dice_clean"].null_count() == 0

    few, many = make_many(200), make_many(20_000)
    score(few)
    assert few["model"].n_unique() == many["model"].n_unique() == 10
    assert count_calls(score, many) < 1.2 * count_calls(score, few)


def make_many(n):
    """So many rows, of ten models: one clean one in ten."""
    counts = pl.Series(np.random.default_rng(0).integers(1, 500, (n, 3))).cast(pl.List(pl.Int64))
    constants = {name: BASE[name] for name in ("dataset", "loss", "settings", "norm", "subject", "block")}
    k, images = pl.col("k"), n // 100
    return pl.DataFrame({"k": np.arange(n)}).select(
        *(pl.lit(value).alias(name) for name, value in constants.items()),
        model=(k // (10 * images)).cast(pl.String),
        image=(k % images).cast(pl.String),
        cell=(k // images).cast(pl.String),
        attack=pl.when(k // images % 10 == 0).then(pl.lit("none")).otherwise(pl.lit("fgsm")),
        eps=k // images % 10 / 255,
        draw=pl.lit(0),
        valid_pixels=pl.lit(4096),
        wrong_pixels=pl.lit(100),
        flipped_pixels=pl.lit(50),
        tp=counts,
        fp=counts,
        fn=counts,
        flags=pl.lit([], dtype=pl.List(pl.String)),
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 0.6), st.floats(0, 0.6))
def test_the_released_dice_is_monais_of_mask_and_prediction(seed, density, error):
    """`1 - DiceLoss()(mask, prediction)` with MONAI's defaults, on one image; empty classes included."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.rand((2, 6, 6), generator=generator) < density
    truth[1] &= density > 0.3  # a class that is often missing
    found = truth ^ (torch.rand((2, 6, 6), generator=generator) < error)
    counts = {
        "tp": (truth & found).sum((1, 2)).tolist(),
        "fp": (~truth & found).sum((1, 2)).tolist(),
        "fn": (truth & ~found).sum((1, 2)).tolist(),
    }
    score = score_rows(make_frame(counts), TWO, Scoring())["dice_released"].item()
    if not truth.any():
        assert score is None
    else:
        theirs = 1 - DiceLoss()(truth[None].float(), found[None].float())
        assert score == pytest.approx(float(theirs), abs=1e-6)
