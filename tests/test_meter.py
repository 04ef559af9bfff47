"""The meter against closed forms, simulations and clocks that are known."""

from __future__ import annotations

import gc
from functools import partial

import numpy as np
import pytest
import torch
from clocks import SteadyMachine, Time
from scipy.stats import binom

from advseg_bench.errors import SpecError
from advseg_bench.instruments import meter
from advseg_bench.instruments.meter import (
    Samples,
    default_device,
    matrix_peak,
    measure,
    median_interval,
    peak_bytes,
    ratio,
)

MB = 2**20
CPU = torch.device("cpu")


def samples(seconds: object) -> Samples:
    return Samples(tuple(float(s) for s in seconds), None, warmups=3, settled=True, own_seconds=0.0)


def allocate(*megabytes: int, keep: bool = False) -> None:
    kept = []
    for size in megabytes:
        kept.append(torch.empty(size * MB // 4))
        if not keep:
            kept.clear()


@pytest.mark.parametrize(
    ("megabytes", "keep", "peak"),
    [((8,), False, 8), ((8, 3), False, 8), ((3, 8), False, 8), ((3, 8, 2), True, 13), ((), False, 0)],
)
def test_peak_memory_is_that_of_the_tensors_alive_at_a_time(megabytes, keep, peak):
    assert peak_bytes(partial(allocate, *megabytes, keep=keep), CPU) == peak * MB


def test_peak_memory_counts_what_is_new():
    held = [torch.empty(4 * MB)]
    assert peak_bytes(partial(allocate, 10), CPU) == 10 * MB, "what is held already does not count"

    def give_and_take() -> None:
        held.clear()
        allocate(10)

    assert peak_bytes(give_and_take, CPU) == 10 * MB, "and its release makes up for nothing"


def test_the_graph_of_a_gradient_is_in_the_peak():
    x = torch.ones(MB // 4, requires_grad=True)

    def differentiate() -> None:
        torch.autograd.grad(x.exp().exp().sum(), x)

    # Each exp keeps its result, 1 MB; the gradient of the sum is a view of one number; that of each exp is 1 MB.
    peak = peak_bytes(differentiate, CPU)
    assert 3 * MB <= peak <= 3 * MB + 4096


def test_a_work_takes_as_long_as_it_takes_and_its_double_twice():
    now = Time()
    works = {"one": partial(now.pass_by, 0.01), "two": partial(now.pass_by, 0.02)}
    found = measure(works, device=CPU, rounds=9, now=now)
    assert list(found) == ["one", "two"]
    assert found["one"].seconds == pytest.approx([0.01] * 9)
    estimate, low, high = ratio(found["two"], found["one"])
    assert low <= estimate <= high
    assert estimate == pytest.approx(2)
    assert found["one"].device_seconds is None
    assert found["one"].peak_bytes is None
    assert found["one"].warmups >= meter.SETTLED_RUNS + 1


def test_what_reading_the_clock_costs_is_deducted():
    now = Time()

    def read() -> float:
        now.pass_by(0.25)
        return now()

    found = measure({"nothing": lambda: None, "one": partial(now.pass_by, 1)}, device=CPU, rounds=5, now=read)
    assert found["nothing"].own_seconds == 0.25
    assert found["nothing"].seconds == (0.0,) * 5
    assert found["one"].seconds == (1.0,) * 5


def test_rounds_are_interleaved_in_changing_orders_that_the_seed_decides():
    def orders(seed: int) -> list[tuple[str, ...]]:
        ran: list[str] = []
        works = {name: partial(ran.append, name) for name in "abc"}
        found = measure(works, device=CPU, rounds=20, seed=seed)
        warmups = sum(samples.warmups for samples in found.values())
        rounds = [tuple(ran[i : i + 3]) for i in range(warmups, len(ran), 3)]
        assert len(rounds) == 20
        return rounds

    first = orders(0)
    assert all(sorted(one) == ["a", "b", "c"] for one in first)
    assert len(set(first)) > 3
    assert first == orders(0)
    assert first != orders(1)


@pytest.mark.parametrize(
    ("durations", "warmups", "settled"),
    [
        ([9.0, 9.0, 4.0, 2.0, 1.0, 1.0, 1.2], 7, True),
        ([0.5**i for i in range(meter.MOST_WARMUPS)], meter.MOST_WARMUPS, False),
    ],
)
def test_warm_up_lasts_until_a_run_is_no_faster(durations, warmups, settled):
    now, left = Time(), iter([*durations, 0.5])
    found = measure({"work": lambda: now.pass_by(next(left))}, device=CPU, rounds=1, now=now)["work"]
    assert (found.warmups, found.settled) == (warmups, settled)
    assert found.seconds == (0.5,)


def test_the_garbage_collector_rests_during_a_run_only():
    seen = []
    measure({"look": lambda: seen.append(gc.isenabled())}, device=CPU, rounds=1)
    assert not any(seen)
    assert gc.isenabled()
    gc.disable()
    try:
        measure({"look": lambda: None}, device=CPU, rounds=1)
        assert not gc.isenabled(), "what was off stays off"
    finally:
        gc.enable()


def test_a_work_that_raises_leaves_the_garbage_collector_on():
    with pytest.raises(ZeroDivisionError):
        measure({"break": lambda: 1 / 0}, device=CPU, rounds=1)
    assert gc.isenabled()


def test_memory_is_measured_on_request():
    found = measure({"two": partial(allocate, 2)}, device=CPU, rounds=1, memory=True)
    assert found["two"].peak_bytes == 2 * MB


@pytest.mark.parametrize("n", [6, 9, 20, 41])
def test_the_interval_of_independent_samples_has_the_ends_that_the_binomial_gives(n):
    values = np.random.default_rng(0).permutation(n)
    while np.corrcoef(values[1:], values[:-1])[0, 1] > 0:  # neighbours that do not resemble each other
        values = np.random.default_rng(int(values[0]) + 1).permutation(values)
    low, high = median_interval(values)
    beyond = int(low)  # the sorted values are 0 .. n - 1
    assert high == n - 1 - beyond
    assert 2 * binom.cdf(beyond, n, 0.5) <= 0.05 < 2 * binom.cdf(beyond + 1, n, 0.5)


def test_too_few_rounds_have_no_interval():
    assert median_interval([1.0, 3.0, 2.0, 4.0, 1.5]) == (-np.inf, np.inf)
    assert samples([1.0, 3.0, 2.0]).interval() == (0.0, np.inf)
    assert ratio(samples([2.0, 4.0]), samples([1.0, 2.0])) == (2.0, 0.0, np.inf)


def correlated(rng: np.random.Generator, shape: tuple[int, int], r: float) -> np.ndarray:
    """Rows of a stationary series whose neighbours correlate by r."""
    series = rng.standard_normal(shape)
    for i in range(1, shape[1]):
        series[:, i] = r * series[:, i - 1] + np.sqrt(1 - r**2) * series[:, i]
    return series


@pytest.mark.parametrize(("r", "least"), [(0.0, 0.945), (0.3, 0.935), (0.6, 0.9)])
@pytest.mark.parametrize("n", [12, 20, 40])
def test_the_median_lies_in_95_of_100_intervals(n, r, least):
    rows = correlated(np.random.default_rng(n), (600, n), r)
    ends = np.array([median_interval(row) for row in rows])
    assert np.mean((ends[:, 0] <= 0) & (ends[:, 1] >= 0)) >= least
    if r == 0:
        assert np.isinf(ends).any(1).mean() < 0.1, "an interval without ends always covers"


@pytest.mark.parametrize("n", [12, 30])
def test_the_true_ratio_lies_in_95_of_100_intervals_on_a_machine_that_drifts(n):
    """Two works in shuffled order on a machine whose speed wanders by 20 %, with outliers that have no variance."""
    rng, true, inside, widths = np.random.default_rng(7), 1.25, 0, []
    for _ in range(600):
        wander = correlated(rng, (1, 2 * n), 0.95)[0]
        log = 0.2 * wander + 0.03 * rng.standard_t(2, 2 * n)
        pairs = rng.permuted(log.reshape(n, 2), axis=1)
        a, b = samples(true * np.exp(pairs[:, 0])), samples(np.exp(pairs[:, 1]))
        estimate, low, high = ratio(a, b)
        assert low <= estimate <= high
        inside += low <= true <= high
        widths.append(high - low)
    assert inside / 600 >= 0.94
    assert np.median(widths) < 0.3, "the drift cancels"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: measure({}, device=CPU, rounds=3), r"meter: expected works and at least one round, got \(0, 3\)"),
        (lambda: measure({"a": gc.isenabled}, device=CPU, rounds=0), r"at least one round, got \(1, 0\)"),
        (lambda: ratio(samples([1]), samples([1, 2])), r"same rounds, got \(1, 2\). Measure both in one call"),
        (lambda: ratio(samples([1]), samples([0])), "longer than an empty function, got 0.0"),
        (lambda: samples([1]).interval(95), "level: expected a number between 0 and 1, got 95"),
    ],
)
def test_mistakes_are_one_line(wrong, message):
    with pytest.raises(SpecError, match=message) as caught:
        wrong()
    assert "\n" not in str(caught.value)


def test_the_matrix_peak_is_the_rate_of_the_machine():
    with SteadyMachine(2e9) as machine:
        assert matrix_peak(CPU, now=machine.now) == pytest.approx(2e9)


def test_the_matrix_peak_is_that_of_a_product_large_enough():
    with SteadyMachine(start_s=0.1) as machine:
        small = 2 * 256**3 / (0.1 + 2 * 256**3 / machine.flops_per_s)
        assert 2 * small < matrix_peak(CPU, now=machine.now) < machine.flops_per_s


def test_the_default_device_is_one_that_works():
    device = default_device()
    assert torch.ones(2, device=device).sum().item() == 2
    meter.synchronize(device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_an_accelerator_events_and_allocator_agree_with_the_clock():
    a = torch.ones(4096, 4096, device="cuda")
    found = measure({"product": lambda: a @ a}, device="cuda", rounds=9, memory=True)["product"]
    assert found.device_seconds is not None
    assert found.peak_bytes == a.nbytes
    assert float(np.median(found.device_seconds)) <= found.median + found.own_seconds
