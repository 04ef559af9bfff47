"""Runs on object storage: records, lease, faults and reports; `memory` here, S3 with the server of moto."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from pip_installs import pip_install

import advseg_bench as ab
from advseg_bench.cache import lease
from advseg_bench.cache.holder import describe_self
from advseg_bench.errors import HeldError, RecordError, UserError
from advseg_bench.report import write_report
from advseg_bench.results import bucket, object_lease
from advseg_bench.results.bucket import Bucket, find_url
from advseg_bench.results.remote import fetched_anew
from advseg_bench.results.verify import verify_run
from advseg_bench.running import recording

fsspec = pytest.importorskip("fsspec")

TOML = """
name = "tiny"
training = { epochs = 1, floor = 0 }
data = { name = "phantom", size = 16, subjects = 6, slices = 2 }
[[models]]
name = "net"
architecture = "monai.UNet"
settings = { channels = [4, 4], strides = [2] }
[[attacks]]
name = "fgsm"
losses = ["dice"]
eps = ["4/255"]
[[attacks]]
name = "random_sign"
eps = ["4/255"]
"""
SUITE = tomllib.loads(TOML)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(bucket, "PAUSE_S", 0.0)


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """The suite, with a cache of its own."""
    root = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVSEG_BENCH_CACHE", str(root))
        yield ab.Suite(**SUITE)


@pytest.fixture(scope="module")
def plain(suite, tmp_path_factory):
    """The run in a folder."""
    return ab.run(suite, tmp_path_factory.mktemp("runs") / "plain", shard=1)


@pytest.fixture
def url():
    """A new place in memory."""
    fsspec.filesystem("memory").store.clear()
    return "memory://bucket/run"


def forget_mirrors() -> None:
    """Remove the mirrors of this machine, as if another one went on."""
    shutil.rmtree(Path(os.environ["ADVSEG_BENCH_CACHE"]) / "remote", ignore_errors=True)


def names(url: str) -> set[str]:
    return set(Bucket(url).list_sizes())


def holder_elsewhere():
    return replace(describe_self("run"), host="elsewhere", machine="elsewhere")


def encode(holder) -> bytes:
    return json.dumps(asdict(holder)).encode()


def test_a_url_is_found_in_a_path():
    found = [find_url(each) for each in ("s3://b/run/", Path("s3://b/run"), "file:///a/b", "runs/x", "C:\\runs", "a:b")]
    assert found == ["s3://b/run", "s3://b/run", "file:///a/b", "", "", ""]


def test_a_run_in_memory_has_the_rows_of_a_folder_and_everything_is_uploaded(plain, suite, url):
    run = ab.run(suite, url, shard=1)
    assert run.rows.equals(plain.rows)
    expected = {path.relative_to(plain.path).as_posix() for path in plain.path.rglob("*") if path.is_file()}
    assert names(url) == expected
    forget_mirrors()
    again = ab.Run(url)
    assert again.rows.equals(plain.rows)
    written = write_report(again)
    assert {f"report/{path.relative_to(again.path / 'report').as_posix()}" for path in written} <= names(url)
    before = names(url)
    assert ab.run(suite, url).rows.equals(plain.rows)
    assert names(url) == before, "a complete run stays as it is, report included"
    store = Bucket(url)
    part = next(name for name in sorted(before) if name.startswith("parts/"))
    store.write(part, store.read(part)[:-1])
    with fetched_anew(url) as folder:
        assert [each.path.name for each in verify_run(folder).damaged] == [Path(part).name]
    forget_mirrors()
    assert ab.run(suite, url).rows.equals(plain.rows)
    assert f"damaged/{part}" in names(url)
    with fetched_anew(url) as folder:
        assert verify_run(folder).damaged == ()


def test_what_compaction_deletes_is_deleted_there(plain, suite, url, monkeypatch):
    monkeypatch.setattr(recording, "FEW", 3)
    run = ab.run(suite, url, shard=1)
    parts = sorted(name for name in names(url) if name.startswith("parts/"))
    assert parts == sorted(f"parts/{path.name}" for path in (run.path / "parts").iterdir())
    assert len(parts) < len(list((plain.path / "parts").iterdir()))
    forget_mirrors()
    assert ab.Run(url).rows.equals(plain.rows)


@pytest.mark.slow
def test_the_commands_take_urls(plain, tmp_path):
    suite = tmp_path / "tiny.toml"
    suite.write_text(TOML)
    place = f"file://{tmp_path}/bucket/run"
    command = [sys.executable, "-m", "advseg_bench"]
    for arguments in (["run", str(suite), "--out", place], ["report", place], ["verify", place]):
        done = subprocess.run([*command, *arguments], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        wanted = f"{place}/report/report.html" if arguments[0] != "verify" else "damaged files: 0"
        assert wanted in done.stdout
    assert ab.Run(place).rows.equals(plain.rows)
    on_slurm = [*command, "run", str(suite), "--executor", "slurm", "--out", place]
    done = subprocess.run(on_slurm, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_parts_in_memory_are_merged(plain, suite, url):
    parts = [f"{url}-parts/{i}" for i in (1, 2)]
    for i, part in enumerate(parts, 1):
        ab.run(suite, part, part=(i, 2))
    assert ab.merge(parts, url).rows.equals(plain.rows)
    assert ab.Run(url).rows.equals(plain.rows)


def test_foreign_objects_are_not_touched(suite, url):
    Bucket(url).write("thesis.tex", b"x")
    with pytest.raises(RecordError, match=r"memory://bucket/run: is not empty and holds no run"):
        ab.run(suite, url)
    assert names(url) == {"thesis.tex"}
    with pytest.raises(RecordError, match=r"memory://bucket/run: expected a run, got no run\.json"):
        ab.Run(url)


def test_a_refused_run_leaves_nothing_and_names_the_url(plain, suite, url):
    other = suite.model_copy(update={"seed": 5})
    with pytest.raises(UserError):
        ab.run(suite, url, part=(3, 2))
    assert names(url) == set()
    ab.run(suite, url)
    with pytest.raises(RecordError, match=r"memory://bucket/run: holds a run of another suite"):
        ab.run(other, url)


@pytest.mark.parametrize("gone", [False, True])
def test_a_lease_of_another_machine_is_taken_over_when_it_is_old(suite, url, monkeypatch, gone):
    if gone:
        monkeypatch.setattr(object_lease, "GONE_S", -1.0)
    elsewhere = holder_elsewhere()
    store = Bucket(url)
    store.write(lease.LEASE, encode(elsewhere))
    if gone:
        store.write(f"{lease.LEASE}.{elsewhere.token}.claim", encode(replace(elsewhere, token="aa")))
        assert ab.run(suite, url).missing == 0
        assert not {name for name in names(url) if name.startswith(lease.LEASE)}
    else:
        renewed = encode(replace(elsewhere, since=elsewhere.since + 1))
        monkeypatch.setattr(object_lease.time, "sleep", lambda _: store.write(lease.LEASE, renewed))
        with pytest.raises(HeldError, match=rf"{url}: in use by process {os.getpid()} on elsewhere \(since 2"):
            ab.run(suite, url)
        assert names(url) == {lease.LEASE}


def test_a_lease_that_was_lost_ends_the_run_before_it_uploads_anything(plain, suite, url):
    uploaded = []

    def take_over(event):
        if event.stage == "attack" and event.done == 9:
            Bucket(url).write(lease.LEASE, encode(holder_elsewhere()))
            uploaded.append(names(url))

    with pytest.raises(HeldError, match=rf"{url}: another process took over"):
        ab.run(suite, url, shard=1, progress=take_over)
    assert uploaded[-1] == names(url)
    Bucket(url).remove(lease.LEASE)
    assert ab.run(suite, url, shard=1).rows.equals(plain.rows)


def test_storage_that_replaces_objects_is_asked_again_after_a_while(url, monkeypatch):
    pauses = []
    monkeypatch.setattr(Bucket, "create", lambda self, name, data: self.write(name, data) or True)
    monkeypatch.setattr(object_lease.time, "sleep", pauses.append)
    with object_lease.hold_object(Bucket(url)) as held:
        held.check()
    assert object_lease.SETTLE_S in pauses

    def overtake(seconds):
        Bucket(url).write(lease.LEASE, encode(holder_elsewhere()))

    monkeypatch.setattr(object_lease.time, "sleep", overtake)
    with pytest.raises(HeldError, match="on elsewhere"), object_lease.hold_object(Bucket(url)):
        pass


def test_an_upload_that_fails_ends_the_run_and_loses_nothing(plain, suite, url, monkeypatch):
    put, tries = Bucket._put, []

    def fail(self, name, data, **mode):
        if name.startswith("parts/") and len(names(url)) > 5:
            tries.append(name)
            raise OSError("the line is down")
        put(self, name, data, **mode)

    monkeypatch.setattr(Bucket, "_put", fail)
    with pytest.raises(RecordError, match=rf"{url}: could not be written \(OSError: the line is down\)") as error:
        ab.run(suite, url, shard=1)
    assert "\n" not in str(error.value)
    assert len(tries) == bucket.TRIES
    monkeypatch.setattr(Bucket, "_put", put)
    done = []
    assert ab.run(suite, url, shard=1, progress=lambda event: done.append(event.total)).rows.equals(plain.rows)
    assert tries[0] in names(url), "the part that was not uploaded is not computed again"


def test_storage_that_does_not_answer_is_one_line_in_bounded_time(url, monkeypatch):
    monkeypatch.setattr(bucket, "ANSWER_S", 0.1)
    monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "cat_file", lambda *_, **__: time.sleep(5))
    with pytest.raises(RecordError, match=rf"{url}: cannot be read \(TimeoutError: no answer within"):
        Bucket(url).read("x")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nope://a/b", "nope://a/b: expected a URL such as s3://bucket/run"),
        ("memory://", "memory://: expected a URL such as"),
    ],
)
def test_a_wrong_url_is_one_line(place, message):
    with pytest.raises(UserError) as error:
        ab.Run(place)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(UserError, match=r"s3://b/x: expected packages .* pip install 'advseg-bench\[remote\]'"):
        ab.Run("s3://b/x")


CHILD = """
import json, os, signal, sys, time
import advseg_bench as ab
from advseg_bench.results.bucket import Bucket

