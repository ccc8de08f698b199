"""What CONTRIBUTING.md shows works as it stands there."""

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
POLICY, METHOD, FAMILY, TIER = BLOCKS


def test_the_policy_decides_in_a_run():
    names: dict[str, Any] = {}
    exec(POLICY + METHOD, names)  # noqa: S102
    run, found = names["run"], []
    for sigma in run.clock.grid.sigmas[:-1]:
        run.tick(sigma)
        found.append(run.decide(["slot"]))
        if found[-1].compute:
            import torch

            run.observe("slot", torch.ones(4), torch.zeros(4))
    computed = [i for i, d in enumerate(found) if d.compute]
    assert computed == [0, 1, 2, 4, 6, 8, 9]
    assert {d.reason for d in found} == {"warmup", "interval", "last step"}
    with pytest.raises(ValueError, match="start_percent"):
        names["Alternating"](2)


def test_the_tier_keeps_values():
    names: dict[str, Any] = {}
    exec(TIER, names)  # noqa: S102
    store, name = names["store"], names["key"]("vae", "the weights' digest", "the picture's")
    assert store.compute(name, lambda: pytest.fail("it is there")) == names["latent"] == [1.0, 2.0]
    assert store.stats
    tier = store._near[0]
    assert tier.usage()["vae"].entries == 1
    assert tier.clear("text").entries == 0
    assert tier.clear().entries == 1
    assert store.get(name) is None


def test_the_family_is_a_record():
    pytest.importorskip("comfy.model_patcher", reason="patch/ needs ComfyUI")
    names: dict[str, Any] = {}
    exec(FAMILY, names)  # noqa: S102
    assert names["EXAMPLE"].stacks[1].joins == ("txt", "img")
