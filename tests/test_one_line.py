"""What people bring that is broken, flipped, odd or absent: each is one line, and none is a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import nibabel
import numpy as np
import pytest
import torch
from distributions import installing
from stub_worker import Call, start_worker
from torch import nn

import advseg_bench as ab
from advseg_bench import cache
from advseg_bench.cli.listing import list_lines
from advseg_bench.data import load_dataset
from advseg_bench.data.description import read_json
from advseg_bench.data.formats import read_header, read_slices
from advseg_bench.errors import RecordError, UserError, WorkerError, expected, one_line
from advseg_bench.models.build import build_model
from advseg_bench.registry.loading import load_attack, load_loss
from advseg_bench.registry.plugins import GROUPS, load_object
from advseg_bench.running.executors.base import call, open_executor
from advseg_bench.running.outcomes import JobError
from advseg_bench.suite.specs import ModelSpec, PluginData
from advseg_bench.suite.suite import Suite
from advseg_bench.types import Task

TASK = Task("binary", ("disc",))
ODD = """
class Loud:
    def __getattr__(self, name): raise RuntimeError("attribute " + name)
    def __repr__(self): raise RuntimeError("no repr")
class Stop(BaseException): pass
class Mute(Exception):
    def __str__(self): raise RuntimeError("no str")
