"""What stands for code and for files in a key: a pack's folder as a whole, an installed package by its version, all files of a name."""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import math
import os
import sys
import threading
import types
from collections import defaultdict
from typing import Any

import folder_paths
import pytest
import torch

from skipstone.core.memo.errors import NotCacheable
from skipstone.patch.memo import model_files, source_code
from skipstone.patch.memo.describe import code_of, description


@pytest.fixture(autouse=True)
def later(monkeypatch):
    """The files of these tests count as older than the process, and nothing was seen before."""
    monkeypatch.setattr(source_code, "process_start", lambda: math.inf)
    monkeypatch.setattr(model_files, "_first", {})
    caches = source_code.pack_digest, source_code.version_of
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


# code


@pytest.fixture
def packs(tmp_path):
    folder = tmp_path / "custom_nodes"
    for name in ("one/__init__.py", "one/lib/inner.py", "one/other.py", "two/__init__.py", "single.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("a = 1\n")
    return folder


def digests(folder):
    source_code.pack_digest.cache_clear()
    names = ("one/__init__.py", "one/lib/inner.py", "two/__init__.py", "single.py")
    return [source_code.pack_digest(str(folder / name)) for name in names]


def test_a_pack_is_its_whole_folder_whichever_file_is_asked_about(packs):
    one, inner, two, single = digests(packs)
    assert one == inner and len({one, two, single}) == 3
    (packs / "one" / "other.py").write_text("a = 2\n")
    changed, inner, *rest = digests(packs)
    assert changed == inner != one and rest == [two, single]
    (packs / "single.py").write_text("a = 2\n")
    assert digests(packs)[:3] == [changed, changed, two]
    assert digests(packs)[3] != single


def test_code_without_a_file_or_of_too_many_has_no_digest(packs, monkeypatch):
    with pytest.raises(NotCacheable):
        source_code.pack_digest(str(packs / "gone.py"))
    monkeypatch.setattr(source_code, "LIMIT", 2)
    with pytest.raises(NotCacheable):
        source_code.pack_digest(str(packs / "one" / "other.py"))


def test_a_module_is_known_by_its_packages_version_or_by_its_source(packs, monkeypatch):
    assert source_code.source_of("torch.nn") == torch.__version__
    assert source_code.source_of("json") == sys.version
    assert source_code.version_of("typing_extensions") == importlib.metadata.version("typing_extensions")
    module = types.ModuleType("made_up")
    monkeypatch.setitem(sys.modules, "made_up", module)
    for of in (source_code.source_of, source_code.version_of):
        with pytest.raises(NotCacheable):
            of("made_up")
    module.__file__ = str(packs / "two" / "__init__.py")
    assert source_code.source_of("made_up") == source_code.version_of("made_up") == digests(packs)[2]


def adder(number):
    return functools.lru_cache(lambda x: x + number)


def dictionary(factory):
    made: Any = defaultdict(factory)
    made["a"] = 1
    return made


def kind(number):
    """A class with a property that is computed once."""
    return type("Kind", (), {"it": functools.cached_property(lambda self: number)})


@pytest.mark.parametrize(
    "make",
    [
        adder,
        kind,
        lambda n: dictionary((list, dict)[n]),
        lambda n: logging.getLogger(f"skipstone.test.{n}"),
        lambda n: (lambda x: x in {"a", "b"}) if n else (lambda x: x in {"a", "c"}),
    ],
    ids=["lru_cache", "cached_property", "defaultdict", "logger", "set in code"],
)
def test_values_that_compute_another_thing_are_described_differently(make):
    assert description(make(0)) == description(make(0)) != description(make(1))


def test_locks_are_alike_and_a_variable_that_is_not_set_yet_is_described():
    assert description(threading.Lock()) == description(threading.Lock())

    def outer(late):
        def inner():
            return value

        if not late:
            value = 1
        return inner

    assert description(outer(True)) == description(outer(True)) != description(outer(False))
    assert code_of(functools.cached_property(outer)) is outer.__code__


# files


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """ComfyUI's folders of VAEs and of their approximations, this test's own."""
    for name in ("vae", "vae_approx", "embeddings"):
        (tmp_path / name).mkdir()
        known = ([str(tmp_path / name)], {".pt", ".safetensors"})
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, known)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path


def names_of(files):
    return [os.path.basename(stamp[0]) for stamp in files.stamps]


def test_all_files_of_a_vaes_name_count(folders):
    for name in ("taesd_encoder.pt", "taesd_decoder.pt", "taesd3_decoder.pt"):
        (folders / "vae_approx" / name).write_bytes(b"weights")
    (folders / "vae" / "below").mkdir()
    (folders / "vae" / "below" / "it.pt").write_bytes(b"weights")
    assert sorted(names_of(model_files.named("vae", "taesd"))) == ["taesd_decoder.pt", "taesd_encoder.pt"]
    assert names_of(model_files.named("vae", "below/it.pt")) == ["it.pt"]
    found = model_files.named("vae", "pixel_space")  # which is computed, and read from no file
    assert found.stamps == [] and found.settled


@pytest.mark.parametrize("name", [None, 3, ["a"], "gone.pt"])
def test_a_name_that_means_no_file_has_no_key(folders, name):
    with pytest.raises(NotCacheable):
        model_files.named("vae", name)


def test_a_folder_on_the_way_that_is_newer_than_the_process_unsettles_a_name(folders, monkeypatch):
    """A file of that name may have been elsewhere when a loader read it."""
    file = folders / "vae" / "below" / "it.pt"
    file.parent.mkdir()
    file.write_bytes(b"weights")
    for path in (file, folders / "vae"):
        os.utime(path, (1e9, 1e9))
    assert model_files.named("vae", "below/it.pt").settled
    monkeypatch.setattr(source_code, "process_start", lambda: file.parent.stat().st_mtime - 60)
    assert not model_files.named("vae", "below/it.pt").settled


def test_a_prompt_that_may_name_very_many_embeddings_has_no_key(folders, monkeypatch):
    for i in range(3):
        (folders / "embeddings" / f"{i}.pt").write_bytes(b"weights")
    assert len(model_files.embeddings("a embedding:1 circle").stamps) == 3
    assert model_files.embeddings("a circle").stamps == []
    monkeypatch.setattr(model_files, "EMBEDDINGS", 2)
    with pytest.raises(NotCacheable):
        model_files.embeddings("a embedding:1 circle")


def test_a_text_that_is_no_name_is_looked_for_nowhere(folders, monkeypatch):
    (folders / "vae" / "it.pt").write_bytes(b"weights")
    assert names_of(model_files.mentioned("it.pt")) == ["it.pt"]
    monkeypatch.setattr(folder_paths, "get_full_path", None)
    assert model_files.mentioned("a prompt\nof two lines").stamps == []
    assert model_files.mentioned("a" * 2000).stamps == []


def test_an_embedding_that_cannot_be_read_has_no_key(folders):
    (folders / "embeddings" / "it.pt").symlink_to(folders / "gone.pt")
    with pytest.raises(NotCacheable):
        model_files.embeddings("embedding:it")
