"""What every test needs: the pack under its own name, `skipstone`, and under no other."""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# `python -m pytest` puts the checkout on the path, where `import nodes` would find ours instead of ComfyUI's.
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != ROOT]

# Inductor's code for the CPU uses no vectors in tests: to find out which a C++ compiler knows takes it 25 s of CPU time.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "0")

# Python looks for garbage after every 700 new objects; that is a tenth of the time where much is compiled or imported.
gc.set_threshold(10_000, 20, 20)

if importlib.util.find_spec("skipstone") is None:
    raise pytest.UsageError("the pack is not on the path: run the tests with `make test`, or `make setup` once")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--thorough",
        action="store_true",
        help="also tests marked `thorough`, and every model of tests/comfy/zoo; without it, those that show every kind of family record",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "thorough: one more combination of what other tests show; run by `make test-all` and CI"
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("thorough"):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("thorough")])
        items[:] = [item for item in items if not item.get_closest_marker("thorough")]


def pytest_collection_finish() -> None:
    """The garbage collector does not look at what importing has made: a collection, of which tests ask for many, costs half a second
    with it."""
    gc.collect()
    gc.freeze()
