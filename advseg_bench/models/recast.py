"""One trained network used for another task type, so that one training serves for checks of all three."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from advseg_bench.batches import Batch
from advseg_bench.losses import one_hot
from advseg_bench.types import Task, TaskKind


class RecastModel(nn.Module):
    """The logits of a network for one task type, converted to logits for another.

    From sigmoid channels to multiclass, a background channel of logit 0 is added, so that the softmax odds of a class
    against the background equal its sigmoid odds. From multiclass to sigmoid channels, each class but the first gets
    its log-odds against all others, so that its sigmoid equals its softmax probability. A binary task has the first
    channel only.

    Args:
        model: Images -> logits.
        source: The task of the network.
        task_type: The task type of the new logits.
    """

    def __init__(self, model: nn.Module, source: Task, task_type: TaskKind) -> None:
        super().__init__()
        self.model, self.source, self.kind = model, source, task_type

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits for the new task type.

        Args:
            x: Images, shape (N, C, *S).

        Returns:
            Logits, shape (N, K, *S).

        Cost:
            One forward.
        """
        logits: Tensor = self.model(x)
        if self.source.kind == "multiclass" and self.kind != "multiclass":
            odds = [logits[:, k] - _others(logits, k) for k in range(1, logits.shape[1])]
            logits = torch.stack(odds, 1)
        elif self.source.kind != "multiclass" and self.kind == "multiclass":
            logits = torch.cat([torch.zeros_like(logits[:, :1]), logits], 1)
        return logits[:, :1] if self.kind == "binary" else logits


def recast_batch(batch: Batch, task_type: TaskKind) -> Batch:
    """Return a batch with labels converted to another task type.

    Where classes overlap, the label of a multiclass task is the first of them. A binary task has the first class that
    is not background.

    Args:
        batch: Images and labels of any task.
        task_type: The new task type.

    Returns:
        The same images with new labels; `batch` itself if it has this task type.
    """
    source = batch.task
    foreground = source.classes[1:] if source.kind == "multiclass" else source.classes
    if task_type == source.kind:
        return batch
    if task_type == "multiclass":
        label = batch.y.to(torch.int64)
        y = torch.where(label.any(1), label.argmax(1) + 1, 0)
        return replace(batch, y=y, task=Task("multiclass", ("background", *foreground)))
    y = batch.y
    if source.kind == "multiclass":
        y = one_hot(y, source, torch.empty(0, dtype=torch.bool, device=y.device))[:, 1:]
    if task_type == "binary":
        y, foreground = y[:, :1], foreground[:1]
    return replace(batch, y=y, task=Task(task_type, foreground))


def _others(logits: Tensor, k: int) -> Tensor:
    """Log of the sum of the exponentials of all channels except one."""
    return torch.cat([logits[:, :k], logits[:, k + 1 :]], 1).logsumexp(1)
