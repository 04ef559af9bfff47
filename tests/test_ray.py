"""Runs on a real Ray cluster of three nodes: the same rows as on one machine, whatever dies, and no process left."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import ray
import stub_worker
from ray.cluster_utils import Cluster
from stub_worker import Call, Tell

import advseg_bench as ab
from advseg_bench.data import load_dataset
from advseg_bench.errors import DataError, SpecError, WorkerError
from advseg_bench.running import sharing
from advseg_bench.running.executors import ray_cluster
from advseg_bench.running.executors.base import call
from advseg_bench.running.executors.options import Needs, RayOptions, find_needs
from advseg_bench.running.executors.ray import open_ray
from advseg_bench.running.outcomes import JobError, Outcome, WorkerDied
from advseg_bench.running.work import Description, Running
from advseg_bench.suite.specs import PhantomData

pytestmark = pytest.mark.slow

NODE = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
QUICK = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_failure_threshold": 4}

FOUR = """
schema = 1
name = "four"
[data]
name = "mni152"
task = "multilabel"
size = 32
[training]
epochs = 1
floor = 0
""" + "".join(
    f"""
[[models]]
name = "net{i}"
architecture = "monai.UNet"
settings = {{ channels = [4, {4 + i}], strides = [2] }}
"""
    for i in range(4)
)
THREE = """
[[attacks]]
name = "fgsm"
losses = ["dice"]
eps = ["8/255"]
[[attacks]]
name = "pgd"
losses = ["bce"]
eps = ["8/255"]
settings = { steps = 2 }
[[attacks]]
name = "random_sign"
eps = ["8/255"]
draws = 2
"""


@pytest.fixture(scope="module")
def cluster():
    """Three nodes of one CPU each."""
    found = Cluster(initialize_head=True, head_node_args=NODE | {"_system_config": QUICK})
    try:
        for _ in range(2):
            found.add_node(**NODE)
        yield found
    finally:
        ray.shutdown()
        found.shutdown()


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def pool(cluster, told):
    """Workers on all three nodes."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    with open_stub(cluster, told.append) as executor:
        signal.signal(signal.SIGINT, before)
        yield executor


def open_stub(cluster, emit=lambda message: None, needs=Needs(), first=None, **options):  # noqa: B008  frozen
    return open_ray(RayOptions(cluster.address, **options), stub_worker.start_worker, emit, needs=needs, first=first)


