"""Code is hashed as it was imported: an edited file, a reload or a notebook's cell never stands under another's key."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from advseg_bench.errors import PluginError
from advseg_bench.registry import environment
from advseg_bench.registry.plugins import load_object
from advseg_bench.registry.source_files import list_files
from advseg_bench.registry.sources import NO_FILE, Session

OLD = "WIDTH = 8\ndef loss(logits):\n    return logits.mean()\n"
NEW_BODY = OLD.replace("mean", "sum")
NEW_CONSTANT = OLD.replace("8", "16")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]


def describe(name, session=None):
    return environment.describe_code([("loss", name)], session)[f"loss {name}"]


def begin(name):
    return environment.begin_code([("loss", name)])


@pytest.mark.parametrize("new", [NEW_BODY, NEW_CONSTANT, OLD + "# a comment\n"])
def test_a_module_that_we_imported_and_that_changed_is_refused(folder, new):
    (folder / "mine_a.py").write_text(OLD)
    load_object("loss", "mine_a:loss")
    begin("mine_a:loss")
    before = describe("mine_a:loss")
    (folder / "mine_a.py").write_text(new)
    assert describe("mine_a:loss") == before, "the hash is that of the code in memory"
    with pytest.raises(PluginError, match=r"mine_a\.py: expected .* changed on disk .* Restart the session"):
        begin("mine_a:loss")
    (folder / "mine_a.py").write_text(OLD)
    begin("mine_a:loss")


@pytest.mark.parametrize("new", [NEW_BODY, NEW_CONSTANT])
@pytest.mark.parametrize("bytecode", [True, False])
def test_a_module_that_the_user_imported_and_edited_before_us_is_refused(folder, new, bytecode, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", not bytecode)
    (folder / "mine_b.py").write_text(OLD)
    importlib.import_module("mine_b")
    (folder / "mine_b.py").write_text(new)
    for look in (begin, describe):
        with pytest.raises(PluginError, match=r"mine_b\.py: expected"):
            look("mine_b:loss")


def test_a_module_that_was_reloaded_after_its_edit_is_accepted_under_its_new_hash(folder):
    (folder / "mine_c.py").write_text(OLD)
    module = importlib.import_module("mine_c")
    begin("mine_c:loss")
    before = describe("mine_c:loss")
    (folder / "mine_c.py").write_text(NEW_BODY)
    importlib.reload(module)
    begin("mine_c:loss")
    assert describe("mine_c:loss") != before


def test_a_reloaded_module_whose_old_functions_are_still_in_use_is_refused(folder):
    (folder / "helper_d.py").write_text(OLD)
    (folder / "mine_d.py").write_text("from helper_d import loss\n")
    importlib.import_module("mine_d")
    begin("mine_d:loss")
    (folder / "helper_d.py").write_text(NEW_BODY)
    importlib.reload(sys.modules["helper_d"])
    with pytest.raises(PluginError, match=r"mine_d\.py: expected the code of module 'helper_d'"):
        begin("mine_d:loss")
    importlib.reload(sys.modules["mine_d"])
    begin("mine_d:loss")


def test_compiled_code_that_python_takes_for_current_is_compared(folder):
    """Two versions of one size, written in the same second: Python loads the first from __pycache__."""
    path = folder / "mine_e.py"
    path.write_text(OLD)
    os.utime(path, (1_700_000_000, 1_700_000_000))
    subprocess.run(
        [sys.executable, "-c", "import mine_e"],
        cwd=folder,
        check=True,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": ""},
    )
    path.write_text(OLD.replace("8", "9"))
    os.utime(path, (1_700_000_000, 1_700_000_000))
    with pytest.raises(PluginError, match=r"mine_e\.py: expected .* delete __pycache__"):
        load_object("loss", "mine_e:loss")
    assert sys.modules["mine_e"].WIDTH == 8, "Python did load the old code"


def test_the_hash_covers_modules_of_the_same_folder_that_are_imported_and_no_other(folder):
    (folder / "blocks_f").mkdir()
    (folder / "blocks_f" / "__init__.py").write_text("")
    (folder / "blocks_f" / "conv.py").write_text("from deep_f import x\n")
    (folder / "deep_f.py").write_text("x = 1\n")
    (folder / "other_f.py").write_text("x = 1\n")
    (folder / "mine_f.py").write_text("import json\ndef loss():\n    from blocks_f.conv import x\n")
    before = describe("mine_f:loss")
    (folder / "other_f.py").write_text("x = 2\n")
    assert describe("mine_f:loss") == before
    (folder / "deep_f.py").write_text("x = 2\n")
    assert describe("mine_f:loss") != before
    assert set(list_files("mine_f")) == {"mine_f", "../blocks_f/__init__.py", "../blocks_f/conv.py", "../deep_f.py"}


def test_the_hash_covers_modules_of_other_folders_on_the_path_unless_they_are_installed(folder, monkeypatch):
    for place, text in (("lab", "import deeper_k.part\n"), ("src/deeper_k", ""), ("site-packages", "x = 1\n")):
        (folder / place).mkdir(parents=True)
        name = {"lab": "labhelp_k.py", "src/deeper_k": "part.py"}.get(place, "installed_k.py")
        (folder / place / name).write_text(text)
        monkeypatch.syspath_prepend(folder / place.partition("/")[0])
    (folder / "mine_k.py").write_text("def loss():\n    import installed_k\n    from labhelp_k import act\n")
    assert set(list_files("mine_k")) == {"mine_k", "sys.path/labhelp_k.py", "sys.path/deeper_k/part.py"}
    before = describe("mine_k:loss")
    (folder / "site-packages" / "installed_k.py").write_text("x = 2\n")
    assert describe("mine_k:loss") == before
    for path in (folder / "lab" / "labhelp_k.py", folder / "src" / "deeper_k" / "part.py"):
        path.write_text("import deeper_k.part\nx = 2\n")
        before, old = describe("mine_k:loss"), before
        assert before != old


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import importlib\nname = 'other_l'\nimportlib.import_module('dynhelp_l')\n", ["dynhelp_l"]),
        ("from importlib import import_module as load\nload('dynhelp_l')\n", ["dynhelp_l"]),
        ("import importlib\nfor name in ['dynhelp_l', 'other_l']:\n    __import__(name)\n", ["dynhelp_l", "other_l"]),
        ("x = 'dynhelp_l'\n", []),
    ],
)
def test_the_hash_covers_modules_that_are_imported_by_a_string(folder, monkeypatch, text, found):
    (folder / "lab").mkdir()
    monkeypatch.syspath_prepend(folder / "lab")
    for name in ("dynhelp_l", "other_l"):
        (folder / "lab" / f"{name}.py").write_text("x = 1\n")
    (folder / "mine_l.py").write_text(text + OLD)
    before = describe("mine_l:loss")
    assert set(list_files("mine_l")) == {"mine_l", *(f"sys.path/{name}.py" for name in found)}
    (folder / "lab" / "dynhelp_l.py").write_text("x = 2\n")
    assert (describe("mine_l:loss") != before) == bool(found)


def test_within_a_session_unloaded_files_keep_their_hash_and_must_not_change_before_they_are_loaded(folder):
    (folder / "late_g.py").write_text("x = 1\n")
    (folder / "mine_g.py").write_text("def loss():\n    from late_g import x\n    return x\n")
    session = Session()
    before = describe("mine_g:loss", session)
    (folder / "late_g.py").write_text("x = 12345\n")
    assert describe("mine_g:loss", session) == before
    load_object("loss", "mine_g:loss")()
    with pytest.raises(PluginError, match=r"late_g\.py: expected"):
        describe("mine_g:loss", session)
    assert describe("mine_g:loss") != before


def test_code_in_no_file_has_no_hash(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "made_h", type(sys)("made_h"))
    assert describe("made_h:loss").startswith(NO_FILE)
    assert describe("made_h:loss") != describe("made_h:loss")
    session = Session()
    assert describe("made_h:loss", session) == describe("made_h:loss", session)
    assert describe("gone_h:loss") == "not found"


def test_a_function_replaced_from_a_notebook_has_no_hash(folder):
    (folder / "mine_i.py").write_text("class Net:\n    def forward(self):\n        return 1\n")
    module = importlib.import_module("mine_i")
    assert not describe("mine_i:Net").startswith(NO_FILE)
    space = {"__name__": "__main__"}
    exec(compile("def forward(self):\n    return 2\n", "<cell>", "exec"), space)
    module.Net.forward = space["forward"]
    assert describe("mine_i:Net").startswith(NO_FILE)


def test_a_decorator_that_keeps_the_name_of_what_it_wraps_is_no_change(folder):
    (folder / "helper_j.py").write_text(OLD)
    decorate = (
        "import functools, helper_j\n@functools.wraps(helper_j.loss)\ndef loss(x):\n    return -helper_j.loss(x)\n"
    )
    (folder / "mine_j.py").write_text(decorate)
    importlib.import_module("mine_j")
    begin("mine_j:loss")
    assert not describe("mine_j:loss").startswith(NO_FILE)


def run(folder, text, *arguments, name="-"):
    done = subprocess.run(
        [sys.executable, *(arguments or (name,))], input=text, capture_output=True, text=True, cwd=folder, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")


SHOW = """
from advseg_bench.registry import environment
def show():
    print(environment.describe_code([("loss", "__main__:loss")])["loss __main__:loss"])
