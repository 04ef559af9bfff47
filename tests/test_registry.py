"""What a name is loaded into: attacks and losses that have been seen to be such, and attacks of toolkits."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from distributions import installing
from strategies import make_batch, make_generators, make_task

from advseg_bench import losses
from advseg_bench.cli.listing import list_lines
from advseg_bench.errors import IncompatibleError, PluginError, SpecError, UserError
from advseg_bench.protocols import Attack
from advseg_bench.registry import environment, toolkits
from advseg_bench.registry.loading import load_attack, load_loss
from advseg_bench.suite.cells import plan
from advseg_bench.suite.suite import parse_suite
from advseg_bench.testing import LinearSegmenter
from advseg_bench.types import Budget

TASK = make_task("multilabel")
BUDGET = Budget("linf", 0.1)


@pytest.fixture
def install(tmp_path):
    with installing(tmp_path) as function:
        yield function


def arguments(*names: str, **settings: object) -> tuple[tuple[str, ...], dict[str, object]]:
    return names, settings


def load(attack: str, loss: str = "", **settings: object) -> Attack:
    return load_attack(attack, settings, loss, TASK)


# Attacks.
ATTACKS = """
from dataclasses import dataclass
from advseg_bench import attack

@dataclass(frozen=True, kw_only=True)
class Shift:
    loss: object = None
    sign: int = 1
    def __call__(self, model, batch, *, budget, generators):
        return batch.x + self.sign * budget.eps

@dataclass(frozen=True, kw_only=True)
class Settled:
    sign: int = 1

def shift(model, batch, *, budget, generators):
    return batch.x + budget.eps

@attack
def decorated(model, x, y, eps, loss=None, sign=1):
    return x + sign * eps

@attack
def follows(model, x, y, eps, loss):
    return x + eps

def plain(model, x, y, eps):
    return x + eps

number = 7
"""


@pytest.fixture
def zap(install):
    names = ("Shift", "Settled", "decorated", "follows", "plain", "number")
    points = {"attacks": {f"{name.lower()}_": f"zap_attacks:{name}" for name in names}}
    install("advseg-zap", points, {"zap_attacks.py": ATTACKS})


@pytest.mark.parametrize("name", ["shift_", "decorated_", "zap_attacks:shift", "zap_attacks:decorated"])
@pytest.mark.usefixtures("zap")
def test_classes_decorated_functions_and_callables_are_attacks(name):
    batch, _ = make_batch("multilabel")
    model = LinearSegmenter(torch.tensor([1.0, 1.0]), 0.0)
    for settings in ({}, {"sign": -1}) if name != "zap_attacks:shift" else ({},):
        attack = load(name, **settings)
        x_adv = attack(model, batch, budget=BUDGET, generators=make_generators(3))
        assert torch.equal(x_adv, batch.x + settings.get("sign", 1) * 0.1)
    if name != "zap_attacks:shift":
        assert load(name, "dice").loss is losses.dice


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            arguments("plain_"),
            r"attack plain_: expected the call \(model, batch, \*, budget, generators\), got \(model, x, y,"
            r" eps\)\. Decorate a function .* with @advseg_bench.attack.",
        ),
        (arguments("settled_"), "attack settled_: expected a function or class with the call .*, got 'Settled'"),
        (arguments("number_"), "attack number_: expected a function or class with the call .*, got 'int'"),
        (arguments("shift_", sgn=1), "attack shift_: does not take these settings: .*'sgn'"),
        (arguments("decorated_", sgn=1), "attack decorated_: unknown setting 'sgn'. Did you mean 'sign'?"),
        (arguments("follows_"), "attack follows_: needs a loss"),
        (arguments("plain_", "dice"), "attack plain_: expected no settings and no losses"),
        (arguments("shift_", "zap_attacks:number"), "loss zap_attacks:number: expected a function .*, got 'int'"),
        (arguments("nowhere"), "unknown attack 'nowhere'"),
    ],
)
@pytest.mark.usefixtures("zap")
def test_what_is_no_attack_or_takes_no_such_setting_is_one_line(wrong, message):
    with pytest.raises(UserError, match=message) as error:
        load(*wrong[0], **wrong[1])
    assert "\n" not in str(error.value)


# Losses.
@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (
            "def thing(pred, target): return pred",
            IncompatibleError,
            "fails on logits of a multilabel task: TypeError",
        ),
        ("def thing(logits, y, valid, task): return 1.0", IncompatibleError, "AttributeError: .* one value per image"),
        ("def thing(logits, y, valid, task): return logits.mean()", IncompatibleError, "expected one value per image"),
        ("from torch.nn import BCELoss as thing", PluginError, "expected a function .*, got <class 'torch.nn"),
        ("thing = 3", PluginError, "expected a function .*, got 'int'"),
    ],
)
def test_what_is_no_loss_is_one_line(install, source, error, message):
    install("advseg-zap", {"losses": {"zap": "zap_losses:thing"}}, {"zap_losses.py": source})
    with pytest.raises(error, match=f"^loss zap: .*{message}") as raised:
        load_loss("zap", TASK)
    assert "\n" not in str(raised.value)


def test_a_loss_of_a_plugin_is_loaded(install):
    install("advseg-zap", {"losses": {"zap": "advseg_bench.losses:bce"}})
    assert load_loss("zap", TASK) is losses.bce


# Toolkits.
ADAPTER = """
import faketool

