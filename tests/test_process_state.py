# ruff: noqa: NPY002 - the legacy generators are the ones that are global
"""What code leaves changed in the process is found, restored and named, and costs no row but its own."""

from __future__ import annotations

import builtins
import gc
import locale
import os
import random
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_runner import CLEAN, SETTING, cell, tiny_data
from torch.nn import functional

from advseg_bench import evaluate
from advseg_bench.attacks.gradient import FGSM
from advseg_bench.attacks.pgd import PGD
from advseg_bench.attacks.stepping import Query, SteppedAttack
from advseg_bench.errors import TaintedError
from advseg_bench.instruments import process_state
from advseg_bench.instruments.process_state import ENTRIES, THREADS, compare, snapshot, watched
from advseg_bench.instruments.process_torch import PATCHED
from advseg_bench.losses import bce
from advseg_bench.models.build import build_model
from advseg_bench.registry.loading import load_attack
from advseg_bench.registry.origin import is_foreign
from advseg_bench.report.integrity import FLAGS, explain_flag
from advseg_bench.running import runner
from advseg_bench.running.supply import Supply
from advseg_bench.running.work import Unit
from advseg_bench.suite.cells import Arm
from advseg_bench.suite.specs import ModelSpec

kept: list[Any] = []
"""Objects that an attack keeps alive."""


def keep(thing: Any) -> None:
    thing.__enter__()
    kept.append(thing)


def replaced(owner: Any, name: str) -> None:
    setattr(owner, name, lambda *args, **kwargs: 0)


