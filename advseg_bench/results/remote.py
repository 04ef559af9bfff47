"""A run on object storage: a folder of this machine mirrors it, and everything reads and writes that folder.

A process that writes holds the lease of the storage, makes its mirror equal to the storage, and uploads each file when
it is written. Processes that only read have a mirror of their own. Names of parts and panels contain digests, so that
a mirror of an earlier process is continued and only what is new is transferred.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from advseg_bench.cache import cache_dir, make_folder, write_bytes
from advseg_bench.cache.lease import LEASE, hold
from advseg_bench.errors import RecordError, UserError, expected
from advseg_bench.results.bucket import Bucket, find_url
from advseg_bench.results.object_lease import ObjectLease, hold_object
from advseg_bench.results.parts import claimed_digest, digest_of

MARK = ".run"
"""Marks a folder of a run whose description is not written yet."""

FOLDERS = ("models", "parts", "panels")
"""Folders of every run."""

DESCRIPTION = "run.json"

PRIVATE = 0o600
"""Permissions of panels, which are images."""

_NAME = re.compile(
    r"\.run|(run|failures|calibration)\.json|models/[^/\\]+\.json|parts/[^/\\]+\.parquet|panels/[^/\\]+\.npz"
)
"""Objects that belong to a run; no other is downloaded."""

_mirrors: dict[Path, Mirror] = {}


class Mirror:
    """A folder that mirrors a run on object storage.

    Args:
        url: The URL of the run.
        folder: The folder.

    Attributes:
        url: As given.
        folder: As given.
        bucket: The storage.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder, self.bucket = url, folder, Bucket(url)
        self._there: dict[str, tuple[int, int]] = {}
        self._lease: ObjectLease | None = None
        self._failed: RecordError | None = None

    @contextmanager
    def own(self, what: str) -> Iterator[None]:
        """Hold the lease of the storage, and make the folder equal to it; errors of the run name the URL.

        Raises:
            HeldError: If another process holds the lease.
            RecordError: If the storage cannot be reached, or holds other objects than a run.
        """
        self._check_free(self.bucket.list_sizes())
        with hold_object(self.bucket, what) as self._lease, self.names_url():
            self._failed = None
            listing = self.bucket.list_sizes()
            self._check_free(listing)
            try:
                keep = self._is_same_run(listing)
                for path in self.folder.iterdir():
                    if path.is_dir() and (not keep or path.name not in FOLDERS):
                        shutil.rmtree(path)
                self.pull(listing, keep=keep)
                yield
            finally:
                self._lease = None
                if set(self._there) == {MARK}:  # the run was refused
                    with suppress(RecordError):
                        self.bucket.remove(MARK)

    @contextmanager
    def names_url(self) -> Iterator[None]:
        """Make errors of the user name the URL instead of the folder."""
        try:
            yield
        except UserError as error:
            error.args = (self.show(str(error.args[0])), *error.args[1:]) if error.args else ()
            raise

    def show(self, text: object) -> str:
        """Return a text with the URL instead of the folder."""
        return str(text).replace(str(self.folder), self.url)

    def pull(self, listing: Mapping[str, int] | None = None, *, keep: bool = False) -> None:
        """Download what is missing or may have changed, and delete what the storage does not have.

        Args:
            listing: Name -> size of the objects.
            keep: Whether to keep parts that are only in the folder, which a process wrote and could not upload.
        """
        listing = self.bucket.list_sizes() if listing is None else listing
        wanted = {name: size for name, size in listing.items() if _NAME.fullmatch(name)}
        for name in sorted(_list_files(self.folder) - set(wanted)):
            if not (keep and name.startswith("parts/")):
                (self.folder / name).unlink(missing_ok=True)
        self._there = {}
        for name, size in sorted(wanted.items(), key=lambda each: (each[0] != DESCRIPTION, each[0])):
            path = self.folder / name
            if not _is_whole(path):
                make_folder(path.parent)
                try:
                    data = self.bucket.read(name, size)
                except FileNotFoundError:  # deleted since it was listed
                    continue
                write_bytes(path, data, PRIVATE if name.startswith("panels/") else 0o666)
            if path.stat().st_size == size:  # otherwise that of the storage is damaged
                self._there[name] = _stamp(path)

    def push(self) -> None:
        """Upload what was written since, `run.json` last, and then delete what was deleted.

        Raises:
            HeldError: If another process has taken over.
            RecordError: If the storage cannot be written; the folder keeps everything.
        """
        if self._failed is not None:
            raise self._failed
        try:
            if self._lease is not None:
                self._lease.check()
            here = {name: _stamp(self.folder / name) for name in _list_files(self.folder, moved=True)}
            changed = [name for name in here if self._there.get(name) != here[name]]
            for name in sorted(changed, key=lambda name: (name == DESCRIPTION, name)):
                self.bucket.write(name, (self.folder / name).read_bytes())
                self._there[name] = here[name]
            for name in sorted(set(self._there) - set(here)):
                self.bucket.remove(name)
                del self._there[name]
        except RecordError as error:
            self._failed = error
            raise

    def _check_free(self, listing: Mapping[str, int]) -> None:
        """Reject a URL with other objects."""
        if DESCRIPTION not in listing and MARK not in listing and any(not n.startswith(LEASE) for n in listing):
            raise RecordError(f"{self.url}: is not empty and holds no run. Nothing was changed; choose another --out.")

    def _is_same_run(self, listing: Mapping[str, int]) -> bool:
        """Whether the folder has the run of the storage, so that its parts may be added."""
        with suppress(OSError, ValueError, AttributeError):
            if DESCRIPTION in listing:
                here = json.loads((self.folder / DESCRIPTION).read_bytes()).get("run")
                return here is not None and here == json.loads(self.bucket.read(DESCRIPTION)).get("run")
        return False


