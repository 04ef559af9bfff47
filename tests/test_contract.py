"""The contract: every planted fault is caught for the right reason, and no sound attack is refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from faults import FAULTS, SOUND
from stepped_faults import FOR_CROSSCHECK
from torch import nn

import advseg_bench as ab
from advseg_bench import losses, protocols
from advseg_bench.attacks import BIM, PGD
from advseg_bench.attacks.gradient import FGSM
from advseg_bench.attacks.noise import RandomSign
from advseg_bench.cli.app import main
from advseg_bench.errors import PluginError, SpecError
from advseg_bench.instruments.guard import ModelGuard
from advseg_bench.instruments.process_state import compare, snapshot
from advseg_bench.registry import catalogue
from advseg_bench.testing import RULES, AttackContract, Trial, check_attack, find_case
from advseg_bench.testing.command import read_settings
from advseg_bench.types import Traits

STATED = [rule.name for rule in RULES]


def first_broken(case) -> tuple[str, str]:
    """The first broken rule and its message, as a user reads them; ("", "") if there is none."""
    trial = Trial(case)
    for rule in RULES:
        outcome = trial.ask(rule)
        if outcome.verdict == "FAILED":
            return rule.name, outcome.message
    return "", ""


@pytest.mark.parametrize("name", FAULTS)
def test_every_planted_fault_is_caught_with_the_right_reason(name):
    planted = FAULTS[name]
    rule, message = first_broken(find_case(planted.attack))
    assert rule == planted.rule, message
    assert re.search(planted.says, message), message
    assert "\n" not in message


def test_every_rule_is_needed():
    assert {planted.rule for planted in FAULTS.values()} == set(STATED)
    assert len(FAULTS) >= 20


SHIPPED = [
    ("fgsm", {}),
    ("fgsm", {"loss": "dice"}),
    ("fgsm", {"loss": "focal"}),
    ("fgsm", {"loss": "dice_focal"}),
    ("fgsm", {"settings": {"targeted": True}}),
    ("fgsm", {"settings": {"label": "predicted"}}),
    ("fgsm", {"settings": {"label": "empty", "targeted": True}}),
    ("bim", {}),
    ("bim", {"settings": {"steps": 3, "step_size": 1.0, "label": "empty", "targeted": True}}),
    ("pgd", {}),
    ("pgd", {"loss": "dice", "settings": {"steps": 6}}),
    ("mifgsm", {}),
    ("mifgsm", {"settings": {"decay": 0.5, "momentum_norm": "none", "random_start": True, "step_size": 0.25}}),
    ("mifgsm", {"settings": {"step_size": 0.5, "steps": 4}}),
    ("nifgsm", {"settings": {"steps": 4}}),
    ("bim", {"settings": {"step_size": 1.5, "keep": "best", "steps": 5}}),
    ("bim", {"settings": {"radius_schedule": "shrinking", "steps": 5, "step_size": 1.0}}),
    ("pgd", {"settings": {"steps": 3, "step_size": 1.0, "restarts": 2, "keep_by": "hard_dice"}}),
    ("segpgd", {"settings": {"steps": 4}}),
    ("cospgd", {"settings": {"steps": 4}}),
    ("tsallis_pgd", {"settings": {"steps": 4}}),
    ("apgd", {"settings": {"steps": 5}}),
    ("apgd", {"loss": "balanced_ce", "settings": {"steps": 5, "objective": "present_dice", "keep_by": "hard_dice"}}),
    ("padam", {"settings": {"steps": 8}}),
    ("square", {"settings": {"queries": 50}}),
    ("random_sign", {}),
    ("shuffled_sign", {}),
    ("uniform_noise", {}),
]


@pytest.mark.parametrize(("name", "options"), SHIPPED, ids=str)
def test_no_shipped_attack_is_refused(name, options):
    assert first_broken(find_case(name, **options)) == ("", "")


IN_CATALOGUE = [name for name in catalogue.ATTACKS if name != "transfer"]  # which needs a second model


@pytest.mark.slow
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", IN_CATALOGUE)
def test_the_catalogue_keeps_the_contract_with_default_settings(name, dims):
    # On a plateau, rounding decides which of many iterates is the best one, so APGD is checked with few steps in 3-D.
    shorter = {("square", 2): {"queries": 100}, ("square", 3): {"queries": 100}, ("apgd", 3): {"steps": 5}}
    case = find_case(name, settings=shorter.get((name, dims), {}))
    assert case.kinds == ("binary", "multilabel", "multiclass")
    assert set(case.traits.norms) == {"linf", "l2"}
    assert set(case.traits.dims) == {2, 3}
    assert first_broken(replace(case, traits=replace(case.traits, dims=(dims,)))) == ("", "")


def test_every_attack_of_the_catalogue_is_among_those_that_are_checked():
    assert {name for name, _ in SHIPPED} == set(IN_CATALOGUE)


@pytest.mark.slow
@pytest.mark.parametrize("name", FOR_CROSSCHECK)
def test_faults_that_only_a_reference_can_show_are_sound_to_the_contract(name):
    """If a rule learns to see one, the documentation of what is detected changes."""
    assert first_broken(find_case(FOR_CROSSCHECK[name])) == ("", "")


@pytest.mark.parametrize("name", SOUND)
def test_no_sound_attack_is_refused(name):
    case = find_case(SOUND[name])
    assert first_broken(case) == ("", "")
    assert case.kinds == ("binary", "multilabel", "multiclass")


class TestByInstance(AttackContract):
    attack = FGSM(loss=losses.dice)


class TestBest(AttackContract):
    attack = BIM(loss=losses.dice, keep="best")


class TestByName(AttackContract):
    attack = "pgd"
    loss = "dice"
    settings = MappingProxyType({"steps": 4, "step_size": 0.5})


class TestControl(ab.testing.AttackContract):
    attack = RandomSign()


@ab.attack(per_image=True)
def one_step(model, x, y, valid, task, eps, bounds, loss, generator):
    """The decorator's form: a random start, then a full step."""
    x = x + eps * (2 * torch.rand(x.shape, generator=generator) - 1) / 2
    x.requires_grad_()
    loss(model(x), y, valid, task).sum().backward()
    return (x + eps / 2 * x.grad.sign()).clamp(bounds.lower, bounds.upper)


