"""The report: what it says, that it is honest about what is not there, and that its files stand alone."""

from __future__ import annotations

import gc
import io
import re
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import matplotlib
import numpy as np
import polars as pl
import pytest
from rich.console import Console
from runs import MODELS, STRENGTH, Synthetic, edit_json, rewrite_rows, write_run

from advseg_bench import report
from advseg_bench.cache import write_json
from advseg_bench.errors import RecordError, SpecError
from advseg_bench.report import figures, scatter, summarise, write_report
from advseg_bench.report.contents import compose
from advseg_bench.report.contrasts import Contrast, show_ratio
from advseg_bench.report.document import (
    Figure,
    Table,
    show_budget,
    show_estimate,
    show_number,
    show_times,
    thin,
)
from advseg_bench.report.findings import _describe_noise, write_findings
from advseg_bench.report.measured import measure_cells
from advseg_bench.report.page import render_html, render_markdown
from advseg_bench.report.panels import make_galleries
from advseg_bench.report.series import choose_drawn, list_series
from advseg_bench.report.terminal import print_document
from advseg_bench.results.run import Run
from advseg_bench.results.selection import choose_strongest, list_budgets, rank_attacks
from advseg_bench.stats import compare_paired, joint_sign_flip_ps, sign_flip_ps
from advseg_bench.suite.cells import CLEAN, show_radii

FOUR = 4 / 255


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects text and addresses."""

    VOID = frozenset(("meta", "img", "source", "br", "link"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.addresses += [found[name] for name in ("src", "href", "srcset") if name in found]
        self.ids += [found["id"]] if "id" in found else []
        if tag == "img":
            assert found["alt"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def say(run: Run) -> str:
    """The report as Markdown, without drawing anything."""
    return render_markdown(compose(summarise(run)))


def find_table(run: Run, name: str) -> Table:
    return next(
        b for s in compose(summarise(run)).sections for b in s.blocks if isinstance(b, Table) and b.name == name
    )


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A run on one subject, with pictures."""
    return Run(write_run(tmp_path_factory.mktemp("runs") / "one", panels=True))


@pytest.fixture(scope="module")
def files(one):
    """Its report, written once."""
    return {str(path.relative_to(one.path / "report")): path for path in write_report(one)}


def test_every_format_is_written(files):
    names = {"report.html", "report.md", *(f"tables/{n}.csv" for n in ("clean", "dice", "diff", "success", "noise"))}
    drawn = ("dice_eps", "parameters", "classes_eps", "panels", "panels_basicunet-s", "panels_unet-mobilenet")
    names |= {f"figures/{n}.{'png' if n.startswith('panels') else 'svg'}" for n in drawn}
    assert names <= set(files)
    assert all(path.stat().st_size for path in files.values())


@pytest.mark.parametrize("parameters", [{"a": 1000, "b": 1001, "c": 10**6}, {"b": 5, "a": 5, "c": 5}, {"a": 7}])
def test_names_of_models_lead_to_their_places_and_leave_room_for_each_other(parameters):
    ax = matplotlib.figure.Figure().subplots()
    scatter.scale_parameters(ax, parameters)
    scatter.name_models(ax, parameters, gap=0.06)
    assert [text.get_text() for text in ax.texts] == sorted(parameters, key=parameters.__getitem__)
    places = [text.get_position()[0] for text in ax.texts]
    assert all(after - before >= 0.06 - 1e-12 for before, after in pairwise(places))
    for text, line in zip(ax.texts, ax.lines, strict=True):
        (foot, bottom), (end, top) = line.get_transform().transform(line.get_xydata())
        name, above = text.get_transform().transform(text.get_position())
        marked, border = ax.transData.transform((parameters[text.get_text()], ax.get_ylim()[1]))
        assert (foot, bottom, end) == pytest.approx((marked, border, name), abs=1e-6)
        assert bottom < top < above


def test_an_error_while_charts_are_drawn_waits_for_one_sheet_at_most(tmp_path, one, monkeypatch):
    drawn, begun = [], threading.Event()

    def encode_until_waited_for(image, kind):
        drawn.append(kind)
        begun.set()
        while "join" not in {frame.name for frame in list_frames(threading.main_thread())}:
            time.sleep(0.01)
        return b""

    def fail(*_):
        assert begun.wait(120)
        raise KeyError("no chart")

    monkeypatch.setattr(report, "encode_sheet", encode_until_waited_for)
    monkeypatch.setattr(figures, "render", fail)
    with pytest.raises(KeyError, match="no chart"):
        write_report(one, tmp_path)
    assert drawn == ["png"], "of three sheets"


def list_frames(thread):
    return traceback.extract_stack(sys._current_frames()[thread.ident])


def test_the_collector_rests_while_a_report_is_written(tmp_path, one, monkeypatch):
    seen = []

    class Watched(Run):
        def tables(self, *arguments, **options):
            seen.append(gc.isenabled())
            return super().tables(*arguments, **options)

    assert gc.isenabled()
    write_report(Watched(one.path), tmp_path)
    assert gc.isenabled()
    assert seen
    assert not any(seen)


def test_a_summary_is_computed_once_and_asks_for_no_table_twice(tmp_path, one):
    asked = []

    class Watched(Run):
        def tables(self, names, by, **options):
            asked.extend((name, tuple(by), repr(options)) for name in names)
            return super().tables(names, by, **options)

    summary = summarise(Watched(one.path))
    assert asked
    assert len({*asked}) == len(asked)
    assert summarise(summary) is summary
    before = list(asked)
    report.write_report(summary, tmp_path)
    made = [each for each in asked[len(before) :] if "released" not in each[0]]
    assert not made, "tables of the study's own scores belong to the claims page"


