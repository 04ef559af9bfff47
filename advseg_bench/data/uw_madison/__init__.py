"""How are the UW-Madison GI Tract data read, and phantom data in their format written? The data set `uw_madison`."""

from advseg_bench.lazy import export_lazily

__getattr__, __dir__ = export_lazily(__name__, {"load": "dataset"})
