"""What a page may show of a memo."""

import json
import time

from skipstone.core.memo import status
from skipstone.core.memo.keys import key
from skipstone.core.memo.status import overview
from skipstone.core.memo.store import Store
from skipstone.core.memo.tiers.disk import DiskTier
from skipstone.core.memo.tiers.memory import MemoryTier
from skipstone.core.memo.tiers.redis import RedisTier
from skipstone.core.texts import translatable
from skipstone.tests.memo.fakes import Fake, boom


def test_tiers_in_order_with_what_they_may_hold(tmp_path):
    store = Store([MemoryTier(1000, reserve=0), DiskTier(tmp_path, 2000, spare=0)])
    assert store.ready()
    store.compute(key("vae", "a"), lambda: 1)
    store.compute(key("vae", "a"), lambda: 1)
    told = overview(store)
    store.close()
    assert [(t["name"], t["state"], t["budget"], t["entries"]) for t in told["tiers"]] == [
        ("memory", "on", 1000, 1),
        ("disk", "on", 2000, 1),
    ]
    assert (told["hits"], told["misses"], told["hit_rate"]) == (1, 1, 0.5)
    assert told["tiers"][0]["kinds"] == {"vae": {"entries": 1, "bytes": told["tiers"][0]["bytes"]}}


def test_a_tier_that_fails_is_away_and_says_why():
    tier = Fake()
    tier.on["usage"] = boom
    store = Store([tier])
    assert store.ready()
    told = overview(store)
    store.close()
    (shown,) = told["tiers"]
    assert shown["state"] == "away" and "entries" not in shown
    assert told["troubles"] == [{"tier": "fake", "text": "fails with RuntimeError"}]  # boom's own words may name a file


def test_looking_at_a_slow_tier_does_not_make_it_rest():
    tier = Fake(stall_timeout=0.01)
    tier.on["get"] = tier.on["usage"] = lambda: time.sleep(0.1)
    store = Store([tier])
    assert store.ready()
    (shown,) = overview(store)["tiers"]
    assert (shown["state"], shown["entries"]) == ("on", 0)
    assert store.usage() == {"fake": None}  # who is in a hurry does
    assert overview(store)["tiers"][0]["state"] == "away"
    store.close()


def test_no_place_is_named(tmp_path):
    folder = tmp_path / "some-folder"
    folder.write_text("a file")
    store = Store([DiskTier(folder), RedisTier("redis://:s3cret@127.0.0.1:1")])
    store.put(key("vae", "a"), 1, 1.0)
    store.flush()
    told = overview(store)
    ok, sentences = status.check_connections(store)
    store.close()
    assert told["tiers"][1]["state"] == "away"
    assert {trouble["tier"] for trouble in told["troubles"]} == {"disk", "redis"}
    for said in (json.dumps(told), json.dumps(translatable(sentences))):
        assert not any(word in said for word in ("some-folder", "127.0.0.1", "s3cret", str(tmp_path)))
    assert not ok and sentences == ["no connection to Redis: entries are not shared"]
    assert {trouble["text"] for trouble in told["troubles"]} <= {text["text"] for text in told["texts"]}


def test_trying_a_redis_that_is_not_set():
    store = Store([MemoryTier(1000)])
    assert status.check_connections(store) == (False, ["no Redis address is set"])
    store.close()


def test_what_is_not_cached_is_named_with_what_it_is_translated_by():
    store = Store([MemoryTier(10, reserve=0)])
    store.put(key("vae", "a"), {1, 2}, 1.0)
    store.put(key("vae", "b"), 1, 1.0)
    told = json.loads(json.dumps(overview(store)))
    store.close()
    assert set(told["not_kept"]) == {"vae: something of class set", "memory: larger than its budget"}
    texts = {text["text"]: text for text in told["texts"]}
    assert set(texts) == set(told["not_kept"])
    reason = texts["vae: something of class set"]["values"]["reason"]
    assert (reason["key"], reason["values"]) == ("uncached_class", {"name": "set"})
