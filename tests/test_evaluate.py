"""`ab.evaluate`: the harness on a model object and images in memory."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from monai.data import CacheDataset
from monai.transforms import Compose, EnsureTyped
from rich.console import Console
from strategies import make_batch
from test_front_door import make_convolution, make_network
from torch.utils.data import DataLoader, TensorDataset

import advseg_bench as ab
from advseg_bench.batches import select_images
from advseg_bench.data.memory import make_dataset
from advseg_bench.errors import DataError, IncompatibleError, PluginError, SpecError, UserError
from advseg_bench.registry.loading import load_attack
from advseg_bench.report import print_summary, summarise, write_report
from advseg_bench.running.runner import Conditions, run_unit
from advseg_bench.running.work import Unit
from advseg_bench.suite.cells import CLEAN, Arm, Cell

N = 5


@pytest.fixture(scope="module")
def batch():
    whole, _ = make_batch("multilabel", n=N, space=(12, 10))
    return whole


def evaluate(model, data, attacks=None, **options):
    return ab.evaluate(model, data, attacks or [ab.attacks.FGSM(loss="dice")], **options)


def load(data):
    """A data loader that leaves the global random state alone."""
    return DataLoader(data, batch_size=2, generator=torch.Generator())


def values(run):
    """The rows without what names them."""
    rows = run.rows.sort("attack", "loss", "settings", "eps", "draw", "image")
    return rows.drop("cell", "dataset", "model", "subject", "block", "image").to_dicts()


def test_rows_are_those_of_the_harness_bit_for_bit(batch):
    model = make_network("multilabel").eval().requires_grad_(False)
    arms = [Arm("fgsm", "bce", "{}", "linf"), Arm("pgd", "dice", '{"random_start": false, "steps": 3}', "linf")]
    cells = [Cell("clean", "m", CLEAN, 0.0, 0, "", None)]
    cells += [Cell(f"{arm.attack}{eps}", "m", arm, eps, 0, "", None) for arm in arms for eps in (0.01, 0.05)]
    theirs, failures = run_unit(Unit("m", tuple(range(N)), tuple(cells)), model, make_dataset(batch), Conditions(0, 4))
    assert not failures
    attacks = [ab.attacks.FGSM(loss="bce"), ab.attacks.PGD(loss="dice", steps=3, random_start=False)]
    run = evaluate(model, [batch], attacks, eps=[0.01, 0.05], batch=4)
    assert run.failures == []
    assert {(row["attack"], row["settings"]) for row in run.rows.to_dicts()} == {
        ("none", "{}"),
        ("fgsm", "{}"),
        ("pgd", '{"random_start": false, "steps": 3}'),
    }
    keys = ("attack", "loss", "settings", "eps", "image")
    names = ("tp", "fp", "fn", "wrong_pixels", "flipped_pixels", "linf", "l2", "unmoved", "forwards", "flags")
    ours = {tuple(row[k] for k in keys): [row[n] for n in names] for row in run.rows.to_dicts()}
    assert ours == {tuple(row[k] for k in keys): [row[n] for n in names] for row in theirs}


def test_every_way_to_give_images_gives_the_same_rows(batch):
    model, x, y = make_network("multilabel"), batch.x, batch.y.float()
    plain = ab.Batch.of(x, y, task="multilabel")
    samples = [{"image": a, "label": b} for a, b in zip(x, y, strict=True)]
    monai = CacheDataset(samples, Compose([EnsureTyped(("image", "label"))]), progress=False)
    ways = {
        "batches": [select_images(plain, [0, 1, 2]), select_images(plain, [3, 4])],
        "tuples": load(TensorDataset(x, y)),
        "lists": [[x[:3], y[:3]], [x[3:], y[3:]]],
        "dictionaries": load(samples),
        "data set": TensorDataset(x, y),
        "MONAI": monai,
        "arrays": [(x.numpy(), y.numpy())],
    }
    wanted = values(evaluate(model, [plain]))
    for name, data in ways.items():
        run = evaluate(model, data, task=None if name == "batches" else "multilabel")
        assert values(run) == wanted, name


def test_models_draws_radii_and_tables(batch):
    models = {"one": make_network("multilabel"), "two": torch.nn.Sequential(make_convolution(2, 3))}
    attacks = {"mine": ab.attacks.FGSM(loss="dice"), "noise": ab.attacks.RandomSign()}
    run = evaluate(models, [batch], attacks, eps=[0.01, 0.02], draws=3)
    table = run.table("dice", by=("model", "attack", "eps"))
    assert table.height == 2 * (1 + 2 + 2)
    assert run.rows.height == 2 * N * (1 + 2 + 2 * 3)
    assert run.missing == 0
    assert run.controls == {"noise"}
    assert {"mean", "lower", "upper"} <= set(table.columns)


def test_a_report_is_written(batch, tmp_path):
    run = evaluate(make_network("multilabel"), [batch], [ab.attacks.FGSM(loss="dice"), ab.attacks.RandomSign()])
    names = {path.name for path in write_report(run, tmp_path / "out")}
    assert {"report.html", "report.md"} <= names
    assert "Sequential" in (tmp_path / "out" / "report.md").read_text()


def test_subjects_are_said(batch):
    samples = [
        {"image": a, "label": b, "who": f"p{i // 2}"} for i, (a, b) in enumerate(zip(batch.x, batch.y, strict=True))
    ]
    run = evaluate(make_network("multilabel"), load(samples), task="multilabel", subject_key="who")
    assert run.rows["subject"].n_unique() == 3
    assert run.info["data"]["note"] == ""
    own = evaluate(make_network("multilabel"), load(samples), task="multilabel")
    assert own.info["data"]["note"].endswith("because no subjects were given.")


@pytest.mark.parametrize("known", [True, False])
def test_without_subjects_no_population_is_described_and_no_claim_is_judged(known, tmp_path):
    x = torch.rand(8, 1, 12, 10, generator=torch.Generator().manual_seed(0))
    subjects = [f"patient{i}" for i in range(8)] if known else None
    given = ab.Batch.of(x, x[:, 0] > 0.5, task="binary", subjects=subjects)
    attacks = [ab.attacks.FGSM(loss="bce"), ab.attacks.RandomSign()]
    run = evaluate(lambda x: 20 * (x - 0.5), [given], attacks, eps=[0.01, 0.05])
    summary, console = summarise(run), Console(file=io.StringIO(), width=120)
    print_summary(summary, [], console)
    write_report(summary, tmp_path)
    for text in (console.file.getvalue(), (tmp_path / "report.md").read_text()):
        assert ("population" in text) == known
        assert ("Claim 1, " in text or "The claim is " in text) == known
        assert ("8 subjects" in text) == known
        assert ("each image counts by itself" in text) != known
    claim = ab.judge_claims(run)[0]
    assert (claim.verdict is not None) == known
    assert claim.answer.startswith("Not asked: no subjects were given") != known


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_a_function_that_returns_probabilities_is_refused(task):
    network = make_network(task)

    def probabilities(x):
        logits = network(x)
        return logits.sigmoid() if task == "binary" else logits.softmax(1)

    given, _ = make_batch(task, n=2, space=(12, 10))
    with pytest.raises(IncompatibleError, match="model probabilities: expected raw logits, got values between 0 and 1"):
        evaluate(probabilities, [given])


def test_the_model_is_given_back_as_it_was(batch):
    model = make_network("multilabel").train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model[0].weight.grad = torch.ones_like(model[0].weight)
    evaluate(model, [batch])
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())


def test_an_attack_that_fails_costs_the_others_nothing(batch):
    @ab.attack
    def broken(model, x, y, eps):
        raise RuntimeError("boom")

    model = make_network("multilabel")
    run = evaluate(model, [batch], [ab.attacks.FGSM(loss="dice"), broken])
    (failure,) = run.failures
    assert failure["message"] == "RuntimeError: boom"
    assert run.rows.filter(run.rows["attack"] != "none").height == N
    assert run.missing == N


def test_toolkits_and_functions_are_attacks(batch):
    @ab.attack
    def shift(model, x, y, eps, down=False):
        return (x - eps if down else x + eps).clamp(0, 1)

    theirs = load_attack("torchattacks.FGSM", {}, "dice", batch.task)
    run = evaluate(make_network("multilabel"), [batch], [theirs, shift.configure(down=True)])
    rows = {(row["attack"].rpartition(".")[2], row["loss"], row["settings"]) for row in run.rows.to_dicts()}
    assert rows == {("none", "", "{}"), ("FGSM", "dice", "{}"), ("shift", "", '{"down": true}')}


def swapped(logits, y, valid, task):
    """A loss with its arguments swapped: an attack on it helps the model."""
    return -ab.losses.bce(logits, y, valid, task)


@ab.attack
def needs_loss(model, x, y, eps, loss):
    return x


def test_random_rows_do_not_depend_on_where_things_lie_in_memory(batch):
    @dataclass(frozen=True)
    class Noisy:
        post: object = swapped

        def __call__(self, model, batch, *, budget, generators):
            return batch.x

    run = evaluate(make_network("multilabel"), [batch], [Noisy(post=needs_loss.function)])
    told = {row["settings"] for row in run.rows.to_dicts() if row["attack"] != "none"}
    assert told == {f'{{"post": "{__name__}:needs_loss"}}'}


def test_a_single_attack_a_single_batch_and_a_function_will_do(batch):
    network = make_network("multilabel")
    one = ab.evaluate(network, batch, ab.attacks.FGSM(loss="dice"))
    with torch.inference_mode():
        other = ab.evaluate(lambda x: network(x), [batch], [ab.attacks.FGSM(loss="dice")], eps=np.float64(4 / 255))
    assert values(one) == values(other)


def test_a_failure_is_told_once(batch):
    @ab.attack
    def broken(model, x, y, eps):
        raise RuntimeError("boom")

    run = evaluate(make_network("multilabel"), [batch], [broken], batch=2)
    assert len(run.failures) == 1


MISTAKES = [
    (lambda b: {"data": [(b.x, b.y)]}, SpecError, "expected a `task`, .*, got None"),
    (lambda b: {"data": []}, DataError, "expected data with at least one image, got 'none'"),
    (lambda b: {"data": [b, b]}, DataError, "expected a unique name .*, got 'image0 twice'"),
    (lambda b: {"data": [b.x], "task": "multilabel"}, DataError, "expected items that are an ab.Batch, a tuple"),
    (
        lambda b: {"data": [{"img": b.x}], "task": "multilabel"},
        DataError,
        r"item 0: keys: expected the keys 'image', 'label', got",
    ),
    (
        lambda b: {"data": [{"image": b.x[0], "label": b.y[0]}], "task": "multilabel", "classes": 3},
        DataError,
        r"item 0: x: expected a batch of images .*, got \(2, 12, 10\)\. .* monai.data.Dataset\(items\)",
    ),
    (
        lambda b: {"data": [(b.x, b.y)], "task": "multiclass"},
        SpecError,
        "`classes` of a multiclass task, got None. Write `classes=3`, or a list of names, background first",
    ),
    (lambda b: {"attacks": [ab.attacks.FGSM]}, SpecError, "expected attack objects, such as"),
    (lambda b: {"attacks": {}}, SpecError, "expected at least one attack"),
    (lambda b: {"attacks": [ab.attacks.RandomSign()] * 2}, SpecError, "attacks that differ in name, loss or settings"),
    (lambda b: {"attacks": {"none": ab.attacks.RandomSign()}}, SpecError, "expected another name than 'none'"),
    (lambda b: {"eps": 4}, SpecError, "expected an L_inf `eps` below 1"),
    (lambda b: {"eps": []}, SpecError, "expected at least one radius"),
    (lambda b: {"eps": "4/255"}, SpecError, "expected a finite number of at least 0 as `eps`, such as 4/255"),
    (lambda b: {"eps": [0.1, 0.1]}, SpecError, "expected each radius once"),
    (lambda b: {"draws": 0}, SpecError, "a whole number of at least 1 as `draws`"),
    (lambda b: {"batch": 0}, SpecError, "a whole number of at least 1 as `batch`"),
    (lambda b: {"model": {}}, SpecError, "expected at least one model"),
    (lambda b: {"model": None}, SpecError, "expected a network from images to logits"),
    (lambda b: {"model": lambda x: x.mean(0, keepdim=True).repeat(1, 2, 1, 1)[:, :3]}, UserError, "expected logits of"),
    (lambda b: {"device": "foo"}, SpecError, "expected a device of this machine"),
    (lambda b: {"data": None}, DataError, "expected a data loader, a data set of torch or MONAI"),
    (lambda b: {"task": "binary"}, SpecError, "expected no `task` beside ab.Batch items"),
    (lambda b: {"bounds": (0, 2)}, SpecError, "expected no `bounds` beside ab.Batch items"),
    (
        lambda b: {"data": [(b.x, b.y)], "task": "multilabel", "subject_key": "who"},
        SpecError,
        "item 0: subject_key: expected .*, got 'tuple'",
    ),
    (
        lambda b: {"data": [(b.x, b.y), (b.x * float("nan"), b.y)], "task": "multilabel"},
        DataError,
        r"item 1: x\[0\]: expected finite intensities",
    ),
    (lambda b: {"attacks": [ab.attacks.FGSM(loss="ce")]}, IncompatibleError, "loss 'ce' is defined for multiclass"),
    (lambda b: {"attacks": [ab.attacks.FGSM(loss=swapped)]}, IncompatibleError, "swapped"),
    (lambda b: {"attacks": [needs_loss]}, IncompatibleError, "'.*needs_loss' needs a loss"),
    (lambda b: {"attacks": [lambda model, x, y, eps: x]}, PluginError, "Decorate a function"),
    (lambda b: {"model": make_convolution(2, 2)}, UserError, "expected 3 logit channels .* got 2"),
]


@pytest.mark.parametrize(("given", "error", "message"), MISTAKES)
def test_mistakes_are_one_line(batch, given, error, message):
    options = {"model": make_network("multilabel"), "data": [batch], "attacks": [ab.attacks.RandomSign()]}
    options |= given(batch)
    with pytest.raises(error, match=message) as found:
        ab.evaluate(options.pop("model"), options.pop("data"), options.pop("attacks"), **options)
    assert "\n" not in str(found.value)


def test_rounding_of_large_intensities_is_no_violation():
    """In HU a float32 has steps of 1e-5, so that results at the border of the budget pass it by more than 1e-6."""
    x = -160 + 400 * torch.rand((4, 1, 24, 24), generator=torch.Generator().manual_seed(0))
    batch = ab.Batch.of(x, x > 40, task="binary", bounds=(-160, 240))
    with torch.random.fork_rng():
        model = torch.nn.Conv2d(1, 1, 3, padding=1)
    attacks = [ab.attacks.FGSM(loss="bce"), ab.attacks.PGD(loss="bce"), ab.attacks.RandomSign()]
    run = ab.evaluate(model, [batch], attacks, eps=[0.8, 4])
    assert {cell.label.split()[-1] for cell in run.about.cells if cell.eps} == {"0.8", "4"}
    rows = run.rows
    assert not [flag for flags in rows["flags"].to_list() for flag in flags]
    assert 3.9 < rows.filter(rows["attack"] == "fgsm")["linf"].max() < 4.1
