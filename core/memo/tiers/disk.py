"""The second tier: one file per entry. The folder itself is the index.

    <folder>/<kind>/<first two digits>/<digest>.memo

Why files and no embedded database: entries are few and large (0.1 MB to many MB), so a look-up is one open() and a read, and ten thousand
files are listed in milliseconds. SQLite recommends files for values of that size, and must not be used on network shares. diskcache
combines SQLite with files, unpickles what it reads (CVE-2025-69872) and is no longer maintained. Renaming a file is atomic and needs no
lock between processes. A crash leaves at most a temporary file, which is removed later.

There is no fsync: after a power failure an entry may be empty or incomplete, which its digest reveals, so it is a miss. The time of the
last use is the file's modification time. It is set from a clock that does not jump while the process runs; times in the future count as
unknown.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ...texts import Text
from ..codec import HEADER, LARGEST, PREFIX, header_size, plausible
from ..errors import CorruptEntry, NotCacheable
from ..keys import Key
from ..reasons import LARGER_THAN_QUARTER, in_tier
from .base import Progress, Unavailable, Usage

GB = 1 << 30
DAY = 86400.0
STALL_TIMEOUT = 5.0  # seconds: enough for a disk to spin up, and for a busy machine
CHUNK = 4 << 20
TOUCH = 60.0  # seconds after a use within which another use is not recorded
ABANDONED = 3600.0  # seconds after which a temporary file is removed
SCAN = 300.0  # seconds between two scans of the folder, to which other processes write as well
SHARES = 20  # the folder is scanned again after limit / SHARES bytes were written
FULL = 0.9  # share of the limit to which eviction reduces the folder

_LINKED = Text("disk_linked", "{where} holds a linked folder: entries are kept in memory alone; remove the link")
_NO_SPACE = Text(
    "disk_no_space",
    "no space left for {where}: entries are kept in memory alone; free some on that disk, or clear the encode cache",
)
_NO_PERMISSION = Text(
    "disk_no_permission",
    "no permission to write to {where}: entries are kept in memory alone; grant it, or choose another folder in the settings",
)
_NOT_WRITTEN = Text("disk_not_written", "{where} cannot be written to ({error}): entries are kept in memory alone")

_KIND = re.compile(r"[a-z][a-z0-9-]{0,31}")
_SHARD = re.compile(r"[0-9a-f]{2}")
_ENTRY = re.compile(r"([0-9a-f]{40})\.memo")
_TEMPORARY = re.compile(r"[0-9a-f]{40}\.[0-9a-f]{16}\.tmp")

# do not follow links, do not block on pipes, and do not convert line ends on Windows
_FLAGS = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY", "O_CLOEXEC"))


@dataclass(frozen=True)
class _File:
    path: Path
    kind: str
    bytes: int
    used: float  # time of the last use, in seconds since 1970, from the file system


class DiskTier:
    """Entries as files below `folder`, which several processes may use at once.

    limit: largest number of bytes in all. age: seconds without use after which an entry is removed. spare: bytes that stay free on the
    disk. Other files in the folder are not read, counted or removed.
    """

    name = "disk"

    def __init__(
        self,
        folder: str | os.PathLike[str],
        limit: int = 10 * GB,
        age: float = 30 * DAY,
        spare: int = GB,
        stall_timeout: float = STALL_TIMEOUT,
    ) -> None:
        self.folder = Path(folder)
        self.limit, self.age, self.spare, self.stall_timeout = limit, age, spare, stall_timeout
        self._began = time.time() - time.monotonic()
        self._lock = threading.Lock()
        self._bytes: int | None = None  # in all: of the last scan and of our own writes since
        self._scanned = 0.0
        self._written = 0  # bytes, since the last scan
        # length in seconds and beginning of the time before this process started in which no process used the folder
        self._gap: tuple[float, float] | None = None

    def now(self) -> float:
        """Seconds since 1970, from a clock that is read once, so a change of the system's clock does not make entries look old."""
        return self._began + time.monotonic()

    @property
    def budget(self) -> int:
        return self.limit

    @property
    def where(self) -> str:
        return str(self.folder)

    # entries

    def get(self, key: Key, on_progress: Progress) -> bytearray | None:
        path = self._path(key)
        if self._is_linked(path):
            return None
        try:
            file = os.open(path, os.O_RDONLY | _FLAGS)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise CorruptEntry("a link in place of an entry") from error
            raise
        with os.fdopen(file, "rb", buffering=0) as opened:
            about = os.fstat(file)
            size = about.st_size
            if not stat.S_ISREG(about.st_mode) or size > LARGEST + 2 * HEADER:
                raise CorruptEntry("not an entry")
            head = opened.read(PREFIX + 8) or b""
            if not plausible(head, size):
                raise CorruptEntry("not an entry")
            head += opened.read(header_size(head) - len(head)) or b""
            if not plausible(head, size):  # the size differs from the one in the header: do not read the rest
                raise CorruptEntry("not an entry")
            data, got = bytearray(size), len(head)
            data[:got] = head
            while got < size:
                read = opened.readinto(memoryview(data)[got : got + CHUNK])
                if not read:
                    raise CorruptEntry("the file became shorter while it was read")
                got += read
                on_progress()
        if abs(self.now() - about.st_mtime) > TOUCH:
            with suppress(OSError):
                os.utime(path, (self.now(), self.now()))
        return data

    def put(self, key: Key, data: bytes) -> None:
        if len(data) > self.limit // 4:
            raise NotCacheable(in_tier(LARGER_THAN_QUARTER, self.name))
        path = self._path(key)
        temporary = path.with_name(f"{key.digest}.{secrets.token_hex(8)}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if self._is_linked(path):
                raise Unavailable(_LINKED.of(where=self.where))
            if shutil.disk_usage(path.parent).free - len(data) < self.spare:
                raise OSError(errno.ENOSPC, "")
            self._write(temporary, data)
            os.utime(temporary, (self.now(), self.now()))
            self._rename(temporary, path)
        except OSError as error:
            raise self._explained(error) from error
        finally:
            with suppress(OSError):
                temporary.unlink()
        with self._lock:
            self._written += len(data)
            if self._bytes is not None:
                self._bytes += len(data)

    def delete(self, key: Key) -> None:
        self._path(key).unlink(missing_ok=True)

    def clear(self, kind: str | None = None, older_than: float | None = None) -> Usage:
        removed = Usage()
        for file in self._files():
            if kind in (None, file.kind) and (older_than is None or self._idle(file) >= older_than):
                removed += self._remove(file)
        return removed

    def usage(self) -> dict[str, Usage]:
        held: dict[str, Usage] = {}
        for file in self._files():
            held[file.kind] = held.get(file.kind, Usage()) + Usage(1, file.bytes)
        return held

    # housekeeping

    def probe(self) -> None:
        """Raises OSError if the folder cannot be accessed. A missing folder counts as empty."""
        with suppress(FileNotFoundError):
            os.stat(self.folder)

    def maintain(self) -> None:
        """Scan the folder at intervals. Remove entries that are too old or exceed the limit, and abandoned temporary files."""
        with self._lock:
            due = self._bytes is None or self._bytes > self.limit or time.monotonic() - self._scanned > SCAN
            # other processes may have written as much as this one
            due = due or self._written > self.limit / SHARES
            self._written = 0 if due else self._written
        if not due:
            return
        self._scanned = time.monotonic()
        self._sweep()
        kept, files = [], list(self._files())
        if self._gap is None:
            # time in which no process used the folder does not count: a wrong clock must not empty the folder
            newest = max((file.used for file in files if file.used <= self.now()), default=self.now())
            away = self.now() - newest
            self._gap = (away if away > DAY else 0.0), newest
        for file in files:
            away, before = self._gap
            if self._idle(file) - (away if file.used <= before else 0.0) > self.age:
                self._remove(file)
            else:
                kept.append(file)
        total = sum(file.bytes for file in kept)
        if total > self.limit:
            # entries with a last use in the future first: they were used while a clock was wrong
            kept.sort(key=lambda file: (file.used <= self.now() + DAY, file.used))
            for file in kept:
                if total <= FULL * self.limit:
                    break
                self._remove(file)
                total -= file.bytes
        with self._lock:
            self._bytes = total

    def close(self) -> None:
        pass

    # files

    def _is_linked(self, path: Path) -> bool:
        """Whether the folder of the kind or of the shard is a link. Files behind it would be neither counted nor cleared."""
        return os.path.islink(path.parent) or os.path.islink(path.parent.parent)

    def _path(self, key: Key) -> Path:
        return self.folder / key.kind / key.digest[:2] / f"{key.digest}.memo"

    def _write(self, path: Path, data: bytes) -> None:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o666)
        with os.fdopen(file, "wb", buffering=0) as opened:
            left = memoryview(data)
            while left:
                left = left[opened.write(left[:CHUNK]) or 0 :]

    def _rename(self, temporary: Path, path: Path) -> None:
        try:
            os.replace(temporary, path)
        except PermissionError:
            # Windows: another process reads the file, which therefore exists and has the same content
            if os.name != "nt" or not path.exists():
                raise

    def _remove(self, file: _File) -> Usage:
        try:
            file.path.unlink()
        except OSError:  # another process removed it, or reads it on Windows
            return Usage()
        with self._lock:
            if self._bytes is not None:
                self._bytes -= file.bytes
        return Usage(1, file.bytes)

    def _idle(self, file: _File) -> float:
        """Seconds since the last use; 0 if that is in the future."""
        return max(self.now() - file.used, 0.0)

    def _files(self) -> Iterator[_File]:
        for kind, shard in self._shards():
            for name, about in _listed(shard):
                if _ENTRY.fullmatch(name) and stat.S_ISREG(about.st_mode):
                    yield _File(shard / name, kind, about.st_size, about.st_mtime)

    def _sweep(self) -> None:
        """Remove temporary files of processes that ended while writing."""
        for _, shard in self._shards():
            for name, about in _listed(shard):
                if _TEMPORARY.fullmatch(name) and abs(self.now() - about.st_mtime) > ABANDONED:
                    with suppress(OSError):
                        (shard / name).unlink()

    def _shards(self) -> Iterator[tuple[str, Path]]:
        for kind, about in _listed(self.folder):
            if _KIND.fullmatch(kind) and stat.S_ISDIR(about.st_mode):
                for shard, of_it in _listed(self.folder / kind):
                    if _SHARD.fullmatch(shard) and stat.S_ISDIR(of_it.st_mode):
                        yield kind, self.folder / kind / shard

    def _explained(self, error: OSError) -> Unavailable:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return Unavailable(_NO_SPACE.of(where=self.where))
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            return Unavailable(_NO_PERMISSION.of(where=self.where))
        return Unavailable(_NOT_WRITTEN.of(where=self.where, error=error.strerror))


def _listed(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Names in a folder and their status. Links are not followed; entries that vanish meanwhile are left out."""
    try:
        names = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    with names:
        for entry in names:
            with suppress(OSError):
                yield entry.name, entry.stat(follow_symlinks=False)