def test_figures_in_further_formats(tmp_path, one, files):
    paths = {
        str(path.relative_to(tmp_path)): path for path in write_report(one, tmp_path, formats=("pdf", "png", "pdf"))
    }
    figures = {name.rsplit(".", 1)[0] for name in files if name.startswith("figures/")}
    assert {*paths} == {*files} | {f"{name}.{kind}" for name in figures for kind in ("pdf", "png")}
    for name, path in paths.items():
        data = path.read_bytes()
        if name in files:
            assert data == files[name].read_bytes()
        else:
            assert data[:4] == {".pdf": b"%PDF", ".png": b"\x89PNG"}[path.suffix]
    write_report(one, tmp_path)
    left = {str(path.relative_to(tmp_path)) for path in (tmp_path / "figures").iterdir()}
    assert left == {name for name in files if name.startswith("figures/")}, "none that shows an earlier run"
    with pytest.raises(SpecError, match=r"^format: expected png or pdf, got 'eps'"):
        write_report(one, tmp_path, formats=("eps",))


def test_the_page_stands_alone(files):
    text = files["report.html"].read_text()
    page = Page(text)
    assert page.addresses
    assert all(a.startswith(("#", "data:image/")) for a in page.addresses)
    assert {a[1:] for a in page.addresses if a.startswith("#")} <= set(page.ids)
    assert "<script" not in text
    assert "@import" not in text
    assert len(text) < 3_000_000


def test_the_same_rows_give_the_same_bytes(tmp_path, files):
    again = Run(write_run(tmp_path / "one", panels=True))
    rewrite_rows(again.path, lambda rows: rows.sample(fraction=1, shuffle=True, seed=1))
    for path in write_report(again, tmp_path / "elsewhere"):
        name = str(path.relative_to(tmp_path / "elsewhere"))
        assert path.read_bytes() == files[name].read_bytes(), name


def test_tables_hold_the_run_s_own_numbers(one, files):
    stored = pl.read_csv(files["tables/dice.csv"]).filter(
        (pl.col("loss") == "bce") & (pl.col("model") == "basicunet-s")
    )
    table = one.table("dice", where={"loss": "bce", "model": "basicunet-s"})
    assert stored["mean"].to_list() == pytest.approx(table["mean"].to_list(), abs=1e-8)
    shown = find_table(one, "dice")
    assert [c.label for c in shown.columns] == ["Model", "Attack and loss", "Clean", "2/255", "4/255"]
    clean = one.table("dice", by="model", where={"attack": "none"})["mean"][0]
    expected = ("basicunet-s", "fgsm bce", *(f"{value:.3f}" for value in (clean, *table["mean"])))
    assert shown.rows()[0] == expected


def test_diff_table(one):
    cells = {row[:2]: row[2:] for row in find_table(one, "diff").rows()}
    diff = one.table("diff", where={"loss": "bce", "model": "basicunet-s"})["mean"]
    assert cells["basicunet-s", "fgsm bce"] == tuple(f"{value:.3f}" for value in diff)


def test_success_table_has_every_definition_and_threshold(one):
    table = find_table(one, "success")
    assert "4/255" in table.title
    (row,) = [r for r in table.rows() if r[:2] == ("basicunet-s", "fgsm bce")]
    where = {"loss": "bce", "model": "basicunet-s", "eps": FOUR}
    means = [
        one.table(n, where=where)["mean"].item() for n in ("dice_below", "apsr_clean", "apsr", "flipped", "apsr99")
    ]
    assert row[2:] == (f"{means[0]:.3f}", "6", *(f"{value:.3f}" for value in means[1:]))
    for word in (">= 0.5", "99 %", "ground truth", "clean prediction"):
        assert word in table.caption


def test_findings_are_the_numbers(one):
    drops = [one.table("drop", where={"loss": "bce", "eps": FOUR, "model": m})["mean"].item() for m in one.model_names]
    text = say(one)
    assert f"strongest single attack lowers it by {min(drops):.3f} to {max(drops):.3f}; random_sign" in text
    where = {"attack": "worst_case", "eps": FOUR}
    worst = one.table("drop", by="model", where=where)["mean"]
    assert f"the worst case over the attacks on each model lowers mean Dice by {worst.min():.3f} to" in text
    noise = one.table("drop", by="model", where={"attack": "random_sign", "eps": FOUR})["mean"]
    ratios = sorted(d / n for d, n in zip(drops, noise, strict=True))
    low, high = (show_times(r).removesuffix("x") for r in ratios)
    span = low if low == high else f"{low} to {high}"
    assert f"On every model the attack's drop is {span} times that of the noise." in text
    assert "The strongest single attack on all 2 models is fgsm bce." in text
    assert "best clean Dice is basicunet-s; unet-mobilenet loses the largest share" in text


def test_an_attack_no_better_than_noise_is_called_that(tmp_path):
    weak = (*((key, 0.01) for key in STRENGTH if key[0] == "fgsm"), (("random_sign", ""), 0.1))
    run = Run(write_run(tmp_path / "r", Synthetic(strength=weak)))
    assert "On basicunet-s, unet-mobilenet the attack's drop does not exceed that of the noise: no evidence" in say(run)
    assert [row[-1] for row in find_table(run, "noise").rows()] == ["no", "no"]


