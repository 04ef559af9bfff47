"""A Slurm of one node for tests, started with the daemons of this machine: needs root, `slurm-wlm` and `munge`."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CONFIGURATION = """
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=5
MinJobAge=10
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/d.pid
SlurmdSpoolDir={folder}/spool
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/log/ctld
SlurmdLogFile={folder}/log/d
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
JobRequeue=1
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=60 State=UP
"""

NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "squeue", "scancel")


def find_missing() -> str:
    """Return why no Slurm can be started here, "" if one can."""
    if os.geteuid() != 0:
        return "Slurm's daemons need root"
    missing = [name for name in NEEDED if shutil.which(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


@contextmanager
def start_slurm(folder: Path) -> Iterator[None]:
    """Start Munge, a controller and a node with two cores; stop them, and all their jobs, on exit."""
    for name in ("spool", "state", "log"):
        (folder / name).mkdir(parents=True)
    text = CONFIGURATION.format(host=socket.gethostname(), ports=_find_ports(2), folder=folder, cpus=2)
    (folder / "slurm.conf").write_text(text)
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    munge = _start_munge(folder)
    try:
        subprocess.run(["slurmctld"], check=True, timeout=30)
        subprocess.run(["slurmd"], check=True, timeout=30)
        _wait_for_idle()
        yield
    finally:
        subprocess.run(["scancel", "--me"], check=False, capture_output=True, timeout=30)
        for name in ("d.pid", "ctld.pid"):
            with suppress(OSError, ValueError):
                os.kill(int((folder / name).read_text()), signal.SIGTERM)
        munge.terminate()
        munge.wait(10)
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before


def _start_munge(folder: Path) -> subprocess.Popen[bytes]:
    """Start a Munge of our own, with a key and a socket in the folder."""
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    options = [f"--key-file={key}", f"--socket={folder}/munge.socket", f"--pid-file={folder}/munge.pid"]
    options += [f"--log-file={folder}/log/munge", f"--seed-file={folder}/munge.seed", "--foreground", "--force"]
    return subprocess.Popen(["munged", *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _find_ports(count: int) -> list[int]:
    """Return free ports."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _wait_for_idle(seconds: float = 30.0) -> None:
    """Wait until the node is ready."""
    for _ in range(int(seconds / 0.25)):
        found = subprocess.run(
            ["sinfo", "--noheader", "--format=%T"], capture_output=True, text=True, check=False, timeout=30
        )
        if found.stdout.strip() == "idle":
            return
        time.sleep(0.25)
    raise RuntimeError(f"the node is not idle after {seconds:g} s: {found.stdout}{found.stderr}")
