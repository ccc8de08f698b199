"""The demo's trained models, as in tests/comfy, and every wiring sampled without a step cache once."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ..comfy.conftest import demo, nobodys_user_directory, small_flux, studio, user  # noqa: F401  fixtures
from .cases import CASES, STEPS, Desk


class Plain:
    """Pictures without a step cache, by wiring and number of steps."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.known: dict[tuple[str, int], Any] = {}

    def latent(self, name: str, steps: int = STEPS) -> Any:
        if (name, steps) not in self.known:
            self.known[name, steps] = CASES[name].sampled(self.desk, lambda model: model, steps)
        return self.known[name, steps]

    def error(self, name: str, latent: Any) -> float:
        """The mean square difference from the picture in full, in dB; lower is better."""
        square = float((latent - self.latent(name)).square().mean())
        return 10 * math.log10(max(square, 1e-12))


@pytest.fixture(scope="session")
def desk(demo: Any) -> Desk:  # noqa: F811
    return Desk(demo)


@pytest.fixture(scope="session")
def plain(desk: Desk) -> Plain:
    return Plain(desk)