def test_no_ratio_to_a_noise_that_does_nothing(tmp_path):
    silent = ((("random_sign", ""), 0.0),)
    run = Run(write_run(tmp_path / "r", Synthetic(strength=silent, models=("unet-vgg13",))))
    same = pl.col("attack").is_in(["random_sign", "uniform_noise"])
    clean = (
        run.rows.cast({pl.Categorical(): pl.String})
        .filter(attack="none")
        .select("image", *(pl.col(n).alias(f"{n}_c") for n in ("tp", "fp", "fn")))
    )
    columns = run.rows.columns
    rewrite_rows(
        run.path,
        lambda rows: (
            rows.join(clean, on="image")
            .with_columns(pl.when(same).then(f"{n}_c").otherwise(n).alias(n) for n in ("tp", "fp", "fn"))
            .select(columns)
        ),
    )
    run = Run(run.path)
    (contrast,) = summarise(run).contrasts
    assert (contrast.ratio, contrast.beyond_noise) == (None, True)
    assert re.search(r"On unet-vgg13 the attack lowers Dice; the noise .*by less than 0\.0005\.", say(run))
    assert find_table(run, "noise").rows()[0][-2:] == ("-", "yes")


MANY = {"losses": ("bce",), "models": ("unet-vgg13",), "subjects": 8}


def test_more_than_noise_is_a_paired_test_over_subjects(tmp_path):
    """Means that differ by less than subjects do are no evidence."""
    strong = Run(write_run(tmp_path / "a", Synthetic(**MANY)))
    (contrast,) = summarise(strong).contrasts
    assert contrast.tested
    assert contrast.beyond_noise
    assert contrast.test.mean == pytest.approx(contrast.drop["mean"] - contrast.noise["mean"])
    equal = tuple(((name, loss), 0.6) for name, loss in (("fgsm", "bce"), ("random_sign", "")))
    alike = Run(write_run(tmp_path / "b", Synthetic(**MANY, strength=equal)))
    (contrast,) = summarise(alike).contrasts
    if contrast.beyond_noise:
        assert contrast.test.p <= 0.05
    else:
        assert contrast.test.p > 0.05 or contrast.test.mean <= 0
        assert "not significantly larger than that of the noise" in say(alike)


def test_more_than_noise_is_adjusted_for_the_choice_of_the_attack(tmp_path):
    """Three losses: p is that of the largest of the three, from their differences to the noise in each subject."""
    losses = ("bce", "dice", "dice_focal")
    near = tuple(((name, loss), 0.3) for name, loss in (*(("fgsm", loss) for loss in losses), ("random_sign", "")))
    run = Run(write_run(tmp_path / "r", Synthetic(**MANY | {"losses": losses}, strength=near)))
    (contrast,) = summarise(run).contrasts
    rows = run.scores().filter(eps=FOUR)
    rows = rows.group_by("attack", "loss", "subject", "image").agg(pl.col("drop").mean())
    rows = rows.group_by("attack", "loss", "subject").agg(pl.col("drop").mean()).sort("subject")
    noise = rows.filter(attack="random_sign")["drop"].to_numpy()
    differences = np.array([rows.filter(attack="fgsm", loss=loss)["drop"].to_numpy() - noise for loss in losses])
    best = differences.mean(axis=1).argmax()
    assert contrast.arm.loss == losses[best]
    assert contrast.p == joint_sign_flip_ps(differences)[best]
    assert contrast.test.p == sign_flip_ps(differences)[best]
    assert contrast.p > contrast.test.p


def test_a_difference_that_only_its_own_p_calls_significant_is_not_more_than_noise():
    row, noise = ({"mean": mean, "lower": None, "upper": None} for mean in (0.06, 0.05))
    test = compare_paired([0.03, 0.01, 0.02, 0.01, 0.01, 0.02, 0.01, -0.01])
    assert test.p <= 0.05
    contrast = Contrast("m", CLEAN, "fgsm", 0.9, row, noise, test)
    assert replace(contrast, p=test.p).beyond_noise
    assert not replace(contrast, p=0.06).beyond_noise


@pytest.mark.parametrize(
    ("drops", "words"),
    [
        ((0.25, 0.5), "lowers it by 0.250 to 0.500"),
        ((0.25, 0.2501), "lowers it by 0.250"),
        ((-0.002, -0.0007), "raises it by 0.001 to 0.002"),
        ((-0.002, -0.0001), "raises it by 0.000 to 0.002"),
        ((0.0001, -0.0001), "lowers it by 0.000"),
        ((-0.0121, 0.003), "changes it by -0.003 to +0.012"),
    ],
)
def test_a_negative_drop_is_an_increase_of_dice(tmp_path, drops, words):
    """In the sentence on noise, for any signs."""
    summary = summarise(Run(write_run(tmp_path / "r")))
    pairs = zip(summary.contrasts, drops, strict=True)
    contrasts = tuple(replace(c, noise=c.noise | {"mean": drop}) for c, drop in pairs)
    (sentence, *_) = write_findings(replace(summary, contrasts=contrasts))
    assert sentence.endswith(f"random_sign of the same budget {words}.")


def test_the_repeats_of_a_stochastic_model_have_l2_radii_as_plain_numbers(tmp_path):
    out = write_run(tmp_path / "r", Synthetic(extra=({"name": "fgsm", "losses": ["bce"], "norm": "l2", "eps": [0.2]},)))
    model = Run(out).model_names[0]
    edit_json(out / "models" / f"{model}.json", lambda known: known | {"stochastic": {"repeats": 2}})
    radii = {column.label: column.cells for column in find_table(Run(out), "repeats").columns}["eps"]
    assert {"0.2", "4/255"} <= set(radii)
    assert "51/255" not in radii


