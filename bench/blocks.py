"""The methods that work inside the model, against plain sampling and methods at output level: quality over work, and speed-up.

make bench-blocks   (in a real ComfyUI, on the CPU; an hour. Writes bench-output/blocks.json and .md after every row)
make bench-blocks ARGS="--models unet --pairs 2 --methods DBCache"

A row is one of bench-quality's, and besides
    share_computed       of the blocks' work in a run of as many steps without a cache, by time: a computed evaluation is 1, a skipped one
                         what the blocks that always run take of it
    speedup              median of the plain run's processor time over the patched run's, one after the other for each pair
    speedup_predicted    what share_computed promises: 1 / (outside + (1 - outside) * share_computed), with `outside` the share of
                         the plain run that passes outside of the blocks, which a skip needs too. At output level it needs nothing
A method "never skips" where its threshold is 0: 1 / speedup is then what it costs.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import cycle, islice, pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from calibrated import calibrate, own_user_folder
from compared import Entry, entries
from judge import Bench, Cell, Pair, Score, Shot, score
from models import NAMES, OUTPUT, Studio, loaded
from table import Key, Row, Table, key_of, over_plain, write

CORE = Cell("euler", 3.0, 50)
# what the block-level methods are held against: method and variant in bench-quality's table
OTHERS = (("MeanCache", "calibrated"), ("Skipstone EasyCache", "auto"), ("TaylorSeer", "order 1"))
NEVER = "never skips"
ROUNDS = 6  # runs at most, and as many plain ones, where a speed-up is not yet known to CLOSE, as on a machine with other work
CLOSE = 0.01
PROFILED = 50  # evaluations that are looked into


def inside() -> Iterator[Entry]:
    """Every method of block level: its presets, and some values of its own."""
    from skipstone.nodes import dbcache, dicache, firstblock, magcache, taylorseer, teacache
    from skipstone.nodes.dbcache import cachedit_of, dbcache_of
    from skipstone.nodes.dicache import dicache_of
    from skipstone.nodes.firstblock import firstblock_of
    from skipstone.nodes.magcache import magcache_of
    from skipstone.nodes.taylorseer import taylorseer_of
    from skipstone.nodes.teacache import teacache_of
    from skipstone.nodes.widgets import CUSTOM

    for make, presets in (
        (firstblock_of, firstblock.PRESETS),
        (dbcache_of, dbcache.DB_PRESETS),
        (cachedit_of, dbcache.DIT_PRESETS),
        (teacache_of, teacache.PRESETS),
        (magcache_of, magcache.PRESETS),
        (dicache_of, dicache.PRESETS),
        (partial(taylorseer_of, level="blocks"), taylorseer.PRESETS),
    ):
        for preset in presets:
            yield _entry("preset", preset, make(preset))
    for t in (0.06, 0.12, 0.2, 0.35):
        yield _entry("line", f"{t:g}", firstblock_of(CUSTOM, t, warmup=4))
    yield _entry("reuse", "0.12", firstblock_of(CUSTOM, 0.12, warmup=4, predictor="reuse"))
    for t in (0.1, 0.2):
        yield _entry("Fn 2, Bn 1", f"{t:g}", dbcache_of(CUSTOM, 2, 1, t, warmup=4))
        yield _entry("Fn 1, Taylor 2", f"{t:g}", dbcache_of(CUSTOM, 1, 0, t, predictor="taylor", order=2, warmup=4))
        yield _entry("line", f"{t:g}", teacache_of(CUSTOM, t, warmup=4))
        yield _entry("change", f"{t:g}", dicache_of(CUSTOM, t))
        yield _entry("line, K 3", f"{t:g}", magcache_of(CUSTOM, t, max_skips=3, warmup=4))
    for n in (2, 4):
        yield _entry("order 2", f"interval {n}", taylorseer_of(CUSTOM, 2, n, level="blocks"))
    yield _entry(NEVER, "threshold 0", firstblock_of(CUSTOM, 0.0))
    yield _entry(NEVER, "threshold 0", teacache_of(CUSTOM, 0.0))
    yield _entry(NEVER, "threshold 0", magcache_of(CUSTOM, 0.0))
    yield _entry(NEVER, "threshold 0", dicache_of(CUSTOM, 0.0))


def _entry(variant: str, level: str, method: Any) -> Entry:
    from skipstone.patch.step.attach import attach

    if method.name == "TaylorSeer" and "blocks" not in variant:
        variant = f"blocks, {variant}"  # the same node has both levels
    same = replace(method, variant="")
    return Entry(method.name, variant, level, partial(attach, method=method), same=same)


def outside() -> Iterator[Entry]:
    """Plain sampling, and some methods of output level."""
    yield from (e for e in entries(CORE, True) if e.method == "plain")
    yield from (e for e in entries(CORE, False) if (e.method, e.variant) in OTHERS)


@dataclass(frozen=True)
class Profile:
    """Seconds of a plain run's evaluation, in each block in the order of their running, and from one to the next."""

    blocks: tuple[float, ...]
    whole: float

    @property
    def outside(self) -> float:
        return max(1 - sum(self.blocks) / self.whole, 0.0)

    def share(self, method: Any, network: Any) -> float:
        """The share of the blocks' time that runs on a skip."""
        from skipstone.patch.blocks.resolver import block_support_of

        reach = block_support_of(method, network)
        always: Any = reach.adapter if reach.family.unet else reach.blocks
        runs = self.blocks[: always.prefix] + self.blocks[len(self.blocks) - always.suffix :]
        return sum(runs) / sum(self.blocks)


