"""What a run prints at its end: at most 40 lines, with what a person asks first."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import runs
from rich.console import Console
from runs import STRENGTH, Synthetic, edit_json, rewrite_rows, write_run

from advseg_bench.cache import write_json
from advseg_bench.report import print_summary, summarise, write_report
from advseg_bench.report.integrity import describe_checks, make_norm_table
from advseg_bench.results.run import Run

EIGHT = Synthetic(losses=("bce", "dice_focal"), subjects=8)
PAGE = Path("runs/quick/report/report.html")


def show(run: Run, width: int = 80, paths: tuple[Path, ...] = (PAGE,)) -> list[str]:
    """The lines that a terminal of a width shows."""
    stream = io.StringIO()
    print_summary(run, paths, Console(file=stream, width=width, force_terminal=False))
    lines = stream.getvalue().split("\n")
    assert lines.pop() == ""
    return [line.rstrip() for line in lines]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A run on one subject."""
    return Run(write_run(tmp_path_factory.mktemp("runs") / "one"))


def test_it_says_what_was_run_and_found_and_where_the_page_is(one):
    lines = show(one)
    text = " ".join(lines)
    assert lines[0] == "FGSM on small U-Nets, made-up numbers"
    assert "quick on mni152 (multilabel: grey matter, white matter, csf), 6 test images of 1 subject." in text
    assert "2 models: fgsm bce, fgsm dice beside random_sign, uniform_noise, eps 2/255, 4/255 (L_inf)." in text
    assert "- The strongest single attack on all 2 models is fgsm bce." in lines
    for contrast in summarise(one).contrasts:
        (row,) = [line.split() for line in lines if line.startswith(f"{contrast.model} ")]
        worst, drop, noise = (row["mean"] for row in (contrast.worst.drop, contrast.drop, contrast.noise))
        numbers = (contrast.clean, contrast.clean - worst, worst, drop, noise)
        assert row[1:-1] == ["fgsm", "bce", *(f"{number:.3f}" for number in numbers)]
    assert lines[-1] == f"Report: {PAGE}"
    assert len(lines) <= 25


def test_a_summary_that_is_there_is_printed_as_well(one):
    assert show(summarise(one)) == show(one)


def test_a_given_model_that_does_not_segment_is_named_first(tmp_path):
    out = write_run(tmp_path / "r")
    run = Run(out)
    clean = run.table("dice", by="model", where={"attack": "none"}).rows_by_key("model")
    name = min(run.model_names, key=lambda name: clean[name][0][0])
    assert not any("With `weights`" in line for line in show(run))
    worse = pl.when(pl.col("model") == name).then([0] * 3).otherwise("tp")
    rewrite_rows(out, lambda rows: rows.with_columns(tp=worse))
    assert not any("With `weights`" in line for line in show(Run(out)))

    def give_weights(info):
        for model in info["suite"]["models"]:
            model["weights"] = "best.ckpt"
        return info

    edit_json(out / "run.json", give_weights)
    lines = show(Run(out), width=120)
    (warning,) = [line for line in lines if "With `weights`, check `scale`, `mean`, `std` and the classes." in line]
    assert warning.startswith(f"{name}: clean Dice 0.")
    assert lines.index(warning) < next(i for i, line in enumerate(lines) if line.startswith("- "))
    write_report(Run(out), tmp_path / "page")
    assert warning in (tmp_path / "page" / "report.md").read_text()


def test_the_claims_page_is_named_with_its_folder(tmp_path):
    lines = show(Run(write_run(tmp_path / "r", EIGHT)), paths=(PAGE.with_name("claims.html"), PAGE))
    assert lines[-2:] == [f"Claims: {PAGE.with_name('claims.html')}", f"Report: {PAGE}"]


def test_one_line_stands_for_claims_that_need_more_subjects(one):
    (line,) = [line for line in show(one) if "claim" in line.lower()]
    assert line.startswith("The study's claims need at least 6 subjects; this run has 1")


