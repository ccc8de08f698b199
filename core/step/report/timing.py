"""How long a skipped evaluation takes, by the clock: what passes outside of the blocks, and what predicting costs, is in it."""

from __future__ import annotations

import time
from statistics import median

LEAST = 3  # laps of each kind: a single one may be anything


class StepTimer:
    """From each evaluation's decision to the next one's. A lap counts where the host had waited for the device at both ends, and so its
    clock tells what the device did; on the CPU that is always so."""

    def __init__(self) -> None:
        self.seconds: dict[bool, list[float]] = {True: [], False: []}
        self.began = 0.0
        self.computed: bool | None = None  # the lap under way, if it began with a wait

    def decided(self, computed: bool, waited: bool) -> None:
        """An evaluation's decision has fallen. waited: the host knew then that the device had nothing left to do."""
        now = time.perf_counter()
        if waited and self.computed is not None:
            self.seconds[self.computed].append(now - self.began)
        self.began, self.computed = now, computed if waited else None

    @property
    def share(self) -> float | None:
        """What of a computed evaluation's time a skipped one takes, at most 1; None where too few of them are known."""
        if min(map(len, self.seconds.values())) < LEAST:
            return None
        full, skipped = median(self.seconds[True]), median(self.seconds[False])
        return min(skipped / full, 1.0) if full > 0 else None
