"""What does the procedural abdominal phantom look like? The data set `phantom`, drawn rather than acquired."""

from advseg_bench.data.phantom.dataset import load

__all__ = ["load"]