def profiled(bench: Bench) -> Profile:
    """Hooks that look at the clock, in a few evaluations of a plain run."""
    network = bench.studio.model.model.diffusion_model
    spans = [*map(_ends, _blocks(network))]
    marks: list[float] = []  # of the network's calls: the demo's prompts are batched, so there is one an evaluation
    began, seconds = [0.0] * len(spans), [list[float]() for _ in spans]

    def begin(i: int, *_: Any) -> None:
        began[i] = time.process_time()

    def end(i: int, *_: Any) -> None:
        seconds[i].append(time.process_time() - began[i])

    handles = [network.register_forward_pre_hook(lambda *_: marks.append(time.process_time()))]
    for i, (first, last) in enumerate(spans):
        handles += [first.register_forward_pre_hook(partial(begin, i)), last.register_forward_hook(partial(end, i))]
    try:
        bench.shot(bench.studio.model, bench.pairs[0], PROFILED)
    finally:
        for handle in handles:
            handle.remove()
    if len(marks) != PROFILED:
        raise RuntimeError(f"{PROFILED} evaluations called the network {len(marks)} times")
    return Profile(tuple(map(median, seconds)), median(b - a for a, b in pairwise(marks)))


def _blocks(network: Any) -> list[Any]:
    from skipstone.patch.blocks.transformer import blocks_of
    from skipstone.patch.families import Family, family_of

    family = family_of(network)
    assert isinstance(family, Family)
    if family.unet:
        return [*network.input_blocks, network.middle_block, *network.output_blocks]
    return [block for stack in family.stacks for block in blocks_of(network, stack)]


def _ends(block: Any) -> tuple[Any, Any]:
    """The modules at a block's start and end: ComfyUI's UNet calls the layers of a block itself."""
    layers = list(block) if isinstance(block, torch.nn.Sequential) else [block]
    return layers[0], layers[-1]


