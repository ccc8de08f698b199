"""How long evaluations take on the device, without waiting for it: its own events are queued between them and read later."""

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
    """A mark on the host's clock: all that a device without a queue needs."""

    seconds: float

    def done(self) -> bool:
        return True

    def wait(self) -> None: ...

    def until(self, other: _Host) -> float:
        return other.seconds - self.seconds


class _Device:
    """A mark in a device's queue."""

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
    """From each evaluation's start to the next one's, in seconds of the device that computes: guidance, the sampler's own work and
    previews are in it, whether the evaluation was computed or skipped.

    device: where the model computes; None stands for the host.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.made: Callable[..., Any] | None = None
        if device is not None and device.type != "cpu":
            self.made = getattr(getattr(torch, device.type, None), "Event", None)
        # what begins an evaluation, and whether that was computed; None where it was not decided
        self.marks: list[tuple[Any, bool | None]] = []
        self.seconds: dict[bool, list[float]] = {True: [], False: []}

    def mark(self) -> None:
        """An evaluation begins, or the last one is over."""
        if self.made is not None:
            try:
                self.marks.append((_Device(self.made), None))
                return
            except Exception:  # a device whose events cannot tell the time
                log.debug("[Skipstone] no events on this device", exc_info=True)
                self.made, self.marks = None, []
        self.marks.append((_Host(time.perf_counter()), None))

    def decided(self, computed: bool) -> None:
        """What the evaluation that began last is; the last word counts."""
        if self.marks:
            self.marks[-1] = (self.marks[-1][0], computed)

    def read(self) -> None:
        """Take what the device is done with."""
        while len(self.marks) > 1 and self.marks[1][0].done():
            start, computed = self.marks.pop(0)
            if computed is not None:
                self.seconds[computed].append(max(start.until(self.marks[0][0]), 0.0))

    def close(self) -> None:
        """The run is over: wait for the device, once."""
        self.mark()
        try:
            self.marks[-1][0].wait()
            self.read()
        except Exception:  # a device in an error state; the error is on its way to the user
            log.debug("[Skipstone] the device's clock cannot be read", exc_info=True)
        self.marks.clear()

    @property
    def computed(self) -> float | None:
        """Seconds that a computed evaluation takes: the (lower) median, as the first may compile. None while none is known."""
        return median_low(self.seconds[True]) if self.seconds[True] else None

    @property
    def share(self) -> float | None:
        """What of that a skipped one takes, at most 1; None while none is known."""
        if not self.computed or not self.seconds[False]:
            return None
        return min(fmean(self.seconds[False]) / self.computed, 1.0)
