"""Object storage through fsspec: every request ends in bounded time, and every error is one line.

fsspec and the package of a protocol, such as s3fs, are imported when a URL is opened.
"""

from __future__ import annotations

import queue
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from advseg_bench.errors import IncompatibleError, RecordError, one_line

T = TypeVar("T")

ANSWER_S = 20.0
"""Longest time of a request, in seconds, without the time of a transfer."""

BYTES_PER_S = 200_000
"""Slowest transfer that is waited for."""

TRIES = 3
"""How often a request is made."""

PAUSE_S = 1.0
"""Seconds before the second try; four times as long before the third."""

WITHOUT_FOLDERS = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "memory"})
"""Protocols whose storage needs no folders."""

_URL = re.compile(r"(?P<protocol>[a-z][a-z0-9+.-]+):/+(?P<rest>.*)", re.DOTALL)

_FINAL = (PermissionError, TimeoutError, IsADirectoryError, NotImplementedError, TypeError, ValueError)
"""Errors that another try would give again, or for which was waited long enough."""

_NO_CREATE = (NotImplementedError, TypeError, ValueError)
"""Errors of storage that cannot create an object exclusively."""


def find_url(place: str | Path) -> str:
    """Return the URL that a path stands for, "" if it is a path; `Path` shortens the two slashes of a URL to one.

    Example:
        >>> find_url(Path("s3://bucket/run")), find_url("runs/smoke")
        ('s3://bucket/run', '')
    """
    found = _URL.fullmatch(str(place))
    if not found:
        return ""
    rest = found["rest"].rstrip("/")
    return f"{found['protocol']}://{'/' if found['protocol'] in ('file', 'local') else ''}{rest}"


class Bucket:
    """The objects below a URL. Names are relative to it.

    Args:
        url: The URL, such as "s3://bucket/run".

    Attributes:
        url: As given.

    Raises:
        IncompatibleError: If fsspec or the package of the protocol is not installed.
        RecordError: If there is no such protocol.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            from fsspec.core import url_to_fs

            self._fs, root = url_to_fs(url, **_list_options(url))
        except ImportError as error:
            raise IncompatibleError(
                f"{url}: expected packages for this storage, got none ({one_line(error, 120)}). "
                "Run pip install 'advseg-bench[remote]', or install the package of its protocol."
            ) from None
        except Exception as error:
            raise RecordError(
                f"{url}: expected a URL such as s3://bucket/run, got one that cannot be opened "
                f"({one_line(error, 200)}). Give another one."
            ) from None
        self._root = str(root).rstrip("/")
        self._folders = url.partition(":")[0] not in WITHOUT_FOLDERS
        if not self._root:
            raise RecordError(f"{url}: expected a URL such as s3://bucket/run, got no path in it. Give another one.")

    def list_sizes(self) -> dict[str, int]:
        """Return name -> size of all objects."""

        def find() -> dict[str, int]:
            self._fs.invalidate_cache()
            found = self._fs.find(self._root, detail=True)
            return {key.removeprefix(self._root).lstrip("/"): int(entry["size"]) for key, entry in found.items()}

        with suppress(FileNotFoundError):
            return self._ask("cannot be listed", find)
        return {}

    def read(self, name: str, size: int = 0) -> bytes:
        """Return the content of an object; `FileNotFoundError` if there is none."""
        return bytes(self._ask("cannot be read", lambda: self._fs.cat_file(self._key(name)), size))

    def write(self, name: str, data: bytes, *, tries: int = TRIES) -> None:
        """Write an object as a whole."""
        try:
            self._ask("could not be written", lambda: self._put(name, data), len(data), tries)
        except FileNotFoundError as error:
            self._fail("could not be written", error)

    def create(self, name: str, data: bytes) -> bool:
        """Write an object unless there is one. Some storage cannot do that, and replaces it.

        Returns:
            Whether it was written.
        """
        key = self._key(name)

        def put() -> bool:
            try:
                self._put(name, data, mode="create")
            except Exception:
                self._fs.invalidate_cache()
                if self._fs.exists(key):
                    return False
                raise
            return True

        try:
            return self._ask("could not be written", put, passed=_NO_CREATE)
        except FileNotFoundError as error:
            self._fail("could not be written", error)
        except _NO_CREATE:
            self.write(name, data)
        return True

    def remove(self, name: str) -> None:
        """Delete an object; nothing happens if there is none."""
        with suppress(FileNotFoundError):
            self._ask("could not be deleted", lambda: self._fs.rm_file(self._key(name)))

    def changed(self, name: str) -> float | None:
        """Return when an object was written, in seconds since 1970 by the storage's clock; None if it is not known."""

        def ask() -> float | None:
            self._fs.invalidate_cache()
            try:
                found = self._fs.modified(self._key(name))
            except NotImplementedError:
                return None
            return found.timestamp() if isinstance(found, datetime) else float(found)

        return self._ask("cannot be read", ask)

    def _key(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _put(self, name: str, data: bytes, **mode: str) -> None:
        key = self._key(name)
        if self._folders:
            self._fs.makedirs(key.rpartition("/")[0], exist_ok=True)
        self._fs.pipe_file(key, data, **mode)

    def _ask(
        self,
        what: str,
        call: Callable[[], T],
        size: int = 0,
        tries: int = TRIES,
        passed: tuple[type[Exception], ...] = (),
    ) -> T:
        """Make a request several times; errors are one line, but `FileNotFoundError` and those of `passed`."""
        last: Exception = TimeoutError()
        for n in range(tries):
            if n:
                time.sleep(PAUSE_S * 4 ** (n - 1))
            try:
                return _bounded(call, ANSWER_S + size / BYTES_PER_S)
            except FileNotFoundError:
                raise
            except Exception as error:
                if isinstance(error, passed):
                    raise
                last = error
                if isinstance(error, _FINAL) or "credential" in str(error).lower():
                    break
        return self._fail(what, last)

    def _fail(self, what: str, error: BaseException) -> NoReturn:
        raise RecordError(
            f"{self.url}: {what} ({one_line(error, 200)}). "
            "Check the network, the credentials and the name of the bucket, then run the same command again."
        ) from None


def _list_options(url: str) -> dict[str, Any]:
    """Options of a file system: short waits for S3, unless the user's configuration of fsspec has others."""
    protocol = url.partition(":")[0]
    if protocol in ("s3", "s3a"):
        from fsspec.config import conf

        known = conf.get(protocol, {}).get("config_kwargs", {})
        waits = {"connect_timeout": 5, "read_timeout": 60, "retries": {"max_attempts": 1}}
        return {"config_kwargs": waits | known, "use_listings_cache": False}
    return {"auto_mkdir": True} if protocol in ("file", "local") else {}


def _bounded(call: Callable[[], T], seconds: float) -> T:
    """Call a function in a thread of its own; `TimeoutError` if it takes longer."""
    box: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def work() -> None:
        try:
            box.put((True, call()))
        except BaseException as error:
            box.put((False, error))

    threading.Thread(target=work, name="bucket", daemon=True).start()
    try:
        done, value = box.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:.0f} s") from None
    if not done:
        raise value
    result: T = value
    return result
