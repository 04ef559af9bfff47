"""What a suite is made of: data, models, training recipe, attacks, compute. Validated, frozen, torch-free."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    field_validator,
    model_serializer,
    model_validator,
)

from advseg_bench import catalogue, plugins, toolkits
from advseg_bench.errors import PluginError, unknown
from advseg_bench.plugins import Kind
from advseg_bench.types import EmptyRule, Norm, TaskKind


class Spec(BaseModel):
    """Base of all specifications: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _eps(value: object) -> object:
    """Read "4/255" or .0157."""
    if isinstance(value, str):
        try:
            value = float(Fraction(value.replace(" ", "")))
        except (ValueError, ZeroDivisionError, OverflowError):
            raise ValueError('expected a number or a fraction such as "4/255"') from None
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ValueError('expected a number or a fraction such as "4/255"')
    if not math.isfinite(value) or value < 0:
        raise ValueError("expected a finite eps >= 0")
    return float(value)


def _none(value: object) -> object:
    """Read "none", since TOML has no null; refuse true and false, which would count as 1 and 0."""
    if isinstance(value, bool):
        raise ValueError('expected a number or "none"')
    return None if value == "none" else value


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Refuse values that JSON lacks, such as dates."""
    try:
        json.dumps(settings, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected numbers, strings, booleans and lists of them: {error}") from None
    return settings


Millimetres = Annotated[float, Field(gt=0)]
ScanName = Annotated[str, Field(pattern=r"^case\d+_day\d+$")]
Settings = Annotated[dict[str, Any], AfterValidator(_plain)]


def _known(kind: Kind, name: str) -> str:
    """Accept a name that is shipped, of a plug-in or of a toolkit, or `package.module:object`."""
    try:
        toolkits.check_attack(name) if kind == "attack" else plugins.check_name(kind, name)
    except PluginError as error:
        raise ValueError(str(error)) from None
    return name


LossName = Annotated[str, AfterValidator(partial(_known, "loss"))]
AttackName = Annotated[str, AfterValidator(partial(_known, "attack"))]
ArchitectureName = Annotated[str, AfterValidator(partial(_known, "architecture"))]
Fit = Literal["pad", "stretch"]
Scale = Literal["max", "percentile", "dtype"] | tuple[float, float]
Eps = Annotated[float, BeforeValidator(_eps)]


class ImageData(Spec):
    """What every data set can be asked for.

    Attributes:
        task: How the labels are put to the model.
        size: Edge length in pixels; images are made square and resized by area.
        channels: 1, or 3 equal copies of the grey image.
        fit: How an image becomes square: "pad" around its centre, or "stretch" its shorter edge.
    """

    task: TaskKind = "multilabel"
    size: int = Field(default=64, ge=16, le=1024)
    channels: Literal[1, 3] = 1
    fit: Fit = "pad"

    @model_serializer(mode="wrap")
    def _leave_out_the_usual(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Say `fit` only where it is not the default: ids and fingerprints from before it existed stay as they were."""
        told: dict[str, Any] = handler(self)
        if told.get("fit") == type(self).model_fields["fit"].default:
            del told["fit"]
        return told

    @field_validator("name", check_fields=False)
    @classmethod
    def _check_name(cls, name: str) -> str:
        return _known("data set", name)


class Mni152Data(ImageData):
    """Axial slices of the MNI152 T1 average head, shipped in the package."""

    name: Literal["mni152"]


class PhantomData(ImageData):
    """Procedural abdominal MRI phantom.

    Attributes:
        subjects: Number of cases; about a sixth (at least one) is for validation, a quarter for test.
        days: Scans of each case; the bowel moves between them.
        slices: Slices of each scan.
        seed: Another seed, other anatomies.
    """

    name: Literal["phantom"]
    subjects: int = Field(default=12, ge=3)
    days: int = Field(default=1, ge=1)
    slices: int = Field(default=20, ge=1)
    seed: int = Field(default=0, ge=0)


class SplitData(ImageData):
    """Files of a user, whose subjects are sent to the splits by chance.

    Attributes:
        path: The folder; relative to the working directory.
        validation: Share of the subjects that choose the checkpoint.
        test: Share of the subjects that are attacked.
        seed: Which subjects go where.
    """

    path: Path
    validation: float = Field(default=0.15, gt=0, lt=1)
    test: float = Field(default=0.25, gt=0, lt=1)
    seed: int = Field(default=0, ge=0)


