"""What a user can do wrong with a MODEL."""

from __future__ import annotations


class StepCacheError(ValueError):
    """A step cache cannot be put on this MODEL; the message says why and what to do."""
