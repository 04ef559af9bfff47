"""ART on a trained segmenter: every class that runs, once; its settings; the views as classifiers; a quiet import."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from strategies import make_batch, make_generators
from toolkit_checks import check_class, run, scenes

from advseg_adapters.art import attacks as adapter
from advseg_adapters.art.routes import MANNERS
from advseg_adapters.art.run import write_cosines
from advseg_adapters.art.toolkit import EVASION
from advseg_adapters.loading import SUPPORT
from advseg_bench.attacks import PGD
from advseg_bench.batches import select_images
from advseg_bench.errors import IncompatibleError, PluginError, SpecError
from advseg_bench.geometry import distance
from advseg_bench.losses import bce, dice
from advseg_bench.registry.loading import load_attack
from advseg_bench.testing import LinearSegmenter
from advseg_bench.types import Budget

ROWS = {row["name"]: row for row in json.loads((SUPPORT / "art.json").read_text())["rows"]}
RUNS = [name for name, route in adapter.ROUTES.items() if not route.reason and name in adapter.CLASSES]
STEPS = {"max_iter": 2}
SEARCH = {"binary_search_steps": 2, "max_iter": 3}
CHEAP = {
    "BasicIterativeMethod": STEPS,
    "MomentumIterativeMethod": STEPS,
    "ProjectedGradientDescent": STEPS,
    "ProjectedGradientDescentNumpy": STEPS,
    "ProjectedGradientDescentPyTorch": STEPS,
    "SquareAttack": {"max_iter": 10},
    "FeatureAdversariesPyTorch": STEPS,
    "AdversarialPatch": STEPS,
    "AdversarialPatchPyTorch": STEPS,
    "AdversarialPatchNumpy": STEPS,
    "AutoProjectedGradientDescent": {"max_iter": 4},
    "AutoConjugateGradient": {"max_iter": 4},
    "RescalingAutoConjugateGradient": {"max_iter": 4},
    "UniversalPerturbation": {"max_iter": 1, "attacker_params": {"verbose": False, "max_iter": 3}},
    "DeepFool": {"max_iter": 3},
    "CarliniL2Method": SEARCH | {"max_halving": 2, "max_doubling": 2},
    "CarliniLInfMethod": {"max_iter": 2, "largest_const": 1e-3},
    "CarliniL0Method": SEARCH | {"max_halving": 1, "max_doubling": 1},
    "ElasticNet": SEARCH,
    "NewtonFool": STEPS,
    "SaliencyMapMethod": {"gamma": 0.01},
    "BoundaryAttack": {"max_iter": 2, "sample_size": 5, "num_trial": 3},
    "HopSkipJump": {"max_iter": 1, "init_eval": 10, "max_eval": 20},
    "GeoDA": {"max_iter": 260, "sub_dim": 4},
    "SignOPTAttack": {"max_iter": 1, "k": 3, "num_trial": 3},
    "SimBA": {"max_iter": 10},
    "PixelAttack": {"th": 3, "max_iter": 1, "rise": 1e-4},
    "Wasserstein": {"max_iter": 1, "projected_sinkhorn_max_iter": 5},
    "ShadowAttack": {"nb_steps": 3, "batch_size": 2},
}
SLOW = {"PixelAttack"}
"""Those that evaluate the model hundreds of times whatever their settings: they meet a small image instead."""


@pytest.mark.parametrize("name", [name for name in RUNS if name not in SLOW])
def test_every_class_that_runs(name):
    check_class(adapter, "art", name, CHEAP.get(name, {}), ROWS[f"art.{name}"])


def make_linear(kind):
    n = {"binary": 1, "multilabel": 3, "multiclass": 4}[kind]
    weight = torch.randn(n, 2, generator=torch.Generator().manual_seed(1))
    return LinearSegmenter(weight, torch.zeros(n))


def attack_linear(name, kind, space, settings, norm="linf", seed=0):
    batch, _ = make_batch(kind, n=2, space=space)
    attack = adapter.load(name, settings, dice, batch.task)
    budget = Budget(norm, 0.1 if norm == "linf" else 0.5)
    model = make_linear(kind)
    return attack, batch, attack(model, batch, budget=budget, generators=make_generators(2, seed)), model


def loss_of(model, x, batch):
    return dice(model(x), batch.y, batch.valid, batch.task)


@pytest.mark.parametrize("name", sorted(SLOW))
def test_every_class_that_runs_and_takes_long(name):
    norm = adapter.ROUTES[name].norms[0]
    _, batch, x_adv, _ = attack_linear(name, "multilabel", (4, 4), CHEAP.get(name, {}), norm)
    assert (distance(x_adv, batch.x, norm) <= 0.5 + 1e-6).all()
    assert not torch.equal(x_adv, batch.x)
    _, _, again, _ = attack_linear(name, "multilabel", (4, 4), CHEAP.get(name, {}), norm)
    assert torch.equal(again, x_adv)
    assert ROWS[f"art.{name}"]["status"] == "runs"


@pytest.mark.parametrize("name", [n for n in RUNS if 3 in adapter.ROUTES[n].dims and n != "FeatureAdversariesPyTorch"])
def test_every_class_that_takes_volumes(name):
    norm = adapter.ROUTES[name].norms[0]
    settings = CHEAP.get(name, {})
    _, batch, x_adv, _ = attack_linear(name, "multiclass", (3, 4, 2), settings, norm)
    assert x_adv.shape == batch.x.shape
    assert (distance(x_adv, batch.x, norm) <= 0.5 + 1e-6).all()


def test_every_class_of_the_package_has_a_route():
    assert set(adapter.CLASSES) <= set(adapter.ROUTES)
    assert set(adapter.ROUTES) - set(adapter.CLASSES) <= adapter.OPTIONAL
    assert all(not adapter.ROUTES[name].reason for name in MANNERS)


def test_a_class_of_another_version_is_told(monkeypatch):
    task = scenes()["binary"].batch.task
    monkeypatch.delitem(adapter.CLASSES, "RescalingAutoConjugateGradient", raising=False)
    with pytest.raises(IncompatibleError, match="the installed ART does not export it"):
        adapter.load("RescalingAutoConjugateGradient", {}, dice, task)
    monkeypatch.setitem(adapter.CLASSES, "Newest", EVASION.DeepFool)
    with pytest.raises(PluginError, match=r"art\.Newest: not in the support table yet"):
        adapter.load("Newest", {}, dice, task)


def test_the_table_has_a_row_for_every_route():
    assert list(ROWS) == [f"art.{name}" for name in adapter.ROUTES]
    for name, route in adapter.ROUTES.items():
        row = ROWS[f"art.{name}"]
        assert (row["status"] == "cannot") == bool(route.reason), name
        assert row["reason"] == route.reason


def test_twenty_classes_raise_the_loss_on_binary_and_multilabel_masks():
    raising = [row for row in ROWS.values() if row["status"] == "runs" and row["raises"]]
    assert len(raising) >= 20
    assert all({"binary", "multilabel"} <= set(row["kinds"]) for row in raising)


@pytest.mark.parametrize("name", [name for name, route in adapter.ROUTES.items() if route.reason])
def test_a_class_that_cannot_says_why_in_one_line(name):
    with pytest.raises(IncompatibleError, match=rf"attack art\.{name}: cannot attack a segmenter: ") as caught:
        adapter.load(name, {}, dice, scenes()["binary"].batch.task)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("ProjectedGradientDescent", {"steps": 3}, r"art\.ProjectedGradientDescent: unknown setting 'steps'"),
        ("ProjectedGradientDescent", {"max_iters": 3}, r"Did you mean 'max_iter'\?"),
        ("ProjectedGradientDescent", {"max_iter": "many"}, "setting 'max_iter': expected a number"),
        ("ProjectedGradientDescent", {"max_iter": -1}, "does not take these settings: The number of iterations"),
        ("ProjectedGradientDescent", {"eps": 0.1}, "'eps' is set by the key `eps`"),
        ("FeatureAdversariesPyTorch", {"delta": 0.1}, "'delta' is set by the key `eps`"),
        ("FastGradientMethod", {"norm": 2}, "'norm' is set by the key `norm`"),
        ("FastGradientMethod", {"targeted": True}, "'targeted' is off"),
        ("FastGradientMethod", {"summary_writer": True}, "'summary_writer' is off: it writes files"),
        ("ProjectedGradientDescent", {"verbose": True}, "'verbose' is off"),
        ("ProjectedGradientDescent", {"rise": 0.1}, "it has no success criterion"),
        ("DeepFool", {"rise": 0.1, "threshold": 0.5}, "expected `threshold` or `rise`, got both"),
        ("ProjectedGradientDescent", {"mask": "left"}, "setting 'mask': expected zeros and ones"),
    ],
)
def test_wrong_settings_are_one_line_before_anything_runs(name, settings, message):
    with pytest.raises(SpecError, match=message) as caught:
        adapter.load(name, settings, dice, scenes()["binary"].batch.task)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("FastGradientMethod", {"mask": [1]}, "ignores `mask` .* Use art.ProjectedGradientDescent with max_iter = 1"),
        ("AutoProjectedGradientDescent", {"mask": [1]}, "does not support `mask`"),
        (
            "AutoProjectedGradientDescent",
            {"loss_type": "difference_logits_ratio"},
            "loss_type: .* needs three classes",
        ),
    ],
)
def test_what_a_class_cannot_do_for_a_segmenter_is_refused(name, settings, message):
    with pytest.raises(IncompatibleError, match=message):
        adapter.load(name, settings, dice, scenes()["binary"].batch.task)


@pytest.mark.parametrize(
    ("name", "space", "norm", "message"),
    [
        ("GeoDA", (6, 8), "l2", r"GeoDA: expected square images, got \(6, 8\)"),
        ("ShadowAttack", (6, 8), "l2", "ShadowAttack: expected images with 1 or 3 channels, got 2"),
        ("SquareAttack", (12, 10), "l2", "SquareAttack: expected edges of at least 10 pixels, no taller"),
        ("SquareAttack", (3, 30), "linf", "SquareAttack: expected edges of at least 4 pixels"),
        ("SquareAttack", (4, 4, 4), "linf", "expected images with 2 spatial axes, got 3"),
        ("BasicIterativeMethod", (6, 8), "l2", "expected a supported norm, got 'l2'"),
    ],
)
def test_images_a_class_is_not_made_for_are_refused(name, space, norm, message):
    with pytest.raises(IncompatibleError, match=message):
        attack_linear(name, "multilabel", space, CHEAP[name], norm)


def test_a_misspelt_class_gets_the_nearest_name():
    with pytest.raises(PluginError, match=r"Did you mean 'art\.DeepFool'"):
        adapter.load("DeepFol", {}, dice, scenes()["binary"].batch.task)


def test_a_cell_of_a_suite_finds_it():
    scene = scenes()["multilabel"]
    attack = load_attack("art.FastGradientMethod", {}, "bce", scene.batch.task)
    assert attack.name == "art.FastGradientMethod"


def test_auto_pgd_with_a_loss_of_its_own_choice():
    scene = scenes()["multilabel"]
    settings = {"loss_type": "cross_entropy", "max_iter": 5, "rise": 0.01}
    _, found = run(adapter, "AutoProjectedGradientDescent", "linf", settings, scene)
    assert (scene.loss(found) > scene.loss(scene.batch.x)).all()


def test_square_takes_images_that_are_not_square():
    _, batch, x_adv, model = attack_linear("SquareAttack", "binary", (14, 9), {"max_iter": 40})
    assert (loss_of(model, x_adv, batch) > loss_of(model, batch.x, batch)).all()


def test_a_mask_is_kept_to():
    mask = np.zeros((1, 7, 5))
    mask[:, 2:4] = 1
    for name in ("ProjectedGradientDescent", "ProjectedGradientDescentPyTorch", "MomentumIterativeMethod"):
        _, batch, x_adv, _ = attack_linear(name, "binary", (7, 5), {"mask": mask.tolist()})
        moved = (x_adv != batch.x).any(1)
        assert moved[:, 2:4].all(), name
        assert not moved[:, :2].any(), name
        assert not moved[:, 4:].any(), name


@pytest.mark.parametrize(("starts", "view"), [(0, "native"), (1, "loss"), (3, "margin")])
def test_random_starts_take_another_way(starts, view):
    settings = {"num_random_init": starts, "max_iter": 3}
    scene = scenes()["multilabel"]
    attack, x_adv = run(adapter, "ProjectedGradientDescent", "linf", settings, scene)
    assert attack.route.view == view
    assert attack.is_random() == (starts > 0)
    assert (scene.loss(x_adv) > scene.loss(scene.batch.x)).all()
    _, other = run(adapter, "ProjectedGradientDescent", "linf", settings, scene)
    assert torch.equal(x_adv, other)


def test_pgd_is_our_pgd():
    scene = scenes()["multiclass"]
    budget = Budget("linf", 8 / 255)
    ours = PGD(loss=dice, steps=5, step_size=0.25, random_start=False)
    expected = ours(scene.model, scene.batch, budget=budget, generators=make_generators(2))
    _, found = run(adapter, "ProjectedGradientDescent", "linf", {"max_iter": 5}, scene)
    assert torch.equal(found, expected)


def test_the_smallest_step_that_breaks_a_segmentation():
    scene = scenes()["multilabel"]
    attack, found = run(adapter, "FastGradientMethod", "linf", {"minimal": True, "rise": 0.01}, scene)
    assert attack.route.view == "margin"
    with torch.no_grad():
        assert attack.reached(scene.model(found), scene.model(scene.batch.x), scene.batch).all()
    assert (distance(found, scene.batch.x, "linf") < 8 / 255).all()


def test_never_more_images_than_the_batch_size():
    """With more of them MomentumIterativeMethod crashes."""
    batch, _ = make_batch("binary", n=5)
    seen = []

    def model(x):
        seen.append(len(x))
        return make_linear("binary")(x)

    attack = adapter.load("MomentumIterativeMethod", {"batch_size": 2, "max_iter": 1}, bce, batch.task)
    assert attack.batched
    attack(model, batch, budget=Budget("linf", 0.1), generators=make_generators(5))
    assert max(seen) == 2


def test_auto_pgd_returns_its_best_iterate_where_it_did_not_succeed():
    """Left to itself it then returns its random start."""
    scene = scenes()["multilabel"]
    attack, found = run(adapter, "AutoProjectedGradientDescent", "linf", {"max_iter": 10, "rise": 50.0}, scene)
    with torch.no_grad():
        assert not attack.reached(scene.model(found), scene.model(scene.batch.x), scene.batch).any()
    _, climbed = run(adapter, "BasicIterativeMethod", "linf", {"max_iter": 10}, scene)
    gain, best = (scene.loss(x) - scene.loss(scene.batch.x) for x in (found, climbed))
    assert (gain > 0.8 * best).all()


@pytest.mark.parametrize("name", ["GeoDA", "BoundaryAttack", "HopSkipJump"])
def test_a_search_that_noise_cannot_start_returns_the_clean_image(name):
    """GeoDA would look for ever; the harness flags an image that was left alone."""
    _, batch, x_adv, _ = attack_linear(name, "binary", (6, 6), {"threshold": 5.0}, "l2")
    assert torch.equal(x_adv, batch.x)


def test_an_image_left_alone_keeps_its_bits():
    _, batch, x_adv, _ = attack_linear("PixelAttack", "binary", (6, 6), {"threshold": 5.0, "max_iter": 1}, "l2")
    assert torch.equal(x_adv, batch.x)


def test_geoda_writes_nothing_where_it_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(adapter, "GeoDA", "l2", CHEAP["GeoDA"] | {"rise": 0.01}, scenes()["multilabel"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("frequencies", "edge"), [(3, 8), (5, 4)])
def test_the_basis_of_geoda_is_its_own(frequencies, edge, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(np, "mat", np.asarray, raising=False)
    write_cosines(frequencies, edge)
    written = np.load(tmp_path / f"2d_dct_basis_{frequencies}_{edge}.npy")
    own = np.asarray(EVASION.GeoDA._generate_2d_dct_basis(frequencies, edge))
    np.testing.assert_allclose(written, own, atol=1e-7)


@pytest.fixture
def forked():
    """ART's own loaders draw from torch's global generator."""
    with torch.random.fork_rng():
        yield


def make_classifier(view="loss", n=1, **settings):
    scene = scenes()["multilabel"]
    batch = select_images(scene.batch, range(n))
    x, y = batch.x.numpy(), batch.y.numpy()
    return adapter.as_classifier(scene.model, x, y, task=batch.task, loss="dice", view=view, **settings), x, scene


@pytest.mark.usefixtures("forked")
def test_a_loss_classifier_serves_attacks_that_ask_for_one():
    classifier, x, scene = make_classifier(n=2)
    found = EVASION.ProjectedGradientDescentPyTorch(
        classifier, eps=8 / 255, eps_step=2 / 255, max_iter=5, verbose=False
    ).generate(x, classifier.labels)
    _, native = run(adapter, "ProjectedGradientDescent", "linf", {"max_iter": 5}, scene)
    assert np.abs(found - native.numpy()).mean() < 1e-4
    value = classifier.compute_loss(found, classifier.labels, reduction="none")
    np.testing.assert_allclose(value, 1 + scene.loss(torch.from_numpy(found)).numpy(), rtol=1e-5)


@pytest.mark.usefixtures("forked")
def test_a_margin_classifier_flips_at_its_threshold():
    classifier, x, scene = make_classifier("margin", rise=0.01)
    assert classifier.predict(x).argmax() == 0
    found = EVASION.DeepFool(classifier, epsilon=0.02, verbose=False).generate(x)
    assert classifier.predict(found).argmax() == 1
    one = select_images(scene.batch, [0])
    with torch.no_grad():
        value = dice(scene.model(torch.from_numpy(found)), one.y, one.valid, one.task)
    assert 1.01 < value / scene.loss(scene.batch.x)[0] < 1.02


@pytest.mark.usefixtures("forked")
def test_a_label_that_would_lower_the_loss_is_refused():
    """Without `y` ART takes the predicted class, which in a loss view is never the image's own."""
    classifier, x, _ = make_classifier()
    with pytest.raises(IncompatibleError, match=r"expected label 0 .* give y=classifier\.labels"):
        EVASION.FastGradientMethod(classifier, eps=0.1).generate(x)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"view": "both"}, "view: expected 'loss' or 'margin', got 'both'"),
        ({"rise": 0.1}, "rise: a loss view has no success criterion"),
        ({"view": "margin", "rise": 0.1, "threshold": 0.3}, "expected `threshold` or `rise`, got both"),
        ({"view": "margin", "rise": -1.0}, "rise: expected a positive share"),
        ({"view": "margin", "threshold": "high"}, "threshold: expected a number, such as 0.1, got 'high'"),
    ],
)
def test_wrong_arguments_of_a_classifier(settings, message):
    with pytest.raises(SpecError, match=message):
        make_classifier(**settings)