def find_processes() -> dict[int, str]:
    """The command lines of the processes that these tests and their clusters have started."""
    mark = f"ADVSEG_BENCH_CACHE={os.environ['ADVSEG_BENCH_CACHE']}".encode()
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (path / "environ").read_bytes():
                found[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    return found


def find_actors() -> list[int]:
    """Actors, and worker processes that they have started."""
    kinds = ("ray::Place", "executors.serving import serve")
    return [pid for pid, command in find_processes().items() if any(kind in command for kind in kinds)]


def find_ray() -> set[int]:
    """Processes of Ray itself, which it marks by names and folders."""
    return {pid for pid, command in find_processes().items() if "ray::" in command or "/ray/" in command}


def wait_for(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.1)


def wait_until_there_are(executor, workers, seconds=30.0):
    """Run short jobs until the capacity of an executor is as wanted."""
    deadline = time.monotonic() + seconds
    while executor.capacity != workers:
        assert time.monotonic() < deadline, executor.capacity
        call(executor, Call(time.sleep, (0.3,)))


def test_a_job_returns_its_result_or_says_why_not(pool, told):
    wait_until_there_are(pool, 3)
    assert call(pool, Call(abs, (-3,))) == 3
    with pytest.raises(DataError, match="no such folder"):
        call(pool, Call(stub_worker.fail, (DataError, "no such folder")))
    with pytest.raises(JobError, match="pickle"):
        call(pool, Call(stub_worker.make_a_function))
    told.clear()
    jobs = [Tell(n % 4, str(n)) for n in range(12)]
    waiting, running = list(jobs), 0
    while running or waiting:
        while waiting and running < pool.capacity:
            pool.submit(waiting.pop())
            running += 1
        job, outcome = pool.wait()
        running -= 1
        assert outcome.result() == job.word
        assert [m.done for m in told if m.model == job.word] == list(range(1, job.steps + 1))


def test_the_next_job_goes_to_the_worker_that_became_free_last(pool):
    for label in range(3):
        pool.submit(Call(stub_worker.find_process, (label,)))
    freed = [pool.wait()[1].result() for _ in range(3)]
    assert len(set(freed)) == 3
    for label in range(3):
        pool.submit(Call(stub_worker.find_process, (label,)))
    took = dict(pool.wait() for _ in range(3))
    assert [took[Call(stub_worker.find_process, (label,))].result() for label in range(3)] == freed[::-1]


@pytest.mark.parametrize(
    ("job", "cause"),
    [
        (Call(stub_worker.say_and_exit, ("last words", 3)), "exit code 3"),
        (Call(stub_worker.print_and_crash), "SIGSEGV"),
        (Call(stub_worker.spin, (0.5,)), "time limit"),
    ],
    ids=["exit", "crash", "hang"],
)
def test_a_job_that_ends_its_process_is_described_and_harms_no_other(pool, job, cause):
    pool.submit(job)
    death = pool.wait()[1].error.death
    assert death.cause == cause
    assert death.running == (None if cause == "exit code 3" else Running("a", ("c",), ("i",), death.running.seconds))
    assert death.last_words
    assert call(pool, Call(abs, (-4,))) == 4
    assert pool.capacity == 3


def kill_the_actor(marker: Path, times: int) -> int:
    """Kill the Ray actor that this process belongs to, the first few times that it is called."""
    tries = len(list(marker.parent.glob(f"{marker.name}-*"))) + 1
    Path(f"{marker}-{tries}").touch()
    if tries <= times:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    return tries


@pytest.mark.parametrize(("times", "outcome"), [(1, 2), (99, None)])
def test_a_job_whose_actor_is_killed_is_repeated_but_not_for_ever(pool, tmp_path, times, outcome):
    pool.submit(Call(kill_the_actor, (tmp_path / "tries", times)))
    pool.submit(Call(abs, (-5,)))
    ended = {job.function: found for job, found in (pool.wait(), pool.wait())}
    assert ended[abs] == Outcome(5)
    if outcome:
        assert ended[kill_the_actor] == Outcome(outcome)
    else:
        assert isinstance(ended[kill_the_actor].error, WorkerDied)
        assert "Ray worker" in str(ended[kill_the_actor].error)
        assert len(list(tmp_path.iterdir())) <= 4
    wait_until_there_are(pool, 3)


def test_capacity_follows_the_machines_and_a_lost_job_is_run_elsewhere(cluster, pool):
    added = cluster.add_node(**NODE)
    wait_until_there_are(pool, 4)
    jobs = [Call(run_on_one_node, (f"/tmp/{os.getpid()}-{n}",)) for n in range(4)]
    for job in jobs:
        pool.submit(job)
    time.sleep(1.0)  # all have begun
    cluster.remove_node(added, allow_graceful=False)
    outcomes = [pool.wait()[1] for _ in jobs]
    assert all(outcome.error is None for outcome in outcomes), outcomes
    wait_until_there_are(pool, 3)


def run_on_one_node(label: str) -> int:
    time.sleep(3)
    return os.getpid()


@pytest.mark.parametrize(
    ("address", "needs", "error"),
    [
        ("127.0.0.1:1", Needs(), "--address: .* got '127.0.0.1:1'. It cannot be reached: Connection refused"),
        ("ray://127.0.0.1:1", Needs(), "--address: .* Connection refused"),
        ("nowhere", Needs(), "--address: .* got 'nowhere'. It cannot be reached: it is not HOST:PORT"),
        ("", Needs(cpus=5), "compute: .* with 5 CPUs, got 'at most 1 CPUs on 3 nodes'"),
        ("", Needs(gpus=1), "compute: .* 1 GPUs, got 'at most 1 CPUs on 3 nodes'"),
    ],
)
def test_mistakes_are_one_line_in_bounded_time(pool, address, needs, error):
    with pytest.raises((SpecError, WorkerError), match=error) as told, open_again(address, needs):
        pass
    assert "\n" not in str(told.value)


def open_again(address="", needs=Needs(), first=None):  # noqa: B008  frozen
    """Open an executor beside `pool`, in the connection of that one if there is no address."""
    return open_ray(RayOptions(address), stub_worker.start_worker, lambda message: None, needs=needs, first=first)


def test_a_port_of_something_else_is_refused(pool, monkeypatch):
    monkeypatch.setattr(ray_cluster, "ANSWER_S", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(WorkerError, match=r"--address: .*, which answers within 3 s, got"), open_again(address):
            pass


def test_ray_must_be_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SpecError, match=r"pip install 'advseg-bench\[ray\]'"), open_again():
        pass


def describe_machine() -> Description:
    """Describe a machine as a run does; some have no data, or other data."""
    where = os.environ.get("TEST_DATA", "")
    if where == "none":
        raise DataError("data.path: no such folder")
    return Description({"fingerprint": where}, {"code": {}}, {}, {})


@pytest.mark.parametrize(
    ("nodes", "error"),
    [
        ([{"PYTHONPATH": "OTHER"}], "expected torch .*, as here, got '9.9'"),
        ([{"TEST_DATA": "none"}], "data.path: no such folder"),
        ([{}, {"TEST_DATA": "other"}], "data fingerprint: expected .*, got .*"),
    ],
    ids=["versions", "no data", "other data"],
)
def test_a_machine_that_differs_is_named_before_anything_is_computed(cluster, pool, tmp_path, nodes, error, capsys):
    metadata = tmp_path / "torch-9.9.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9\n")
    paths = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH", ""))))
    added = []
    try:
        for variables in nodes:
            given = {name: value.replace("OTHER", paths) for name, value in variables.items()}
            added.append(cluster.add_node(**NODE, env_vars=given))
        first = Call(describe_machine)
        with pytest.raises(WorkerError, match=f"machine .*{error}") as told, open_again(first=first):
            pass
        assert "\n" not in str(told.value)
        if nodes[0] and "PYTHONPATH" in nodes[0]:
            call(pool, Call(time.sleep, (3.0,)))  # the run that has begun goes on without it
            assert "left out: machine" in capsys.readouterr().err
            assert pool.capacity == 3
    finally:
        for node in added:
            cluster.remove_node(node, allow_graceful=False)
        wait_until_there_are(pool, 3)


