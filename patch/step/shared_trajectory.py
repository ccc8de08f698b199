"""Joint counts of the runs of one prompt that share a trajectory, such as two samplers of ten steps with a model each."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...core.step.clock import SAME_STEP, Grid
from ...core.step.report import messages
from ...core.step.report.report import Report
from ..comfy_server import prompt_id

MOST = 64  # runs that wait for the next one; a prompt with lists has several


@dataclass(frozen=True)
class _Part:
    """A run that ended above zero. sigma: its last. computed, evaluations: of it and the runs before it."""

    sigma: float
    computed: int
    evaluations: int


_prompt = ""
_open: list[_Part] = []


def join(grid: Grid, report: Report) -> None:
    """A run of the executing prompt finished: add to its report the joint counts of it and of the runs that it continues."""
    global _prompt
    prompt = prompt_id()
    if not prompt:
        return
    if prompt != _prompt:
        _prompt = prompt
        _open.clear()
    computed, evaluations = report.computed, len(report.evaluations)
    if not grid.begins:
        before = next((p for p in _open if math.isclose(p.sigma, grid.sigmas[0], rel_tol=SAME_STEP)), None)
        if before is not None:
            _open.remove(before)
            computed, evaluations = computed + before.computed, evaluations + before.evaluations
            report.together = computed, evaluations
            report.note(messages.together(computed, evaluations), warning=False)
    if not grid.ends and len(_open) < MOST:
        _open.append(_Part(grid.sigmas[-1], computed, evaluations))
