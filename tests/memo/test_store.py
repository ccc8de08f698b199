"""The store: computed once, found ever after, and whatever a tier does is at worst a miss."""

import logging
import threading
import time

import pytest
import torch

from skipstone.core.memo import stats, tier_worker
from skipstone.core.memo.codec import Entry, encode
from skipstone.core.memo.keys import key
from skipstone.core.memo.store import Store
from skipstone.core.memo.tier_worker import MAX_CORRUPT
from skipstone.core.memo.tiers.base import Unavailable, Unreachable, Usage
from skipstone.core.memo.tiers.memory import MemoryTier
from skipstone.core.memo.tiers.shared import NO_CONNECTION
from skipstone.tests.memo.fakes import Fake, Meeting, boom

KEY = key("vae", "picture")


@pytest.fixture
def opened():
    """Stores that are closed when the test is over; all their tiers serve."""
    stores = []

    def open_store(*tiers):
        store = Store(tiers)
        stores.append(store)
        store.ready(10)
        return store

    yield open_store
    for store in stores:
        store.close(1)


def memory():
    return MemoryTier(1 << 20, reserve=0)


def never():
    raise AssertionError("computed what was kept")


def value():
    return {"samples": torch.arange(6.0).reshape(2, 3).to(torch.bfloat16)}


def kept(name=KEY, cost=1.0):
    return encode(name, Entry(value(), cost, 0.0))


def is_value(found):
    return torch.equal(found["samples"], value()["samples"]) and found["samples"].dtype == torch.bfloat16


