"""Virtual time: the host queues work, the device does it later."""

from __future__ import annotations

from collections import deque

QUEUE = 1024  # launches that CUDA queues before the host has to wait for the oldest


class VirtualClock:
    """Seconds that no real time passes for. launch: what the host takes to queue one operation."""

    def __init__(self, launch: float) -> None:
        self.launch = launch
        self.host = 0.0
        self.device = 0.0  # when the device will have done all that is queued
        self.queued: deque[float] = deque()  # when each queued operation will be done

    def now(self) -> float:
        """The host's time; stands in for time.perf_counter."""
        return self.host

    def queue(self, seconds: float) -> float:
        """The host queues an operation that takes the device so long. Returns when it will be done."""
        self.host += self.launch
        while self.queued and self.queued[0] <= self.host:
            self.queued.popleft()
        if len(self.queued) >= QUEUE:
            self.host = max(self.host, self.queued.popleft())
        self.device = max(self.device, self.host) + seconds
        self.queued.append(self.device)
        return self.device

    def wait(self, until: float | None = None) -> None:
        """The host waits until the device has come to `until`, or has done all."""
        self.host = max(self.host, self.device if until is None else until)
