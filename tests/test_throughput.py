"""Throughput: counts are exact, faults are survived and shown, and what is slower by construction comes out slower."""

from __future__ import annotations

import io
import json
import math
import re
from dataclasses import replace

import polars as pl
import pytest
import torch
from clocks import SteadyMachine
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from advseg_bench.errors import SpecError
from advseg_bench.instruments.meter import peak_bytes
from advseg_bench.models.build import build_model
from advseg_bench.models.prepare import Prepared
from advseg_bench.suite.suite import Suite
from advseg_bench.throughput import command
from advseg_bench.throughput.command import Options, make_plan, run
from advseg_bench.throughput.contenders import LIMIT, Work, draw_batch, list_contenders
from advseg_bench.throughput.fastest import prepare_fastest
from advseg_bench.throughput.grid import Plan, measure_grid
from advseg_bench.throughput.largest import MOST, Trial, find_largest, search
from advseg_bench.throughput.report import SCHEMA, draw_throughput, print_throughput
from advseg_bench.types import Task

SMOKE = Suite.load("smoke")
TASK = Task("multilabel", ("a", "b", "c"))
CPU = torch.device("cpu")
PLAN = Plan(work=Work(reference="fgsm"), models=SMOKE.models[1:], channels=1, size=32, task=TASK, device=CPU, rounds=6)
OPTIONS = {
    "suite": SMOKE,
    "models": ("unet-xs",),
    "attack": "fgsm",
    "steps": None,
    "loss": "bce",
    "against": (),
    "classes": 3,
    "size": None,
    "batches": ("2",),
    "precisions": ("float32",),
    "prepare": ("raw",),
    "device": "cpu",
    "rounds": 6,
    "threads": 1,
    "largest": False,
}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def against(*names, **changes):
    return replace(
        PLAN, work=Work(reference="fgsm", others={f"implementations:{name}": {} for name in names}), **changes
    )


def by_name(rows):
    return {row["implementation"]: row for row in rows}


def test_counts_are_exact_and_the_limit_comes_first():
    rows = measure_grid(against("OneByOne", batches=(1, 3)))
    assert [(row["batch"], row["implementation"]) for row in rows] == [
        (n, name) for n in (1, 3) for name in (LIMIT, "fgsm", "implementations:OneByOne")
    ]
    for row in rows:
        assert (row["forwards"], row["backwards"], row["gradients"]) == (1, 1, 1)
        assert len(row["seconds"]) == 6
        assert row["images_per_s"] == pytest.approx(row["batch"] / pl.Series(row["seconds"]).median())
        assert row["error"] is None
    assert [row["ratio"] for row in rows if row["implementation"] == LIMIT] == [1, 1]


@pytest.mark.parametrize("attack", ["bim", "pgd", "mifgsm"])
def test_iterative_attacks_are_held_to_as_many_gradients_as_they_take(attack):
    with SteadyMachine() as machine:
        rows = by_name(measure_grid(replace(PLAN, work=Work(reference=attack, settings={"steps": 3})), now=machine.now))
    row = rows[attack]
    assert (row["gradients"], row["forwards"], row["backwards"]) == (3, 3, 3)
    assert row["ratio"] == pytest.approx(1)  # 3 gradients' time over 3 gradients; 1/3 of that if not scaled


def test_who_does_the_work_twice_is_slower():
    with SteadyMachine() as machine:
        rows = by_name(measure_grid(against("Twice", preparations=("raw",)), now=machine.now))
    assert rows["implementations:Twice"]["forwards"] == 2
    assert rows["fgsm"]["ratio"] == pytest.approx(1)
    assert rows["implementations:Twice"]["ratio"] == pytest.approx(0.5)


def test_an_attack_that_does_nothing_is_fast_and_shows_it():
    row = by_name(measure_grid(against("Nothing", "Signed")))
    assert row["implementations:Nothing"]["rise"] == 0
    assert row["implementations:Nothing"]["forwards"] == 0
    assert row["implementations:Signed"]["rise"] == pytest.approx(1, abs=1e-4)
    assert row["fgsm"]["rise"] == 1