def test_a_decorated_function_is_held_to_the_contract():
    rule, message = first_broken(find_case(one_step))
    assert rule == "optimum", message  # half a step from anywhere cannot reach the border of the budget
    assert first_broken(find_case(one_step, traits=Traits(norms=("linf",), random=True, share=0.3))) == ("", "")


def run_pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """pytest as a user starts it, with the plug-in and no other."""
    command = [sys.executable, "-m", "pytest", "-p", "advseg_bench.testing.pytest_plugin", "-p", "no:cacheprovider"]
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=folder, env=environment)


@pytest.mark.slow
def test_a_subclass_is_a_whole_test_file(tmp_path):
    (tmp_path / "test_mine.py").write_text(
        "import advseg_bench as ab\nfrom faults import FAULTS\n\n"
        "class TestMine(ab.testing.AttackContract):\n    attack = FAULTS['steps_twice'].attack\n\n"
        "class TestMuch(ab.testing.AttackContract):\n    attack = FAULTS['needs_four_axes'].attack\n\n"
        "class TestNothing(ab.testing.AttackContract):\n    pass\n"
    )
    done = run_pytest(tmp_path, "-q", "-rs", "-k", "budget or runs")
    assert done.returncode == 1
    assert "attack steps_twice, rule budget: expected no image to move further than linf eps 0.1" in done.stdout
    assert "attack needs_four_axes, rule runs: raised ValueError" in done.stdout
    assert "not checked: because the attack violates 'runs'" in done.stdout
    assert "TestNothing: expected an attribute `attack`, got none." in done.stdout
    assert "contract.py" not in done.stdout.split("TestNothing")[0], "the message hides behind a traceback"


@pytest.mark.slow
def test_the_option_needs_no_file(tmp_path):
    (tmp_path / "test_other.py").write_text("def test_other():\n    raise AssertionError\n")
    attacks = ["--advseg-attack", "fgsm", "--advseg-attack", "faults:FAULTY"]
    (tmp_path / "conftest.py").write_text("import faults\nfaults.FAULTY = faults.FAULTS['steps_twice'].attack\n")
    done = run_pytest(tmp_path, "-v", *attacks, "--advseg-loss", "dice")
    assert done.returncode == 1
    assert f"1 failed, {2 * len(RULES) - 1} passed" in done.stdout
    assert "advseg-bench::fgsm::neighbours PASSED" in done.stdout
    assert "attack faults:FAULTY, rule budget: expected no image to move further" in done.stdout
    both = run_pytest(tmp_path, "-q", "--advseg-attack", "random_sign", "test_other.py")
    assert "1 failed, 13 passed, 4 skipped" in both.stdout


