"""A step never asks the device for a value: what does is counted, and on a device without values it would fail."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from strategies import CHANNELS, make_batch, make_generators, make_task
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from advseg_bench import losses
from advseg_bench.attacks import BIM, MIFGSM, PGD
from advseg_bench.attacks.gradient import FGSM
from advseg_bench.attacks.released import ReleasedFGSM
from advseg_bench.instruments.counter import Counter
from advseg_bench.losses.counted import with_any_counts
from advseg_bench.models.build import build_model
from advseg_bench.registry import catalogue
from advseg_bench.suite.specs import ModelSpec
from advseg_bench.types import Budget, Task

READERS = {
    "_local_scalar_dense", "equal", "is_nonzero", "nonzero", "nonzero_numpy", "masked_select", "_unique", "_unique2",
    "unique_dim", "unique_consecutive", "bincount", "repeat_interleave", "allclose",
}  # fmt: skip
"""Operations whose result, or the shape of it, the host waits for."""
METHODS = {
    "item",
    "tolist",
    "cpu",
    "numpy",
    "__array__",
    "__bool__",
    "__float__",
    "__int__",
    "__index__",
    "__contains__",
}
"""Methods that read a value; on a CPU some of them do nothing that an operation would show."""


class HostReads:
    """Names what reads a value of a tensor, or copies one to the host, while it is open."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def __enter__(self) -> HostReads:
        self.modes = (_Methods(self.found), _Operations(self.found))
        for mode in self.modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self.modes):
            mode.__exit__(*error)


class _Methods(TorchFunctionMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        places = [
            str(value) for value in (*args[1:], *(kwargs or {}).values()) if isinstance(value, str | torch.device)
        ]
        if name in METHODS or (name == "to" and "cpu" in places):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = name.startswith("index") and any(
            isinstance(each, Tensor) and each.dtype in (torch.bool, torch.uint8)
            for group in args[1:2]
            if isinstance(group, list | tuple)
            for each in group
        )
        if name in READERS or masks:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: 1 if x.sum() > 0 else 0,
        lambda x: float(x.sum()),
        lambda x: int(x.sum()),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.to("cpu"),
        lambda x: x.to(torch.device("cpu")),
        lambda x: x.to(device="cpu"),
        lambda x: x.numpy(),
        lambda x: x[x > 0],
        lambda x: x.__setitem__(x > 0, torch.ones(36)),
        lambda x: x.nonzero(),
        lambda x: torch.where(x > 0),
        lambda x: x.masked_select(x > 0),
        lambda x: torch.equal(x, x),
        lambda x: x.unique(),
        lambda x: 0.5 in x,
        lambda x: [0, 1][(x[0, 0, 0, 0] > 9).long()],
    ],
)
def test_every_way_to_read_a_value_is_seen(read):
    with HostReads() as reads:
        read(torch.full((2, 2, 3, 3), 0.25))
    assert reads.found


def test_what_reads_no_value_is_not_counted():
    x = torch.full((2, 2, 3, 3), 0.25, requires_grad=True)
    with HostReads() as reads:
        y = torch.where(x > 0, x, 0).clamp(0, 1)[:, [0, 1]].double().to(x)
        torch.autograd.grad(y.norm(dim=1).sum(), x)
        len(y)
    assert reads.found == []


class Net(nn.Module):
    """Two layers, whose weights may lie anywhere."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.net = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.Tanh(), nn.Conv2d(5, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def load_ready(name: str, kind: str) -> losses.Loss:
    """A loss that can be called: one that needs class counts gets equal ones."""
    return with_any_counts(getattr(losses, name), make_task(kind))


ATTACKS = [
    ReleasedFGSM(loss=losses.dice, form="blend", channels="tied"),
    BIM(loss=losses.dice, steps=4),
    BIM(loss=losses.dice, steps=4, keep="best", targeted=True),
    PGD(loss=losses.dice, steps=4),
    *(MIFGSM(loss=losses.dice, steps=4, momentum_norm=norm) for norm in ("l1", "l2", "mean", "sign", "none")),
    MIFGSM(loss=losses.dice, steps=4, keep="best", label="empty"),
]
CASES = [
    pytest.param(attack, kind, norm, id=f"{type(attack).__name__}-{i}-{kind}-{norm}")
    for i, attack in enumerate(ATTACKS)
    for kind in ("binary", "multiclass")
    for norm in ("linf", "l2")
    if norm == "linf" or not isinstance(attack, FGSM)
] + [
    pytest.param(BIM(loss=load_ready(name, kind), steps=3), kind, "linf", id=f"{name}-{kind}")
    for name, entry in catalogue.LOSSES.items()
    for kind in entry.kinds
]


@pytest.mark.parametrize(("attack", "kind", "norm"), CASES)
def test_no_step_waits_for_a_value(attack, kind, norm):
    batch, _ = make_batch(kind, void=0.2)
    model = Net(CHANNELS[kind])
    with HostReads() as reads, Counter(model).count(3) as tally:
        attack(model, batch, budget=Budget(norm, 0.1), generators=make_generators(3))
    assert reads.found == []
    assert tally.per_image() == [(attack.traits.forwards, attack.traits.backwards)] * 3


@pytest.mark.parametrize(("attack", "kind", "norm"), CASES)
def test_an_attack_runs_where_there_are_no_values_to_read(attack, kind, norm):
    batch, _ = make_batch(kind, void=0.2)
    away = replace(batch, x=batch.x.to("meta"), y=batch.y.to("meta"), valid=batch.valid.to("meta"))
    found = attack(Net(CHANNELS[kind]).to("meta"), away, budget=Budget(norm, 0.1), generators=make_generators(3))
    assert found.is_meta
    assert found.shape == batch.x.shape


def test_a_network_with_its_padding_and_normalisation_reads_none_either():
    spec = ModelSpec(name="m", architecture="monai.BasicUNet", settings={"features": [8] * 6})
    batch, _ = make_batch("binary", n=2, space=(36, 40))
    model = build_model(spec, channels=2, task=Task("binary", ("c",)), size=32, seed=0).eval().requires_grad_(False)
    with HostReads() as reads:
        PGD(loss=losses.dice_focal, steps=3)(model, batch, budget=Budget("linf", 0.1), generators=make_generators(2))
    assert reads.found == []
