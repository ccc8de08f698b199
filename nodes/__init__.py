"""What people drag. A group that fails to import is left out with one log line and never takes the others with it."""

from __future__ import annotations

import logging
from importlib import import_module

from comfy_api.latest import ComfyExtension, io

GROUPS = ("auto", "meancache", "easycache", "forecast", "firstblock", "teacache", "stepmask", "compile", "look", "memo")
log = logging.getLogger(__name__)


class SkipstoneExtension(ComfyExtension):
    async def on_load(self) -> None:
        try:
            await import_module(".provider", __package__).register()
        except Exception:
            log.exception("[Skipstone] what ComfyUI's own nodes return is not kept over a restart")
        try:
            import_module(".routes", __package__).register()
        except Exception:
            log.exception("[Skipstone] the page's own parts, such as the memo's panel, are left out")
        try:
            await import_module(".replacements", __package__).register()
        except Exception:
            log.exception("[Skipstone] nodes of earlier packs are not replaced")

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        found: list[type[io.ComfyNode]] = []
        for group in GROUPS:
            try:
                found += import_module(f".{group}", __package__).NODES
            except Exception:
                log.exception("[Skipstone] the nodes of %s are left out", group)
        return found
