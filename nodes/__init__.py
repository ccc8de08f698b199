"""The nodes. A module that fails to import is left out with one log line; the others work without it."""

from __future__ import annotations

import logging
from importlib import import_module

from comfy_api.latest import ComfyExtension, io

GROUPS = (
    *("auto", "stepmask"),
    *("meancache", "easycache", "spectrum", "taylorseer"),
    *("firstblock", "dbcache", "teacache", "magcache", "dicache"),
    *("report_nodes", "presets_table", "memo", "compile"),
)
# modules that register something beside nodes, and what is missing without them
SERVICES = {
    "loaders": "encoders whose settings another node changes in place are not recognized",
    "provider": "outputs of ComfyUI's own encode nodes are not kept across restarts",
    "routes": "the page's own parts, such as the encode cache's panel, are missing",
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
                log.exception("[Skipstone] the nodes of nodes/%s.py are left out", group)
        return found
