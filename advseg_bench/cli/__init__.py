"""How is it used from a shell? The command line, one file per group of commands."""

from advseg_bench.cli.app import main

__all__ = ["main"]
