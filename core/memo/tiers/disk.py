"""The second tier: files that outlive the process. One file an entry, and the folder itself is the index.

    <folder>/<kind>/<first two digits>/<digest>.memo

Why files and no embedded store: entries are few and large, a tenth of a megabyte to many, so a look-up is one open() and a
read, and listing ten thousand takes a blink. SQLite would keep values that large in files too, beside a database that can be
locked, and that must not lie on a network share (its own documentation); it would then have to agree with the files.
diskcache is that, unpickles what it finds (CVE-2025-69872), and is no longer maintained. Rename is atomic, needs no lock
between processes, and what a crash leaves is a temporary file that is swept.

No fsync: after a power cut an entry may be empty or torn, and the digest in it makes that a miss. Last use is the file's
modification time, set by hand to a clock that does not jump while the process lives; times from the future count as unknown.
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

from ..codec import HEADER, LARGEST, PREFIX, header_size, plausible
from ..errors import CorruptEntry, NotCacheable
from ..keys import Key
from .base import Progress, Unavailable, Usage

GB = 1 << 30
DAY = 86400.0
STALL_TIMEOUT = 5.0  # seconds: a disk that slept has spun up, a machine with too much to do has got round to it
CHUNK = 4 << 20
TOUCH = 60.0  # seconds: a use that soon after the last is not written down
ABANDONED = 3600.0  # seconds after which a temporary file is nobody's any more
SCAN = 300.0  # seconds between two looks at what other processes made of the folder
SHARES = 20  # of the limit: after so much was written the folder is looked at again
FULL = 0.9  # of the limit is what eviction leaves

_KIND = re.compile(r"[a-z][a-z0-9-]{0,31}")
_SHARD = re.compile(r"[0-9a-f]{2}")
_ENTRY = re.compile(r"([0-9a-f]{40})\.memo")
_TEMPORARY = re.compile(r"[0-9a-f]{40}\.[0-9a-f]{16}\.tmp")

# not through links, not into a pipe that nobody writes to, and on Windows not as text
_FLAGS = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY", "O_CLOEXEC"))


@dataclass(frozen=True)
class _File:
    path: Path
    kind: str
    bytes: int
    used: float  # seconds since 1970, by the file system


class DiskTier:
    """Entries as files below `folder`, which several processes may use at once.

    limit: bytes in all. age: seconds without use after which an entry goes. spare: bytes that stay free on the disk. Of what
    else lies in the folder nothing is read, counted or removed.
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
        self._bytes: int | None = None  # in all, as of the last scan and what we wrote since
        self._scanned = 0.0
        self._written = 0  # bytes, since the last scan
        self._gap: tuple[float, float] | None = (
            None  # seconds without any use before this process began, and when they began
        )

    def now(self) -> float:
        """Seconds since 1970, from a clock that is set once: one that is changed under us makes nothing look old."""
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
                raise CorruptEntry("no file that we wrote")
            head = opened.read(PREFIX + 8) or b""
            if not plausible(head, size):
                raise CorruptEntry("no file that we wrote")
            head += opened.read(header_size(head) - len(head)) or b""
            if not plausible(head, size):  # a size that is not the one its header gives: do not read it
                raise CorruptEntry("no file that we wrote")
            data, got = bytearray(size), len(head)
            data[:got] = head
            while got < size:
                read = opened.readinto(memoryview(data)[got : got + CHUNK])
                if not read:
                    raise CorruptEntry("a file that is shorter than it was")
                got += read
                on_progress()
        if abs(self.now() - about.st_mtime) > TOUCH:
            with suppress(OSError):
                os.utime(path, (self.now(), self.now()))
        return data

    def put(self, key: Key, data: bytes) -> None:
        if len(data) > self.limit // 4:
            raise NotCacheable(f"{self.name}: larger than a quarter of its limit")
        path = self._path(key)
        temporary = path.with_name(f"{key.digest}.{secrets.token_hex(8)}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if self._is_linked(path):
                raise Unavailable(
                    f"{self.folder} holds a linked folder: entries are kept in memory alone; remove the link"
                )
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
        """A folder that is not there is empty; one that cannot be looked at raises."""
        with suppress(FileNotFoundError):
            os.stat(self.folder)

    def maintain(self) -> None:
        """Look at the whole folder now and then, remove what is too old, too much or half-written."""
        with self._lock:
            due = self._bytes is None or self._bytes > self.limit or time.monotonic() - self._scanned > SCAN
            # other processes may write as much as this one
            due = due or self._written > self.limit / SHARES
            self._written = 0 if due else self._written
        if not due:
            return
        self._scanned = time.monotonic()
        self._sweep()
        kept, files = [], list(self._files())
        if self._gap is None:
            # a clock set wrong must not empty the folder: time in which nobody used it does not count
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
            # unknown last uses first: nothing shall live because a clock was wrong once
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
        """Whether the folder of a kind or a shard is a link: what lies behind it would be neither counted nor cleared."""
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
            # Windows: another process reads it; then it is there, and content by content the same
            if os.name != "nt" or not path.exists():
                raise

    def _remove(self, file: _File) -> Usage:
        try:
            file.path.unlink()
        except OSError:  # another process did, or somebody reads it on Windows
            return Usage()
        with self._lock:
            if self._bytes is not None:
                self._bytes -= file.bytes
        return Usage(1, file.bytes)

    def _idle(self, file: _File) -> float:
        """Seconds since its last use; 0 for one in the future."""
        return max(self.now() - file.used, 0.0)

    def _files(self) -> Iterator[_File]:
        for kind, shard in self._shards():
            for name, about in _listed(shard):
                if _ENTRY.fullmatch(name) and stat.S_ISREG(about.st_mode):
                    yield _File(shard / name, kind, about.st_size, about.st_mtime)

    def _sweep(self) -> None:
        """Remove what writers that died left behind."""
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
        kept = "entries are kept in memory alone"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return Unavailable(f"no room left for {self.folder}: {kept}; make room on that disk, or clear the memo")
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            return Unavailable(
                f"{self.folder} must not be written to: {kept}; allow it, or choose another folder in the settings"
            )
        return Unavailable(f"{self.folder} cannot be written to ({error.strerror}): {kept}")


def _listed(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Names in a folder and what they are, links not followed; what vanishes meanwhile is left out."""
    try:
        names = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    with names:
        for entry in names:
            with suppress(OSError):
                yield entry.name, entry.stat(follow_symlinks=False)
