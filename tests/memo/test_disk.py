"""The disk tier: found again by the next process, within its limits, and never worse than a miss."""

import errno
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from skipstone.core.memo.codec import Entry, decode, encode
from skipstone.core.memo.errors import NotCacheable
from skipstone.core.memo.keys import key
from skipstone.core.memo.store import Store
from skipstone.core.memo.tiers.base import Unavailable, Usage
from skipstone.core.memo.tiers.disk import ABANDONED, DAY, DiskTier
from skipstone.tests.memo import writer
from skipstone.tests.memo.test_codec import HOSTILE

A, B, C = (key("vae", name) for name in "abc")
TEXT = key("text", "a")


def tier(folder, **more):
    return DiskTier(folder, **{"spare": 0} | more)


def get(t, name):
    return t.get(name, lambda: None)


def data(size=100, name=A):
    """An entry of about that many bytes more than it needs."""
    value = "x" * size if size <= 1000 else torch.zeros(size, dtype=torch.uint8)
    return encode(name, Entry(value, 1.0, 1.0))


@contextmanager
def store(folder, **more):
    opened = Store([tier(folder, **more)])
    assert opened.ready(10)
    yield opened
    opened.close(5)


def files(folder):
    return sorted(p for p in Path(folder).rglob("*") if p.is_file())


def aged(t, name, seconds):
    then = time.time() - seconds
    os.utime(t._path(name), (then, then))


# what it is for


def test_what_was_put_is_there_for_the_next_process(tmp_path):
    tier(tmp_path).put(A, data())
    assert get(tier(tmp_path), A) == data()
    assert get(tier(tmp_path), B) is None
    assert decode(A, get(tier(tmp_path), A)).value == "x" * 100


def test_a_folder_that_is_not_there_is_empty_and_then_made(tmp_path):
    t = tier(tmp_path / "a" / "b")
    assert get(t, A) is None
    assert t.usage() == {}
    assert t.clear() == Usage()
    t.probe()
    t.maintain()
    t.put(A, data())
    assert get(t, A) == data()


def test_through_a_store_and_back(tmp_path):
    latent = torch.randn(1, 16, 8, 8).to(torch.bfloat16)
    with store(tmp_path) as one:
        one.compute(A, lambda: {"samples": latent})
    with store(tmp_path) as other:
        found = other.get(A)["samples"]
        found_again = other.get(A)["samples"]
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, latent)
    found.zero_()
    assert torch.equal(found_again, latent)


@pytest.mark.parametrize("value", [torch.zeros(1, 16, 0, 0), torch.zeros(0, dtype=torch.bool)])
def test_pictures_without_pixels(tmp_path, value):
    with store(tmp_path) as one:
        one.put(A, value, 1.0)
        one.flush()
        found = one.get(A)
    assert (found.shape, found.dtype) == (value.shape, value.dtype) and torch.equal(found, value)


def test_only_whole_entries_have_an_entrys_name(tmp_path):
    t = tier(tmp_path)
    t.put(A, data(5_000_000))
    assert [p.name for p in files(tmp_path)] == [f"{A.digest}.memo"]


def test_usage_and_clear(tmp_path):
    t = tier(tmp_path)
    for name in (A, B, TEXT):
        t.put(name, data(name=name))
    size = len(data())
    assert t.usage() == {"vae": Usage(2, 2 * size), "text": Usage(1, len(data(name=TEXT)))}
    aged(t, A, 100)
    assert t.clear(kind="text", older_than=50) == Usage()
    assert t.clear(older_than=50) == Usage(1, size)
    assert t.clear(kind="text").entries == 1
    assert t.clear() == Usage(1, size)
    assert files(tmp_path) == []


# limits


def test_the_oldest_go_when_it_is_too_much(tmp_path):
    t = tier(tmp_path, limit=10 * len(data()))
    names = [key("vae", i) for i in range(14)]
    for i, name in enumerate(names):
        t.put(name, data(name=name))
        aged(t, name, 1000 - i)
    get(t, names[0])  # a use counts
    t.maintain()
    left = [name for name in names if t._path(name).exists()]
    assert left == [names[0], *names[-8:]]
    t.put(names[1], data(name=names[1]))
    assert sum(u.bytes for u in t.usage().values()) <= t.limit


def test_the_limit_is_kept_while_it_is_written(tmp_path):
    with store(tmp_path, limit=40 * len(data())) as one:
        for i in range(100):
            one.put(key("vae", i), "x" * 100, 1.0)
            one.flush()
    t = tier(tmp_path, limit=40 * len(data()))
    t.maintain()
    assert 20 <= t.usage()["vae"].entries <= 40