@pytest.mark.slow
def test_a_mistake_in_the_option_is_a_usage_error(tmp_path):
    done = run_pytest(tmp_path, "--advseg-attack", "bim", "--advseg-settings", "step=3")
    assert done.returncode == 4
    assert "attack bim: does not take these settings" in done.stderr


def test_the_plugin_is_idle_and_light_without_the_option(tmp_path):
    (tmp_path / "test_other.py").write_text(
        "import sys\n\nPLUGIN = 'advseg_bench.testing.pytest_plugin'\n\ndef test_other():\n"
        "    ours = {name for name in sys.modules if name.startswith('advseg_bench')}\n"
        "    assert ours - {'advseg_bench', 'advseg_bench.lazy', 'advseg_bench.testing'} == {PLUGIN}\n"
        "    assert not {'torch', 'numpy', 'pydantic', 'typer', 'rich'} & set(sys.modules)\n"
    )
    done = run_pytest(tmp_path, "-q", "-W", "error")
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


@pytest.fixture
def command(monkeypatch, capsys):
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["advseg-bench", "check-attack", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    return call


def test_the_command_tells_one_line_per_rule(command):
    code, out, _ = command("fgsm", "--loss", "bce", "--settings", "label=predicted", "--settings", "targeted=false")
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == "fgsm: binary (bce), multilabel (bce); linf, l2; 2-D, 3-D"
    assert lines[1] == "left out        multiclass: loss bce is defined for binary and multilabel tasks"
    assert [line.split()[1] for line in lines[2:-1]] == STATED
    assert lines[-1] == "17 rules: 17 ok."
    code, out, _ = command("random_sign")
    assert code == 0
    assert "not applicable  optimum      it declares `control=True`" in out
    assert out.endswith("17 rules: 13 ok, 4 not applicable.\n")


def test_the_command_ends_with_one_where_a_rule_is_broken(command):
    code, out, _ = command("test_contract:one_step")
    assert code == 1
    assert re.search(r"^FAILED          optimum      expected at least 90% .*", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fgsmm"], "unknown attack 'fgsmm'. Did you mean 'fgsm'?"),
        (["nowhere:Attack"], "nowhere:Attack"),
        (["bim", "--settings", "steps"], "--settings: expected key=value, such as steps=10, got 'steps'"),
        (
            ["bim", "--settings", "steps=2", "--settings", "steps=3"],
            "--settings: expected each key once, got 'steps' twice",
        ),
        (["bim", "--settings", "steps=0"], "steps: expected a whole number of at least 1, got 0"),
        (["fgsm", "--loss", "bcee"], "unknown loss 'bcee'"),
        (["random_sign", "--loss", "bce"], "does not take these settings"),
        (["fgsm", "--device", "quantum"], "expected a device of this machine, got 'quantum'"),
    ],
)
def test_a_mistake_in_the_command_is_one_line(command, arguments, message):
    code, _, err = command(*arguments)
    assert code == 2
    assert err.count("\n") == 1
    assert message in err


def test_settings_are_json_or_text():
    given = read_settings(["steps=10", "label=empty", "random_start=true", "x=[1, 2]", 'name="3"', "a=b=c"])
    assert given == {
        "steps": 10, "label": "empty", "random_start": True, "x": [1, 2], "name": "3", "a": "b=c",
    }  # fmt: skip


def test_claims_come_from_the_attack_the_catalogue_or_the_caller():
    assert find_case(PGD(loss=losses.dice, steps=7)).traits == Traits(random=True, forwards=7, backwards=7)
    best = PGD(loss=losses.dice, steps=7, keep="best")
    assert find_case(best).traits == Traits(random=True, forwards=7, backwards=6)
    assert find_case("pgd", settings={"random_start": False}).traits.random is False
    control = find_case(RandomSign).traits
    assert (control.control, control.gradient, control.random) == (True, False, True)
    assert find_case(SOUND["computes_in_numpy"]).traits.norms == ("linf",)
    assert find_case(FGSM, traits=Traits(dims=(2,))).traits.dims == (2,)
    limited = find_case(FGSM(loss=losses.bce))
    assert limited.kinds == ("binary", "multilabel")
    assert "bce is defined for" in limited.left_out["multiclass"]
    assert find_case(FGSM, traits=Traits(kinds=("multiclass",))).left_out["binary"] == "not claimed"


