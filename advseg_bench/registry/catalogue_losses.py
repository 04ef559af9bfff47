"""The shipped losses as literals; `catalogue` exports them. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass

from advseg_bench.types import TaskKind

ALL_KINDS: tuple[TaskKind, ...] = ("binary", "multilabel", "multiclass")


@dataclass(frozen=True, slots=True)
class LossEntry:
    """A shipped loss.

    Attributes:
        target: `module:object` to import.
        summary: One line for `list`.
        kinds: Task types that it is defined for.
        swappable: Whether it is defined with mask and output swapped, as in the released code of arXiv 2401.11224, for
            binary and multilabel tasks.
        objective: Fixed objective by which step sizes and best iterates are chosen when an attack follows this loss:
            "entropy" for masked, weighted and scheduled losses; "" for the loss itself.
        masked: Whether only correct decisions contribute, or with weights of their own: for attacks without a target.
    """

    target: str
    summary: str
    kinds: tuple[TaskKind, ...]
    swappable: bool = False
    objective: str = ""
    masked: bool = False


COUNTED = "class_balanced_ce"
"""The loss whose class weights are counted on the training split."""

LOSSES: dict[str, LossEntry] = {
    "bce": LossEntry(
        "advseg_bench.losses:bce",
        "binary cross-entropy of each channel, mean over valid pixels and channels",
        ("binary", "multilabel"),
        swappable=True,
    ),
    "ce": LossEntry("advseg_bench.losses:ce", "softmax cross-entropy, mean over valid pixels", ("multiclass",)),
    "dice": LossEntry("advseg_bench.losses:dice", "1 - soft Dice, mean over channels", ALL_KINDS, swappable=True),
    "focal": LossEntry(
        "advseg_bench.losses:focal", "focal loss, gamma 2 (arXiv 1708.02002)", ALL_KINDS, swappable=True
    ),
    "dice_focal": LossEntry(
        "advseg_bench.losses:dice_focal", "Dice + focal, the study's training loss", ALL_KINDS, swappable=True
    ),
    "dice_ce": LossEntry("advseg_bench.losses:dice_ce", "Dice + cross-entropy", ALL_KINDS, swappable=True),
    "tversky": LossEntry(
        "advseg_bench.losses:tversky",
        "1 - Tversky index, weights 0.3 FP and 0.7 FN, mean over channels (arXiv 1706.05721)",
        ALL_KINDS,
        swappable=True,
    ),
    "focal_tversky": LossEntry(
        "advseg_bench.losses:focal_tversky",
        "(1 - Tversky index)^(3/4), mean over channels (arXiv 1810.07842)",
        ALL_KINDS,
    ),
    "generalized_dice": LossEntry(
        "advseg_bench.losses:generalized_dice",
        "1 - Dice of channels weighted by 1 / area^2 (arXiv 1707.03237)",
        ALL_KINDS,
    ),
    "jaccard": LossEntry(
        "advseg_bench.losses:jaccard", "1 - soft Jaccard index, mean over channels", ALL_KINDS, swappable=True
    ),
    "lovasz": LossEntry(
        "advseg_bench.losses:lovasz",
        "Lovasz hinge per channel, or Lovasz softmax (arXiv 1705.08790)",
        ALL_KINDS,
    ),
    "margin": LossEntry(
        "advseg_bench.losses:margin",
        "margin of the wrong decision in logits, mean over valid pixels, unbounded",
        ALL_KINDS,
    ),
    "masked_ce": LossEntry(
        "advseg_bench.losses:masked_ce",
        "cross-entropy of the decisions that are correct (arXiv 2306.12941)",
        ALL_KINDS,
        objective="entropy",
        masked=True,
    ),
    "balanced_ce": LossEntry(
        "advseg_bench.losses:balanced_ce",
        "masked cross-entropy, each class of the image with equal weight",
        ALL_KINDS,
        objective="entropy",
        masked=True,
    ),
    "class_balanced_ce": LossEntry(
        "advseg_bench.losses:class_balanced_ce",
        "masked cross-entropy, weights 1 / pixels of the class in training (arXiv 2306.12941)",
        ALL_KINDS,
        objective="entropy",
        masked=True,
    ),
    "masked_spherical": LossEntry(
        "advseg_bench.losses:masked_spherical",
        "cosine of logits and label where correct (arXiv 2306.12941, first version)",
        ALL_KINDS,
        objective="entropy",
        masked=True,
    ),
    "js": LossEntry(
        "advseg_bench.losses:js",
        "Jensen-Shannon divergence of prediction and label (arXiv 2306.12941)",
        ALL_KINDS,
    ),
    "cosine": LossEntry(
        "advseg_bench.losses:cosine",
        "cross-entropy weighted by the cosine of probabilities and label (arXiv 2302.02213)",
        ALL_KINDS,
        objective="entropy",
    ),
    "cosine_sigmoid": LossEntry(
        "advseg_bench.losses:cosine_sigmoid",
        "cosine-weighted cross-entropy with sigmoids of the logits, CosPGD's earlier form",
        ("multiclass",),
        objective="entropy",
    ),
    "segpgd": LossEntry(
        "advseg_bench.losses:segpgd",
        "cross-entropy of correct and wrong decisions, weights by step (arXiv 2207.12391)",
        ALL_KINDS,
        objective="entropy",
        masked=True,
    ),
    "tsallis": LossEntry(
        "advseg_bench.losses:tsallis",
        "Tsallis cross-entropy, q from -2 to 1 over the steps (arXiv 2605.03405)",
        ALL_KINDS,
        objective="entropy",
    ),
    "dlr": LossEntry(
        "advseg_bench.losses:dlr",
        "difference-of-logits ratio; margin below three classes (arXiv 2003.01690)",
        ALL_KINDS,
    ),
    "present_dice": LossEntry(
        "advseg_bench.losses:present_dice",
        "1 - soft Dice, mean over the foreground classes in the image",
        ALL_KINDS,
    ),
}
