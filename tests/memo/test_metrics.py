"""Metrics in Prometheus' text format: every line has its form, and every number is the number of what happened."""

import re

import pytest

from skipstone.core.memo import metrics
from skipstone.core.memo.keys import key
from skipstone.core.memo.store import Store
from skipstone.core.memo.tier_metrics import BUCKETS
from skipstone.core.memo.tiers.disk import DiskTier
from skipstone.core.memo.tiers.memory import MemoryTier
from skipstone.tests.memo.fakes import Fake, boom

A, B = key("vae", "a"), key("text", "b")
SAMPLE = re.compile(r'([a-z_]+)(?:\{((?:[a-z]+="[^"]*",?)+)\})? (-?[0-9.e+-]+)')


def parsed(text):
    """Samples by name and labels; checks the format and that each family stands together, after its type."""
    assert text.endswith("\n")
    found, types, family = {}, {}, ""
    for line in text.splitlines():
        if line.startswith("#"):
            _, word, name, rest = line.split(" ", 3)
            if word == "TYPE":
                assert name not in types, "a family twice"
                types[name], family = rest, name
            continue
        match = SAMPLE.fullmatch(line)
        assert match, line
        name, labels, value = match.groups()
        suffix = name.removeprefix(family)
        assert name.startswith(family) and suffix in (
            ("_bucket", "_sum", "_count") if types[family] == "histogram" else ("",)
        )
        labels = tuple(sorted(re.findall(r'([a-z]+)="([^"]*)"', labels or "")))
        assert (name, labels) not in found, "a sample twice"
        found[name.removeprefix("skipstone_memo_"), labels] = float(value)
    return found


@pytest.fixture
def store(tmp_path):
    made = Store([MemoryTier(1 << 20, reserve=0), DiskTier(tmp_path / "secret-folder", 1 << 30, spare=0), Fake()])
    assert made.ready(10)
    yield made
    made.close()


def value(found, name, **labels):
    return found[name, tuple(sorted(labels.items()))]


def test_what_happened_is_what_is_counted(store):
    for name in (A, A, A, B):
        store.compute(name, lambda: "x" * 100)
    assert store.flush()
    text = metrics.text(store)
    assert "secret-folder" not in text
    found = parsed(text)
    assert value(found, "lookups_total", tier="memory", kind="vae", result="hit") == 2
    assert value(found, "lookups_total", tier="disk", kind="vae", result="miss") == 1
    assert value(found, "values_total", kind="vae", result="reused") == 2
    assert value(found, "values_total", kind="text", result="computed") == 1
    size = len(store.tiers["memory"].get(A))
    assert value(found, "read_bytes_total", tier="memory") == 2 * size
    assert value(found, "written_bytes_total", tier="disk") > 2 * size - 20
    assert value(found, "write_seconds_count", tier="disk") == 2
    assert value(found, "entries", tier="memory", kind="vae") == 1
    assert value(found, "budget_bytes", tier="memory") == 1 << 20
    assert all(value(found, "up", tier=tier) == 1 for tier in ("memory", "disk", "fake"))
    for tier in ("memory", "disk", "fake"):
        bounds = [*map(str, BUCKETS), "+Inf"]
        counts = [value(found, "read_seconds_bucket", tier=tier, le=le) for le in bounds]
        assert counts == sorted(counts) and counts[-1] == value(found, "read_seconds_count", tier=tier) > 0


def test_a_tier_that_fails_is_down_and_its_failures_count(store):
    fake = store.tiers["fake"]
    fake.on = {"get": boom, "put": boom, "probe": boom}
    assert store.compute(A, lambda: 7) == 7
    assert store.flush()
    found = parsed(metrics.text(store))
    assert value(found, "up", tier="fake") == 0 and value(found, "up", tier="disk") == 1
    assert value(found, "failures_total", tier="fake", operation="read") == 1
    assert value(found, "failures_total", tier="fake", operation="write") == 1
    assert value(found, "failures_total", tier="disk", operation="write") == 0
    assert value(found, "not_kept_total") == 1


def test_labels_are_escaped():
    assert metrics._labels({"kind": 'a"b\\c\nd'}) == r'{kind="a\"b\\c\nd"}'