def wait_for(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


# hits and misses


def test_computed_once(opened):
    store = opened(memory())
    assert is_value(store.compute(KEY, value))
    assert is_value(store.compute(KEY, never))
    assert is_value(store.get(KEY))
    assert store.get(key("vae", "another")) is None


def test_without_tiers_all_is_computed(opened):
    store = opened()
    assert [store.compute(KEY, lambda: 1), store.compute(KEY, lambda: 2)] == [1, 2]


def test_what_is_returned_is_the_callers_to_write_to(opened):
    store = opened(memory(), Fake())
    first = store.compute(KEY, value)
    first["samples"].zero_()
    second = store.compute(KEY, never)
    assert is_value(second)
    second["samples"].zero_()
    second["more"] = 1
    assert is_value(store.compute(KEY, never))


def test_a_lower_tier_fills_the_higher_ones(opened):
    far, middle, near = Fake("far", {KEY: kept()}), Fake("middle"), memory()
    store = opened(near, middle, far)
    assert is_value(store.get(KEY))
    assert store.flush()
    assert near.get(KEY) == middle.held[KEY] == far.held[KEY]
    far.calls.clear()
    assert is_value(store.get(KEY))
    assert "get" not in far.calls
    assert "put" not in far.calls


def test_writes_below_memory_are_not_waited_for(opened):
    slow, go = Fake(), threading.Event()
    slow.on["put"] = lambda: go.wait(10)
    store = opened(memory(), slow)
    assert store.put(KEY, value(), 1.0)
    assert slow.held == {}
    assert is_value(store.get(KEY))
    go.set()
    assert store.flush()
    assert KEY in slow.held


def test_writes_that_wait_are_bounded(opened):
    slow, go = Fake(), threading.Event()
    slow.on["put"] = lambda: go.wait(10)
    store = opened(slow)
    store._workers[0].queue = 4 * len(kept())
    for i in range(20):
        store.put(key("vae", i), value(), 1.0)
    assert store.stats.as_dict()["not_kept"]["fake: too many writes at once"] >= 16
    go.set()
    assert store.flush()
    assert 3 <= len(slow.held) <= 4


def test_an_encoder_that_raises_raises_and_nothing_is_kept(opened):
    store = opened(memory(), Meeting())
    with pytest.raises(RuntimeError, match="boom"):
        store.compute(KEY, boom)
    assert store.compute(KEY, lambda: 7) == 7


@pytest.mark.parametrize(("odd", "reason"), [(object(), "vae: something of class object"), (None, "vae: nothing")])
def test_what_cannot_be_kept_is_returned_and_said(opened, odd, reason):
    store = opened(memory(), Fake())
    assert store.compute(KEY, lambda: odd) is odd
    assert store.compute(KEY, lambda: odd) is odd
    assert store.report()["not_kept"] == {reason: 2}


def test_an_encoder_within_an_encoder_of_the_same_name_does_not_wait_for_itself(opened):
    store = opened(memory(), Meeting())
    assert store.compute(KEY, lambda: store.compute(KEY, lambda: 5, waiting=never)) == 5
    assert store.compute(KEY, never) == 5


def test_a_closed_store_computes(opened):
    far = Fake()
    store = opened(memory(), far)
    store.put(KEY, value(), 1.0)
    store.close()
    assert far.closed
    assert KEY in far.held
    assert store.compute(KEY, lambda: 3) == 3


# tiers that fail


def failing(what):
    def fail():
        raise what

    return fail


FAILURES = {
    "unavailable": failing(Unavailable("it is switched off; switch it on")),
    "an error": boom,
    "out of memory": failing(MemoryError()),
    "not there": failing(OSError(5, "Input/output error")),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES.keys())
@pytest.mark.parametrize("what", ["get", "put", "delete", "maintain", "probe", "claim", "release", "renew"])
def test_a_tier_that_fails_is_a_miss_said_once(opened, caplog, what, failure):
    bad = Meeting()
    bad.on[what] = failure
    if what == "delete":
        bad.held[KEY] = b"rubbish"
    with caplog.at_level(logging.WARNING):
        store = opened(memory(), bad) if what != "probe" else Store([memory(), bad])
        for _ in range(3):
            for i in range(3):
                assert store.compute(key("vae", i), lambda: 5) == 5
            store.get(KEY)
        assert wait_for(lambda: what in bad.calls)
        store.flush()
        store.close()
    said = [
        r.getMessage()
        for r in caplog.records
        if "encode cache" in r.getMessage() and "corrupt entry" not in r.getMessage()
    ]
    assert len(said) == 1
    assert said[0].startswith("[Skipstone] encode cache: fake: ")


def test_a_tier_that_hangs_costs_its_patience_once(opened):
    hung, go = Fake(stall_timeout=0.05), threading.Event()
    hung.on["get"] = lambda: go.wait(20)
    store = opened(memory(), hung)
    for i in range(10):
        assert store.compute(key("vae", i), lambda: 5) == 5
    assert hung.calls.count("get") == 1
    assert any("50 ms" in trouble for trouble in store.report()["troubles"])
    go.set()


def test_a_tier_that_hung_often_is_used_again_when_it_has_come_back(opened, monkeypatch):
    for name, value in (("RESTS", (0.01, 0.02)), ("WINDOW", 0.05)):
        monkeypatch.setattr(tier_worker, name, value)
    hung, go = Fake(held={KEY: kept()}, stall_timeout=0.02), threading.Event()
    hung.on["get"] = lambda: go.wait(20)
    store = opened(hung)
    for _ in range(tier_worker.MAX_ABANDONED):
        assert store.ready(10)
        assert store.get(KEY) is None
    assert not store.ready(0.3), "so many threads hang that no more are sent after them"
    assert hung.calls.count("get") == tier_worker.MAX_ABANDONED
    hung.on.clear()
    go.set()
    assert store.ready(10)
    hung.stall_timeout = 5.0
    assert is_value(store.get(KEY))


def test_a_tier_that_gets_on_is_waited_for(opened, monkeypatch):
    slow = Fake(held={KEY: kept()}, stall_timeout=0.1)
    plain_get = slow.get

    def get(name, on_progress):
        for _ in range(20):
            time.sleep(0.02)
            on_progress()
        return plain_get(name, on_progress)

    monkeypatch.setattr(slow, "get", get)
    assert is_value(opened(slow).get(KEY))


def test_a_tier_that_serves_again_is_used_again(opened):
    far = Fake(held={KEY: kept()})
    store = opened(far)
    far.on["get"] = failing(Unavailable("away"))
    assert store.get(KEY) is None
    del far.on["get"]
    assert store.get(KEY) is None  # it rests
    assert store.ready(20)
    assert is_value(store.get(KEY))


def test_a_tier_that_is_not_there_yet_is_not_waited_for():
    far, go = Fake(held={KEY: kept()}), threading.Event()
    far.on["probe"] = lambda: go.wait(20)
    store = Store([far])
    assert store.get(KEY) is None
    assert "get" not in far.calls
    go.set()
    assert store.ready(10)
    assert is_value(store.get(KEY))
    store.close()


@pytest.mark.parametrize("rubbish", [b"", b"rubbish", kept()[:-1], kept(key("vae", "another"))], ids=range(4))
def test_rubbish_is_a_miss_and_is_replaced(opened, rubbish):
    far = Fake(held={KEY: rubbish})
    store = opened(far)
    assert is_value(store.compute(KEY, value))
    assert store.flush()
    assert is_value(store.compute(KEY, never))
    assert "delete" in far.calls


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_is_neither_kept_nor_given(opened, bad):
    """A passing fault would be given until it expires, to all machines."""
    spoilt = value()
    spoilt["samples"][1, 1] = bad
    far = Fake(held={KEY: encode(KEY, Entry(spoilt, 1.0, 0.0))})
    store = opened(memory(), far)
    assert is_value(store.compute(KEY, value))
    other = key("vae", "other")
    assert store.compute(other, lambda: spoilt) is spoilt
    assert store.flush()
    assert other not in far.held and is_value(store.get(KEY))
    assert store.report()["not_kept"] == {"vae: NaN or an infinity in it": 1}


def test_memory_can_be_freed_alone(opened):
    far = Fake()
    store = opened(memory(), far)
    store.put(KEY, value(), 1.0)
    assert store.flush()
    assert store.free_memory().entries == 1
    assert store.usage()["memory"] == {} and KEY in far.held


def test_a_tier_full_of_rubbish_is_not_asked_for_ever(opened):
    names = [key("vae", i) for i in range(50)]
    far = Fake(held=dict.fromkeys(names, b"rubbish"))
    store = opened(far)
    assert [store.get(name) for name in names] == [None] * 50
    assert far.calls.count("get") == MAX_CORRUPT


def test_writes_that_are_held_for_a_tier_that_cannot_be_reached_are_bounded(opened, monkeypatch):
    """The oldest are dropped when they are too many, and all when they are too old; what is left is written when it is back."""
    names = [key("vae", i) for i in range(5)]
    monkeypatch.setattr(tier_worker, "HELD", 5 * len(kept(names[0])) // 2)
    monkeypatch.setattr(tier_worker, "RESTS", (0.2, 0.2))
    monkeypatch.setattr(tier_worker, "TICK", 0.01)
    far, gone = Fake(), [True]

    def unreachable():
        if gone[0]:
            raise Unreachable(NO_CONNECTION.of(where="there"))

    far.on["put"] = unreachable
    store = opened(memory(), far)
    for name in names:
        store.compute(name, value)
    assert wait_for(lambda: sum(store.stats.as_dict()["not_kept"].values()) == 3)
    gone[0] = False
    assert wait_for(lambda: len(far.held) == 2)
    assert {*far.held} == {*names[-2:]}
    gone[0] = True
    monkeypatch.setattr(tier_worker, "HELD_FOR", 0.0)
    store.compute(KEY, value)
    assert wait_for(lambda: sum(store.stats.as_dict()["not_kept"].values()) == 4)
    assert KEY not in far.held


def test_one_tier_that_fails_leaves_the_others_alone(opened):
    bad, good = Fake("bad"), Fake("good", {KEY: kept()})
    bad.on |= {"get": boom, "put": boom}
    store = opened(bad, good)
    assert is_value(store.get(KEY))
    store.put(key("vae", 2), value(), 1.0)
    assert store.flush()
    assert key("vae", 2) in good.held


# one computes, the others wait


def test_threads_compute_a_value_once(opened):
    store, ran, go = opened(memory()), [], threading.Event()

    def slow():
        ran.append(1)
        go.wait(10)
        return 42

    found = []
    threads = [threading.Thread(target=lambda: found.append(store.compute(KEY, slow))) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert wait_for(lambda: ran)
    go.set()
    for thread in threads:
        thread.join(20)
    assert (found, ran) == ([42] * 4, [1])


def two(opened, stall_timeout=5.0):
    first = Meeting("far", stall_timeout=stall_timeout)
    tiers = [first, Meeting("far", first.held, stall_timeout, claims=first.claims)]
    return [opened(memory(), tier) for tier in tiers], tiers


def test_of_two_processes_one_computes(opened):
    (one, other), _ = two(opened)
    at_it, go, found = threading.Event(), threading.Event(), []

    def slow():
        at_it.set()
        go.wait(10)
        return 42

    threading.Thread(target=one.compute, args=(KEY, slow)).start()
    assert at_it.wait(10)
    waiter = threading.Thread(target=lambda: found.append(other.compute(KEY, never)))
    waiter.start()
    go.set()
    waiter.join(20)
    assert found == [42]
    assert other.report()["hits"] == 1


def test_what_another_finished_just_before_our_turn_is_not_computed_again(opened):
    tier = Meeting()
    tier.on["claim"] = lambda: tier.held.update({KEY: kept()})
    assert is_value(opened(tier).compute(KEY, never))


def test_nobody_waits_longer_than_computing_took(opened):
    (_, other), tiers = two(opened)
    for i in range(3):
        other.put(key("vae", i), i, 0.2)
    assert tiers[0].claim(KEY, None).ours  # and is never heard of again
    looks = []
    started = time.monotonic()
    assert other.compute(KEY, lambda: 8, waiting=lambda: looks.append(1)) == 8
    assert time.monotonic() - started >= 0.2
    assert 1 <= len(looks) <= 11  # 0.2 s in pauses of 0.02 and more


def test_after_a_wait_in_vain_nobody_is_waited_for_again_so_soon(opened):
    (_, other), tiers = two(opened)
    other.put(key("vae", 0), 0, 0.05)
    names = [key("vae", "hung", i) for i in range(5)]
    assert all(tiers[0].claim(name, None).ours for name in names)
    looks: list[list[int]] = [[], [], [], [], []]
    for name, look in zip(names, looks, strict=True):
        assert other.compute(name, lambda: 8, waiting=lambda look=look: look.append(1)) == 8
    assert looks[0]
    assert looks[1:] == [[], [], [], []]


def test_who_gives_up_is_not_waited_for(opened):
    (_, other), tiers = two(opened)
    assert tiers[0].claim(KEY, None).ours
    waits = []

    def waiting():
        waits.append(1)
        tiers[0].release(KEY)

    assert other.compute(KEY, lambda: 8, waiting=waiting) == 8
    assert waits == [1]


def test_a_wait_can_be_interrupted(opened):
    (_, other), tiers = two(opened)
    assert tiers[0].claim(KEY, None).ours
    with pytest.raises(KeyboardInterrupt):
        other.compute(KEY, never, waiting=failing(KeyboardInterrupt()))


def test_claims_are_renewed_while_one_computes_and_given_up_after_the_write(opened):
    tier = Meeting()
    store = opened(tier)
    assert store.compute(KEY, lambda: wait_for(lambda: "renew" in tier.calls)) is True
    assert store.flush()
    assert tier.claims == {}
    assert tier.calls.index("put") < tier.calls.index("release")


# what is told, what is cleared


def test_statistics(opened):
    far = Fake("far")
    store = opened(memory(), far)
    text = key("text", "a prompt")
    store.put(KEY, value(), 10.0)
    store.put(text, "x", 1.0)
    for _ in range(3):
        store.get(KEY)
    store.get(key("text", "another"))
    assert store.flush()
    told = store.report()
    assert (told["hits"], told["misses"], told["hit_rate"]) == (3, 1, 0.75)
    assert told["saved_seconds"] == pytest.approx(30, abs=1)
    assert told["spent_seconds"] == 11
    assert told["kinds"]["vae"]["hit_rate"] == 1
    assert told["kinds"]["text"]["hit_rate"] == 0
    assert told["tiers"]["memory"]["hits_by_kind"] == {"vae": 3}
    assert told["tiers"]["memory"]["misses"] == told["tiers"]["far"]["misses"] == 1
    assert told["tiers"]["far"]["entries"] == told["tiers"]["memory"]["entries"] == 2
    assert told["tiers"]["far"]["bytes"] == sum(map(len, far.held.values()))
    assert "encode cache: 3 of 4 reused (75%)" in store.text()
    assert "far: 0 hits, 2 entries" in store.text()


@pytest.mark.parametrize(
    ("size", "told"), [(1023, "1023 bytes"), (1536, "1.5 kB"), (3 << 20, "3.0 MB"), (5 << 40, "5120.0 GB")]
)
def test_sizes_have_units(size, told):
    assert stats.size(size) == told


def test_statistics_of_nothing(opened):
    assert "not used yet" in opened().text()
    assert opened().report()["hit_rate"] is None


def test_a_tier_that_does_not_say_what_it_holds_is_told_so(opened):
    far = Fake("far")
    far.on["usage"] = boom
    store = opened(far)
    assert store.usage() == {"far": None}
    assert "far: 0 hits, does not answer" in store.text()


@pytest.mark.parametrize("serves", [True, False])
def test_a_tier_that_hangs_holds_up_neither_statistics_nor_clearing(opened, serves):
    hung, go, done = Fake(stall_timeout=0.05), threading.Event(), []
    store = opened(hung)
    for what in ("get", "usage", "clear", "probe"):
        hung.on[what] = lambda: done.append(go.wait(20))
    if not serves:
        assert store.get(KEY) is None
    assert store.usage() == {"fake": None}
    assert "usage" not in hung.calls
    assert store.clear() == {"fake": None}
    assert done == []
    go.set()


def test_clear_says_what_it_removed(opened):
    near, far = memory(), Fake("far")
    store = opened(near, far)
    text = key("text", 1)
    store.put(KEY, value(), 1.0)
    store.put(text, "x", 1.0)
    size = near.usage()["vae"].bytes
    assert store.clear(tier="memory", kind="vae") == {"memory": Usage(1, size)}
    assert store.flush()
    assert is_value(store.get(KEY))  # from far
    assert store.clear(kind="vae") == {"memory": Usage(1, size), "far": Usage(1, size)}
    assert store.get(KEY) is None
    assert store.get(text) == "x"
    with pytest.raises(ValueError, match="there is memory, far"):
        store.clear(tier="../..")


def test_clear_removes_what_is_still_to_be_written(opened):
    slow = Fake()
    slow.on["put"] = lambda: time.sleep(0.02)
    store = opened(slow)
    for i in range(5):
        store.put(key("vae", i), value(), 1.0)
    removed = store.clear()["fake"]
    assert removed is not None
    assert removed.entries == 5
    assert slow.held == {}


def test_a_look_is_in_no_statistics_until_it_is_used(opened):
    store = opened(memory(), Fake())
    assert store.look(KEY) is None
    store.put(KEY, value(), 2.0)
    found = store.look(KEY)
    assert is_value(found.entry.value) and found.tier == "memory"
    told = store.report()
    assert (told["hits"], told["misses"]) == (0, 0) and told["tiers"]["memory"]["misses"] == 0
    store.used(KEY, found)
    told = store.report()
    assert (told["hits"], told["misses"]) == (1, 0) and told["saved_seconds"] == pytest.approx(2.0, abs=0.1)


def test_one_tier_can_be_waited_for(opened):
    away = Fake("away")
    away.on["probe"] = boom
    store = Store([memory(), Fake("there"), away])
    assert store.ready(10, "there")
    assert not store.ready(0.01)
    store.close(1)
