"""All shipped names as literals, for `list` and the validation of suites. Does not import torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from advseg_bench.registry.ascents import ascent_traits, square_traits, transfer_traits
from advseg_bench.registry.catalogue_losses import ALL_KINDS as ALL_KINDS
from advseg_bench.registry.catalogue_losses import COUNTED as COUNTED
from advseg_bench.registry.catalogue_losses import LOSSES as LOSSES
from advseg_bench.registry.catalogue_losses import LossEntry as LossEntry
from advseg_bench.registry.fitting import Images, released_ratio, why_released_not
from advseg_bench.types import Norm, Traits


@dataclass(frozen=True, slots=True)
class AttackEntry:
    """A shipped attack.

    Attributes:
        target: `module:object` to import.
        summary: One line for `list`.
        traits: Capabilities and cost with default settings.
        needs_loss: Whether a suite must give it losses; most noise baselines need none.
        shared: Whether it is a `OneGradientAttack`, whose budgets and losses share forward and backward passes.
        defaults: Default settings; a setting that equals its default is treated as not given.
        step_settings: Settings that do not affect the gradient of a one-gradient attack.
        variants: Maps settings that the class of `target` does not take to the `module:object` that takes them.
        with_settings: Function from settings to traits, if the traits depend on settings.
        why_not: Function (settings, loss, norm, images) -> reason why the combination is undefined, or None; in
            addition to the checks of traits and of the loss's task types.
    """

    target: str
    summary: str
    traits: Traits
    needs_loss: bool = True
    shared: bool = False
    defaults: Mapping[str, object] = field(default_factory=dict)
    step_settings: tuple[str, ...] = ()
    variants: Mapping[str, str] = field(default_factory=dict)
    with_settings: Callable[[Mapping[str, object]], Traits] | None = None
    why_not: Callable[[Mapping[str, object], str, Norm, Images], str | None] | None = None

    def traits_of(self, settings: Mapping[str, object]) -> Traits:
        """Return the traits for given settings."""
        return self.with_settings(settings) if self.with_settings else self.traits

    def find_target(self, settings: Iterable[str]) -> str:
        """Return the `module:object` whose class takes settings with these names."""
        return next((self.variants[name] for name in settings if name in self.variants), self.target)


_ONE_STEP = Traits(random=False, forwards=1, backwards=1)
_NOISE = Traits(control=True, gradient=False, random=True, forwards=0, backwards=0)
_RELEASED = "advseg_bench.attacks.released:ReleasedFGSM"

ATTACKS: dict[str, AttackEntry] = {
    "fgsm": AttackEntry(
        "advseg_bench.attacks.gradient:FGSM",
        "one signed gradient step to the full budget (arXiv 1412.6572)",
        _ONE_STEP,
        shared=True,
        defaults={
            "label": "true",
            "targeted": False,
            "order": "defined",
            "form": "additive",
            "channels": "independent",
        },
        step_settings=("form", "channels"),
        variants={"order": _RELEASED, "form": _RELEASED, "channels": _RELEASED},
        with_settings=lambda settings: replace(_ONE_STEP, max_budget_ratio=released_ratio(settings)),
        why_not=lambda settings, loss, norm, images: why_released_not(
            settings, loss, loss in LOSSES and LOSSES[loss].swappable, norm, images
        ),
    ),
    "bim": AttackEntry(
        "advseg_bench.attacks.bim:BIM",
        "signed gradient steps of eps / steps (arXiv 1607.02533)",
        ascent_traits({}),
        with_settings=ascent_traits,
    ),
    "pgd": AttackEntry(
        "advseg_bench.attacks.pgd:PGD",
        "signed gradient steps of 2.5 eps / steps from a random start (arXiv 1706.06083)",
        ascent_traits({"random_start": True}),
        with_settings=lambda settings: ascent_traits({"random_start": True, **settings}),
    ),
    "mifgsm": AttackEntry(
        "advseg_bench.attacks.mifgsm:MIFGSM",
        "signed steps along an accumulated gradient (arXiv 1710.06081)",
        ascent_traits({}),
        with_settings=ascent_traits,
    ),
    "nifgsm": AttackEntry(
        "advseg_bench.attacks.nifgsm:NIFGSM",
        "MI-FGSM with gradients one momentum step ahead (arXiv 1908.06281)",
        ascent_traits({}),
        with_settings=ascent_traits,
    ),
    "segpgd": AttackEntry(
        "advseg_bench.attacks.segpgd:SegPGD",
        "PGD on cross-entropy that turns from correct pixels to all (arXiv 2207.12391)",
        ascent_traits({"random_start": True}),
        needs_loss=False,
        with_settings=lambda settings: ascent_traits({"random_start": True, **settings}),
    ),
    "cospgd": AttackEntry(
        "advseg_bench.attacks.cospgd:CosPGD",
        "PGD on cross-entropy weighted by the cosine of prediction and label (arXiv 2302.02213)",
        ascent_traits({"random_start": True}),
        needs_loss=False,
        with_settings=lambda settings: ascent_traits({"random_start": True, **settings}),
    ),
    "tsallis_pgd": AttackEntry(
        "advseg_bench.attacks.tsallis:TsallisPGD",
        "PGD on Tsallis cross-entropy, q from -2 to 1 (arXiv 2605.03405)",
        ascent_traits({"random_start": True}),
        needs_loss=False,
        with_settings=lambda settings: ascent_traits({"random_start": True, **settings}),
    ),
    "apgd": AttackEntry(
        "advseg_bench.attacks.apgd:APGD",
        "steps that are halved where an image makes no progress (arXiv 2003.01690)",
        ascent_traits({"steps": 20, "keep": "best"}, evaluates=True),
        with_settings=lambda settings: ascent_traits({"steps": 20, "keep": "best", **settings}, evaluates=True),
    ),
    "padam": AttackEntry(
        "advseg_bench.attacks.padam:PAdam",
        "projected AMSGrad ascent (arXiv 2407.09150)",
        ascent_traits({"steps": 40}),
        with_settings=lambda settings: ascent_traits({"steps": 40, **settings}),
    ),
    "square": AttackEntry(
        "advseg_bench.attacks.square:Square",
        "gradient-free: random boxes of +eps or -eps, kept if margins fall (arXiv 1912.00049)",
        square_traits({}),
        needs_loss=False,
        with_settings=square_traits,
    ),
    "random_sign": AttackEntry(
        "advseg_bench.attacks.noise:RandomSign",
        "noise baseline: +eps or -eps at each value, at random",
        _NOISE,
        needs_loss=False,
    ),
    "shuffled_sign": AttackEntry(
        "advseg_bench.attacks.noise:ShuffledSign",
        "noise baseline: FGSM's signs at randomly permuted pixels",
        replace(_ONE_STEP, control=True, random=True),
        shared=True,
    ),
    "uniform_noise": AttackEntry(
        "advseg_bench.attacks.noise:UniformNoise",
        "noise baseline: uniform noise in [-eps, eps]",
        _NOISE,
        needs_loss=False,
    ),
    "transfer": AttackEntry(
        "advseg_bench.attacks.transfer:Transfer",
        "adversarial images of another model of the suite",
        transfer_traits({}),
        with_settings=transfer_traits,
    ),
}


def drop_defaults(attack: str, settings: Mapping[str, object]) -> dict[str, object]:
    """Return the settings of an attack without those that equal the default of a shipped attack."""
    defaults = ATTACKS[attack].defaults if attack in ATTACKS else {}
    return {name: value for name, value in settings.items() if name not in defaults or defaults[name] != value}


OBJECTIVES: dict[str, str] = {
    "entropy": "advseg_bench.losses:entropy",
    "hard_dice": "advseg_bench.losses:hard_dice",
}
"""Objectives that judge iterates beside the losses -> `module:object`."""

DATASETS: dict[str, str] = {
    "mni152": "155 axial slices of the MNI152 T1 average head (grey matter, white matter, CSF), shipped in the package",
    "phantom": "procedural abdominal MRI phantom: large bowel, small bowel, stomach; subjects and days",
    "folder": "images and masks on disk: PNG, TIFF, JPEG, BMP, GIF, WebP, NIfTI",
    "nnunet": "a raw data set of nnU-Net v2: slices of NIfTI volumes, whole volumes, or PNG and TIFF images",
    "decathlon": "a task of the Medical Segmentation Decathlon: slices or whole volumes",
    "lgg": "low-grade glioma MRI (kaggle_3m): pre-contrast, FLAIR, post-contrast",
    "uw_madison": "UW-Madison GI Tract as downloaded: large bowel, small bowel, stomach; make-data writes a phantom",
}

DATASET_TITLES: dict[str, str] = {
    "folder": "this folder of images",
    "nnunet": "this nnU-Net data set",
    "decathlon": "this task of the Decathlon",
    "lgg": "the LGG data set",
    "uw_madison": "UW-Madison GI Tract",
}
"""What a sentence calls a data set whose name is that of its format."""

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

TORCHSCRIPT = "torchscript"
"""The architecture of a model that is a TorchScript file."""

DEFINED_ARCHITECTURES: dict[str, str] = {
    "monai.bundle": "the network that a MONAI bundle defines; `weights` is its folder",
    TORCHSCRIPT: "a TorchScript file as `weights`, with `trust = true`",
    "smp.from_pretrained": "the network of a folder of `save_pretrained`; `weights` is the folder",
}
"""Architectures that a file beside the weights defines -> what they are."""

IMAGES: dict[str, tuple[int, int]] = {"mni152": (91, 36)}
"""Number of training and test images of data sets of fixed size."""