class FolderData(SplitData):
    """Images and masks on disk, matched by file stem.

    `path/images/NAME.{png,tif,tiff,nii,nii.gz}` goes with `path/masks/NAME.*` (binary, multiclass), or with
    `path/masks/CLASS/NAME.*` for each class (multilabel). A NIfTI volume gives one image per slice of its last axis.

    Attributes:
        classes: Class names. For multiclass the first is the background and mask values count from 0.
        soft: Masks hold probabilities scaled to the data type's maximum, binarised at 0.5. Otherwise only
            0 and 1, or 0 and 255 (0, 1, 2, ... for multiclass) are accepted.
        ignore: Mask value of pixels that count in no loss and no score, such as 255.
        scale: "max" divides an image (a volume, for NIfTI) by its own maximum, "percentile" by its 99.5th percentile,
            "dtype" by its type's largest value; a pair (lower, upper) is a window. All are clipped to [0, 1].
        subject: Regular expression with one group that finds the subject in a file's stem; by default the whole
            stem, so that each file is a subject of its own.
        spacing: Pixel edge lengths in mm (rows, columns); read from NIfTI headers when left out.
    """

    name: Literal["folder"]
    classes: tuple[str, ...] = Field(min_length=1)
    soft: bool = False
    ignore: int | None = None
    scale: Scale = "max"
    subject: str | None = None
    spacing: tuple[Millimetres, Millimetres] | None = None

    @model_validator(mode="after")
    def _fits(self) -> FolderData:
        """The number of classes fits the task."""
        given = len(self.classes)
        if self.task == "binary" and given != 1:
            raise ValueError(f"classes: a binary task has exactly one class, got {given}. Set task, or give one")
        if self.task == "multiclass" and given < 2:
            raise ValueError(f"classes: a multiclass task has a background and more, got {given}. Name them all")
        if len(set(self.classes)) < given:
            raise ValueError("classes: a name is listed twice")
        return self


class UwMadisonData(ImageData):
    """UW-Madison GI Tract: abdominal MRI with masks of large bowel, small bowel and stomach, as Kaggle hands it out.

    Attributes:
        path: The folder that holds train.csv and train/; relative to the working directory.
        fit: "stretch" is what the study of arXiv 2401.11224 does with slices that are not square.
        exclude: Scans to leave out: "common" (the two that are known to be mislabelled), "official" (twelve), "none",
            or a list such as ["case7_day0"].
        folds: Parts that the cases are divided in, about equal by number of slices.
        fold: The part that is for test, from 0.
        validation: Share of the other cases that chooses the checkpoint; at least one case.
        seed: Which cases are for validation.
        labelled_only: Whether the test split has only slices with a mask; training and validation have all.
        every: Keep each n-th slice of a scan only.
        neighbours: Whether the three channels are the slice before, the slice and the one after, not three copies.
    """

    name: Literal["uw_madison"]
    path: Path
    fit: Fit = "stretch"
    exclude: Literal["common", "official", "none"] | tuple[ScanName, ...] = "common"
    folds: int = Field(default=10, ge=2)
    fold: int = Field(default=0, ge=0)
    validation: float = Field(default=0.15, gt=0, lt=1)
    seed: int = Field(default=0, ge=0)
    labelled_only: bool = True
    every: int = Field(default=1, ge=1)
    neighbours: bool = False

    @model_validator(mode="after")
    def _fits(self) -> UwMadisonData:
        """The keys agree with each other."""
        if self.task == "multiclass":
            raise ValueError("task: masks may overlap, so it cannot be multiclass. Set multilabel or binary")
        if self.fold >= self.folds:
            raise ValueError(f"fold: expected 0 to {self.folds - 1}, got {self.fold}. Change it, or `folds`")
        if self.neighbours and self.channels != 3:
            raise ValueError("neighbours: three slices need channels = 3, got 1. Set channels, or neighbours = false")
        return self


class SliceData(SplitData):
    """Volumes, or what is left of them, whose slices are the images.

    Attributes:
        inputs: The one or three channels of the data, by name, that become the channels of the image; by default all
            of them, if the data have as many as `channels`, or one.
        scale: As for `folder`, for each channel of a volume by itself.
        labelled_only: Whether the test split has only slices that show a class; training and validation have all.
        every: Keep each n-th slice of a volume only.
    """

    inputs: tuple[str, ...] | None = Field(default=None, min_length=1)
    scale: Scale = "max"
    labelled_only: bool = True
    every: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _inputs_fit(self) -> SliceData:
        """As many inputs as channels, or one that is copied."""
        if self.inputs is not None and len(self.inputs) not in (1, self.channels):
            wanted = "one" if self.channels == 1 else "one or three"
            raise ValueError(f"inputs: channels = {self.channels} takes {wanted}, got {len(self.inputs)}")
        return self


