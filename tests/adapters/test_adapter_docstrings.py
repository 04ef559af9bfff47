"""The examples in the docstrings of the adapters' public names run, and every public name has one."""

from __future__ import annotations

import doctest
import importlib
import inspect

import pytest
import torch

TOOLKITS = {
    "advseg_adapters.art": "art",
    "advseg_adapters.foolbox": "foolbox",
    "advseg_adapters.monai": "monai",
    "advseg_adapters.torchattacks": "torchattacks",
}
SECTIONS = ("Args:", "Attributes:")


def load(name):
    pytest.importorskip(TOOLKITS[name])
    return importlib.import_module(name)


def find_documented(module):
    """Return the public functions and classes, by name; tables of routes and classes have no docstring."""
    public = {name: getattr(module, name) for name in module.__all__}
    return {name: value for name, value in public.items() if callable(value)}


def run_examples(name, value):
    """Run the examples of one docstring; return the failures and the number of examples."""
    runner = doctest.DocTestRunner(verbose=False)
    for test in doctest.DocTestFinder(recurse=False).find(value, name, globs={}):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            runner.run(test)
    return runner.summarize(verbose=False)


@pytest.mark.parametrize("name", TOOLKITS)
def test_examples_of_public_names_run(name):
    for public, value in find_documented(load(name)).items():
        failed, tried = run_examples(public, value)
        assert tried > 0, public
        assert failed == 0, public


@pytest.mark.parametrize("name", TOOLKITS)
def test_public_names_have_sections(name):
    for public, value in find_documented(load(name)).items():
        text = inspect.getdoc(value) or ""
        assert any(section in text for section in SECTIONS), public
        assert "Returns:" in text or inspect.isclass(value), public


def test_the_check_above_can_fail(capsys):
    def wrong():
        """Return nothing.

        Example:
            >>> 1 + 1
            3
        """

    assert run_examples("wrong", wrong) == (1, 1)
    assert "Expected" in capsys.readouterr().out
