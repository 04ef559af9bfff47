"""One batch attacked by the reference and by its equivalent in each toolkit, beside the bare limit."""

from __future__ import annotations

from functools import lru_cache

import pytest
from works import RESNET18, make_scene

from advseg_bench.batches import move_batch
from advseg_bench.registry.equivalents import find_equivalents
from advseg_bench.suite.specs import ModelSpec
from advseg_bench.throughput.contenders import Contender, Work, list_contenders

MODELS = {
    "unet-resnet18": RESNET18,
    "monai-unet": ModelSpec(
        name="monai-unet", architecture="monai.UNet", settings={"channels": [16, 32, 64], "strides": [2, 2]}
    ),
}
ATTACKS = {"fgsm": {}, "pgd": {"steps": 5, "random_start": False}}
TOOLKITS = ("torchattacks", "art", "foolbox")


@lru_cache
def contenders(attack: str, model: str, device: str) -> list[Contender]:
    """Return the limit, the reference and the classes of the toolkits, in this order."""
    module, data, images = make_scene(MODELS[model], 64, 4, device)
    others, _ = find_equivalents(TOOLKITS, attack, "linf", ATTACKS[attack])
    work = Work(reference=attack, settings=ATTACKS[attack], others=others)
    return list_contenders(work, module, move_batch(data.batch(list(images)), device), ["lean"], "float32")


@pytest.mark.parametrize("place", range(5), ids=["limit", "ours", *TOOLKITS])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_attack(benchmark, timed, device, attack, model, place):
    benchmark.group = f"{attack}, {model}, 4 images at 64 px"
    contender = contenders(attack, model, device)[place]
    timed(contender.call, images=4)
    benchmark.extra_info["implementation"] = contender.implementation
    benchmark.extra_info["gradients"] = contender.gradients
