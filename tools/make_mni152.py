"""Create `mni152.npz` from the ICBM 152 templates of nilearn: `python tools/make_mni152.py`.

For maintainers, with nilearn 0.12.1; an installed package already has the file. It holds pixels of 2 mm (2 x 2 means in
plane), which makes half a megabyte; every axial slice with brain; and exclusive labels from the pooled tissue
probabilities. Slices are in radiological orientation: anterior is up, and the patient's right is on the left.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import sys
import zipfile
from importlib import resources
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from advseg_bench.errors import DataError, expected

OUTPUT = Path(__file__).parents[1] / "advseg_bench" / "data" / "mni152.npz"
SOURCES = {
    "t1": "421a10e872fd6cadae7f61d358dffbcc1795a497d61ee76c5dda2503e1a1e9e6",
    "gm": "97a5ca69bd24db37a9cb7b32525e1733a209af904129bf1cd36da06d24243bed",
    "wm": "382d92812de4744f9c86c7a0e4f680dc317a0a50e4da1f0153618a6798c7b7db",
}
"""sha256 of the files of nilearn 0.12.1, by tissue."""

CLASSES = ("grey_matter", "white_matter", "csf")
"""Names of labels 1, 2 and 3; 0 is outside the brain."""

PIXEL = 2
"""Number of voxels (1 mm) per pixel along each axis."""

Bytes = NDArray[np.uint8]


def read_source(tissue: str) -> tuple[Bytes, float]:
    """Read one template of nilearn in radiological orientation.

    Args:
        tissue: A key of `SOURCES`.

    Returns:
        uint8 (slices, rows, columns), see `turn`; and the z coordinate of the first slice in mm.

    Raises:
        DataError: The file is not that of nilearn 0.12.1.
    """
    name = f"mni_icbm152_{tissue}_tal_nlin_sym_09a_converted.nii.gz"
    packed = resources.files("nilearn.datasets.data").joinpath(name).read_bytes()
    digest = hashlib.sha256(packed).hexdigest()
    print(f"{digest}  {name}")
    if digest != SOURCES[tissue]:
        raise DataError(expected(name, f"sha256 {SOURCES[tissue]}", digest, "Install nilearn==0.12.1."))
    volume = nibabel.Nifti1Image.from_bytes(gzip.decompress(packed))
    assert nibabel.aff2axcodes(volume.affine) == ("R", "A", "S")
    return turn(np.asanyarray(volume.dataobj)), float(volume.affine[2, 3])


def turn(voxels: Bytes) -> Bytes:
    """Reorder a volume to radiological orientation.

    Args:
        voxels: Volume with axes to the patient's right, anterior and superior.

    Returns:
        Slices from inferior to superior, rows from anterior to posterior, columns from the patient's right to left.
    """
    return voxels[::-1, ::-1].transpose(2, 1, 0)


def pool(voxels: Bytes) -> NDArray[np.uint16]:
    """Sum `PIXEL` x `PIXEL` voxels in plane; a missing last row or column (posterior, left) counts as 0."""
    odd = [(0, -n % PIXEL) for n in voxels.shape[1:]]
    padded = np.pad(voxels, [(0, 0), *odd]).astype(np.uint16)
    slices, rows, columns = padded.shape
    blocks = padded.reshape(slices, rows // PIXEL, PIXEL, columns // PIXEL, PIXEL)
    sums: NDArray[np.uint16] = blocks.sum(axis=(2, 4), dtype=np.uint16)
    return sums


def derive() -> dict[str, NDArray[np.generic]]:
    """Compute the arrays of the shipped file.

    Returns:
        `t1`, uint8 (155, 117, 99), the rounded mean; `labels`, uint8 of the same shape, 0 outside the brain and n for
        `CLASSES[n - 1]`; `z_mm`, int16 (155,), the coordinates of the slices; `spacing_mm`, float64 (2,), the edge
        lengths of a pixel (rows, columns).
    """
    volumes = {tissue: read_source(tissue) for tissue in SOURCES}
    sums = {tissue: pool(voxels) for tissue, (voxels, _) in volumes.items()}
    voxels = PIXEL * PIXEL
    t1 = ((sums["t1"] + voxels // 2) // voxels).astype(np.uint8)
    brain = t1 > 0
    labels = np.where(brain, np.uint8(3), np.uint8(0))
    for value, tissue in ((1, "gm"), (2, "wm")):
        labels[brain & (2 * sums[tissue] > 255 * voxels)] = value
    shown = brain.any(axis=(1, 2))
    z_mm = volumes["t1"][1] + np.flatnonzero(shown)
    return {
        "t1": t1[shown],
        "labels": labels[shown],
        "z_mm": z_mm.astype(np.int16),
        "spacing_mm": np.full(2, PIXEL, np.float64),
    }


def pack(arrays: dict[str, NDArray[np.generic]]) -> bytes:
    """Return a compressed npz that depends only on the arrays; `numpy.savez_compressed` adds the time.

    Args:
        arrays: Arrays by name, stored in this order.

    Returns:
        The content of the file; its bytes are reproducible with the same version of zlib.
    """
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system = 3  # makes the bytes independent of the operating system
            archive.writestr(info, member.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)
    return target.getvalue()


def main(output: Path = OUTPUT) -> None:
    """Write the file, and print the sha256 of all files read and written.

    Args:
        output: File to write; by default that of this package.

    Raises:
        DataError: The files of nilearn are not those of 0.12.1.
        ModuleNotFoundError: nilearn is not installed.
    """
    packed = pack(derive())
    output.write_bytes(packed)
    print(f"{hashlib.sha256(packed).hexdigest()}  {output.name} ({len(packed):,} bytes)")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
