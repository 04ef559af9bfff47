"""Specifications of training, attacks, compute and scoring of a suite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from advseg_bench.errors import SpecError, unknown
from advseg_bench.registry import catalogue, toolkits
from advseg_bench.registry.preparation import read_steps
from advseg_bench.suite.specs.base import Settings, Spec, check_known, plain
from advseg_bench.suite.specs.images import LARGEST
from advseg_bench.suite.specs.limits import (
    LARGEST_BATCH,
    LARGEST_STEP,
    MOST_COMBINATIONS,
    MOST_DRAWS,
    MOST_LOSSES,
    MOST_RADII,
)
from advseg_bench.suite.specs.radii import Eps
from advseg_bench.types import EmptyRule, Norm


def _prepare(value: str) -> str:
    """Parse "fold+lean" or "raw" into the canonical order of steps."""
    if value == "auto":
        raise ValueError('expected steps such as "lean"; "auto" depends on timing, so a run would not be reproducible')
    try:
        return "+".join(read_steps(value)) or "raw"
    except SpecError as error:
        raise ValueError(str(error)) from None


def _none(value: object) -> object:
    """Parse "none", since TOML has no null; reject true and false, which would count as 1 and 0."""
    if isinstance(value, bool):
        raise ValueError('expected a number or "none"')
    return None if value == "none" else value


LossName = Annotated[str, AfterValidator(partial(check_known, "loss"))]
AttackName = Annotated[str, AfterValidator(partial(check_known, "attack"))]


RECIPES: dict[str, dict[str, Any]] = {
    # As in the study, arXiv 2401.11224, and its notebook.
    "wang2024": {
        "loss": "dice_focal",
        "lr": 3e-4,
        "min_lr": 5e-6,
        "batch": 16,
        "epochs": 15,
        "sampling": "uniform",
        "augment": ["flip", "rot90", "affine", "brightness"],
        "head_bias": None,
        "amp": True,
    },
    # For small networks at 64 px on a CPU.
    "quick": {
        "loss": "dice_focal",
        "lr": 2e-3,
        "min_lr": 1e-5,
        "batch": 8,
        "epochs": 40,
        "sampling": "balanced",
        "augment": ["flip", "affine", "brightness"],
        "head_bias": -2.5,
    },
}


class Recipe(Spec):
    """How the models of a suite are trained: AdamW with a cosine schedule.

    Attributes:
        recipe: Preset whose values the other keys override.
        loss: Training loss, a name of the catalogue; its mean over the batch is minimised.
        lr: Initial learning rate.
        min_lr: Final learning rate.
        weight_decay: Weight decay of AdamW.
        batch: Images per training step.
        epochs: Passes over the training split.
        sampling: "uniform" without replacement, or "balanced": a random class, then a random image that contains it.
        augment: Augmentations, any of "flip", "rot90", "affine", "brightness".
        head_bias: Initial bias of the output layer; about -2.5 keeps rare sigmoid classes from collapsing. "none"
            keeps the network's initial bias.
        amp: Whether to use automatic mixed precision: float16 with a scaled loss on an accelerator, bfloat16 on a CPU.
            The loss itself is computed in float32.
        evaluate_every: Epochs between validations; the checkpoint with the best validation Dice is kept.
        floor: Lowest accepted validation Dice; a trained model below it fails and is not attacked.
    """

    recipe: Literal["wang2024", "quick"] = "quick"
    loss: LossName
    lr: float = Field(gt=0)
    min_lr: float = Field(ge=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    batch: int = Field(ge=1, le=LARGEST_BATCH)
    epochs: int = Field(ge=1, le=LARGEST_STEP)
    sampling: Literal["uniform", "balanced"]
    augment: tuple[Literal["flip", "rot90", "affine", "brightness"], ...]
    head_bias: Annotated[float | None, BeforeValidator(_none)]
    amp: bool = False
    evaluate_every: int = Field(default=1, ge=1, le=LARGEST_STEP)
    floor: float = Field(default=0.5, ge=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        preset = data.get("recipe", "quick")
        if not isinstance(preset, str) or preset not in RECIPES:
            raise ValueError(unknown("", "recipe", str(preset), RECIPES))
        return RECIPES[preset] | data


class AttackSpec(Spec):
    """One attack of a suite, over its losses and budgets.

    Attributes:
        name: Name in the catalogue or of a plug-in, "<toolkit>.<Class>", or "package.module:object".
        losses: Attack losses; empty for attacks without one, such as noise baselines.
        eps: Radii in image units; a number or a fraction such as "0.5/255", for "linf" below the width of the bounds,
            which is 1 by default.
        norm: Norm of the budget.
        draws: Number of repeats of a random attack.
        settings: Constructor arguments of the attack.
        vary: Lists of values by setting; every combination is a separate arm.
        max_forwards: Limit of forward passes per image; an attack that exceeds it is stopped and fails. It is not
            part of a cell's id, since it changes no result.
    """

    name: AttackName
    losses: tuple[LossName, ...] = Field(default=(), max_length=MOST_LOSSES)
    eps: tuple[Eps, ...] = Field(min_length=1, max_length=MOST_RADII)
    norm: Norm = "linf"
    draws: int = Field(default=1, ge=1, le=MOST_DRAWS)
    settings: Settings = Field(default_factory=dict)
    vary: Annotated[dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]], AfterValidator(plain)] = Field(
        default_factory=dict
    )
    max_forwards: int | None = Field(default=None, ge=1)

    def list_settings(self) -> list[dict[str, Any]]:
        """Return every combination of settings; values that equal the default of a shipped attack are omitted."""
        combined = (
            self.settings | dict(zip(self.vary, values, strict=True)) for values in product(*self.vary.values())
        )
        return [catalogue.drop_defaults(self.name, each) for each in combined]

    @property
    def combinations(self) -> int:
        """Number of combinations of `vary`, without making them."""
        return math.prod(map(len, self.vary.values()))

    @model_validator(mode="after")
    def _fits(self) -> AttackSpec:
        """Check that norm, losses and repeats suit the attack, and that no value is listed twice."""
        if self.combinations > MOST_COMBINATIONS:
            what = f"at most {MOST_COMBINATIONS:,} combinations, got {self.combinations:,}. Vary fewer settings"
            raise ValueError(f"vary: expected {what}")
        for key in self.vary:
            if key in self.settings:
                raise ValueError(f"vary: {key!r} of attack {self.name!r} is in settings too. Remove one")
        lists = {"eps": self.eps, "losses": self.losses} | {f"vary.{key}": values for key, values in self.vary.items()}
        for what, values in lists.items():
            if any(value in values[:i] for i, value in enumerate(values)):
                raise ValueError(f"{what}: a value of attack {self.name!r} is listed twice. Remove one")
        entry = catalogue.ATTACKS.get(self.name) or toolkits.find_row(self.name)
        if entry is None:
            return self
        if self.norm not in entry.traits.norms:
            known = " and ".join(entry.traits.norms)
            raise ValueError(f"norm: attack {self.name!r} supports {known}, not {self.norm}. Change the key")
        if entry.needs_loss and not self.losses:
            raise ValueError(f'losses: attack {self.name!r} needs a loss. Give at least one, such as ["dice"]')
        if self.losses and not entry.needs_loss:
            raise ValueError(f"losses: attack {self.name!r} takes no loss. Remove the key")
        if self.draws > 1 and not any(entry.traits_of(settings).random for settings in self.list_settings()):
            raise ValueError(f"draws: attack {self.name!r} is not random. Remove the key")
        return self


RESOURCES = ("max_seconds", "cpus", "gpus", "memory_gb")
"""Keys of `Compute` that limit a job or state what it takes of a cluster; they change no result."""


class Compute(Spec):
    """Compute settings. On the first three, the exact bits of a result depend.

    Attributes:
        batch: Images per forward pass, by default 8, and 1 for volumes; a short batch is padded, so that the same image
            always gives the same bits.
        threads: Threads per worker.
        prepare: Preparation of the copy of each model that is attacked, see `models.prepare`: steps such as
            "fold+lean", or "raw" for none. "lean" changes no bit of a result, and does nothing on batches of up to
            2^15 pixels. If a copy does not agree with its model, the model itself is attacked, as `models/NAME.json`
            records. The original model always computes the scores.
        max_seconds: Longest time of a call of an attack, per image of the compute batch. An attack that takes longer
            is stopped with its worker process, and its cell fails.
        cpus: CPUs that a job takes of a cluster, by default as many as `threads`. This key and the next two change
            no result, and are used by executors that place jobs on machines, such as Ray.
        gpus: GPUs that a job takes of a cluster, also a fraction, by default 1 if the device is "cuda", otherwise 0.
        memory_gb: Memory in GB (10^9 bytes) that a job takes of a cluster, by default not counted.
    """

    batch: int = Field(default=8, ge=1, le=LARGEST_BATCH)
    threads: int = Field(default=1, ge=1, le=256)
    prepare: Annotated[str, AfterValidator(_prepare)] = "lean"
    max_seconds: float = Field(default=600.0, gt=0, allow_inf_nan=False)
    cpus: float | None = Field(default=None, gt=0, le=1024)
    gpus: float | None = Field(default=None, ge=0, le=64)
    memory_gb: float | None = Field(default=None, gt=0, le=100_000)

    @model_serializer(mode="wrap")
    def _leave_out_defaults(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out limits and resources at their default, so that the identity of suites without them stays."""
        values: dict[str, Any] = serialise(self)
        fields = type(self).model_fields
        unset = {name for name in RESOURCES if getattr(self, name) == fields[name].default}
        return {name: value for name, value in values.items() if name not in unset}


