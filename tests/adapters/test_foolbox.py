"""Foolbox on a trained segmenter: every class that runs, once; what it may not touch; its own conventions."""

from __future__ import annotations

import inspect
import json
import logging

import pytest
import torch
from strategies import make_batch
from toolkit_checks import check_class, generators, run, scenes, tiny
from torch import nn

from advseg_adapters import foolbox as adapter
from advseg_adapters.loading import SUPPORT
from advseg_bench.attacks import BIM
from advseg_bench.attacks.gradient import FGSM
from advseg_bench.errors import IncompatibleError, PluginError, SpecError
from advseg_bench.losses import bce, dice
from advseg_bench.types import Budget

library = adapter.library  # imported by the adapter, which keeps Foolbox's warnings away
ROWS = {row["name"]: row for row in json.loads((SUPPORT / "foolbox.json").read_text())["rows"]}
COMPILED = [name for name in adapter.ROUTES if "BrendelBethge" in name]
"""Numba compiles each of them for half a minute; the support table has measured them."""
RUNS = [name for name, route in adapter.ROUTES.items() if not route.reason and name not in COMPILED]
CHEAP = {
    **{name: {"steps": 3} for name in RUNS if "steps" in inspect.signature(adapter.CLASSES[name]).parameters},
    **{name: {"repeats": 3} for name in RUNS if "Repeated" in name},
    "L2CarliniWagnerAttack": {"binary_search_steps": 2, "steps": 5},
    "EADAttack": {"binary_search_steps": 2, "steps": 5},
    "LinearSearchBlendedUniformNoiseAttack": {"directions": 3, "steps": 5},
    "HopSkipJumpAttack": {"steps": 1, "initial_gradient_eval_steps": 5},
    "PointwiseAttack": {"l2_binary_search": False},
}


@pytest.mark.parametrize("name", RUNS)
def test_every_class_that_runs(name):
    check_class(adapter, "foolbox", name, CHEAP.get(name, {}), ROWS[f"foolbox.{name}"])


@pytest.mark.parametrize("name", COMPILED)
def test_a_package_that_only_some_classes_need_is_told(name, monkeypatch):
    missing = ModuleNotFoundError("No module named 'numba'", name="numba")
    monkeypatch.setattr("foolbox.attacks.brendel_bethge.NUMBA_IMPORT_ERROR", missing)
    with pytest.raises(PluginError, match=rf"{name}: requires numba, .*\. Run: pip install numba"):
        adapter.load(name, {}, dice, scenes()["binary"].batch.task)


def test_every_class_of_the_package_has_a_route():
    exported = {
        kind.__name__ for kind in vars(library).values() if isinstance(kind, type) and issubclass(kind, library.Attack)
    }
    assert set(adapter.ROUTES) == exported - {"Attack"}


def test_a_class_of_a_later_version_is_told(monkeypatch):
    monkeypatch.setitem(adapter.CLASSES, "NewestAttack", library.LinfFastGradientAttack)
    with pytest.raises(PluginError, match=r"foolbox\.NewestAttack: not in the support table yet"):
        adapter.load("NewestAttack", {}, dice, scenes()["binary"].batch.task)


@pytest.mark.parametrize("name", [name for name, route in adapter.ROUTES.items() if route.reason])
def test_a_class_that_cannot_says_why_in_one_line(name):
    with pytest.raises(IncompatibleError, match=rf"attack foolbox\.{name}: cannot attack a segmenter: ") as caught:
        adapter.load(name, {}, dice, scenes()["binary"].batch.task)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("LinfBasicIterativeAttack", {"step": 3}, r"unknown setting 'step'\. Did you mean 'steps'\?"),
        ("LinfBasicIterativeAttack", {"steps": "ten"}, "setting 'steps': expected a number"),
        ("LinfFastGradientAttack", {"random_start": 1}, "expected true or false"),
        ("HopSkipJumpAttack", {"constraint": "l2"}, "'constraint' is set by the key `norm`"),
        ("GaussianBlurAttack", {"distance": "l2"}, "'distance' is set by the key `norm`"),
        ("BoundaryAttack", {"init_attack": "FGSM"}, "'init_attack' is an object, which a suite cannot name"),
        ("SparseL1DescentAttack", {"quantile": 3.0}, "does not take these settings: quantile needs to be"),
        ("LinfFastGradientAttack", {"rise": 0.1}, "it has no success criterion"),
        ("LinfAdditiveUniformNoiseAttack", {"std": 0.1}, "unknown setting 'std'"),
    ],
)
def test_wrong_settings_are_one_line_before_anything_runs(name, settings, message):
    with pytest.raises(SpecError, match=message):
        adapter.load(name, settings, dice, scenes()["binary"].batch.task)


