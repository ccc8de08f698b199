"""MeanCache against plain sampling with as many evaluations, and against the schedules released with it, on the demo model.

make bench-meancache   (in a real ComfyUI, on the CPU; prints a table and writes bench-output/meancache.json)

Every figure is the mean PSNR of the decoded picture against the full 50-step run of the same prompt and seed, peak 1.0, over
pairs that no cost was measured on (calibration has the seeds below 1000).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from compared import RELEASED
from judge import Bench, Cell
from models import OUTPUT, loaded

BUDGETS = (25, 20, 15, 13, 10)


def methods(model: Any) -> dict[str, Callable[[int], Any]]:
    """The compared methods, name -> patched model, for a budget of evaluations of 50."""
    from skipstone.nodes.meancache import method_of
    from skipstone.nodes.widgets import CUSTOM
    from skipstone.patch.step.attach import attach

    def ours(predictor: str) -> Callable[[int], Any]:
        return lambda b: attach(model, method_of(CUSTOM, budget=b / 50, predictor=predictor))

    return {
        "MeanCache (auto)": ours("auto"),
        "MeanCache (linear)": ours("linear"),
        "MeanCache (average velocity, paper)": ours("average velocity (paper)"),
        "MeanCache (average velocity, released)": ours("average velocity (released)"),
        "MeanCache (reuse)": ours("reuse"),
        "released schedule and JVP": lambda b: attach(
            model, method_of(CUSTOM, schedule=RELEASED[b], predictor="average velocity (released)", warmup=0)
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--sampler", default="euler")
    parser.add_argument("--cfg", type=float, default=3.0)
    parser.add_argument("--only", default="", help="methods whose name holds this")
    parser.add_argument("--budgets", type=int, nargs="*", default=BUDGETS)
    args = parser.parse_args()
    studio = loaded()
    bench = Bench(studio, Cell(args.sampler, args.cfg, 50), args.pairs)
    rows: dict[str, dict[int, float]] = {"plain sampling with B steps": {}}
    print(f"{'PSNR, dB; B of 50 evaluations':42s}" + "".join(f"{b:8d}" for b in args.budgets))
    for b in args.budgets:
        rows["plain sampling with B steps"][b] = bench.score(studio.model, b)
    for name, make in methods(studio.model).items():
        if args.only in name:
            rows[name] = {b: bench.score(make(b)) for b in args.budgets}
    for name, row in rows.items():
        print(f"{name:42s}" + "".join(f"{row[b]:8.2f}" for b in args.budgets))
    OUTPUT.mkdir(exist_ok=True)
    data = {"sampler": args.sampler, "cfg": args.cfg, "steps": 50, "pairs": args.pairs, "psnr_db": rows}
    (OUTPUT / "meancache.json").write_text(json.dumps(data, indent=1), "utf-8")


if __name__ == "__main__":
    main()
