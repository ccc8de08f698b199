"""Times evaluations on the device without host syncs: device events are queued between them and read later."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, median_low
from typing import Any

import torch

log = logging.getLogger(__name__)


@dataclass
class _Host:
    """A time stamp of the host's clock, for devices without a queue."""

    seconds: float

    def done(self) -> bool:
        return True

    def wait(self) -> None: ...

    def until(self, other: _Host) -> float:
        return other.seconds - self.seconds


class _Device:
    """An event in a device's queue."""

    def __init__(self, made: Callable[..., Any]) -> None:
        self.event = made(enable_timing=True)
        self.event.record()

    def done(self) -> bool:
        return bool(self.event.query())

    def wait(self) -> None:
        self.event.synchronize()

    def until(self, other: _Device) -> float:
        return float(self.event.elapsed_time(other.event)) / 1000


class StepTimer:
    """Seconds from each evaluation's start to the next one's, on the device. They include guidance, the sampler's work and previews.

    device: where the model computes; None: the host.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device if device is not None and device.type != "cpu" else None
        self.made: Callable[..., Any] | None = None
        if self.device is not None:
            self.made = getattr(getattr(torch, self.device.type, None), "Event", None)
        # the event at an evaluation's start, and whether it was computed; None where it was not decided
        self.marks: list[tuple[Any, bool | None]] = []
        self.seconds: dict[bool, list[float]] = {True: [], False: []}

    def mark(self) -> None:
        """An evaluation begins, or the last one ended."""
        if self.made is not None:
            try:
                self.marks.append((_Device(self.made), None))
                return
            except Exception:  # the device's events have no timing
                log.debug("[Skipstone] no events on this device", exc_info=True)
                self.made, self.marks = None, []
        self.marks.append((_Host(time.perf_counter()), None))

    def decided(self, computed: bool) -> None:
        """The current evaluation is computed or skipped; a later call replaces an earlier one."""
        if self.marks:
            self.marks[-1] = (self.marks[-1][0], computed)

    def read(self) -> None:
        """Collect the times of the evaluations that the device has finished."""
        try:
            self._read()
        except Exception:
            log.debug("[Skipstone] the device's clock cannot be read", exc_info=True)
            self.made, self.marks = None, []

    def _read(self) -> None:
        while len(self.marks) > 1 and self.marks[1][0].done():
            start, computed = self.marks.pop(0)
            if computed is not None:
                self.seconds[computed].append(max(start.until(self.marks[0][0]), 0.0))

    def close(self) -> None:
        """The run ended: wait for the device once."""
        if self.made is None and self.device is not None:
            # no events: a number that is read comes after all that is queued
            self._attempt(lambda: torch.zeros(1, device=self.device).cpu())
        self.mark()
        self._attempt(self.marks[-1][0].wait)
        self.read()
        self.marks.clear()

    def _attempt(self, wait: Callable[[], object]) -> None:
        try:
            wait()
        except Exception:  # the device is in an error state, which the user is told elsewhere
            log.debug("[Skipstone] the device cannot be waited for", exc_info=True)

    @property
    def computed(self) -> float | None:
        """Seconds of a computed evaluation: the lower median, because the first may compile. None before one was measured."""
        return median_low(self.seconds[True]) if self.seconds[True] else None

    @property
    def share(self) -> float | None:
        """A skipped evaluation's time over a computed one's, at most 1; None before both were measured."""
        if not self.computed or not self.seconds[False]:
            return None
        return min(fmean(self.seconds[False]) / self.computed, 1.0)