def test_a_short_name_gets_the_full_one():
    with pytest.raises(PluginError, match=r"Use foolbox\.LinfProjectedGradientDescentAttack"):
        adapter.load("PGD", {}, dice, scenes()["binary"].batch.task)


def test_a_loss_is_asked_for_where_it_is_needed():
    task = scenes()["binary"].batch.task
    with pytest.raises(SpecError, match="expected a loss"):
        adapter.load("LinfFastGradientAttack", {}, None, task)
    assert adapter.load("LinfAdditiveUniformNoiseAttack", {}, None, task).loss is None


@pytest.mark.parametrize("kind", ["binary", "multilabel", "multiclass"])
def test_its_fgsm_is_ours_bit_for_bit(kind):
    scene = scenes()[kind]
    _, found = run(adapter, "LinfFastGradientAttack", "linf", {}, scene)
    budget = Budget("linf", 8 / 255)
    ours = FGSM(loss=dice)(scene.model, scene.batch, budget=budget, generators=generators(2))
    assert torch.equal(found, ours)


def test_its_bim_is_ours_bit_for_bit():
    scene = scenes()["multilabel"]
    _, found = run(adapter, "LinfBasicIterativeAttack", "linf", {"rel_stepsize": 0.1}, scene)
    budget = Budget("linf", 8 / 255)
    ours = BIM(loss=dice, steps=10, step_size=0.1)(scene.model, scene.batch, budget=budget, generators=generators(2))
    assert torch.equal(found, ours)


def test_a_random_start_is_the_images_own():
    scene = scenes()["multilabel"]
    attack, found = run(adapter, "LinfFastGradientAttack", "linf", {"random_start": True}, scene)
    assert attack.is_random()
    assert attack.together(2) == 1
    budget = Budget("linf", 8 / 255)
    other = attack(scene.model, scene.batch, budget=budget, generators=generators(2, seed=1))
    assert not torch.equal(found, other)


@pytest.mark.parametrize("name", ["L2CarliniWagnerAttack", "EADAttack"])
def test_a_search_that_finds_nothing_leaves_the_image_as_it_is(name):
    """Foolbox returns a black image then, which would be scored as an attack."""
    scene = scenes()["multilabel"]
    _, found = run(adapter, name, "l2", {"rise": 1000.0} | CHEAP[name], scene)
    assert torch.equal(found, scene.batch.x)


@pytest.mark.parametrize("name", ["BoundaryAttack", "HopSkipJumpAttack", "PointwiseAttack"])
def test_a_search_without_a_start_leaves_the_image_as_it_is(name):
    scene = tiny()
    attack, found = run(adapter, name, "l2", {"threshold": 1e6} | CHEAP[name], scene)
    assert torch.equal(found, scene.batch.x)
    with torch.no_grad():
        logits = scene.model(found)
    assert not attack.reached(logits, logits, scene.batch).any()


def test_other_errors_are_not_swallowed():
    def broken(x):
        raise ValueError("no logits today")

    batch, _ = make_batch("binary")
    attack = adapter.load("LinfFastGradientAttack", {}, bce, batch.task)
    with pytest.raises(ValueError, match="no logits today"):
        attack(broken, batch, budget=Budget("linf", 0.1), generators=generators(3))


def test_the_root_logger_is_not_configured():
    handlers = list(logging.root.handlers)
    logging.root.handlers.clear()
    try:
        run(adapter, "L2DeepFoolAttack", "l2", {"steps": 2}, scenes()["binary"])
        assert logging.root.handlers == []
    finally:
        logging.root.handlers[:] = handlers


@pytest.mark.parametrize(
    "name", ["LinfFastGradientAttack", "L2BasicIterativeAttack", "L1FastGradientAttack", "LinfDeepFoolAttack"]
)
def test_volumes_are_attacked(name):
    norm = adapter.ROUTES[name].norms[0]
    batch, _ = make_batch("binary", n=2, space=(4, 6, 5))
    weight = torch.rand((1, 2, 3, 3, 3), generator=torch.Generator().manual_seed(0)) - 0.5

    def model(x):
        return nn.functional.conv3d(x, weight, padding=1)

    attack = adapter.load(name, {}, bce, batch.task)
    found = attack(model, batch, budget=Budget(norm, 0.1), generators=generators(2))
    assert found.shape == batch.x.shape
    clean, attacked = (bce(model(x), batch.y, batch.valid, batch.task) for x in (batch.x, found))
    assert (attacked > clean).all()