"""
AT_IMPORT = {
    "exits": "raise SystemExit(3)",
    "stops": f"{ODD}raise Stop('x')",
    "ends": "raise GeneratorExit",
    "mute": f"{ODD}raise Mute()",
    "raises for every name": "def __getattr__(name): raise RuntimeError(name)",
}
IN_USE = {
    "loud": "thing = Loud()",
    "loud callable": "class Called(Loud):\n"
    "    def __call__(self, *a, **k): raise RuntimeError('two\\nlines')\n"
    "thing = Called()",
    "stops": "def thing(*a, **k): raise Stop('x')",
    "exits": "def thing(*a, **k): raise SystemExit(3)",
    "mute": "def thing(*a, **k): raise Mute()",
    "returns an odd object": "def thing(*a, **k): return Loud()",
    "stops in its constructor": "class thing:\n    def __init__(self, *a, **k): raise Stop()",
    "of an odd class": "class Meta(type):\n"
    "    def __repr__(cls): raise RuntimeError('r')\n"
    "class thing(metaclass=Meta): pass",
    "nothing": "thing = None",
}


def load_architecture(name):
    build_model(ModelSpec(name="net", architecture=name), channels=1, task=TASK, size=16)


def load_data(name):
    load_dataset(PluginData(name=name, task="binary", size=16)).batch([0])


LOADERS = {
    "architecture": load_architecture,
    "loss": lambda name: load_loss(name, TASK),
    "data set": load_data,
}


@pytest.fixture
def install(tmp_path):
    with installing(tmp_path) as function:
        yield function


def in_one_line(do, *arguments):
    with pytest.raises(UserError) as error:
        do(*arguments)
    told = str(error.value)
    assert told
    assert "\n" not in told
    return told


@pytest.mark.parametrize("fault", AT_IMPORT)
@pytest.mark.parametrize("kind", GROUPS)
def test_a_plugin_that_stops_at_its_import(install, kind, fault):
    install("advseg-zap", {GROUPS[kind].partition(".")[2]: {"zap": "zap:thing"}}, {"zap.py": AT_IMPORT[fault]})
    told = in_one_line(load_object, kind, "zap")
    assert "advseg-zap" in told
    sys.modules.pop("zap", None)


@pytest.mark.parametrize("fault", IN_USE)
@pytest.mark.parametrize("kind", LOADERS)
def test_a_plugin_that_is_no_use(install, kind, fault):
    source = ODD + IN_USE[fault]
    install("advseg-zap", {GROUPS[kind].partition(".")[2]: {"zap": "zap:thing"}}, {"zap.py": source})
    assert "zap" in in_one_line(LOADERS[kind], "zap") or kind == "architecture"


@pytest.mark.parametrize("fault", ["loud", "loud callable", "stops in its constructor", "nothing"])
def test_an_attack_that_is_no_use(install, fault):
    install("advseg-zap", {"attacks": {"zap": "zap:thing"}}, {"zap.py": ODD + IN_USE[fault]})
    assert "attack zap" in in_one_line(load_attack, "zap", {}, "", TASK)


def test_a_distribution_without_its_metadata_hides_no_other(install):
    folder = install("advseg-zap", {"attacks": {"zap": "zap:thing"}}, {"zap.py": ""})
    (next(folder.glob("*.dist-info")) / "METADATA").unlink()
    assert any(line.startswith("zap ") for line in list_lines("attacks"))
    assert any(line.startswith("fgsm ") for line in list_lines("attacks"))


@pytest.mark.slow
def test_plan_and_list_run_no_code_of_the_user(install, tmp_path):
    mark = tmp_path / "ran"
    names = {group.partition(".")[2]: {"zap": "zap:thing"} for group in GROUPS.values()}
    names["toolkits"] = {"zapkit": "zap.kit"}
    source = f"open({str(mark)!r}, 'a').write(__name__)\n"
    files = {"zap/__init__.py": source, "zap/kit.py": source, "zapkit/__init__.py": source, "beside.py": source}
    folder = install("advseg-zap", names, files)
    tables = """
        schema = 1
        name = "s"
        data = { name = "zap", task = "binary", size = 32 }
        training = { loss = "zap" }
        models = [{ name = "net", architecture = "zap" }, { name = "other", architecture = "beside:make" }]
        [[attacks]]
        name = "zap"
        losses = ["beside:loss"]
        eps = ["4/255"]
        [[attacks]]
        name = "zapkit.PGD"
        eps = ["4/255"]
    """
    (tmp_path / "s.toml").write_text(tables)
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    lists = (["list", what] for what in ("attacks", "models", "losses", "datasets"))
    for arguments in (["plan", "s.toml"], *lists):
        command = [sys.executable, "-m", "advseg_bench", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "zap" in done.stdout
    assert not mark.exists()


# Arrays with negative strides, of other byte orders, or that cannot be written.
def arrays():
    x = np.random.default_rng(0).random((2, 1, 16, 16)).astype(np.float32)
    y = (x > 0.5).astype(np.uint8)
    yield "flipped", x[..., ::-1], y[..., ::-1]
    yield "flipped twice", x[:, :, ::-1, ::-1], y[:, :, ::-1, ::-1]
    yield "big endian", x.astype(">f4"), y.astype(">i2")
    yield "turned", np.rot90(x, axes=(2, 3)), np.rot90(y, axes=(2, 3))
    frozen = x.copy()
    frozen.flags.writeable = False
    yield "read only", frozen, y
    yield "lists of flipped images", [image[..., ::-1] for image in x], [label[..., ::-1] for label in y]


@pytest.mark.parametrize(("what", "x", "y"), list(arrays()), ids=[each[0] for each in arrays()])
def test_arrays_of_any_layout_are_read(what, x, y):
    batch = ab.Batch.of(x, y, task="binary")
    np.testing.assert_array_equal(batch.x.numpy(), np.asarray(x, np.float32))
    run = ab.evaluate(segment, [(x, y)], ab.attacks.FGSM(loss="bce"), task="binary")
    assert not run.failures
    data = [(image, label) for image, label in zip(x, y, strict=True)]
    run = ab.evaluate(segment, Listed(data), ab.attacks.FGSM(loss="bce"), task="binary")
    assert not run.failures


def segment(x):
    return 20 * (x - 0.5)


class Listed(torch.utils.data.Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def evaluate(data):
    return ab.evaluate(segment, data, ab.attacks.FGSM(loss="bce"), task="binary")


def test_a_data_loader_that_fails_names_the_item_and_the_remedy():
    x = np.ones((1, 16, 16), np.float32)[..., ::-1]
    loader = torch.utils.data.DataLoader(Listed([(x, x)]), batch_size=1, generator=torch.Generator())
    assert "item 0" in (told := in_one_line(evaluate, loader))
    assert "copy()" in told
    assert "item 1" in in_one_line(evaluate, (fail_at(1, index) for index in range(2)))
    for odd in ([(np.float32(3), np.float32(1))], [({}, {})], [{1: 2, "a": 3}], [(object(), object())]):
        in_one_line(evaluate, odd)


def fail_at(which, index):
    if index == which:
        raise KeyError("image")
    return np.ones((1, 1, 16, 16), np.float32), np.ones((1, 1, 16, 16))


# Files.
def test_images_without_the_axes_of_space_are_refused(tmp_path):
    axis = nibabel.cifti2.ScalarAxis(["a", "b"])
    series = nibabel.cifti2.SeriesAxis(0, 1, 4)
    image = nibabel.Cifti2Image(np.zeros((4, 2), np.float32), nibabel.Cifti2Header.from_axes((series, axis)))
    image.to_filename(tmp_path / "odd.nii")
    for read in (read_header, lambda path: list(read_slices(path))):
        assert "Cifti2Image" in in_one_line(read, tmp_path / "odd.nii")


def test_a_file_that_cannot_be_opened_is_not_called_damaged(tmp_path):
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    told = in_one_line(read_header, tmp_path / "gone.png")
    assert "No such file" in told
    assert "damaged" not in told


def test_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "d.json").write_bytes(b'\xef\xbb\xbf{"labels": 1}')
    assert read_json(tmp_path / "d.json") == {"labels": 1}
    text = b'extends = "smoke"\n'
    (tmp_path / "s.toml").write_bytes(b"\xef\xbb\xbf" + text)
    assert Suite.load(tmp_path / "s.toml").data == Suite.load("smoke").data


@pytest.mark.parametrize("variables", [{"HOME": "/proc/nobody"}, {"HOME": "/proc/nobody", "XDG_CACHE_HOME": ""}])
def test_a_cache_that_cannot_be_made_names_its_variable(monkeypatch, variables):
    for name in ("ADVSEG_BENCH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RecordError, match=r"/proc/nobody/.*ADVSEG_BENCH_CACHE"):
        cache.cache_dir("models")


# Worker processes.
def no_news(message):
    pass


@pytest.mark.slow
def test_the_cause_of_a_workers_end_is_that_of_its_exit_code():
    for function, argument, cause in ((os._exit, 3, "exit code 3"), (signal.raise_signal, signal.SIGSEGV, "SIGSEGV")):
        told = pytest.raises(WorkerError, match=cause)
        with told, open_executor(2, start_worker, no_news) as executor:
            call(executor, Call(function, (argument,)))
        assert "memory ran out" not in str(told.excinfo.value)
    with open_executor(2, start_worker, no_news) as executor, pytest.raises(JobError, match="KeyboardInterrupt"):
        call(executor, Call(interrupt))


def interrupt():
    raise KeyboardInterrupt


OF_SCRIPT = """
import advseg_bench as ab
tables = ab.Suite.load("smoke").as_json()
tables["attacks"].append({"name": "__main__:mine", "eps": [0.01]})
suite = ab.Suite.model_validate(tables)

