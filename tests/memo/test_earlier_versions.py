"""Entries that earlier versions wrote still open. They were written by the code at commit b77e3a2."""

from pathlib import Path

import pytest
import torch

from skipstone.core.memo.codec import decode
from skipstone.core.memo.keys import key
from skipstone.core.memo.tiers.disk import DiskTier

WRITTEN = Path(__file__).parent / "written_by_b77e3a2"
KINDS = ("vae", "text", "image", "loader", "node")


def name(kind):
    return key(kind, "written by the code at b77e3a2")


@pytest.mark.parametrize("kind", KINDS)
def test_entries_on_disk(kind):
    data = DiskTier(WRITTEN / "disk").get(name(kind), lambda: None)
    assert data is not None
    entry = decode(name(kind), data)
    assert (entry.cost, entry.created) == (1.5, 1.7e9)
    check(kind, entry.value)


def check(kind, value):
    generator = torch.Generator().manual_seed(7)
    latent = torch.randn(1, 4, 4, 6, generator=generator)
    cond = torch.randn(1, 7, 8, generator=generator)
    if kind == "vae":
        assert torch.equal(value["value"], latent) and value["places"] == ["output"]
        assert value["value"].is_contiguous(memory_format=torch.channels_last)
    elif kind == "text":
        assert torch.equal(value["value"]["cond"], cond)
        assert value["value"]["names"] == ["a", None] and value["value"]["x"] != value["value"]["x"]
    elif kind == "image":
        assert value["value"].dtype == torch.float16 and value["value"].shape == (1, 4, 4, 3)
    elif kind == "loader":
        assert value["identity"] == "ab" * 20
    else:
        assert value["value"][0][0]["samples"].dtype == torch.bfloat16
        assert value["value"][1][0][0][1] == {"guidance": 3.5, "pooled_output": None}
