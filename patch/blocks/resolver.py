"""Whether and how a method reaches into a model's blocks: its family's record, fitted to the model at hand."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...core.step.method import Blocks, Method
from ...core.step.published.coefficients import Network
from ..errors import StepCacheError
from ..families import Family, LeftOut, family_of
from ..families.tokens import patch_of
from .hook import BlockAdapter
from .transformer import StackSeam, blocks_of
from .unet import UNetSeam

ANY_MODEL = "MeanCache, Skipstone EasyCache, UCache, Spectrum and TaylorSeer work with every model"


@dataclass(frozen=True)
class BlockSupport:
    """family: the model's. seam: how its blocks are seen. total: how many. share: what of them runs on a skip, by their parameters.
    token: latent elements that one stands for; width: elements that it has. blocks: what of them always runs, and what is looked at."""

    family: Family
    seam: BlockAdapter
    blocks: Blocks
    total: int
    share: float
    token: int
    width: int

    @property
    def text(self) -> str:
        return f"Fn {self.blocks.prefix}, Bn {self.blocks.suffix}"

    def residual(self, shape: Sequence[int], text: int) -> int:
        """About how many elements the residual of one conditioning has for a latent of this shape and so many tokens of text; told from
        the record, not seen."""
        tokens = max(math.prod(shape[2:]) // self.token, 1)
        # the last block's text is read by nothing, and the first ones' by those after them
        return shape[0] * (tokens if self.family.unet or not self.blocks.suffix else tokens + text) * self.width


def known(patcher: Any, conds: dict[str, Any]) -> Network:
    """What tells one model from another of its family (see core/step/published/coefficients.py). patcher: a comfy ModelPatcher."""
    config = getattr(getattr(patcher.model, "model_config", None), "unet_config", None) or {}
    entries = [c for several in conds.values() for c in several or ()]
    return {**config, "reference": any(c.get("reference_latents") is not None for c in entries)}


def block_support_of(method: Method, network: Any) -> BlockSupport:
    """How `method`, one of block level, reaches into a diffusion model (torch.nn.Module). Raises StepCacheError where it cannot."""
    assert method.blocks is not None
    family = family_of(network)
    if not isinstance(family, Family):
        why = family.why if isinstance(family, LeftOut) else "its kind is not known to Skipstone"
        raise StepCacheError(
            f"{method.name} works on a model's blocks, and cannot on this one ({type(network).__name__}): {why}. {ANY_MODEL}."
        )
    if why := objection(method, family):
        raise StepCacheError(f"{why}; {ANY_MODEL}.")
    return _unet(method, family, network) if family.unet else _stacks(method, family, network)


def objection(method: Method, family: Family) -> str:
    """Why a method of block level can work on no model of the family; "" where it can."""
    if family.unet and method.blocks is not None and method.blocks.probe == "modulated":
        return (
            f"{method.name} looks at the modulated input of the first block, and a UNet has none. First Block Cache and DBCache "
            "work on its blocks"
        )
    if family.least and method.blocks is not None and method.blocks.probe == "modulated":
        return (
            f"{method.name} looks at the modulated input of the first block and may leave that out, and in this model ({family.name}) it "
            "must always run. First Block Cache and DBCache work on its blocks"
        )
    return ""


def _stacks(method: Method, family: Family, network: Any) -> BlockSupport:
    blocks = [b for stack in family.stacks for b in blocks_of(network, stack)]
    wanted = _fitted(method, family, len(blocks))
    runs = [*blocks[: wanted.prefix], *blocks[len(blocks) - wanted.suffix :]]
    widths = Counter(p.shape[-1] for b in blocks[:1] for p in b.parameters() if p.ndim == 2)
    width = widths.most_common(1)[0][0] if widths else 0
    share = _weight(runs) / max(_weight(blocks), 1)
    return BlockSupport(family, StackSeam(family, wanted), wanted, len(blocks), share, _token(family, network), width)


def _token(family: Family, network: Any) -> int:
    """How many latent elements a token stands for; where the record does not say, most networks do."""
    said: Any = patch_of(family, network) or getattr(network, "patch_size", getattr(network, "patch_spatial", 1))
    return said**2 if isinstance(said, int) else math.prod(said)


def _unet(method: Method, family: Family, network: Any) -> BlockSupport:
    downs, ups = list(network.input_blocks), list(network.output_blocks)
    middle = [network.middle_block] if network.middle_block is not None else []
    blocks = [*downs, *middle, *ups]
    assert method.blocks is not None
    wanted = method.blocks
    if wanted.fit:  # the outermost on both sides, as DeepCache has it
        wanted = replace(wanted, prefix=min(wanted.prefix, 1), suffix=1)
    most = len(downs) - 2
    if wanted.prefix > most or wanted.suffix > wanted.prefix + 1:
        raise StepCacheError(
            f"in a UNet Fn is a number of input blocks and Bn one of output blocks, which need what the input blocks gave: Fn is at most "
            f"{most} in this one and Bn at most Fn + 1, not {wanted.prefix} and {wanted.suffix}."
        )
    seam = UNetSeam(wanted)
    runs = [*downs[: seam.prefix], *ups[len(ups) - seam.suffix :]]
    share = _weight(runs) / max(_weight(blocks), 1)
    return BlockSupport(family, seam, wanted, len(blocks), share, 1, int(network.model_channels))


def _fitted(method: Method, family: Family, total: int) -> Blocks:
    """The method's Fn and Bn, where the model has so many blocks. A preset's are made to fit."""
    wanted = method.blocks
    assert wanted is not None
    least = max(1 if wanted.probe in ("residual", "states") else 0, family.least)
    wanted = replace(wanted, prefix=max(wanted.prefix, family.least))
    if wanted.fit:
        prefix = max(min(wanted.prefix, total // 3), least)
        wanted = replace(wanted, prefix=prefix, suffix=min(wanted.suffix, prefix if family.u_skips else total // 3))
    if wanted.prefix + wanted.suffix >= total:
        raise StepCacheError(
            f"{method.name} would always run Fn + Bn = {wanted.prefix} + {wanted.suffix} blocks, and this model ({family.name}) has "
            f"{total}: nothing would be left to skip. Take smaller numbers, together less than {total}."
        )
    if family.u_skips and wanted.suffix > wanted.prefix:
        raise StepCacheError(
            f"in this model ({family.name}) the last blocks need what the first ones gave, so Bn is at most Fn, and "
            f"{wanted.suffix} is more than {wanted.prefix}. Take a smaller Bn, or a larger Fn."
        )
    return wanted


def _weight(blocks: Sequence[Any]) -> int:
    return sum(p.numel() for b in blocks for p in b.parameters())
