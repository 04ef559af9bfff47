"""Damaged data sets: a small one of each reader with some bytes, header fields, entries or names changed."""

from __future__ import annotations

import gzip
import json
import os
import struct
import tempfile
import zlib
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import nibabel
import numpy as np
from fuzz_suites import change
from PIL import Image

from advseg_bench.data import load_dataset
from advseg_bench.data.uw_madison.make import write_uw_madison
from advseg_bench.suite.specs import DecathlonData, FolderData, LggData, NnunetData, UwMadisonData

SECONDS, MEGABYTES = 20.0, 2_000
SHORTS = (40, 42, 44, 46, 48, 70, 72, 252, 254, 348)
FLOATS = (76, 80, 108, 112, 116, 280)
"""Where a header of NIfTI has its edges, type, codes and flag of extensions; spacing, offset, scale and affine."""


def draw(rng: Random, *shape: int) -> np.ndarray:
    """Random grey levels."""
    return np.random.default_rng(rng.randrange(2**32)).integers(0, 255, shape, dtype=np.uint8)


def save_volume(path: Path, values: np.ndarray, rng: Random) -> None:
    """Write a NIfTI file."""
    kind = rng.choice([np.uint8, np.int16, np.float32])
    nibabel.save(nibabel.Nifti1Image(values.astype(kind), np.diag([1.0, 1.0, 3.0, 1.0])), path)


def make_pictures(rng: Random, folder: Path) -> dict[str, Any]:
    """Images and masks in a format of pictures."""
    ending = rng.choice(["png", "png", "tif", "tif", "bmp", "gif", "jpg", "webp"])
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for i in range(4):
        grey = draw(rng, 20, 24)
        picture = Image.fromarray(grey if rng.random() < 0.7 else grey.astype(np.uint16) * 200)
        if rng.random() < 0.3:
            picture = Image.fromarray(draw(rng, 20, 24, rng.choice([3, 4])))
        if ending in ("jpg", "bmp", "gif", "webp"):
            picture = picture.convert("L")
        options = {"save_all": True, "append_images": [picture] * 2} if ending == "tif" and rng.random() < 0.2 else {}
        if ending == "tif" and not options:
            options = {"compression": rng.choice([None, "tiff_lzw", "tiff_deflate", "packbits"])}
        picture.save(folder / f"images/p{i}.{ending}", **options)
        Image.fromarray((grey > 128).astype(np.uint8) * 255).save(folder / f"masks/p{i}.png")
    return {"name": "folder", "task": "binary", "classes": ("a",), "channels": rng.choice([1, 3])}


def make_volumes(rng: Random, folder: Path) -> dict[str, Any]:
    """Volumes with masks."""
    ending = rng.choice(["nii", "nii.gz"])
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for i in range(4):
        values = draw(rng, 18, 16, 3)
        save_volume(folder / f"images/p{i}.{ending}", values, rng)
        save_volume(folder / f"masks/p{i}.{ending}", values > 128, rng)
    keys = {"size": (16, 16, 16)} if rng.random() < 0.3 else {"orientation": rng.choice([None, "LPS"])}
    return {"name": "folder", "task": "binary", "classes": ("a",), **keys}


def make_nnunet(rng: Random, folder: Path) -> dict[str, Any]:
    """A raw data set of nnU-Net."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir()
    for i in range(4):
        values = draw(rng, 16, 18, 2)
        save_volume(folder / f"imagesTr/c{i}_0000.nii.gz", values, rng)
        save_volume(folder / f"labelsTr/c{i}.nii.gz", values % 3, rng)
    content = {
        "channel_names": {"0": "T1"},
        "labels": {"background": 0, "a": 1, "b": [1, 2]},
        "numTraining": 4,
        "file_ending": ".nii.gz",
        "name": "set",
    }
    write_json(folder / "dataset.json", content, rng)
    folds = [{"train": ["c0", "c1", "c2"], "val": ["c3"]}]
    write_json(folder / "splits_final.json", folds, rng)
    return {
        "name": "nnunet",
        "task": "multilabel",
        "fold": rng.choice([None, 0]),
        "subject": rng.choice([None, r"(c\d+)"]),
    }


def make_decathlon(rng: Random, folder: Path) -> dict[str, Any]:
    """A task of the Decathlon."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir()
    for i in range(4):
        values = draw(rng, 16, 18, 2, 2)
        save_volume(folder / f"imagesTr/c{i}.nii.gz", values, rng)
        save_volume(folder / f"labelsTr/c{i}.nii.gz", values[..., 0] % 3, rng)
    content = {
        "modality": {"0": "T2", "1": "ADC"},
        "labels": {"0": "background", "1": "a", "2": "b"},
        "numTraining": 4,
        "training": [{"image": f"./imagesTr/c{i}.nii.gz", "label": f"./labelsTr/c{i}.nii.gz"} for i in range(4)],
    }
    write_json(folder / "dataset.json", content, rng)
    return {"name": "decathlon", "task": "multiclass", "channels": 2}


