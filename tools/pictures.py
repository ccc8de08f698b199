"""The pictures of the help pages: which steps each method computes, drawn from real runs of the demo's small Flux.

    make help-pictures     sample once with each method (50 steps, euler, CFG 3, preset Balanced), and write web/docs/img/*.svg

One cell a step: filled where it was computed, hollow where it was skipped. Methods that decide as they go also have the bars of what
they held against their limit, which is the dashed line.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if os.environ["COMFYUI_PATH"] not in sys.path:
    sys.path.insert(0, os.environ["COMFYUI_PATH"])

import comfy.cli_args

comfy.cli_args.args.cpu = True  # before anything asks for a device

import comfy.sample  # noqa: E402
import comfy.sd  # noqa: E402
import torch  # noqa: E402

from skipstone.core.step.clock import Grid  # noqa: E402
from skipstone.core.step.method import Method  # noqa: E402
from skipstone.core.step.report.report import Report  # noqa: E402
from skipstone.nodes.dbcache import cachedit_of, dbcache_of  # noqa: E402
from skipstone.nodes.dicache import dicache_of  # noqa: E402
from skipstone.nodes.easycache import easycache_of, ucache_of  # noqa: E402
from skipstone.nodes.firstblock import firstblock_of  # noqa: E402
from skipstone.nodes.magcache import magcache_of  # noqa: E402
from skipstone.nodes.meancache import method_of  # noqa: E402
from skipstone.nodes.spectrum import spectrum_of  # noqa: E402
from skipstone.nodes.stepmask import step_mask_of  # noqa: E402
from skipstone.nodes.taylorseer import taylorseer_of  # noqa: E402
from skipstone.nodes.teacache import teacache_of  # noqa: E402
from skipstone.patch.step.attach import attach  # noqa: E402

PACK = Path(__file__).resolve().parent.parent
FOLDER = PACK / "web" / "docs" / "img"
STEPS, CFG, SEED = 50, 3.0, 5001
PROMPT = "a red apple on a blue background"
NODES: dict[str, Callable[[], Method]] = {
    "meancache": method_of,
    "easycache": easycache_of,
    "ucache": ucache_of,
    "spectrum": spectrum_of,
    "taylorseer": taylorseer_of,
    "firstblock": firstblock_of,
    "dbcache": dbcache_of,
    "cachedit": cachedit_of,
    "teacache": teacache_of,
    "magcache": magcache_of,
    "dicache": dicache_of,
}
MASKS = ("slow", "medium", "fast", "ultra")

# the ground is the banner's; computed and skipped steps have the colours that they have on the nodes
NIGHT, WATER, FOAM, GREY = "#12293c", "#1b4a64", "#c9f0ff", "#8fa3b0"
COMPUTED, SKIPPED = "#56a8dd", "#e69f00"
WIDE, CELL, LEFT = 14, 11, 18  # from cell to cell, of one, before the first
BARS = 76  # how high the limit is drawn
TALL = 28  # letters: the panel of help pages shows a picture at a third of its size


def sampled(make: Callable[[], Method], model: Any, positive: Any, negative: Any) -> Report:
    """A run of the demo's model. One that is learned from is computed in full: then the next one like it is told."""
    reports: list[Report] = []
    patched = attach(model, make(), (reports.append,))
    latent = torch.zeros(1, 16, 16, 16)
    noise = comfy.sample.prepare_noise(latent, SEED)
    while not reports or reports[-1].learning:
        comfy.sample.sample(
            patched, noise, STEPS, CFG, "euler", "simple", positive, negative, latent, seed=SEED, disable_pbar=True
        )
    return reports[-1]


def drawn(computed: Sequence[bool], bars: Sequence[float | None] = ()) -> str:
    """An SVG. computed: for each step; bars: what was held, as a share of the limit, None where nothing was."""
    held = any(bar is not None for bar in bars)
    top = 20 + (round(BARS * 1.5) if held else 0)
    width, height = 2 * LEFT + WIDE * len(computed), top + 94
    parts = [f'<rect width="{width}" height="{height}" rx="10" fill="{NIGHT}"/>']
    if held:
        line = top - 12 - BARS
        marks = [(i, min(bar, 1.5)) for i, bar in enumerate(bars) if bar is not None]
        path = "".join(
            f"M{LEFT + WIDE * i + 2} {top - 12}v-{max(bar * BARS, 1):.0f}h7v{max(bar * BARS, 1):.0f}z"
            for i, bar in marks
        )
        parts.append(f'<path d="{path}" fill="{GREY}"/>')
        parts.append(
            f'<path d="M{LEFT} {line}h{WIDE * len(computed)}" stroke="{FOAM}" stroke-width="1.5" stroke-dasharray="5 5"/>'
        )
    full = "".join(f"M{LEFT + WIDE * i} {top}h{CELL}v40h-{CELL}z" for i, c in enumerate(computed) if c)
    hollow = "".join(
        f"M{LEFT + WIDE * i + 1} {top + 1}h{CELL - 2}v38h-{CELL - 2}z" for i, c in enumerate(computed) if not c
    )
    parts.append(f'<path d="{full}" fill="{COMPUTED}"/>')
    parts.append(f'<path d="{hollow}" fill="{WATER}" stroke="{SKIPPED}" stroke-opacity=".8"/>')
    said = f"{sum(computed)} of {len(computed)} steps computed"
    parts.append(written(LEFT, top + 78, said))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{said}">'
        f"{''.join(parts)}</svg>\n"
    )


def written(x: int, y: int, text: str) -> str:
    return f'<text x="{x}" y="{y}" font-family="sans-serif" font-size="{TALL}" fill="{FOAM}">{text}</text>'


def of_report(report: Report) -> str:
    bars = [e.score / e.threshold if e.score is not None and e.threshold else None for e in report.evaluations]
    return drawn([e.computed for e in report.evaluations], bars)


def of_masks() -> str:
    """The named masks, one below the other, at 28 steps: what cache-dit calls them by."""
    rows = []
    for i, name in enumerate(MASKS):
        computed = step_mask_of(name).on(Grid.of([1 - step / 28 for step in range(29)]))
        y = 18 + 48 * i
        cells = "".join(
            f'<rect x="{146 + WIDE * s}" y="{y}" width="{CELL}" height="34" fill="{COMPUTED if c else WATER}"'
            + ("/>" if c else f' stroke="{SKIPPED}" stroke-opacity=".8"/>')
            for s, c in enumerate(computed)
        )
        text = written(LEFT, y + 26, name)
        count = written(154 + WIDE * 28, y + 26, str(sum(computed)))
        rows.append(text + cells + count)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 606 212" role="img" aria-label="the named masks at 28 steps">'
        f'<rect width="606" height="212" rx="10" fill="{NIGHT}"/>{"".join(rows)}</svg>\n'
    )


def main() -> None:
    import folder_paths

    folder_paths.set_user_directory(str(PACK / ".work" / "pictures"))  # what is learned here is no user's
    models = PACK / "demo" / "models"
    model = comfy.sd.load_diffusion_model(str(models / "skipstone_demo_flux.safetensors"))
    clip = comfy.sd.load_clip([str(models / "skipstone_demo_clip.pt")], clip_type=comfy.sd.CLIPType.STABLE_DIFFUSION)
    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (PROMPT, ""))
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "masks.svg").write_text(of_masks(), "utf-8")
    for name, make in NODES.items():
        report = sampled(make, model, positive, negative)
        (FOLDER / f"{name}.svg").write_text(of_report(report), "utf-8")
        print(f"{name}: {report.line()}", flush=True)


if __name__ == "__main__":
    main()