def test_needs_come_from_the_suite():
    tables = ab.Suite.load("smoke").as_json()
    assert "cpus" not in tables["compute"]
    assert find_needs(ab.Suite.model_validate(tables).compute, "cuda") == Needs(1, 1, 0)
    tables["compute"] |= {"cpus": 2, "gpus": 0.5, "memory_gb": 3}
    suite = ab.Suite.model_validate(tables)
    assert find_needs(suite.compute, "cuda") == Needs(2, 0.5, 3_000_000_000)
    assert suite.as_json()["compute"]["gpus"] == 0.5
    assert Needs(2, 0.5, 3_000_000_000).fit({"CPU": 9, "GPU": 1, "memory": 1e10}) == 2


def test_packed_data_are_the_same():
    for name in ("smoke", "phantom"):
        suite = ab.Suite.load("smoke")
        spec = suite.data if name == "smoke" else PhantomData(name="phantom", size=16, subjects=3, slices=2)
        loaded = load_dataset(spec)
        taken = sharing.unpack(sharing.pack(loaded, spec))
        assert taken.describe() == loaded.describe()
        assert taken.cases == loaded.cases
        for index in range(len(loaded.cases)):
            assert all(map(np.array_equal, taken.read(index), loaded.read(index)))


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """A suite, and its rows of a run in this process."""
    return "smoke", ab.run(ab.Suite.load("smoke"), tmp_path_factory.mktemp("expected") / "run").rows


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """As `smoke`, with four models and three attacks."""
    path = tmp_path_factory.mktemp("expected") / "four.toml"
    path.write_text(FOUR + THREE)
    return str(path), ab.run(ab.Suite.load(path), path.with_suffix("")).rows