def test_who_takes_fewer_gradients_has_no_ratio():
    work = Work(reference="pgd", settings={"steps": 3}, others={"implementations:Signed": {}})
    rows = by_name(measure_grid(replace(PLAN, work=work)))
    assert rows["implementations:Signed"]["ratio"] is None
    assert rows["implementations:Signed"]["images_per_s"] > 0
    console = Console(file=io.StringIO(), width=200)
    print_throughput(list(rows.values()), console)
    assert "1 gradients, not 3" in console.file.getvalue()


def test_without_a_limit_nothing_is_compared(monkeypatch):
    def fill(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr("advseg_bench.throughput.contenders._differentiate", fill)
        rows = measure_grid(PLAN)
    assert [row["error"] for row in rows] == ["out of memory", "the bare limit failed, so there is no ratio"]


def test_who_fails_costs_the_others_nothing():
    rows = by_name(measure_grid(against("Raises", "Signed")))
    failed = rows["implementations:Raises"]
    assert failed["error"] == "RuntimeError: no kernel"
    assert "images_per_s" not in failed
    assert rows["implementations:Signed"]["images_per_s"] > 0


def test_full_memory_is_said_and_survived(monkeypatch):
    def fill(self, model, batch, *, budget, generators):
        raise torch.OutOfMemoryError("tried to allocate 80 GiB")

    with monkeypatch.context() as patch:
        patch.setattr("implementations.Half.__call__", fill)
        rows = by_name(measure_grid(against("Half", "Signed")))
    assert rows["implementations:Half"]["error"] == "out of memory"
    assert rows["implementations:Signed"]["rise"] == pytest.approx(1, abs=1e-4)


def test_the_fastest_preparation_that_agrees_is_taken():
    model = build_model(SMOKE.models[1], channels=1, task=TASK, size=64).eval().requires_grad_(False)
    x = draw_batch(1, 64, TASK, 2, CPU).x
    choice, seconds = prepare_fastest(model, x, [["lean"], ["fold", "lean"], ["bfloat16"]], rounds=3)
    assert set(seconds) == {"raw", "lean", "fold+lean"}
    assert set(choice.rejected) == {"bfloat16"}
    assert seconds["+".join(choice.steps) or "raw"] == min(seconds.values())
    assert isinstance(choice.model, Prepared) or choice.model is model
    assert choice.error <= 2 * choice.raw_error


@pytest.mark.parametrize("kind", ["binary", "multilabel", "multiclass"])
@pytest.mark.parametrize("size", [16, (8, 16, 24)])
def test_batches_fit_their_task(kind, size):
    batch = draw_batch(3, size, Task(kind, ("a",) if kind == "binary" else ("a", "b", "c")), 2, CPU)
    edges = (16, 16) if size == 16 else size
    assert batch.x.shape == (2, 3, *edges)
    assert batch.y.shape == (2, *edges) if kind == "multiclass" else (2, len(batch.task.classes), *edges)
    again = draw_batch(3, size, batch.task, 2, CPU)
    assert torch.equal(batch.x, again.x)


@pytest.mark.slow
def test_a_prepared_model_attacks_alike_with_less_memory():
    rows = measure_grid(replace(PLAN, size=128, batches=(8,), preparations=("raw", "lean", "auto")))
    raw, lean, auto = (row for row in rows if row["implementation"] == "fgsm")
    assert lean["rise"] == raw["rise"] == 1
    assert lean["peak_bytes"] < 0.9 * raw["peak_bytes"]
    assert auto["rise"] == pytest.approx(1, abs=1e-3)
    assert re.fullmatch(r"auto \((raw|lean|fold\+lean(\+channels_last)?)\)", auto["preparation"])


def test_lower_precision_is_another_model_for_all():
    batch = draw_batch(1, 32, TASK, 2, CPU)
    spec = SMOKE.models[1]
    model = build_model(spec, channels=1, task=TASK, size=32, seed=0).eval().requires_grad_(False)
    full, half = (
        list_contenders(Work(reference="fgsm"), model, batch, ["raw"], name)[0].model
        for name in ("float32", "bfloat16")
    )
    assert full is model
    logits, lower = full(batch.x), half(batch.x)
    assert lower.dtype == torch.float32
    assert 0 < (logits - lower).abs().max() < 0.1 * logits.abs().max()


@given(st.integers(0, 300), st.integers(1, 300))
def test_the_largest_that_fits_is_found_in_few_tries(largest, most):
    tried = []
    assert search(lambda n: tried.append(n) or n <= largest, most) == min(largest, most)
    assert len(tried) <= 2 * math.log2(min(largest, most) + 1) + 2
    assert max(tried, default=0) <= most


@pytest.mark.slow
def test_memory_is_found_by_trying_and_the_process_lives():
    trial = Trial(
        work=PLAN.work, model=SMOKE.models[1], channels=1, size=128, task=TASK, preparation="raw", precision="float32",
        device="cpu", threads=1,
    )  # fmt: skip
    model = build_model(trial.model, channels=1, task=TASK, size=128).eval().requires_grad_(False)

    def occupy(n):
        batch = draw_batch(1, 128, TASK, n, CPU)
        return peak_bytes(list_contenders(trial.work, model, batch, ["raw"], "float32")[1].call, CPU)

    for allowed in (100 << 20, 300 << 20):
        found = find_largest(trial, memory_bytes=allowed)
        assert 2 <= found < MOST
        assert allowed / 2 < occupy(found) < allowed + occupy(1)  # of the allowed, the code's own mappings take a part


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attack": "cw"}, "attack"),
        ({"loss": "dise"}, "did you mean.*dice"),
        ({"precisions": ("float8",)}, "precision"),
        ({"models": ("unet-xl",)}, "did you mean.*unet-xs"),
        ({"steps": 5}, "--steps for fgsm"),
        ({"batches": ("4", "0")}, "whole numbers above 0"),
        ({"batches": ("four",)}, "four"),
        ({"against": ("torchatacks",)}, "torchatacks"),
        ({"prepare": ("leen",)}, "did you mean.*lean"),
        ({"prepare": ("lean", "lean")}, "each once"),
        ({"prepare": ("cuda_graph",)}, "a CUDA device"),
        ({"batches": ()}, "at least one"),
        ({"device": "foo"}, "such as cpu"),
    ],
    ids=str,
)
def test_mistakes_are_one_line(changes, message):
    with pytest.raises(SpecError, match=f"(?i){message}") as caught:
        make_plan(Options(**OPTIONS | changes))
    assert "\n" not in str(caught.value)