@ab.attack
def mine(model, x, y, eps):
    return x
"""
SCRIPTS = {
    "no guard": "ab.run(suite, 'run', workers=2)",
    "fails when it is imported": "import pathlib\npathlib.Path('run').mkdir()\n"
    "if __name__ == '__main__':\n    ab.run(suite, 'run', workers=2)",
}


@pytest.mark.slow
@pytest.mark.parametrize("what", SCRIPTS)
def test_a_script_that_workers_cannot_import_is_the_named_cause(tmp_path, what):
    (tmp_path / "script.py").write_text(f"{OF_SCRIPT}\n{SCRIPTS[what]}\n")
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    last = done.stderr.strip().split("\n")[-1]
    assert "script.py: expected a script that worker processes can import" in last
    assert "workers=1" in last
    assert "memory" not in last
    if what == "no guard":
        assert done.stderr.count("Traceback") == 1, "workers add none of their own"


def test_values_and_exceptions_that_cannot_be_shown_are_named_by_their_class():
    space: dict[str, type] = {}
    exec(ODD, space)
    assert one_line(space["Mute"]()) == "Mute"
    assert expected("it", "a number", space["Loud"]()) == "it: expected a number, got Loud object."
    assert "\n" not in expected("it", "a number", nn.Sequential(nn.ReLU(), nn.ReLU()))