class Test:
    """One model, and what is known of it."""

    def __init__(self, studio: Studio, count: int) -> None:
        self.studio = studio
        self.bench = Bench(studio, CORE, count)
        self.bench.shot(studio.model, self.bench.pairs[0], 2)  # what happens the first time is in nobody's seconds
        self.profile = profiled(self.bench)
        self.learned: set[str] = set()
        self.known: list[tuple[Any, tuple[Score, float, float]]] = []  # a method need not be hashable

    @property
    def network(self) -> Any:
        return self.studio.model.model.diffusion_model

    def possible(self, entry: Entry) -> bool:
        """Some methods cannot work on some models: their nodes say so."""
        from skipstone.patch.errors import StepCacheError

        try:
            entry.patch(self.studio.model)
        except StepCacheError as error:
            print(f"{self.studio.name}: no {entry.method} {entry.variant} {entry.level}: {error}", flush=True)
            return False
        return True

    def learn(self, entry: Entry) -> None:
        """Record the calibration that the method would get from full runs of the model."""
        method = entry.same
        if method is None or method.calibration != "auto":
            return
        from skipstone.patch.blocks.resolver import block_support_of

        what = block_support_of(method, self.network).text if method.blocks else "output"
        if what not in self.learned:
            self.learned.add(what)
            calibrate(self.bench, method=method)

    def row(self, entry: Entry) -> Row:
        self.learn(entry)
        same = entry.same or entry
        known = next((found for key, found in self.known if key == same), None)
        if known is None:
            known = self._measured(entry)
            self.known.append((same, known))
        found, shares, speedup = known
        cell, bench = CORE, self.bench
        row: Row = {"model": self.studio.name, "sampler": cell.sampler, "cfg": cell.cfg, "steps": cell.steps}
        row |= {"method": entry.method, "variant": entry.variant, "level": entry.level}
        row |= {name: value if value is None else round(value, 4) for name, value in asdict(found).items()}
        row |= {"pairs": len(bench.pairs), "seconds_full": round(found.seconds * speedup, 4)}
        order = ("computed", "psnr_db", "psnr_truth_db", "ssim", "lpips", "flip", "pairs", "seconds", "seconds_full")
        row = {k: row[k] for k in (*list(row)[:7], *order)}
        always = self.profile.outside if entry.same is not None and entry.same.blocks else 0.0
        predicted = 1 / (always + (1 - always) * shares)
        row |= {"share_computed": round(shares, 4), "speedup": round(speedup, 4)}
        return row | {"speedup_predicted": round(predicted, 4)}

    def _measured(self, entry: Entry) -> tuple[Score, float, float]:
        """Scores, share_computed, speedup. Each pair is sampled plainly right before, on the machine as it is then."""
        from skipstone.patch.step.attach import attach

        bench, plain, method = self.bench, self.studio.model, entry.same
        reports: list[Any] = []
        model = attach(plain, method, (reports.append,)) if method else plain
        share = self.profile.share(method, self.network) if method and method.blocks else 0.0
        shots: list[tuple[Pair, Shot, Shot]] = []
        ratios: list[float] = []
        for pair in islice(cycle(bench.pairs), max(ROUNDS, len(bench.pairs))):
            full = bench.shot(plain, pair)
            shots.append((pair, full, bench.shot(model, pair, entry.steps)))
            ratios.append(full.seconds / shots[-1][2].seconds)
            if len(shots) >= len(bench.pairs) and not (method and method.blocks and uncertain(ratios) > CLOSE):
                break
        judged = shots[: len(bench.pairs)]
        n, steps = len(judged), entry.steps or CORE.steps
        computed = sum(r.computed for r in reports[:n]) / n if reports else float(steps)
        pictures, full_ones = [s.picture for *_, s in judged], [full.picture for _, full, _ in judged]
        scored = score(computed, median(s.seconds for *_, s in shots), pictures, full_ones, bench.truth)
        return scored, (computed + share * (steps - computed)) / CORE.steps, median(ratios)


def uncertain(values: list[float]) -> float:
    """The standard error of their median, as a share of it: from the median deviation, which single interruptions do not move."""
    middle = median(values)
    return 1.86 * median(abs(v - middle) for v in values) / len(values) ** 0.5 / middle


def judge(studio: Studio, table: Table, args: argparse.Namespace) -> None:
    """All rows of one model that the table lacks."""
    table.begin(studio.name, studio.digest)
    old = {key for key, row in table.rows.items() if row["pairs"] == args.pairs and not args.again}
    words = [word.lower() for word in args.methods]
    wanted = [e for e in (*outside(), *inside()) if _matches(e, words) and _key(studio, e) not in old]
    print(f"{studio.name}: {len(wanted)} rows to measure", flush=True)
    if not wanted:
        return
    with own_user_folder():
        test = Test(studio, args.pairs)
        print(f"{studio.name}: {test.profile.outside:.1%} of a plain run is outside of the blocks", flush=True)
        for i, entry in enumerate(wanted, 1):
            if test.possible(entry):
                row = test.row(entry)
                table.add([row])
                table.save()
                print(f"{i}/{len(wanted)} {line(row)}", flush=True)


def _matches(entry: Entry, words: list[str]) -> bool:
    return not words or any(word in f"{entry.method} {entry.variant} {entry.level}".lower() for word in words)


