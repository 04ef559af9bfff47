"""The command line and the keys of suites as Markdown, from their definitions."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from typer.models import ArgumentInfo, OptionInfo, ParameterInfo

from advseg_bench.cli.app import COMMANDS
from advseg_bench.suite.suite import Suite

Json = dict[str, Any]

WORDS = {int: "INTEGER", float: "NUMBER", Path: "PATH", str: "TEXT"}


def describe_commands() -> str:
    """Describe every command: what it does, its arguments and its options."""
    lines = ["# Command line", "", "`advseg-bench COMMAND --help` prints the same.", ""]
    for name, command in COMMANDS.items():
        hints = get_type_hints(command, include_extras=True)
        shown = [(p, *get_args(hints[p.name])[:2]) for p in inspect.signature(command).parameters.values()]
        shown.sort(key=lambda one: isinstance(one[2], OptionInfo))
        usage = [_label(*one) for one in shown if isinstance(one[2], ArgumentInfo)]
        lines += [f"## {name}", "", inspect.getdoc(command) or "", ""]
        lines += ["```text", " ".join(["advseg-bench", name, *usage, "[OPTIONS]"]), "```", ""]
        if shown:
            lines += ["| argument or option | default | meaning |", "|---|---|---|"]
            lines += [f"| `{_label(*one)}` | {_preset(one[0])} | {_cell(one[2].help or '')} |" for one in shown]
        lines.append("")
    return "\n".join(lines)


def _label(parameter: inspect.Parameter, kind: Any, info: ParameterInfo) -> str:
    """Name a parameter as it is typed: `SUITE`, `--workers INTEGER`, `--verbose`."""
    if isinstance(info, ArgumentInfo):
        several = "..." if get_origin(kind) in (list, tuple) else ""
        return info.metavar or f"{parameter.name.upper()}{several}"
    declared = [name for name in (info.default, *(info.param_decls or ())) if isinstance(name, str)]
    option = " ".join(declared or [f"--{parameter.name.replace('_', '-')}"])
    if kind is bool:
        return option
    types = [one for one in get_args(kind) or (kind,) if one not in (type(None), Ellipsis)]
    return f"{option} {info.metavar or WORDS.get(types[0], 'TEXT')}"


def _preset(parameter: inspect.Parameter) -> str:
    if parameter.default is inspect.Parameter.empty:
        return "required"
    return "" if parameter.default in (None, False, "", ()) else f"`{parameter.default}`"


def describe_suite() -> str:
    """Describe every table of a suite: its keys with types, defaults and meaning."""
    schema = Suite.model_json_schema()
    parts = [
        "# Suite keys",
        "The tables of a suite file, from the JSON schema that `advseg-bench schema` prints. A key that is not listed "
        "here is an error. [Write a suite](../suites.md) shows them at work.",
        *_table("Suite", "Top level", schema, schema["$defs"]),
    ]
    for name, definition in schema["$defs"].items():
        parts += _table(name, TITLES.get(name, name), definition, schema["$defs"])
    return "\n\n".join(parts) + "\n"


TITLES = {
    "AttackSpec": "[[attacks]]",
    "BatterySpec": "[battery]",
    "Compute": "[compute]",
    "ModelSpec": "[[models]]",
    "Recipe": "[training]",
    "Scoring": "[scoring]",
    "PhantomFolder": "[data.phantom]",
    "PluginData": '[data] name = "package.module:object"',
}
SHORT = {name: title.strip("[]") for name, title in TITLES.items()} | {"PluginData": "package.module:object"}
"""Names of tables in links."""


def _table(name: str, title: str, definition: Json, others: Json) -> Iterator[str]:
    fixed = definition.get("properties", {}).get("name", {}).get("const")
    title = f'[data] name = "{fixed}"' if fixed else title
    yield f"## `{title}` {{ #{name} }}"
    yield definition["description"]
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    required = definition.get("required", [])
    for key, value in definition.get("properties", {}).items():
        default = "required" if key in required else _default(value)
        rows.append(f"| `{key}` | {_type(value, others)} | {default} | {_cell(value.get('description', ''))} |")
    yield "\n".join(rows)


def _default(value: Json) -> str:
    default = value.get("default")
    if default in (None, "", []) or isinstance(default, dict):
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _type(value: Json, others: Json) -> str:
    """Word the type of a key, with its limits."""
    if "$ref" in value:
        return _link(value["$ref"], others)
    if "const" in value:
        return f'`"{value["const"]}"`' if isinstance(value["const"], str) else f"`{value['const']}`"
    if "enum" in value:
        return " or ".join(f'`"{one}"`' if isinstance(one, str) else f"`{one}`" for one in value["enum"])
    for several in ("anyOf", "oneOf", "allOf"):
        if several in value:
            kinds = [_type(one, others) for one in value[several] if one.get("type") != "null"]
            return " or ".join(dict.fromkeys(kinds))
    if value.get("type") == "array":
        items = value.get("items") or {}
        if "prefixItems" in value:
            return f"list of {len(value['prefixItems'])} {_type(value['prefixItems'][0], others)}"
        return f"list of {_type(items, others)}" if items else "list"
    if value.get("type") == "object":
        return "table"
    return _simple(value)


def _simple(value: Json) -> str:
    name = {"integer": "integer", "number": "number", "string": "string", "boolean": "true or false"}
    limits = {"minimum": "&ge;", "exclusiveMinimum": "&gt;", "maximum": "&le;", "exclusiveMaximum": "&lt;"}
    stated = [f"{sign} {value[key]}" for key, sign in limits.items() if key in value]
    return " ".join([name.get(value.get("type", ""), "any"), ", ".join(stated)]).strip()


def _link(reference: str, others: Json) -> str:
    name = reference.rpartition("/")[2]
    fixed = others[name].get("properties", {}).get("name", {}).get("const")
    return f"[`{fixed or SHORT.get(name, name)}`](#{name})"


def _cell(text: str) -> str:
    """Write one line of a table; outside code spans, characters that mean something in Markdown are escaped."""
    parts = " ".join(text.split()).replace("|", "\\|").split("`")
    parts[::2] = [re.sub(r"[\[\]*_<>]", lambda match: f"&#{ord(match[0])};", part) for part in parts[::2]]
    return "`".join(parts)