def load(class_name, settings, loss, task):
    def attack(model, batch, *, budget, generators):
        return batch.x
    attack.given = (class_name, settings, loss, task)
    return attack if class_name != "Nothing" else None
"""
ROWS = [
    {"name": "faketool.PGD", "status": "runs", "reason": "", "view": "loss", "objective": "follows loss",
     "norms": ["linf"], "kinds": ["multilabel"], "batching": "batch-preserving", "random": False, "more": 1},
    {"name": "faketool.DeepFool", "status": "runs", "reason": "", "view": "margin", "objective": "success-gated",
     "norms": ["l2"], "kinds": [], "random": True},
    {"name": "faketool.Noise", "status": "runs", "reason": "", "view": "", "objective": "", "random": True},
    {"name": "faketool.Text", "status": "cannot", "reason": "it attacks text", "view": "", "objective": ""},
]  # fmt: skip
SUITE = """
schema = 1
name = "foreign"
[data]
name = "mni152"
task = "multilabel"
[[models]]
name = "a"
architecture = "monai.UNet"
[[attacks]]
name = "faketool.PGD"
losses = ["dice"]
eps = ["4/255"]
"""


@pytest.fixture
def adapter(install):
    files = {
        "fakeadapters/__init__.py": "print('loaded')\n1 / 0",
        "fakeadapters/support/faketool.json": json.dumps({"rows": ROWS}),
        "fakeadapters/fake.py": "",
    }
    install("advseg-fake", {"toolkits": {"faketool": "fakeadapters.fake"}}, files)


def adapt(install, source=ADAPTER):
    install("advseg-fake", {"toolkits": {"faketool": "fakeadapter"}}, {"fakeadapter.py": source})


@pytest.mark.usefixtures("adapter")
def test_attacks_of_a_toolkit_are_listed_from_its_table_without_an_import():
    lines = list(list_lines("attacks"))
    start = lines.index(
        "faketool.<Class>         (toolkit adapted by advseg-fake; not installed. "
        'Run: pip install "advseg-fake[faketool]")'
    )
    assert lines[start + 1 : start + 5] == [
        f"{'faketool.PGD':<44} loss view, follows loss, linf",
        f"{'faketool.DeepFool':<44} margin view, success-gated, l2",
        f"{'faketool.Noise':<44} linf/l2",
        "(1 more of faketool cannot run on segmentation models; --all lists them with the reason)",
    ]
    assert f"{'faketool.Text':<44} cannot run: it attacks text" in list(list_lines("attacks", every=True))
    assert "fakeadapters" not in sys.modules


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("faketool.PGD", "faketool.PDG", r"unknown attack 'faketool.PDG'. Did you mean 'faketool.PGD'\?"),
        ("faketool.PGD", "faketool.pgd", r"unknown attack 'faketool.pgd'. Did you mean 'faketool.PGD'\?"),
        ("faketool.PGD", "faketol.PGD", "unknown attack 'faketol.PGD'. Did you mean 'faketool.<Class>'"),
        ("faketool.PGD", "faketool.Text", "attack faketool.Text: cannot attack a segmenter: it attacks text"),
        ('["4/255"]', '["4/255"]\nnorm = "l2"', "attack 1 .faketool.PGD.: norm: attack .* supports linf, not l2"),
        ('losses = ["dice"]', "", "attack 1 .faketool.PGD.: losses: attack 'faketool.PGD' needs a loss"),
        ('["4/255"]', '["4/255"]\ndraws = 2', "attack 1 .faketool.PGD.: draws: attack 'faketool.PGD' is not random"),
        ("faketool.PGD", "faketool.Noise", "attack 1 .faketool.Noise.: losses: attack 'faketool.Noise' takes no loss"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("adapter")
def test_a_suite_is_checked_against_the_table(old, new, message):
    parse_suite(SUITE, "s")
    with pytest.raises(SpecError, match=f"^s: .*{message}") as error:
        parse_suite(SUITE.replace(old, new), "s")
    assert "\n" not in str(error.value)
    assert "fakeadapters" not in sys.modules


@pytest.mark.usefixtures("adapter")
def test_a_task_that_an_attack_does_not_run_on_is_skipped_with_the_reason():
    assert [c.skip for c in plan(parse_suite(SUITE, "s"))] == [None, None]
    (_, skipped) = plan(parse_suite(SUITE.replace('"multilabel"', '"binary"'), "s"))
    assert skipped.skip == "attack 'faketool.PGD' runs on multilabel tasks, not on binary"


@pytest.mark.parametrize("damage", ["{", "[]", '{"rows": [{}]}', '{"rows": 3}'])
def test_a_damaged_table_is_one_line(install, damage):
    files = {"fakeadapters/__init__.py": "", "fakeadapters/support/faketool.json": damage}
    install("advseg-fake", {"toolkits": {"faketool": "fakeadapters.fake"}}, files)
    with pytest.raises(
        SpecError, match=r"toolkit faketool of distribution advseg-fake: .*json is an invalid support table: "
    ):
        parse_suite(SUITE, "s")
    assert any("invalid support table" in line for line in list_lines("attacks"))


def test_without_a_table_any_class_may_be_tried(install):
    adapt(install)
    assert parse_suite(SUITE, "s").attacks[0].name == "faketool.PGD"
    assert "faketool.<Class>" in "\n".join(list_lines("attacks"))


def test_a_toolkit_that_is_not_installed_is_one_line_with_the_command(install):
    adapt(install)
    with pytest.raises(PluginError) as error:
        load("faketool.PGD")
    told = 'attack faketool.PGD: needs faketool, which is not installed. Run: pip install "advseg-fake[faketool]"'
    assert str(error.value) == told


def test_a_toolkit_is_missed_too_when_load_is_what_imports_it(install):
    adapt(install, "def load(*args):\n    import faketool.attacks")
    with pytest.raises(PluginError, match="needs faketool, which is not installed"):
        load("faketool.PGD")


@pytest.mark.parametrize(
    ("toolkit", "source", "message"),
    [
        ("import requestz", ADAPTER, "fails: ModuleNotFoundError: No module named 'requestz'. Run: pip install"),
        ("raise ImportError('too old')", ADAPTER, "fails: ImportError: too old. Run: pip install"),
        ("1 / 0", ADAPTER, "fails: ZeroDivisionError: division by zero. Update or reinstall advseg-fake"),
        ("", "import faketool.gone", "fails: ModuleNotFoundError: No module named 'faketool.gone'.* Run: pip install"),
        ("", "A = 1", "fails: AttributeError: .*'load'.* Update or reinstall advseg-fake"),
        ("", ADAPTER.replace('"Nothing"', '"PGD"'), "expected an attack from its `load`, got 'NoneType'"),
    ],
)
def test_a_broken_adapter_or_toolkit_is_one_line_with_the_cause(install, toolkit, source, message):
    install("faketool", {}, {"faketool.py": toolkit})
    adapt(install, source)
    with pytest.raises(PluginError, match=f"^attack faketool.PGD: fakeadapter of distribution advseg-fake.*{message}"):
        load("faketool.PGD")


def test_an_attack_of_a_toolkit_gets_class_settings_loss_and_task(install):
    install("faketool", {}, {"faketool.py": ""})
    adapt(install)
    attack = load("faketool.Lin.PGD", "dice", steps=3)
    assert attack.given == ("Lin.PGD", {"steps": 3}, losses.dice, TASK)
    described = environment.describe_code([("attack", "faketool.PGD")])["attack faketool.PGD"]
    assert described.endswith(", advseg-fake 1.0, faketool 1.0")


def test_mistakes_that_an_adapter_finds_are_the_users(install):
    install("faketool", {}, {"faketool.py": ""})
    adapt(
        install, "from advseg_bench.errors import SpecError\ndef load(*args):\n    raise SpecError('no such setting')"
    )
    with pytest.raises(SpecError, match=r"^no such setting$"):
        load("faketool.PGD")


def test_two_adapters_of_one_toolkit_or_an_attack_of_its_name_are_an_error(install):
    adapt(install)
    install("advseg-zap", {"attacks": {"faketool.PGD": "zap:thing"}})
    message = "attack faketool.PGD: expected one distribution that provides it, got advseg-fake, advseg-zap."
    with pytest.raises(SpecError, match=message):
        parse_suite(SUITE, "s")
    install("advseg-other", {"toolkits": {"faketool": "other"}})
    with pytest.raises(PluginError, match=r"attack faketool.X: .* advseg-fake, advseg-other"):
        load("faketool.X")


def test_a_path_with_a_toolkits_name_in_front_is_a_path(install):
    install("faketool", {}, {"faketool/__init__.py": "", "faketool/mine.py": ATTACKS})
    adapt(install, "1 / 0")
    assert toolkits.find_toolkit("faketool.mine:shift") is None
    assert load("faketool.mine:shift").__name__ == "shift"


@pytest.mark.parametrize(
    ("toolkit", "attack"), [("art", "FastGradientMethod"), ("torchattacks", "PGD"), ("foolbox", "LinfPGD")]
)
def test_each_extra_that_is_missing_is_one_line_with_its_command(monkeypatch, toolkit, attack):
    hidden = {name for name in sys.modules if name.split(".")[0] in (toolkit, "advseg_adapters")}
    for name in hidden:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, toolkit, None)
    with pytest.raises(PluginError) as error:
        load(f"{toolkit}.{attack}", "dice")
    for name in {name for name in sys.modules if name.split(".")[0] == "advseg_adapters"}:
        del sys.modules[name]
    told = f"attack {toolkit}.{attack}: needs {toolkit}, which is not installed. "
    assert str(error.value) == told + f'Run: pip install "advseg-bench[{toolkit}]"'
    assert not toolkits.is_installed(toolkits.find_toolkit(f"{toolkit}.X"))