def test_the_claims_that_can_be_decided_have_a_line_each(tmp_path):
    text = " ".join(show(Run(write_run(tmp_path / "r", EIGHT))))
    assert "Claim 1, supported: Medical segmentation models are vulnerable to FGSM." in text
    assert "Claim 2, " not in text
    assert "Claim 3, supported: BCE as the attack loss succeeds more" in text
    assert "Not decided: claim 2 needs at least 5 models (this run has 2)." in text


def test_with_too_few_subjects_a_correlation_that_is_settled_is_still_told(tmp_path):
    out = write_run(tmp_path / "r", replace(EIGHT, subjects=1, models=tuple(runs.MODELS)))
    undecided = " ".join(show(Run(out)))
    assert "Claim 2" not in undecided
    assert "The study's claims need at least 6 subjects; this run has 1" in undecided
    order = sorted(runs.MODELS, key=lambda name: runs.MODELS[name][4])
    for i, name in enumerate(order):
        edit_json(out / "models" / f"{name}.json", lambda entry, i=i: entry | {"parameters": 10 ** (5 + i)})
    text = " ".join(show(Run(out)))
    assert "Claim 2, contradicted: The number of parameters" in text
    assert "Not decided: claims 1, 3 and 4 need at least 6 subjects (this run has 1)." in text


def test_what_was_not_asked_has_its_reason(tmp_path):
    text = " ".join(show(Run(write_run(tmp_path / "r", replace(EIGHT, losses=("bce", "dice"))))))
    assert "Not decided: claim 2 needs at least 5 models (this run has 2); claim 3 was not asked (the run has" in text
    assert "no result of fgsm dice_focal)." in text


def test_a_run_that_no_claim_can_be_asked_of_says_nothing_of_them(tmp_path):
    out = write_run(tmp_path / "r")
    rewrite_rows(out, lambda rows: rows.filter(pl.col("attack") != "fgsm"))
    assert "laim" not in " ".join(show(Run(out)))


MANY = {f"m{i:02d}": ("monai.UNet", None, 10 ** (5 + i % 4), 0.85, 1.0 + 0.01 * i) for i in range(40)}
LONG = {f"a-model-{'x' * 60}-{i:02d}": entry for i, entry in enumerate(MANY.values())}


@pytest.mark.parametrize("names", [MANY, LONG], ids=["short names", "long names"])
def test_forty_models_fit_on_forty_lines(tmp_path, monkeypatch, names):
    """With everything that a summary can have: a note, missing results, a failure, flags, all claims, many attacks."""
    monkeypatch.setattr(runs, "MODELS", names)
    vary = {"label": ["predicted", "empty"], "targeted": [True]}
    extra = ({"name": "fgsm", "losses": ["bce", "dice_focal"], "eps": ["4/255"], "vary": vary},)
    silent = tuple((key, 0.0) for key in STRENGTH if key[0] == "random_sign")
    plot = replace(EIGHT, models=tuple(names), images=2, draws=1, eps=(2, 4), extra=extra, strength=silent)
    out = write_run(tmp_path / "r", plot)
    told = {"note": "Scaled down. " * 20, "title": "T " * 99}
    edit_json(out / "run.json", lambda info: info | {"suite": info["suite"] | told})
    failure = {"model": next(iter(names)), "stage": "train", "cell": None, "message": "no memory, " * 40}
    write_json(out / "failures.json", [failure] * 3)
    flagged = pl.col("image") == "s00-z000"
    rewrite_rows(
        out,
        lambda rows: rows.filter(pl.col("image") != "s07-z001").with_columns(
            flags=pl.when(flagged).then(pl.lit(["over_budget", "not_reached"])).otherwise("flags")
        ),
    )
    summary = summarise(Run(out))
    for width in (40, 80, 120):
        check_lines(show(summary, width), width)


