"""What hypothesis draws from, and small batches: in one place."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from advseg_bench.batches import Batch
from advseg_bench.types import Bounds, Task, TaskKind

KINDS: tuple[TaskKind, ...] = ("binary", "multilabel", "multiclass")
CHANNELS = {"binary": 1, "multilabel": 3, "multiclass": 4}

kinds = st.sampled_from(KINDS)
seeds = st.integers(0, 2**32 - 1)
spaces = st.one_of(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5)),
)
eps_values = st.floats(0.0, 0.5, allow_nan=False)
norms = st.sampled_from(("linf", "l2"))


def make_task(kind: TaskKind) -> Task:
    return Task(kind, tuple(f"class{i}" for i in range(CHANNELS[kind])))


def make_batch(
    kind: TaskKind, seed: int = 0, n: int = 3, space: tuple[int, ...] = (7, 5), void: float = 0.0
) -> tuple[Batch, torch.Tensor]:
    """A batch of random images and labels, and random float32 logits for it."""
    g = torch.Generator().manual_seed(seed)
    task = make_task(kind)
    k = CHANNELS[kind]
    if kind == "multiclass":
        y = torch.randint(0, k, (n, *space), generator=g)
    else:
        y = torch.rand((n, k, *space), generator=g) < 0.4
    batch = Batch(
        x=torch.rand((n, 2, *space), generator=g),
        y=y,
        valid=torch.rand((n, *space), generator=g) >= void,
        task=task,
        bounds=Bounds(),
        images=tuple(f"image{i}" for i in range(n)),
        subjects=tuple(f"subject{i}" for i in range(n)),
        blocks=("block",) * n,
        spacing=((1.0,) * len(space),) * n,
    )
    return batch, torch.randn((n, k, *space), generator=g) * 3


def make_generators(n: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + i) for i in range(n)]