@pytest.mark.parametrize(
    ("attack", "options", "error", "message"),
    [
        (3, {}, SpecError, "expected an attack, its class or its name, got 3"),
        (FGSM(loss=losses.ce), {"loss": "dice"}, SpecError, "attack FGSM: expected no settings and no loss"),
        (
            FGSM(loss=losses.ce),
            {"traits": Traits(kinds=("binary",))},
            SpecError,
            "expected a task type to test it on, got none",
        ),
        (FGSM, {"settings": {"lable": "true"}}, SpecError, "does not take these settings"),
        (FGSM, {"traits": Traits(norms=())}, SpecError, "expected at least one each of `norms`"),
        (FGSM, {"traits": Traits(share=1.5)}, SpecError, "a `share` between 0 and 1, got 1.5"),
        ("faults:nothing", {}, PluginError, "nothing"),
    ],
)
def test_an_attack_that_cannot_be_tried_is_one_line(attack, options, error, message):
    with pytest.raises(error, match=message) as raised:
        find_case(attack, **options)
    assert "\n" not in str(raised.value)


def test_claims_of_another_type_are_refused():
    class Attack:
        traits = "linf"

        def __call__(self, model, batch, *, budget, generators):
            return batch.x

    with pytest.raises(SpecError, match="expected `traits` to be a Traits"):
        find_case(Attack)


def test_the_contract_leaves_the_process_as_it_was():
    for name in ("seeds_torch", "draws_from_numpy", "turns_gradients_off", "changes_the_default_dtype"):
        before = snapshot()
        check_attack(FAULTS[name].attack)
        assert compare(before, snapshot()) == [], name


def test_a_guard_names_what_was_changed():
    with torch.random.fork_rng():
        model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    guard = ModelGuard(model)
    assert guard.find_changes() == []
    model[0].weight.grad.add_(1)
    model[0].bias.grad = torch.zeros(2)
    assert guard.find_changes() == ["gradient of 0.weight", "gradient of 0.bias"]
    model[1].running_mean.fill_(7)
    model[1].train()
    model[0].bias.requires_grad_(False)
    handle = model[0].register_forward_hook(lambda *_: None)
    assert guard.find_changes()[:3] == ["value of 1.running_mean", "training flags", "requires_grad of 0.bias"]
    assert guard.find_changes()[-1] == "hooks"
    handle.remove()


def test_a_guard_puts_back_the_hooks_that_there_were():
    with torch.random.fork_rng():
        model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU())
    double, negate = (lambda module, args, out, factor=factor: factor * out for factor in (2, -1))
    mine = model[0].register_forward_hook(double)
    guard = ModelGuard(model)
    mine.remove()
    model[1].register_forward_hook(negate)
    assert guard.restore()
    assert [list(module._forward_hooks.values()) for module in model] == [[double], []]
    assert not guard.restore()


def test_a_guard_finds_writes_by_their_counters_and_others_by_their_values():
    with torch.random.fork_rng():
        model = nn.Conv2d(1, 2, 1).requires_grad_(False)
    before = model.weight.clone()
    guard = ModelGuard(model)
    model.weight.add_(1)
    assert guard.restore(thorough=False)
    assert not guard.restore(thorough=False)
    model.weight.data.add_(1)
    assert not guard.restore(thorough=False), "tensor.data goes round the counters"
    assert guard.restore()
    assert torch.equal(model.weight, before)


def test_every_rule_says_what_it_asks_in_one_sentence():
    for rule in RULES:
        assert rule.statement.endswith("."), rule.name
        assert len(rule.statement) < 120
    assert all(name in dir(AttackContract) for name in (f"test_{rule.name}" for rule in RULES))
    assert "traits" not in protocols.Attack.__dict__, "an attack may have no claims"


def test_the_page_lists_the_rules_and_its_example_says_what_it_shows(capsys):
    text = (Path(__file__).parent.parent / "docs" / "contract.md").read_text()
    listed = re.findall(r"^\| `(\w+)` \| ([A-Z].*) \|$", text, re.MULTILINE)
    assert listed == [(rule.name, rule.statement) for rule in RULES]
    (block,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    exec(compile(block, "contract.md", "exec", dont_inherit=True), {})
    shown = " ".join(line.removeprefix("# ") for line in block.splitlines() if line.startswith("# "))
    assert capsys.readouterr().out.strip() == shown
