"""The reports of the last runs: what is shown after a run, and again after a page is loaded anew."""

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
    """Where a run was asked for: the workflow's own id, the prompt, and the node that sampled, as far as they are known."""

    workflow: str = ""
    prompt: str = ""
    sampler: str = ""


@dataclass(frozen=True)
class Entry:
    """A run. source: whose it is, told apart from all other patched models; node: that node's id. The report grows as the run goes."""

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
        self._entries: deque[Entry] = deque(maxlen=kept)
        self._lock = threading.Lock()

    def keep(self, entry: Entry) -> None:
        """A run that began, or anew one that is kept already."""
        with self._lock:
            for i, known in enumerate(self._entries):
                if known.number == entry.number:
                    self._entries[i] = entry
                    return
            self._entries.append(entry)

    def of_report(self, report: Report) -> Entry | None:
        with self._lock:
            return next((e for e in self._entries if e.report is report), None)

    def of_source(self, source: str) -> list[Entry]:
        with self._lock:
            return [e for e in self._entries if e.source == source]

    def told(
        self, place: Place, samplers: Collection[str] | None = None, sources: Collection[str] | None = None
    ) -> list[Entry]:
        """What a node that runs at `place` can say of the runs of these sampling nodes, and of these patched models; None: of all.

        Of each sampler its runs in the last prompt that it ran in. That is this prompt, or where ComfyUI had no need to run it again an
        earlier one of the same workflow; a patched model's runs are known as its own in every prompt.
        """

        def wanted(e: Entry) -> bool:
            if samplers is not None and not any(f"{e.place.sampler}.".startswith(f"{s}.") for s in samplers):
                return False  # "7.0.0.2" is what node 7 expanded to
            if sources is not None:
                return e.source in sources
            return e.place.prompt == place.prompt != "" or e.place.workflow == place.workflow != ""

        def group(e: Entry) -> str:
            return e.place.sampler if samplers is not None else ""

        with self._lock:
            found = [e for e in self._entries if wanted(e)]
        last = {group(e): e.place.prompt for e in found}
        return [e for e in found if e.place.prompt == last[group(e)]]

    def of_workflow(self, workflow: str) -> list[Entry]:
        with self._lock:
            return [e for e in self._entries if e.place.workflow == workflow]