def test_the_headline_is_over_the_images_that_both_changed(tmp_path):
    """An attack that leaves half of the images as they are is compared with noise on the others."""
    out = write_run(tmp_path / "r", Synthetic(**MANY))
    whole = summarise(Run(out)).contrasts[0]
    images = sorted(set(Run(out).rows["image"].cast(pl.String)))
    kept = images[::2]
    still = (pl.col("attack") == "fgsm") & ~pl.col("image").is_in(kept)
    rewrite_rows(
        out, lambda rows: rows.with_columns(flags=pl.when(still).then(pl.lit(["unchanged"])).otherwise("flags"))
    )
    run = Run(out)
    (contrast,) = summarise(run).contrasts
    scored = run.scores().filter(pl.col("image").cast(pl.String).is_in(kept))

    def mean(attack: str, score: str) -> float:
        rows = scored.filter(pl.col("attack") == attack).filter(pl.col("eps").is_in([FOUR, 0.0]))
        by_image = rows.group_by("subject", "image").agg(pl.col(score).mean())
        return by_image.group_by("subject").agg(pl.col(score).mean())[score].mean()

    assert contrast.drop["mean"] == pytest.approx(mean("fgsm", "drop"))
    assert contrast.noise["mean"] == pytest.approx(mean("random_sign", "drop"))
    assert contrast.clean == pytest.approx(mean("none", "dice"))
    assert contrast.noise["mean"] != pytest.approx(whole.noise["mean"])
    assert contrast.left_out == len(images) - len(kept)
    assert f"leave out up to {len(images) - len(kept)} images" in say(run)


def test_the_headline_compares_with_the_most_harmful_noise(tmp_path):
    stronger = ((("uniform_noise", ""), 0.3),)
    run = Run(write_run(tmp_path / "r", Synthetic(**MANY, strength=stronger)))
    assert "uniform_noise of the same budget" in say(run)
    drops = {
        name: run.table("drop", by="model", where={"attack": name, "eps": FOUR})["mean"][0] for name in run.controls
    }
    assert drops["uniform_noise"] > drops["random_sign"]
    assert summarise(run).contrasts[0].noise["mean"] == pytest.approx(drops["uniform_noise"])


def test_images_without_any_class_are_not_counted_as_left_out(tmp_path):
    """They have no clean score, so that no attack took them out of the mean."""
    out = write_run(tmp_path / "r", Synthetic(**MANY))
    empty = sorted(set(Run(out).rows["image"].cast(pl.String)))[:3]
    nothing = pl.col("tp").list.eval(pl.element() * 0)

    def clear(rows: pl.DataFrame) -> pl.DataFrame:
        here = pl.col("image").is_in(empty)
        cleared = {name: pl.when(here).then(nothing).otherwise(name).alias(name) for name in ("tp", "fn")}
        return rows.with_columns(**cleared)

    rewrite_rows(out, clear)
    run = Run(out)
    assert run.scores().filter(pl.col("dice_clean").is_null())["image"].n_unique() == len(empty)
    assert summarise(run).contrasts[0].left_out == 0
    assert "leave out" not in say(run)


def test_a_ratio_to_noise_whose_interval_includes_0_is_a_lower_limit():
    row = {"mean": 0.06, "lower": 0.05, "upper": 0.07}
    noise = {"mean": 0.004, "lower": -0.002, "upper": 0.01}
    contrast = Contrast("m", CLEAN, "fgsm", 0.9, row, noise)
    assert (contrast.ratio, contrast.least_ratio) == (None, pytest.approx(6.0))
    assert show_ratio(contrast) == ">= 6.0x"
    known = replace(contrast, noise=noise | {"lower": 0.002})
    assert (known.ratio, known.least_ratio, show_ratio(known)) == (pytest.approx(15.0), None, "15x")
    wide = replace(contrast, noise=noise | {"upper": 0.07})
    assert (wide.ratio, wide.least_ratio, show_ratio(wide)) == (None, None, "-")


def test_noise_that_raises_dice_is_not_said_to_include_0():
    row = {"mean": 0.06, "lower": 0.05, "upper": 0.07}
    raising = Contrast("m", CLEAN, "fgsm", 0.9, row, {"mean": -0.004, "lower": -0.006, "upper": -0.002})
    assert (raising.includes_zero, raising.ratio, raising.least_ratio, show_ratio(raising)) == (False, None, None, "-")
    assert _describe_noise([raising], None) == [
        "On m the attack lowers Dice; the noise does not, or by less than 0.0005."
    ]
    around = replace(raising, noise={"mean": -0.002, "lower": -0.004, "upper": 0.0})
    (sentence,) = _describe_noise([around], None)
    assert sentence == "On m the attack lowers Dice more than the noise, whose 95 % interval includes 0."


@pytest.mark.parametrize(
    ("drop", "written"), [(0.0597, "5.9"), (0.0599999999999999, "6.0"), (0.287, "28"), (0.576, "57")]
)
def test_a_lower_limit_is_never_rounded_up(drop, written):
    row = {"mean": drop, "lower": drop, "upper": drop}
    contrast = Contrast("m", CLEAN, "fgsm", 0.9, row, {"mean": 0.004, "lower": -0.002, "upper": 0.01})
    assert show_ratio(contrast) == f">= {written}x"
    assert f"the attack's drop is at least {written} times that of the noise" in " ".join(
        _describe_noise([contrast], None)
    )


def test_l2_radii_are_plain_numbers():
    assert [show_budget(0.2, norm) for norm in ("linf", "l2")] == ["51/255", "0.2"]
    assert show_budget(4 / 255, "linf") == "4/255"
    assert show_radii([2.0, 0.5, 1.0], "l2") == "0.5, 1, 2"


