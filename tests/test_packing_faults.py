"""Stepped attacks that fail, never end or ask for nonsense: their cell fails, and the others keep their rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from strategies import make_batch

from advseg_bench import losses
from advseg_bench.attacks import APGD, BIM, MIFGSM, PGD, Square
from advseg_bench.attacks.stepping import Query, SteppedAttack
from advseg_bench.data.dataset import Case, Dataset, Sample
from advseg_bench.running.packing import Fill
from advseg_bench.running.runner import Conditions, run_unit
from advseg_bench.running.work import Unit
from advseg_bench.suite.cells import Arm, Cell
from advseg_bench.types import Task


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(1)
        self.a = torch.nn.Parameter(torch.randn((5, 2, 3, 3), generator=g))
        self.b = torch.nn.Parameter(torch.randn((3, 5, 1, 1), generator=g))

    def forward(self, x):
        return torch.nn.functional.conv2d(torch.nn.functional.conv2d(x, self.a, padding=1).tanh(), self.b)


def make_data(n: int, net: torch.nn.Module | None = None) -> Dataset:
    """Random labels, or those that a network finds."""
    batch, _ = make_batch("multilabel", n=n, space=(12, 12))
    cases = [Case(f"i{i}", f"s{i}", "b", (1.0, 1.0), "test") for i in range(n)]

    def read(i: int) -> Sample:
        y = batch.y[i] if net is None else net(batch.x[i : i + 1])[0] > 0
        return Sample(batch.x[i].numpy(), y.numpy(), batch.valid[i].numpy())

    return Dataset(name="tiny", task=Task("multilabel", ("a", "b", "c")), cases=cases, read=read, fingerprint="f")


def make_cell(name: str, eps: float = 4 / 255, max_forwards: int | None = None) -> Cell:
    return Cell(name, "m", Arm(name, "", "{}", "linf"), eps, 0, "", None, max_forwards)


SOUND = {
    "bim": BIM(loss=losses.dice, steps=4),
    "apgd": APGD(loss=losses.balanced_ce, steps=6, keep_by="hard_dice"),
    "square": Square(queries=9),
    "mifgsm": MIFGSM(loss=losses.bce, steps=3),
}


def run(
    attacks: dict[str, Any],
    *,
    n: int = 11,
    limit: int | None = None,
    fill: Fill | None = None,
    net=None,
    eps=4 / 255,
    right=False,
):
    cells = tuple(make_cell(name, eps, None if name in SOUND else limit) for name in attacks)
    unit = Unit("m", tuple(range(n)), cells)
    net, conditions = net or Net(), Conditions(seed=0, batch=8)
    data = make_data(n, net if right else None)
    rows, failures = run_unit(unit, net, data, conditions, attacks=attacks, fill=fill)
    return {(row["cell"], row["image"]): row for row in rows}, failures


@pytest.fixture(scope="module")
def alone():
    rows, failures = run(SOUND)
    assert failures == []
    assert len(rows) == 11 * len(SOUND)
    return rows


class Misused:
    """A loss that raises at one of its calls, or writes into what it is given."""

    def __init__(self, fault: str) -> None:
        self.fault, self.calls = fault, 0

    def __call__(self, logits, y, valid, task):
        self.calls += 1
        value = losses.bce(logits, y, valid, task)
        if self.fault == "raises" and self.calls == 3:
            raise ValueError("third\ncall")
        if self.fault == "exits":
            raise SystemExit(3)
        if self.fault == "labels":
            y.logical_not_()
        if self.fault == "valid":
            valid.zero_()
        if self.fault == "logits":
            logits.detach().zero_()
        if self.fault == "graph":
            return value.detach()
        return value


@dataclass(frozen=True)
class Broken(SteppedAttack):
    """An attack with a fault at a step."""

    fault: str

    def begin(self, batch, *, budget, generators):
        if self.fault == "begin":
            raise RuntimeError("no start")
        return self.steps(batch)

    def steps(self, batch):
        x = batch.x
        for step in range(10**6 if self.fault == "endless" else 4):
            query = Query(x)
            if step == 2 and self.fault in BAD_QUERIES:
                query = BAD_QUERIES[self.fault](x)
            if step == 2 and self.fault == "raises":
                raise KeyError("step")
            yield query
        return x[..., :-1] if self.fault == "shape" else x


@dataclass(frozen=True)
class Asks(SteppedAttack):
    """Asks about constant images at its third step."""

    value: float

    def begin(self, batch, *, budget, generators):
        for step in range(4):
            yield Query(torch.full_like(batch.x, self.value) if step == 2 else batch.x)
        return batch.x


BAD_QUERIES = {
    "query shape": lambda x: Query(x[..., :-1]),
    "query size": lambda x: Query(torch.cat([x, x])),
    "query dtype": lambda x: Query(x.double()),
    "query type": lambda x: x,
    "query of nothing": lambda x: None,
    "query without images": lambda x: Query(None),
}


def only_fails(attacks, alone, limit=None):
    """The message of the one cell that is not sound, after a comparison of the others' rows."""
    rows, failures = run(SOUND | attacks, limit=limit)
    assert {failure.cell for failure in failures} == set(attacks)
    assert {key: row for key, row in rows.items() if key[0] in SOUND} == alone
    (message,) = {failure.message for failure in failures}
    assert "\n" not in message
    return message


