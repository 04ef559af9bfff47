"""Losses that depend on the step or on a training split."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from strategies import CHANNELS, KINDS, make_batch
from test_loss_formulas import by_hand, decisions_of, differentiate, make, two_parts

from advseg_bench import losses
from advseg_bench.errors import IncompatibleError, SettingError


@pytest.mark.parametrize("q", [-3.0, -2.0, 0.0, 0.5, 0.999])
def test_the_gradient_of_tsallis_weighs_confidence_and_doubt(q):
    batch, logits = make("multilabel", scale=3)
    _, gradient = differentiate(losses.TsallisCE(q), batch, logits)
    z = torch.where(batch.y, logits, -logits)
    p = z.sigmoid()
    wanted = p ** (1 - q) * z.neg().sigmoid() * torch.where(batch.y, -1, 1) / (3 * 35)
    torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-18)


@pytest.mark.parametrize("kind", KINDS)
def test_tsallis_becomes_cross_entropy(kind):
    batch, logits = make(kind, scale=5)
    given = logits, batch.y, batch.valid, batch.task
    plain = (losses.ce if kind == "multiclass" else losses.bce)(*given)
    torch.testing.assert_close(losses.TsallisCE(1.0)(*given), plain, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(losses.TsallisCE(1 - 1e-9)(*given), plain, rtol=1e-6, atol=0)
    torch.testing.assert_close(losses.tsallis.at(9, 10)(*given), plain, rtol=1e-12, atol=1e-14)


def test_tsallis_keeps_a_gradient_far_beyond_a_clamp_of_the_probability():
    batch, _ = make_batch("binary")
    wrong = torch.where(batch.y, -60.0, 60.0)  # p_y = 1e-26
    _, gradient = differentiate(losses.tsallis.at(9, 10), batch, wrong)
    torch.testing.assert_close(gradient, torch.where(batch.y, -1.0, 1.0) / 35)


@pytest.mark.parametrize("q", [1.0001, 2.0, math.nan, math.inf, -math.inf])
def test_a_tsallis_order_above_one_is_refused(q):
    with pytest.raises(SettingError, match=rf"q: expected .* at most 1, got {q}"):
        losses.TsallisCE(q)
    with pytest.raises(SettingError, match="q: expected"):
        losses.TsallisSchedule(last=q)


def test_schedules_follow_their_definition():
    assert [losses.segpgd.at(t, 5).share for t in range(5)] == [t / 10 for t in range(5)]
    assert [losses.tsallis.at(t, 7).q for t in range(7)] == pytest.approx([-2 + t / 2 for t in range(7)])
    assert losses.tsallis.at(0, 1).q == -2
    assert losses.TsallisSchedule(0.1, 0.7).at(9, 10).q == 0.7


@pytest.mark.parametrize("step", [-1, 4])
@pytest.mark.parametrize("loss", [losses.segpgd, losses.tsallis])
def test_a_step_outside_the_schedule_is_refused(loss, step):
    with pytest.raises(SettingError, match=f"step: expected 0 to 3, got {step}"):
        loss.at(step, 4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [0, 3, 7])
def test_segpgd_follows_its_two_parts_and_a_call_is_its_first_step(kind, step):
    batch, logits = make(kind, void=0.3)
    given = logits, batch.y, batch.valid, batch.task
    value = losses.loss_at(losses.segpgd, step, 8)(*given)
    torch.testing.assert_close(value, by_hand(two_parts(step / 16), batch, logits))
    assert torch.equal(losses.segpgd(*given), losses.segpgd.at(0, 1)(*given))
    torch.testing.assert_close(losses.segpgd(*given), losses.masked_ce(*given))


@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_those_of_a_loop_and_add_up(kind):
    batch, _ = make(kind, void=0.3)
    counts = losses.count_classes(batch.y, batch.valid, batch.task)
    parts = [losses.count_classes(batch.y[i : i + 1], batch.valid[i : i + 1], batch.task) for i in range(3)]
    assert torch.equal(sum(parts), counts)
    wanted = np.zeros((CHANNELS[kind], 2) if kind != "multiclass" else (1, CHANNELS[kind]), dtype=int)
    for i in range(3):
        for k, _, c in decisions_of(batch, torch.zeros(3, CHANNELS[kind], 7, 5), i):
            wanted[k, c] += 1
    assert counts.tolist() == (wanted[0] if kind == "multiclass" else wanted).tolist()
    assert counts.dtype == torch.int64


def test_class_weights_depend_on_the_ratio_of_counts_alone_and_travel():
    loss = losses.class_balanced_ce.counted(torch.tensor([6, 2, 0]))
    assert loss.weights == pytest.approx((8 / 18, 8 / 6, 0))
    assert loss == losses.class_balanced_ce.counted(torch.tensor([6e8, 2e8, 0]))
    assert pickle.loads(pickle.dumps(loss)) == loss
    assert losses.class_balanced_ce.weights is None


def test_without_counts_it_names_the_remedy():
    batch, logits = make("multiclass")
    with pytest.raises(IncompatibleError, match=r"class_balanced_ce: expected pixel counts .* got None.*count_classes"):
        losses.class_balanced_ce(logits, batch.y, batch.valid, batch.task)


@pytest.mark.parametrize(("kind", "counts"), [("multiclass", [1, 2]), ("binary", [3, 4]), ("multilabel", [[1, 2]])])
def test_counts_of_another_task_are_refused(kind, counts):
    batch, logits = make(kind)
    loss = losses.class_balanced_ce.counted(torch.tensor(counts))
    with pytest.raises(IncompatibleError, match=rf"counts of shape \({CHANNELS[kind]},.* for a {kind} task, got"):
        loss(logits, batch.y, batch.valid, batch.task)


@pytest.mark.parametrize("counts", [[0, 0], [-1, 3], [[1, 2, 3]], [], [math.nan, 1.0], [[0, 0], [1, 2]]])
def test_counts_that_are_none_are_refused(counts):
    with pytest.raises(SettingError, match=r"class_balanced_ce: expected .*counts"):
        losses.class_balanced_ce.counted(torch.tensor(counts))
