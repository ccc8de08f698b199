"""Values of a parameter that `make test` leaves out, because they show nothing new; `make test-all` and CI have them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def params(every: Iterable[Any], quick: Collection[Any]) -> list[Any]:
    """For pytest.mark.parametrize: all values, those that are not in `quick` marked `thorough`."""
    return [pytest.param(value, marks=[] if value in quick else [pytest.mark.thorough]) for value in every]