def check_lines(lines: list[str], width: int) -> None:
    """At most 40, none too long, the most important ones among them."""
    used = sum(max(1, -(-len(line) // width)) for line in lines)
    assert used <= 40
    assert used > 30
    assert "- Means are over 8 subjects;" in " ".join(lines)
    assert all(len(line) <= width for line in lines if not line.startswith("Report: "))
    start = next(i for i, line in enumerate(lines) if line.startswith("Model "))
    end = next(i for i, line in enumerate(lines) if line.startswith("... and "))
    assert end > start + 1, "some models are shown"
    assert lines[end] == f"... and {40 - (end - start - 1)} more in the report"
    assert all(line.split()[-1].endswith(("x", "-")) for line in lines[start + 1 : end]), "ratios are not cut"
    text = " ".join(lines)
    for word in ("Scaled down.", "Incomplete: ", "Failed (2 more in the report)", "Flagged results: ", str(PAGE)):
        assert word in text, word


def test_a_run_with_room_shows_every_model(tmp_path):
    lines = show(Run(write_run(tmp_path / "r", replace(EIGHT, models=tuple(runs.MODELS)))))
    assert len(lines) <= 40
    assert all(any(line.startswith(f"{model} ") for line in lines) for model in runs.MODELS)
    assert "more in the report" not in " ".join(lines)


@pytest.mark.parametrize(("width", "whole"), [(80, False), (120, True)])
def test_intervals_are_shown_where_they_fit(tmp_path, width, whole):
    run = Run(write_run(tmp_path / "r", replace(EIGHT, models=("unet-vgg13",))))
    text = " ".join(show(run, width))
    row = summarise(run).contrasts[0].drop
    assert (f"{row['mean']:.3f} [{row['lower']:.3f}, {row['upper']:.3f}]" in text) is whole
    assert ("in brackets a 95 % interval" in text) is whole
    assert ("their 95 % intervals are in the report" in text) is not whole


def test_a_run_without_results_says_so(tmp_path):
    out = write_run(tmp_path / "r")
    rewrite_rows(out, lambda rows: rows.clear())
    lines = show(Run(out))
    assert "- No attack has a result yet." in lines
    assert "Incomplete: 132 of 132 results are missing." in lines
    assert not any("Attack against noise" in line for line in lines)


def test_the_page_has_the_same_short_verdicts(tmp_path, one):
    run = Run(write_run(tmp_path / "r", EIGHT))
    for each, shown in ((one, 0), (run, 3)):
        write_report(each, tmp_path / "page")
        text = (tmp_path / "page" / "report.md").read_text()
        rows = [line for line in text.splitlines() if line.startswith(("| 1 |", "| 2 |", "| 3 |", "| 4 |"))]
        assert len(rows) == shown
        assert text.count("The claim is ") == shown, "each verdict with its sentence to quote"
        assert "see claims.html" in text.lower()
        page = (tmp_path / "page" / "claims.md").read_text()
        assert all(f"| {i} | " in page for i in (1, 2, 3, 4))
        assert pl.read_csv(tmp_path / "page" / "tables" / "verdicts.csv").height == 4


def test_skipped_cells_are_told_with_the_first_reason(tmp_path):
    folder = write_run(tmp_path / "run")
    assert not any("Skipped" in line for line in show(Run(folder)))
    info = json.loads((folder / "run.json").read_text())
    info["cells"] += [info["cells"][-1] | {"id": f"skipped{i}", "skip": "it does not fit"} for i in range(3)]
    write_json(folder / "run.json", info)
    lines = show(Run(folder))
    assert "Skipped: 3 cells: it does not fit." in lines
    assert len(lines) <= 40


def test_notes_of_a_battery_are_no_flagged_results(tmp_path):
    out = write_run(tmp_path / "r")
    fgsm = pl.col("attack") == "fgsm"
    noted = pl.when(fgsm).then(pl.lit(["kept_smaller", "incomplete"])).otherwise("flags")
    rewrite_rows(out, lambda rows: rows.with_columns(flags=noted))
    assert "Flagged results" not in " ".join(show(Run(out)))
    summary = summarise(Run(out))
    assert "and none of" in describe_checks(summary)[0]
    assert {row[-1] for row in make_norm_table(summary).rows()} == {"0"}
