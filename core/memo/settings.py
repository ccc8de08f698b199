"""The settings of the encode cache, which are the machine owner's, and the store that they describe."""

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
    """From ComfyUI's settings or the environment, never from a workflow. Raises ValueError with the cause, without passwords.

    memory: largest size in GB; None for a tenth of the machine's memory; 0 for no tier in memory. folder: of the entries on disk; "" for
    none. disk: largest size in GB. disk_days, redis_days: days without use after which an entry is removed. redis: an address such as
    rediss://:password@host:6379/0; "" for none. redis_entry, s3_entry: MB of the largest entry in Redis and S3. s3: s3://bucket or
    s3://bucket/prefix; "" for none. s3_endpoint: address of the store; "" for Amazon's. s3_region: of the bucket; "" for the region of
    boto3's configuration. namespace: separates the entries of several teams on a shared server; lower case letters, digits and hyphens.
    read_only: shared tiers are read and never written to. secret: key that signs the entries of shared tiers; entries that are not signed
    with it are misses.
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
        self._tiers()  # raises ValueError for an invalid address

    def open(self) -> Store:
        """A store with these tiers and started threads. The caller closes it."""
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
