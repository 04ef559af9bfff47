"""Python's search for cycles of garbage, where it is held off."""

from __future__ import annotations

import gc

import pytest

from advseg_bench.instruments.allocator import without_collector


@pytest.fixture(params=[True, False], ids=["collecting", "not collecting"])
def before(request):
    was = gc.isenabled()
    (gc.enable if request.param else gc.disable)()
    yield request.param
    (gc.enable if was else gc.disable)()


def test_the_collector_rests_inside_and_is_as_before_afterwards(before):
    with without_collector():
        assert not gc.isenabled()
        with without_collector():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled() == before


def test_an_error_inside_leaves_it_as_before(before):
    with pytest.raises(KeyError), without_collector():
        raise KeyError
    assert gc.isenabled() == before
