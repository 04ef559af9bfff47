"""Checkpoints of the study: state dicts that segmentation-models-pytorch 0.3.0 wrote load, and mean the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pip_installs import pip_install

from advseg_bench.data import load_dataset
from advseg_bench.data.dataset import Dataset
from advseg_bench.errors import SpecError
from advseg_bench.models.build import build_model
from advseg_bench.models.training import build_given
from advseg_bench.models.weights import count_parameters, load_weights
from advseg_bench.suite.specs import ModelSpec, PhantomData
from advseg_bench.types import Task

RELEASE = (
    "segmentation-models-pytorch==0.3.0",
    "timm==0.4.12",
    "efficientnet-pytorch==0.7.1",
    "pretrainedmodels==0.7.4",
    "munch==4.0.0",
    "six==1.16.0",
)
MODELS = {  # of arXiv 2401.11224: released file -> architecture, encoder, parameters
    "unet_vgg13_12.15epochs_lr3e4.pt": ("Unet", "vgg13", 18_438_835),
    "unet_resnext101_focaldice_12.15epochs_lr3e4.pt": ("Unet", "resnext101_32x8d", 95_755_699),
    "unet_effb7_NEW11.15.pt": ("Unet", "efficientnet-b7", 67_095_619),
    "unet2p_effb7_focaldice_13.15epochs_lr3e4.pt": ("UnetPlusPlus", "efficientnet-b7", 68_163_843),
}
ORGANS = Task("multilabel", ("large bowel", "small bowel", "stomach"))


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the old release and what it needs beside PyTorch."""
    folder = tmp_path_factory.mktemp("old_release")
    pip_install(folder, *RELEASE)
    return folder


def write(release: Path, folder: Path, name: str) -> tuple[Path, dict[str, torch.Tensor]]:
    """Have the old release write a checkpoint; return it with an image and the old logits."""
    architecture, encoder, _ = MODELS[name]
    checkpoint, answer = folder / name, folder / "answer.pt"
    script = Path(__file__).parent / "old_release.py"
    environment = os.environ | {"PYTHONPATH": str(release), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", str(script), architecture, encoder, str(checkpoint), str(answer)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return checkpoint, torch.load(answer, weights_only=True)


def dataset(channels: int = 3) -> Dataset:
    """Images of the study's three organs, with as many channels as the study's."""
    spec = PhantomData(name="phantom", task="multilabel", size=64, channels=channels, subjects=6, slices=1)
    return load_dataset(spec)


@pytest.mark.network
@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_of_the_old_release_gives_the_old_logits(release: Path, tmp_path: Path, name: str) -> None:
    checkpoint, old = write(release, tmp_path, name)
    architecture, encoder, parameters = MODELS[name]
    spec = ModelSpec(name="old", architecture=f"smp.{architecture}", encoder=encoder, weights=checkpoint)
    try:
        model = build_given(spec, dataset(), seed=1).eval()
    finally:
        checkpoint.unlink()  # hundreds of megabytes
    assert count_parameters(model) == parameters
    with torch.no_grad():
        single = model(old["image"])
        double = model.double()(old["image"].double())
    assert 0.1 < old["double"].std() < 10
    torch.testing.assert_close(double, old["double"], rtol=0, atol=1e-9)
    # In float32 the releases may differ by rounding, which these deep networks of random weights magnify.
    rounding = (old["single"] - old["double"]).abs().max()
    assert (single - old["single"]).abs().max() < 1e-5 + 2 * rounding


def save(folder: Path, architecture: str, task: Task = ORGANS, channels: int = 3) -> Path:
    """A file of the study's kind from a network with a small encoder."""
    encoder = "mobilenet_v2" if architecture.startswith("smp.") else None
    spec = ModelSpec(name="small", architecture=architecture, encoder=encoder)
    torch.save(
        build_model(spec, channels=channels, task=task, size=32).net.state_dict(), folder / "unet_12.15epochs.pt"
    )
    return folder / "unet_12.15epochs.pt"


MISTAKES = {
    "architecture": (
        ("smp.UnetPlusPlus", ORGANS, 3),
        r"expected the 374 tensors of this Unet, got those of another network: \d+ missing \(first 'decoder\..*\), \d+ "
        r"unexpected \(first 'decoder\..*\)\. Only the decoder differs: use the `architecture` and `settings`",
    ),
    "architecture and classes": (
        ("smp.UnetPlusPlus", Task("binary", ("organ",)), 3),
        r"2 of another shape .*\. Use the architecture, encoder, channels and classes",
    ),
    "classes": (
        ("smp.Unet", Task("binary", ("organ",)), 3),
        r"2 of another shape \(first 'segmentation_head.0.weight': .*\)\. Classes: 1 in the file, 3 here",
    ),
    "channels": (
        ("smp.Unet", ORGANS, 1),
        r"1 of another shape .*\. Channels of an image: 1 in the file, 3 here.*`channels` in \[data\] to 1\.$",
    ),
    "both": (
        ("smp.Unet", Task("binary", ("organ",)), 1),
        r"3 of another shape .*\. Channels of an image: 1 in the file, 3 .* to 1\. Classes: 1 in the file, 3 here",
    ),
    "network": (
        ("monai.UNet", ORGANS, 3),
        r"of this Unet, got those of another network: .*\. Use the architecture, encoder, channels and classes",
    ),
}


@pytest.mark.parametrize(("saved", "match"), MISTAKES.values(), ids=MISTAKES)
def test_a_checkpoint_of_another_network_is_one_line_that_says_what_to_change(
    tmp_path: Path, saved: tuple[str, Task, int], match: str
) -> None:
    spec = ModelSpec(name="small", architecture="smp.Unet", encoder="mobilenet_v2")
    model = build_model(spec, channels=3, task=ORGANS, size=32)
    with pytest.raises(SpecError, match=match) as caught:
        load_weights(save(tmp_path, *saved), model)
    assert str(caught.value).startswith(str(tmp_path / "unet_12.15epochs.pt"))
    assert "\n" not in str(caught.value)