@pytest.mark.parametrize(("fault", "message"), [("raises", "third"), ("exits", "3"), ("graph", "grad")])
def test_a_loss_that_raises_fails_its_cell_alone(alone, fault, message):
    loss = Misused(fault)
    assert message in only_fails({"x": BIM(loss=loss, steps=4)}, alone)


@dataclass(frozen=True)
class Weighted:
    """A loss with a tensor, of which two cannot be compared."""

    weights: torch.Tensor

    def __call__(self, logits, y, valid, task):
        return self.weights.sum() * losses.bce(logits, y, valid, task)


def test_losses_that_cannot_be_compared_run_together():
    attacks = {f"x{i}": BIM(loss=Weighted(torch.full((2,), i - 1.5)), steps=3) for i in range(3)}
    found, failures = run(attacks, n=3)
    assert failures == []
    for name, attack in attacks.items():
        assert run({name: attack}, n=3)[0] == {key: row for key, row in found.items() if key[0] == name}


@pytest.mark.parametrize("fault", ["labels", "valid", "logits"])
@pytest.mark.parametrize("role", ["loss", "keep_by"])
def test_a_loss_that_writes_into_its_arguments_changes_no_other_cell(alone, fault, role):
    given = {"loss": losses.dice} | {role: Misused(fault)}
    rows, _ = run(SOUND | {"x": BIM(steps=4, keep="best", **given)})
    assert {key: row for key, row in rows.items() if key[0] in SOUND} == alone


@pytest.mark.parametrize(
    ("fault", "message"),
    [("begin", "no start"), ("raises", "step"), ("shape", "(1, 2, 12, 11)"), *((name, "quer") for name in BAD_QUERIES)],
)
def test_an_attack_that_breaks_fails_its_cell_alone(alone, fault, message):
    assert message in only_fails({"x": Broken(fault)}, alone)


class Picky(Net):
    """A network that refuses images far below 0."""

    def forward(self, x):
        if bool((x < -5).any()):
            raise ValueError("negative image")
        return Net.forward(self, x)


def test_an_image_that_the_model_refuses_fails_its_cell_alone(alone):
    rows, failures = run(SOUND | {"x": Asks(-9.0)}, net=Picky())
    assert {(failure.cell, failure.message) for failure in failures} == {("x", "ValueError: negative image")}
    assert rows == alone


def test_an_attack_that_never_ends_is_stopped_at_its_limit(alone):
    message = only_fails({"x": Broken("endless")}, alone, limit=30)
    assert "at most 30 forwards per image" in message


def test_a_limit_that_is_not_reached_changes_nothing(alone):
    rows, failures = run({"bim": SOUND["bim"]}, limit=4)
    assert failures == []
    assert rows == {key: row for key, row in alone.items() if key[0] == "bim"}


@pytest.mark.parametrize("keep", ["last", "best"])
@pytest.mark.parametrize("name", ["pgd", "apgd"])
def test_a_gradient_that_vanishes_once_all_is_wrong_raises_no_flag(name, keep):
    attack = {"pgd": PGD, "apgd": APGD}[name](loss="balanced_ce", steps=6, keep=keep)
    rows, failures = run({"x": attack}, n=3, net=Scale(), eps=0.9, right=True)
    assert failures == []
    assert {(*row["tp"], *row["flags"]) for row in rows.values()} == {(0, 0, 0)}


def test_iterates_outside_of_the_ball_are_no_lost_success():
    """The first balls of the schedule are wider than the budget, so their iterates are more harmful."""
    for schedule in (None, "shrinking"):
        attack = PGD(loss="dice", steps=20, radius_schedule=schedule)
        rows, failures = run({"x": attack}, n=3, net=Scale(), eps=0.1)
        assert failures == []
        assert not any("silent_success" in row["flags"] for row in rows.values())


@pytest.mark.slow
def test_batches_are_full_on_36_images_and_24_cells():
    fill, attacks = Fill(), {}
    for i in range(4):
        attacks |= {
            f"bim{i}": BIM(loss=losses.dice, steps=2 + i),
            f"pgd{i}": PGD(loss=losses.bce, steps=3 + i),
            f"best{i}": PGD(loss=losses.dice, steps=2 + i, keep="best"),
            f"apgd{i}": APGD(loss=losses.balanced_ce, steps=4 + i, keep_by="hard_dice"),
            f"mifgsm{i}": MIFGSM(loss=losses.dice, steps=5 + i),
            f"square{i}": Square(queries=6 + i),
        }
    assert len(attacks) == 24
    rows, failures = run(attacks, n=36, fill=fill)
    assert failures == []
    assert len(rows) == 36 * 24
    assert fill.share >= 0.95, fill
    queries = sum(row["forwards"] + 1 for row in rows.values())
    assert fill.used == queries, "one more forward scores each result"


