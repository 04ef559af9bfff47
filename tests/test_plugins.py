"""Names of plug-ins: found without an import, refused where two claim one, blamed in one line where they break."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path

import polars as pl
import pytest
from distributions import installing
from pip_installs import pip_install

from advseg_bench import losses
from advseg_bench.cli.listing import list_lines
from advseg_bench.errors import PluginError, SpecError
from advseg_bench.registry import environment, plugins
from advseg_bench.registry.plugins import GROUPS, check_name, find_plugin, load_object
from advseg_bench.suite.cells import plan
from advseg_bench.suite.cost import estimate
from advseg_bench.suite.suite import parse_suite

SMOKE = files("advseg_bench.suite.shipped").joinpath("smoke.toml").read_text()
LIST_WORDS = {
    "attack": "attacks",
    "architecture": "models",
    "loss": "losses",
    "defence": "defences",
    "data set": "datasets",
}
SHIPPED = {"attack": "fgsm", "architecture": "monai.UNet", "loss": "dice", "defence": "jpeg", "data set": "mni152"}
BROKEN = {
    "raises": (
        "raise RuntimeError('two\\nlines')",
        "thing",
        "module 'zap' cannot be imported: RuntimeError: two lines",
    ),
    "exits": ("import sys; sys.exit('bye')", "thing", "module 'zap' cannot be imported: SystemExit: bye"),
    "needs": ("import no_such_library", "thing", "ModuleNotFoundError: No module named 'no_such_library'"),
    "syntax": ("def (", "thing", "module 'zap' cannot be imported: SyntaxError"),
    "absent": ("def things(): pass", "thing", "unknown object of zap 'thing'. Did you mean 'things'?"),
    "nothing": ("", "", "unknown object of zap ''"),
}


@pytest.fixture
def install(tmp_path):
    with installing(tmp_path) as function:
        yield function


@pytest.mark.parametrize("kind", GROUPS)
def test_a_plugin_is_listed_and_known_without_being_imported(install, kind):
    group = LIST_WORDS[kind]
    install("advseg-zap", {group: {"zap": "zap:thing"}}, {"zap.py": "print('loaded')\nraise RuntimeError('boom')"})
    assert f"{'zap':<24} (plug-in of advseg-zap)" in list(list_lines(group))
    check_name(kind, "zap")
    assert find_plugin(kind, "zap").target == "zap:thing"
    assert "zap" not in sys.modules
    with pytest.raises(PluginError, match=f"unknown {kind} 'zapp'. Did you mean 'zap'?"):
        check_name(kind, "zapp")


def test_a_real_process_lists_a_plugin_that_cannot_be_imported(install):
    folder = install("advseg-zap", {"attacks": {"zap": "zap:thing"}}, {"zap.py": "print('loaded')\n1 / 0"})
    command = [sys.executable, "-m", "advseg_bench", "list", "attacks"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(folder)})
    assert (done.returncode, done.stderr) == (0, "")
    assert "zap                      (plug-in of advseg-zap)\n" in done.stdout
    assert "loaded" not in done.stdout


@pytest.mark.parametrize("kind", GROUPS)
def test_two_providers_of_one_name_are_an_error_that_names_both(install, kind):
    for name in ("advseg-one", "advseg-two"):
        install(name, {LIST_WORDS[kind]: {"zap": "zap:thing"}})
    message = f"{kind} zap: expected one distribution that provides it, got advseg-one, advseg-two. Uninstall one."
    for function in (find_plugin, check_name, load_object):
        with pytest.raises(PluginError) as error:
            function(kind, "zap")
        assert str(error.value) == message
    lines = [line for line in list_lines(LIST_WORDS[kind]) if line.startswith("zap ")]
    assert len(lines) == 2
    assert all(line.endswith(f"cannot be used: {message}") for line in lines)


@pytest.mark.parametrize("kind", GROUPS)
def test_a_plugin_cannot_replace_what_is_shipped(install, kind):
    name = SHIPPED[kind]
    install("advseg-zap", {LIST_WORDS[kind]: {name: "zap:thing"}})
    with pytest.raises(PluginError, match=f"{kind} {name}: expected one provider, .* advseg-zap.* Rename"):
        check_name(kind, name)
    assert any("(plug-in of advseg-zap); cannot be used" in line for line in list_lines(LIST_WORDS[kind]))
    with pytest.raises(SpecError, match=rf"^s: .*{kind} {name}: expected one provider"):
        parse_suite(SMOKE.replace("[[models]]\n", '[[models]]\ndefence = "jpeg"\n', 1), "s")


def test_the_name_of_the_clean_prediction_is_taken(install):
    install("advseg-zap", {"attacks": {"none": "zap:thing"}})
    with pytest.raises(PluginError, match="attack none: expected one provider"):
        check_name("attack", "none")
    with pytest.raises(PluginError, match="unknown loss 'none'"):
        check_name("loss", "none")


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize("kind", GROUPS)
def test_a_broken_plugin_is_one_line_with_name_distribution_cause_and_remedy(install, kind, fault):
    source, name, cause = BROKEN[fault]
    install("advseg-zap", {LIST_WORDS[kind]: {"zip": f"zap:{name}".rstrip(":")}}, {"zap.py": source})
    with pytest.raises(PluginError) as error:
        load_object(kind, "zip")
    told = str(error.value)
    assert told.startswith(f"{kind} zip: plug-in 'zip' of distribution advseg-zap: ")
    assert cause in told
    assert told.endswith("Update or reinstall advseg-zap, or remove it: pip uninstall advseg-zap")
    assert "\n" not in told
    sys.modules.pop("zap", None)


def test_a_name_is_shipped_then_a_plugins_then_a_path(install):
    install("advseg-zap", {"losses": {"zap": "zap:inner.thing [extra]"}}, {"zap.py": "class inner:\n    thing = 7"})
    assert load_object("loss", "zap") == 7
    assert load_object("loss", "zap:inner") is sys.modules["zap"].inner
    assert load_object("loss", "dice") is losses.dice
    with pytest.raises(PluginError, match=r"loss gone:thing: module 'gone' cannot be imported: .* set PYTHONPATH"):
        load_object("loss", "gone:thing")
    with pytest.raises(PluginError, match=r"unknown object of zap 'iner'. Did you mean 'inner'\? Known: inner\.$"):
        load_object("loss", "zap:iner")
    with pytest.raises(PluginError, match="it: module 'gone' cannot"):
        load_object("loss", "gone:thing", "it")


def test_a_suite_may_use_plugins_and_a_wrong_name_in_it_is_one_line(install):
    points = {group: {f"my_{group}": "zap:thing"} for group in LIST_WORDS.values()}
    install("advseg-zap", points)
    text = SMOKE.replace('"mni152"', '"my_datasets"\nsettings = { depth = 3 }').replace('"monai.UNet"', '"my_models"')
    text = text.replace("settings = { channels = [8, 16, 32], strides = [2, 2] }", "")
    text = text.replace('"fgsm"', '"my_attacks"').replace('["bce", "dice"]', '["my_losses"]')
    suite = parse_suite(text, "s")
    assert (suite.data.name, suite.data.settings) == ("my_datasets", {"depth": 3})
    assert type(suite).model_validate_json(json.dumps(suite.as_json())) == suite
    cells = {cell.id for cell in plan(suite)}
    assert cells.isdisjoint(cell.id for cell in plan(parse_suite(text.replace("depth = 3", "depth = 4"), "s")))
    assert estimate(plan(suite)) is None
    for old, new, message in (
        ("my_datasets", "my_dataset", "data.name: unknown data set 'my_dataset'. Did you mean 'my_datasets'?"),
        ("settings = { depth", "setings = { depth", "data: unknown key 'setings'. Did you mean 'settings'?"),
        (
            "my_models",
            "my_model",
            "model 2 .*, architecture: unknown architecture 'my_model'. Did you mean 'my_models'?",
        ),
        ("my_losses", "my_loss", "attack 1 .my_attacks., losses.0: unknown loss 'my_loss'. Did you mean 'my_losses'?"),
        (
            "my_attacks",
            "my_attack",
            "attack 1 .*, name: unknown attack 'my_attack'. Did you mean 'my_attacks'?",
        ),
    ):
        with pytest.raises(SpecError, match=f"^s: {message}".replace("?", r"\?")):
            parse_suite(text.replace(old, new), "s")


# The code of plug-ins is part of what a result depends on.
def test_the_code_behind_a_plugin_and_its_version_are_described(install):
    source = {"zap/__init__.py": "1 / 0", "zap/attacks.py": "", "zap/helpers.py": "A = 1"}
    folder = install("advseg-zap", {"attacks": {"zap": "zap.attacks:thing"}}, source)
    names = [("attack", "zap"), ("attack", "fgsm"), ("loss", "dice"), ("loss", "zap.helpers:x"), ("loss", "gone:x")]
    before = environment.describe_code(names)
    assert set(before) == {"attack zap", "loss zap.helpers:x", "loss gone:x"}
    assert before["attack zap"].endswith(", advseg-zap 1.0")
    assert before["loss gone:x"] == "not found"
    assert environment.describe_code(names) == before
    (folder / "zap" / "helpers.py").write_text("A = 2")
    after = environment.describe_code(names)
    assert after["attack zap"] != before["attack zap"]
    assert after["loss zap.helpers:x"] != before["loss zap.helpers:x"]
    assert after["loss gone:x"] == before["loss gone:x"]


def test_a_module_of_its_own_is_described_by_its_file(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine.py").write_text("A = 1")
    before = environment.describe_code([("loss", "mine:loss")])
    (tmp_path / "other.py").write_text("A = 1")
    assert environment.describe_code([("loss", "mine:loss")]) == before
    (tmp_path / "mine.py").write_text("A = 2")
    assert environment.describe_code([("loss", "mine:loss")]) != before


# The worked example, installed by pip.
SUITE = """
schema = 1
name = "example"
[data]
name = "discs"
task = "binary"
size = 32
settings = { noise = 0.05 }
[training]
loss = "hinge"
epochs = 40
floor = 0.0
[[models]]
name = "net"
architecture = "two_layers"
settings = { width = 8 }
[[attacks]]
name = "sign_walk"
losses = ["hinge", "dice"]
eps = ["8/255"]
settings = { steps = 3 }
[[attacks]]
name = "random_sign"
eps = ["8/255"]
"""
WITHOUT_EXTRAS = """
import sys
sys.modules.update(dict.fromkeys(("art", "torchattacks", "foolbox", "ray"), None))
from advseg_bench.cli.app import main
main()
"""


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the example was installed into: offline where setuptools is here."""
    source, target = (tmp_path_factory.mktemp("example") / name for name in ("source", "target"))
    shutil.copytree(Path(__file__).parent / "plugin_example", source)
    try:
        offline = tuple(map(int, version("setuptools").split(".")[:2])) >= (70, 1)
    except PackageNotFoundError:
        offline = False
    options = ["--no-build-isolation"] if offline else []
    pip_install(target, *options, source)
    return target