def leave_folder() -> None:
    """Go to a folder that is deleted then."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)


def use_other_locale() -> None:
    locale.setlocale(locale.LC_ALL, "C" if locale.setlocale(locale.LC_ALL) != "C" else "C.UTF-8")


def redirect() -> None:
    number = os.open(os.devnull, os.O_WRONLY)
    os.dup2(number, 1)
    os.close(number)


def close_pipe() -> None:
    """Close everything from the first pipe on, which `Table` has opened."""
    os.closerange(min(PIPE), max(PIPE) + 1)


def set_warning_only() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)


def fill_memory() -> None:
    torch.utils.deterministic.fill_uninitialized_memory = False


def register_hook() -> None:
    torch.nn.modules.module.register_module_forward_hook(
        lambda module, x, y: y * 2 if isinstance(y, torch.Tensor) else y
    )


def mask_denormals() -> None:
    torch.set_flush_denormal(True)


def arm_timer() -> None:
    signal.setitimer(signal.ITIMER_REAL, 100)


def reseed() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)


def handle_signals() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def silence_numpy() -> None:
    np.seterr(all="ignore")


def fail_after_change() -> None:
    torch.set_num_threads(2)
    raise ZeroDivisionError


PIPE: list[int] = []

STATES: dict[str, tuple[Callable[[], object], str]] = {
    "dtype": (lambda: torch.set_default_dtype(torch.float64), "default dtype"),
    "device": (lambda: torch.set_default_device("meta"), "default device"),
    "device context": (lambda: keep(torch.device("meta")), "tensor modes"),
    "autocast": (lambda: keep(torch.autocast("cpu", torch.bfloat16)), "autocast"),
    "autocast cache": (lambda: torch.set_autocast_cache_enabled(False), "autocast"),
    "gradient mode": (lambda: torch.set_grad_enabled(False), "gradient mode"),
    "inference mode": (
        lambda: keep(torch.inference_mode()),
        "inference mode, gradient mode, multithreaded backward",
    ),
    "anomaly": (lambda: torch.autograd.set_detect_anomaly(True), "anomaly detection"),
    "deterministic": (lambda: torch.use_deterministic_algorithms(True), "deterministic algorithms"),
    "warn only": (set_warning_only, "deterministic algorithms"),
    "fill memory": (fill_memory, "deterministic algorithms"),
    "one backward thread": (lambda: torch.autograd.set_multithreading_enabled(False), "multithreaded backward"),
    "threads": (lambda: torch.set_num_threads(2), "torch threads"),
    "matmul precision": (lambda: torch.set_float32_matmul_precision("medium"), "float32 precision"),
    "TF32": (lambda: setattr(torch.backends.cudnn, "allow_tf32", False), "float32 precision"),
    "oneDNN": (lambda: setattr(torch.backends.mkldnn, "enabled", False), "oneDNN"),
    "cuDNN": (lambda: setattr(torch.backends.cudnn, "benchmark", True), "cuDNN"),
    "half sums": (
        lambda: setattr(torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", False),
        "cuBLAS",
    ),
    "attention": (lambda: torch.backends.cuda.enable_flash_sdp(False), "attention kernels"),
    "fast path": (lambda: torch.backends.mha.set_fastpath_enabled(False), "attention kernels"),
    "denormals": (mask_denormals, "denormal numbers"),
    "module hook": (register_hook, "hooks of all modules"),
    "folder": (lambda: os.chdir("/"), "working directory"),
    "deleted folder": (leave_folder, "working directory"),
    "environment": (lambda: os.environ.update(OMP_NUM_THREADS="7"), "environment variables"),
    "umask": (lambda: os.umask(0o123), "umask"),
    "signals": (handle_signals, "signal handlers"),
    "signal mask": (lambda: signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}), "signal mask"),
    "alarm": (arm_timer, "timers"),
    "warnings": (lambda: warnings.simplefilter("always"), "warning filters"),
    "showwarning": (lambda: replaced(warnings, "showwarning"), "warning filters"),
    "NumPy errors": (silence_numpy, "NumPy error handling"),
    "stdout": (lambda: setattr(sys, "stdout", sys.stderr), "standard streams"),
    "closed stdout": (lambda: sys.stdout.close(), "file descriptors, standard streams"),
    "descriptor 1": (redirect, "file descriptors"),
    "descriptors": (close_pipe, "file descriptors"),
    "path": (lambda: sys.path.insert(0, "/"), "sys.path"),
    "excepthook": (lambda: replaced(sys, "excepthook"), "exception hooks"),
    "tracing": (lambda: sys.setprofile(lambda *args: None), "tracing"),
    "recursion": (lambda: sys.setrecursionlimit(5000), "recursion limit"),
    "switching": (lambda: sys.setswitchinterval(0.5), "switch interval"),
    "collector": (gc.disable, "garbage collection"),
    "locale": (use_other_locale, "locale"),
    "Tensor.sign": (lambda: replaced(torch.Tensor, "sign"), "functions of torch.Tensor"),
    "torch.where": (lambda: replaced(torch, "where"), "functions of torch"),
    "relu": (lambda: replaced(functional, "relu"), "functions of torch.nn.functional"),
    "Module": (lambda: replaced(torch.nn.Module, "__call__"), "functions of torch.nn.Module"),
    "np.asarray": (lambda: replaced(np, "asarray"), "functions of numpy"),
    "sum": (lambda: replaced(builtins, "sum"), "functions of builtins"),
}
"""A change of the process -> what makes it, and the names of what it changes."""

UNTESTED = {"torch interop threads", "CUDA device", "random numbers of devices"}
"""Set once in a process, or only with a GPU."""


@contextmanager
def spare_streams() -> Iterator[None]:
    """A standard output that may be closed, instead of the one of pytest, and a pipe."""
    PIPE[:] = os.pipe()
    with pytest.MonkeyPatch.context() as patch, Path(os.devnull).open("w") as stream:
        patch.setattr(sys, "stdout", stream)
        yield
    for number in PIPE:
        os.close(number)
    kept.clear()


def test_every_entry_has_a_change_in_the_table():
    names = {entry.name for entry in ENTRIES}
    assert len(names) == len(ENTRIES)
    generic = {f"functions of {name}" for name in PATCHED}
    assert {
        name for _, found in STATES.values() for name in found.split(", ")
    } | generic | UNTESTED | process_state.RANDOM >= names


@pytest.mark.parametrize("change", STATES)
def test_a_change_is_named_and_restored(change):
    act, names = STATES[change]
    with spare_streams():
        before = snapshot()
        with watched() as changes:
            act()
        left = compare(before, snapshot())
        print("the stream works", flush=True)
        assert [os.fstat(number) for number in PIPE]
    assert changes.names == names.split(", ")
    assert left == []


@pytest.mark.parametrize("owner", PATCHED)
def test_a_patched_function_is_restored(owner):
    entry = next(entry for entry in ENTRIES if entry.name == f"functions of {owner}")
    before = entry.read()
    name = next(name for name, value in before.items() if callable(value) and not name.startswith("_"))
    with watched() as changes:
        replaced(before.owner, name)
    assert changes.names == [entry.name]
    assert vars(before.owner)[name] is before[name]


def test_random_states_are_restored_and_not_named():
    before = snapshot()
    with watched(seed=3) as changes:
        first = torch.rand(2), np.random.rand(), random.random()
    with watched(seed=3):
        assert torch.equal(first[0], torch.rand(2))
        assert first[1:] == (np.random.rand(), random.random())
    assert (changes.names, len(changes.random)) == ([], 3)
    assert compare(before, snapshot()) == []
    with watched(random_too=False):
        torch.rand(1)
    assert compare(before, snapshot()) == ["random numbers of torch"]
    process_state.restore(before)


def test_the_process_is_restored_after_an_error():
    with pytest.raises(ZeroDivisionError), watched() as changes:
        fail_after_change()
    assert torch.get_num_threads() == 1
    assert changes.names == ["torch threads"]


def test_what_libraries_set_on_import_is_left_to_them(monkeypatch):
    monkeypatch.setenv("OF_A_LIBRARY", "0")
    with watched() as changes:
        monkeypatch.setitem(sys.modules, "a_new_module", os)
        os.environ["OF_A_LIBRARY"] = "1"
        torch.set_num_threads(2)
    assert changes.names == ["torch threads"]
    assert os.environ["OF_A_LIBRARY"] == "1"


def test_a_thread_that_ends_is_waited_for(monkeypatch):
    monkeypatch.setattr(process_state, "WAIT_S", 0.2)
    done = []

    def work() -> None:
        time.sleep(0.15)
        done.append(os.umask(0o123))

    with watched() as changes:
        threading.Thread(target=work).start()
    assert done
    assert changes.names == [THREADS, "umask"]


def test_a_joined_thread_is_no_change():
    with watched() as changes:
        for _ in range(20):
            thread = threading.Thread(target=sum, args=((1, 2),))
            thread.start()
            thread.join()
    assert changes.names == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_does_not_end_is_ended_or_taints_the_process(monkeypatch):
    monkeypatch.setattr(process_state, "WAIT_S", 0.1)
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            time.sleep(0.001)

    def insist() -> None:
        while not over.is_set():
            try:
                run()
            except SystemExit:
                continue

    with watched() as changes:
        threading.Thread(target=run).start()
    assert changes.names == [THREADS]
    stubborn = threading.Thread(target=insist)
    with pytest.raises(TaintedError, match=r"^process: expected .* got a thread .*\.$"), watched():
        stubborn.start()
    over.set()
    stubborn.join()


def test_what_cannot_be_restored_taints_the_process(monkeypatch):
    held = [0]
    entry = process_state.Entry("the held number", lambda: held[0], None)
    monkeypatch.setattr(process_state, "ENTRIES", (entry,))
    with pytest.raises(TaintedError, match="the held number"), watched():
        held[0] = 1


# In a run: one bad cell among others.


@dataclass(frozen=True)
class Bad:
    """Changes the process, and returns the image moved within its budget."""

    change: Callable[..., object]

    def __call__(self, model, batch, *, budget, generators):
        x = (batch.x + budget.eps / 2).clamp(0, 1)
        self.change(model, x)
        return x


class BadSteps(SteppedAttack):
    """A stepped attack that changes the process, which is run together with others."""

    def begin(self, batch, *, budget, generators):
        torch.set_num_threads(2)
        answer = yield Query(batch.x, climb=lambda logits, batch: bce(logits, batch.y, batch.valid, batch.task))
        torch.rand(1)
        return (batch.x + budget.eps * answer.gradient.sign()).clamp(0, 1)


def bad_loss(logits, y, valid, task):
    torch.backends.mkldnn.enabled = False
    return bce(logits, y, valid, task)


def change_model_later(model, x) -> None:
    def work() -> None:
        time.sleep(0.02)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.data.mul_(1.5)

    threading.Thread(target=work).start()


def change_result_later(model, x) -> None:
    threading.Thread(target=lambda: (time.sleep(0.01), x.add_(1.0))).start()


IN_RUNS: dict[str, tuple[Any, set[str]]] = {
    **{name: (Bad(lambda model, x, act=act: act()), set(names.split(", "))) for name, (act, names) in STATES.items()},
    "random numbers": (Bad(lambda model, x: (torch.rand(3), np.random.rand(), random.random())), set()),
    "reseeded": (Bad(lambda model, x: reseed()), set()),
    "thread on the model": (Bad(change_model_later), {THREADS, "model_changed"}),
    "thread on the result": (Bad(change_result_later), {THREADS}),
    "stepped": (BadSteps(), {"torch threads"}),
    "loss of fgsm": (FGSM(loss=bad_loss), {"oneDNN"}),
    "loss of pgd": (PGD(loss=bad_loss, steps=2), {"oneDNN"}),
}
SPEC = ModelSpec(name="m", architecture="monai.BasicUNet", settings={"features": [8] * 6})
GOOD = (CLEAN, cell("fgsm", "bce"), cell("random_sign"), cell("pgd", "dice", settings='{"steps": 3}'))


@pytest.fixture(scope="module")
def scene():
    data = tiny_data(4, side=32)
    model = build_model(SPEC, channels=2, task=data.task, size=32, seed=0)
    attacks = {c.id: load_attack(c.arm.attack, c.arm.options, c.arm.loss, data.task) for c in GOOD[1:]}

    def run(bad=None):
        cells = list(GOOD) if bad is None else [*GOOD[:2], cell("bad"), *GOOD[2:]]
        given = attacks if bad is None else attacks | {cell("bad").id: bad}
        return runner.run_unit(Unit("m", (0, 1, 2, 3), tuple(cells)), model, data, SETTING, attacks=given)

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    rows, _ = run()
    torch.set_num_threads(before)
    return run, rows


@pytest.mark.parametrize("change", IN_RUNS)
def test_a_cell_that_changes_the_process_touches_no_other_row(change, scene):
    run, reference = scene
    bad, states = IN_RUNS[change]
    with spare_streams():
        before = snapshot()
        rows, failures = run(bad)
        left = compare(before, snapshot())
    assert not failures
    assert [row for row in rows if row["attack"] != "bad"] == reference
    named = states - {"model_changed"}
    expected = {f"process_changed:{name}" for name in named} | (states & {"model_changed"})
    expected |= {"process_changed"} if named else set()
    assert [set(row["flags"]) for row in rows if row["attack"] == "bad"] == [expected] * 4
    assert left == []
    assert run()[0] == reference
    assert all(flag in FLAGS or flag.partition(":")[2] in explain_flag(flag) for flag in expected)


def test_attacks_that_draw_global_numbers_give_the_same_rows_in_any_company(scene):
    run, _ = scene
    noise = Bad(lambda model, x: x.add_(0.01 * torch.rand_like(x)))
    first = [row for row in run(noise)[0] if row["attack"] == "bad"]
    torch_state = torch.get_rng_state()
    torch.rand(5)
    assert [row for row in run(noise)[0] if row["attack"] == "bad"] == first
    torch.set_rng_state(torch_state)
    assert len({row["l2"] for row in first}) > 1


class Restless(torch.nn.Module):
    """A network whose forward changes the process."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x):
        torch.set_num_threads(2)
        return self.net(x)


