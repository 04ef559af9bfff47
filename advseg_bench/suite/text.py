"""Text files of a user, whose editor may have put a byte order mark in front."""

from __future__ import annotations

import codecs
from pathlib import Path

_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def decode_text(content: bytes) -> str:
    """Decode text as UTF-8, or as the encoding that its byte order mark names; the mark is dropped.

    Args:
        content: The bytes of a file.

    Returns:
        The text, with the line breaks of the file.

    Raises:
        UnicodeDecodeError: If it is not text of that encoding.

    Example:
        >>> decode_text(b"\\xef\\xbb\\xbfschema = 1")
        'schema = 1'
    """
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    return content.decode(encoding)


def read_text(path: Path) -> str:
    """Read a text file, see `decode_text`.

    Raises:
        OSError: If it cannot be read.
        UnicodeDecodeError: If it is not text.
    """
    return decode_text(path.read_bytes())