kill_at, before = int(sys.argv[3]), sys.argv[4] == "before"
write, seen = Bucket.write, []

def counted(self, name, data, **options):
    if name.startswith("parts/"):
        seen.append(name)
    if len(seen) == kill_at and before:
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, name, data, **options)
    if len(seen) == kill_at:
        if sys.argv[4] == "hang":
            print("held", flush=True)
            time.sleep(600)
        os.kill(os.getpid(), signal.SIGKILL)

Bucket.write = counted
ab.run(ab.Suite(**json.loads(sys.argv[1])), sys.argv[2], shard=1)
"""


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """The URL of a bucket of a local S3 server."""
    pytest.importorskip("s3fs")
    target = tmp_path_factory.mktemp("moto")
    pip_install(target, "moto[server]>=5.1", dependencies=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    with (target / "log").open("w") as log:
        environ = {**os.environ, "PYTHONPATH": str(target)}
        server = subprocess.Popen([sys.executable, "-c", code], env=environ, stdout=log, stderr=log)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        deadline = time.monotonic() + 60
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None, (target / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        fsspec.filesystem("s3").mkdir("bucket")
        yield "s3://bucket/runs"
    server.kill()
    server.wait()


def start_child(url: str, kill_at: int, how: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-c", CHILD, json.dumps(SUITE), url, str(kill_at), how]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, **options)


@pytest.mark.slow
@pytest.mark.network
def test_a_run_on_s3_survives_kills_of_its_owner_and_other_machines_go_on(s3, plain):
    url, before = f"{s3}/killed", set()
    for kill_at, how in ((1, "before"), (2, "after"), (2, "before")):
        with start_child(url, kill_at, how) as owner:
            assert owner.wait(120) == -signal.SIGKILL
        parts = {name for name in names(url) if name.startswith("parts/")}
        assert before <= parts, "no part is lost"
        before = parts
        forget_mirrors()
    assert len(before) == 3
    run = ab.run(ab.Suite(**SUITE), url, shard=1)
    assert run.rows.equals(plain.rows)
    with fetched_anew(url) as folder:
        found = verify_run(folder)
        assert (found.rows, found.planned, found.damaged) == (len(plain.rows), len(plain.rows), ())
    report = write_report(ab.Run(url))
    html = next(path for path in report if path.name == "report.html")
    assert Bucket(url).read("report/report.html") == html.read_bytes()


@pytest.mark.slow
@pytest.mark.network
def test_a_second_owner_on_s3_is_refused_until_the_first_is_dead(s3, plain):
    url = f"{s3}/two"
    first = start_child(url, 2, "hang")
    try:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(HeldError, match=rf"{url}: in use by process {first.pid} on "):
            ab.run(ab.Suite(**SUITE), url)
    finally:
        first.kill()
        first.communicate()
    forget_mirrors()
    assert ab.run(ab.Suite(**SUITE), url, shard=1).rows.equals(plain.rows)
    store = Bucket(url)
    assert store.create("new", b"1")
    assert not store.create("new", b"2")
    assert store.read("new") == b"1"


@pytest.mark.slow
@pytest.mark.network
def test_of_processes_that_want_the_place_of_a_dead_one_exactly_one_gets_it(s3):
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    dead = replace(describe_self("run"), pid=gone.pid)
    store, held, refused = Bucket(f"{s3}/rush"), [], []
    for n in range(5):
        store.write(lease.LEASE, encode(replace(dead, token=f"a{n}")))
        ready, done = threading.Barrier(6), threading.Barrier(6)

        def take(ready=ready, done=done):
            ready.wait()
            try:
                with object_lease.hold_object(store) as mine:
                    held.append(mine.is_held())
                    done.wait()
            except HeldError as error:
                refused.append(str(error))
                done.wait()

        threads = [threading.Thread(target=take) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (held, len(refused)) == ([True] * (n + 1), 5 * (n + 1))
        assert store.list_sizes() == {}


@pytest.mark.slow
@pytest.mark.network
def test_wrong_places_on_s3_are_one_line_in_bounded_time(s3, suite, monkeypatch):
    with pytest.raises(RecordError, match="s3://no-such-bucket/x: "):
        ab.run(suite, "s3://no-such-bucket/x")
    with pytest.raises(RecordError, match="s3://bucket/nothing: expected a run"):
        ab.Run("s3://bucket/nothing")
    fsspec.filesystem("s3").clear_instance_cache()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(RecordError, match="s3://bucket/other: cannot be listed") as error:
        ab.run(suite, "s3://bucket/other")
    assert "\n" not in str(error.value)
    fsspec.filesystem("s3").clear_instance_cache()
