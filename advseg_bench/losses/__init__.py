"""What does an attack increase? Attack and training losses: (logits, y, valid, task) -> one value per image.

An image's value never depends on its neighbours, so neither does its gradient; summing the values and calling
backward once gives every image its own gradient. Larger is worse for the model. Pixels that are not valid add
nothing to a value and get a gradient of exactly zero.

Some can also be called as arXiv 2401.11224's released code calls them, with mask and output swapped:
`loss(y.to(logits.dtype), logits, valid, task)` of a binary or multilabel task takes the mask for logits and the logits
for labels of any real value. `catalogue.LossEntry.swappable` tells which.
"""

from advseg_bench.losses.base import SMOOTH, Loss, one_hot, probabilities
from advseg_bench.losses.foreign import per_image
from advseg_bench.losses.pixel import bce, ce, focal, margin
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

__all__ = [
    "SMOOTH",
    "Loss",
    "bce",
    "ce",
    "dice",
    "dice_ce",
    "dice_focal",
    "focal",
    "focal_tversky",
    "generalized_dice",
    "jaccard",
    "lovasz",
    "margin",
    "one_hot",
    "per_image",
    "probabilities",
    "probe",
    "tversky",
]
