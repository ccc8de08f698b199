"""What `make families` prints, and the table of docs/families.md."""

from __future__ import annotations

import functools

import pytest

from skipstone.patch.families import LEFT_OUT, family_of
from skipstone.tests.comfy import zoo
from skipstone.tools import families


@functools.cache
def lines() -> dict[str, list[str]]:
    return {line.split("\t")[0]: line.split("\t") for line in families.lines()}


def test_the_pages_table_is_that_of_the_records():
    page = families.PAGE.read_text("utf-8")
    assert page == families.rewritten(page), "stale: make families ARGS=--readme"


def test_a_page_without_a_place_for_it_is_said():
    with pytest.raises(ValueError, match="<!-- families -->"):
        families.rewritten("# A pack\n")


def test_every_model_class_has_a_line_of_five():
    assert lines().keys() == families.bases().keys()
    assert all(len(line) == 5 for line in lines().values())


def test_tested_is_what_the_zoo_has_and_a_record_knows():
    left_out = {c.rpartition(":")[2] for record in LEFT_OUT for c in record.classes}
    assert left_out
    for base, (_, lists, count, tested, reason) in lines().items():
        here = [t for t in zoo.MODELS if t.base == base]
        assert here or tested == "no", base
        assert not here or tested == "yes" or any(why.why == reason for why in LEFT_OUT), base
        assert (int(count) > 0) == bool(lists) == (tested == "yes") == (not reason), base


def test_methods_are_those_that_their_nodes_would_put_on():
    assert lines()["Flux"][2] == str(len(families.METHODS))
    assert lines()["SDXL"][2] == str(len(families.METHODS) - 1)  # TeaCache has nothing to look at
    assert len({m.name for m in families.METHODS}) == len(families.METHODS)
    assert all(m.level == "blocks" for m in families.METHODS)


def test_published_numbers_are_for_the_family_that_they_are_told_of():
    """ComfyUI's own name of each kind of model, held against the zoo."""
    seen: dict[tuple[object, object], set[str]] = {}
    for tiny in zoo.MODELS:
        if tiny.base in families.bases():
            network, model_config = zoo.network_class(tiny.build)
            config, record = model_config.unet_config, family_of(object.__new__(network))
            for kind in {(config.get("image_model"), t) for t in (config.get("model_type"), None)}:
                seen.setdefault(kind, set()).update(record.classes if record else ())
    here = {kind: name for kind, name in families.KINDS.items() if kind in seen}
    assert len(here) >= 8
    assert all(name in seen[kind] for kind, name in here.items())
