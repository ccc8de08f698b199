"""Which files a name in a graph stands for, and whether ComfyUI can still hold another file's content under that name.

A file is identified by path, size, inode and times, which is enough on one machine: whoever replaces or edits a file changes
one of them. But ComfyUI loads a file once and may hold it while the name comes to mean another one: the file is replaced, a
link is pointed elsewhere, a folder is renamed, or a file of the same name in an earlier folder goes away. So nothing is
remembered of a name (it is not `settled`) if anything that decides its meaning changed since this process started, or if the name meant
something else when it was first asked for.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ...core.memo.errors import NotCacheable
from . import reasons, source_code

MARGIN = 0.05  # seconds: resolution of file times
COARSE = 2.0  # likewise of file systems that store whole seconds
EMBEDDINGS = 20_000  # files that are looked at

Stamp = tuple[Any, ...]

_lock = threading.Lock()
_first: dict[tuple[str, str], list[Stamp]] = {}  # what a name meant when it was first asked for


@dataclass
class Files:
    """Files that a node reads. stamps: what identifies them, in the order in which they count, for digest()."""

    stamps: list[Stamp] = field(default_factory=list)
    settled: bool = True

    def add(self, other: Files) -> None:
        self.stamps += other.stamps
        self.settled = self.settled and other.settled


def named(folder: str, name: Any) -> Files:
    """The file that a loader reads for `name` in one of ComfyUI's kinds of folders, such as "vae" or "loras".

    Raises NotCacheable where there is none.
    """
    import folder_paths

    if not isinstance(name, str):
        raise NotCacheable(reasons.NO_FILE_NAME)
    found = Files()
    if folder == "vae":
        if name == "pixel_space":
            return found
        # small approximations of VAEs: one file in another folder, or two
        there = folder_paths.get_filename_list("vae_approx")
        for part in there:
            if part == name or part.startswith((f"{name}_encoder.", f"{name}_decoder.")):
                found.add(_at("vae_approx", part, folder_paths.get_full_path("vae_approx", part)))
        found.settled = found.settled and _unchanged(folder_paths.get_folder_paths("vae_approx"))
    found.add(_at(folder, name, folder_paths.get_full_path(folder, name)))
    if not found.stamps:
        raise NotCacheable(reasons.NO_FILE)
    return found


def mentioned(text: str) -> Files:
    """All models that have this text as their name, in any kind of folder, and the embeddings that it may name as a prompt."""
    import folder_paths

    found = embeddings(text)
    if len(text) > 1024 or "\n" in text:
        return found
    for folder in sorted(folder_paths.folder_names_and_paths):
        if folder != "custom_nodes" and (path := folder_paths.get_full_path(folder, text)):
            found.add(_at(folder, text, path))
    return found


def embeddings(text: str) -> Files:
    """The files that a prompt may take embeddings from. Raises NotCacheable where they are too many."""
    found = Files()
    if "embedding:" not in text.lower():
        return found
    import folder_paths

    folders = []
    for base in folder_paths.get_folder_paths("embeddings"):  # the first that has a name counts
        for folder, _, names in sorted(os.walk(base, followlinks=True)):
            folders.append(folder)
            for path in sorted(os.path.join(folder, name) for name in names):
                found.stamps.append(_stamp(path))
                found.settled = found.settled and _unchanged(_links(path)) and _is_older(found.stamps[-1])
                if len(found.stamps) > EMBEDDINGS:
                    raise NotCacheable(reasons.TOO_MANY_EMBEDDINGS)
    found.settled = found.settled and _unchanged(folders) and _means_the_same("embeddings", "", found.stamps)
    return found


def _at(folder: str, name: str, path: str | None) -> Files:
    import folder_paths

    if not path:
        return Files()
    stamp = _stamp(path)
    bases = list(folder_paths.get_folder_paths(folder))
    # folders that are looked into before the one that has it: a file of this name may have been there
    before = next((i for i, base in enumerate(bases) if _is_below(path, base)), len(bases) - 1)
    on_the_way = [*bases[: before + 1], os.path.dirname(stamp[0])]
    at = os.path.dirname(path)
    while (
        before < len(bases) and _is_below(at, bases[before]) and os.path.normpath(at) != os.path.normpath(bases[before])
    ):
        on_the_way.append(at)
        at = os.path.dirname(at)
    same = _means_the_same(folder, name, [stamp])
    return Files([stamp], same and _is_older(stamp) and _unchanged([*on_the_way, *_links(path)]))


def _means_the_same(folder: str, name: str, stamps: list[Stamp]) -> bool:
    with _lock:
        return _first.setdefault((folder, name), list(stamps)) == stamps


def _stamp(path: str) -> Stamp:
    try:
        about = os.stat(path)
    except OSError as error:
        raise NotCacheable(reasons.UNREADABLE_FILE.of(error=type(error).__name__)) from error
    # ctime tells of a file that was put in the place of another with its times kept
    return os.path.realpath(path), about.st_size, about.st_dev, about.st_ino, (about.st_mtime_ns, about.st_ctime_ns)


def _is_older(stamp: Stamp) -> bool:
    """Whether a file was last changed before this process started."""
    return _is_before_start(max(stamp[-1]))


def _is_before_start(changed: int) -> bool:
    """changed: nanoseconds since 1970."""
    margin = MARGIN if changed % 1_000_000_000 else COARSE
    return changed / 1e9 < source_code.process_start() - margin


def _unchanged(paths: Any) -> bool:
    """Whether these folders and links, links themselves and not what they point to, are older than this process."""
    for path in paths:
        try:
            for about in (os.lstat(path), os.stat(path)):
                newest = max(about.st_mtime_ns, about.st_ctime_ns)
                if not stat.S_ISREG(about.st_mode) and not _is_before_start(newest):
                    return False
        except FileNotFoundError:
            continue  # a folder that is in the settings alone
        except OSError:
            return False
    return True


def _links(path: str) -> Iterator[str]:
    """The links that are followed on the way from the root to a file."""
    at, left, followed = os.sep, os.path.abspath(path).split(os.sep)[1:], 0
    drive = os.path.splitdrive(os.path.abspath(path))[0]
    at = drive + at
    while left:
        step = os.path.join(at, left.pop(0))
        if os.path.islink(step) and followed < 64:
            followed += 1
            yield step
            target = os.path.join(at, os.readlink(step))
            at, left = drive + os.sep, [*os.path.abspath(target).split(os.sep)[1:], *left]
        else:
            at = step


def _is_below(path: str, folder: str) -> bool:
    return os.path.normpath(path).startswith(os.path.normpath(folder) + os.sep)