def test_what_nobody_used_for_long_goes(tmp_path):
    t = tier(tmp_path, age=10 * DAY)
    for name, days in ((A, 11), (B, 9), (C, 0)):
        t.put(name, data(name=name))
        aged(t, name, days * DAY)
    t.maintain()
    assert get(t, A) is None
    assert get(t, B) is not None


def test_what_would_take_most_of_the_room_is_refused(tmp_path):
    t = tier(tmp_path, limit=1000)
    with pytest.raises(NotCacheable, match="larger"):
        t.put(A, data(500))


# clocks


@pytest.mark.parametrize("jump", [-3e9, -1e6, 1e6, 3e9])
def test_a_clock_that_jumps_while_we_run_ages_nothing(tmp_path, monkeypatch, jump):
    t = tier(tmp_path)
    t.put(A, data())
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    t.put(B, data(name=B))
    t.maintain()
    assert t.clear(older_than=DAY) == Usage()
    assert get(t, A) is not None
    assert get(t, B) is not None


def test_entries_from_the_future_are_found_and_are_the_first_to_go(tmp_path):
    t = tier(tmp_path, limit=4 * len(data()))
    for i, name in enumerate((A, B, C)):
        t.put(name, data(name=name))
        aged(t, name, 100 - i)
    aged(t, B, -1000 * DAY)
    t.maintain()
    assert get(t, B) == data(name=B)
    aged(t, B, -1000 * DAY)
    for i in range(2):
        name = key("vae", i)
        t.put(name, data(name=name))
    t.maintain()
    assert not t._path(B).exists()


# what else may lie there


def hostile_files():
    return [*HOSTILE.values(), data()[:-1], data(name=B), data() + b"\0"]


def test_whatever_lies_in_an_entrys_place_is_a_miss_and_is_replaced(tmp_path):
    for i, content in enumerate(hostile_files()):
        with store(tmp_path / str(i)) as one:
            path = DiskTier(tmp_path / str(i))._path(A)
            path.parent.mkdir(parents=True)
            path.write_bytes(content)
            assert one.compute(A, lambda: "right") == "right"
            one.flush()
            assert one.get(A) == "right"


@pytest.mark.skipif(os.name == "nt", reason="no pipes in folders")
@pytest.mark.parametrize("make", ["pipe", "link", "loop", "folder", "full folder"])
def test_no_file_at_all_is_a_miss(tmp_path, make):
    path = tier(tmp_path / "memo")._path(A)
    path.parent.mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.write_bytes(data())
    if make == "pipe":
        os.mkfifo(path)
    elif make == "link":
        path.symlink_to(outside)
    elif make == "loop":
        path.symlink_to(path)
    else:
        path.mkdir()
        if make == "full folder":
            (path / "x").write_bytes(b"")
    with store(tmp_path / "memo") as one:
        assert one.compute(A, lambda: "right") == "right"
        assert one.flush()
        assert one.compute(B, lambda: "right") == "right"
    assert outside.read_bytes() == data()


def test_what_is_not_ours_is_neither_counted_nor_removed(tmp_path):
    t = tier(tmp_path, limit=0, age=0)
    t.limit = 10**6
    t.put(A, data())
    t.limit = 0
    shard = t._path(A).parent
    theirs = [
        tmp_path / "notes.txt",
        tmp_path / "vae" / "model.safetensors",
        tmp_path / "VAE" / "00" / f"{A.digest}.memo",
        shard / "x.memo",
        shard / f"{A.digest}.tmp",
        shard / f"{A.digest}.memo.bak",
        shard / "sub" / f"{A.digest}.memo",
    ]
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"mine")
        os.utime(path, (0, 0))
    elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere"
    elsewhere.mkdir()
    (elsewhere / f"{B.digest}.memo").write_bytes(b"mine")
    (shard.parent / ("ff" if shard.name != "ff" else "fe")).symlink_to(elsewhere)
    assert t.usage()["vae"].entries == 1
    t.maintain()
    t.clear()
    assert not t._path(A).exists()
    assert all(path.read_bytes() == b"mine" for path in theirs)
    assert len(files(elsewhere)) == 1


def test_what_a_writer_that_died_left_is_swept_when_nobody_can_still_be_at_it(tmp_path):
    t = tier(tmp_path)
    t.put(A, data())
    fresh, old = (t._path(A).with_name(f"{A.digest}.{i:016x}.tmp") for i in range(2))
    for path in (fresh, old):
        path.write_bytes(b"half")
    then = time.time() - ABANDONED - 60
    os.utime(old, (then, then))
    t.maintain()
    assert fresh.exists()
    assert not old.exists()
    assert get(t, A) == data()


