"""Do models, training and sliding windows support the shape of the images?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from advseg_bench.suite.specs.data import DataSpec
from advseg_bench.suite.specs.experiment import Compute, Inference, Recipe
from advseg_bench.suite.specs.model import ModelSpec


def use_single_volumes(tables: Any) -> Any:
    """Return the tables of a suite with a compute batch of 1 for volumes, if it has none; slices have the default.

    Args:
        tables: Values that a suite is made of, as tables or as specifications; anything else is returned as it is.
    """
    data = tables.get("data") if isinstance(tables, dict) else None
    size = data.get("size") if isinstance(data, dict) else getattr(data, "size", None)
    compute = tables.get("compute", {}) if isinstance(tables, dict) else None
    if not isinstance(size, (list, tuple)) or len(size) != 3:
        return tables
    if isinstance(compute, Compute) and "batch" not in compute.model_fields_set:
        return tables | {"compute": compute.model_copy(update={"batch": 1})}
    if isinstance(compute, dict) and "batch" not in compute:
        return tables | {"compute": {**compute, "batch": 1}}
    return tables


def check_shapes(data: DataSpec, models: Sequence[ModelSpec], training: Recipe, inference: Inference | None) -> None:
    """Check that the tables of a suite fit the edges of its images.

    Raises:
        ValueError: If one does not.
    """
    *depth, rows, columns = data.edges
    for model in models:
        for defence in model.defence:
            if reason := defence.why_not(data.task, len(data.edges)):
                raise ValueError(f"model {model.name!r}: defence: {reason}. Use another defence")
    for model in models if depth else ():
        if model.architecture.startswith("smp."):
            raise ValueError(
                f"model {model.name!r}: {model.architecture} is for 2-D images, and size = "
                f"{list(data.edges)} gives 3-D images. Use a network of MONAI, such as monai.UNet"
            )
    if rows != columns and "rot90" in training.augment:
        raise ValueError(
            f'training.augment: "rot90" needs square images, and size = {list(data.edges)} has {rows} and '
            f'{columns}. Remove "rot90"'
        )
    if inference is not None and len(inference.edges) not in (1, len(data.edges)):
        raise ValueError(
            f"inference.roi: expected one edge or {len(data.edges)}, as size = {list(data.edges)} has, got "
            f"{list(inference.edges)}. Correct `roi`"
        )
