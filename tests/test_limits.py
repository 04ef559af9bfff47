"""How large inputs may be: each limit is refused in one line before anything is allocated or expanded."""

from __future__ import annotations

import gzip
import json
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from advseg_bench.cli import plan as command
from advseg_bench.data.description import read_json
from advseg_bench.data.files import list_files
from advseg_bench.data.formats import read_header
from advseg_bench.data.subjects import check_pattern, find_subjects
from advseg_bench.errors import LONGEST_MESSAGE, DataError, SpecError, UserError
from advseg_bench.models.checkpoints import bundles, states
from advseg_bench.models.checkpoints.reading import read_content
from advseg_bench.suite.cells import plan
from advseg_bench.suite.specs import ModelSpec
from advseg_bench.suite.suite import Suite, parse_suite

HEAD = """
[data]
name = "mni152"
size = 32
[training]
recipe = "quick"
[[models]]
name = "m"
architecture = "monai.BasicUNet"
"""
ATTACK = '[[attacks]]\nname = "random_sign"\neps = ["1/255"]\n'
WHOLE = f'name = "s"\n{HEAD}{ATTACK}'


def refuse(text: str, match: str) -> None:
    with pytest.raises(SpecError, match=match) as caught:
        plan(parse_suite(text, "mine.toml"))
    assert str(caught.value).startswith(("mine.toml", "suite s"))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) <= LONGEST_MESSAGE


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ('"s"', "[" * 3_000 + "]" * 3_000, "tables and lists"),
        ('"s"', "[" * 30 + "]" * 30, "16 tables and lists"),
        ('"s"\n', f'"s"\nnote = "{"x" * 300_000}"\n', "262,144 characters"),
        ('"s"\n', f'"s"\nnote = "{"x" * 2_001}"\n', "note: .*2,000 characters"),
        ('"s"\n', '"s"\ntitle = "\\u001b[31m"\n', "title: .*unprintable"),
        ('"s"\n', f'"s"\n{"a." * 100}b = 1\n', "64 dots"),
        ('"s"\n', f'"s"\n{"k" * 65} = 1\n', "keys of at most 64"),
        ('"s"\n', f'"s"\nx = {list(range(30_000))}\n', "20,000 keys and entries"),
        ('"s"\n', f'"s"\nseed = {"9" * 5_000}\n', "too many digits"),
        ('"s"\n', f'"s"\nseed = 0x{"f" * 300}\n', "seed: .*64 bits, got '1200 bits'"),
        ('"s"\n', f'"s"\nseed = {2**63}\n', "seed: .*64 bits"),
        ('"1/255"', f"0x{'f' * 300}", "eps.0: .*64 bits"),
        ('"1/255"', '"1e99999999"', "number or a fraction"),
        ('"1/255"', '"2/0"', "number or a fraction"),
        ('"1/255"', '"1_0/255"', "number or a fraction"),
        ('"1/255"', '"\u0661/255"', "number or a fraction"),
        ('"1/255"', "nan", "finite eps"),
        ('"1/255"', "inf", "finite eps"),
        ('"1/255"', ", ".join(f"{i / 5_000}" for i in range(1, 1_500)), "eps: .*1000 items"),
        (ATTACK, f"{ATTACK}draws = 1001\n", "draws: .*1000"),
        (ATTACK, f"{ATTACK}vary = {{ {', '.join(f'k{i} = [1, 2]' for i in range(60))} }}\n", "2,000 combinations"),
        (ATTACK, f"{ATTACK}draws = 999\n{ATTACK.replace('1/', '2/')}draws = 999\n" * 11, "20,000 cells|listed twice"),
        (ATTACK, ATTACK * 501, "attacks: .*500"),
        ("size = 32", "size = [1024, 1024, 1024]", "one edge"),
        ("size = 32", "size = 100000", "16 to 1024"),
        ('"mni152"', '"phantom"\nsubjects = 100000', "100,000 slices"),
        ('"mni152"', '"phantom"\nseed = -1', "seed"),
        ('name = "mni152"', f'name = "folder"\npath = "{"x" * 300}"\nclasses = ["a"]', "path: .*4,095 bytes"),
        ('name = "mni152"', 'name = "folder"\npath = "x"\nclasses = [""]', "classes.0"),
        ('name = "mni152"', f'name = "folder"\npath = "x"\nclasses = ["a"]\nsubject = "{"(" * 300}"', "subject: .*200"),
    ],
)
def test_a_suite_beyond_a_limit_is_refused(old, new, match):
    assert old in WHOLE
    refuse(WHOLE.replace(old, new), match)


