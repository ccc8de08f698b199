"""The settings that people sample with: how many evaluations are saved while the picture stays the same.

make bench-people ARGS="--models nextdit --pairs 4"   (in a real ComfyUI, on the CPU; an hour. Writes bench-output/people.json)

Of every cell the fewest evaluations that MeanCache (which Step Cache (Auto) plans with) has to compute for a mean PSNR of at least DECIBELS
and a mean LPIPS of at most LPIPS against the full run, over pairs that nothing was recorded on. Costs: what TAUGHT ordinary runs of
Step Cache (Auto) with the cell's settings leave behind; no run is computed in full. A cell of two models has the second from the middle on,
as Wan 2.2's graphs; where there is no second expert the same model samples both halves.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import Any

import torch
from calibrated import own_user_folder
from judge import LEARNED, Bench, Cell, Score, Shot, pairs, score
from models import NAMES, OUTPUT, SECOND_EXPERT, Studio, file_of, loaded
from torch import Tensor

DECIBELS, LPIPS = 40.0, 0.02
TAUGHT = 4
START = 0.6  # share of the steps that is tried first
FAILURES = 2  # budgets in a row that may fail before the search ends


@dataclass(frozen=True)
class Place:
    """A cell and its share of all evaluations, in percent: the official templates of October 2026 weighted by their run clicks
    (families and steps that are not listed are counted with the nearest cell). experts: how many models share the steps."""

    cell: Cell
    weight: float
    experts: int = 1


PLACES = (
    Place(Cell("res_multistep", 1.0, 20), 20),  # MiniMax H3
    Place(Cell("euler", 1.0, 25), 21),  # Qwen-Image 2.1
    Place(Cell("euler", 1.0, 20), 10),  # Flux
    Place(Cell("euler", 3.5, 20), 13, experts=2),  # Wan 2.2
    Place(Cell("euler", 4.0, 40), 9),  # Qwen-Image-Edit
    Place(Cell("res_multistep", 1.0, 8), 16),  # Z-Image Turbo and others of 8 steps or fewer
    Place(Cell("er_sde", 2.5, 25), 2),  # MOSS-Image
    Place(Cell("euler_ancestral", 1.0, 8), 2),
    Place(Cell("uni_pc", 6.0, 20), 1),
    Place(Cell("euler", 3.0, 50), 5),  # FLUX.3 Klein base; also the papers' setting
)


class Stage(Bench):
    """A bench whose MODEL is a list of as many as the place has experts."""

    def __init__(self, studio: Studio, second: Any, place: Place, count: int) -> None:
        super().__init__(studio, place.cell, count)
        self.models = [studio.model, second][: place.experts]

    @property
    def name(self) -> str:
        return self.cell.text + (f", {len(self.models)} models" if len(self.models) > 1 else "")

    def _sampled(self, model: Any, seeds: list[int], words: Any, steps: int, sampler: str = "") -> Tensor:
        import comfy.sample

        latent, cell = torch.zeros(1, 16, 16, 16), self.cell
        noise = comfy.sample.prepare_noise(latent, seeds[0])
        ends = [round(steps * (i + 1) / len(model)) for i in range(len(model))]
        with torch.inference_mode():
            for i, (part, start, end) in enumerate(zip(model, [0, *ends], ends, strict=False)):
                latent = comfy.sample.sample(
                    part, noise, steps, cell.cfg, cell.sampler, "simple", words, self.empty, latent, seed=seeds[0],
                    disable_noise=i > 0, start_step=start, last_step=end, force_full_denoise=end == steps, disable_pbar=True,
                )  # fmt: skip
                noise = torch.zeros_like(latent)
        return latent

    @cached_property
    def full(self) -> list[Shot]:
        return [self.shot(self.models, pair) for pair in self.pairs]

    def patched(self, method: Any) -> tuple[list[Any], list[Any]]:
        """The models with the method, and a list that gains the report of every run."""
        from skipstone.patch.step.attach import attach

        reports: list[Any] = []
        return [attach(model, method, (reports.append,)) for model in self.models], reports

    def teach(self) -> None:
        from skipstone.nodes.auto import auto_of

        model, _ = self.patched(auto_of())
        for pair in pairs(TAUGHT, LEARNED):
            self.shot(model, pair)

    def judged(self, budget: float) -> Score:
        """With a budget of a share of the steps, planned with what the user folder holds."""
        from skipstone.nodes.meancache import method_of
        from skipstone.nodes.widgets import CUSTOM

        method = replace(method_of(CUSTOM, budget=budget, calibration="auto"), calibration="known")
        model, reports = self.patched(method)
        shots = [self.shot(model, pair) for pair in self.pairs]
        computed = sum(r.computed for r in reports) / len(shots)
        pictures, full = [s.picture for s in shots], [s.picture for s in self.full]
        return score(computed, fmean(s.seconds for s in shots), pictures, full, None)


def kept(found: Score) -> bool:
    return found.psnr_db >= DECIBELS and (found.lpips is None or found.lpips <= LPIPS)


def levels(stage: Stage) -> Iterator[Score]:
    """The scores of budgets: from START of the steps down, until FAILURES in a row do not keep the picture. If none kept it, from START
    up, until one does."""
    steps = stage.cell.steps
    first = max(round(START * steps), 2)
    kept_any = False
    failures = 0
    for budget in range(first, 1, -1):
        yield (found := stage.judged((budget + 0.01) / steps))
        failures = 0 if kept(found) else failures + 1
        kept_any = kept_any or kept(found)
        if failures == FAILURES:
            break
    for budget in () if kept_any else range(first + 1, steps):
        yield (found := stage.judged((budget + 0.01) / steps))
        if kept(found):
            break


def row_of(studio: Studio, second: Any, place: Place, count: int) -> dict[str, Any]:
    stage = Stage(studio, second, place, count)
    with own_user_folder():
        stage.teach()
        seen = list(levels(stage))
    steps = place.cell.steps
    good = [s for s in seen if kept(s)]
    best = min(good, key=lambda s: s.computed) if good else None
    for s in seen:
        print(f"    {s.computed:4.1f} of {steps} computed: {s.psnr_db:.1f} dB, LPIPS {s.lpips or 0:.4f}", flush=True)
    row = {"model": studio.name, "sampler": place.cell.sampler, "cfg": place.cell.cfg, "steps": steps}
    row |= {"experts": place.experts, "weight": place.weight, "saved": 1 - best.computed / steps if best else 0.0}
    row |= {"psnr_db": best.psnr_db if best else None, "lpips": best.lpips if best else None}
    row |= {"levels": [{"computed": s.computed, "psnr_db": s.psnr_db, "lpips": s.lpips} for s in seen]}
    print(f"{studio.name}, {stage.name}: {row['saved']:.0%} saved", flush=True)
    return row


def saved(rows: list[dict[str, Any]]) -> float:
    """The share of all evaluations, by the cells' weights."""
    return sum(r["saved"] * r["weight"] for r in rows) / max(sum(r["weight"] for r in rows), 1e-9)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="*", default=list(NAMES), choices=NAMES)
    parser.add_argument("--pairs", type=int, default=6)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    OUTPUT.mkdir(exist_ok=True)
    for name in args.models:
        studio = loaded(name)
        second = loaded(SECOND_EXPERT).model if name == "flux" and file_of(SECOND_EXPERT).is_file() else studio.model
        logging.getLogger("skipstone").setLevel(logging.ERROR)
        for place in PLACES:
            rows.append(row_of(studio, second, place, args.pairs))
            text = json.dumps({"saved": saved(rows), "pairs": args.pairs, "cells": rows}, indent=1)
            (OUTPUT / "people.json").write_text(text, "utf-8")
        print(f"{name}: {saved([r for r in rows if r['model'] == name]):.1%} of all evaluations saved", flush=True)
    print(f"{saved(rows):.1%} of all evaluations saved, mean of {len(args.models)} models")


if __name__ == "__main__":
    main()