def test_a_run_leaves_table_machine_and_figure(tmp_path, monkeypatch):
    console = Console(file=io.StringIO(), width=120)
    kept = []
    monkeypatch.setattr(command, "keep_freed_memory", lambda: kept.append(True))  # else for all tests after this one
    run(Options(**OPTIONS | {"attack": "bim", "steps": 2, "against": ("implementations:Signed",)}), tmp_path, console)
    table = pl.read_parquet(tmp_path / "throughput.parquet")
    assert table.schema == pl.Schema(SCHEMA)
    assert table["implementation"].to_list() == [LIMIT, "bim", "implementations:Signed"]
    assert table["peak_share"].is_between(0, 1).all()
    assert table["peak_bytes"].min() > 0
    about = json.loads((tmp_path / "throughput.json").read_text())
    assert about["asked"]["settings"] == {"steps": 2}
    assert about["environment"]["threads"] == "1"
    assert {"torch", "device"} <= about["environment"].keys()
    assert (tmp_path / "throughput.png").stat().st_size > 10_000
    assert "of the limit" in console.file.getvalue()
    assert kept, "measured as runs attack"


def test_a_table_says_what_failed_and_where_rounds_were_too_few():
    rows = measure_grid(against("Raises", rounds=4))
    console = Console(file=io.StringIO(), width=200)
    print_throughput(rows, console)
    told = console.file.getvalue()
    assert "RuntimeError: no kernel" in told
    assert "more rounds" in told
    assert draw_throughput(rows, 7).axes
