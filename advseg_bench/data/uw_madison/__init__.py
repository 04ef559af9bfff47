"""How are the UW-Madison GI Tract data read, and how is a drawn copy of them written? The data set `uw_madison`."""

from advseg_bench.data.uw_madison.dataset import load

__all__ = ["load"]
