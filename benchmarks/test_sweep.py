"""One FGSM sweep with scoring: with the shared work of the harness, as a loop over each toolkit, and its limit."""

from __future__ import annotations

import pytest
from works import RESNET18, make_scene, sweep_works

LOSSES = ("bce", "dice_focal")
EPS = tuple(grey / 255 for grey in (1, 2, 3, 4, 6, 8, 12, 16))


@pytest.fixture(scope="module")
def works(device):
    return sweep_works(*make_scene(RESNET18, 64, 8, device), LOSSES, EPS, device)


@pytest.mark.benchmark(group="fgsm sweep, 2 losses x 8 eps, 8 images at 64 px")
@pytest.mark.parametrize("who", ["limit", "ours", "torchattacks", "art", "foolbox"])
def test_sweep(timed, works, who):
    timed(works[who], images=8 * len(LOSSES) * len(EPS))
