"""The base class of all specifications, and checks that several of them share."""

from __future__ import annotations

import inspect
import json
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from advseg_bench.errors import PluginError
from advseg_bench.registry import plugins, toolkits
from advseg_bench.registry.plugins import Kind


class Spec(BaseModel):
    """Base class of all specifications: frozen, and unknown keys are errors.

    The JSON schema describes each key with the text of the docstring's section "Attributes".
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return the JSON schema of the table, with a description of it and of each key."""
        schema = handler(core_schema)
        table = handler.resolve_ref_schema(schema)
        known = [split_attributes(inspect.cleandoc(each.__doc__ or "")) for each in reversed(cls.__mro__)]
        meanings = {name: meaning for _, described in known for name, meaning in described.items()}
        table["description"] = known[-1][0]
        for name, field in cls.model_fields.items():
            if name in meanings:
                table["properties"][field.alias or name]["description"] = meanings[name]
        return schema


def split_attributes(docstring: str) -> tuple[str, dict[str, str]]:
    """Split a docstring into the text before its section "Attributes" and the description of each attribute.

    Args:
        docstring: A docstring with Google sections, without indentation.

    Returns:
        The text, and name -> description on one line.

    Example:
        >>> split_attributes("A box.\\n\\nAttributes:\\n    width: In pixels,\\n        inside.")
        ('A box.', {'width': 'In pixels, inside.'})
    """
    text, _, listed = docstring.partition("\nAttributes:\n")
    meanings: dict[str, str] = {}
    name = ""
    for line in listed.splitlines():
        if line and not line.startswith(" "):  # the next section
            break
        if match := re.match(r" {4}(\w+): (.*)", line):
            name = match[1]
            meanings[name] = match[2]
        elif name and line.strip():
            meanings[name] += f" {line.strip()}"
    return text.strip(), meanings


def plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Reject values that JSON cannot represent, such as dates."""
    try:
        json.dumps(settings, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected numbers, strings, booleans and lists of them: {error}") from None
    return settings


Settings = Annotated[dict[str, Any], AfterValidator(plain)]


def check_known(kind: Kind, name: str) -> str:
    """Accept a shipped name, one of a plug-in or toolkit, or `package.module:object`."""
    try:
        toolkits.check_attack(name) if kind == "attack" else plugins.check_name(kind, name)
    except PluginError as error:
        raise ValueError(str(error)) from None
    return name
