"""The cache: what is damaged is made again and reported, whoever dies; and a cache that nobody can write to works."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from test_training import SPEC, discs, recipe, same, weights

import advseg_bench as ab
from advseg_bench.cache import lease
from advseg_bench.cache.contents import list_entries, verify
from advseg_bench.cache.digests import seal, unseal
from advseg_bench.cache.lease import hold
from advseg_bench.cache.notices import reported_to
from advseg_bench.cli import main
from advseg_bench.data.uw_madison.make import draw_phantom
from advseg_bench.errors import RecordError
from advseg_bench.models import training
from advseg_bench.models.training import obtain_model
from advseg_bench.suite.specs import PhantomFolder
from advseg_bench.suite.timing import Timing, recall, remember

EPOCHS = 4


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ADVSEG_BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def notes() -> Iterator[list[str]]:
    lines: list[str] = []
    with reported_to(lines.append):
        yield lines


@dataclass
class Trained:
    weights: list[torch.Tensor]
    info: dict
    epochs: list[int]


def train() -> Trained:
    epochs: list[int] = []
    model = obtain_model(SPEC, recipe(epochs=EPOCHS), discs(), 0, lambda done, total: epochs.append(done))
    info = {name: value for name, value in model.info.items() if name != "train_seconds"}
    return Trained(weights(model), info, epochs)


def flip(path: Path, share: float = 0.6) -> None:
    data = bytearray(path.read_bytes())
    data[int(share * len(data))] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def only(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("model.safetensors", flip, "model.safetensors does not match its digest"),
        ("model.safetensors", cut, "model.safetensors does not match its digest"),
        ("model.safetensors", Path.unlink, "model.safetensors is missing"),
        ("model.json", flip, "model.json does not match its digest"),
        ("model.json", Path.unlink, "model.json is missing"),
        ("SHA256SUMS", flip, "SHA256SUMS is damaged|has no digest|does not match its digest"),
        ("SHA256SUMS", lambda path: path.write_bytes(b"\xff"), "SHA256SUMS is damaged"),
        ("SHA256SUMS", lambda path: path.write_text("0  ../../x\n"), "../../x is missing"),
    ],
)
def test_a_damaged_model_is_trained_again_and_reported_once(cache, notes, name, damage, reason):
    first = train()
    folder = only(cache / "models")
    damage(folder / name)
    assert [verify(entry)[0] for entry in list_entries()] == ["damaged"]
    again = train()
    assert again.epochs == [1, 2, 3, 4]
    assert same(first.weights, again.weights)
    assert first.info == again.info
    assert len(notes) == 1
    assert notes[0].startswith(f"model m: {folder}: ")
    assert any(part in notes[0] for part in reason.split("|"))
    assert train().epochs == []
    assert len(notes) == 1
    assert sorted(path.name for path in folder.iterdir()) == [
        "SHA256SUMS",
        "about.json",
        "model.json",
        "model.safetensors",
    ]
    check = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=folder, capture_output=True, text=True)
    assert check.stdout == "model.safetensors: OK\nmodel.json: OK\n"


def test_files_of_an_older_version_get_digests_in_silence_and_leftovers_are_removed(cache, notes):
    first = train()
    folder = only(cache / "models")
    sums = (folder / "SHA256SUMS").read_text()
    for name in ("SHA256SUMS", "about.json"):
        (folder / name).unlink()
    assert [verify(entry)[0] for entry in list_entries()] == ["without digest"]
    (folder / ".model.json.abc.tmp").touch()
    again = train()
    assert (again.epochs, notes) == ([], [])
    assert same(first.weights, again.weights)
    assert (folder / "SHA256SUMS").read_text() == sums
    assert not list(folder.glob(".*"))
    (folder / "SHA256SUMS").unlink()
    cut(folder / "model.safetensors")
    assert train().epochs == [1, 2, 3, 4]
    assert "model.safetensors" in notes[0]


class StopError(Exception):
    pass


def stop_after(count: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done == count:
            raise StopError

    return progress


def interrupt(monkeypatch) -> None:
    """Train two epochs, each with a checkpoint."""
    monkeypatch.setattr(training, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(training, "SAVE_SHARE", 1e9)
    with pytest.raises(StopError):
        obtain_model(SPEC, recipe(epochs=EPOCHS), discs(), 0, stop_after(2))


class Payload:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def pickled(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def edit(path: Path, change: Callable[[dict], object]) -> None:
    content = torch.load(io.BytesIO(unseal(path.read_bytes())), weights_only=True)
    changed = change(content)
    path.write_bytes(seal(pickled(content if changed is None else changed)))


def edit_training(**changes: object) -> Callable[[Path], None]:
    return lambda path: edit(path, lambda content: content["training"].update(changes))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip, "does not match its digest"),
        (cut, "does not match its digest"),
        (lambda path: path.write_bytes(b""), "does not match its digest"),
        (lambda path: path.write_bytes(path.read_bytes()[:-32]), "does not match its digest, or is of another version"),
        (lambda path: edit(path, lambda content: content.update(key="0" * 16)), "is of another training"),
        (lambda path: edit(path, lambda content: [1, 2]), "cannot be restored"),
        (lambda path: path.write_bytes(seal(pickle.dumps(Payload()))), "cannot be restored"),
        (lambda path: edit(path, lambda content: Payload()), "cannot be restored"),
        (edit_training(epoch=9), "cannot be restored (ValueError: epoch 9)"),
        (edit_training(epoch="2"), "cannot be restored"),
        (edit_training(model={}), "cannot be restored"),
        (edit_training(best={"x": torch.ones(1)}), "cannot be restored (ValueError: weights of another network)"),
    ],
)
def test_a_damaged_checkpoint_is_set_aside_once(cache, notes, monkeypatch, tmp_path, damage, reason):
    monkeypatch.chdir(tmp_path)
    interrupt(monkeypatch)
    folder = only(cache / "models")
    damage(folder / "resume.pt")
    with pytest.raises(StopError):
        obtain_model(SPEC, recipe(epochs=EPOCHS), discs(), 0, stop_after(1))
    (note,) = notes
    assert note.startswith(f"model m: {folder}/resume.pt: {reason}")
    assert "resume.pt.damaged, and the training starts anew" in note
    assert train().epochs == [2, 3, 4]
    assert len(notes) == 1
    assert not (tmp_path / "owned").exists()


def test_a_checkpoint_that_is_set_aside_leaves_no_trace_in_the_weights(cache, notes, monkeypatch, tmp_path):
    interrupt(monkeypatch)
    edit_training(epoch=9)(only(cache / "models") / "resume.pt")
    again = train()
    assert again.epochs == [1, 2, 3, 4]
    monkeypatch.setenv("ADVSEG_BENCH_CACHE", str(tmp_path / "other"))
    assert same(train().weights, again.weights)
    assert len(notes) == 1


# Two processes.


def _train_elsewhere(queue: multiprocessing.Queue, sleep_after: int | None) -> None:
    torch.set_num_threads(1)
    training.SAVE_EVERY_S, training.SAVE_SHARE = 0.0, 1e9
    lease.POLL_S = 0.01
    epochs: list[int] = []
    notes: list[str] = []

    def progress(done: int, total: int) -> None:
        epochs.append(done)
        if done == sleep_after:
            queue.put("half")
            time.sleep(600)

    with reported_to(lambda text: queue.put(text) if "waiting" in text else notes.append(text)):
        model = obtain_model(SPEC, recipe(epochs=EPOCHS), discs(), 0, progress)
    queue.put((epochs, notes, [tensor.numpy() for tensor in weights(model)]))


def test_the_place_of_a_killed_trainer_is_taken_and_its_training_continued(cache, monkeypatch, tmp_path):
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Queue(), context.Queue()
    first = context.Process(target=_train_elsewhere, args=(ours, 2))
    first.start()
    assert ours.get(timeout=60) == "half"
    second = context.Process(target=_train_elsewhere, args=(theirs, None))
    second.start()
    assert theirs.get(timeout=60).startswith(f"model m: waiting for process {first.pid} on ")
    (entry,) = list_entries()
    assert (entry.holder.pid, entry.unfinished) == (first.pid, True)
    os.kill(first.pid, signal.SIGKILL)  # it stays a zombie, since it is not joined
    epochs, notes, found = theirs.get(timeout=60)
    second.join()
    first.join()
    assert epochs == [3, 4]
    (note,) = notes
    assert f"process {first.pid} on" in note
    assert note.endswith("has ended; the training continues after epoch 2 of 4.")
    monkeypatch.setenv("ADVSEG_BENCH_CACHE", str(tmp_path / "other"))
    assert same(train().weights, [torch.from_numpy(array) for array in found])
    assert not [path for path in cache.rglob(".*") if path.is_file()]


def _train_in_silence() -> None:
    torch.set_num_threads(1)
    training.SAVE_EVERY_S, training.SAVE_SHARE = 0.0, 1e9
    lease.POLL_S = 0.01
    with reported_to(lambda text: None):
        obtain_model(SPEC, recipe(epochs=EPOCHS), discs(), 0)


@pytest.mark.slow
def test_two_trainers_killed_again_and_again_end_with_the_same_weights_and_leave_nothing(cache, monkeypatch, tmp_path):
    """One or both of two processes are killed at a random moment, also while they write or take over."""
    context = multiprocessing.get_context("fork")
    moments, alive, kills = random.Random(0), [], 0
    while kills < 30:
        alive = [process for process in alive if process.is_alive()]
        while len(alive) < 2:
            alive.append(context.Process(target=_train_in_silence))
            alive[-1].start()
        time.sleep(moments.uniform(0.0, 0.15))
        for process in moments.sample(alive, moments.choice((1, 1, 2))):
            if process.exitcode is None:
                process.kill()
                kills += 1
        if moments.random() < 0.3:  # from the beginning, so that every stage is hit
            for process in alive:
                process.kill()
                process.join()
            shutil.rmtree(cache, ignore_errors=True)
    for process in alive:
        process.join(60)
    found = train().weights
    monkeypatch.setenv("ADVSEG_BENCH_CACHE", str(tmp_path / "other"))
    assert same(train().weights, found)
    assert not [path for path in cache.rglob(".*") if path.is_file()]
    assert {verify(entry)[0] for entry in list_entries(cache)} == {"whole"}


# Prepared data and timings.


def test_phantom_data_in_the_cache_are_verified(cache, notes):
    phantom = PhantomFolder(cases=2, slices=1)
    folder = draw_phantom(phantom)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    image = next(path for path in before if path.suffix == ".png")
    for damage, reason in ((flip, "does not match its digest"), (Path.unlink, "is missing")):
        damage(image)
        assert [verify(entry)[0] for entry in list_entries()] == ["damaged"]
        assert draw_phantom(phantom) == folder
        assert reason in notes.pop()
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    image.with_name("more.png").touch()
    draw_phantom(phantom)
    assert "more.png has no digest" in notes.pop()
    folder.with_name(f"{folder.name}.sha256").unlink()
    assert draw_phantom(phantom) == folder
    assert [verify(entry)[0] for entry in list_entries()] == ["whole"]
    assert notes == []
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, f"{folder.name}.sha256"}


SUITE = {
    "name": "tiny",
    "data": {"name": "phantom", "size": 16, "subjects": 3, "slices": 1},
    "models": [{"name": "net", "architecture": "monai.UNet", "settings": {"channels": [4, 4], "strides": [2]}}],
    "training": {"epochs": 1, "floor": 0},
    "attacks": [{"name": "fgsm", "losses": ["dice"], "eps": ["4/255"]}],
}


def test_a_damaged_timing_is_ignored_and_reported(cache, notes):
    suite = ab.Suite.model_validate(SUITE)
    remember(suite, suite.models[0], Timing(1.0, 2.0, 3))
    assert recall(suite, suite.models[0]) == (Timing(1.0, 2.0, 3), "measured here")
    file = only(cache / "timings")
    good = file.read_text()
    file.write_text(good.replace("2.0", "3.0"))
    assert recall(suite, suite.models[0]) is None
    assert notes.pop().startswith(f"{file}: is damaged.")
    file.write_text(json.dumps({"train_seconds": 1.0, "pass_seconds": 2.0, "train_images": 3}))
    assert recall(suite, suite.models[0]) == (Timing(1.0, 2.0, 3), "measured here")
    assert notes == []


def test_one_flipped_bit_in_the_cache_changes_no_row_and_is_a_note_of_the_run(cache, tmp_path):
    suite = ab.Suite.model_validate(SUITE)
    rows = ab.run(suite, tmp_path / "first").rows
    files = [next(cache.rglob("*.npz")), next(cache.rglob("model.safetensors")), next(cache.rglob("model.json"))]
    for number, file in enumerate(files):
        flip(file)
        events: list[ab.Event] = []
        again = ab.run(suite, tmp_path / str(number), progress=events.append)
        assert again.rows.equals(rows)
        (note,) = [event.what for event in events if event.stage == "note"]
        assert str(file.parent) in note
        assert "does not match its digest" in note
    assert {verify(entry)[0] for entry in list_entries()} == {"whole"}
    others = [path for path in cache.rglob("*") if path.is_file() and path not in files]
    assert len(others) >= 4
    for file in others:
        flip(file)
    assert ab.run(suite, tmp_path / "others").rows.equals(rows)
    assert {verify(entry)[0] for entry in list_entries()} == {"whole"}


# A cache that cannot be written.


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Mount a copy of a folder read-only over it; without the right to mount, and not as root, remove its modes."""
    if os.geteuid():
        paths = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
        for path in paths:
            path.chmod(0o555)
        yield
        for path in paths:
            path.chmod(0o755)
        return
    done = subprocess.run(["mount", "--bind", folder, folder], capture_output=True)
    if done.returncode:
        pytest.skip("root without the right to mount can write everywhere")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_read_only_cache_serves_what_it_holds_and_refuses_the_rest_in_one_line(cache, notes, tmp_path):
    suite, phantom = ab.Suite.model_validate(SUITE), PhantomFolder(cases=2, slices=1)
    rows = ab.run(suite, tmp_path / "first").rows
    folder = draw_phantom(phantom)
    before = train()
    sums = cache / "models" / before.info["key"] / "SHA256SUMS"
    sums.unlink()
    with read_only(cache):
        with pytest.raises(OSError, match=r"Read-only|Permission"):
            (cache / "x").touch()
        assert ab.run(suite, tmp_path / "again").rows.equals(rows)
        assert draw_phantom(phantom) == folder
        again = train()
        assert (again.epochs, again.info) == ([], before.info)
        assert notes == []
        missing = r"models/[0-9a-f]+: model m has to be trained, and the folder cannot be written: (Read-only|Perm)"
        with pytest.raises(RecordError, match=missing + ".*ADVSEG_BENCH_CACHE"):
            obtain_model(SPEC, recipe(epochs=1), discs(), 0)
        with pytest.raises(RecordError, match=r"cache/drawn: .*ADVSEG_BENCH_CACHE"):
            draw_phantom(PhantomFolder(cases=3, slices=1))
        with pytest.raises(RecordError, match=r"cache/phantom: .*ADVSEG_BENCH_CACHE"):
            ab.run(ab.Suite.model_validate(SUITE | {"data": SUITE["data"] | {"seed": 3}}), tmp_path / "other")
        done = command("clear", "--all")
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert command("verify").returncode == command("list").returncode == 0
    train()  # writes the digests again
    flip(sums.with_name("model.safetensors"))
    damaged = r"does not match its digest, so model \w+ has to be trained, and the folder cannot be written"
    with read_only(cache), pytest.raises(RecordError, match=damaged):
        train()


