"""The public names of a suite's tables, for suites that are written in Python instead of TOML."""

from advseg_bench.suite.specs import *  # noqa: F403
from advseg_bench.suite.specs import __all__ as __all__
