"""ComfyUI's external cache on our memo, where the settings switch it on."""

from __future__ import annotations

import logging

from comfy_api.latest import ComfyAPI

from ..patch.memo.instance import provider_wanted

log = logging.getLogger(__name__)


async def register() -> bool:
    """Once, as the pack is loaded; whether it is wanted."""
    if not provider_wanted():
        return False
    from ..patch.memo.cache_provider import Provider

    await ComfyAPI().caching.register_provider(Provider())
    log.info("[Skipstone] latents and conditionings of ComfyUI's own nodes are kept over a restart")
    return True
