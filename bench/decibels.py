"""The relation of a schedule's predicted error to the image's PSNR against the full run, and whether a quality target is kept.

make bench-decibels   (in a real ComfyUI, on the CPU, on three small models; half an hour. Writes bench-output/decibels.json)
make bench-decibels ARGS="--ask 40 50"   asks Step Cache (Auto) for that many, on pairs that nothing was fitted on

The costs come from one full run, as a user's do.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from calibrated import calibrate, own_user_folder
from judge import Bench, Cell, pairs, psnr
from models import NAMES, OUTPUT, Studio, loaded

# the first seeds of the pairs that the relation is fitted on, and of those that are asked for
FITTED, ASKED = 5000, 7000
SHARES = (0.7, 0.5, 0.35, 0.25)
CELLS = (
    Cell("euler", 3.0, 50),
    *(Cell("euler", cfg, 20) for cfg in (1.0, 3.0, 6.0)),
    *(Cell("dpmpp_2m", cfg, 20) for cfg in (3.0, 6.0)),
    Cell("res_multistep", 1.0, 20),
    *(Cell("heun", cfg, 20) for cfg in (3.0, 6.0)),
    Cell("euler_ancestral", 3.0, 20),
    Cell("res_multistep", 1.0, 8),
)
Row = dict[str, Any]


def fitted(bench: Bench, default: bool) -> Iterable[Row]:
    """Predicted and real error of every pair at several budgets. default: also with the costs that are shipped."""
    from skipstone.nodes.meancache import method_of
    from skipstone.nodes.widgets import CUSTOM

    for calibration in ("auto", "default") if default else ("auto",):
        for share in SHARES:
            yield from rows_of(bench, method_of(CUSTOM, budget=share, calibration=calibration), costs=calibration)


def asked(bench: Bench, decibels: Iterable[float]) -> Iterable[Row]:
    """The result of a quality target."""
    from skipstone.nodes.auto import DECIBELS, auto_of

    for wish in decibels:
        yield from rows_of(bench, auto_of(DECIBELS, decibels=wish), asked=wish)


def rows_of(bench: Bench, method: Any, **more: Any) -> Iterable[Row]:
    from skipstone.patch.step.attach import attach

    reports: list[Any] = []
    model = attach(bench.studio.model, method, (reports.append,))
    cell = bench.cell
    for pair, full in zip(bench.pairs, bench.full, strict=True):
        shot, report = bench.shot(model, pair), None
        report = reports[-1]
        off = (shot.latent - full.latent).pow(2).mean().sqrt()
        yield {
            "model": bench.studio.name,
            "sampler": cell.sampler,
            "cfg": cell.cfg,
            "steps": cell.steps,
            **more,
            "seed": pair.seed,
            "computed": report.computed,
            "evaluations": len(report.evaluations),
            "predicted": report.error,
            # of latents that nothing is done to, whose noise and picture are independent and of about unit variance
            "latent": float(off / (full.latent.pow(2).mean() + 1).sqrt()),
            "psnr_db": psnr(shot.picture, full.picture),
        }


def excess(row: Row) -> float:
    """Decibels of the picture above those of the predicted error."""
    return float(row["psnr_db"]) + 20 * math.log10(max(row["predicted"], 1e-6))


def summed(rows: list[Row]) -> None:
    """A line a cell: what a constant that turns predicted errors to decibels would have to be."""
    for key in sorted({(r["costs"], r["model"], r["sampler"], r["cfg"], r["steps"]) for r in rows}, key=str):
        here = [
            r for r in rows if (r["costs"], r["model"], r["sampler"], r["cfg"], r["steps"]) == key and r["predicted"]
        ]
        if here:
            over = np.array([excess(r) for r in here])
            tenth, median = np.quantile(over, (0.1, 0.5))
            print(*key, f"| excess: least {over.min():.1f}, 10% {tenth:.1f}, median {median:.1f} dB", flush=True)


def told(rows: list[Row]) -> None:
    for key in sorted({(r["asked"], r["model"], r["sampler"], r["cfg"], r["steps"]) for r in rows}, key=str):
        here = [r for r in rows if (r["asked"], r["model"], r["sampler"], r["cfg"], r["steps"]) == key]
        got = np.array([r["psnr_db"] for r in here])
        print(
            f"{key[0]:g} dB asked of {key[1]}, {key[2]}, CFG {key[3]:g}, {key[4]} steps: {here[0]['computed']} of "
            f"{here[0]['evaluations']} computed; least {got.min():.1f}, mean {got.mean():.1f}; kept by {(got >= key[0]).mean():.0%}",
            flush=True,
        )


def measure(studio: Studio, cell: Cell, args: argparse.Namespace) -> list[Row]:
    bench = Bench(studio, cell, args.pairs)
    bench.pairs = pairs(args.pairs, ASKED if args.ask else FITTED)
    with own_user_folder():
        calibrate(bench, runs=1)
        return list(asked(bench, args.ask) if args.ask else fitted(bench, args.default))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="*", default=list(NAMES), choices=NAMES)
    parser.add_argument("--samplers", nargs="*", help=f"default: {', '.join(c.sampler for c in CELLS)}")
    parser.add_argument("--steps", nargs="*", type=int)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--default", action="store_true", help="also with the costs that are shipped")
    parser.add_argument("--ask", nargs="*", type=float, default=[], help="ask for so many decibels instead")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    out = args.out or OUTPUT / ("decibels-asked.json" if args.ask else "decibels.json")
    rows: list[Row] = json.loads(out.read_text("utf-8")) if out.is_file() else []
    for name in args.models:
        studio = loaded(name)
        logging.getLogger("skipstone").setLevel(logging.ERROR)
        for cell in CELLS:
            if cell.sampler in (args.samplers or [cell.sampler]) and cell.steps in (args.steps or [cell.steps]):
                new = measure(studio, cell, args)
                rows = [r for r in rows if not any(same(r, n) for n in new)] + new
                (told if args.ask else summed)(new)
                out.parent.mkdir(exist_ok=True)
                out.write_text(json.dumps(rows, indent=1), "utf-8")


def same(a: Row, b: Row) -> bool:
    measured = ("computed", "evaluations", "predicted", "latent", "psnr_db")
    return {k: v for k, v in a.items() if k not in measured} == {k: v for k, v in b.items() if k not in measured}


if __name__ == "__main__":
    main()
