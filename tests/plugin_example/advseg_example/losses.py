"""A loss: larger is worse for the model, one value per image, pixels that are not valid count nothing."""

import torch

from advseg_bench.losses import one_hot


def hinge(logits, y, valid, task):
    """Average max(0, 1 - margin) over valid pixels and channels; each channel is a decision of its own."""
    margin = logits * (2 * one_hot(y, task, logits) - 1)
    missed = torch.where(valid, (1 - margin).relu().mean(1), 0).flatten(1).sum(1)
    return missed / valid.flatten(1).sum(1).clamp(min=1)
