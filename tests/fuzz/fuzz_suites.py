"""Hostile suites: a shipped one with some values replaced, keys added and text damaged; `plan` must answer at once."""

from __future__ import annotations

import io
import json
import tomllib
from copy import deepcopy
from importlib.resources import files
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console

from advseg_bench.cli import common, plan
from advseg_bench.suite.layers import list_suites

SECONDS, MEGABYTES = 2.0, 500
"""Of processor time, and of memory: what `plan` may take for any suite."""


class Raw(str):
    """A token of TOML as it is."""


PLAIN: tuple[Any, ...] = (
    *(-1, 0, 1, 2, 3, 16, 1024, 1025, 10**6, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**70)),
    *(0.0, -0.0, 1e-320, 1e308, float("nan"), float("inf"), 0.1, 5e-324, True, False, "", " ", "none", "auto"),
    *("standard", "fgsm", "pgd", "transfer", "mni152", "phantom", "folder", "uw_madison", "linf", "l2", "multiclass"),
    *("monai.UNet", "smp.Unet", "torchscript", "../../x", "/etc/passwd", "a/b", ".hidden", "con", "NUL.txt"),
    *("\x1b[31mred", "\u202eevil", "a\nb", "=1+1", "<b>", "$x$", "`|[]", "\u0661/\u0662", "1e99999999", "2/0"),
    *("1e-400", "1_0", "0x10", "1/3/5", "1e999/1e999", " 4 / 255 ", "+.5", "nan", "(a+)+$", "(" * 100, "["),
    *("a{99999999999}", "json:loads", "nowhere.module:object", ":", "a:", "hf:a/b", [[1, 2], [3]], [{}], {}, []),
    *({"a": {"b": {"c": 1}}}, ["dice", "dice"], ["1/255", "2/255", "3/255"], [1, 2], [64, 64, 64], 7, "1/255", 32),
    *(Raw("1979-05-27T07:32:00Z"), Raw("nan")),
)


def make_value(rng: Random) -> Any:
    """A value that no key expects: mostly a short one."""
    if rng.random() < 0.7:
        return deepcopy(rng.choice(PLAIN))
    digits = rng.choice([19, 20, 100, 4299, 4301, 50_000])
    many = rng.choice([3, 999, 1001, 5_000, 30_000])
    long = rng.choice([65, 101, 256, 2_001, 20_000, 200_000])
    depth = rng.choice([3, 17, 400, 3_000])
    made = (
        lambda: "a" * long,
        lambda: "1" * long,
        lambda: ["4/255"] * many,
        lambda: list(range(many)),
        lambda: [i / 2**15 for i in range(many)],
        lambda: {f"k{i}": i for i in range(many)},
        lambda: {f"k{i}": [1, 2, 3] for i in range(rng.choice([2, 8, 40]))},
        lambda: Raw("9" * digits),
        lambda: Raw("0x" + "f" * digits),
        lambda: Raw("1e" + "9" * digits),
        lambda: Raw("[" * depth + "]" * depth),
        lambda: Raw("{a=" * depth + "1" + "}" * depth),
        lambda: Raw("{" + "a." * depth + "b=1}"),
    )
    return rng.choice(made)()


def write(value: Any) -> str:
    """A value as TOML on one line."""
    if isinstance(value, Raw):
        return value
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k, ensure_ascii=False)} = {write(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(write, value)) + "]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (str, bool)) else repr(value)


def find_places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values inside a value."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, inner in entries for place in find_places(inner, (*path, key)))]


def change(tables: dict[str, Any], rng: Random, known: list[str]) -> None:
    """Make one change to the tables of a suite."""
    places = [place for place in find_places(tables) if place]
    if not places:
        return
    *front, last = rng.choice(places)
    holder: Any = tables
    for key in front:
        holder = holder[key]
    match rng.randrange(10):
        case 0 | 1:
            holder[last] = make_value(rng)
        case 2 | 8 | 9:
            alike = [each for each in PLAIN if type(each) is type(holder[last])]
            holder[last] = deepcopy(rng.choice(alike or [holder[last]]))
        case 3:
            del holder[last]
        case 4:
            name = rng.choice([*known, "a" * 70, "\x1b", "", "a.b", "__class__", "é"])
            (holder if isinstance(holder, dict) else tables)[name] = make_value(rng)
        case 5 if isinstance(holder, list):
            holder.extend([deepcopy(holder[last])] * rng.choice([1, 2, 300, 3_000]))
        case 6:
            (holder if isinstance(holder, dict) else tables)[str(last)] = {"x": deepcopy(tables.get("data", 1))}
        case _:
            attacks = tables.get("attacks")
            entries = attacks if isinstance(attacks, list) else []
            table = rng.choice([entry for entry in entries if isinstance(entry, dict)] or [{}])
            size = rng.choice([2, 10, 100])
            keys = rng.choice(["steps", "step_size", "queries", "x"])
            table["vary"] = {f"{keys}{i or ''}": list(range(1, size)) for i in range(rng.choice([1, 3, 12]))}
            table["draws"] = rng.choice([1, 1000, 10**9])


def damage(text: str, rng: Random) -> bytes:
    """Change characters of the text."""
    data = bytearray(text.encode("utf-8", errors="surrogatepass"))
    for _ in range(rng.choice([0, 0, 0, 0, 0, 1, 3])):
        where = rng.randrange(len(data) + 1)
        match rng.randrange(4):
            case 0:
                data[where : where + 1] = bytes([rng.randrange(256)])
            case 1:
                data[where:where] = data[rng.randrange(len(data)) :][:200] if data else b"["
            case 2:
                del data[where : where + rng.randrange(1, 40)]
            case _:
                data[where:where] = rng.choice(
                    [b"[[", b"]]", b'"""', b"a." * 5000, b"\x00", b"\xff\xfe", b"= =", b"[" * 1500]
                )
    return bytes(data)


def run(rng: Random, folder: Path) -> None:
    """Write a suite and plan it.

    Raises:
        UserError: If it is refused.
    """
    name = rng.choice(list_suites())
    tables = tomllib.loads(files("advseg_bench.suite.shipped").joinpath(f"{name}.toml").read_text())
    known = sorted({key for place in find_places(tables) for key in place if isinstance(key, str)})
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        change(tables, rng, known)
    if rng.random() < 0.15:
        tables["profiles"] = {rng.choice(["cpu", "../../up", "a" * 80, "con", "x\x1b"]): {"data": {"size": 16}}}
        tables["profile"] = rng.choice([*tables["profiles"], "", "nothing"])
    if rng.random() < 0.15:
        tables["extends"] = rng.choice(
            ["b.toml", "./a.toml", "quick", "smoke", "x" * 300, "\x00", "/dev/zero", "../a.toml", "."]
        )
    text = "".join(f"{json.dumps(key, ensure_ascii=False)} = {write(value)}\n" for key, value in tables.items())
    (folder / "a.toml").write_bytes(damage(text, rng))
    (folder / "b.toml").write_text(f'extends = "{rng.choice(["a.toml", "b.toml", "./a.toml", "smoke"])}"\n')
    plan.console = common.console = Console(file=io.StringIO(), width=120)
    plan.plan_command(str(folder / "a.toml"), workers=1, cells=rng.random() < 0.1)