def test_a_full_disk_is_one_line_and_the_next_run_continues(cache, notes):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))  # the lease fits, the weights do not
    try:
        with pytest.raises(RecordError, match=r"model\.safetensors: could not be written: File too large"):
            train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name for path in only(cache / "models").iterdir()} == {"about.json"}
    assert train().epochs == [1, 2, 3, 4]
    assert notes == []


# The commands.


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in this process; importing the command line again and again would take most of the time."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["advseg-bench", "cache", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    return subprocess.CompletedProcess(arguments, int(ended.value.code or 0), out.getvalue(), err.getvalue())


def test_the_cache_is_listed_verified_and_cleared(cache, monkeypatch):
    assert "0 bytes in 0 entries" in command("list").stdout
    interrupt(monkeypatch)
    train()
    whole = only(cache / "models").name
    with pytest.raises(StopError):
        obtain_model(SPEC, recipe(epochs=EPOCHS), discs(), 1, stop_after(2), suite="mine")
    (half,) = {path.name for path in (cache / "models").iterdir()} - {whole}
    (cache / "models" / "notes.txt").write_text("of the user")
    (cache / "models" / "0123456789abcdef").symlink_to("/nowhere")
    listed = command("list").stdout
    assert f"{whole}  model  " in listed
    (line,) = [line for line in listed.splitlines() if half in line]
    assert "m of suite mine: monai.UNet on discs, 4 epochs  unfinished" in line
    done = command("verify")
    assert (done.returncode, done.stdout) == (0, "2 entries: 1 whole, 1 unfinished, 0 without digest, 0 damaged\n")
    flip(cache / "models" / half / "resume.pt")
    done = command("verify")
    assert done.returncode == 1
    assert done.stdout.startswith(f"damaged: {cache}/models/{half}: resume.pt does not match its digest (m of suite")
    for arguments in ([], ["--all", whole], [whole[:3]], ["nothing"], ["--older-than", "1", "--all"]):
        done = command("clear", *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert command("clear", "--older-than", "1").stdout == "0 entries removed, 0 bytes\n"
    with hold(cache / "models" / half / ".lease", what="training m"):
        assert f"in use by process {os.getpid()}" in command("list").stdout
        done = command("clear", "--all")
        assert done.returncode == 1
        assert f"kept (in use by process {os.getpid()} on" in done.stdout
        assert f"removed {whole}" in done.stdout
    assert command("clear", half[:6]).stdout.startswith(f"removed {half}  model  ")
    assert {path.name for path in (cache / "models").iterdir()} == {"notes.txt", "0123456789abcdef"}
