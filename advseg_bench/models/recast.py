"""The same trained network put to another kind of task, so that one training serves checks on all three."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from advseg_bench.batches import Batch
from advseg_bench.losses import one_hot
from advseg_bench.types import Task, TaskKind


class RecastModel(nn.Module):
    """Logits of a network for one kind of task, turned into logits for another.

    From sigmoid channels to multiclass a background of logit 0 is put in front, so that the softmax odds of a class
    against the background are its sigmoid odds. From multiclass to sigmoid channels each class but the first gets its
    log-odds against all others, so that its sigmoid is its softmax probability. A binary task is the first channel.

    Args:
        model: Images -> logits.
        source: The task the network was made for.
        kind: The kind of task it is put to.
    """

    def __init__(self, model: nn.Module, source: Task, kind: TaskKind) -> None:
        super().__init__()
        self.model, self.source, self.kind = model, source, kind

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, *S) -> logits of the new task. Cost: one forward."""
        logits: Tensor = self.model(x)
        if self.source.kind == "multiclass" and self.kind != "multiclass":
            odds = [logits[:, k] - _others(logits, k) for k in range(1, logits.shape[1])]
            logits = torch.stack(odds, 1)
        elif self.source.kind != "multiclass" and self.kind == "multiclass":
            logits = torch.cat([torch.zeros_like(logits[:, :1]), logits], 1)
        return logits[:, :1] if self.kind == "binary" else logits


def recast_batch(batch: Batch, kind: TaskKind) -> Batch:
    """Return a batch with the labels of another kind of task.

    Where classes overlap, the first one is the label of a multiclass task. A binary task is the first class that is
    not background.
    """
    source = batch.task
    foreground = source.classes[1:] if source.kind == "multiclass" else source.classes
    if kind == source.kind:
        return batch
    if kind == "multiclass":
        label = batch.y.to(torch.int64)
        y = torch.where(label.any(1), label.argmax(1) + 1, 0)
        return replace(batch, y=y, task=Task("multiclass", ("background", *foreground)))
    y = batch.y
    if source.kind == "multiclass":
        y = one_hot(y, source, torch.empty(0, dtype=torch.bool, device=y.device))[:, 1:]
    if kind == "binary":
        y, foreground = y[:, :1], foreground[:1]
    return replace(batch, y=y, task=Task(kind, foreground))


def _others(logits: Tensor, k: int) -> Tensor:
    """Log of the summed exponentials of all channels but one."""
    return torch.cat([logits[:, :k], logits[:, k + 1 :]], 1).logsumexp(1)
