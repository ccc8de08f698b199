"""Every method of the pack against plain sampling, ComfyUI's own step caches and the schedules released with MeanCache.

make bench-quality   (in a real ComfyUI, on the CPU; hours. Writes bench-output/quality.json, .md and .png after every row)
make bench-quality ARGS="--models unet --pairs 2 --methods Spectrum"
make bench-quality ARGS="--models flux --out a.json" in one window, the others in another, then ARGS="--merge a.json b.json"

A row is the mean over pairs of a prompt and a seed that no cost was measured on. What is in the file already is not measured
again, unless the model's weights have changed since.
"""

from __future__ import annotations

import argparse
import logging
import time
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

from calibrated import calibrate, kept, own_user_folder
from compared import Entry, entries
from judge import Bench, Cell, Score, Tally, watched
from models import NAMES, OUTPUT, Studio, loaded
from table import Key, Row, Table, key_of, markdown, write

CORE = Cell("euler", 3.0, 50)
SAMPLERS = ("euler", "dpmpp_2m", "res_multistep", "heun", "euler_ancestral")
# beside all levels of CORE, a few of: the other samplers, no guidance, fewer steps, and ComfyUI's first graph (Z-Image Turbo)
MORE = (
    *(Cell(sampler, 3.0, 50) for sampler in SAMPLERS[1:]),
    Cell("euler", 1.0, 50),
    *(Cell("euler", 3.0, steps) for steps in (28, 20, 8)),
    Cell("res_multistep", 1.0, 8),
)


@dataclass(frozen=True)
class Task:
    cell: Cell
    entry: Entry

    def key(self, model: str) -> Key:
        cell, entry = self.cell, self.entry
        return (model, cell.sampler, cell.cfg, cell.steps, entry.method, entry.variant, entry.level)


def plan(args: argparse.Namespace) -> list[Task]:
    """Cells and what is compared in each, as asked for."""
    chosen: list[Cell] = [CORE, *MORE]
    if args.samplers or args.cfgs or args.steps:
        values = (args.samplers or [CORE.sampler], args.cfgs or [CORE.cfg], args.steps or [CORE.steps])
        chosen = [Cell(*value) for value in product(*values)]
    tasks = [Task(c, e) for c in chosen for e in entries(c, args.levels == "all" or (not args.levels and c == CORE))]
    wanted = [word.lower() for word in args.methods]
    return [t for t in tasks if not wanted or any(w in f"{t.entry.method} {t.entry.variant}".lower() for w in wanted)]


def measured(bench: Bench, entry: Entry) -> Score:
    tally = Tally()
    with watched(bench.studio.model, tally) as model:
        return bench.scored(entry.patch(model), tally, entry.steps)


def row_of(bench: Bench, entry: Entry, score: Score) -> Row:
    cell = bench.cell
    row: Row = {"model": bench.studio.name, "sampler": cell.sampler, "cfg": cell.cfg, "steps": cell.steps}
    row |= {"method": entry.method, "variant": entry.variant, "level": entry.level}
    row |= {name: value if value is None else round(value, 4) for name, value in asdict(score).items()}
    row |= {"pairs": len(bench.pairs), "seconds_full": round(bench.seconds_full, 4)}
    order = ("computed", "psnr_db", "psnr_truth_db", "ssim", "lpips", "flip", "pairs", "seconds", "seconds_full")
    return {k: row[k] for k in (*list(row)[:7], *order)}


def judge(studio: Studio, tasks: list[Task], table: Table, args: argparse.Namespace) -> None:
    """All rows of one model that the table lacks."""
    table.begin(studio.name, studio.digest)
    old = {key for key, row in table.rows.items() if row["pairs"] == args.pairs and not args.again}
    tasks = [t for t in tasks if t.key(studio.name) not in old]
    bench: Bench | None = None
    scores: dict[object, Score] = {}
    print(f"{studio.name}: {len(tasks)} rows to measure", flush=True)
    with own_user_folder() as folder:
        known: set[Cell] = set()
        for i, task in enumerate(tasks, 1):
            began = time.perf_counter()
            if bench is None or bench.cell != task.cell:  # a cell's pictures are not kept for the next
                bench, scores = Bench(studio, task.cell, args.pairs), {}
                bench.shot(studio.model, bench.pairs[0], 2)  # what happens the first time is in nobody's seconds
            if task.entry.calibrated and task.cell not in known:
                known.add(task.cell)
                calibrate(bench)
            before = kept(folder)
            same = task.entry.same or task.entry
            scores[same] = scores.get(same) or measured(bench, task.entry)
            if kept(folder) != before:
                raise RuntimeError(f"costs were recorded on a pair that is judged: {task.key(studio.name)}")
            row = row_of(bench, task.entry, scores[same])
            table.add([row])
            table.save()
            print(f"{i}/{len(tasks)} {line(row)}  ({time.perf_counter() - began:.0f} s)", flush=True)


def line(row: Row) -> str:
    truth = "" if row["psnr_truth_db"] is None else f" (truth {row['psnr_truth_db']:.2f})"
    looks = "" if row["lpips"] is None else f", LPIPS {row['lpips']:.4f}, FLIP {row['flip']:.4f}"
    return (
        f"{row['model']} {row['sampler']} CFG {row['cfg']:g} {row['steps']} | {row['method']} {row['variant']} {row['level']} | "
        f"{row['computed']:.1f} computed, {row['psnr_db']:.2f} dB{truth}, SSIM {row['ssim']:.4f}{looks}, "
        f"{row['seconds']:.2f} of {row['seconds_full']:.2f} s"
    )


def show(table: Table) -> None:
    """The table and the plot beside the JSON."""
    rows = sorted(table.rows.values(), key=place)
    write(table.file.with_suffix(".md"), markdown(rows))
    try:
        from plot import draw
    except ImportError as error:
        print(f"no plot: {error}. tools/pins.toml says which matplotlib", flush=True)
        return
    draw(rows, asdict(CORE), table.file.with_suffix(".png"))


def place(row: Row) -> tuple[object, ...]:
    cells = [CORE, *MORE]
    cell = Cell(row["sampler"], row["cfg"], row["steps"])
    nth = cells.index(cell) if cell in cells else len(cells)
    return (NAMES.index(row["model"]), nth, *key_of(row)[1:6], -row["computed"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="*", default=list(NAMES), choices=NAMES)
    parser.add_argument("--samplers", nargs="*", help=f"default: a plan with {', '.join(SAMPLERS)}")
    parser.add_argument("--cfgs", nargs="*", type=float)
    parser.add_argument("--steps", nargs="*", type=int)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument(
        "--methods", nargs="*", default=[], help="only those whose method and variant hold one of these"
    )
    parser.add_argument("--levels", choices=("few", "all"), help="default: all in the core cell, few in the others")
    parser.add_argument("--out", type=Path, default=OUTPUT / "quality.json")
    parser.add_argument("--again", action="store_true", help="measure also what is in the file")
    parser.add_argument(
        "--merge", nargs="+", type=Path, metavar="FILE", help="join these into --out and draw; measure nothing"
    )
    args = parser.parse_args()
    table = Table.read(args.out)
    if args.merge:
        for file in args.merge:
            other = Table.read(file)
            for model, digest in other.weights.items():
                table.begin(model, digest)
            table.add(other.rows.values())
        table.save()
        show(table)
        return
    for name in args.models:
        studio = loaded(name)
        # what each run has to say is in the table; what failed is an exception
        logging.getLogger("skipstone").setLevel(logging.ERROR)
        judge(studio, plan(args), table, args)
        show(table)


if __name__ == "__main__":
    main()