class NnunetData(SliceData):
    """A raw data set of nnU-Net v2: dataset.json, imagesTr/CASE_0000.*, labelsTr/CASE.*.

    Attributes:
        subject: Regular expression with one group that finds the subject in a case's name; by default the whole name.
        fold: Take the cases of `val` of this fold of splits_final.json for test, and those for validation from its
            `train`; by default `validation`, `test` and `seed` decide alone.
    """

    name: Literal["nnunet"]
    subject: str | None = None
    fold: int | None = Field(default=None, ge=0)


class DecathlonData(SliceData):
    """A task of the Medical Segmentation Decathlon: dataset.json, imagesTr/, labelsTr/.

    Attributes:
        subject: Regular expression with one group that finds the subject in a case's name; by default the whole name.
    """

    name: Literal["decathlon"]
    subject: str | None = None


class LggData(SliceData):
    """Low-grade glioma MRI, kaggle_3m: a folder for each patient with three-channel TIFFs and their masks."""

    name: Literal["lgg"]
    scale: Scale = "dtype"


class PluginData(ImageData):
    """A data set of a plug-in, or of your own: a function `f(spec, **settings) -> Dataset`.

    Attributes:
        name: A plug-in's name, or "package.module:callable".
        settings: Its further arguments.
    """

    name: str
    settings: Settings = Field(default_factory=dict)


PLUGIN_TAG = "plug-in"


def _tag(value: Any) -> str | None:
    """Tell which data specification a table, or a specification, is."""
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    if name is None:
        return None
    return name if isinstance(name, str) and name in catalogue.DATASETS else PLUGIN_TAG


DataSpec = Annotated[
    Annotated[Mni152Data, Tag("mni152")]
    | Annotated[PhantomData, Tag("phantom")]
    | Annotated[FolderData, Tag("folder")]
    | Annotated[UwMadisonData, Tag("uw_madison")]
    | Annotated[NnunetData, Tag("nnunet")]
    | Annotated[DecathlonData, Tag("decathlon")]
    | Annotated[LggData, Tag("lgg")]
    | Annotated[PluginData, Tag(PLUGIN_TAG)],
    Discriminator(_tag),
]


class ModelSpec(Spec):
    """One model of the grid.

    Attributes:
        name: Shown in tables, unique in the suite.
        architecture: "smp.<Class>", "monai.<Class>", a plug-in's name, or "package.module:callable" for any network.
        encoder: Encoder name of segmentation-models-pytorch (and of MONAI's FlexibleUNet).
        settings: Further constructor arguments of the network.
        weights: A state dict, .safetensors or weights-only .pt; the model is then not trained.
        mean: Subtracted from the image inside the model.
        std: The image is divided by it inside the model, after `mean`.
        stride: Images are padded to a multiple of it inside the model; found from the network where it is known.
    """

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")
    architecture: ArchitectureName
    encoder: str | None = None
    settings: Settings = Field(default_factory=dict)
    weights: Path | None = None
    mean: float = 0.0
    std: float = Field(default=1.0, gt=0)
    stride: int | None = Field(default=None, ge=1)