def run_example(code: str, target: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = os.environ | {"PYTHONPATH": str(target), "COLUMNS": "120"}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environ)


@pytest.mark.network
@pytest.mark.parametrize(
    ("what", "name"), [("attacks", "sign_walk"), ("models", "two_layers"), ("losses", "hinge"), ("datasets", "discs")]
)
def test_the_installed_example_is_listed(example, tmp_path, what, name):
    done = run_example(WITHOUT_EXTRAS, example, tmp_path, "list", what)
    assert f"{name:<24} (plug-in of advseg-bench-example)\n" in done.stdout, done.stderr


@pytest.mark.network
def test_the_installed_example_runs_to_the_end_without_any_extra(example, tmp_path):
    (tmp_path / "suite.toml").write_text(SUITE)
    done = run_example(WITHOUT_EXTRAS, example, tmp_path, "run", "suite.toml", "--out", "run", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "failures.json").read_text()) == []
    rows = pl.read_parquet(tmp_path / "run" / "parts" / "*.parquet")
    assert len(rows) == 8 * 4
    assert rows["flags"].list.len().sum() == 0
    tp, fp, fn = (pl.col(name).list.first() for name in ("tp", "fp", "fn"))
    means = rows.group_by("attack", "loss").agg((2 * tp / (2 * tp + fp + fn)).mean().alias("dice"))
    dice = {(row["attack"], row["loss"]): row["dice"] for row in means.to_dicts()}
    assert dice["none", ""] > 0.3
    for loss in ("hinge", "dice"):
        assert dice["sign_walk", loss] < 0.9 * min(dice["none", ""], dice["random_sign", ""]), dice
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    code = record["binding"]["code"]
    assert set(code) == {"attack sign_walk", "architecture two_layers", "loss hinge", "data set discs"}
    assert all(text.endswith(", advseg-bench-example 1.0") for text in code.values())


def test_the_example_is_not_there_without_its_installation():
    assert importlib.util.find_spec("advseg_example") is None
    assert not [plugin for group in GROUPS.values() for plugin in plugins.list_plugins(group) if plugin.name == "discs"]