def test_the_cells_are_counted_before_they_are_made():
    models = "".join(f'[[models]]\nname = "m{i}"\narchitecture = "monai.BasicUNet"\n' for i in range(150))
    refuse(f'name = "s"\n{HEAD}{models}{ATTACK}draws = 1000\n', "at most 20,000 cells, got '151,151'")


def test_the_count_is_that_of_the_plan():
    for name in ("smoke", "quick", "standard"):
        suite = Suite.load(name)
        assert len(plan(suite)) <= suite.count_cells() <= 1.2 * len(plan(suite))


def test_a_volume_has_a_largest_size():
    keys = {"name": "folder", "path": "x", "classes": ("a",), "task": "binary", "channels": 4}
    spec = {"name": "s", "models": [{"name": "m", "architecture": "monai.UNet"}], "battery": "standard"}
    with pytest.raises(ValueError, match="536,870,912 values"):
        Suite.model_validate(spec | {"data": keys | {"size": (1024, 1024, 1024)}})


def test_names_that_differ_in_case_are_one_file():
    other = '[[models]]\nname = "M"\narchitecture = "monai.BasicUNet"\n'
    refuse(f'name = "s"\n{HEAD}{other}{ATTACK}', "differ in case")


def test_suites_that_extend_each_other_end(tmp_path):
    (tmp_path / "a.toml").write_text('extends = "b.toml"\n')
    (tmp_path / "b.toml").write_text('extends = "./a.toml"\n')
    with pytest.raises(SpecError, match="extends"):
        Suite.load(tmp_path / "a.toml")
    for name in ("x" * 300, "a\0b"):
        with pytest.raises(SpecError):
            Suite.load(name)


@pytest.mark.parametrize("name", ["toml_deep", "toml_eps_exp", "toml_hexint", "toml_int5000"])
def test_numbers_of_any_size_in_python_are_refused(name):
    values: dict[str, Any] = {"toml_deep": 10**400, "toml_eps_exp": -(10**400), "toml_hexint": float("inf")}
    with pytest.raises(ValueError, match="finite numbers"):
        ModelSpec(name="m", architecture="monai.UNet", mean=values.get(name, 10**5000))


def test_a_plan_groups_cells_by_table():
    suite = parse_suite(f'name = "s"\n{HEAD}{ATTACK}draws = 3\n{ATTACK.replace("1/", "2/")}', "mine.toml")
    assert [len(cells) for cells in command._group_by_table(plan(suite), suite.attacks)] == [3, 1]


# Patterns for subjects


@pytest.mark.parametrize(
    ("pattern", "names", "found"),
    [
        (r"(s\d+)", ["s12_a", "x_s3"], ["s12", "s3"]),
        (r"^([a-z]+)_\d+_\d+$", ["ab_1_2", "c_3_4"], ["ab", "c"]),
        (r"(?:case|sub)-?(\w+?)_", ["case-7_x", "sub8_y"], ["7", "8"]),
        (None, ["a", "b"], ["a", "b"]),
    ],
)
def test_patterns_are_searched_here_or_in_a_process_of_their_own(pattern, names, found):
    check_pattern(pattern, "data")
    assert find_subjects(names, pattern, [Path(name) for name in names]) == found


@pytest.mark.parametrize("pattern", [r"((a+)+)$", r"(a|a)*b", r"(a*a*a*a*a*a*a*a*a*a*)b"])
def test_a_pattern_that_never_ends_is_stopped(monkeypatch, pattern):
    monkeypatch.setattr("advseg_bench.data.subjects.SECONDS", 0.5)
    with pytest.raises(DataError, match=r"folder: expected names that .* searches in 0.5 s"):
        find_subjects(["a" * 200 + "!"], pattern, [Path("folder/a.png")])


@pytest.mark.parametrize("pattern", ["(", "(a{99999999999999999999})", "a", "(a)(b)", "([[a]])"])
def test_a_wrong_pattern_is_refused(pattern):
    if pattern == "([[a]])":  # warns that its meaning may change
        check_pattern(pattern, "data")
        return
    with pytest.raises(DataError, match=r"data: expected .*regular expression"):
        check_pattern(pattern, "data")