Window = Annotated[int, Field(ge=1, le=LARGEST)]


class Inference(Spec):
    """Sliding windows through which models are trained, scored and attacked, as MONAI's `SlidingWindowInferer`.

    Attributes:
        roi: Edges of a window in pixels, one for each space axis of `data.size`; or one number for all.
        overlap: Share of an edge that neighbouring windows have in common.
        mode: Weight of a window's logits where windows overlap: "constant", or "gaussian", which favours its centre.
    """

    roi: Annotated[tuple[Window, ...], Field(max_length=3)] | Window
    overlap: float = Field(default=0.25, ge=0, lt=1)
    mode: Literal["constant", "gaussian"] = "constant"

    @property
    def edges(self) -> tuple[int, ...]:
        """The edges of a window, or the one for all axes."""
        return (self.roi,) if isinstance(self.roi, int) else self.roi

    def describe(self, edges: Sequence[int]) -> str:
        """Return the windows of an image with these edges, as "32 x 32 px, overlap 0.5, gaussian; 9 per image"."""
        roi = self.edges * len(edges) if len(self.edges) == 1 else self.edges
        starts = (list_starts(max(edge, window), window, self.overlap) for edge, window in zip(edges, roi, strict=True))
        count = math.prod(map(len, starts))
        return f"{' x '.join(map(str, roi))} px, overlap {self.overlap:g}, {self.mode}; {count:,} per image"


def list_starts(size: int, window: int, overlap: float) -> list[int]:
    """Return the first pixels of the windows along an axis, at equal distances; the last window ends at the border."""
    step = window if window == size else max(int(window * (1 - overlap)), 1)
    count = math.ceil((size - window) / step) + 1
    return [min(i * step, size - window) for i in range(count)]


def describe_inference(inference: Inference | None) -> dict[str, Any]:
    """Return what the identity of a model states about sliding windows: nothing without them."""
    if inference is None:
        return {}
    return {"inference": inference.model_dump(mode="json") | {"roi": list(inference.edges)}}


class Scoring(Spec):
    """Conventions by which pixel counts become scores; a report can be written again with others.

    Attributes:
        empty: Score of a class that is absent from an image: "skip" excludes it, "one" gives 1 if no pixel was
            predicted and 0 otherwise, "zero" gives 0.
        dice_threshold: Threshold of the score `dice_below`.
    """

    empty: EmptyRule = "skip"
    dice_threshold: float = Field(default=0.5, gt=0, lt=1)