def attach(place: str | Path) -> Path:
    """Return the folder in which a process writes what is at a place: for a URL a mirror in the cache.

    Nothing is transferred yet: `records.own` does that.
    """
    url = find_url(place)
    return _open(url, "own").folder if url else Path(place)


def fetch(place: str | Path) -> Path:
    """Return the folder in which a process reads what is at a place: for a URL a mirror, into which it is downloaded.

    Raises:
        RecordError: If the storage cannot be reached, or holds no run there.
    """
    url = find_url(place)
    if not url:
        return Path(place)
    mirror = _open(url, "read")
    with hold(mirror.folder / LEASE, what="download"):
        mirror.pull()
    if not (mirror.folder / DESCRIPTION).exists():
        raise RecordError(f"{url}: expected a run, got no {DESCRIPTION} there. Give the --out of a run.")
    return mirror.folder


@contextmanager
def fetched_anew(place: str | Path) -> Iterator[Path]:
    """Download every byte of what is at a URL into a temporary folder; a path is yielded as it is."""
    url = find_url(place)
    if not url:
        yield Path(place)
        return
    with tempfile.TemporaryDirectory(prefix="advseg-bench-") as folder:
        mirror = Mirror(url, Path(folder) / "run")
        make_folder(mirror.folder)
        with mirror.names_url():
            mirror.pull()
            yield mirror.folder


@contextmanager
def hold_place(place: str | Path, what: str) -> Iterator[None]:
    """Hold the lease of a folder or URL in which this process has others write.

    Raises:
        HeldError: If another process holds it.
    """
    url = find_url(place)
    with hold_object(Bucket(url), what) if url else hold(Path(place) / LEASE, what=what, wait=False, until_sure=True):
        yield


def find_mirror(path: Path) -> Mirror | None:
    """Return the mirror that this process has opened at or above a path."""
    if not _mirrors:
        return None
    return next((_mirrors[each] for each in (path, *path.parents) if each in _mirrors), None)


def show_place(path: Path) -> str:
    """Return the URL of a path in a mirror, and any other path as it is."""
    mirror = find_mirror(path)
    return str(path) if mirror is None else mirror.show(path)


def publish(folder: Path, written: Iterable[str], deleted: Iterable[str] = ()) -> None:
    """Upload files of a report, if its folder is in a mirror.

    Args:
        folder: The folder of the report.
        written: Names of its files.
        deleted: Names of files that do not exist any more.
    """
    mirror = find_mirror(folder)
    if mirror is None:
        return
    inside = folder.relative_to(mirror.folder).as_posix().removeprefix(".")
    for name in written:
        mirror.bucket.write(f"{inside}/{name}".lstrip("/"), (folder / name).read_bytes())
    for name in deleted:
        mirror.bucket.remove(f"{inside}/{name}".lstrip("/"))


def refuse_url(place: str | Path, where: str) -> None:
    """Raise `RecordError` for a URL where a folder is needed."""
    if url := find_url(place):
        raise RecordError(expected(where, "a folder", url, "Give a path."))


def _open(url: str, use: str) -> Mirror:
    """Open a mirror in the cache."""
    key = hashlib.sha256(url.encode()).hexdigest()[:16]
    folder = cache_dir("remote", key, use)
    if folder not in _mirrors:
        _mirrors[folder] = Mirror(url, folder)
    return _mirrors[folder]


def _list_files(folder: Path, *, moved: bool = False) -> set[str]:
    """Names of the files of a run in a folder; with `moved` also the damaged ones that were moved away."""
    found = {path.relative_to(folder).as_posix() for sub in ("", *FOLDERS) for path in (folder / sub).glob("*")}
    files = {name for name in found if _NAME.fullmatch(name)}
    if moved:
        files |= {path.relative_to(folder).as_posix() for path in (folder / "damaged").rglob("*") if path.is_file()}
    return files


def _is_whole(path: Path) -> bool:
    """Whether a file with a digest in its name is there and has it."""
    claimed = claimed_digest(path)
    return claimed is not None and path.exists() and digest_of(path.read_bytes()) == claimed


def _stamp(path: Path) -> tuple[int, int]:
    """What differs between two versions of a file."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns
