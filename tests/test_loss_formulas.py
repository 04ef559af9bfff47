"""The masked, weighted and scheduled losses against their formulas: NumPy, one decision at a time, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from strategies import CHANNELS, KINDS, make_batch, make_task

from advseg_bench import losses
from advseg_bench.batches import Batch
from advseg_bench.losses.decisions import is_correct
from advseg_bench.metrics import predict
from advseg_bench.registry import catalogue
from advseg_bench.types import Task

COUNTS = {"binary": [[7, 2]], "multilabel": [[7, 2], [5, 4], [9, 0]], "multiclass": [8, 4, 2, 0]}


def entropy(u, c):
    return math.log(sum(math.exp(v - u[c]) for v in u))


def p_of(u, c):
    return math.exp(-entropy(u, c))


def correct(u, c):
    return int(max(range(len(u)), key=lambda j: u[j])) == c


def divergence(a, b):
    return sum(x * math.log(x / z) for x, z in zip(a, b, strict=True) if x > 0)


def jensen_shannon(u, c):
    p = [p_of(u, j) for j in range(len(u))]
    e = [float(j == c) for j in range(len(u))]
    m = [(a + b) / 2 for a, b in zip(p, e, strict=True)]
    return (divergence(p, m) + divergence(e, m)) / 2


def cosine_weight(u, c):
    return p_of(u, c) / math.hypot(*(p_of(u, j) for j in range(len(u))))


def sigmoid_weight(u, c):
    s = [1 / (1 + math.exp(-v)) for v in u]
    return s[c] / math.hypot(*s)


def gap(u, c):
    return max(v for j, v in enumerate(u) if j != c) - u[c]


def spherical(u, c):
    size = math.hypot(*u) if len(u) > 2 else math.hypot(gap(u, c), 1)
    return -(u[c] if len(u) > 2 else -gap(u, c)) / size * correct(u, c)


def ratio(u, c):
    ranked = sorted(u, reverse=True)
    return gap(u, c) / (ranked[0] - ranked[2]) if len(u) > 2 else gap(u, c)


def two_parts(share):
    return lambda u, c: (1 - share if correct(u, c) else share) * entropy(u, c)


def tsallis(q):
    return lambda u, c: (1 - p_of(u, c) ** (1 - q)) / (1 - q)


FORMULAS = {
    "masked_ce": lambda u, c: entropy(u, c) * correct(u, c),
    "balanced_ce": None,  # weights of the image; see `by_hand`
    "class_balanced_ce": None,
    "masked_spherical": spherical,
    "js": jensen_shannon,
    "cosine": lambda u, c: cosine_weight(u, c) * entropy(u, c),
    "cosine_sigmoid": lambda u, c: sigmoid_weight(u, c) * entropy(u, c),
    "segpgd": two_parts(0),
    "tsallis": tsallis(-2),
    "dlr": ratio,
    "present_dice": None,
}
"""The value of one decision with logits u of all its classes, of which c is the label."""
PAIRS = [(name, kind) for name in FORMULAS for kind in catalogue.LOSSES[name].kinds]


def decisions_of(batch, logits, i):
    """The decisions of an image: channel, logits of all values, label."""
    u, y = logits[i].flatten(1).T.tolist(), batch.y[i]
    kept = batch.valid[i].flatten().tolist()
    if batch.task.kind == "multiclass":
        return [(0, a, c) for a, c, v in zip(u, y.flatten().tolist(), kept, strict=True) if v]
    labels = y.flatten(1).T.tolist()
    return [(k, (0.0, a[k]), int(c[k])) for a, c, v in zip(u, labels, kept, strict=True) if v for k in range(len(a))]


def by_hand(formula, batch, logits):
    """The mean of a formula over the decisions of each image."""
    return torch.tensor([np.mean([formula(u, c) for _, u, c in decisions_of(batch, logits, i)]) for i in range(3)])


def balanced(batch, logits):
    values = []
    for i in range(3):
        found = decisions_of(batch, logits, i)
        sizes = {key: sum((k, c) == key for k, _, c in found) for key in {(k, c) for k, _, c in found}}
        classes = len(batch.task.classes) * (1 if batch.task.kind == "multiclass" else 2)
        values.append(sum(entropy(u, c) * correct(u, c) / sizes[k, c] for k, u, c in found) / classes)
    return torch.tensor(values, dtype=torch.float64)


def class_balanced(batch, logits):
    counts = np.atleast_2d(COUNTS[batch.task.kind]).astype(float)
    with np.errstate(divide="ignore"):
        weights = np.where(counts > 0, counts.sum(1, keepdims=True) / counts.shape[1] / counts, 0)
    return torch.tensor(
        [
            np.mean([weights[k, c] * entropy(u, c) * correct(u, c) for k, u, c in decisions_of(batch, logits, i)])
            for i in range(3)
        ]
    )


def dice_of_present(batch, logits):
    """Soft Dice of the foreground classes in each image, by sums over channels."""
    first = int(batch.task.kind == "multiclass")
    p = losses.probabilities(logits, batch.task).numpy()
    t = losses.one_hot(batch.y, batch.task, logits).numpy()
    values = []
    for i, kept in enumerate(batch.valid.numpy()):
        pairs = [(p[i, k][kept], t[i, k][kept]) for k in range(first, p.shape[1])]
        dice = [1 - 2 * (a * b).sum() / (a.sum() + b.sum()) for a, b in pairs if b.any()]
        values.append(np.mean(dice or [a.mean() for a, _ in pairs]))
    return torch.tensor(values)


def find(name, kind):
    loss = getattr(losses, name)
    return loss.counted(torch.tensor(COUNTS[kind])) if name == "class_balanced_ce" else loss


def reference(name, batch, logits):
    special = {"balanced_ce": balanced, "class_balanced_ce": class_balanced, "present_dice": dice_of_present}
    return special[name](batch, logits) if name in special else by_hand(FORMULAS[name], batch, logits)


def differentiate(loss, batch, logits):
    leaf = logits.detach().requires_grad_()
    value = loss(leaf, batch.y, batch.valid, batch.task)
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


def make(kind, seed=0, scale=1.0, **given):
    batch, logits = make_batch(kind, seed, **given)
    return batch, logits.double() * scale


@pytest.mark.parametrize("space", [(7, 5), (2, 3, 4)])
@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_values_equal_the_formula(name, kind, space):
    batch, logits = make(kind, space=space, void=0.3)
    value = find(name, kind)(logits, batch.y, batch.valid, batch.task)
    torch.testing.assert_close(value, reference(name, batch, logits), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_gradients_equal_differences_of_the_formula(name, kind):
    """Masks and weights held fixed: of the weighted losses only the cross-entropy moves."""
    batch, logits = make(kind, space=(3, 2), void=0.2)
    _, gradient = differentiate(find(name, kind), batch, logits)
    h = 1e-6
    for index in np.ndindex(*logits.shape):
        step = torch.zeros_like(logits)
        step[index] = h
        change = moved(name, batch, logits, logits + step) - moved(name, batch, logits, logits - step)
        assert float(gradient[index]) == pytest.approx(float(change) / (2 * h), rel=1e-6, abs=1e-9)


def moved(name, batch, logits, shifted):
    """The sum of the values at shifted logits, with the weights of a weighted loss as they are at the logits."""
    weight = {"cosine": cosine_weight, "cosine_sigmoid": sigmoid_weight}.get(name)
    if weight is None:
        return reference(name, batch, shifted).sum()
    total = 0.0
    for i in range(3):
        pairs = zip(decisions_of(batch, logits, i), decisions_of(batch, shifted, i), strict=True)
        total += np.mean([weight(u, c) * entropy(v, c) for (_, u, c), (_, v, _) in pairs])
    return total


OF_CHANNELS = sorted({name for name, kind in PAIRS if kind == "binary"} - {"present_dice", "masked_spherical"})


@pytest.mark.parametrize("name", OF_CHANNELS)
def test_a_sigmoid_channel_is_a_softmax_of_two_classes(name):
    batch, logits = make("binary", void=0.3)
    two = Batch.of(batch.x, batch.y[:, 0].long(), valid=batch.valid, task="multiclass", classes=2)
    leaf = logits.requires_grad_()
    of_two = find(name, "binary")
    if name == "class_balanced_ce":
        of_two = losses.class_balanced_ce.counted(torch.tensor(COUNTS["binary"][0]))
    value = find(name, "binary")(leaf, batch.y, batch.valid, batch.task)
    same = of_two(torch.cat([torch.zeros_like(leaf), leaf], 1), two.y, two.valid, two.task)
    torch.testing.assert_close(value, same, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(*(torch.autograd.grad(v.sum(), leaf)[0] for v in (value, same)), rtol=1e-9, atol=1e-14)


def test_the_spherical_loss_of_two_classes_is_that_of_a_sigmoid_channel_with_a_gradient():
    batch, logits = make("binary")
    two = Task("multiclass", ("background", "organ"))
    leaf = logits.requires_grad_()
    value = losses.masked_spherical(leaf, batch.y, batch.valid, batch.task)
    of_two = losses.masked_spherical(torch.cat([leaf * 0, leaf], 1), batch.y[:, 0].long(), batch.valid, two)
    torch.testing.assert_close(value, of_two)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    assert torch.equal(gradient != 0, (logits > 0) == batch.y)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("name", ["dlr", "masked_spherical"])
def test_ratios_of_three_or_more_classes_do_not_depend_on_the_scale(name, scale):
    batch, logits = make("multiclass")
    loss = getattr(losses, name)
    value = loss(logits, batch.y, batch.valid, batch.task)
    torch.testing.assert_close(loss(logits * scale, batch.y, batch.valid, batch.task), value)


def test_dlr_below_three_classes_is_the_margin():
    for kind in ("binary", "multilabel"):
        batch, logits = make(kind)
        given = logits, batch.y, batch.valid, batch.task
        assert torch.equal(losses.dlr(*given), losses.margin(*given))
    two = logits[:, :2], torch.zeros(3, 7, 5, dtype=torch.int64), batch.valid, Task("multiclass", ("a", "b"))
    assert torch.equal(losses.dlr(*two), losses.margin(*two))


def test_dlr_of_equal_logits_has_no_gradient_and_leaves_other_pixels_alone():
    batch, logits = make("multiclass", space=(2, 2))
    logits[:, :, 0, 0] = 3.0
    value, gradient = differentiate(losses.dlr, batch, logits)
    assert value.isfinite().all()
    assert (gradient[:, :, 0, 0] == 0).all()
    assert (gradient[:, :, 1:] != 0).any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_js_is_the_closed_form(kind):
    batch, logits = make(kind, space=(4, 4))
    _, gradient = differentiate(losses.js, batch, logits)
    y, n = losses.one_hot(batch.y, batch.task, logits), 16 * (1 if kind == "multiclass" else CHANNELS[kind])
    p = losses.probabilities(logits, batch.task)
    p_y = (p * y).sum(1, keepdim=True) if kind == "multiclass" else torch.where(y == 1, p, 1 - p)
    towards = y - p
    torch.testing.assert_close(gradient, (p_y / 2 * (p_y / (1 + p_y)).log() * towards) / n)


@pytest.mark.parametrize("kind", KINDS)
def test_the_mask_of_correct_decisions_agrees_with_the_prediction(kind):
    batch, logits = make(kind, void=0.3)
    logits = logits.round()  # with ties and zeros
    seen = batch.valid.unsqueeze(1)
    same = predict(logits, batch.task) == batch.y
    found = is_correct(logits, batch.y, batch.valid, batch.task)
    assert torch.equal(found & seen, (same.unsqueeze(1) if kind == "multiclass" else same) & seen)


MASKED = ["masked_ce", "balanced_ce", "class_balanced_ce", "masked_spherical", "segpgd"]


@pytest.mark.parametrize(("name", "kind"), [pair for pair in PAIRS if pair[0] in MASKED])
def test_wrong_decisions_have_no_gradient_under_a_mask(name, kind):
    batch, logits = make(kind)
    _, gradient = differentiate(find(name, kind), batch, logits)
    wrong = ~is_correct(logits, batch.y, batch.valid, batch.task).expand_as(gradient)
    assert wrong.any()
    assert (gradient[wrong] == 0).all()
    assert (gradient[~wrong] != 0).any()


@pytest.mark.parametrize("size", [30.0, 1e3, 1e4])
@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_saturated_logits_of_any_sign_give_finite_values_and_gradients(name, kind, size):
    batch, logits = make_batch(kind, void=0.2)
    for step in (0, 2) if hasattr(getattr(losses, name), "at") else (0,):
        loss = losses.loss_at(find(name, kind), step, 3)
        value, gradient = differentiate(loss, batch, logits.sign() * size)
        assert value.isfinite().all()
        assert gradient.isfinite().all()
        assert (gradient[~batch.valid.unsqueeze(1).expand_as(gradient)] == 0).all()


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_gradients_do_not_depend_on_the_neighbours(name, kind):
    batch, logits = make(kind, void=0.3)
    loss = find(name, kind)
    _, together = differentiate(loss, batch, logits)
    leaf = logits[1:2].detach().requires_grad_()
    value = loss(leaf, batch.y[1:2], batch.valid[1:2], batch.task)
    torch.testing.assert_close(torch.autograd.grad(value.sum(), leaf)[0][0], together[1], rtol=1e-12, atol=1e-16)


def test_every_class_of_an_image_has_the_same_weight():
    batch, logits = make("multiclass", n=3)
    sure = 5.0 * losses.one_hot(batch.y, batch.task, logits)  # all correct, all with the same cross-entropy
    _, gradient = differentiate(losses.balanced_ce, batch, sure)
    pulled = (gradient * losses.one_hot(batch.y, batch.task, logits)).flatten(2).sum(2)
    torch.testing.assert_close(pulled, pulled[:, :1].expand_as(pulled))


@pytest.mark.parametrize("kind", KINDS)
def test_an_absent_class_has_no_term_and_an_empty_image_has_its_false_positives(kind):
    batch, logits = make(kind, void=0.2)
    y = batch.y.clone()
    y[0] = 0
    batch = Batch.of(batch.x, y, valid=batch.valid, task=make_task(kind))
    value, gradient = differentiate(losses.present_dice, batch, logits)
    torch.testing.assert_close(value, dice_of_present(batch, logits))
    seen = batch.valid[0].expand_as(gradient[0])
    foreground = gradient[0][int(kind == "multiclass") :]
    assert (foreground[seen[int(kind == "multiclass") :]] != 0).all()
    if kind == "multilabel":
        y[1, 2] = False
        only = Batch.of(batch.x, y, valid=batch.valid, task=make_task(kind))
        _, gradient = differentiate(losses.present_dice, only, logits)
        assert (gradient[1, 2] == 0).all()
        assert (gradient[1, :2] != 0).any()


def test_objectives_are_fixed_where_a_loss_is_masked_weighted_or_scheduled():
    judged = {name for name, entry in catalogue.LOSSES.items() if entry.objective}
    assert judged == {*MASKED, "cosine", "cosine_sigmoid", "tsallis"}
    assert {catalogue.LOSSES[name].objective for name in judged} == {"entropy"}
