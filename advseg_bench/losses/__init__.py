"""What does an attack increase? Attack and training losses: (logits, y, valid, task) -> one value per image.

The value of an image never depends on the other images of the batch, and neither does its gradient: the sum of all
values needs one backward pass and gives every image its own gradient. Larger is worse for the model. Invalid pixels do
not contribute to a value, and their gradient is exactly zero.

Some losses also accept swapped arguments, as in the released code of arXiv 2401.11224: with
`loss(y.to(logits.dtype), logits, valid, task)` a binary or multilabel loss uses the mask as logits and the logits as
real-valued labels. `catalogue.LossEntry.swappable` lists them.
"""

from advseg_bench.losses.base import SMOOTH, Loss, one_hot, probabilities
from advseg_bench.losses.confidence import cosine, cosine_sigmoid, dlr, js
from advseg_bench.losses.counted import ClassBalancedCE, class_balanced_ce, count_classes
from advseg_bench.losses.foreign import per_image
from advseg_bench.losses.judges import entropy, hard_dice
from advseg_bench.losses.masked import balanced_ce, masked_ce, masked_spherical
from advseg_bench.losses.pixel import bce, ce, focal, margin
from advseg_bench.losses.present import present_dice
from advseg_bench.losses.probing import probe
from advseg_bench.losses.region import (
    dice,
    dice_ce,
    dice_focal,
    focal_tversky,
    generalized_dice,
    jaccard,
    lovasz,
    tversky,
)
from advseg_bench.losses.scheduled import (
    ScheduledLoss,
    SegPGDSchedule,
    TsallisCE,
    TsallisSchedule,
    TwoPartCE,
    loss_at,
    segpgd,
    tsallis,
)

__all__ = [
    "SMOOTH",
    "ClassBalancedCE",
    "Loss",
    "ScheduledLoss",
    "SegPGDSchedule",
    "TsallisCE",
    "TsallisSchedule",
    "TwoPartCE",
    "balanced_ce",
    "bce",
    "ce",
    "class_balanced_ce",
    "cosine",
    "cosine_sigmoid",
    "count_classes",
    "dice",
    "dice_ce",
    "dice_focal",
    "dlr",
    "entropy",
    "focal",
    "focal_tversky",
    "generalized_dice",
    "hard_dice",
    "jaccard",
    "js",
    "loss_at",
    "lovasz",
    "margin",
    "masked_ce",
    "masked_spherical",
    "one_hot",
    "per_image",
    "present_dice",
    "probabilities",
    "probe",
    "segpgd",
    "tsallis",
    "tversky",
]
