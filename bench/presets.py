"""The presets at 8, 12, 20 and 50 steps: what they compute and how close they stay to the full run of as many steps.

make bench-presets   (in a real ComfyUI, on the CPU, on the demo model; prints a Markdown table)
"""

from __future__ import annotations

import argparse

from judge import Bench, Cell
from models import loaded


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--sampler", default="euler")
    parser.add_argument("--cfg", type=float, default=3.0)
    parser.add_argument("--steps", type=int, nargs="*", default=(50, 20, 12, 8))
    args = parser.parse_args()
    studio = loaded()

    from skipstone.core.step.report.report import Report
    from skipstone.nodes.meancache import PRESETS, method_of
    from skipstone.patch.step.attach import attach

    rows: dict[str, list[str]] = {preset: [] for preset in PRESETS}
    for steps in args.steps:
        bench = Bench(studio, Cell(args.sampler, args.cfg, steps), args.pairs)
        plain: dict[int, float] = {}
        for preset, row in rows.items():
            reports: list[Report] = []
            score = bench.score(attach(studio.model, method_of(preset), (reports.append,)))
            computed, total = reports[0].computed, len(reports[0].evaluations)
            share = max(round(steps * computed / total), 1)
            plain[share] = plain.get(share) or bench.score(studio.model, share)
            row.append(f"{computed}/{total}: {score:.1f} dB (plain {plain[share]:.1f})")
            print(steps, preset, row[-1], flush=True)
    print(f"| {args.sampler}, CFG {args.cfg:g} | " + " | ".join(f"{n} steps" for n in args.steps) + " |")
    print("|---|" + "---|" * len(args.steps))
    for preset, row in rows.items():
        print(f"| {preset} | " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
