"""Every form of a network, through every front door, gives the adversarial images of the plain network."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from any_networks import IMPOSSIBLE, OUTPUTS, WRAPPERS, make, refer
from torch import Tensor

import advseg_bench as ab
from advseg_bench.attacks.gradient import FGSM
from advseg_bench.models.build import build_model
from advseg_bench.models.prepare import prepare_checked
from advseg_bench.registry.loading import load_attack
from advseg_bench.suite.specs import ModelSpec

EPS = 8 / 255
TASK = ab.Task("multilabel", ("a", "b"))
X = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(1)) * 0.5 + 0.3
Y = torch.rand(2, 2, 16, 16, generator=torch.Generator().manual_seed(2)) > 0.6


def make_batch() -> ab.Batch:
    return ab.Batch.of(X.clone(), Y.clone(), task=TASK)


def attack_in_suite(output: str, wrapper: str) -> Tensor:
    settings = {"output": output, "wrapper": wrapper}
    spec = ModelSpec(name="net", architecture="any_networks:make", settings=settings)
    model = build_model(spec, channels=1, task=TASK, size=16).eval().requires_grad_(False)
    choice = prepare_checked(model, X, ("lean",))
    assert torch.equal(choice.model(X), model(X))
    return FGSM(loss="bce").perturb(choice.model, make_batch(), budget=ab.Budget("linf", EPS), generators=())


def evaluate(output: str, wrapper: str) -> Tensor:
    found = []

    def attack(model: Any, batch: ab.Batch, *, budget: ab.Budget, generators: Sequence[torch.Generator]) -> Tensor:
        found.append(FGSM(loss="bce").perturb(model, batch, budget=budget, generators=generators))
        return found[-1]

    run = ab.evaluate(make(output, wrapper), [make_batch()], {"mine": attack}, eps=EPS, batch=2)
    assert not run.failures
    return found[-1]


def attack_once(output: str, wrapper: str) -> Tensor:
    return FGSM(loss="bce")(make(output, wrapper), make_batch(), eps=EPS)


def attack_by_toolkit(name: str) -> Callable[[str, str], Tensor]:
    def attack(output: str, wrapper: str) -> Tensor:
        found: Tensor = load_attack(name, {}, "bce", TASK)(make(output, wrapper), make_batch(), eps=EPS)
        return found

    return attack


def differentiate_by_art(output: str, wrapper: str) -> Tensor:
    from advseg_adapters.art import as_estimator

    estimator = as_estimator(make(output, wrapper), task=TASK, loss="bce", input_shape=(1, 16, 16))
    gradient = estimator.loss_gradient(X.numpy(), Y.numpy())
    return (X + EPS * torch.from_numpy(np.sign(gradient))).clamp(0, 1)


def transform(output: str, wrapper: str) -> Tensor:
    from advseg_adapters.monai import AdversarialAttackd

    options = {"task": "multilabel", "num_classes": 2, "loss": "bce"}
    attack = AdversarialAttackd("image", "label", make(output, wrapper), EPS, **options)
    return torch.stack([attack({"image": x, "label": y})["image"] for x, y in zip(X, Y.float(), strict=True)])


def attack_network_of_monai(output: str, wrapper: str) -> Tensor:
    from advseg_adapters.monai import as_network

    return FGSM(loss="bce")(as_network(make(output, wrapper)), make_batch(), eps=EPS)


DOORS: dict[str, Callable[[str, str], Tensor]] = {
    "suite": attack_in_suite,
    "evaluate": evaluate,
    "call": attack_once,
    "estimator": differentiate_by_art,
    "art": attack_by_toolkit("art.FastGradientMethod"),
    "torchattacks": attack_by_toolkit("torchattacks.FGSM"),
    "foolbox": attack_by_toolkit("foolbox.LinfFastGradientAttack"),
    "transform": transform,
    "network": attack_network_of_monai,
}
FORMS = [form for form in product(OUTPUTS, WRAPPERS) if form not in IMPOSSIBLE]
MATRIX = [(*form, door) for form, door in product(FORMS, DOORS)]
SLICE = MATRIX[::23]
"""A part of the matrix in which every output, wrapper and door occurs."""


def check(output: str, wrapper: str, door: str) -> None:
    before = X.clone()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "model.*(reads output|enlarges logits)", UserWarning)
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf", UserWarning)  # dynamo's
        found = DOORS[door](output, wrapper)
    assert torch.equal(X, before)
    plain = partial(refer, output)
    wanted = FGSM(loss="bce").perturb(plain, make_batch(), budget=ab.Budget("linf", EPS), generators=())
    assert (wanted != X).float().mean() > 0.9
    close = ((found - wanted).abs() < 1e-6).float().mean()
    assert close > 0.99, f"{close:.1%} of the pixels are those of the plain network"


def test_the_slice_has_every_output_wrapper_and_door() -> None:
    for part, known in enumerate((OUTPUTS, WRAPPERS, DOORS)):
        assert {row[part] for row in SLICE} == set(known)


@pytest.mark.parametrize(("output", "wrapper", "door"), SLICE)
def test_forms_of_a_network_give_the_images_of_the_plain_one(output: str, wrapper: str, door: str) -> None:
    check(output, wrapper, door)


@pytest.mark.slow
@pytest.mark.parametrize(("output", "wrapper", "door"), sorted(set(MATRIX) - set(SLICE)))
def test_all_forms_of_a_network_give_the_images_of_the_plain_one(output: str, wrapper: str, door: str) -> None:
    check(output, wrapper, door)
