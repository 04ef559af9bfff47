"""Who is attacked where no model is trained: everybody, unless the suite has a split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from advseg_bench.suite.specs.data import DataSpec, DecathlonData, FolderData, LggData, NnunetData
from advseg_bench.suite.specs.images import SplitData
from advseg_bench.suite.specs.model import ModelSpec

_KEYS = {"validation", "test", "seed", "fold"}
"""Keys by which a user chooses who is attacked."""

_NAMES = {
    name
    for each in (FolderData, NnunetData, DecathlonData, LggData)
    for name in get_args(each.model_fields["name"].annotation)
}


def use_all_subjects(tables: Any) -> Any:
    """Return the tables of a suite with all subjects for test, if every model has weights and there is no split.

    Args:
        tables: Values that a suite is made of, as tables or as specifications; anything else is returned as it is.
    """
    given = tables.get("models") if isinstance(tables, dict) else None
    if not isinstance(given, (list, tuple)) or not given:
        return tables
    weights = [model.get("weights") if isinstance(model, dict) else getattr(model, "weights", None) for model in given]
    data = tables.get("data")
    if not all(weights):
        return tables
    if isinstance(data, SplitData) and not data.model_fields_set & _KEYS:
        return tables | {"data": data.model_copy(update={"test": 1.0})}
    if isinstance(data, dict) and data.get("name") in _NAMES and not data.keys() & _KEYS:
        return tables | {"data": data | {"test": 1.0}}
    return tables


def check_split(data: DataSpec, models: Sequence[ModelSpec]) -> None:
    """Check that subjects are left for training if a model is trained.

    Raises:
        ValueError: If all are for test.
    """
    trained = [model.name for model in models if not model.weights]
    if getattr(data, "test", None) == 1 and trained:
        raise ValueError(
            f"data.test: 1 leaves no subject to train model {trained[0]!r}. Set its `weights`, or lower it"
        )
