"""The memory tier: within its budget, out of the way under pressure, the least recently used first."""

import threading
import time

import psutil
import pytest

from skipstone.core.memo.errors import NotCacheable
from skipstone.core.memo.keys import key
from skipstone.core.memo.tiers import memory
from skipstone.core.memo.tiers.base import Usage
from skipstone.core.memo.tiers.memory import MemoryTier

A, B, C = (key("vae", name) for name in "abc")
TEXT = key("text", "a")
GB = 1 << 30


def tier(budget=100, **more):
    return MemoryTier(budget, **{"reserve": 0} | more)


def test_what_was_put_is_there_and_nothing_else():
    t = tier()
    t.put(A, b"1")
    assert t.get(A) == b"1"
    assert t.get(B) is None
    t.put(A, b"22")
    assert t.get(A) == b"22"
    assert t.usage() == {"vae": Usage(1, 2)}
    t.delete(A)
    t.delete(A)
    assert t.usage() == {}


def test_the_least_recently_used_goes_first():
    t = tier(10)
    t.put(A, bytes(4))
    t.put(B, bytes(4))
    t.get(A)
    t.put(C, bytes(4))
    assert [t.get(k) is not None for k in (A, B, C)] == [True, False, True]


def test_the_budget_holds():
    t = tier(1000)
    for i in range(100):
        t.put(key("vae", i), bytes(1 + 37 * i % 200))
        assert sum(u.bytes for u in t.usage().values()) <= 1000


def test_what_is_larger_than_the_budget_is_refused_and_nothing_is_lost():
    t = tier(10)
    t.put(A, bytes(4))
    with pytest.raises(NotCacheable, match="budget"):
        t.put(B, bytes(11))
    assert t.get(A) is not None


def test_memory_that_runs_short_is_given_up():
    left = [1000]
    t = tier(reserve=500, free=lambda: left[0])
    for k in (A, B, C):
        t.put(k, bytes(20))
    left[0] = 475  # 25 too few
    t.shrink()
    assert [t.get(k) is not None for k in (A, B, C)] == [False, False, True]


def test_it_looks_by_itself_while_nobody_asks(monkeypatch):
    monkeypatch.setattr(memory, "WATCH", 0.01)
    short, looked = threading.Event(), threading.Event()

    def free():
        if short.is_set():
            looked.set()
        return 0 if short.is_set() else GB

    t = tier(reserve=500, free=free)
    t.put(A, bytes(50))
    short.set()
    assert looked.wait(10)
    for _ in range(1000):
        if not t.usage():
            break
        threading.Event().wait(0.01)
    assert t.usage() == {}


def test_it_starts_before_comfyui_has_to():
    """ComfyUI drops its results when less than a tenth of the memory is free, but at 2 GB at least and 10 at most."""
    t = MemoryTier()
    total = psutil.virtual_memory().total
    assert t.reserve > min(max(total / 10, 2 * GB), 10 * GB)
    assert 0 < t.budget <= total / 5


def test_clear_by_kind_and_by_age(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    t = tier()
    t.put(A, bytes(3))
    t.put(B, bytes(4))
    t.put(TEXT, bytes(5))
    now[0] += 60
    t.get(B)
    assert t.clear(kind="text") == Usage(1, 5)
    assert t.clear(older_than=30) == Usage(1, 3)
    assert t.clear(kind="text") == Usage()
    assert t.clear() == Usage(1, 4)
    assert t.usage() == {}