def test_images_and_masks_may_be_lists():
    scene = scenes()["multilabel"]
    x, y = scene.batch.x[:1].tolist(), scene.batch.y[:1].tolist()
    assert adapter.as_classifier(scene.model, x, y, task=scene.batch.task).input_shape == scene.batch.x.shape[1:]


@pytest.mark.usefixtures("forked")
def test_a_classifier_of_several_images_refuses_other_rows():
    classifier, x, _ = make_classifier(n=2)
    with pytest.raises(IncompatibleError, match="expected the 2 images it was made for, got 1 rows"):
        classifier.predict(x[:1])
    single, _, _ = make_classifier()
    assert single.predict(np.repeat(x[:1], 5, 0)).shape == (5, 2)


@pytest.mark.slow
def test_the_import_leaves_no_trace(tmp_path):
    code = """
import logging, os, sys
handler = logging.FileHandler(sys.argv[1])
logging.getLogger("mine").addHandler(handler)
before = dict(os.environ), list(logging.root.handlers), logging.root.level
import advseg_adapters.art.attacks, art
of_openmp = {k for k in os.environ if k.startswith("KMP_")}  # set by scikit-learn
assert {k: v for k, v in os.environ.items() if k not in of_openmp} == before[0], "environment"
assert (list(logging.root.handlers), logging.root.level) == before[1:], "root logger"
assert handler.stream is not None, "handlers of others"
assert "tests" not in logging.root.manager.loggerDict, "loggers of nobody"
from art import config
print(config.ART_DATA_PATH, art.config is config)
"""
    home = tmp_path / "home"
    home.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("KMP_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tmp_path / "log")],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=environment | {"HOME": str(home), "USERPROFILE": str(home)},
    )
    assert done.stdout == f"{home / '.art' / 'data'} True\n"
    assert done.stderr == ""
    assert list(home.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "log"]


def test_without_art_there_is_one_line_with_the_command(tmp_path):
    code = "import sys; sys.modules['art'] = None\nimport advseg_adapters.art.attacks"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert re.search(r'not installed\. Run: pip install "advseg-bench\[art\]"', last)
