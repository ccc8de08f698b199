"""The cost of a step cache that never skips: processor time with it over processor time without, in one process and of one thread.

The runs are short and in turn, because a machine with other work on it changes its pace within seconds by more than is looked for.

make bench-overhead   (in a real ComfyUI, on the CPU, on the demo models; prints a table; half an hour)
make bench-overhead ARGS="--models flux --sizes 16"

The demo models take some 50 ms an evaluation, so this is the worst case: nearly all of it is the same for a model of seconds.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch
from blocks import NEVER, inside
from models import NAMES, loaded

STEPS, CFG = 6, 3.0


def methods() -> Iterator[tuple[str, Any]]:
    """MeanCache for all that work at output level: it is the one with most to keep."""
    from skipstone.nodes.meancache import method_of
    from skipstone.nodes.widgets import CUSTOM

    yield "MeanCache", method_of(CUSTOM, budget=1.0)
    yield from ((entry.method, entry.same) for entry in inside() if entry.variant == NEVER)


def measured(name: str, sizes: list[int], rounds: int) -> Iterator[str]:
    """One line for each method and size."""
    studio = loaded(name)
    import comfy.sample

    from skipstone.patch.errors import StepCacheError
    from skipstone.patch.step.attach import attach

    words, empty = studio.words("a red apple on a blue background"), studio.words("")

    def seconds(model: Any, size: int) -> float:
        """An evaluation; the first is not counted, because other things happen before it."""
        latent = torch.zeros(1, 16, size, size)
        noise = comfy.sample.prepare_noise(latent, 1)
        ends: list[float] = []
        with torch.inference_mode():  # as a running ComfyUI does
            comfy.sample.sample(
                model,
                noise,
                STEPS,
                CFG,
                "euler",
                "simple",
                words,
                empty,
                latent,
                seed=1,
                disable_pbar=True,
                callback=lambda *_: ends.append(time.process_time()),
            )
        return (ends[-1] - ends[0]) / (STEPS - 1)

    for size in sizes:
        for method, same in methods():
            try:
                patched = attach(studio.model, same)
            except StepCacheError:
                continue  # made for other kinds of models
            seconds(studio.model, size), seconds(patched, size)
            pairs = []
            for _ in range(rounds):  # there and back: a machine that grows slower is on nobody's side
                plain, with_it, again, without = (
                    seconds(m, size) for m in (studio.model, patched, patched, studio.model)
                )
                pairs.append(((plain + without) / 2, (with_it + again) / 2))
            slower = median(p / f for f, p in pairs) - 1
            more = median(p - f for f, p in pairs)
            full = median(f for f, _ in pairs)
            yield f"| {name} | {size * 8} | {full * 1000:.0f} ms | {method} | {slower:+.1%} | {more * 1000:+.2f} ms |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="*", default=NAMES, choices=NAMES)
    parser.add_argument("--sizes", nargs="*", type=int, default=[16, 32], help="of the latent; 8 pixels each")
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    print(
        "| Model | Picture | An evaluation | Method | Slower by | an evaluation |\n|---|--:|--:|---|--:|--:|",
        flush=True,
    )
    for name in args.models:
        for line in measured(name, args.sizes, args.rounds):
            print(line, flush=True)


if __name__ == "__main__":
    main()