def _key(studio: Studio, entry: Entry) -> Key:
    return (studio.name, CORE.sampler, CORE.cfg, CORE.steps, entry.method, entry.variant, entry.level)


def line(row: Row) -> str:
    return (
        f"{row['model']} | {row['method']} {row['variant']} {row['level']} | {row['computed']:.1f} computed, "
        f"{row['share_computed']:.1%} of the blocks, {row['psnr_db']:.2f} dB, {row['speedup']:.2f}x of {row['speedup_predicted']:.2f}x"
    )


HEAD = (
    "Model", "Method", "Variant", "Level", "Computed", "Blocks", "Work", "PSNR, dB", "over plain", "by work", "Truth, dB",
    "SSIM", "Speedup", "predicted", "of it",
)  # fmt: skip
LEGEND = """\
{text}; mean over {pairs} pairs. Computed: evaluations of {steps}. Blocks: share of the blocks' work that was done. Work: of the
whole model, in evaluations: {steps} / predicted. Over plain: dB above plain sampling with as many evaluations; by work: with as much
work. Truth: dB against a run of 400 steps.
"""


def blockwise(row: Row) -> bool:
    return row["method"] not in ("plain", *(m for m, _ in OTHERS)) or "blocks" in row["variant"]


def summary(rows: list[Row]) -> list[str]:
    """Summary of the speed-ups in a model's block-level rows."""
    out = ["| Model | Speedup over predicted: median | lowest | never skips: slower by |", "|---|--:|--:|---|"]
    for name in NAMES:
        own = [r for r in rows if r["model"] == name and blockwise(r)]
        found = [r["speedup"] / r["speedup_predicted"] for r in own if r["variant"] != NEVER]
        idle = [f"{r['method']} {1 / r['speedup'] - 1:.1%}" for r in own if r["variant"] == NEVER]
        if found:
            out.append(f"| {name} | {median(found):.1%} | {min(found):.1%} | {', '.join(idle)} |")
    return [*out, ""]


def markdown(rows: list[Row]) -> str:
    pairs = " or ".join(str(n) for n in sorted({r["pairs"] for r in rows}))
    out = [LEGEND.format(text=CORE.text, steps=CORE.steps, pairs=pairs), *summary(rows)]
    out += [f"| {' | '.join(HEAD)} |", f"|---|---|---|---{'|--:' * 11}|"]
    for row in rows:
        work = row["steps"] / row["speedup_predicted"]
        over = (over_plain(row, rows), over_plain({**row, "computed": work}, rows))
        cells = [row["model"], row["method"], row["variant"], row["level"], f"{row['computed']:.1f}"]
        cells += [f"{row['share_computed']:.1%}", f"{work:.1f}", f"{row['psnr_db']:.2f}"]
        cells += ["" if db is None else f"{db:+.2f}" for db in over]
        cells += [f"{row['psnr_truth_db']:.2f}", f"{row['ssim']:.4f}"]
        cells += [f"{row['speedup']:.2f}x", f"{row['speedup_predicted']:.2f}x"]
        cells += [f"{row['speedup'] / row['speedup_predicted']:.1%}"]
        out.append(f"| {' | '.join(cells)} |")
    return "\n".join(out) + "\n"


def place(row: Row) -> tuple[object, ...]:
    """Plain sampling, other levels, then blocks, by how much they do."""
    nth = 2 if blockwise(row) else int(row["method"] != "plain")
    return (NAMES.index(row["model"]), nth, *key_of(row)[4:6], -row["share_computed"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="*", default=list(NAMES), choices=NAMES)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument(
        "--methods", nargs="*", default=[], help="only those whose method, variant and level hold one of these"
    )
    parser.add_argument("--out", type=Path, default=OUTPUT / "blocks.json")
    parser.add_argument("--again", action="store_true", help="measure also what is in the file")
    args = parser.parse_args()
    table = Table.read(args.out)
    for name in args.models:
        studio = loaded(name)
        # what each run has to say is in the table; what failed is an exception
        logging.getLogger("skipstone").setLevel(logging.ERROR)
        judge(studio, table, args)
        write(table.file.with_suffix(".md"), markdown(sorted(table.rows.values(), key=place)))


if __name__ == "__main__":
    main()
