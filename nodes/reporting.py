"""Sends the reports of a node's runs to the browser, and keeps them for later requests."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace
from typing import Any

from ..core.step.report.report import Report
from ..core.step.report.report_log import LoggedRun, ReportLog
from ..patch.comfy_server import place, server

EVENT = "skipstone.report"
PAUSE = 0.2  # seconds between two messages of one run
JOURNAL = ReportLog()


class Reporter:
    """The listener of one patched MODEL. Every message is complete (`LoggedRun.as_dict`), so lost ones do no harm."""

    def __init__(self, node: str | None) -> None:
        self.node = node or ""
        self.source = uuid.uuid4().hex
        self.told = 0.0

    def watch(self, report: Report) -> None:
        """The run goes on."""
        now = time.monotonic()
        entry = JOURNAL.of_report(report)
        if entry is None:
            entry = self._entry(report)
            JOURNAL.keep(entry)
        elif now - self.told < PAUSE:
            return
        self.told = now
        tell(entry.as_dict())

    def __call__(self, report: Report) -> None:
        """The run ended."""
        entry = replace(JOURNAL.of_report(report) or self._entry(report), running=False)
        JOURNAL.keep(entry)
        tell(entry.as_dict())

    def _entry(self, report: Report) -> LoggedRun:
        return LoggedRun(self.source, self.node, place(), report)


def tell(message: dict[str, Any]) -> None:
    """Send a message over the server's websocket to every page; pages recognise their workflow by its id. No-op without a server."""
    there = server()
    if there is not None:
        there.send_sync(EVENT, message)
