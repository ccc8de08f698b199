"""The measured time of a skipped evaluation relative to a computed one, with the parts outside of the blocks and the prediction."""

from __future__ import annotations

import time
from statistics import median

LEAST = 3  # minimum samples before a median is reported


class StepTimer:
    """Times from each decision to the next one. A time counts if the host had waited for the device at both ends: only then does the
    host's clock measure the device. On the CPU that is always the case."""

    def __init__(self) -> None:
        self.seconds: dict[bool, list[float]] = {True: [], False: []}
        self.began = 0.0
        self.computed: bool | None = None  # the current evaluation's decision, if its start was synchronised

    def decided(self, computed: bool, waited: bool) -> None:
        """An evaluation was decided. waited: the device had no work left then."""
        now = time.perf_counter()
        if waited and self.computed is not None:
            self.seconds[self.computed].append(now - self.began)
        self.began, self.computed = now, computed if waited else None

    @property
    def share(self) -> float | None:
        """A skipped evaluation's time over a computed one's, at most 1; None with fewer than LEAST samples of either."""
        if min(map(len, self.seconds.values())) < LEAST:
            return None
        full, skipped = median(self.seconds[True]), median(self.seconds[False])
        return min(skipped / full, 1.0) if full > 0 else None
