"""A data set: a function that is told task, size and channels in `spec`, and its settings by name."""

import numpy as np

from advseg_bench.data.dataset import Case, Dataset
from advseg_bench.data.prepare import fingerprint, prepare, task_for

SPLITS = ("train", "train", "validation", "test")
VERSION = "1"  # raise it when the images change


def discs(spec, subjects=8, noise=0.05):
    """Draw a bright disc on a dark ground, four images for each subject."""
    cases = [
        Case(f"discs/{subject}-{k}", f"subject{subject}", f"subject{subject}", (1.0, 1.0), SPLITS[subject % 4])
        for subject in range(subjects)
        for k in range(4)
    ]

    def read(index):
        draw = np.random.default_rng(index)
        row, column, radius = draw.uniform((20, 20, 6), (44, 44, 16))
        rows, columns = np.mgrid[:64, :64]
        disc = (rows - row) ** 2 + (columns - column) ** 2 < radius**2
        image = (0.3 + 0.4 * disc + noise * draw.standard_normal(disc.shape)).clip(0, 1)
        return prepare(image, disc[None], None, spec)

    task = task_for(spec.task, ("disc",))
    return Dataset(name="discs", task=task, cases=cases, read=read, fingerprint=fingerprint(spec, VERSION))