COMMAND = [sys.executable, "-W", "error", "-m", "advseg_bench", "run"]


def start_run(suite, out, *arguments, **named):
    """Start a run by the command line in a process group of its own, which hears Ctrl-C."""
    return subprocess.Popen(
        [*COMMAND, suite, "--out", str(out), "--executor", "ray", "--shard", "4", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **named,
    )


def finish(process, seconds=240):
    try:
        return process.communicate(timeout=seconds)
    finally:
        if process.poll() is None:
            process.kill()


def count_parts(out):
    return len(list(out.glob("parts/*.parquet")))


@pytest.fixture
def free(cluster):
    """The cluster, without a connection of this process, so that all of its resources are free."""
    ray.shutdown()
    wait_for(lambda: not find_actors())
    return cluster


def test_one_node_that_the_run_starts_gives_the_same_rows_and_stops(smoke, four, tmp_path):
    before = find_ray()
    for name, rows in (smoke, four):
        run = start_run(name, tmp_path / Path(name).stem, "--workers", "1")
        _, errors = finish(run)
        assert (run.returncode, errors) == (0, "")
        assert ab.Run(tmp_path / Path(name).stem).rows.equals(rows)
    wait_for(lambda: find_ray() <= before)


def test_three_nodes_give_the_same_rows_though_one_dies_and_actors_are_killed(free, smoke, four, tmp_path):
    for name, rows in (smoke, four):
        out = tmp_path / Path(name).stem
        run = start_run(name, out, "--address", free.address)
        if name == "smoke":
            wait_for(lambda out=out: count_parts(out) > 2, 120)
            actors = [pid for pid, command in find_processes().items() if command.startswith("ray::Place")]
            os.kill(actors[0], signal.SIGKILL)
        else:
            added = free.add_node(**NODE)
            wait_for(lambda out=out: count_parts(out) > 2, 120)
            free.remove_node(added, allow_graceful=False)
        _, errors = finish(run)
        assert (run.returncode, errors) == (0, "")
        assert ab.Run(out).rows.equals(rows)
        assert not ab.Run(out).failures


@pytest.mark.parametrize(
    ("where", "number"),
    [
        ("own", signal.SIGTERM),
        ("own", signal.SIGKILL),
        ("own", signal.SIGINT),
        ("cluster", signal.SIGINT),
        ("cluster", signal.SIGKILL),
    ],
)
def test_a_run_that_ends_leaves_no_actor_and_can_be_resumed(request, smoke, tmp_path, number, where):
    name, rows = smoke
    before = find_ray()
    arguments = ("--workers", "1")
    if where == "cluster":
        arguments = ("--address", request.getfixturevalue("free").address)
    run = start_run(name, tmp_path / "run", *arguments)
    wait_for(lambda: count_parts(tmp_path / "run") > 1, 120)
    os.kill(run.pid, signal.SIGSTOP)  # so that it does not end before the second one begins
    second = start_run(name, tmp_path / "run", *arguments)
    _, errors = finish(second)
    assert (second.returncode, errors.count("\n")) == (2, 1), errors
    os.kill(run.pid, number)
    os.kill(run.pid, signal.SIGCONT)
    _, errors = finish(run, 30)
    assert run.returncode not in (0, 1)
    assert "Traceback" not in errors
    wait_for(lambda: not find_actors())
    if where == "own" and number != signal.SIGKILL:  # Ray's agents, which no one has to end, take their time
        wait_for(lambda: find_ray() <= before)
    if number != signal.SIGKILL:
        return
    resumed = start_run(name, tmp_path / "run", *arguments)
    _, errors = finish(resumed)
    assert (resumed.returncode, errors) == (0, "")
    assert ab.Run(tmp_path / "run").rows.equals(rows)