def test_without_a_control_that_is_said(tmp_path):
    out = write_run(tmp_path / "r", Synthetic(models=("unet-vgg13",)))
    rewrite_rows(out, lambda rows: rows.filter(pl.col("attack").is_in(["none", "fgsm"])))
    assert "No noise baseline was run" in say(Run(out))


def test_one_subject_gets_no_interval_and_says_so(one):
    text = say(one)
    assert "One subject: no population interval." in text
    assert "a spread, not an interval" in text
    assert "in brackets" not in text
    assert "95 %" not in text


def test_eight_subjects_get_intervals(tmp_path):
    run = Run(write_run(tmp_path / "r", Synthetic(subjects=8, models=("unet-vgg13",))))
    text = say(run)
    assert "Means are over 8 subjects" in text
    assert "95 % interval for the population mean (8 subjects)" in text
    row = run.table("dice", where={"loss": "bce", "eps": FOUR}).row(0, named=True)
    assert show_estimate(row["mean"], row["lower"], row["upper"]) in find_table(run, "dice").rows()[0]
    assert "spread" not in text


def test_an_incomplete_run_says_how_much_is_missing(tmp_path):
    out = write_run(tmp_path / "r")
    rewrite_rows(out, lambda rows: rows.filter((pl.col("loss") != "dice") | (pl.col("image") != "s00-z002")))
    text = say(Run(out))
    assert "Incomplete: 4 of 132 results are missing (3%). The numbers below" in text
    assert "planned results are present" not in text


def test_what_failed_and_what_was_skipped_is_listed(tmp_path):
    out = write_run(tmp_path / "r", Synthetic(losses=("bce", "ce")))
    reason = "model unet-mobilenet: expected a validation Dice >= 0.5, got 0.2. <Train> it | longer."
    failure = {"model": "unet-mobilenet", "stage": "train", "cell": None, "message": reason}
    write_json(out / "failures.json", [failure])
    (out / "models" / "unet-mobilenet.json").unlink()
    rewrite_rows(out, lambda rows: rows.filter(pl.col("model") == "basicunet-s"))
    run = Run(out)
    text = say(run)
    assert "54 of 108 results are missing (50%), all of them due to failures" in text
    assert "| unet-mobilenet | train | all of unet-mobilenet |" in text
    assert "&lt;Train> it \\| longer." in text
    assert "| fgsm ce | 4 | loss 'ce' is defined for multiclass tasks, not for multilabel |" in text
    assert [row[0] for row in find_table(run, "clean").rows()] == ["basicunet-s"]
    assert reason in "".join(Page(render_html(compose(summarise(run)), _Anything(), ())).text)


class _Anything(dict):
    """Stands for figures that a test does not look at."""

    def __missing__(self, key):
        return b""


def test_flags_are_counted_and_explained(tmp_path):
    out = write_run(tmp_path / "r", Synthetic(models=("unet-vgg13",)))
    flagged = (pl.col("loss") == "bce") & (pl.col("image") == "s00-z000")
    rewrite_rows(
        out,
        lambda rows: rows.with_columns(
            flags=pl.when(flagged).then(pl.lit(["over_budget"])).otherwise("flags"),
            linf=pl.when(flagged).then(1.5 * pl.col("eps")).otherwise("linf"),
        ),
    )
    run = Run(out)
    text = say(run)
    assert "the largest perturbation is 1.5000 times its budget, and 2 of 60 results are flagged" in text
    assert "| over_budget | unet-vgg13 | fgsm bce | 2 | the result exceeded its budget" in text
    (row,) = [r for r in find_table(run, "integrity").rows() if r[:2] == ("fgsm bce", "2/255")]
    assert row[3:5] == ("1.000", "1.500")
    assert (row[2], row[-1]) == ("6", "1")


def test_results_with_a_note_alone_are_counted_apart(tmp_path):
    out = write_run(tmp_path / "r", Synthetic(models=("unet-vgg13",)))
    noted, over = pl.col("loss") == "bce", pl.col("image") == "s00-z000"
    both = pl.when(noted & over).then(pl.lit(["incomplete", "over_budget"]))
    rewrite_rows(
        out, lambda rows: rows.with_columns(flags=both.when(noted).then(pl.lit(["incomplete"])).otherwise("flags"))
    )
    rows = Run(out).rows.filter(pl.col("loss") == "bce")
    counts = (len(rows.filter(pl.col("image") == "s00-z000")), len(rows.filter(pl.col("image") != "s00-z000")))
    assert min(counts) > 0
    assert f"{counts[0]} of 60 results are flagged, apart from {counts[1]} with no more than a note." in say(Run(out))


def test_a_share_of_images_says_whether_it_is_a_mean_over_subjects(one):
    texts = [find_table(one, name).caption for name in ("success", "curves")]
    assert "each a mean over the images of a subject and then over subjects" in texts[0]
    assert "each image counts once" in texts[1]
    scored = one.scores().filter(pl.col("dice_below").is_not_null())
    keys = ["model", "attack", "loss", "eps"]
    by_subject = (
        scored.group_by(*keys, "subject")
        .agg(pl.col("dice_below").mean())
        .group_by(keys)
        .agg(pl.col("dice_below").mean())
    )
    for row in one.table("dice_below", by=keys).filter(pl.col("attack") == "fgsm").to_dicts():
        (mine,) = by_subject.filter([pl.col(k) == row[k] for k in keys]).to_dicts()
        assert mine["dice_below"] == pytest.approx(row["mean"])


