"""torchattacks on a trained segmenter: every class that runs, once; what it may not touch; its own conventions."""

from __future__ import annotations

import inspect
import json

import pytest
import torch
import torchattacks
from strategies import make_batch
from toolkit_checks import check_class, generators, run, scene_for, scenes
from torch import nn

from advseg_adapters import torchattacks as adapter
from advseg_adapters.loading import SUPPORT
from advseg_bench.attacks import BIM
from advseg_bench.errors import IncompatibleError, PluginError, SpecError
from advseg_bench.losses import bce, dice
from advseg_bench.types import Budget

ROWS = {row["name"]: row for row in json.loads((SUPPORT / "torchattacks.json").read_text())["rows"]}
RUNS = [name for name, route in adapter.ROUTES.items() if not route.reason]
CHEAP = {
    **{name: {"steps": 3} for name in RUNS if "steps" in inspect.signature(adapter.CLASSES[name]).parameters},
    "SPSA": {"nb_iter": 2, "nb_sample": 8},
    "JSMA": {"gamma": 0.004},
    "EADL1": {"binary_search_steps": 2, "max_iterations": 10},
    "EADEN": {"binary_search_steps": 2, "max_iterations": 10},
    "SparseFool": {"steps": 1},
    "Pixle": {"restarts": 2, "max_iterations": 3},
    "Square": {"n_queries": 20},
}


@pytest.mark.parametrize("name", RUNS)
def test_every_class_that_runs(name):
    check_class(adapter, "torchattacks", name, CHEAP.get(name, {}), ROWS[f"torchattacks.{name}"])


def test_every_class_of_the_package_has_a_route():
    assert set(adapter.ROUTES) == set(torchattacks.__all__)


def test_a_class_of_a_later_version_is_told(monkeypatch):
    monkeypatch.setitem(adapter.CLASSES, "Newest", torchattacks.FGSM)
    with pytest.raises(PluginError, match=r"torchattacks\.Newest: not in the support table yet"):
        adapter.load("Newest", {}, dice, scenes()["binary"].batch.task)


@pytest.mark.parametrize("name", [name for name, route in adapter.ROUTES.items() if route.reason])
def test_a_class_that_cannot_says_why_in_one_line(name):
    with pytest.raises(IncompatibleError, match=rf"attack torchattacks\.{name}: cannot attack a segmenter: ") as caught:
        adapter.load(name, {}, dice, scenes()["binary"].batch.task)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("PGD", {"step": 3}, r"torchattacks\.PGD: unknown setting 'step'\. Did you mean 'steps'\?"),
        ("PGD", {"eps": 0.1}, "'eps' is set by the key `eps`"),
        ("PIFGSM", {"max_epsilon": 0.1}, "'max_epsilon' is set by the key `eps`"),
        ("APGD", {"norm": "L2"}, "'norm' is set by the key `norm`"),
        ("APGD", {"loss": "dlr"}, "setting 'loss': expected 'ce' with a view's two classes, got 'dlr'"),
        ("UPGD", {"loss": "margin"}, "setting 'loss': expected 'ce'"),
        ("Square", {"loss": "dlr"}, "setting 'loss': expected 'margin' or 'ce'"),
        ("PGD", {"targeted": True}, "unknown setting 'targeted'"),
        ("PGD", {"rise": 0.1}, "it has no success criterion"),
        ("Pixle", {"pixel_mapping": "nothing"}, "does not take these settings: pixel_mapping must be one of"),
        ("TIFGSM", {"kernel_name": "round"}, "does not take these settings"),
        ("FAB", {"n_classes": 10}, "'n_classes' is set by the view"),
        ("PGD", {"verbose": True}, "unknown setting 'verbose'"),
        ("Square", {"verbose": True}, "'verbose' is off"),
    ],
)
def test_wrong_settings_are_one_line_before_anything_runs(name, settings, message):
    with pytest.raises(SpecError, match=message):
        adapter.load(name, settings, dice, scenes()["binary"].batch.task)


def test_a_misspelt_class_gets_the_nearest_name():
    with pytest.raises(PluginError, match=r"Did you mean 'torchattacks\.MIFGSM'"):
        adapter.load("MIFSGM", {}, dice, scenes()["binary"].batch.task)


def test_a_loss_is_asked_for_where_it_is_needed():
    task = scenes()["binary"].batch.task
    with pytest.raises(SpecError, match=r"torchattacks\.PGD: expected a loss"):
        adapter.load("PGD", {}, None, task)
    assert adapter.load("GN", {}, None, task).loss is None


def test_bim_is_our_bim():
    scene = scenes()["multilabel"]
    _, found = run(adapter, "BIM", "linf", {"alpha": "0.1*eps"}, scene)
    budget = Budget("linf", 8 / 255)
    ours = BIM(loss=dice, steps=10, step_size=0.1)(scene.model, scene.batch, budget=budget, generators=generators(2))
    assert (found - ours).abs().max() < 1e-6


