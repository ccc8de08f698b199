"""Costs of the model at hand, measured on seeds that no pair to judge on has, in a user folder that is not ComfyUI's own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from judge import LEARNED, Bench, pairs

RUNS = 4


@contextmanager
def own_user_folder() -> Iterator[Path]:
    """The pack keeps what it learns below ComfyUI's user directory: here, one that is gone afterwards."""
    import folder_paths

    before = folder_paths.get_user_directory()
    with tempfile.TemporaryDirectory(prefix="skipstone-bench-") as name:
        folder_paths.set_user_directory(name)
        try:
            yield Path(name)
        finally:
            folder_paths.set_user_directory(before)


def calibrate(bench: Bench, runs: int = RUNS, method: Any = None) -> None:
    """Record for the bench's model and way of sampling what `method` (MeanCache's, if none is given) learns from full runs, as its
    node does with calibration 'record'."""
    from skipstone.nodes.meancache import method_of
    from skipstone.patch.step.attach import attach

    taught = replace(method, calibration="record") if method else method_of(calibration="record")
    model = attach(bench.studio.model, taught)
    for pair in pairs(runs, LEARNED):
        bench.shot(model, pair)


def kept(folder: Path) -> dict[str, bytes]:
    """The files of the calibration, to verify that judging adds none."""
    return {str(f): f.read_bytes() for f in sorted(folder.rglob("*.json"))}
