"""What the machine's owner may set, and what comes of it."""

import math

import pytest

from skipstone.core.memo.keys import key
from skipstone.core.memo.settings import Settings

A = key("vae", "a")


def names(settings):
    store = settings.open()
    told = list(store.usage(1))
    store.close(1)
    return told


def test_memory_alone_unless_a_folder_is_given(tmp_path):
    assert names(Settings()) == ["memory"]
    assert names(Settings(folder=tmp_path)) == ["memory", "disk"]
    assert names(Settings(folder=tmp_path, memory=0)) == ["disk"]
    assert names(Settings(folder=tmp_path, disk=0)) == ["memory"]
    assert names(Settings(folder=str(tmp_path), redis="redis://127.0.0.1:1")) == ["memory", "disk", "redis"]
    everything = Settings(folder=tmp_path, redis="redis://127.0.0.1:1", s3="s3://bucket/prefix")
    assert names(everything) == ["memory", "disk", "redis", "s3"]
    assert names(Settings(memory=0)) == []


def test_a_restart(tmp_path):
    first = Settings(folder=tmp_path / "memo").open()
    first.compute(A, lambda: [1, "b"])
    first.close()
    second = Settings(folder=tmp_path / "memo").open()
    assert second.ready()
    assert second.get(A) == [1, "b"]
    assert second.report()["tiers"]["disk"]["hits"] == 1
    second.close()


@pytest.mark.parametrize("name", ["memory", "disk", "disk_days", "redis_days", "redis_entry", "s3_entry"])
@pytest.mark.parametrize("bad", [-1, math.nan, math.inf, "10", True])
def test_bad_numbers_are_named(name, bad):
    with pytest.raises(ValueError, match=f"{name} is "):
        Settings(**{name: bad})


@pytest.mark.parametrize("name", ["Red", "a b", "red:blue", "../x", "x" * 33])
def test_a_namespace_that_is_none_is_refused(name):
    with pytest.raises(ValueError, match="lower case letters, digits and hyphens"):
        Settings(namespace=name)


def test_passwords_are_not_repeated():
    assert "s3cret" not in repr(Settings(redis="redis://:s3cret@127.0.0.1:1"))
    with pytest.raises(ValueError, match="address of Redis") as raised:
        Settings(redis="http://:s3cret@127.0.0.1")
    assert "s3cret" not in str(raised.value)
