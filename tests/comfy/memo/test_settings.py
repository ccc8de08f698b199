"""Where the memo may keep things is the machine's owner's to say: in the environment or in ComfyUI's settings, never in a graph."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import comfy.cli_args
import folder_paths
import pytest

from skipstone.core.memo.keys import key
from skipstone.core.memo.store import Store
from skipstone.core.memo.tiers.disk import DiskTier
from skipstone.nodes import memo as memo_nodes
from skipstone.patch.memo import instance as process


@pytest.fixture
def owner(monkeypatch, tmp_path):
    """Applies settings and opens a memo with them: `owner({...}, MEMO_DISK="1")`."""
    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
    for name in list(os.environ):
        if name.startswith("SKIPSTONE_"):
            monkeypatch.delenv(name)

    def says(settings=None, **environment):
        process.reset()
        for name, value in environment.items():
            monkeypatch.setenv(f"SKIPSTONE_{name}", value)
        if settings is not None:
            (tmp_path / "default").mkdir(exist_ok=True)
            text = settings if isinstance(settings, str) else json.dumps(settings)
            (tmp_path / "default" / "comfy.settings.json").write_text(text)
        return process.opened()

    yield says
    process.reset()
    process.set_store(None)


def write(settings):
    """As the page does when somebody changes a setting."""
    folder = Path(folder_paths.get_user_directory(), "default")
    (folder / "comfy.settings.json").write_text(json.dumps(settings))


def tiers(store):
    return {tier.name: tier for tier in (*store._near, *(worker.tier for worker in store._workers))}


def test_as_it_comes(owner, tmp_path):
    store = owner()
    held = tiers(store)
    assert list(held) == ["memory", "disk"]
    assert held["disk"].folder == tmp_path / "skipstone" / "memo"
    assert (held["disk"].limit, held["disk"].age) == (10 << 30, 30 * 86400)
    assert store is process.opened()


def test_the_settings_file(owner, tmp_path):
    said = {
        "Skipstone.Memo.Memory": 0.5,
        "Skipstone.Memo.Disk": 2,
        "Skipstone.Memo.Days": "7",
        "Skipstone.Memo.Folder": str(tmp_path / "elsewhere"),
        "Skipstone.Memo.Redis": "redis://127.0.0.1:1",
        "Skipstone.Memo.RedisDays": 2,
        "Skipstone.Memo.RedisMB": 8,
    }
    held = tiers(owner(said))
    assert held["memory"].budget == 1 << 29
    assert (held["disk"].limit, held["disk"].age) == (2 << 30, 7 * 86400)
    assert held["disk"].folder == tmp_path / "elsewhere"
    assert (held["redis"].ttl, held["redis"].largest) == (2 * 86400, 8 << 20)


def test_the_environment_comes_first(owner):
    held = tiers(owner({"Skipstone.Memo.Disk": 2, "Skipstone.Memo.Memory": 1}, MEMO_DISK="0"))
    assert list(held) == ["memory"] and held["memory"].budget == 1 << 30


def test_each_tier_can_be_off(owner):
    assert list(tiers(owner({"Skipstone.Memo.Memory": 0}))) == ["disk"]
    assert list(tiers(owner({"Skipstone.Memo.Memory": 0, "Skipstone.Memo.Disk": 0}))) == []
    assert owner({"Skipstone.Memo": False}) is None
    assert owner({}, MEMO="off") is None


def test_settings_of_several_users_are_not_the_owners(owner, tmp_path, monkeypatch):
    monkeypatch.setattr(comfy.cli_args.args, "multi_user", True)
    said = {"Skipstone.Memo.Redis": "redis://elsewhere.example", "Skipstone.Memo.Folder": "/nowhere"}
    held = tiers(owner(said))
    assert list(held) == ["memory", "disk"] and held["disk"].folder == tmp_path / "skipstone" / "memo"


@pytest.mark.parametrize(
    "broken", ["{ no JSON", "[1, 2]", "", "[" * 100_000, '"\ud800"'.encode("utf-8", "replace").decode()]
)
def test_a_settings_file_that_cannot_be_read(owner, broken):
    assert list(tiers(owner(broken))) == ["memory", "disk"]


@pytest.mark.parametrize("value", ["much", -1, "nan", "inf", True, None, [1], {"a": 1}, 1e400])
def test_a_value_that_makes_no_sense_is_said_and_the_default_taken(owner, value, caplog):
    with caplog.at_level(logging.WARNING):
        held = tiers(owner({"Skipstone.Memo.Disk": value}))
    assert held["disk"].limit == 10 << 30
    assert value is None or "Skipstone.Memo.Disk" in caplog.text


def test_an_address_that_is_none_is_not_repeated(owner, caplog):
    with caplog.at_level(logging.WARNING):
        held = tiers(owner(MEMO_REDIS="http://me:secret@there/"))
    assert list(held) == ["memory", "disk"]
    assert "redis://" in caplog.text and "secret" not in caplog.text


def test_a_bucket_comes_from_the_environment_alone(owner, caplog):
    assert "s3" not in tiers(owner({"Skipstone.Memo.S3": "s3://bucket"}))
    where = {"MEMO_S3": "s3://bucket/prefix", "MEMO_S3_ENDPOINT": "http://127.0.0.1:1", "MEMO_S3_MB": "8"}
    held = tiers(owner(**where, MEMO_NAMESPACE="red", MEMO_READ_ONLY="1"))
    assert list(held) == ["memory", "disk", "s3"]
    assert (held["s3"].where, held["s3"].largest, held["s3"]._read_only) == ("s3://bucket", 8 << 20, True)
    with caplog.at_level(logging.WARNING):  # one place that makes no sense leaves the other
        held = tiers(owner(MEMO_S3="s3://me:secret@bucket", MEMO_REDIS="redis://127.0.0.1:1"))
    assert list(held) == ["memory", "disk", "redis"]
    assert "S3 is not used" in caplog.text and "secret" not in caplog.text


def test_a_password_is_taken_from_the_environment_alone(owner, caplog):
    """Every page of the server can read the settings."""
    with caplog.at_level(logging.WARNING):
        held = tiers(owner({"Skipstone.Memo.Redis": "redis://:secret@127.0.0.1:1"}))
    assert "redis" not in held
    assert "SKIPSTONE_MEMO_REDIS" in caplog.text and "secret" not in caplog.text
    assert "redis" in tiers(owner(MEMO_REDIS="redis://:secret@127.0.0.1:1"))


def test_what_is_changed_counts_after_a_restart(owner, caplog):
    owner({"Skipstone.Memo.Disk": 2})
    said = {"environment": [], "several_users": False}
    assert process.settings_status() == {"changed": False, **said}
    store = process.opened()
    for changed in ({"Skipstone.Memo.Disk": 3}, {"Skipstone.Memo": False}, {"Skipstone.Memo.Redis": "redis://there"}):
        write(changed)
        assert process.settings_status() == {"changed": True, **said}
        assert process.opened() is store
    with caplog.at_level(logging.WARNING):
        write({"Skipstone.Memo.Disk": 2, "Skipstone.Memo.RedisDays": 14, "Skipstone.Memo.Memory": "much"})
        assert process.settings_status() == {"changed": False, **said}
    assert caplog.text == ""  # it was asked by a page, over and over


def test_what_the_environment_overrules(owner, monkeypatch):
    owner({"Skipstone.Memo.Disk": 2}, MEMO_DISK="1", PROVIDER="0")
    assert process.settings_status()["environment"] == ["Skipstone.Memo.Disk", "Skipstone.Provider"]
    write({"Skipstone.Memo.Disk": 3})
    assert not process.settings_status()["changed"]
    monkeypatch.setattr(comfy.cli_args.args, "multi_user", True)
    assert process.settings_status()["several_users"]


def test_a_folder_that_cannot_be_made_is_at_worst_a_miss(owner, tmp_path, monkeypatch):
    monkeypatch.setattr(process, "DISK_SECONDS", 0.5)
    (tmp_path / "skipstone").write_text("a file")
    store = owner()
    assert "disk" in tiers(store)
    assert not store.ready(0.1, "disk")


def test_no_widget_says_where(owner):
    """A workflow comes from strangers: nothing in it names a place, an address or a size."""
    widgets = {
        f"{node.GET_SCHEMA().node_id}.{i.id}": i.io_type
        for node in list[Any](memo_nodes.NODES)
        for i in node.GET_SCHEMA().inputs
    }
    assert {name for name, kind in widgets.items() if kind == "STRING"} == {"SkipstoneCachedTextEncode.text"}


ENDS = """
import sys
sys.path[:0] = sys.argv[1:]
import comfy.cli_args
comfy.cli_args.args.cpu = True
import torch
from skipstone.core.memo.keys import key
from skipstone.patch.memo.instance import opened
for i in range(50):
    opened().put(key("vae", i), torch.rand(1 << 16), 1.0)
