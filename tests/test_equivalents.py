"""Which attacks of toolkits claim to be a reference attack: through the one door for entry points."""

from __future__ import annotations

import pytest
from distributions import installing

from advseg_adapters.equivalents import find_in_adv_lib, find_in_cospgd
from advseg_bench.errors import PluginError, SpecError
from advseg_bench.registry.equivalents import find_equivalents

SOUND = """
def find(reference, norm, settings):
    return ("fgsm", {}) if reference == "fgsm" else None

def fail(reference, norm, settings):
    raise RuntimeError("no\\nsuch thing")

def lie(reference, norm, settings):
    return "fgsm"
"""


@pytest.fixture
def install(tmp_path):
    with installing(tmp_path) as function:
        yield function


def offer(install, distribution: str, target: str, name: str = "zaptool") -> None:
    install(distribution, {"equivalents": {name: target}}, {f"{target.partition(':')[0]}.py": SOUND})


def test_a_toolkit_stands_for_its_class_of_the_reference(install):
    offer(install, "advseg-zap", "zap_equivalents:find")
    assert find_equivalents(["zaptool"], "fgsm", "linf", {}) == ({"fgsm": {}}, [])
    assert find_equivalents(["zaptool", "bim"], "pgd", "linf", {}) == ({"bim": {}}, ["zaptool"])


def test_the_shipped_adapters_are_found():
    found, missing = find_equivalents(["art", "torchattacks", "foolbox"], "bim", "l2", {"steps": 3})
    assert set(found) == {"torchattacks.PGDL2", "foolbox.L2BasicIterativeAttack"}
    assert missing == ["art"]


def test_each_toolkit_stands_for_the_attacks_that_it_has():
    names = ["art", "torchattacks", "foolbox"]
    assert set(find_equivalents(names, "apgd", "l2", {})[0]) == {
        "art.AutoProjectedGradientDescent",
        "torchattacks.APGD",
    }
    found, missing = find_equivalents(names, "nifgsm", "linf", {"steps": 4})
    assert found == {"torchattacks.NIFGSM": {"alpha": "0.25*eps", "steps": 4, "decay": 1.0}}
    assert missing == ["art", "foolbox"]
    settings = {"steps": 5, "step_size": 0.5, "random_start": False}
    assert find_in_cospgd("segpgd", "linf", settings | {"decay": None}) == ("advseg_adapters.cospgd:SegPGD", settings)
    assert find_in_cospgd("apgd", "linf", settings) is None
    assert find_in_adv_lib("apgd", "l2", settings) == ("advseg_adapters.adv_lib:APGD", {"steps": 5})
    assert find_in_adv_lib("pgd", "l2", settings) is None


def test_equivalents_that_cannot_be_imported_are_one_line(install):
    install("advseg-broken", {"equivalents": {"broken": "no_such_module_here:find"}})
    with pytest.raises(
        PluginError, match=r"'broken' of distribution advseg-broken: module .* cannot be imported"
    ) as found:
        find_equivalents(["broken"], "fgsm", "linf", {})
    assert "\n" not in str(found.value)


def test_two_distributions_of_one_name_are_an_error(install):
    offer(install, "advseg-one", "one_equivalents:find")
    offer(install, "advseg-two", "two_equivalents:find")
    message = "equivalents of zaptool: expected one distribution that provides it, got advseg-one, advseg-two."
    with pytest.raises(PluginError, match=message):
        find_equivalents(["zaptool"], "fgsm", "linf", {})


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("fail", "equivalents of zaptool: fails for 'fgsm': RuntimeError: no such thing"),
        ("lie", r"equivalents of zaptool: expected a function \(reference, norm, settings\) -> .*got 'fgsm'"),
        ("nothing", "unknown object of zap_equivalents 'nothing'"),
    ],
)
def test_equivalents_that_misbehave_are_one_line(install, what, message):
    offer(install, "advseg-zap", f"zap_equivalents:{what}")
    with pytest.raises(PluginError, match=message) as found:
        find_equivalents(["zaptool"], "fgsm", "linf", {})
    assert "\n" not in str(found.value)


def test_a_bare_word_that_is_no_toolkit_gets_the_nearest():
    with pytest.raises(SpecError, match=r"against: unknown toolkit 'torchatacks'. Did you mean 'torchattacks'"):
        find_equivalents(["torchatacks"], "fgsm", "linf", {})