# Files that declare more than they hold


def write_png(path: Path, width: int, height: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))


def write_nifti(path: Path, dims: tuple[int, ...], offset: float = 352.0) -> None:
    header = nibabel.Nifti1Header()
    header.set_data_shape((2, 2, 2))
    data = bytearray(header.binaryblock + bytes(4) + bytes(64))
    data[40:56] = struct.pack("<8h", len(dims), *dims, *[1] * (7 - len(dims)))
    data[108:112] = struct.pack("<f", offset)
    data[344:348] = b"n+1\0"
    path.write_bytes(gzip.compress(bytes(data)) if path.suffix == ".gz" else bytes(data))


@pytest.mark.parametrize(
    ("name", "write", "match"),
    [
        ("a.png", lambda path: write_png(path, 30_000, 30_000), "whole picture, got '.* bytes for 30000 x 30000"),
        ("a.png", lambda path: write_png(path, 60_000, 60_000), "at most 1,073,741,824 pixels"),
        ("a.nii", lambda path: write_nifti(path, (30_000, 30_000, 1)), "whole NIfTI file"),
        ("a.nii.gz", lambda path: write_nifti(path, (30_000, 30_000, 1)), "whole NIfTI file"),
        ("a.nii", lambda path: write_nifti(path, (30_000, 30_000, 30_000)), "1,073,741,824 voxels"),
        ("a.nii", lambda path: write_nifti(path, (-5, 3, 3)), "readable NIfTI|2 or 3 axes"),
        ("a.nii", lambda path: write_nifti(path, (2, 2, 2), 1e12), "first 67,108,864 bytes"),
        ("a.nii.gz", lambda path: write_nifti(path, (2, 2, 2), float("nan")), "first 67,108,864 bytes"),
    ],
)
def test_a_file_that_declares_more_than_it_holds_is_refused(tmp_path, name, write, match):
    write(tmp_path / name)
    with pytest.raises(DataError, match=match) as caught:
        read_header(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))


def test_nibabel_says_nothing_of_its_own(tmp_path, caplog):
    volume = nibabel.Nifti1Image(np.zeros((2, 3, 4), np.int16), np.eye(4))
    nibabel.save(volume, tmp_path / "a.nii")
    data = bytearray((tmp_path / "a.nii").read_bytes())
    data[80:84] = struct.pack("<f", -1.0)
    (tmp_path / "a.nii").write_bytes(data)
    assert read_header(tmp_path / "a.nii").edges == (4, 2, 3)
    assert not caplog.records


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 6_000, "{"])
def test_json_that_cannot_be_followed_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=r"a\.json: expected a readable JSON file"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("name", ["a\x1b[31m.png", "\u202egnp.png", "a\nb.png"])
def test_names_of_files_that_control_a_terminal_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match="visible characters") as caught:
        list_files(tmp_path)
    assert str(caught.value).isprintable()


# Checkpoints


def test_containers_that_hold_each_other_are_searched_in_bounded_time():
    content: Any = {"w": torch.zeros(1)}
    for _ in range(4):
        content = {str(i): content for i in range(200)}
    assert len(states.find_states(content)) <= states.MOST_CONTAINERS


def test_a_tensor_larger_than_its_memory_equals_none():
    wide = torch.zeros(1).expand(10**6, 10**6)
    assert not states.equal_tensors(wide, torch.zeros(1).expand(10**6, 10**6))
    assert states.equal_tensors(torch.zeros(3), torch.zeros(3))


def test_an_archive_of_compressed_members_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(10**6))
    with pytest.raises(DataError, match="larger than the file"):
        read_content(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("extra", "value"),
    [
        ({f"a{i}": [f"@a{i + 1}"] * 10 for i in range(9)} | {"a9": 1}, "@a0"),
        ({}, "$'ab' * 100000"),
        ({}, "$" + "(" * 2_000 + "1" + ")" * 2_000),
        ({}, json.loads("[" * 700 + "]" * 700)),
    ],
)
def test_a_bundle_cannot_make_more_than_it_holds(tmp_path, extra, value):
    network = {"_target_": "monai.networks.nets.UNet", "channels": value}
    (tmp_path / "inference.json").write_text(json.dumps({"network_def": network} | extra))
    with pytest.raises(UserError, match=r"inference\.json: expected"):
        bundles.read_network(tmp_path / "inference.json")
