"""What can go wrong with a value, and is always at worst a miss."""

from __future__ import annotations


class NotCacheable(ValueError):
    """This cannot be kept, or not be named. The message is a Text, a short phrase for the statistics:
    `a ControlNet in the value`."""


class CorruptEntry(ValueError):
    """These bytes are not the entry that was asked for: damaged, foreign, hostile or of another format."""
