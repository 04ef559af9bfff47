"""Specifications of the data sets that a suite can use."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from advseg_bench.registry import catalogue
from advseg_bench.suite.specs.base import Settings, Spec
from advseg_bench.suite.specs.images import FileData, Fit, ImageData, Millimetres, Scale, ScanName
from advseg_bench.suite.specs.limits import LARGEST_STEP, MOST_NAMES, MOST_SCANS, Label, Pattern, Place, Seed


def divide_subjects(count: int) -> tuple[int, int, int]:
    """Return the numbers of subjects of a phantom for training, validation (a sixth) and test (a quarter).

    Args:
        count: Number of subjects, at least 3.
    """
    validation, test = max(1, round(count / 6)), max(1, round(count / 4))
    return count - validation - test, validation, test


def check_scans(called: str, subjects: int, days: int, slices: int) -> None:
    """Refuse phantom data that would take days to generate."""
    if (scans := subjects * days * slices) > MOST_SCANS:
        raise ValueError(f"{called}: expected at most {MOST_SCANS:,} slices in all, got {scans:,}. Lower it")


class Mni152Data(ImageData):
    """Axial slices of the MNI152 T1 average head, shipped in the package."""

    name: Literal["mni152"]


class PhantomData(ImageData):
    """Procedural abdominal MRI phantom.

    Attributes:
        subjects: Number of subjects; about a sixth (at least one) is for validation, a quarter for test.
        days: Scans per subject; the bowel moves between them.
        slices: Slices per scan.
        seed: Random seed of the anatomies.
    """

    name: Literal["phantom"]
    subjects: int = Field(default=12, ge=3)
    days: int = Field(default=1, ge=1)
    slices: int = Field(default=20, ge=1)
    seed: Seed = 0

    @model_validator(mode="after")
    def _is_drawn(self) -> PhantomData:
        """Check that the data can be generated."""
        check_scans("subjects", self.subjects, self.days, self.slices)
        return self


class FolderData(FileData):
    """Images and masks on disk, matched by file stem.

    `path/images/NAME.*` goes with `path/masks/NAME.*` (binary, multiclass), or with `path/masks/CLASS/NAME.*` for each
    class (multilabel); a mask may be called NAME_segmentation, NAME_mask, NAME_label or NAME_seg. Formats are PNG,
    TIFF, JPEG, BMP, GIF, WebP and NIfTI. A NIfTI volume gives one image per slice of its last axis, or one 3-D image if
    `size` has three edges; its fourth axis holds channels, as the pages of a TIFF do.

    Attributes:
        channel_names: Names of the channels for the record, as many as `channels`.
        classes: Class names. For multiclass the first is the background and mask values start at 0.
        soft: Whether masks hold probabilities, scaled to the maximum of the data type and binarised at 0.5. Otherwise
            only 0 and 1, or 0 and 255 (0, 1, 2, ... for multiclass) are accepted.
        ignore: Mask value of pixels that are excluded from all losses and scores, such as 255.
        subject: Regular expression with one group that matches the subject in a file's stem; by default the whole
            stem, so that each volume is a separate subject, and 2-D images count by themselves.
        spacing: Pixel spacing in mm (rows, columns); by default read from NIfTI headers. The slice spacing of a
            volume is always read from the header.
    """

    name: Literal["folder"]
    classes: tuple[Label, ...] = Field(min_length=1, max_length=MOST_NAMES)
    channel_names: tuple[Label, ...] | None = None
    soft: bool = False
    ignore: int | None = None
    subject: Pattern | None = None
    spacing: tuple[Millimetres, Millimetres] | None = None

    @model_validator(mode="after")
    def _fits(self) -> FolderData:
        """Check that the number of classes fits the task."""
        given = len(self.classes)
        if self.task == "binary" and given != 1:
            raise ValueError(f"classes: expected one class for a binary task, got {given}. Set task, or give one class")
        if self.task == "multiclass" and given < 2:
            raise ValueError(
                f"classes: expected two or more for a multiclass task, background first, got {given}. Add them"
            )
        if len(set(self.classes)) < given:
            raise ValueError("classes: a name is listed twice. Remove one")
        names = self.channel_names
        if names is not None and (len(names) != self.channels or len(set(names)) < len(names)):
            raise ValueError(f"channel_names: expected {self.channels} names that differ, got {list(names)}")
        return self


class PhantomFolder(Spec):
    """A generated phantom folder in the format of UW-Madison GI Tract, as `advseg-bench make-data` writes it.

    Attributes:
        cases: Number of subjects.
        slices: Slices per scan.
        days: Scans per subject.
        seed: Random seed of the anatomies.
    """

    cases: int = Field(default=12, ge=1)
    slices: int = Field(default=8, ge=1)
    days: int = Field(default=1, ge=1)
    seed: Seed = 0

    @model_validator(mode="after")
    def _is_drawn(self) -> PhantomFolder:
        """Check that the data can be generated."""
        check_scans("cases", self.cases, self.days, self.slices)
        return self


Scans = Annotated[tuple[ScanName, ...], Field(max_length=MOST_NAMES)]


class UwMadisonData(ImageData):
    """UW-Madison GI Tract: abdominal MRI with masks of large bowel, small bowel and stomach, as downloaded from Kaggle.

    Attributes:
        path: Folder with train.csv and train/, relative to the working directory.
        fit: How an image becomes square; "stretch", the default, is what the study of arXiv 2401.11224 does.
        exclude: Scans to exclude: "common" (the two that are known to be mislabelled), "official" (twelve), "none",
            or a list such as ["case7_day0"].
        folds: Number of folds that the subjects are divided into, about equal in number of slices.
        fold: Index of the fold used for test, from 0.
        validation: Share of the other subjects used for validation, which selects the checkpoint; at least one subject.
        seed: Random seed of the choice of validation subjects.
        labelled_only: Whether the test split has only slices with a mask; training and validation have all slices.
        every: Keep only every n-th slice of a scan.
        neighbours: Whether the three channels are the previous slice, the slice and the next one, not three copies.
        phantom: Phantom data to generate and read in place of `path`; `Suite.load` drops it if `path` exists. It is
            excluded from dumps, so ids and fingerprints do not depend on where the images come from.
    """

    name: Literal["uw_madison"]
    path: Place
    fit: Fit = "stretch"
    exclude: Literal["common", "official", "none"] | Annotated[tuple[ScanName, ...], Field(max_length=MOST_NAMES)] = (
        "common"
    )
    folds: int = Field(default=10, ge=2, le=MOST_NAMES)
    fold: int = Field(default=0, ge=0)
    validation: float = Field(default=0.15, gt=0, lt=1)
    seed: Seed = 0
    labelled_only: bool = True
    every: int = Field(default=1, ge=1, le=LARGEST_STEP)
    neighbours: bool = False
    phantom: PhantomFolder | None = Field(default=None, exclude=True)

    @model_validator(mode="after")
    def _fits(self) -> UwMadisonData:
        """Check that the keys agree with each other."""
        if self.task == "multiclass":
            raise ValueError("task: expected multilabel or binary, as masks may overlap, got 'multiclass'. Change it")
        if self.fold >= self.folds:
            raise ValueError(f"fold: expected 0 to {self.folds - 1}, got {self.fold}. Change fold or folds")
        if self.neighbours and self.channels != 3:
            raise ValueError("neighbours: expected channels = 3, got 1. Set channels = 3, or neighbours = false")
        return self


class SliceData(FileData):
    """Volumes or their slices: each slice is an image, or each volume if `size` has three edges.

    Attributes:
        inputs: Names of the channels of the data that become those of the image, one or as many as `channels`; by
            default all of them, if the data have one or as many as `channels`.
        labelled_only: Whether the test split has only images with at least one class; training and validation have all.
        every: Keep only every n-th slice of a volume; not for whole volumes.
    """

    inputs: tuple[Label, ...] | None = Field(default=None, min_length=1, max_length=MOST_NAMES)
    labelled_only: bool = True
    every: int = Field(default=1, ge=1, le=LARGEST_STEP)

    @model_validator(mode="after")
    def _inputs_fit(self) -> SliceData:
        """Check that there are as many inputs as channels, or one to copy."""
        if self.inputs is not None and len(self.inputs) not in (1, self.channels):
            wanted = "one" if self.channels == 1 else f"one or {self.channels}"
            raise ValueError(f"inputs: expected {wanted} for channels = {self.channels}, got {len(self.inputs)}")
        if self.every > 1 and len(self.edges) == 3:
            raise ValueError(
                f"every: expected 1 for volumes (size = {list(self.edges)}), got {self.every}. Remove the key"
            )
        return self


class NnunetData(SliceData):
    """A raw data set of nnU-Net v2: dataset.json, imagesTr/CASE_0000.*, labelsTr/CASE.*.

    Attributes:
        subject: Regular expression with one group that matches the subject in a case's name; by default the whole name;
            then 2-D images count by themselves.
        fold: Fold of splits_final.json whose `val` cases are used for test; those for validation are chosen from its
            `train`. By default `validation`, `test` and `seed` define the split.
    """

    name: Literal["nnunet"]
    subject: Pattern | None = None
    fold: int | None = Field(default=None, ge=0, le=LARGEST_STEP)


class DecathlonData(SliceData):
    """A task of the Medical Segmentation Decathlon: dataset.json, imagesTr/, labelsTr/.

    Attributes:
        subject: Regular expression with one group that matches the subject in a case's name; by default the whole name;
            then 2-D images count by themselves.
    """

    name: Literal["decathlon"]
    subject: Pattern | None = None


class LggData(SliceData):
    """Low-grade glioma MRI (kaggle_3m): one folder per patient with three-channel TIFFs and their masks."""

    flat: ClassVar[bool] = True
    any_channels: ClassVar[bool] = False

    name: Literal["lgg"]
    scale: Scale = "dtype"


class PluginData(ImageData):
    """A data set of a plug-in, or your own: a function `f(spec, **settings) -> Dataset`.

    Attributes:
        name: Name of a plug-in, or "package.module:callable".
        settings: Keyword arguments of the function.
    """

    flat: ClassVar[bool] = False
    any_channels: ClassVar[bool] = True

    name: str
    settings: Settings = Field(default_factory=dict)


PLUGIN_TAG = "plug-in"


def _tag(value: Any) -> str | None:
    """Return the tag of the data specification that a table or an object belongs to."""
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
