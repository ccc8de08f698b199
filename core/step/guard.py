"""Observations are optional: a failure of one never ends the sampling."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)


def succeeds(consequence: str, observe: Callable[..., object], *args: Any) -> bool:
    """Call `observe(*args)`. Returns False if it raised an Exception, which is logged with its consequence at DEBUG."""
    try:
        observe(*args)
    except Exception:
        log.debug("[Skipstone] %s", consequence, exc_info=True)
        return False
    return True
