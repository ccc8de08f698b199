"""Tiers that lie, fail and tear at random below several threads: every answer is right all the same."""

import random
import subprocess
import sys
import threading

import pytest
import torch

from skipstone.core.memo import tier_worker
from skipstone.core.memo.errors import CorruptEntry, NotCacheable
from skipstone.core.memo.keys import key
from skipstone.core.memo.store import Store
from skipstone.core.memo.tiers.base import Unavailable
from skipstone.core.memo.tiers.memory import MemoryTier
from skipstone.tests.memo.fakes import Meeting

NAMES = [key("vae", "chaos", i) for i in range(12)]


class Flaky(Meeting):
    """Right half the time."""

    def __init__(self, seed, *args, **more):
        super().__init__(*args, **more)
        self.dice = random.Random(seed)

    def _called(self, what):
        super()._called(what)
        fate = self.dice.random()
        if fate < 0.1:
            raise self.dice.choice(
                [Unavailable("away"), OSError(5, "I/O"), MemoryError(), KeyError("x"), CorruptEntry("torn")]
            )
        if what == "put" and fate < 0.2:
            raise NotCacheable("fake: not today")

    def get(self, key, on_progress):
        data = super().get(key, on_progress)
        on_progress()
        fate = self.dice.random()
        if data is None or fate < 0.5:
            return data
        if fate < 0.6:
            return None
        if fate < 0.7:
            return data[: self.dice.randrange(len(data))]
        if fate < 0.8:
            return self.dice.choice(list(self.held.values()))
        if fate < 0.9:
            return self.dice.randbytes(self.dice.randrange(200))
        torn = bytearray(data)
        torn[self.dice.randrange(len(torn))] ^= 1 << self.dice.randrange(8)
        return torn


def right(name):
    return {"samples": torch.full((3, 5), float(NAMES.index(name)))}


@pytest.mark.parametrize("seed", range(3))
def test_every_answer_is_right(monkeypatch, seed):
    monkeypatch.setattr(tier_worker, "RESTS", (0.0, 0.01))
    monkeypatch.setattr(tier_worker, "WINDOW", 0.01)
    far, near = Flaky(seed, "far"), Flaky(seed + 10, "near")
    stores = [Store([MemoryTier(1000, reserve=0), near, far]), Store([far])]
    wrong = []

    def work(store, dice):
        for _ in range(60):
            name = dice.choice(NAMES)
            try:
                found = store.compute(name, lambda: right(name))  # noqa: B023
                if not torch.equal(found["samples"], right(name)["samples"]):
                    wrong.append(found)
                found["samples"].fill_(-1)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(stores[i % 2], random.Random(100 * seed + i))) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    told = [store.stats.as_dict() for store in stores]
    assert wrong == []
    assert sum(t["hits"] for t in told) > 50
    assert sum(t["hits"] + t["misses"] for t in told) == 240
    for store in stores:
        store.close(1)


LEAVES = """
import sys, torch
from skipstone.core.memo.keys import key
from skipstone.core.memo.settings import Settings
store = Settings(folder=sys.argv[1], redis="redis://127.0.0.1:1").open()
for i in range(50):
    store.compute(key("vae", i), lambda: torch.rand(1 << 16))
print("left")
"""


def test_a_process_that_just_ends_ends(tmp_path):
    """Without close(), in the middle of writes: no hang, no crash, nothing half-written under an entry's name."""
    command = [sys.executable, "-c", "import sys; sys.path[:0] = sys.argv[2:]" + LEAVES, str(tmp_path)]
    done = subprocess.run([*command, *filter(None, sys.path)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "left\n")
    # a torn entry is shorter than the others
    sizes = {path.stat().st_size for path in tmp_path.rglob("*.memo")}
    assert max(sizes, default=0) - min(sizes, default=0) < 50
