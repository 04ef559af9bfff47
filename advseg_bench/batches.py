"""Parts of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from advseg_bench.types import Batch


def select_images(batch: Batch, indices: Sequence[int]) -> Batch:
    """Return some images of a batch, in the given order, with all that belongs to them."""
    rows = torch.as_tensor(list(indices), device=batch.x.device)
    return replace(
        batch,
        x=batch.x[rows],
        y=batch.y[rows],
        valid=batch.valid[rows],
        images=tuple(batch.images[i] for i in indices),
        subjects=tuple(batch.subjects[i] for i in indices),
        blocks=tuple(batch.blocks[i] for i in indices),
        spacing=tuple(batch.spacing[i] for i in indices),
    )
