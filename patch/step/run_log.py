"""The log lines of a run: one at INFO, and one at WARNING for each fault. In one prompt the same line is written once: upscalers and
tiled samplers run a model many times."""

from __future__ import annotations

import logging

from ...core.step.report.report import Report

log = logging.getLogger(__name__)
_prompt = ""
_written: set[str] = set()


def write(report: Report, prompt: str) -> None:
    """Log a closed report. prompt: id of the prompt that is executed; "" outside of a server, where every run is logged."""
    global _prompt
    if prompt != _prompt or not prompt:
        _prompt = prompt
        _written.clear()
    information = [n for n in (report.chosen, *report.notes) if n and n not in report.warnings]
    # the speed-up differs from run to run
    key = f"{report.method} {report.variant} {report.steps} {report.computed} {report.skipped} {information}"
    _once(logging.INFO, key, ". ".join([report.line(), *information]))
    for warning in report.warnings:
        _once(logging.WARNING, f"{report.method} {warning}", f"{report.method}: {warning}")


def _once(level: int, key: str, line: str) -> None:
    if key not in _written:
        _written.add(key)
        log.log(level, "[Skipstone] %s", line)