def make_lgg(rng: Random, folder: Path) -> dict[str, Any]:
    """Slices of glioma."""
    for i in range(4):
        patient = f"TCGA_CS_494{i}_19990909"
        (folder / patient).mkdir()
        for z in (1, 2):
            Image.fromarray(draw(rng, 20, 20, 3)).save(folder / patient / f"{patient}_{z}.tif")
            Image.fromarray((draw(rng, 20, 20) > 128).astype(np.uint8) * 255).save(
                folder / patient / f"{patient}_{z}_mask.tif"
            )
    return {"name": "lgg", "task": "binary", "channels": 3}


def make_uw(rng: Random, folder: Path) -> dict[str, Any]:
    """Slices of bowel with a table of masks."""
    source = _uw_source()
    os.system(f"cp -r {source}/. {folder}")
    return {"name": "uw_madison", "folds": 3, "task": "multilabel"}


def _uw_source() -> Path:
    """One small data set, written once per cache."""
    path = Path(os.environ.get("ADVSEG_BENCH_CACHE", tempfile.gettempdir())) / "fuzz_uw"
    if not path.exists():
        write_uw_madison(path, cases=4, slices=2, days=1, seed=0, workers=1)
    return path


def write_json(path: Path, content: Any, rng: Random) -> None:
    """Write JSON, in a third of the cases with changed entries."""
    if rng.random() < 0.3:
        tables = {"x": content}
        for _ in range(rng.choice([1, 2])):
            change(tables, rng, ["labels", "name", "training", "dataset", "file_ending", "0", "ignore"])
        content = tables.get("x", [])
    text = json.dumps(content, default=str)
    if rng.random() < 0.04:
        text = rng.choice(
            ["[" * 100_000, "1" * 6_000, "{", "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), ""]
        )
    path.write_text(text)


def damage(path: Path, rng: Random) -> None:
    """Change one file."""
    data = bytearray(path.read_bytes())
    packed = path.name.endswith(".gz")
    kind = rng.randrange(9)
    if path.name.endswith((".nii", ".nii.gz")) and kind < 5:
        with suppress(OSError, EOFError, zlib.error):  # damaged before
            data = bytearray(gzip.decompress(data)) if packed else data
        for _ in range(rng.choice([1, 2])):
            where, form = rng.choice([*((at, "<h") for at in SHORTS), *((at, "<f") for at in FLOATS)])
            value = rng.choice([0, 1, 2, 3, 4, 16, 64, 255, 512, 4096, 32767, -1, -32768, 1e30, float("nan"), 1e9])
            size = struct.calcsize(form)
            value = value if form == "<f" else int(max(-32768, min(value if value == value else 0, 32767)))
            data[where : where + size] = struct.pack(form, value)
        if rng.random() < 0.1:
            data += bytes(rng.choice([1, 10, 60]) * 10**6)
        path.write_bytes(gzip.compress(data, 1) if packed else data)
        return
    if path.suffix == ".png" and kind < 3 and len(data) > 33:
        data[16:24] = struct.pack(">II", *(rng.choice([0, 1, 20, 24, 3_000, 30_000, 65_535, 2**31 - 1]) for _ in "ab"))
        if rng.random() < 0.3:
            data[24:26] = bytes([rng.choice([1, 2, 8, 16, 3]), rng.choice([0, 2, 3, 4, 6, 7])])
        data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
        path.write_bytes(data)
        return
    match kind:
        case 0 | 1 | 2 | 3:
            for _ in range(rng.choice([1, 3, 20])):
                if data:
                    data[rng.randrange(min(len(data), rng.choice([64, 512, 10**6])))] = rng.randrange(256)
        case 4:
            data = data[: rng.randrange(len(data) + 1)]
        case 5:
            data = bytearray(rng.randbytes(rng.choice([0, 10, 3_000])))
        case 6:
            others = [other for other in path.parent.iterdir() if other.is_file()]
            data = bytearray(rng.choice(others).read_bytes())
        case 7:
            name = rng.choice(["a\x1b[31mb", "x" * 250, "a\nb", "\u202eevil", "=1+1", "..", "é", "a|b<c>"])
            target = path.with_name(f"{name}{path.suffix}"[-255:])
            if not target.exists():
                path.rename(target)
            return
        case _:
            data[:0] = rng.randbytes(4)
    path.write_bytes(data)


def run(rng: Random, folder: Path) -> None:
    """Write a data set, damage it and read it.

    Raises:
        UserError: If it is refused.
    """
    makers = [make_pictures, make_pictures, make_volumes, make_volumes, make_nnunet, make_decathlon, make_lgg, make_uw]
    keys = rng.choice(makers)(rng, folder)
    for _ in range(rng.choice([0, 1, 1, 1, 3])):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        damage(rng.choice(files), rng)
    if keys["name"] != "uw_madison":
        keys["scale"] = rng.choice(["max", "percentile", "dtype", (0.0, 100.0)])
    kinds = {
        "folder": FolderData,
        "nnunet": NnunetData,
        "decathlon": DecathlonData,
        "lgg": LggData,
        "uw_madison": UwMadisonData,
    }
    spec = kinds[keys["name"]](**({"size": 16, "path": folder} | keys))
    dataset = load_dataset(spec)
    for index in range(len(dataset.cases)):
        dataset.batch([index])
