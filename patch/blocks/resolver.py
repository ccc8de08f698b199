"""Finds the adapter for a method and a network: the family's record, fitted to the network's number of blocks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...core.step.method import Blocks, Method
from ...core.step.published.coefficients import Network
from ..errors import StepCacheError
from ..families import Family, LeftOut, family_of
from ..families.tokens import patch_of
from .base import BlockSupport
from .generic import GenericAdapter, family_from
from .transformer import TransformerAdapter, blocks_of
from .unet import UNetAdapter

UNKNOWN = "its class is not known to Skipstone, and it has no list of equal blocks that makes up most of it"
ANY_MODEL = "MeanCache, Skipstone EasyCache, UCache, Spectrum and TaylorSeer work with every model"


def known(patcher: Any, conds: dict[str, Any]) -> Network:
    """Facts about a model, see core/step/published/coefficients.py.

    patcher: a comfy ModelPatcher. conds: a guider's conditionings, by name.
    """
    config = getattr(getattr(patcher.model, "model_config", None), "unet_config", None) or {}
    entries = [c for several in conds.values() for c in several or ()]
    return {**config, "reference": any(c.get("reference_latents") is not None for c in entries)}


def block_support_of(method: Method, network: Any) -> BlockSupport:
    """The access of a block-level method to a diffusion model (torch.nn.Module). Raises StepCacheError where it has none."""
    assert method.blocks is not None
    family = family_of(network)
    if family is None and (found := family_from(network)) is not None:
        return _generic(method, found, network)
    if not isinstance(family, Family):
        why = family.why if isinstance(family, LeftOut) else UNKNOWN
        raise StepCacheError(
            f"{method.name} works on a model's blocks and does not support this model ({type(network).__name__}): {why}. {ANY_MODEL}."
        )
    if why := unsupported_reason(method, family):
        raise StepCacheError(f"{why}; {ANY_MODEL}.")
    return _unet(method, family, network) if family.unet else _stacks(method, family, network)


def unsupported_reason(method: Method, family: Family) -> str:
    """Why a block-level method works on no model of the family; "" where it does."""
    if family.unet and method.blocks is not None and method.blocks.probe == "modulated":
        return (
            f"{method.name} reads the modulated input of the first block, and a UNet has none. First Block Cache and DBCache "
            "support it"
        )
    if family.min_prefix and method.blocks is not None and method.blocks.probe == "modulated":
        return (
            f"{method.name} may skip the first block, and in this model ({family.name}) that must always run. First Block Cache and "
            "DBCache support it"
        )
    return ""


def _stacks(method: Method, family: Family, network: Any) -> BlockSupport:
    blocks = [b for stack in family.stacks for b in blocks_of(network, stack)]
    wanted = _fitted(method, family, len(blocks))
    runs = [*blocks[: wanted.prefix], *blocks[len(blocks) - wanted.suffix :]]
    widths = Counter(p.shape[-1] for b in blocks[:1] for p in b.parameters() if p.ndim == 2)
    width = widths.most_common(1)[0][0] if widths else 0
    share = _parameters(runs) / max(_parameters(blocks), 1)
    return BlockSupport(
        family, TransformerAdapter(family, wanted), wanted, len(blocks), share, _token(family, network), width
    )


def _generic(method: Method, family: Family, network: Any) -> BlockSupport:
    support = _stacks(method, family, network)
    skipped = (1 - support.share) * _parameters(blocks_of(network, family.stacks[0]))
    adapter = GenericAdapter(family, support.blocks)
    return replace(support, adapter=adapter, share=1 - skipped / max(_parameters([network]), 1))


def _token(family: Family, network: Any) -> int:
    """Latent elements per token: of the record, or of the network's patch size."""
    patch: Any = patch_of(family, network) or getattr(network, "patch_size", getattr(network, "patch_spatial", 1))
    return patch**2 if isinstance(patch, int) else math.prod(patch)


def _unet(method: Method, family: Family, network: Any) -> BlockSupport:
    downs, ups = list(network.input_blocks), list(network.output_blocks)
    middle = [network.middle_block] if network.middle_block is not None else []
    blocks = [*downs, *middle, *ups]
    assert method.blocks is not None
    wanted = method.blocks
    if wanted.fit:  # the outermost on both sides, as in DeepCache
        wanted = replace(wanted, prefix=min(wanted.prefix, 1), suffix=1)
    most = len(downs) - 2
    if wanted.prefix > most or wanted.suffix > wanted.prefix + 1:
        raise StepCacheError(
            f"In a UNet Fn counts input blocks and Bn output blocks, which read the outputs of the input blocks: Fn is at most {most} in "
            f"this model and Bn at most Fn + 1, not {wanted.prefix} and {wanted.suffix}."
        )
    adapter = UNetAdapter(wanted)
    runs = [*downs[: adapter.prefix], *ups[len(ups) - adapter.suffix :]]
    share = _parameters(runs) / max(_parameters(blocks), 1)
    return BlockSupport(family, adapter, wanted, len(blocks), share, 1, int(network.model_channels))


def _fitted(method: Method, family: Family, total: int) -> Blocks:
    """The method's Blocks for a model with `total` of them; a preset's are reduced to fit."""
    wanted = method.blocks
    assert wanted is not None
    minimum = max(1 if wanted.probe in ("residual", "states") else 0, family.min_prefix)
    wanted = replace(wanted, prefix=max(wanted.prefix, family.min_prefix))
    if wanted.fit:
        prefix = max(min(wanted.prefix, total // 3), minimum)
        wanted = replace(wanted, prefix=prefix, suffix=min(wanted.suffix, prefix if family.u_skips else total // 3))
    if wanted.prefix + wanted.suffix >= total:
        raise StepCacheError(
            f"{method.name} would always run Fn + Bn = {wanted.prefix} + {wanted.suffix} blocks, and this model ({family.name}) has "
            f"{total}: no block would be left to skip. Choose numbers that add up to less than {total}."
        )
    if family.u_skips and wanted.suffix > wanted.prefix:
        raise StepCacheError(
            f"In this model ({family.name}) the last blocks read the outputs of the first ones, so Bn is at most Fn, and "
            f"{wanted.suffix} is more than {wanted.prefix}. Choose a smaller Bn or a larger Fn."
        )
    return wanted


def _parameters(blocks: Sequence[Any]) -> int:
    return sum(p.numel() for b in blocks for p in b.parameters())
