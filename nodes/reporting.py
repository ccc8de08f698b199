"""Handing a run's report to whoever watches: the browser, over the server's websocket."""

from __future__ import annotations

from collections.abc import Callable

from ..core.step.report import Report

EVENT = "skipstone.report"


def to_browser(node_id: str | None) -> Callable[[Report], None]:
    """A listener that sends every report as `{"node": id, "report": {...}}`; quiet where no server runs."""

    def send(report: Report) -> None:
        try:
            from server import PromptServer
        except ImportError:
            return
        server = getattr(PromptServer, "instance", None)
        if server is not None:
            server.send_sync(EVENT, {"node": node_id, "report": report.as_dict()})

    return send
