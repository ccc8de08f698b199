"""The reports of the last runs, for nodes that run later and for pages that are reloaded."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from typing import Any

from .report import Report

KEPT = 256  # runs
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Place:
    """Where a run was executed: ids of the workflow, the prompt and the sampling node; "" where unknown."""

    workflow: str = ""
    prompt: str = ""
    sampler: str = ""


@dataclass(frozen=True)
class LoggedRun:
    """A run.

    source: identifies the patched MODEL. node: id of the node that patched it. report: grows while the run goes on.
    """

    source: str
    node: str
    place: Place
    report: Report
    running: bool = True
    number: int = field(default_factory=_numbers.__next__)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: `{"run", "node", "workflow", "prompt", "sampler", "running", "report"}`."""
        head = {"run": self.number, "node": self.node, **asdict(self.place), "running": self.running}
        return head | {"report": self.report.as_dict()}


class ReportLog:
    """The last runs, oldest first. Safe from several threads."""

    def __init__(self, kept: int = KEPT) -> None:
        self._entries: deque[LoggedRun] = deque(maxlen=kept)
        self._lock = threading.Lock()

    def keep(self, entry: LoggedRun) -> None:
        """Add a run, or replace the one with its number."""
        with self._lock:
            for i, known in enumerate(self._entries):
                if known.number == entry.number:
                    self._entries[i] = entry
                    return
            self._entries.append(entry)

    def of_report(self, report: Report) -> LoggedRun | None:
        with self._lock:
            return next((e for e in self._entries if e.report is report), None)

    def of_source(self, source: str) -> list[LoggedRun]:
        with self._lock:
            return [e for e in self._entries if e.source == source]

    def query(
        self, place: Place, samplers: Collection[str] | None = None, sources: Collection[str] | None = None
    ) -> list[LoggedRun]:
        """Each sampler's runs from its most recent prompt, for a node that runs at `place`.

        That prompt is the current one, or an earlier one of the same workflow where ComfyUI took the sampler's output from its cache.

        samplers: ids of the sampling nodes; None for all. sources: of patched models, whose runs count in any prompt; None for all.
        """

        def wanted(e: LoggedRun) -> bool:
            if samplers is not None and not any(f"{e.place.sampler}.".startswith(f"{s}.") for s in samplers):
                return False  # "7.0.0.2" is a node that node 7 expanded to
            if sources is not None:
                return e.source in sources
            return e.place.prompt == place.prompt != "" or e.place.workflow == place.workflow != ""

        def group(e: LoggedRun) -> str:
            return e.place.sampler if samplers is not None else ""

        with self._lock:
            found = [e for e in self._entries if wanted(e)]
        last = {group(e): e.place.prompt for e in found}
        return [e for e in found if e.place.prompt == last[group(e)]]

    def of_workflow(self, workflow: str) -> list[LoggedRun]:
        with self._lock:
            return [e for e in self._entries if e.place.workflow == workflow]
