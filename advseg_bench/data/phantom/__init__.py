"""How is the procedural abdominal phantom generated? The data set `phantom`, synthetic rather than acquired."""

from advseg_bench.data.phantom.dataset import load

__all__ = ["load"]
