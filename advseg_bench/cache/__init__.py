"""What is kept for later runs, and how does a file appear whole or not at all?

`files` writes atomically and finds the cache folder, `digests` detects damage, `lease` (with `holder`) lets one process
at a time work in a folder, `notices` reports what is made again, and `contents` lists, verifies and clears the cache.
"""

from advseg_bench.cache.files import (
    CACHE_REMEDY,
    cache_dir,
    cache_root,
    content_hash,
    guard_writes,
    is_writable,
    make_folder,
    remove_empty,
    sweep,
    write_bytes,
    write_json,
)

__all__ = [
    "CACHE_REMEDY",
    "cache_dir",
    "cache_root",
    "content_hash",
    "guard_writes",
    "is_writable",
    "make_folder",
    "remove_empty",
    "sweep",
    "write_bytes",
    "write_json",
]
