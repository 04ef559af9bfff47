"""The data sets that a suite can name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from advseg_bench.registry import catalogue
from advseg_bench.suite.specs.base import Settings, Spec
from advseg_bench.suite.specs.images import Fit, ImageData, Millimetres, Scale, ScanName, SplitData


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


class FolderData(SplitData):
    """Images and masks on disk, matched by file stem.

    `path/images/NAME.{png,tif,tiff,nii,nii.gz}` goes with `path/masks/NAME.*` (binary, multiclass), or with
    `path/masks/CLASS/NAME.*` for each class (multilabel). A NIfTI volume gives one image per slice of its last axis, or
    is one image if `size` has three edges.

    Attributes:
        classes: Class names. For multiclass the first is the background and mask values count from 0.
        soft: Masks hold probabilities scaled to the data type's maximum, binarised at 0.5. Otherwise only
            0 and 1, or 0 and 255 (0, 1, 2, ... for multiclass) are accepted.
        ignore: Mask value of pixels that count in no loss and no score, such as 255.
        scale: "max" divides an image (a volume, for NIfTI) by its own maximum, "percentile" by its 99.5th percentile,
            "dtype" by its type's largest value; a pair (lower, upper) is a window. All are clipped to [0, 1].
        subject: Regular expression with one group that finds the subject in a file's stem; by default the whole
            stem, so that each file is a subject of its own.
        spacing: Pixel edge lengths in mm (rows, columns); read from NIfTI headers when left out, as the distance of a
            volume's slices always is.
    """

    flat: ClassVar[bool] = False

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


class PhantomFolder(Spec):
    """A folder in the format of UW-Madison GI Tract that is drawn by the phantom, as `advseg-bench make-data` draws it.

    Attributes:
        cases: Number of subjects.
        slices: Slices of each scan.
        days: Scans of each subject.
        seed: Another seed, other anatomies.
    """

    cases: int = Field(default=12, ge=1)
    slices: int = Field(default=8, ge=1)
    days: int = Field(default=1, ge=1)
    seed: int = Field(default=0, ge=0)


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
        phantom: What is drawn and read in place of `path`. `Suite.load` keeps it only where nothing is at the suite's
            own path. It is in no dump: ids and fingerprints are of everything but where the images come from.
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
    phantom: PhantomFolder | None = Field(default=None, exclude=True)

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
    """Volumes, or what is left of them: their slices are the images, or with three edges as `size` they are themselves.

    Attributes:
        inputs: The one or three channels of the data, by name, that become the channels of the image; by default all
            of them, if the data have as many as `channels`, or one.
        scale: As for `folder`, for each channel of a volume by itself.
        labelled_only: Whether the test split has only images that show a class; training and validation have all.
        every: Keep each n-th slice of a volume only; whole volumes have all.
    """

    flat: ClassVar[bool] = False

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
        if self.every > 1 and len(self.edges) == 3:
            raise ValueError(f"every: a volume (size = {list(self.edges)}) has all its slices. Remove the key")
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

    flat: ClassVar[bool] = True

    name: Literal["lgg"]
    scale: Scale = "dtype"


class PluginData(ImageData):
    """A data set of a plug-in, or of your own: a function `f(spec, **settings) -> Dataset`.

    Attributes:
        name: A plug-in's name, or "package.module:callable".
        settings: Its further arguments.
    """

    flat: ClassVar[bool] = False

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

SPLIT_KEYS = {"validation", "test", "seed", "fold"}
"""Keys by which a user chooses who is attacked."""


def use_all(data: Any) -> Any:
    """Return data with all subjects for test, if they are files of a user who gave no split.

    Args:
        data: A table of a suite, or a specification.
    """
    if isinstance(data, SplitData):
        return data if data.model_fields_set & SPLIT_KEYS else data.model_copy(update={"test": 1.0})
    types = (FolderData, NnunetData, DecathlonData, LggData)
    names = {name for each in types for name in get_args(each.model_fields["name"].annotation)}
    if isinstance(data, dict) and data.get("name") in names and not data.keys() & SPLIT_KEYS:
        return data | {"test": 1.0}
    return data
