"""What the machine's owner decides of a memo, and the store that comes of it."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field

from .store import Store
from .tiers.base import NAMESPACE, Tier
from .tiers.disk import DAY, GB, DiskTier
from .tiers.memory import MemoryTier
from .tiers.redis import RedisTier
from .tiers.s3 import S3Tier


@dataclass(frozen=True)
class Settings:
    """From ComfyUI's settings or the environment, never from a workflow. Raises ValueError with what is wrong, and no password.

    memory: GB at most; None for a tenth of the machine's; 0 for none. folder: where entries lie on disk; "" for none. disk: GB at most.
    disk_days, redis_days: without use, after which an entry goes. redis: an address such as rediss://:password@host:6379/0; "" for
    none. redis_entry: MB of the largest entry that is shared. s3: s3://bucket or s3://bucket/prefix; "" for none. s3_endpoint, s3_region:
    where the bucket is, if not at Amazon's or not where boto3's configuration says. s3_entry: as redis_entry. namespace: keeps the
    entries of one team on a shared server apart; lower case letters, digits and hyphens. read_only: shared tiers are read and never
    written to. secret: signs the entries of shared tiers; others' entries are misses.
    """

    memory: float | None = None
    folder: str | os.PathLike[str] = ""
    disk: float = 10.0
    disk_days: float = 30.0
    redis: str = field(default="", repr=False)
    redis_days: float = 14.0
    redis_entry: float = 64.0
    s3: str = ""
    s3_endpoint: str = ""
    s3_region: str = ""
    s3_entry: float = 256.0
    namespace: str = ""
    read_only: bool = False
    secret: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        for name in ("memory", "disk", "disk_days", "redis_days", "redis_entry", "s3_entry"):
            number = getattr(self, name)
            if number is None and name == "memory":
                continue
            if (
                isinstance(number, bool)
                or not isinstance(number, int | float)
                or not math.isfinite(number)
                or number < 0
            ):
                raise ValueError(f"{name} is {number!r}: give a number that is not below 0")
        if self.namespace and not NAMESPACE.fullmatch(self.namespace):
            raise ValueError("namespace is not 1 to 32 lower case letters, digits and hyphens")
        self._tiers()  # an address that is none is said now

    def open(self) -> Store:
        """A store with these tiers, its threads started. To be closed with Store.close()."""
        return Store(self._tiers())

    def _tiers(self) -> list[Tier]:
        tiers: list[Tier] = []
        if self.memory is None or self.memory > 0:
            tiers.append(MemoryTier(None if self.memory is None else int(self.memory * GB)))
        if os.fspath(self.folder) and self.disk > 0:
            tiers.append(DiskTier(self.folder, int(self.disk * GB), self.disk_days * DAY))
        if self.redis:
            tiers.append(
                RedisTier(
                    self.redis,
                    self.redis_days * DAY,
                    int(self.redis_entry * (1 << 20)),
                    namespace=self.namespace,
                    read_only=self.read_only,
                    secret=self.secret,
                )
            )
        if self.s3:
            tiers.append(
                S3Tier(
                    self.s3,
                    self.s3_endpoint,
                    self.s3_region,
                    int(self.s3_entry * (1 << 20)),
                    namespace=self.namespace,
                    read_only=self.read_only,
                    secret=self.secret,
                )
            )
        return tiers
