"""Entry point of the command line: the commands, and how errors are printed."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import NoReturn, cast

import typer

from advseg_bench.cli.cache import cache_clear_command, cache_list_command, cache_verify_command
from advseg_bench.cli.checks import check_attack_command, crosscheck_command, throughput_command
from advseg_bench.cli.data import make_data_command, schema_command
from advseg_bench.cli.launch import launch_command
from advseg_bench.cli.list import list_command
from advseg_bench.cli.merge import merge_command
from advseg_bench.cli.plan import plan_command
from advseg_bench.cli.run import claims_command, report_command, run_command
from advseg_bench.cli.verify import verify_command
from advseg_bench.errors import UserError, tidy

app = typer.Typer(
    name="advseg-bench",
    help="Measure how robust medical segmentation models are to adversarial attacks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
COMMANDS: dict[str, Callable[..., None]] = {
    "run": run_command,
    "launch": launch_command,
    "merge": merge_command,
    "report": report_command,
    "claims": claims_command,
    "verify": verify_command,
    "plan": plan_command,
    "list": list_command,
    "crosscheck": crosscheck_command,
    "throughput": throughput_command,
    "check-attack": check_attack_command,
    "make-data": make_data_command,
    "schema": schema_command,
    "cache list": cache_list_command,
    "cache verify": cache_verify_command,
    "cache clear": cache_clear_command,
}
GROUPS = {"cache": typer.Typer(help="List, verify and clear cached weights and data.", no_args_is_help=True)}
for title, group in GROUPS.items():
    app.add_typer(group, name=title)
for name, command in COMMANDS.items():
    title, _, leaf = name.rpartition(" ")
    (GROUPS[title] if title else app).command(leaf)(command)

STOPPED = "stopped. Run the same command again to resume."

UsageError = cast(type[Exception], typer.BadParameter.__base__)
"""click's `UsageError`, which typer does not export; newer versions of typer contain their own copy of click."""


def main() -> NoReturn:
    """Run the command line; an error that the user can fix is one line on standard error and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
    except (UserError, UsageError) as error:
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        if not message.strip():  # the help was printed; there is no error to report
            sys.exit(2)
        _end(tidy(" ".join(message.split())), 2)
    except (KeyboardInterrupt, typer.Abort):
        _end(STOPPED, 130)
    except (OSError, SystemExit) as error:
        cause = error.__context__ if isinstance(error, SystemExit) else error
        if not isinstance(cause, OSError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes once more at exit
        if not isinstance(cause, BrokenPipeError):
            _end(f"{cause.filename or 'standard output'}: {cause.strerror}.", 2)
        code = 0  # the reader closed the pipe, which is not an error
    if code == 130:  # the exit code of newer versions of typer after Ctrl-C
        _end(STOPPED, 130)
    sys.exit(code or 0)


def _end(message: str, code: int) -> NoReturn:
    """Print one line to standard error and exit."""
    print(f"advseg-bench: {message}", file=sys.stderr)
    sys.exit(code)