def test_apgd_returns_its_best_iterate_where_its_public_call_returns_the_clean_image():
    """Through a view of the loss the class is wrong from the start, which stops the call that asks for success."""
    from advseg_adapters.views import LossView
    from advseg_bench.batches import select_images

    scene = scenes()["multilabel"]
    one = select_images(scene.batch, [0])
    with torch.random.fork_rng():
        public = torchattacks.APGD(LossView(scene.model, one, dice), eps=8 / 255)(one.x, torch.zeros(1).long())
    assert torch.equal(public, one.x)
    _, found = run(adapter, "APGD", "linf", {}, scene)
    clean, attacked = scene.loss(scene.batch.x), scene.loss(found)
    assert (attacked > 1.02 * clean).all()


@pytest.mark.parametrize("name", ["Square", "FAB"])
def test_without_success_the_best_of_the_search_is_returned(name):
    scene = scenes()["multilabel"]
    attack, found = run(adapter, name, "linf", {"rise": 50.0} | CHEAP[name], scene)
    with torch.no_grad():
        logits, clean = scene.model(found), scene.model(scene.batch.x)
    assert not attack.reached(logits, clean, scene.batch).any()
    if name == "Square":
        assert (scene.loss(found) > scene.loss(scene.batch.x)).all()
        assert not torch.equal(found, scene.batch.x)


def test_a_threshold_that_is_passed_already_leaves_the_image_as_it_is():
    """The harness flags such a result; it is no sign of robustness."""
    scene = scenes()["multilabel"]
    attack, found = run(adapter, "DeepFool", "l2", {"threshold": 0.0}, scene)
    assert torch.equal(found, scene.batch.x)
    with torch.no_grad():
        logits = scene.model(found)
    assert attack.reached(logits, logits, scene.batch).all()


def test_prints_are_kept_away(capsys):
    run(adapter, "FGSM", "linf", {}, scene_for("FGSM"))
    with torch.random.fork_rng():
        torchattacks.FGSM(nn.Linear(1, 2)).set_mode_default()
    assert capsys.readouterr().out == "Attack mode is changed to 'default.'\n"


@pytest.mark.parametrize("name", ["FGSM", "MIFGSM", "PGDL2", "APGD", "VMIFGSM", "CW", "PGDRS"])
def test_volumes_are_attacked_as_one_tall_slice(name):
    norm = adapter.ROUTES[name].norms[0]
    batch, _ = make_batch("binary", n=2, space=(4, 6, 5))
    weight = torch.rand((1, 2, 3, 3, 3), generator=torch.Generator().manual_seed(0)) - 0.5

    def model(x):
        return nn.functional.conv3d(x, weight, padding=1)

    attack = adapter.load(name, {"rise": 0.01} if name == "CW" else {}, bce, batch.task)
    found = attack(model, batch, budget=Budget(norm, 0.1), generators=generators(2))
    assert found.shape == batch.x.shape
    clean, attacked = (bce(model(x), batch.y, batch.valid, batch.task) for x in (batch.x, found))
    assert (attacked > clean).all()


def test_a_volume_is_refused_where_the_class_looks_at_neighbours():
    batch, _ = make_batch("binary", space=(4, 6, 5))
    with pytest.raises(IncompatibleError, match="expected images with 2 spatial axes, got 3"):
        adapter.load("DIFGSM", {}, bce, batch.task)(
            lambda x: x[:, :1], batch, budget=Budget("linf", 0.1), generators=generators(3)
        )


@pytest.mark.parametrize("name", ["DIFGSM", "TIFGSM", "Pixle", "Square"])
def test_images_that_are_not_square_are_refused_in_one_line(name):
    batch, _ = make_batch("binary", space=(11, 8))
    norm = adapter.ROUTES[name].norms[0]
    with pytest.raises(IncompatibleError, match=r"expected square images, got \(11, 8\)\. Resize or pad them"):
        adapter.load(name, {}, bce, batch.task)(
            lambda x: x[:, :1], batch, budget=Budget(norm, 0.1), generators=generators(3)
        )


@pytest.mark.parametrize("name", ["PIFGSM", "TIFGSM"])
def test_one_channel_stands_for_three_where_the_class_convolves_three(name):
    scene = scenes()["multilabel"]
    assert scene.batch.x.shape[1] == 1
    _, found = run(adapter, name, "linf", {}, scene)
    assert found.shape == scene.batch.x.shape
    assert (scene.loss(found) > scene.loss(scene.batch.x)).all()
    batch, _ = make_batch("binary", space=(20, 20))
    with pytest.raises(IncompatibleError, match="expected images with 1 or 3 channels, got 2"):
        adapter.load(name, {}, bce, batch.task)(
            lambda x: x[:, :1], batch, budget=Budget("linf", 0.1), generators=generators(3)
        )


def test_one_channel_gets_what_three_equal_ones_would():
    """Of three equal channels, each gets the same from a class that treats channels alike."""
    from dataclasses import replace

    scene = scenes()["multilabel"]
    grey = scene.batch
    colour = replace(grey, x=grey.x.expand(-1, 3, -1, -1).contiguous())
    attack = adapter.load("PIFGSM", {}, dice, grey.task)
    budget = Budget("linf", 8 / 255)
    single = attack(scene.model, grey, budget=budget, generators=generators(2))
    triple = attack(lambda x: scene.model(x.mean(1, keepdim=True)), colour, budget=budget, generators=generators(2))
    assert (triple[:, :1] == single).double().mean() > 0.99