show()
"""


@pytest.mark.slow
def test_the_script_is_hashed_by_its_file_and_standard_input_not_at_all(folder):
    decorated = "import torch\n@torch.no_grad()\ndef other():\n    pass\n"
    (folder / "script.py").write_text(decorated + OLD + SHOW)
    first = run(folder, "", "script.py")
    assert run(folder, "", "script.py") == first
    assert not first[0].startswith(NO_FILE)
    (folder / "script.py").write_text(NEW_CONSTANT + SHOW)
    assert run(folder, "", "script.py") != first
    stdin = run(folder, OLD + SHOW)
    assert stdin[0].startswith(NO_FILE)
    assert run(folder, OLD + SHOW) != stdin


@pytest.mark.slow
def test_a_script_edited_while_it_runs_is_refused(folder):
    edit = (
        "import pathlib\npathlib.Path(__file__).write_text(pathlib.Path(__file__).read_text().replace('mean', 'sum'))\n"
    )
    check = "try:\n    show()\nexcept Exception as error:\n    print(type(error).__name__)\n"
    (folder / "script.py").write_text(OLD + edit + SHOW.replace("\nshow()\n", "\n") + check)
    assert run(folder, "", "script.py")[0] == "PluginError"


def test_describing_the_code_of_an_installed_package_again_reads_no_source(monkeypatch):
    session, read = Session(), []
    monkeypatch.setattr(
        Path, "read_bytes", lambda path, read_bytes=Path.read_bytes: read.append(path) or read_bytes(path)
    )
    described = environment.describe_code([("architecture", "torch.nn:Conv2d")], session)
    assert len(read) > 100
    read.clear()
    assert environment.describe_code([("architecture", "torch.nn:Conv2d")], session) == described
    assert read == []


NET = """
from torch import nn
class Net(nn.Module):
    def __init__(self, in_channels=1, classes=1):
        super().__init__()
        self.a, self.b = nn.Conv2d(in_channels, 4, 3, padding=1), nn.Conv2d(4, classes, 1)
    def forward(self, x):
        return self.b(self.a(x).ACT())
