"""A hook of MkDocs: pages of the site that are made each time it is built.

- Markdown files outside `docs/`, with their links turned into links between pages.
- One page per public module, with a block of mkdocstrings for each public name.
- The command line from its definition, and the keys of suites from their JSON schema.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "adapters"), str(Path(__file__).parent)]

import sources  # noqa: E402
import tables  # noqa: E402


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that are made here."""
    pages = {to: sources.relink((ROOT / path).read_text(), path, to) for path, to in sources.COPIED.items()}
    pages |= {f"reference/{page}.md": sources.describe_module(module) for page, module in sources.MODULES.items()}
    pages["reference/command-line.md"] = tables.describe_commands()
    pages["reference/suite-keys.md"] = tables.describe_suite()
    for address, content in pages.items():
        files.append(File.generated(config, address, content=content))
    return files