RECIPES: dict[str, dict[str, Any]] = {
    # The study: arXiv 2401.11224 and its notebook.
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
    # Small networks at 64 px in about a minute each on one CPU thread.
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
        recipe: The preset whose values the other keys replace.
        loss: A loss of the catalogue; its mean over the batch is minimised.
        lr: First learning rate of the cosine.
        min_lr: Last learning rate of the cosine.
        weight_decay: AdamW's.
        batch: Images a step.
        epochs: Passes over the training split; a step is `batch` images.
        sampling: "uniform" without replacement, or "balanced": a class at random, then an image that shows it.
        augment: Any of "flip", "rot90", "affine", "brightness".
        head_bias: Initial bias of the output layer; about -2.5 keeps rare sigmoid classes from collapsing. "none"
            leaves it as it is.
        amp: Automatic mixed precision: float16 with a scaled loss on an accelerator, bfloat16 on a CPU. The loss itself
            is computed in float32.
        evaluate_every: Epochs between validations; the best checkpoint by validation Dice is kept.
        floor: A model trained here whose validation Dice stays under it is not handed on.
    """

    recipe: Literal["wang2024", "quick"] = "quick"
    loss: LossName
    lr: float = Field(gt=0)
    min_lr: float = Field(ge=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    batch: int = Field(ge=1)
    epochs: int = Field(ge=1)
    sampling: Literal["uniform", "balanced"]
    augment: tuple[Literal["flip", "rot90", "affine", "brightness"], ...]
    head_bias: Annotated[float | None, BeforeValidator(_none)]
    amp: bool = False
    evaluate_every: int = Field(default=1, ge=1)
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
        name: A name of the catalogue, of a plug-in, "<toolkit>.<Class>", or "package.module:object".
        losses: Attack losses; empty for controls.
        eps: Radii in image units; "4/255" or a number, for "linf" below 1.
        norm: Norm of the budget.
        draws: Independent repetitions of a random attack.
        settings: Constructor arguments of the attack.
        vary: Settings with a list of values each; every combination is an attack of its own.
    """

    name: AttackName
    losses: tuple[LossName, ...] = ()
    eps: tuple[Eps, ...] = Field(min_length=1)
    norm: Norm = "linf"
    draws: int = Field(default=1, ge=1)
    settings: Settings = Field(default_factory=dict)
    vary: Annotated[dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]], AfterValidator(_plain)] = Field(
        default_factory=dict
    )

    def list_settings(self) -> list[dict[str, Any]]:
        """Return every combination of settings; what equals the default of a shipped attack is left out."""
        entry = catalogue.ATTACKS.get(self.name)
        defaults = entry.defaults if entry else {}
        combined = (
            self.settings | dict(zip(self.vary, values, strict=True)) for values in product(*self.vary.values())
        )
        return [{k: v for k, v in each.items() if k not in defaults or defaults[k] != v} for each in combined]

    @model_validator(mode="after")
    def _fits(self) -> AttackSpec:
        """Losses and draws are given where they mean something, and nothing is listed twice."""
        for value in self.eps:
            if self.norm == "linf" and value >= 1:
                hint = f'For {value:g} of 255 grey levels write "{value:g}/255"' if value < 255 else "Write n/255"
                raise ValueError(
                    f"eps: expected L_inf radii below 1, in units of the image (0 to 1), got {value:g}. {hint}"
                )
        for key in self.vary:
            if key in self.settings:
                raise ValueError(f"vary: {key!r} of attack {self.name!r} stands in settings too. Remove one")
        lists = {"eps": self.eps, "losses": self.losses} | {f"vary.{key}": values for key, values in self.vary.items()}
        for what, values in lists.items():
            if any(value in values[:i] for i, value in enumerate(values)):
                raise ValueError(f"{what}: a value of attack {self.name!r} is listed twice")
        entry = catalogue.ATTACKS.get(self.name) or toolkits.find_row(self.name)
        if entry is None:
            return self
        if isinstance(entry, toolkits.Row) and entry.norms and self.norm not in entry.norms:
            known = " and ".join(entry.norms)
            raise ValueError(f"norm: attack {self.name!r} knows {known}, not {self.norm}. Change the key")
        if entry.needs_loss and not self.losses:
            raise ValueError(f'losses: attack {self.name!r} follows a loss. Give at least one, such as ["dice"]')
        if self.losses and not entry.needs_loss:
            raise ValueError(f"losses: attack {self.name!r} follows no loss. Remove the key")
        if self.draws > 1 and not entry.random:
            raise ValueError(f"draws: attack {self.name!r} draws no random numbers. Remove the key")
        return self


class Compute(Spec):
    """What a result depends on beside mathematics: part of the record.

    Attributes:
        batch: Images a forward pass; a short batch is padded, so that the same image always gives the same bits.
        threads: Threads of one worker.
    """

    batch: int = Field(default=8, ge=1)
    threads: int = Field(default=1, ge=1, le=256)


class Scoring(Spec):
    """The conventions by which counts become scores; a report can be made again with others.

    Attributes:
        empty: A class that an image does not show: "skip" leaves it out, "one" gives 1 if none was predicted and
            0 otherwise, "zero" gives 0.
        dice_threshold: The Dice that `dice_below` speaks of.
    """

    empty: EmptyRule = "skip"
    dice_threshold: float = Field(default=0.5, gt=0, lt=1)
