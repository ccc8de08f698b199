"""The encode cache's templates: as the front end takes them, as the API takes them, and run in a real server."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "bench"))

from served import Server, ask, file, ran, running, upload, wait_until_up  # noqa: E402

from skipstone.tests.drawings import drawn, exported, with_demo_models  # noqa: E402

MODELS = ROOT / "demo" / "models"
FILES = {
    "diffusion_models": [MODELS / "skipstone_demo_flux.safetensors"],
    "text_encoders": [MODELS / "skipstone_demo_clip.pt"],
    "vae": [MODELS / "skipstone_demo_vae.safetensors"],
}
VARIATIONS, BATCH = "Encode Cache - variations of an image", "Encode Cache - batch of prompts"
PICTURES = {VARIATIONS: 3, BATCH: 4}
ENCODED = {VARIATIONS: 3, BATCH: 5}  # pictures and prompts in all
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


@pytest.fixture(scope="module")
def open_server(tmp_path_factory):
    """Starts servers with the demo's models, one after the other, on one memo."""
    folder = tmp_path_factory.mktemp("memo")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SKIPSTONE_MEMO_FOLDER", str(folder / "memo"))
        environment.setenv("SKIPSTONE_MEMO_DISK", "0.1")
        environment.setenv("SKIPSTONE_PROVIDER", "0")

        def opened(log: str):
            return running(Path(os.environ["COMFYUI_PATH"]), {"skipstone": ROOT}, FILES, 1, folder / log)

        yield opened


def from_drawing(graph: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """The graph as the front end exports it: the values of widgets by their order in the server's node definitions."""
    links = {link[0]: [str(link[1]), link[2]] for link in graph["links"]}
    told = {}
    for node in graph["nodes"]:
        if node["type"] == "MarkdownNote":
            continue
        about, values = known[node["type"]]["input"], list(node.get("widgets_values") or [])
        inputs = {i["name"]: links[i["link"]] for i in node["inputs"] if i["link"] is not None}
        for name, (kind, *more) in {**about.get("required", {}), **about.get("optional", {})}.items():
            options = more[0] if more else {}
            if not (isinstance(kind, list) or kind in WIDGETS) or options.get("forceInput"):
                continue
            value = values.pop(0)
            inputs.setdefault(name, value)
            choices = kind if isinstance(kind, list) else options.get("options")
            if not str(value).endswith(".safetensors"):  # the models are not here
                assert choices is None or value in choices, (node["type"], name, value)
            if options.get("image_upload"):
                assert values.pop(0) == "image"  # its button
            if kind in ("INT", "FLOAT"):
                assert options.get("min", value) <= value <= options.get("max", value)
            if options.get("control_after_generate"):
                assert values.pop(0) == "fixed"
        assert values == [], (node["type"], values)
        told[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return told


def picture() -> bytes:
    """A square on another colour, as a PNG of the demo models' size."""
    drawing = Image.new("RGB", (128, 128), (30, 70, 210))
    drawing.paste((220, 30, 33), (32, 32, 96, 96))
    file = io.BytesIO()
    drawing.save(file, "PNG")
    return file.getvalue()


def pictures(server: Server, outcome: dict[str, Any]) -> list[bytes]:
    """The pixels of what it saved."""
    names = [i for out in outcome["outputs"].values() for i in out.get("images", []) if i["type"] == "output"]
    return [Image.open(io.BytesIO(file(server, n))).tobytes() for n in sorted(names, key=lambda n: n["filename"])]


def found(outcome: dict[str, Any]) -> str:
    return next(out["text"][0] for out in outcome["outputs"].values() if "hit" in out.get("text", [""])[0])


def test_they_run_and_after_a_restart_nothing_is_encoded(open_server):
    first: dict[str, list[bytes]] = {}
    with open_server("first.log") as server:
        wait_until_up(server)
        upload(server, "example.png", picture())
        known = json.loads(ask(server, "/object_info"))
        for name, number in PICTURES.items():
            graph = exported(name)
            plain = {n: {"class_type": node["class_type"], "inputs": node["inputs"]} for n, node in graph.items()}
            assert from_drawing(drawn(name), known) == plain
            first[name] = pictures(server, ran(server, with_demo_models(graph, steps=4)))
            assert len(set(first[name])) == number
    asked = 0
    with open_server("second.log") as server:
        wait_until_up(server)
        upload(server, "example.png", picture())
        for name in PICTURES:
            outcome = ran(server, with_demo_models(exported(name), steps=4))
            asked += ENCODED[name]
            assert pictures(server, outcome) == first[name]
            assert f"encode cache: {asked} of {asked} reused (100%)" in found(outcome)
            if name == VARIATIONS:  # Cached CLIP takes a CLIP, and its loader runs
                assert "CLIP/text encoder model load device" not in server.log.read_text()
