"""ComfyUI's external cache on the encode cache, where the settings switch it on."""

from __future__ import annotations

import logging

from comfy_api.latest import ComfyAPI

from ..patch.memo.instance import provider_wanted

log = logging.getLogger(__name__)


async def register() -> bool:
    """Called once, when the pack is loaded. Returns whether the settings want it."""
    if not provider_wanted():
        return False
    from ..patch.memo.cache_provider import Provider

    await ComfyAPI().caching.register_provider(Provider())
    log.info("[Skipstone] latents and conditionings of ComfyUI's own nodes are cached across restarts")
    return True
