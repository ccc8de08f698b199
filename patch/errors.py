"""Errors that users can cause."""

from __future__ import annotations


class StepCacheError(ValueError):
    """A step cache cannot be attached to this MODEL. The message gives the reason and the remedy."""