"""
RUN = """
import json, pathlib
import advseg_bench as ab
def run(out, network):
    net = {"name": "net", "architecture": network}
    data = {"name": "phantom", "size": 16, "subjects": 3, "slices": 1}
    attack = {"name": "random_sign", "eps": ["4/255"]}
    suite = ab.Suite(name="tiny", data=data, models=[net], training={"epochs": 1, "floor": 0}, attacks=[attack])
    try:
        ab.run(suite, out, isolate=False)
    except Exception as error:
        return print("refused", error)
    print(json.loads(pathlib.Path(out, "models", "net.json").read_text())["weights_sha256"])
"""


@pytest.mark.slow
def test_weights_of_a_session_never_stand_under_the_key_of_other_code(folder, monkeypatch):
    """The wrong number that was found: the old network's weights, cached under the hash of the edited file."""
    monkeypatch.setenv("ADVSEG_BENCH_CACHE", str(folder / "cache"))
    old, new = NET.replace("ACT", "relu"), NET.replace("ACT", "sin")
    (folder / "nets.py").write_text(old)
    edit = f"pathlib.Path('nets.py').write_text({new!r})\n"
    first, second, *_ = run(folder, f"{RUN}\nrun('one', 'nets:Net')\n{edit}run('two', 'nets:Net')\n")
    assert "nets.py" in second
    assert second.startswith("refused")
    later = run(folder, f"{RUN}\nrun('three', 'nets:Net')\n")[0]
    typed = run(folder, f"{RUN}\n{new}\nrun('four', '__main__:Net')\nrun('four', '__main__:Net')\n")
    other = run(folder, f"{RUN}\n{old}\nrun('five', '__main__:Net')\n")[0]
    assert first == other, "the same network, wherever it is defined"
    assert later == typed[0] != first
    assert typed[1].startswith("refused"), "rows of code without a hash are not resumed"
    assert len(list((folder / "cache" / "models").iterdir())) == 2, "nothing of standard input is cached"
