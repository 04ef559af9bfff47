from __future__ import annotations

import monai.metrics
import numpy as np
import segmentation_models_pytorch as smp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import kinds, make_batch, seeds, spaces

from advseg_bench import metrics
from advseg_bench.losses import one_hot
from advseg_bench.types import Task

few = settings(max_examples=40, deadline=None)


@few
@given(seeds, spaces, kinds)
def test_counts_equal_a_loop_over_pixels(seed, space, kind):
    batch, logits = make_batch(kind, seed, n=2, space=space, void=0.3)
    clean = metrics.predict(-logits, batch.task)
    prediction = metrics.predict(logits, batch.task)
    counts = metrics.count(prediction, clean, batch)
    planes = [one_hot(labels, batch.task, torch.empty(0)).flatten(2).bool() for labels in (prediction, batch.y, clean)]
    valid = batch.valid.flatten(1)
    for i in range(2):
        seen = [[tuple(plane[i, :, j].tolist()) for plane in planes] for j in range(valid.shape[1]) if valid[i, j]]
        for k in range(logits.shape[1]):
            assert counts.tp[i, k] == sum(p[k] and t[k] for p, t, _ in seen)
            assert counts.fp[i, k] == sum(p[k] and not t[k] for p, t, _ in seen)
            assert counts.fn[i, k] == sum(t[k] and not p[k] for p, t, _ in seen)
        assert counts.valid[i] == len(seen)
        assert counts.wrong[i] == sum(p != t for p, t, _ in seen)
        assert counts.flipped[i] == sum(p != c for p, _, c in seen)


def test_one_target_serves_many_predictions_and_counts_more_than_16_bits_hold():
    batch, logits = make_batch("multilabel", n=2, space=(384, 384), void=0.3)
    target = metrics.Target(batch.y, batch)
    for prediction in (metrics.predict(logits, batch.task), batch.y, ~batch.y, torch.ones_like(batch.y)):
        counts, alone = target.count(prediction), metrics.count(prediction, batch.y, batch)
        assert all(torch.equal(getattr(counts, name), getattr(alone, name)) for name in counts.__slots__)
    assert torch.equal(counts.tp + counts.fp, batch.valid.flatten(1).sum(1, keepdim=True).expand_as(counts.tp))
    assert counts.valid.min() > 2**16


@few
@given(seeds, st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_the_class_of_the_largest_logit_is_numpys(seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    values = torch.tensor([-torch.inf, -1.0, 0.0, -0.0, 2.0, torch.inf, torch.nan])  # many ties, and what no model says
    logits = values[torch.randint(0, len(values), (2, 5, 6, 7), generator=generator)].to(dtype)
    found = metrics.predict(logits, Task("multiclass", tuple("abcde")))
    assert found.dtype == torch.int64
    np.testing.assert_array_equal(found.numpy(), logits.double().numpy().argmax(1))


def test_dice_equals_monai_and_counts_equal_smp():
    batch, logits = make_batch("multilabel", space=(16, 12))
    prediction = metrics.predict(logits, batch.task)
    counts = metrics.count(prediction, prediction, batch)
    reference = monai.metrics.compute_dice(prediction.float(), batch.y.float(), ignore_empty=True)
    torch.testing.assert_close(metrics.mean_dice(counts, batch.task), reference.nanmean(1).double())
    tp, fp, fn, _ = smp.metrics.get_stats(prediction.long(), batch.y.long(), mode="multilabel")
    assert torch.equal(counts.tp, tp)
    assert torch.equal(counts.fp, fp)
    assert torch.equal(counts.fn, fn)


def test_multiclass_counts_equal_smp_and_leave_the_background_out_of_the_mean():
    batch, logits = make_batch("multiclass", space=(16, 12))
    prediction = metrics.predict(logits, batch.task)
    counts = metrics.count(prediction, prediction, batch)
    tp, fp, fn, _ = smp.metrics.get_stats(prediction, batch.y, mode="multiclass", num_classes=4)
    assert torch.equal(counts.tp, tp)
    dice = 2 * tp.double() / (2 * tp + fp + fn)
    torch.testing.assert_close(metrics.mean_dice(counts, batch.task), dice[:, 1:].mean(1))


def test_an_image_that_shows_no_class_has_no_mean():
    batch, logits = make_batch("multilabel")
    batch.y[0] = False
    batch.y[1, 2] = False
    prediction = metrics.predict(logits, batch.task)
    dice = metrics.mean_dice(metrics.count(prediction, prediction, batch), batch.task)
    assert dice[0].isnan()
    assert dice[1:].isfinite().all()


def test_a_logit_of_zero_is_no_detection():
    batch, _ = make_batch("binary")
    assert not metrics.predict(torch.zeros(3, 1, 7, 5), batch.task).any()