@pytest.mark.parametrize("keep", [pl.lit(False), pl.col("attack") == "none"])
def test_a_run_that_has_hardly_begun(tmp_path, keep):
    out = write_run(tmp_path / "r")
    rewrite_rows(out, lambda rows: rows.filter(keep))
    write_report(Run(out))
    text = (out / "report" / "report.md").read_text()
    assert "No attack has a result yet." in text
    assert "Incomplete: 1" in text


@pytest.mark.parametrize(("kind", "loss"), [("binary", "bce"), ("multiclass", "ce")])
def test_other_tasks(tmp_path, kind, loss):
    plot = Synthetic(kind=kind, losses=(loss,), models=("unet-vgg13", "basicunet-s"))
    run = Run(write_run(tmp_path / "r", plot, panels=True))
    text = say(run)
    assert ("Class by class" in text) == (kind == "multiclass")
    assert "| background |" not in text
    assert [len(gallery.panels) for gallery in make_galleries(run)] == [4, 2]


def test_other_norms_settings_and_foreign_attacks(tmp_path):
    extra = (
        {"name": "fgsm", "losses": ["bce"], "eps": ["4/255"], "settings": {"targeted": True}},
        {"name": "mypkg.attacks:Mine", "eps": [0.25, 0.5], "norm": "l2"},
    )
    run = Run(write_run(tmp_path / "r", Synthetic(extra=extra)))
    labels = [s.label for s in list_series(run, measure_cells(run))]
    assert labels == ["fgsm bce default", "fgsm dice", "fgsm bce targeted=True", "mypkg.attacks:Mine",
                      "worst case", "random_sign", "uniform_noise"]  # fmt: skip
    blocks = [block for section in compose(summarise(run)).sections for block in section.blocks]
    drawn = {block.name: block for block in blocks if isinstance(block, Figure)}
    assert set(drawn) == {"dice_eps", "dice_eps_l2", "parameters", "parameters_l2", "classes_eps"}
    (svg,) = figures.render(drawn["dice_eps_l2"], 4.0, "svg")
    assert b"eps (L_2, in image units)" in svg
    assert b"mypkg.attacks:Mine" in svg
    assert {"dice_l2", "diff_l2", "success_l2"} <= {block.name for block in blocks if isinstance(block, Table)}
    assert [c.label for c in find_table(run, "dice_l2").columns][-2:] == ["0.25", "0.5"]
    (row, *_) = [r for r in find_table(run, "integrity").rows() if r[0] == "mypkg.attacks:Mine"]
    assert row[-2] == "-", "a plug-in's cost is not known"


def find_figure(run: Run, name: str) -> Figure | None:
    return next(
        (b for s in compose(summarise(run)).sections for b in s.blocks if isinstance(b, Figure) and b.name == name),
        None,
    )


def draw_panels(figure: Figure, width: float = 9.0) -> dict[str, dict[str, list]]:
    """Title of each panel -> legend label -> its points, in the colours of the legend."""
    drawing = figure.draw(width)
    (legend,) = drawing.legends
    handles = {h.get_color() + h.get_linestyle(): h.get_label() for h in legend.legend_handles}
    assert len(handles) == len(legend.legend_handles), "two entries of a legend look alike"
    return {
        ax.get_title(loc="left"): {
            handles[line.get_color() + line.get_linestyle()]: list(zip(*line.get_data(), strict=True))
            for line in ax.get_lines()
        }
        for ax in drawing.axes
        if ax.get_title(loc="left")
    }


CROSSED = tuple(
    {"name": "fgsm", "losses": ["bce", "dice"], "eps": ["2/255", "4/255"], "settings": settings}
    for settings in ({"targeted": True}, {"label": "empty"}, {"label": "predicted"}, {"order": "released"})
)


def test_a_figure_leaves_variants_and_single_budgets_to_the_tables(tmp_path):
    extra = (
        *CROSSED,
        {"name": "fgsm", "losses": ["dice_focal"], "eps": ["4/255"]},
        {"name": "mypkg.attacks:Mine", "eps": ["2/255", "4/255"], "settings": {"steps": 3}},
    )
    run = Run(write_run(tmp_path / "r", Synthetic(extra=extra, models=("unet-vgg13", "basicunet-s"))))
    series = list_series(run, measure_cells(run))
    assert [s.label for s in series if s.variant] == [
        f"fgsm {loss} {setting}"
        for setting in ("targeted=True", "label=empty", "label=predicted", "order=released")
        for loss in ("bce", "dice")
    ]
    plain = [
        "fgsm bce default",
        "fgsm dice default",
        "mypkg.attacks:Mine",
        "worst case",
        "random_sign",
        "uniform_noise",
    ]
    figure = find_figure(run, "dice_eps")
    for lines in draw_panels(figure).values():
        assert set(lines) == set(plain)
    assert (
        "Only in the tables: 8 further variants with other settings and 1 attack with a single eps." in figure.caption
    )
    scatter = find_figure(run, "parameters")
    assert "Only in the tables: 8 further variants with other settings." in scatter.caption
    (legend,) = scatter.draw(9.0).legends
    assert {text.get_text() for text in legend.get_texts()} == {*plain, "fgsm dice_focal"}
    labels = {row[1] for row in find_table(run, "dice").rows()}
    assert labels == {s.label for s in series}, "the tables have all"


def test_up_to_twenty_four_lines_look_different(tmp_path):
    last = {"name": "fgsm", "losses": ["dice_focal"], "eps": ["2/255", "4/255"]}
    run = Run(write_run(tmp_path / "r", Synthetic(extra=(*CROSSED, last))))
    series = [s for s in list_series(run, measure_cells(run)) if not s.control]
    assert len(series) == 12
    assert len({(s.colour, s.dash) for s in series}) == len({(s.marker, s.dash) for s in series}) == 12
    drawn, _ = choose_drawn(series, "linf", curves=True)
    assert {s.dash for s in drawn} == {"-"}, "variants do not use up the plainest lines"