def test_a_model_that_changes_the_process_is_named_and_no_attack_is():
    x = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=()):
        calm, restless = torch.nn.Conv2d(1, 1, 3, padding=1), Restless()
    restless.net.load_state_dict(calm.state_dict())
    attacks = {"fgsm": FGSM(loss="bce"), "bad": Bad(lambda model, x: silence_numpy())}
    models = {"restless": restless, "calm": calm}
    run = evaluate(models, [(x, x > 0.5)], attacks, task="binary")
    assert torch.get_num_threads() == 1
    flags = {(r["model"], r["attack"]): set(r["flags"]) for r in run.rows.iter_rows(named=True)}
    own = {"process_changed", "process_changed:torch threads"}
    assert flags["restless", "none"] == flags["restless", "fgsm"] == own
    assert flags["restless", "bad"] == own | {"process_changed:NumPy error handling"}
    assert flags["calm", "none"] == flags["calm", "fgsm"] == set()
    alone = evaluate({"calm": calm}, [(x, x > 0.5)], {"fgsm": FGSM(loss="bce")}, task="binary")
    kept = run.rows.filter((run.rows["model"] == "calm") & (run.rows["attack"] != "bad"))
    assert kept.drop("cell").equals(alone.rows.drop("cell"))


class Builds:
    """An attack whose constructor changes the process, and the module of which did so when it was imported."""

    imported = False

    def __init__(self) -> None:
        if not Builds.imported:
            Builds.imported = True
            torch.use_deterministic_algorithms(True)
        torch.set_num_threads(2)

    def __call__(self, model, batch, *, budget, generators):
        return (batch.x + budget.eps / 2).clamp(0, 1)


