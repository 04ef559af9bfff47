"""Every name the project ships, as literals: what `list` prints and what a suite is checked against, torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from advseg_bench.types import TaskKind

ALL_KINDS: tuple[TaskKind, ...] = ("binary", "multilabel", "multiclass")


@dataclass(frozen=True, slots=True)
class AttackEntry:
    """A shipped attack.

    Attributes:
        target: `module:object` to import.
        summary: One line for `list`.
        needs_loss: Whether a suite must give it losses; a control needs none.
        random: Whether it draws random numbers, so that `draws` makes sense.
        forwards: Model evaluations per image and step, stand-alone, without those that score the result.
        backwards: Gradient evaluations per image and step, stand-alone.
        steps: Steps unless the setting of that name says otherwise.
        shared: Whether it is a `OneGradientAttack`, whose budgets and losses share their passes.
    """

    target: str
    summary: str
    needs_loss: bool
    random: bool
    forwards: int
    backwards: int
    steps: int = 1
    shared: bool = False


@dataclass(frozen=True, slots=True)
class LossEntry:
    """A shipped loss, what it is, and the kinds of task it is defined for."""

    target: str
    summary: str
    kinds: tuple[TaskKind, ...]


ATTACKS: dict[str, AttackEntry] = {
    "fgsm": AttackEntry(
        "advseg_bench.attacks.gradient:FGSM",
        "one signed gradient step to the full budget (arXiv 1412.6572)",
        needs_loss=True,
        random=False,
        forwards=1,
        backwards=1,
        shared=True,
    ),
    "bim": AttackEntry(
        "advseg_bench.attacks.ascent:BIM",
        "signed gradient steps of eps / steps (arXiv 1607.02533)",
        needs_loss=True,
        random=False,
        forwards=1,
        backwards=1,
        steps=10,
    ),
    "pgd": AttackEntry(
        "advseg_bench.attacks.ascent:PGD",
        "signed gradient steps of eps / 4 from a random start (arXiv 1706.06083)",
        needs_loss=True,
        random=True,
        forwards=1,
        backwards=1,
        steps=10,
    ),
    "mifgsm": AttackEntry(
        "advseg_bench.attacks.ascent:MIFGSM",
        "signed steps along an accumulated gradient (arXiv 1710.06081)",
        needs_loss=True,
        random=False,
        forwards=1,
        backwards=1,
        steps=10,
    ),
    "random_sign": AttackEntry(
        "advseg_bench.attacks.noise:RandomSign",
        "control: +eps or -eps at each value, by coin toss",
        needs_loss=False,
        random=True,
        forwards=0,
        backwards=0,
    ),
    "uniform_noise": AttackEntry(
        "advseg_bench.attacks.noise:UniformNoise",
        "control: uniform noise in [-eps, eps]",
        needs_loss=False,
        random=True,
        forwards=0,
        backwards=0,
    ),
}


def attack_cost(name: str, settings: Mapping[str, object]) -> tuple[int, int] | None:
    """Return forwards and backwards per image of an attack on its own; None if the attack is not a shipped one."""
    entry = ATTACKS.get(name)
    if entry is None:
        return None
    given = settings.get("steps")
    steps = given if isinstance(given, int) else entry.steps
    return entry.forwards * steps, entry.backwards * steps


LOSSES: dict[str, LossEntry] = {
    "bce": LossEntry(
        "advseg_bench.losses:bce",
        "binary cross-entropy of each channel, mean over valid pixels and channels",
        ("binary", "multilabel"),
    ),
    "ce": LossEntry("advseg_bench.losses:ce", "softmax cross-entropy, mean over valid pixels", ("multiclass",)),
    "dice": LossEntry("advseg_bench.losses:dice", "1 - soft Dice, mean over channels", ALL_KINDS),
    "focal": LossEntry("advseg_bench.losses:focal", "focal loss, gamma 2 (arXiv 1708.02002)", ALL_KINDS),
    "dice_focal": LossEntry("advseg_bench.losses:dice_focal", "Dice + focal, the study's training loss", ALL_KINDS),
}

DATASETS: dict[str, str] = {
    "mni152": "155 axial slices of the MNI152 T1 average head (grey matter, white matter, CSF), in the package",
    "phantom": "procedural abdominal MRI phantom: large bowel, small bowel, stomach; subjects and days",
    "folder": "images and masks on disk: PNG, TIFF, NIfTI",
    "nnunet": "a raw data set of nnU-Net v2: slices of NIfTI volumes, or PNG and TIFF",
    "decathlon": "a task of the Medical Segmentation Decathlon: slices of its volumes",
    "lgg": "low-grade glioma MRI (kaggle_3m): pre-contrast, FLAIR, post-contrast",
    "uw_madison": "UW-Madison GI Tract as downloaded: large bowel, small bowel, stomach; make-data writes a small one",
}

SMP_ARCHITECTURES: tuple[str, ...] = (
    "Unet",
    "UnetPlusPlus",
    "MAnet",
    "Linknet",
    "FPN",
    "PSPNet",
    "DeepLabV3",
    "DeepLabV3Plus",
    "PAN",
    "UPerNet",
    "Segformer",
    "DPT",
)
MONAI_ARCHITECTURES: tuple[str, ...] = (
    "BasicUNet",
    "UNet",
    "AttentionUnet",
    "SegResNet",
    "FlexibleUNet",
    "BasicUNetPlusPlus",
    "UNETR",
    "SwinUNETR",
    "DynUNet",
)
ARCHITECTURES: tuple[str, ...] = (
    *(f"smp.{name}" for name in SMP_ARCHITECTURES),
    *(f"monai.{name}" for name in MONAI_ARCHITECTURES),
)

TEST_IMAGES: dict[str, int] = {"mni152": 36}
"""Test images of the data sets where the number is fixed."""
