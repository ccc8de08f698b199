"""Errors of single values and entries. Neither reaches the user's graph: each is a miss."""

from __future__ import annotations


class NotCacheable(ValueError):
    """The value cannot be cached, or no key can be made for it. The message is a Text, a short phrase for the statistics:
    `a ControlNet in the value`."""


class CorruptEntry(ValueError):
    """The bytes are not the entry of this key: damaged, foreign, hostile or of another format."""