def test_building_an_attack_leaves_no_change(scene):
    data = tiny_data(4, side=32)
    model = build_model(SPEC, channels=2, task=data.task, size=32, seed=0)
    bad = replace(cell("bad"), arm=Arm(f"{__name__}:Builds", "", "{}", "linf"))
    unit = Unit("m", (0, 1, 2, 3), (*GOOD, bad))
    rows, failures = runner.run_unit(unit, model, data, SETTING, supply=Supply())
    assert not failures
    assert rows[: len(scene[1])] == scene[1]
    flags = ["process_changed", "process_changed:torch threads"]
    assert [row["flags"] for row in rows[len(scene[1]) :]] == [flags] * 4
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_does_not_end_is_an_error_of_the_unit(scene, monkeypatch):
    monkeypatch.setattr(process_state, "WAIT_S", 0.1)
    gate = threading.Lock()
    gate.acquire()
    threads = []

    def start(model, x) -> None:
        threads.append(threading.Thread(target=gate.acquire))  # no Python runs in it, so that nothing can end it
        threads[-1].start()

    with pytest.raises(TaintedError, match="thread"):
        scene[0](Bad(start))
    gate.release()
    threads[0].join()


def test_code_of_others_is_told_from_the_packages():
    def loss(logits, y, valid, task):
        return bce(logits, y, valid, task)

    with torch.random.fork_rng(devices=()):
        net, restless = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1)), Restless()
    ours = [FGSM(loss="dice"), PGD(loss="bce"), load_attack("random_sign", {}, "", tiny_data().task), net]
    others = [FGSM(loss=loss), Bad(leave_folder), torch.nn.Sequential(restless), BadSteps(), lambda x: x]
    assert [is_foreign(each) for each in ours] == [False] * 4
    assert [is_foreign(each) for each in others] == [True] * 5
