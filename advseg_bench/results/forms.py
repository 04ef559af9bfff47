"""What the JSON files of a run must hold; keys of other versions are allowed beside it."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from advseg_bench.errors import one_line, tidy

LONGEST = 200
"""Most characters of the place of a field."""

Natural = Annotated[int, Field(ge=0, le=2**53)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, max_length=10_000)]


def _check_settings(text: str) -> str:
    """Reject settings that are no JSON object."""
    if not isinstance(json.loads(text), dict):
        raise ValueError("not a JSON object")
    return text


Settings = Annotated[str, AfterValidator(_check_settings)]

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]

ModelName = Annotated[str, Field(pattern=r"^[^/\\\x00-\x1f.][^/\\\x00-\x1f]*$", max_length=200)]
"""Name of a model, which is part of file names: no separator of paths, no unprintable character, no dot in front."""


class RecordForm(BaseModel):
    """A JSON object of a run; keys of other versions are kept."""

    model_config = ConfigDict(extra="allow", strict=True)


class DataForm(RecordForm):
    """The data of a run."""

    name: str
    kind: Literal["binary", "multilabel", "multiclass"]
    classes: Annotated[list[str], Field(min_length=1)]
    splits: dict[str, Natural]
    subjects: dict[str, Natural] = {}
    fingerprint: str = ""
    note: str = ""
    title: str = ""
    by_image: bool = False
    bounds: Annotated[list[Finite], Field(min_length=2, max_length=2)] = [0.0, 1.0]


class CellForm(RecordForm):
    """One cell of a run."""

    id: Name
    model: ModelName
    attack: Name
    loss: str
    settings: Settings
    norm: Literal["linf", "l2"]
    eps: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    draw: Natural
    label: str
    skip: str | None
    max_forwards: Natural | None = None
    battery: str = ""
    member: Natural | None = None
    skip_finished: bool = False
    warm_start: bool = False
    alone: str = ""


class SuiteForm(RecordForm):
    """What is read of the suite of a run."""

    name: str
    title: str | None = ""
    note: str | None = ""
    seed: int | None = None
    training: dict[str, Any] = {}
    data: dict[str, Any]


class PartForm(RecordForm):
    """What a part of a run holds: places of images for each model."""

    part: Annotated[int, Field(ge=1)]
    of: Annotated[int, Field(ge=1)]
    holds: dict[str, Annotated[list[Natural], Field(min_length=2, max_length=2)]]


class MachineForm(RecordForm):
    """A machine of a merged run, and the parts that it computed."""

    environment: dict[str, Any]
    binding: dict[str, Any]
    parts: list[PartForm]
    rest: bool = False


class DifferenceForm(RecordForm):
    """How much the results of the machines of a merged run differ."""

    dice_difference: float | None
    where: str
    models: list[str]


class DescriptionForm(RecordForm):
    """The content of `run.json`."""

    run: str = ""
    suite: SuiteForm
    data: DataForm
    binding: dict[str, Any]
    environment: dict[str, Any] = {}
    command: str = ""
    started: str = ""
    images: Annotated[list[Name], Field(min_length=1)]
    cells: Annotated[list[CellForm], Field(min_length=1)]
    part: PartForm | None = None
    machines: list[MachineForm] = []
    calibration: DifferenceForm | None = None


class ModelForm(RecordForm):
    """An entry of `models/`."""

    name: ModelName
    architecture: str
    parameters: Natural
    weights_sha256: str
    encoder: str | None = None
    validation_dice: float | None = None
    train_seconds: float | None = None
    notes: list[Any] = []
    inference: dict[str, Any] | None = None


class FailureForm(RecordForm):
    """An entry of `failures.json`."""

    model: str
    stage: str
    cell: str | None
    message: str
    death: str = ""


def find_fault(kind: type[BaseModel], value: Any) -> str:
    """Return the first field of a JSON value that does not fit, with the reason; "" if all fit."""
    try:
        kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = tidy(".".join(map(str, first["loc"])), LONGEST)
        return one_line(ValueError(f"{where}: {first['msg']}")).removeprefix("ValueError: ").lstrip(": ")
    except (ValueError, RecursionError) as error:
        return one_line(error)
    return ""


class StepForm(RecordForm):
    """One budget of a panel."""

    cell: Name
    eps: Finite
    dice: Share


class PanelForm(RecordForm):
    """What a panel states about itself."""

    kind: Literal["worst", "best"]
    model: ModelName
    image: Name
    cell: Name
    attack: Name
    loss: str
    settings: Settings
    norm: Literal["linf", "l2"]
    eps: Finite
    dice_clean: Share
    dice_attacked: Share
    sweep: Annotated[list[StepForm], Field(min_length=1, max_length=100)]
    run: str = ""
