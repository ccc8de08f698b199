"""What people drag. A group that fails to import is left out with one log line and never takes the others with it."""

from __future__ import annotations

import logging
from importlib import import_module

from comfy_api.latest import ComfyExtension, io

GROUPS = (
    "auto",
    "meancache",
    "easycache",
    "forecast",
    "firstblock",
    "teacache",
    "stepmask",
    "compile",
    "report_nodes",
    "memo",
)
# what registers itself beside the nodes: what is lost where it cannot
SERVICES = {
    "provider": "what ComfyUI's own nodes return is not kept over a restart",
    "routes": "the page's own parts, such as the memo's panel, are left out",
    "replacements": "nodes of earlier packs are not replaced",
}
log = logging.getLogger(__name__)


class SkipstoneExtension(ComfyExtension):
    async def on_load(self) -> None:
        for module, loss in SERVICES.items():
            try:
                await import_module(f".{module}", __package__).register()
            except Exception:
                log.exception("[Skipstone] %s", loss)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        found: list[type[io.ComfyNode]] = []
        for group in GROUPS:
            try:
                found += import_module(f".{group}", __package__).NODES
            except Exception:
                log.exception("[Skipstone] the nodes of %s are left out", group)
        return found
