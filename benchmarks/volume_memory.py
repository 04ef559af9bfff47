"""Measure the peak resident memory of a suite on one volume, and that of a plain PyTorch loop of the same attacks.

    python benchmarks/volume_memory.py [--edges 64 128] [--limit-gb 10]

The network is a 3-D U-Net of MONAI with about 170 thousand parameters. The suite has FGSM and PGD-5 with the Dice and
cross-entropy loss, one volume, and a compute batch of 1; the loop computes the same two attacks with
`torch.autograd.grad`. Each runs in a process of its own, and its peak includes the imports. The command exits with 1
if a suite needs more than twice the memory of the loop.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS, STEPS, THRESHOLD = 4 / 255, 5, 2.0
FEATURES = [8, 8, 16, 24, 32, 8]
SUITE = """
name = "volume-{edge}"
[data]
name = "nnunet"
path = "{folder}/data"
task = "binary"
size = [{edge}, {edge}, {edge}]
scale = "dtype"
[[models]]
name = "unet"
architecture = "monai.BasicUNet"
settings = {{ features = {features} }}
weights = "{folder}/unet.pt"
[[attacks]]
name = "fgsm"
losses = ["bce"]
eps = ["4/255"]
[[attacks]]
name = "pgd"
losses = ["bce"]
eps = ["4/255"]
settings = {{ steps = {steps} }}
[compute]
batch = 1
"""


def make_network() -> nn.Module:
    """Return the network with weights of a fixed seed, in eval mode and frozen."""
    from monai.networks.nets import BasicUNet

    torch.manual_seed(0)
    net = BasicUNet(spatial_dims=3, in_channels=1, out_channels=1, features=FEATURES)
    return net.eval().requires_grad_(False)


def make_volume(edge: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a noisy ball, uint8 (D, H, W), and its mask."""
    axis = np.linspace(-1, 1, edge, dtype=np.float32)
    mask = axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2 < 0.25
    noise = np.random.default_rng(0).integers(0, 80, mask.shape, dtype=np.uint8)
    return noise + 120 * mask.astype(np.uint8), mask.astype(np.uint8)


def write_suite(folder: Path, edge: int) -> Path:
    """Write one volume in the format of nnU-Net, the weights and the suite; return the suite's file."""
    import json

    import nibabel

    data = folder / "data"
    for name, pixels in zip(("imagesTr/ball_0000", "labelsTr/ball"), make_volume(edge), strict=True):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(pixels, np.eye(4)), data / f"{name}.nii.gz")
    described = {
        "channel_names": {"0": "T1"},
        "labels": {"background": 0, "ball": 1},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    (data / "dataset.json").write_text(json.dumps(described))
    torch.save(make_network().state_dict(), folder / "unet.pt")
    path = folder / "suite.toml"
    path.write_text(SUITE.format(edge=edge, folder=folder, features=FEATURES, steps=STEPS))
    return path


def attack_plainly(edge: int) -> None:
    """Compute FGSM and PGD in the way of a script, and print the number of predicted voxels after each."""
    model, (volume, mask) = make_network(), make_volume(edge)
    x = torch.from_numpy(volume)[None, None] / 255
    y = torch.from_numpy(mask)[None, None].float()

    def differentiate(x_adv: Tensor) -> Tensor:
        leaf = x_adv.clone().requires_grad_()
        loss = F.binary_cross_entropy_with_logits(model(leaf), y)
        return torch.autograd.grad(loss, leaf)[0]

    results = [(x + EPS * differentiate(x).sign()).clamp(0, 1)]
    x_adv = (x + EPS * (2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) - 1)).clamp(0, 1)
    for _ in range(STEPS):
        stepped = x_adv + EPS / 4 * differentiate(x_adv).sign()
        x_adv = (x + (stepped - x).clamp(-EPS, EPS)).clamp(0, 1)
    results.append(x_adv)
    with torch.no_grad():
        print(*(int((model(each) > 0).sum()) for each in (x, *results)))


def measure(command: Sequence[str], limit_gb: float, folder: Path) -> float:
    """Run a command in a process of its own; return its peak resident memory in GB.

    Args:
        command: The command.
        limit_gb: Limit of its address space in GB.
        folder: Working directory and cache of the command.

    Raises:
        RuntimeError: If it does not exit with 0.
    """
    limit = int(limit_gb * 1e9)
    environment = os.environ | {"ADVSEG_BENCH_CACHE": str(folder / "cache"), "MPLBACKEND": "agg"}
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert process.stdout is not None
    output = process.stdout.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: expected exit code 0, got {process.returncode}.\n{output[-3000:]}")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def compare(edge: int, limit_gb: float) -> float:
    """Measure loop and suite on one volume, print both, and return their ratio."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        suite = write_suite(folder, edge)
        plain = measure([sys.executable, __file__, "--plain", str(edge)], limit_gb, folder)
        command = [sys.executable, "-m", "advseg_bench", "run", str(suite), "--out", str(folder / "run")]
        whole = measure([*command, "--workers", "1"], limit_gb, folder)
    print(f"{edge}^3: plain loop {plain:.2f} GB, suite {whole:.2f} GB, ratio {whole / plain:.2f}", flush=True)
    return whole / plain


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edges", type=int, nargs="+", default=[64, 128], help="edges of the volumes in voxels")
    parser.add_argument("--limit-gb", type=float, default=10.0, help="limit of the address space of each process")
    parser.add_argument("--plain", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain:
        attack_plainly(options.plain)
        return 0
    parameters = sum(p.numel() for p in make_network().parameters())
    print(f"3-D U-Net with {parameters:,} parameters, FGSM and PGD-{STEPS}, peak resident memory", flush=True)
    return int(max(compare(edge, options.limit_gb) for edge in options.edges) > THRESHOLD)


if __name__ == "__main__":
    sys.exit(main())