# disks that do not take it


@contextmanager
def full(_):
    """Files stop growing after 64 kB: writes are cut short, then fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def read_only(folder):
    """Root may write anywhere, so not as root."""
    root = os.geteuid() == 0
    for path in [*folder.parents][: len(folder.parents) - 1]:
        if root and path.owner() == "root" and not path.stat().st_mode & 1:
            path.chmod(path.stat().st_mode | 0o11)  # only the way there
    folder.chmod(0o555)
    if root:
        os.seteuid(65534)
    yield
    if root:
        os.seteuid(0)
    folder.chmod(0o755)


@pytest.mark.parametrize(
    ("broken", "said"), [(full, "no space left"), (read_only, "no permission to write")], ids=["full", "read-only"]
)
def test_a_disk_that_takes_nothing_is_said_once_and_still_read(tmp_path, caplog, broken, said):
    big = torch.zeros(1 << 16)
    folder = tmp_path / "memo"
    t = tier(folder)
    t.put(TEXT, data(name=TEXT))
    with caplog.at_level(logging.WARNING), store(folder) as one, broken(folder):
        for i in range(3):
            assert torch.equal(one.compute(key("image", i), lambda: big), big)
        assert one.flush()
        assert one.get(TEXT) == "x" * 100
        told = one.report()
    messages = [r.getMessage() for r in caplog.records]
    assert len(messages) == 1
    assert said in messages[0]
    assert told["not_kept"] == {"disk: accepts no writes at present": 3}
    assert [p.name for p in files(folder)] == [f"{TEXT.digest}.memo"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    t = tier(tmp_path)
    t.put(A, data())
    with full(tmp_path), pytest.raises(Unavailable, match="no space left"):
        t.put(A, data(1 << 20))

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    for name in (A, B):
        with pytest.raises(KeyboardInterrupt):
            t.put(name, data(1 << 20, name))
    assert get(t, A) == data()
    assert get(t, B) is None


def test_a_disk_that_is_nearly_full_is_left_to_others(tmp_path):
    t = tier(tmp_path, spare=1 << 60)
    with pytest.raises(Unavailable, match="no space left"):
        t.put(A, data())
    assert files(tmp_path) == []


def test_a_folder_that_is_a_file_is_said(tmp_path):
    (tmp_path / "memo").write_text("mine")
    t = tier(tmp_path / "memo")
    assert get(t, A) is None
    t.maintain()
    with pytest.raises(Unavailable, match="cannot be written to"):
        t.put(A, data())
    assert (tmp_path / "memo").read_text() == "mine"


def test_a_file_that_cannot_be_read_is_a_miss(tmp_path, monkeypatch):
    def broken_disk(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    with store(tmp_path) as one:
        one.put(A, "x", 1.0)
        one.flush()
        with monkeypatch.context() as patched:
            patched.setattr(os, "fdopen", broken_disk)
            assert one.get(A) is None


def test_a_share_that_hangs_costs_its_patience_once(tmp_path, monkeypatch):
    go, stats = threading.Event(), []
    real = os.open

    def slow(path, *more, **named):
        if str(path).endswith((".memo", ".tmp")):
            stats.append(path)
            go.wait(20)
        return real(path, *more, **named)

    with store(tmp_path, stall_timeout=0.05) as one:
        monkeypatch.setattr(os, "open", slow)
        for i in range(20):
            assert one.compute(key("vae", i), lambda: 7) == 7
        assert len(stats) <= 2  # one read and one write
        go.set()


# several processes


def writing(folder):
    """A process that writes entries 0, 1, ... and prints each number when it is written."""
    command = [sys.executable, writer.__file__, str(folder)]
    paths = os.pathsep.join(p for p in sys.path if p)
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": paths})


def test_killed_in_the_middle_of_a_thousand_writes_by_two_processes_at_once(tmp_path):
    writers = [writing(tmp_path) for _ in range(2)]
    t, written = tier(tmp_path), -1
    for line in writers[0].stdout:
        written = int(line)
        # while both write these very names
        found = get(t, writer.name(written))
        assert torch.equal(decode(writer.name(written), found).value, writer.value(written))
        if written == 200:
            break
    for process in writers:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    with store(tmp_path) as one:
        for i in range(written + 1):
            assert torch.equal(one.get(writer.name(i)), writer.value(i))
        assert all(decode(writer.name(i), got).cost == 1.0 for i in range(1000) if (got := get(t, writer.name(i))))
        assert one.report()["troubles"] == []
