"""Asks a running ComfyUI server to run graphs, over plain HTTP."""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "demo"))
from comfy_server import Server, running  # noqa: E402

__all__ = ["Server", "ask", "file", "ran", "running", "upload", "wait_until_up"]


def ask(server: Server, path: str, body: object = None) -> bytes:
    """GET, or POST of a body as JSON."""
    data = None if body is None else json.dumps(body).encode()
    return _answer(urllib.request.Request(server.url + path, data, {"Content-Type": "application/json"}))


def upload(server: Server, name: str, picture: bytes) -> None:
    """A PNG into the server's input folder."""
    edge = "skipstone-0123456789"
    head = f'--{edge}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\nContent-Type: image/png\r\n\r\n'
    data = head.encode() + picture + f"\r\n--{edge}--\r\n".encode()
    kind = {"Content-Type": f"multipart/form-data; boundary={edge}"}
    _answer(urllib.request.Request(server.url + "/upload/image", data, kind))


def wait_until_up(server: Server, seconds: float = 300.0) -> None:
    """Raises RuntimeError with the end of its log if it does not come up."""
    deadline = time.monotonic() + seconds
    while server.alive and time.monotonic() < deadline:
        try:
            ask(server, "/system_stats")
            return
        except OSError:
            time.sleep(0.25)
    raise RuntimeError(f"the server does not come up:\n{server.log_tail()}")


def ran(server: Server, graph: dict[str, Any], seconds: float = 1800.0) -> dict[str, Any]:
    """Run a graph in API format, and what the server remembers of it: `outputs` by node, `status`. Raises RuntimeError if it fails."""
    prompt = json.loads(ask(server, "/prompt", {"prompt": graph}))["prompt_id"]
    deadline = time.monotonic() + seconds
    while server.alive and time.monotonic() < deadline:
        told = json.loads(ask(server, f"/history/{prompt}"))
        if prompt in told:
            if told[prompt]["status"]["status_str"] != "success":
                raise RuntimeError(str(told[prompt]["status"]))
            return dict(told[prompt])
        time.sleep(0.05)
    raise RuntimeError(f"the graph does not end:\n{server.log_tail()}")


def took(told: dict[str, Any]) -> float:
    """Seconds between the start and the end of a prompt that ran, by the server's own clock."""
    times = {event: about["timestamp"] for event, about in told["status"]["messages"]}
    return float(times["execution_success"] - times["execution_start"]) / 1000


def file(server: Server, saved: dict[str, str]) -> bytes:
    """A file that an output names."""
    return ask(server, "/view?" + urllib.parse.urlencode(saved))


def _answer(request: urllib.request.Request) -> bytes:
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{request.full_url}: {error}: {error.read(2000).decode(errors='replace')}") from error
