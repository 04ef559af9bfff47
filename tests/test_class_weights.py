"""The loss whose class weights are those of the training split, in runs and in memory; and targets of masked losses."""

from __future__ import annotations

import pytest
import torch
from strategies import make_batch

import advseg_bench as ab
from advseg_bench.attacks.objective import name_loss
from advseg_bench.data import load_dataset
from advseg_bench.errors import IncompatibleError, SettingError
from advseg_bench.losses import class_balanced_ce
from advseg_bench.registry import catalogue
from advseg_bench.registry.loading import load_attack
from advseg_bench.running.supply import count_training
from advseg_bench.suite.suite import Suite

DATA = {"name": "phantom", "size": 16, "subjects": 4, "slices": 2}
NET = {"name": "a", "architecture": "monai.UNet", "settings": {"channels": [4, 4], "strides": [2]}}
BALANCED = {"name": "pgd", "losses": ["class_balanced_ce"], "eps": ["4/255"], "settings": {"steps": 2}}
KEPT = {
    "name": "apgd",
    "losses": ["dice"],
    "eps": ["4/255"],
    "settings": {"steps": 2, "keep_by": "class_balanced_ce"},
}
PLAIN = {"name": "fgsm", "losses": ["dice"], "eps": ["4/255"]}


def make_suite(*attacks) -> Suite:
    return Suite(name="s", data=DATA, models=[NET], training={"epochs": 1, "floor": 0}, attacks=attacks)


def test_the_training_split_is_counted_and_no_other():
    dataset = load_dataset(make_suite(PLAIN).data)
    train = dataset.batch(dataset.split("train"))
    ones = (train.y.bool() & train.valid.unsqueeze(1)).sum((0, 2, 3))
    found = count_training(dataset)
    assert found[:, 1].tolist() == ones.tolist()
    assert found.sum(1).tolist() == [int(train.valid.sum())] * len(ones)
    test = dataset.batch(dataset.split("test"))
    assert found[:, 1].tolist() != test.y.bool().sum((0, 2, 3)).tolist()


@pytest.mark.parametrize(
    "attack", [BALANCED, KEPT, {**PLAIN, "losses": ["class_balanced_ce"]}], ids=["loss", "keep", "fgsm"]
)
def test_a_run_counts_and_records_what_it_uses(attack, tmp_path):
    suite = make_suite(attack)
    run = ab.run(suite, tmp_path / "run")
    assert run.failures == []
    counts = count_training(load_dataset(suite.data))
    assert run.info["data"]["class_pixels"] == counts.tolist()
    assert ab.run(suite, tmp_path / "run").rows.equals(run.rows)


def test_a_run_without_the_loss_does_not_count(tmp_path):
    assert "class_pixels" not in ab.run(make_suite(PLAIN), tmp_path / "run").info["data"]


def test_an_attack_follows_the_counted_weights():
    dataset = load_dataset(make_suite(PLAIN).data)
    loss = class_balanced_ce.counted(count_training(dataset))
    attack = load_attack(
        "apgd", {"steps": 3, "keep_by": "class_balanced_ce"}, "class_balanced_ce", dataset.task, lambda: loss
    )
    assert attack.loss == attack.keep_by == loss
    assert attack.judged_by is ab.losses.entropy, "the fixed objective of a masked loss"
    assert name_loss(attack.loss) == "class_balanced_ce"


def test_without_a_training_split_one_line_names_the_remedy():
    batch, _ = make_batch("binary")
    model = ab.testing.LinearSegmenter(torch.tensor([2.0, -3.0]), 0.4)
    with pytest.raises(IncompatibleError, match=r"class_balanced_ce: expected pixel counts.*Use balanced_ce"):
        ab.attacks.PGD(loss="class_balanced_ce")(model, batch, eps=0.1)
    with pytest.raises(IncompatibleError, match=r"class_balanced_ce: expected pixel counts.*Use balanced_ce"):
        ab.evaluate(model, [batch], ab.attacks.PGD(loss="class_balanced_ce"), eps=0.1)
    counts = ab.losses.count_classes(batch.y, batch.valid, batch.task)
    run = ab.evaluate(model, [batch], ab.attacks.PGD(loss=class_balanced_ce.counted(counts)), eps=0.1)
    assert run.failures == []
    assert set(run.rows["loss"]) == {"", "class_balanced_ce"}
    dataset = load_dataset(make_suite(PLAIN).data)
    empty = type("Empty", (), {"name": "mine", "split": lambda self, part: ()})()
    assert dataset.split("train")
    with pytest.raises(IncompatibleError, match=r"training images of mine.*balanced_ce, which counts"):
        count_training(empty)


MASKED = ["masked_ce", "balanced_ce", "class_balanced_ce", "masked_spherical", "segpgd"]


def test_the_masked_losses_are_marked():
    assert [name for name, entry in catalogue.LOSSES.items() if entry.masked] == MASKED


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("key", ["loss", "objective", "keep_by"])
def test_a_target_with_a_masked_loss_is_refused(name, key):
    if (name, key) in {("segpgd", "objective"), ("segpgd", "keep_by")}:
        return  # no objective at all, since it changes with the steps
    given = {"loss": "dice"} | {key: name}
    with pytest.raises(SettingError, match=rf"targeted: expected false with the loss {name}, got True"):
        ab.attacks.BIM(**given, targeted=True)
    ab.attacks.BIM(**given)
    if key == "loss":
        with pytest.raises(SettingError, match="targeted: expected false"):
            ab.attacks.FGSM(loss=name, targeted=True)
        with pytest.raises(SettingError, match="targeted: expected false"):
            ab.attacks.FGSM(loss=getattr(ab.losses, name), targeted=True)


def test_a_target_with_another_loss_is_taken():
    for loss in ("cosine", "tsallis", "js", "dice", lambda logits, y, valid, task: logits.flatten(1).sum(1)):
        assert ab.attacks.BIM(loss=loss, targeted=True).targeted
