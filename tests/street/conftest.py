"""The demo's models, as in tests/comfy."""

from __future__ import annotations

from ..comfy.conftest import demo, nobodys_user_directory, small_flux, studio, user  # noqa: F401  fixtures