def test_without_a_series_of_several_budgets_there_is_no_curve(tmp_path):
    run = Run(write_run(tmp_path / "r", Synthetic(eps=(4,))))
    assert find_figure(run, "dice_eps") is None
    assert find_figure(run, "parameters")
    assert "figures/dice_eps" not in say(run)


def test_a_series_without_a_plain_one_of_its_attack_is_no_variant(tmp_path):
    run = Run(write_run(tmp_path / "r", Synthetic(extra=CROSSED)))
    rewrite_rows(run.path, lambda rows: rows.filter((pl.col("attack") != "fgsm") | (pl.col("settings") != "{}")))
    series = list_series(Run(run.path), measure_cells(Run(run.path)))
    assert not any(s.variant for s in series)
    assert choose_drawn(series, "linf", curves=True) == (series, "")


@pytest.mark.parametrize(("kind", "loss"), [("multilabel", "bce"), ("multiclass", "dice_focal")])
def test_the_class_figure_holds_the_run_s_own_numbers(tmp_path, kind, loss):
    run = Run(write_run(tmp_path / "r", Synthetic(kind=kind, subjects=5, losses=(loss,))))
    figure = find_figure(run, "classes_eps")
    panels = draw_panels(figure)
    assert list(panels) == ["grey matter\n30 images", "white matter\n29 images", "csf\n30 images"]
    assert f"strongest attack, fgsm {loss} (at eps 4/255" in figure.caption
    assert "Bands: 95 % interval for the population mean, of classes in >= 5 subjects." in figure.caption
    for title, lines in panels.items():
        assert list(lines) == ["unet-mobilenet", "basicunet-s"], "the first model is drawn last, over the others"
        for model, points in lines.items():
            where = {"class": title.split("\n")[0], "model": model}
            clean = run.table("dice", "eps", where=where | {"attack": "none"})["mean"].to_list()
            attacked = run.table("dice", "eps", where=where | {"loss": loss})
            assert [y for _, y in points] == clean + attacked["mean"].to_list()
            assert [x for x, _ in points] == pytest.approx([0, 2, 4])
    bands = [ax.collections[0].get_paths()[0].vertices for ax in figure.draw(4.0).axes[:3]]
    row = run.table("dice", "eps", where={"class": "csf", "model": "unet-mobilenet", "loss": loss}).row(-1, named=True)
    heights = bands[2][:, 1]
    assert any(abs(heights - row["lower"]) < 1e-9)
    assert any(abs(heights - row["upper"]) < 1e-9)


def test_the_class_figure_leaves_out_what_is_not_there(tmp_path):
    out = write_run(tmp_path / "r", Synthetic(models=("unet-vgg13", "basicunet-s")))
    absent = (
        pl.concat_list(pl.lit(0), pl.col("tp").list.slice(1)),
        pl.concat_list(pl.lit(0), pl.col("fn").list.slice(1)),
    )
    rewrite_rows(out, lambda rows: rows.with_columns(tp=absent[0], fn=absent[1]))
    figure = find_figure(Run(out), "classes_eps")
    assert list(draw_panels(figure)) == ["white matter\n5 images", "csf\n6 images"]
    assert "No class has 5 subjects, so there is no interval." in figure.caption
    assert not any(ax.collections for ax in figure.draw(9.0).axes)


def test_the_class_figure_shows_the_strongest_attack_with_several_eps(tmp_path):
    alone = {"name": "fgsm", "losses": ["dice_focal"], "eps": ["4/255"]}
    plot = Synthetic(losses=("bce",), extra=(alone,), strength=((("fgsm", "dice_focal"), 2.0),))
    run = Run(write_run(tmp_path / "r", plot))
    figure = find_figure(run, "classes_eps")
    assert "strongest attack, fgsm bce (at eps 4/255, among those with several eps" in figure.caption
    assert {len(points) for lines in draw_panels(figure).values() for points in lines.values()} == {3}


def test_the_class_figure_names_attacks_where_they_differ(tmp_path):
    run = Run(write_run(tmp_path / "r"))
    other = pl.col("loss") == pl.when(pl.col("model") == "basicunet-s").then(pl.lit("bce")).otherwise(pl.lit("dice"))
    rewrite_rows(run.path, lambda rows: rows.filter(~other))
    lines = next(iter(draw_panels(find_figure(Run(run.path), "classes_eps")).values()))
    assert set(lines) == {"basicunet-s, fgsm dice", "unet-mobilenet, fgsm bce"}


def test_names_are_shown_as_they_are(tmp_path):
    out = write_run(tmp_path / "r", Synthetic(models=("unet-vgg13",)))
    names = ["<script>alert(1)</script>", "a|b", "c & d"]
    edit_json(out / "run.json", lambda info: info | {"data": info["data"] | {"classes": names}})
    document = compose(summarise(Run(out)))
    page = render_html(document, _Anything(), ((names[0], "#000000"),))
    assert "<script" not in page
    assert names[0] in Page(page).text
    assert "| &lt;script>alert(1)&lt;/script> |" in render_markdown(document)
    assert "| a\\|b |" in render_markdown(document)


def test_a_folder_that_cannot_be_made(tmp_path, one):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="cannot create"):
        write_report(one, tmp_path / "file")


