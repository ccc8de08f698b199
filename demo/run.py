"""make demo: pictures from a real ComfyUI, without and with the MeanCache node, side by side.

Starts ComfyUI on this machine's CPU with the demo's small trained model, queues demo/graphs/api/meancache.json over HTTP
for several prompts, without the node and with each preset in turn, and writes the pictures, compare.png,
flip.webp and report.json. Set COMFYUI_PATH to the folder of a ComfyUI; `make demo` does.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import platform
import signal
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import graph as graphs
import results
import sheet
from comfy_client import Client, connected
from comfy_server import DemoError, Server, running
from results import Line, Pair, Shot

PACK = Path(__file__).resolve().parent.parent
WORKFLOW = PACK / "demo" / "graphs" / "api" / "meancache.json"
MODELS = {
    "diffusion_models": "skipstone_demo_flux.safetensors",
    "vae": "skipstone_demo_vae.safetensors",
    "text_encoders": "skipstone_demo_clip.pt",
}
PRESETS = ("Quality", "Balanced", "Speed", "Turbo")
FEW_STEPS, FEW_PRESETS = 20, ("Balanced", "Turbo")  # measured beside the steps that are asked for
# The model was trained on none of these combinations, and no cost was measured on them.
PAIRS = (
    Pair("a fox on a purple background", 5001),
    Pair("a snowman on a yellow background", 5002),
    Pair("a rocket on a pink background", 5003),
    Pair("a frog on a black background", 5004),
    Pair("a house on a blue background", 5005),
    Pair("a penguin on an orange background", 5006),
    Pair("a koala on a green background", 5007),
    Pair("a pizza on a gray background", 5008),
)
WARM_UP = Pair("a pear on a purple background", 5000)
QUOTABLE_PAIRS = 6
SAMPLER_EVENT, REPORT_EVENT = "skipstone-demo.sampler", "skipstone.report"

Shots = dict[str | None, list[Shot]]  # without and with each preset, by pair


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("--models", type=Path, default=PACK / "demo" / "models", help="folder of the model files")
    parser.add_argument("--output", type=Path, default=PACK / "demo-output", help="folder to write to")
    parser.add_argument("--steps", type=int, default=50, help="sampling steps (default 50)")
    parser.add_argument("--pairs", type=int, default=6, help=f"prompts, 1 to {len(PAIRS)} (default 6)")
    # Tensors as small as the demo's gain little from a second thread, and when something else wants a core too, threads
    # that wait for each other make a step up to ten times slower: one gives the steadiest times.
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the server (default 1)")
    chosen = parser.parse_args()
    if not 1 <= chosen.pairs <= len(PAIRS):
        parser.error(f"--pairs is a number from 1 to {len(PAIRS)}")
    if chosen.steps < 1 or chosen.threads < 1:
        parser.error("--steps and --threads are at least 1")
    return chosen


def comfyui_folder() -> Path:
    folder = Path(os.environ.get("COMFYUI_PATH", "")).expanduser().resolve()
    if not os.environ.get("COMFYUI_PATH") or not (folder / "main.py").is_file():
        raise DemoError(
            "set COMFYUI_PATH to a folder of ComfyUI (it holds main.py), or run `make demo`, which fetches one"
        )
    return folder


def model_files(folder: Path) -> dict[str, list[Path]]:
    files = {kind: [folder / name] for kind, name in MODELS.items()}
    missing = [file.name for (file,) in files.values() if not file.is_file()]
    if missing:
        raise DemoError(f"{folder} lacks {', '.join(missing)}: name the folder that holds them with --models")
    return files


def clear(output: Path) -> None:
    """Takes away what an earlier demo left, so that a run that fails leaves nothing that looks like its result."""
    pictures = output / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    results_of_before = (output / name for name in ("compare.png", "flip.webp", "report.json"))
    for old in (*results_of_before, *pictures.glob("*.png")):
        old.unlink(missing_ok=True)


async def shoot(client: Client, workflow: graphs.Graph, preset: str | None, pair: Pair, steps: int) -> Shot:
    """One run of the workflow."""
    outcome = await client.run(graphs.prepare(workflow, preset, pair.caption, pair.seed, steps))
    times = outcome.events.get(SAMPLER_EVENT, [])
    reports = [r for r in outcome.events.get(REPORT_EVENT, []) if not r["running"]]
    if len(times) != 1 or len(outcome.pictures) != 1:
        raise DemoError(f"one sampler run and one picture expected, got {len(times)} and {len(outcome.pictures)}")
    if preset is None:
        ran, computed, skipped = steps, steps, 0
    elif len(reports) == 1:
        report = reports[0]["report"]
        ran, computed, skipped = int(report["steps"]), int(report["computed"]), int(report["skipped"])
    else:
        raise DemoError(f"one {REPORT_EVENT} of a run that ended expected from the node, got {len(reports)}")
    (_, png), (timed,) = outcome.pictures[0], times
    return Shot(preset, pair, png, float(timed["seconds"]), int(timed["threads"]), ran, computed, skipped)


async def shoot_all(
    client: Client, workflow: graphs.Graph, pairs: list[Pair], steps: int, presets: tuple[str, ...], pictures: Path
) -> Shots:
    """Every pair without and with each preset, in turn, so that a slow minute of the machine slows all alike."""
    kinds: tuple[str | None, ...] = (None, *presets)
    for i, preset in enumerate(kinds, 1):
        shot = await shoot(client, workflow, preset, WARM_UP, steps)
        say(f"  warm-up {i}/{len(kinds)}  {_told(shot)}")
    shots: Shots = {preset: [] for preset in kinds}
    for i, pair in enumerate(pairs, 1):
        for preset in kinds:
            shot = await shoot(client, workflow, preset, pair, steps)
            shots[preset].append(shot)
            (pictures / f"{i}-{_name(preset).lower()}-{steps}.png").write_bytes(shot.png)
            say(f"  {i}/{len(pairs)}  {pair.caption:<40}{_told(shot)}")
    return shots


async def sample(
    server: Server, workflow: graphs.Graph, pairs: list[Pair], steps: int, pictures: Path
) -> tuple[list[Shots], dict[str, Any]]:
    """All runs on a server that is starting (of `steps` with every preset, then of FEW_STEPS), and its description of itself."""
    async with connected(server) as client:
        system = await client.wait_until_up()
        for node_type in (graphs.CACHE, graphs.TIMER):
            if not await client.has_node(node_type):
                raise DemoError(f"ComfyUI did not load the node {node_type}: its log says why")
        say(f"ComfyUI {system.get('comfyui_version')} answers on {server.url}")
        shots = [await shoot_all(client, workflow, pairs, steps, PRESETS, pictures)]
        if steps != FEW_STEPS:
            shots.append(await shoot_all(client, workflow, pairs, FEW_STEPS, FEW_PRESETS, pictures))
        return shots, system


def measured_on(system: dict[str, Any], workflow: graphs.Graph, baseline: list[Shot], load: float) -> dict[str, Any]:
    sampler = workflow[graphs.find(workflow, graphs.SAMPLER)]["inputs"]
    return {
        "machine": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average_before": round(load, 2),
        "device": "cpu",
        "torch_threads": baseline[0].threads,
        "os": platform.platform(),
        "python": platform.python_version(),
        "comfyui": system.get("comfyui_version"),
        "torch": system.get("pytorch_version"),
        "model": MODELS["diffusion_models"],
        "sampling": {key: sampler[key] for key in ("sampler_name", "scheduler", "cfg", "denoise")},
        "pairs": len(baseline),
        "seconds": "of the sampler alone, the median over the pairs",
        "psnr_db, ssim and lpips": "against the picture of the same prompt and seed without the cache, both as saved "
        "(8 bits a channel), peak 1.0, the mean over the pairs; lpips is the shift-tolerant one, with AlexNet",
    }


def write(output: Path, shots: list[Shots], facts: dict[str, Any]) -> list[Line]:
    """compare.png and flip.webp of the first number of steps, report.json of all."""
    lines: list[Line] = []
    details: list[dict[str, Any]] = []
    for of_steps in shots:
        baseline = of_steps[None]
        more = results.summarise(baseline, {preset: of_steps[preset] for preset in of_steps if preset})
        lines += more[0]
        details += more[1]
    baseline, cached = shots[0][None], {preset: shots[0][preset] for preset in PRESETS}
    threads = "one CPU thread" if facts["torch_threads"] == 1 else f"{facts['torch_threads']} CPU threads"
    footer = (
        f"The demo's own small model in ComfyUI {facts['comfyui']} on {threads}. "
        f"Time of the sampler: median; PSNR and LPIPS against Without: mean, over {len(baseline)} prompts."
    )
    drawn = lines[: len(PRESETS)]
    sheet.draw(baseline, cached, drawn, footer).save(output / "compare.png", optimize=True)
    sheet.flip(baseline, cached, drawn, output / "flip.webp")
    report = {"runs": [dataclasses.asdict(line) for line in lines], "measured_on": facts, "single_runs": details}
    (output / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return lines


async def demo(chosen: argparse.Namespace) -> None:
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel)  # unwinds to the server's finally

    comfyui, models, output = comfyui_folder(), model_files(chosen.models), chosen.output.resolve()
    clear(output)
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    pairs, load, start = list(PAIRS[: chosen.pairs]), os.getloadavg()[0], time.monotonic()
    nodes = {"skipstone": PACK, "skipstone_demo_timer": PACK / "demo" / "timer_node"}
    say("Starting ComfyUI ...")
    with running(comfyui, nodes, models, chosen.threads, output / "server.log") as server:
        try:
            shots, system = await sample(server, workflow, pairs, chosen.steps, output / "pictures")
        except Exception:
            print(f"\nThe end of {server.log}:\n{server.log_tail()}", file=sys.stderr)
            raise
    lines = write(output, shots, measured_on(system, workflow, shots[0][None], load))
    say(f"\n{results.table(lines)}\n")
    if len(pairs) < QUOTABLE_PAIRS:
        say(f"Fewer than {QUOTABLE_PAIRS} prompts: too few to quote.")
    say(f"{time.monotonic() - start:.0f} s in all. See {output / 'compare.png'} and report.json beside it.")


def say(text: str) -> None:
    print(text, flush=True)


def _name(preset: str | None) -> str:
    return preset or "Without"


def _told(shot: Shot) -> str:
    return f"{_name(shot.preset):<9}{shot.seconds:6.2f} s  {shot.computed}/{shot.steps} computed"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def main() -> int:
    chosen = options()
    try:
        asyncio.run(demo(chosen))
    except (DemoError, aiohttp.ClientError) as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        return 1
    except (asyncio.CancelledError, KeyboardInterrupt):
        print("\nInterrupted; the server is stopped.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