def run_chain(attacks: dict[str, Any], net, *, eps: tuple[float, ...], n: int = 3):
    """Rows and failures of a battery: each attack at its radius, with skipping and warm starts."""
    cells = tuple(
        replace(make_cell(name, radius), battery="b", member=i, skip_finished=True, warm_start=True)
        for i, (name, radius) in enumerate(zip(attacks, eps, strict=True))
    )
    unit = Unit("m", tuple(range(n)), cells)
    rows, failures = run_unit(unit, net, make_data(n), Conditions(seed=0, batch=8), attacks=attacks)
    return {(row["cell"], row["image"]): row for row in rows}, failures


@dataclass(frozen=True)
class Shifts(SteppedAttack):
    """Moves all values by a share of eps; raises on one image."""

    share: float = 1.0
    refuses: str = ""

    def begin(self, batch, *, budget, generators):
        for _ in range(2 if batch.images[0] == "i0" else 5):
            yield Query(batch.x)
        if batch.images[0] == self.refuses:
            raise ValueError("refused")
        return (batch.x + self.share * budget.eps).clamp(0, 1)


class Nothing(Net):
    """Finds no class, with a gradient."""

    def forward(self, x):
        return Net.forward(self, x) - 99


class BreaksWhenShifted(Net):
    """NaN for the images of `Shifts(0.9)` at 4/255, known by their first value."""

    def forward(self, x):
        first = torch.stack([make_data(3).batch([i]).x[0, 0, 0, 0] for i in range(3)])
        shifted = (x[:, :1, 0, 0] == (first + 0.9 * 4 / 255).clamp(0, 1)).any(1)
        return torch.where(shifted.view(-1, 1, 1, 1), torch.nan, Net.forward(self, x))


class Scale(Net):
    """Finds all classes where the first channel of an image is large."""

    def forward(self, x):
        return 9 * (x[:, :1] - 0.5).repeat(1, 3, *[1] * (x.dim() - 2))


@pytest.mark.parametrize("refuses", ["i0", "i2"])
def test_an_image_that_an_attack_refuses_changes_no_other_image(refuses):
    """The first image is ahead of the others, so the error comes before or after their attacks begin."""
    lost = {"weak": Shifts(0.01), "x": Shifts(-1.0), "one": SOUND["bim"]}
    sound, _ = run_chain(lost, Scale(), eps=(0.9,) * 3)
    rows, failures = run_chain(lost | {"x": Shifts(-1.0, refuses)}, Scale(), eps=(0.9,) * 3)
    assert [failure.message for failure in failures] == ["ValueError: refused"]
    for image in {"i0", "i1", "i2"} - {refuses}:
        assert rows["one", image] == sound["one", image]
        assert rows["one", image]["flags"] == ["skipped"]
    assert rows["one", refuses]["forwards"] == 4


def test_what_is_kept_of_an_attack_beyond_its_budget_is_the_image_that_was_scored():
    attacks = {"x": Shifts(-2.0), "one": Shifts(0.5)}
    rows, failures = run_chain(attacks, Scale(), eps=(20 / 255, 40 / 255))
    assert failures == []
    assert all(rows["x", image]["flags"] == ["over_budget"] for _, image in rows)
    kept = {image: row for (cell, image), row in rows.items() if cell == "one" and "kept_smaller" in row["flags"]}
    assert kept
    for image, row in kept.items():
        assert (row["linf"], row["tp"]) == (rows["x", image]["linf"], rows["x", image]["tp"])


def test_a_result_with_non_finite_logits_ends_no_search():
    attacks = {"x": Shifts(0.9), "one": SOUND["apgd"], "two": SOUND["bim"]}
    rows, failures = run_chain(attacks, BreaksWhenShifted(), eps=(4 / 255, 4 / 255, 5 / 255))
    assert failures == []
    for (cell, _), row in rows.items():
        assert ("non_finite_logits" in row["flags"]) == (cell == "x")
        assert not {"skipped", "kept_smaller"} & {*row["flags"]} or row["flags"] == ["kept_smaller"]
        assert row["forwards"] > 0


def test_the_clean_image_ends_no_search():
    """Of images that are lost without an attack."""
    rows, failures = run_chain({"x": Shifts(0.0), "one": SOUND["mifgsm"]}, Nothing(), eps=(4 / 255, 4 / 255))
    assert failures == []
    assert {cell: row["flags"] for (cell, _), row in rows.items()}["x"] == ["unchanged"]
    assert all("skipped" not in row["flags"] for row in rows.values())