"""


def test_what_waits_is_written_when_comfyui_ends(tmp_path):
    environment = {**os.environ, "SKIPSTONE_MEMO_FOLDER": str(tmp_path), "SKIPSTONE_MEMO_REDIS": "redis://127.0.0.1:1"}
    command = [sys.executable, "-c", ENDS, *filter(None, sys.path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    store = Store([DiskTier(tmp_path)])
    assert store.ready(10)
    assert all(store.get(key("vae", i)) is not None for i in range(50))
    store.close()


@pytest.mark.parametrize("listen", ["0.0.0.0", "0.0.0.0,::", "192.168.1.2", "127.0.0.1,10.0.0.1", ""])
def test_a_server_that_others_reach_takes_places_from_the_environment_alone(
    owner, tmp_path, monkeypatch, caplog, listen
):
    """Every user who reaches such a server can write its settings."""
    monkeypatch.setattr(comfy.cli_args.args, "listen", listen)
    said = {
        "Skipstone.Memo.Redis": "redis://elsewhere.example",
        "Skipstone.Memo.Folder": "/nowhere",
        "Skipstone.Memo.Disk": 2,
    }
    with caplog.at_level(logging.WARNING):
        held = tiers(owner(said))
    assert list(held) == ["memory", "disk"] and held["disk"].folder == tmp_path / "skipstone" / "memo"
    assert held["disk"].limit == 2 << 30, "sizes are no places"
    assert "SKIPSTONE_MEMO_REDIS" in caplog.text and "SKIPSTONE_MEMO_FOLDER" in caplog.text
    held = tiers(owner(said, MEMO_REDIS="redis://127.0.0.1:1", MEMO_FOLDER=str(tmp_path / "own")))
    assert held["disk"].folder == tmp_path / "own" and "redis" in held


@pytest.mark.parametrize("listen", ["127.0.0.1", "::1", "localhost", "127.0.0.1,::1"])
def test_a_server_for_this_machine_alone_takes_places_from_its_settings(owner, tmp_path, monkeypatch, listen):
    monkeypatch.setattr(comfy.cli_args.args, "listen", listen)
    assert tiers(owner({"Skipstone.Memo.Folder": str(tmp_path / "own")}))["disk"].folder == tmp_path / "own"
