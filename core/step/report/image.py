"""A run's report as an image and as text: one cell a step with its reason, and the indicator against its threshold."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from PIL import Image

from ...images.drawing import (
    BLUE,
    BROWN,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PALE,
    PALE_BLUE,
    PALE_ORANGE,
    PAPER,
    RED,
    Sheet,
    width_of,
    wrapped,
)
from ..reasons import Reason
from .report import Evaluation, Report

WIDTH, MARGIN = 1200, 40
INNER = WIDTH - 2 * MARGIN
ROW = 60  # steps in one row of cells
CELL, CHART, NUMBERS = 34, 110, 22  # heights: of a step with one evaluation, of the chart over it, of the numbers below


def text_of(report: Report) -> str:
    """The report as lines of text."""
    lines = [report.line()]
    if not report.finished:
        lines[0] += f" (stopped after {_done(report)} of {report.steps} steps)"
    if report.chosen:
        lines.append(report.chosen)
    if report.outlook:
        lines.append(report.outlook)
    if report.skipped and report.seconds:
        lines.append(f"{report.seconds:.1f} s, about {report.saved:.1f} s saved")
    for skipped, kind in ((False, "computed"), (True, "skipped")):
        reasons = _reasons(report, not skipped)
        if reasons:
            lines.append(f"{kind}: " + ", ".join(f"{reason} {n}" for reason, n in reasons))
    if report.percentiles:
        spread = ", ".join(f"{v:.3g}" for v in report.percentiles.values())
        against = f"; threshold {report.threshold:.3g}" if report.threshold is not None else ""
        lines.append(f"measured change, percentiles {', '.join(map(str, report.percentiles))}: {spread}{against}")
    if report.error is not None:
        lines.append(f"predicted error: {report.error:.1%} of the total displacement")
    if report.costs:
        lines.append(
            f"{'costs of skipping' if report.error is not None else 'published or measured for'}: {report.costs}"
        )
    return "\n".join([*lines, *report.notes, *_advice(report)])


def drawn(runs: Sequence[tuple[str, Report]], otherwise: str = "") -> Image.Image:
    """The runs' cards, one below the other. runs: (place in a few words, report). otherwise: the message for an empty list."""
    if not runs:
        return _message(otherwise)
    cards = [_Card(where, report) for where, report in runs]
    sheet = Sheet(WIDTH, round(sum(card.height for card in cards)) + MARGIN // 2)
    top = 0.0
    for i, card in enumerate(cards):
        if i:
            sheet.line(MARGIN, top, WIDTH - MARGIN, top)
        card.draw(sheet, top)
        top += card.height
    return sheet.finished()


def _message(words: str) -> Image.Image:
    lines = wrapped(words, 22, INNER)
    sheet = Sheet(WIDTH, 2 * MARGIN + 32 * len(lines))
    for i, line in enumerate(lines):
        sheet.text(MARGIN, MARGIN + 24 + 32 * i, line, 22, GREY)
    return sheet.finished()


class _Card:
    """One run's part of the image."""

    def __init__(self, where: str, report: Report) -> None:
        self.where, self.report = where, report
        self.steps: list[list[Evaluation]] = [[] for _ in range(max(report.steps, 1))]
        for e in report.evaluations:
            self.steps[min(max(e.step, 0), len(self.steps) - 1)].append(e)
        rows = -(-len(self.steps) // ROW)
        self.per_row = -(-len(self.steps) // rows)
        self.pitch = min(INNER / self.per_row, 64.0)
        most = max((len(s) for s in self.steps), default=1)
        self.part = CELL if most <= 1 else max(2.0, min(26.0, 130 / most))  # height of one evaluation in a cell
        self.cell = self.part * max(most, 1)
        self.told = {id(e): held for e in report.evaluations if (held := _held(e)) is not None}
        self.limits = [
            e.threshold for e in report.evaluations if e.threshold is not None and math.isfinite(e.threshold)
        ]
        self.chart = CHART if self.told else 0
        self.top = self._scale()
        self.facts = self._facts()
        self.chosen = wrapped(". ".join(filter(None, (report.chosen, report.outlook))), 17, INNER)
        self.keys = self._keys()
        self.said = [(RED, wrapped(note, 17, INNER - 34)) for note in report.notes]
        self.said += [(RED if report.risk else BLUE, wrapped(line, 17, INNER - 34)) for line in _advice(report)]

    @property
    def height(self) -> float:
        body = len(self.rows()) * (self.chart + self.cell + NUMBERS + 14)
        chart_head = 26 if self.told else 0
        said = sum(24 * len(lines) + 8 for _, lines in self.said)
        return 90 + 24 * (len(self.facts) + len(self.chosen)) + chart_head + body + 28 * len(self.keys) + 10 + said + 14

    def rows(self) -> list[range]:
        return [range(i, min(i + self.per_row, len(self.steps))) for i in range(0, len(self.steps), self.per_row)]

    def draw(self, sheet: Sheet, y: float) -> None:
        y = self._head(sheet, y)
        if self.told:
            self._chart_head(sheet, y + 14)
            y += 26
        for row in self.rows():
            if self.told:
                self._chart(sheet, row, y)
                y += self.chart
            self._cells(sheet, row, y)
            y += self.cell + NUMBERS + 14
        for keys in self.keys:
            self._legend(sheet, keys, y)
            y += 28
        y += 10
        for colour, lines in self.said:
            sheet.box(MARGIN, y - 1, 22, 22, colour, radius=11)
            sheet.text(MARGIN + 11, y + 15, "!" if colour == RED else "i", 16, PAPER, "ms")
            for line in lines:
                sheet.text(MARGIN + 34, y + 16, line, 17)
                y += 24
            y += 8

    def _head(self, sheet: Sheet, y: float) -> float:
        report = self.report
        x = MARGIN + sheet.text(MARGIN, y + 58, report.method, 32)
        if report.variant:
            sheet.text(x + 12, y + 58, report.variant, 32, GREY)
        speed = f"{report.speedup:.1f}x" if report.skipped else "1x"
        sheet.text(WIDTH - MARGIN, y + 62, speed, 42, GREEN if report.skipped else GREY, "rs")
        sheet.text(
            WIDTH - MARGIN, y + 92, "estimated speed-up" if report.skipped else "nothing skipped", 17, GREY, "rs"
        )
        for i, line in enumerate(self.facts):
            sheet.text(MARGIN, y + 92 + 24 * i, line, 17, GREY)
        y += 24 * len(self.facts)
        for i, line in enumerate(self.chosen):
            sheet.text(MARGIN, y + 96 + 24 * i, line, 17)
        return y + 90 + 24 * len(self.chosen)

    def _facts(self) -> list[str]:
        report = self.report
        total = len(report.evaluations)
        counts = f"{report.computed} of {total} computed" if total == report.steps else f"{report.steps} steps"
        facts = [counts]
        if total != report.steps:
            unit = "evaluations" if report.finished else "evaluations so far"
            facts.append(f"{report.computed} of {total} {unit} computed")
        if report.skipped:
            facts.append(f"{report.skipped / total:.0%} skipped")
        if report.seconds:
            saved = f", about {report.saved:.1f} s saved" if report.skipped else ""
            facts.append(f"{report.seconds:.1f} s{saved}")
        if not report.finished:
            facts.append(f"stopped after {_done(report)} of {report.steps} steps")
        lines: list[str] = []
        for fact in [*facts, *([self.where] if self.where else [])]:
            longer = f"{lines[-1]}   \u00b7   {fact}" if lines else fact
            if lines and width_of(longer, 17) <= INNER - 200:  # beside the speed-up
                lines[-1] = longer
            else:
                lines.append(fact)
        return lines

    # the indicator

    def _scale(self) -> float:
        """The value at the top of the chart."""
        most, limit = max(self.told.values(), default=0.0), max(self.limits, default=0.0)
        return max(limit * 1.4, min(most * 1.1, limit * 2.5) if limit > 0 else most * 1.1) or 1.0

    def _chart_head(self, sheet: Sheet, y: float) -> None:
        adds = any(e.indicator is not None and self.told.get(id(e), 0) > e.indicator for e in self.report.evaluations)
        words = "measured change, added up since the last computed step" if adds else "measured change"
        x = MARGIN + sheet.text(MARGIN, y, words, 15, GREY)
        if self.limits:
            low, high = (f"{limit:.3g}" for limit in (min(self.limits), max(self.limits)))
            sheet.line(x + 24, y - 5, x + 54, y - 5, RED, 6)
            sheet.text(x + 62, y, f"threshold {low}" if low == high else f"threshold, from {low} to {high}", 15, RED)

    def _chart(self, sheet: Sheet, row: range, y: float) -> None:
        base, room = y + self.chart - 4, self.chart - 12
        end = MARGIN + len(row) * self.pitch
        steady = len(set(self.limits)) == 1
        for column, step in enumerate(row):
            width = (self.pitch - 3) / max(len(self.steps[step]), 1)
            for i, e in enumerate(self.steps[step]):
                x = MARGIN + column * self.pitch + 1.5 + i * width
                if id(e) in self.told:
                    self._bar(sheet, e, x, base, width, room)
                if e.threshold is not None and e.threshold <= self.top and not steady:
                    height = base - room * e.threshold / self.top
                    sheet.line(x - 1, height, x + width + 1, height, RED, 6)
        sheet.line(MARGIN, base, end, base)
        if steady and self.limits[0] <= self.top:
            height = base - room * self.limits[0] / self.top
            sheet.line(MARGIN, height, end, height, RED, 6)

    def _bar(self, sheet: Sheet, e: Evaluation, x: float, base: float, width: float, room: float) -> None:
        """The compared score; the part of a sum that was there before is paler."""
        total = self.told[id(e)]
        own = min(e.indicator, total) if e.indicator is not None and math.isfinite(e.indicator) else total
        tall, tip = (room * min(value / self.top, 1) for value in (total, own))
        sheet.box(x, base - tall, width - 0.5, tall, PALE_BLUE if e.computed else PALE_ORANGE, radius=1)
        sheet.box(x, base - tall, width - 0.5, min(tip, tall), BLUE if e.computed else ORANGE, radius=1)
        if total > self.top:  # more than the chart can show
            middle = x + width / 2
            corners = [(middle - 4, base - tall + 9), (middle + 4, base - tall + 9), (middle, base - tall + 3)]
            sheet.shape(corners, PAPER)

    # the cells

    def _cells(self, sheet: Sheet, row: range, y: float) -> None:
        every = 1 if self.pitch >= 28 else 5 if self.pitch >= 12 else 10
        for column, step in enumerate(row):
            x = MARGIN + column * self.pitch
            here = self.steps[step]
            width = self.pitch - 3
            if not here:
                sheet.box(x + 1.5, y, width, self.cell, PALE, radius=4)
            part = self.cell / max(len(here), 1)
            for i, e in enumerate(here):
                self._cell(sheet, e, x + 1.5, y + i * part, width, part - (1.5 if len(here) > 1 else 0))
            if every == 1 or (step + 1) % every == 0 or step == 0:
                sheet.text(x + self.pitch / 2, y + self.cell + 17, str(step + 1), 13, GREY, "ms")

    def _cell(self, sheet: Sheet, e: Evaluation, x: float, y: float, width: float, height: float) -> None:
        _swatch(sheet, x, y, width, height, e.computed)
        if height >= 16 and width >= 12:
            letter = e.reason.letter
            sheet.text(x + width / 2, y + height / 2 + 0.5, letter, 14, PAPER if e.computed else BROWN, "mm")

    # the legend

    def _keys(self) -> list[list[tuple[bool, str, str]]]:
        """The legend's lines: (computed, letter, text) in order."""
        keys = [
            (computed, reason.letter, f"{reason} {n}")
            for computed in (True, False)
            for reason, n in _reasons(self.report, computed)
        ]
        lines: list[list[tuple[bool, str, str]]] = []
        for _, group in groupby(keys, key=lambda k: k[0]):
            lines.append([])
            room = INNER - 100.0
            for key in group:
                room -= 56 + width_of(key[2], 16)
                if room < 0 and lines[-1]:
                    lines.append([])
                    room = INNER - 156 - width_of(key[2], 16)
                lines[-1].append(key)
        return lines

    def _legend(self, sheet: Sheet, keys: list[tuple[bool, str, str]], y: float) -> None:
        x = MARGIN + 0.0
        sheet.text(x, y + 17, "computed" if keys[0][0] else "skipped", 16, GREY)
        x += 100
        for computed, letter, words in keys:
            _swatch(sheet, x, y, 22, 22, computed)
            sheet.text(x + 11, y + 11.5, letter, 14, PAPER if computed else BROWN, "mm")
            x += 30 + sheet.text(x + 30, y + 17, words, 16, INK) + 26


def _swatch(sheet: Sheet, x: float, y: float, width: float, height: float, computed: bool) -> None:
    """Dark if computed; pale with a frame if skipped, so that the two differ without colours, too."""
    sheet.box(x, y, width, height, BLUE if computed else PALE_ORANGE, None if computed else ORANGE, 4)


def _reasons(report: Report, computed: bool) -> list[tuple[Reason, int]]:
    return Counter(e.reason for e in report.evaluations if e.computed == computed).most_common()


def _advice(report: Report) -> list[str]:
    """The report's advice, unless the notes contain it."""
    said = bool(report.notes) and report.advice == report.hint
    return [report.advice] if report.advice and not said else []


def _done(report: Report) -> int:
    return len({e.step for e in report.evaluations})


def _held(e: Evaluation) -> float | None:
    """The compared score, or the indicator's value without one."""
    value = e.score if e.score is not None else e.indicator
    return value if value is not None and math.isfinite(value) else None
