"""A network put to another kind of task decides what it decided before."""

from __future__ import annotations

import pytest
import torch
from strategies import make_batch
from torch import nn

from advseg_bench.metrics import predict
from advseg_bench.models.recast import RecastModel, recast_batch


class Fixed(nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, x):
        return self.logits


def test_sigmoid_channels_become_classes_with_the_same_odds():
    batch, logits = make_batch("multilabel")
    found = RecastModel(Fixed(logits), batch.task, "multiclass")(batch.x)
    odds = found.softmax(1)[:, 1:] / found.softmax(1)[:, :1]
    assert torch.allclose(odds, logits.exp(), rtol=1e-4)
    none = (logits < 0).all(1)
    assert torch.equal(predict(found, recast_batch(batch, "multiclass").task) == 0, none)


def test_classes_become_sigmoid_channels_with_the_same_probabilities():
    batch, logits = make_batch("multiclass")
    found = RecastModel(Fixed(logits), batch.task, "multilabel")(batch.x)
    assert torch.allclose(found.sigmoid(), logits.softmax(1)[:, 1:], atol=1e-6)
    first = RecastModel(Fixed(logits), batch.task, "binary")(batch.x)
    assert torch.equal(first, found[:, :1])


def test_labels_follow():
    batch, _ = make_batch("multilabel")
    classes = recast_batch(batch, "multiclass")
    assert classes.task.classes == ("background", *batch.task.classes)
    for image, y, x in ((i, r, c) for i in range(3) for r in range(7) for c in range(5)):
        shown = batch.y[image, :, y, x].nonzero().flatten().tolist()
        assert int(classes.y[image, y, x]) == (shown[0] + 1 if shown else 0)
    assert torch.equal(recast_batch(batch, "binary").y, batch.y[:, :1])
    numbers, _ = make_batch("multiclass")
    channels = recast_batch(numbers, "multilabel")
    assert channels.task.classes == numbers.task.classes[1:]
    assert all(torch.equal(channels.y[:, k], numbers.y == k + 1) for k in range(3))


@pytest.mark.parametrize("kind", ["binary", "multilabel", "multiclass"])
def test_the_same_kind_changes_nothing(kind):
    batch, logits = make_batch(kind)
    assert recast_batch(batch, kind) is batch
    assert torch.equal(RecastModel(Fixed(logits), batch.task, kind)(batch.x), logits)
