"""What a report rests on, computed once: tables, figures, sentences and the terminal read it from here."""

from __future__ import annotations

from dataclasses import dataclass

from advseg_bench.results.run import Run


@dataclass(frozen=True, slots=True)
class Summary:
    """The tables and findings of a run.

    Attributes:
        run: Where they come from.
    """

    run: Run


def summarise(run: Run | Summary) -> Summary:
    """Compute what the report of a run shows; a summary that is there already is returned as it is."""
    return run if isinstance(run, Summary) else Summary(run)
