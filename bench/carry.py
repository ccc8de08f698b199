"""How well costs carry over: MeanCache planned with recordings of other settings, against recordings of the run's own.

make bench-carry ARGS="--pairs 3"      (in a real ComfyUI, on the CPU; prints tables and writes bench-output/carry.json)

Every figure is the mean PSNR (dB) of the decoded picture against the full run of the same prompt and seed, over pairs that no cost was
measured on. "own": four full runs of the very settings. A column of another setting: four full runs with that setting alone. "built-in":
no recordings. "1, 2, 4, 8 runs": as many runs with the settings, as Step Cache (Auto) makes them, and no full one. The built-in costs are
those of the other models, as for a user's model; the UNet, which alone predicts noise, has its own.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import Any, Literal

from calibrated import calibrate, own_user_folder
from judge import LEARNED, Bench, Cell, pairs
from models import NAMES, OUTPUT, loaded

TARGETS = {
    Cell("euler", 1.0, 20): (13, 11, 8),
    Cell("euler", 3.0, 20): (13, 11, 8),
    Cell("res_multistep", 1.0, 20): (13, 11, 8),
    Cell("euler", 3.0, 50): (25, 15),
}
SOURCES = (
    Cell("euler", 3.0, 50),
    Cell("euler", 1.0, 20),
    Cell("euler", 3.0, 20),
    Cell("euler", 6.0, 28),
    Cell("dpmpp_2m", 3.0, 28),
    Cell("res_multistep", 1.0, 20),
)
TAUGHT = (1, 2, 4, 8)


def planned(calibration: Literal["auto", "known"], budget: float) -> Any:
    from skipstone.nodes.meancache import method_of
    from skipstone.nodes.widgets import CUSTOM

    return replace(method_of(CUSTOM, budget=budget, calibration="auto"), calibration=calibration)


def scores(bench: Bench, budgets: tuple[int, ...]) -> list[float]:
    """The mean PSNR for each budget, with what the user folder holds."""
    from skipstone.patch.step.attach import attach

    steps = bench.cell.steps
    return [bench.score(attach(bench.studio.model, planned("known", (b + 0.01) / steps))) for b in budgets]


def taught(bench: Bench, budgets: tuple[int, ...], runs: int) -> list[float]:
    """The same after so many runs that skip, each budget for itself."""
    from skipstone.patch.step.attach import attach

    found = []
    for b in budgets:
        with own_user_folder():
            model = attach(bench.studio.model, planned("auto", (b + 0.01) / bench.cell.steps))
            for pair in pairs(runs, LEARNED):
                bench.shot(model, pair)
            found += scores(bench, (b,))
    return found


def leave_out(name: str) -> None:
    """Take the model's own recordings out of the built-in costs, unless there are no others."""
    from skipstone.core.step.calibration import costs

    every = costs._shipped()
    others = tuple((flow, gram) for flow, gram in every if f"({name}," not in gram.recipe)
    if {flow for flow, _ in others} == {flow for flow, _ in every}:
        setattr(costs, "_shipped", lambda: others)  # noqa: B010  the types are right


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--models", nargs="*", default=NAMES)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in args.models:
        studio = loaded(name)
        leave_out(name)
        for cell, budgets in TARGETS.items():
            bench = Bench(studio, cell, args.pairs)
            row: dict[str, list[float]] = {}
            for source in (cell, *(s for s in SOURCES if s != cell)):
                with own_user_folder():
                    calibrate(Bench(studio, source, 0))
                    row["own" if source == cell else source.text] = scores(bench, budgets)
            with own_user_folder():
                row["built-in"] = scores(bench, budgets)
            for runs in TAUGHT:
                row[f"{runs} runs"] = taught(bench, budgets, runs)
            row["plain sampling"] = [bench.score(studio.model, b) for b in budgets]
            print(f"\n{name}, {cell.text}: {', '.join(map(str, budgets))} computed", flush=True)
            for source_name, found in row.items():
                losses = [f - own for f, own in zip(found, row["own"], strict=True)]
                print(
                    f"  {source_name:32s}" + "".join(f"{f:7.1f} ({d:+.1f})" for f, d in zip(found, losses, strict=True))
                )
            rows.append({"model": name, "cell": cell.text, "computed": budgets, "psnr_db": row})
    others = [
        found - own
        for row in rows
        for source, several in row["psnr_db"].items()
        if source not in ("own", "built-in", "plain sampling") and "runs" not in source
        for found, own in zip(several, row["psnr_db"]["own"], strict=True)
    ]
    print(
        f"\nfrom other settings: {sum(others) / len(others):+.2f} dB on average, {min(others):+.2f} at worst, {len(others)} pairs"
    )
    OUTPUT.mkdir(exist_ok=True)
    (OUTPUT / "carry.json").write_text(json.dumps({"pairs": args.pairs, "rows": rows}, indent=1), "utf-8")


if __name__ == "__main__":
    main()