@pytest.mark.parametrize("width", [80, 160])
def test_terminal(one, width, capsys):
    console = Console(width=width, force_terminal=False)
    print_document(compose(summarise(one)), console)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= width
    for name in (
        *one.model_names,
        "fgsm bce",
        "random_sign",
        "uniform_noise",
        "Mean Dice at each eps",
        "no population interval",
    ):
        assert name in printed, name
    rows = [line.split() for line in printed.splitlines() if line.startswith("basicunet-s ")]
    assert len(rows) >= 5
    assert sum(row[1:3] == ["fgsm", "bce"] for row in rows) >= 4, "short names are not broken over lines"
    assert "Success at eps 2/255" not in printed, "details stay in the files"


def test_global_state_of_matplotlib_is_left_alone(one):
    before = dict(matplotlib.rcParams)
    (figure, *_) = [b for s in compose(summarise(one)).sections for b in s.blocks if isinstance(b, Figure)]
    figures.render(figure, 4.0, "svg")
    assert dict(matplotlib.rcParams) == before
    code = "import sys, advseg_bench.report; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_how_numbers_are_written():
    assert [show_number(v) for v in (0.12345, -0.0001, -0.5, None)] == ["0.123", "0.000", "-0.500", "-"]
    assert show_estimate(0.5, 0.45, 0.53) == "0.500 [0.450, 0.530]"
    assert show_estimate(0.5, None, None) == "0.500"
    assert [show_budget(v) for v in (8 / 255, 0.007, 0.5, None)] == ["8/255", "0.007", "0.5", "-"]
    assert [show_times(v) for v in (3.14159, 25.4, None)] == ["3.1x", "25x", "-"]


def test_thin_repeats_a_name_where_its_group_changes():
    assert thin(["a", "a", "b", "b"]) == ("a", "", "b", "")
    assert thin(["x", "x", "x"], ["m", "m", "n"]) == ("x", "", "x")


@pytest.mark.parametrize(("width", "whole"), [(80, False), (200, True)])
def test_intervals_give_way_to_columns_on_a_narrow_terminal(tmp_path, capsys, width, whole):
    run = Run(write_run(tmp_path / "r", Synthetic(subjects=8, models=("unet-vgg13",), losses=("bce",))))
    print_document(compose(summarise(run)), Console(width=width, force_terminal=False))
    printed = capsys.readouterr().out
    noise = printed[printed.index("Attack against noise") :].split("eps = 4/255")[0]
    assert ("[0." in noise) is whole
    assert "Drop" in noise
    assert ("Intervals are in the report." in printed) is not whole


def test_a_long_table_is_named_on_a_terminal(tmp_path, capsys):
    extra = ({"name": "fgsm", "losses": ["bce"], "eps": ["4/255"], "vary": {"label": ["predicted", "empty"]}},)
    plot = Synthetic(models=tuple(MODELS), losses=("bce", "dice", "dice_focal"), extra=extra)
    run = Run(write_run(tmp_path / "r", plot))
    print_document(compose(summarise(run)), Console(width=160, force_terminal=False))
    printed = capsys.readouterr().out
    rows = len(plot.models) * (3 + 2 + 1 + 2)
    assert rows <= 40
    assert f"{rows} rows, in the report" not in printed
    more = ({"name": "fgsm", "losses": ["bce", "dice"], "eps": ["4/255"], "vary": {"label": ["predicted", "empty"]}},)
    run = Run(write_run(tmp_path / "more", replace(plot, extra=more)))
    print_document(compose(summarise(run)), Console(width=160, force_terminal=False))
    printed = capsys.readouterr().out
    assert f"Mean Dice at each eps: {rows + 10} rows, in the report." in printed
    assert "and 1 more" not in printed, "seven attacks are named"


def test_what_goes_beyond_eps_by_definition_is_told_apart(tmp_path):
    blend = ({"name": "fgsm", "losses": ["bce"], "eps": ["4/255"], "settings": {"form": "blend_released"}},)
    stronger = ((("fgsm", "bce", '{"form": "blend_released"}'), 2.0),)
    out = write_run(tmp_path / "r", Synthetic(extra=blend, strength=stronger))
    wild = pl.col("settings").str.contains("blend_released")
    rewrite_rows(
        out,
        lambda rows: rows.with_columns(
            linf=pl.when(wild).then(1.9 * pl.col("eps")).otherwise("linf"),
            flags=pl.when(wild).then(pl.lit(["beyond_eps"])).otherwise("flags"),
        ),
    )
    text = say(Run(out))
    assert "the largest perturbation is 1.0000 times its budget, and none of" in text
    assert "Not included: 12 results of attacks that exceed eps by definition, with up to 1.90 times" in text
    strongest = choose_strongest(rank_attacks(Run(out), list_budgets(Run(out))[0]))
    assert {rival.arm.settings for rival in strongest.values()} == {"{}"}


@pytest.mark.parametrize("width", [100, 120])
def test_titles_of_columns_are_whole_on_a_terminal(tmp_path, width):
    run = Run(write_run(tmp_path / "r", Synthetic(**MANY | {"models": ("basicunet-s", "unet-vgg13")})))
    document = compose(summarise(run))
    console = Console(width=width, record=True, file=io.StringIO())
    print_document(document, console)
    lines = [line.strip() for line in console.export_text().splitlines()]
    for section in document.sections:
        for table in section.blocks:
            if isinstance(table, Table) and not table.detail and section.anchor != "repeat":
                start = lines.index(table.title)
                head = " ".join(lines[start + 1 : start + 7]).split()
                for column in table.columns:
                    assert all(word in head for word in column.label.split()), (table.title, column.label)
