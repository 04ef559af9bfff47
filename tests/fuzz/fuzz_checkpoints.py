"""Damaged and hostile checkpoints of a small network, in the formats of safetensors and `torch.save`."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from advseg_bench.models.module import SegmentationModule
from advseg_bench.models.weights import load_weights

SECONDS, MEGABYTES = 20.0, 2_000


def make_module() -> SegmentationModule:
    """A network of a few parameters."""
    with torch.random.fork_rng(devices=()):
        return SegmentationModule(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1)))


def change_tensor(tensor: Tensor, rng: Random) -> Any:
    """A tensor that the network cannot take, or that costs more than its file."""
    wide = tensor.double()
    made = (
        lambda: tensor.to("meta"),
        lambda: tensor.to_sparse(),
        lambda: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
        lambda: tensor > 0,
        lambda: tensor.to(torch.complex64),
        lambda: wide * 0 + 1e300,
        lambda: tensor * float("nan"),
        lambda: tensor.to(rng.choice([torch.int8, torch.float16, torch.bfloat16, torch.float64, torch.int64])),
        lambda: tensor.float().to(torch.float8_e4m3fn),
        lambda: torch.zeros(1).expand(*[10**4] * rng.choice([1, 2, 3])),
        lambda: torch.zeros(()).expand(tensor.shape),
        lambda: torch.zeros([0] * max(tensor.dim(), 1)),
        lambda: tensor.reshape(-1),
        lambda: torch.zeros(rng.choice([1, 3, 1000])),
        lambda: nn.Parameter(tensor.float()),
        lambda: None,
        lambda: "text",
        lambda: [1, 2, 3],
        lambda: {"inner": tensor},
        lambda: 10**100,
    )
    return rng.choice(made)()


def make_content(rng: Random) -> Any:
    """A state dict, changed and wrapped."""
    state: dict[Any, Any] = dict(make_module().net.state_dict())
    for _ in range(rng.choice([0, 0, 1, 1, 2])):
        name = rng.choice(list(state))
        match rng.randrange(5):
            case 0 | 1 | 2:
                state[name] = change_tensor(state[name], rng) if isinstance(state[name], Tensor) else 0
            case 3:
                state[rng.choice(["module." + str(name), "x" * 10_000, "a\x1b[31m", "a." * 500, "", 7, None])] = (
                    state.pop(name)
                )
            case _:
                state.pop(name)
    if rng.random() < 0.3:
        state = {
            f"{rng.choice(['module.', 'model.', '_orig_mod.', 'net.'])}{name}": value for name, value in state.items()
        }
    content: Any = state
    for _ in range(rng.choice([0, 0, 1, 2, 6])):
        content = {rng.choice(["state_dict", "model", "ema", "x"]): content, "epoch": 3}
    if rng.random() < 0.1:
        for _ in range(rng.choice([3, 30, 300])):
            content = rng.choice([{str(i): content for i in range(100)}, [content] * 50])
    return content


def save(content: Any, path: Path, rng: Random) -> None:
    """Write the content in one of the formats."""
    kind = rng.randrange(5)
    if kind == 0 and isinstance(content, dict):
        tensors = {
            str(k): v.contiguous()
            for k, v in content.items()
            if isinstance(v, Tensor)
            and v.layout == torch.strided
            and not v.is_meta
            and not v.is_quantized
            and v.numel() < 10**6
        }
        path.write_bytes(safetensors.torch.save(tensors))
        if rng.random() < 0.5:
            edit_header(path, rng)
        return
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=kind != 1)
    data = buffer.getvalue()
    if kind == 2:
        data = pack_again(data, rng)
    if kind == 3 and rng.random() < 0.3:
        data = pickle.dumps([10**5000, {"a": b"x" * 1000}, *[{}] * 10])
    path.write_bytes(data)


def edit_header(path: Path, rng: Random) -> None:
    """Change the header of a safetensors file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    name = rng.choice(list(header) or ["x"])
    entry = header.setdefault(name, {})
    match rng.randrange(6):
        case 0:
            entry["shape"] = rng.choice([[2**40], [-1], [0], [1] * 70, "x", [2**64], []])
        case 1:
            entry["dtype"] = rng.choice(["F64", "I8", "BOOL", "F8_E5M2", "F4", "C64", "", None, "BF16"])
        case 2:
            entry["data_offsets"] = rng.choice([[0, 2**50], [8, 4], [0, 0], [-1, 4], [0], None])
        case 3:
            header["x" * rng.choice([10, 10**5])] = entry
        case 4:
            header = rng.choice([[], 0, {}, {"__metadata__": {"a": 1}}, {"a": [[[]] * 1000]}])
        case _:
            entry["extra"] = "y" * 1000
    text = json.dumps(header).encode()
    length = len(text) if rng.random() < 0.8 else rng.choice([0, 2**63, 10**8, len(text) - 1])
    path.write_bytes(struct.pack("<Q", length) + text + data[8 + struct.unpack("<Q", data[:8])[0] :])


def pack_again(data: bytes, rng: Random) -> bytes:
    """Write the archive again, with members that are compressed, missing, renamed, repeated or huge."""
    target = io.BytesIO()
    how = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(target, "w", how) as file:
        for member in source.namelist():
            content = source.read(member)
            if rng.random() < 0.1:
                continue
            if member.endswith("data.pkl") and rng.random() < 0.4:
                place = rng.randrange(len(content))
                content = content[:place] + rng.randbytes(rng.choice([1, 4])) + content[place + 1 :]
            if rng.random() < 0.1:
                content += bytes(rng.choice([10, 10**7]))
            file.writestr(member if rng.random() < 0.95 else f"../{member}", content)
        if rng.random() < 0.1:
            file.writestr("archive/constants.pkl", b"")
    return target.getvalue()


def run(rng: Random, folder: Path) -> None:
    """Write a checkpoint, damage it and load it.

    Raises:
        UserError: If it is refused.
    """
    path = folder / rng.choice(["a.pt", "a.safetensors", "a.ckpt", "a"])
    save(make_content(rng), path, rng)
    data = bytearray(path.read_bytes())
    match rng.randrange(8):
        case 0 | 1:
            for _ in range(rng.choice([1, 2, 20])):
                data[rng.randrange(min(len(data), rng.choice([64, 1024, 10**6])))] = rng.randrange(256)
        case 2:
            data = data[: rng.randrange(len(data) + 1)]
        case 3 if rng.random() < 0.2:
            data = bytearray(rng.randbytes(rng.choice([0, 1, 9, 1000])))
        case _:
            pass
    path.write_bytes(data)
    load_weights(path, make_module())
