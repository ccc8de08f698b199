"""Queues graphs on a ComfyUI server over HTTP, and follows each one over the websocket to its end."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from comfy_server import DemoError, Server
from graph import Graph

START_SECONDS = 180.0
SILENCE_SECONDS = 300.0


@dataclass
class Outcome:
    """What a prompt left behind: every event of ours by type, and the pictures as (name, bytes of the file)."""

    events: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    pictures: list[tuple[str, bytes]] = field(default_factory=list)


class Client:
    def __init__(self, server: Server, session: aiohttp.ClientSession, client_id: str) -> None:
        self._server, self._session, self._id = server, session, client_id
        self._socket: aiohttp.ClientWebSocketResponse | None = None

    async def wait_until_up(self) -> dict[str, Any]:
        """Waits until the server answers, joins its websocket; returns its system description."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            if not self._server.alive:
                raise DemoError("the ComfyUI server ended while it was starting")
            try:
                stats = await self.get("/system_stats")
                break
            except aiohttp.ClientConnectionError:
                if time.monotonic() > deadline:
                    raise DemoError(f"the ComfyUI server did not answer within {START_SECONDS:.0f} s") from None
                await asyncio.sleep(0.25)
        self._socket = await self._session.ws_connect(f"{self._server.url}/ws?clientId={self._id}", max_msg_size=0)
        return dict(stats["system"])

    async def get(self, path: str) -> Any:
        async with self._session.get(self._server.url + path) as answer:
            answer.raise_for_status()
            return await answer.json()

    async def has_node(self, node_type: str) -> bool:
        return node_type in await self.get(f"/object_info/{node_type}")

    async def run(self, graph: Graph) -> Outcome:
        """Queues a graph in API format and returns when it has run."""
        body = {"prompt": graph, "client_id": self._id}
        async with self._session.post(self._server.url + "/prompt", json=body) as answer:
            text = await answer.text()
        if answer.status != 200:
            raise DemoError(f"ComfyUI refused the graph: {_refusal(text)}")
        prompt = json.loads(text)["prompt_id"]

        outcome = Outcome()
        images: list[dict[str, str]] = []
        async for kind, data in self._messages():
            if "prompt_id" in data and data["prompt_id"] != prompt:
                continue
            if kind == "executed":
                images += (data.get("output") or {}).get("images") or []
            elif kind == "execution_error":
                raise DemoError(
                    f"node {data.get('node_id')} ({data.get('node_type')}) failed: "
                    f"{data.get('exception_type')}: {str(data.get('exception_message')).strip()}"
                )
            elif kind == "execution_interrupted":
                raise DemoError("the run was interrupted in ComfyUI")
            elif kind == "execution_success":
                break
            else:
                outcome.events.setdefault(kind, []).append(data)
        for image in images:
            outcome.pictures.append((image["filename"], await self._picture(image)))
        return outcome

    async def _messages(self) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        assert self._socket is not None, "wait_until_up comes first"
        while True:
            try:
                message = await self._socket.receive(timeout=SILENCE_SECONDS)
            except asyncio.TimeoutError:  # until Python 3.11 not the builtin TimeoutError
                raise DemoError(f"nothing heard from the ComfyUI server for {SILENCE_SECONDS:.0f} s") from None
            if message.type is aiohttp.WSMsgType.TEXT:
                parsed = json.loads(message.data)
                yield parsed["type"], parsed.get("data") or {}
            elif message.type is not aiohttp.WSMsgType.BINARY:  # binary messages are previews
                raise DemoError("the ComfyUI server closed the connection in mid-run")

    async def _picture(self, image: dict[str, str]) -> bytes:
        query = {key: image[key] for key in ("filename", "subfolder", "type")}
        async with self._session.get(self._server.url + "/view", params=query) as answer:
            answer.raise_for_status()
            return await answer.read()


@asynccontextmanager
async def connected(server: Server) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession() as session:
        yield Client(server, session, uuid.uuid4().hex)


def _refusal(text: str) -> str:
    """The server's reasons for refusing a graph, in a line for each."""
    try:
        answer = json.loads(text)
        error = answer["error"]
        if isinstance(error, str):
            return error
        reasons = [f"{error['message']} {error.get('details') or ''}".strip()]
        for node, found in (answer.get("node_errors") or {}).items():
            name = f"  node {node} ({found['class_type']})"
            reasons += [f"{name}: {e['message']}: {e.get('details') or ''}" for e in found["errors"]]
        return "\n".join(reasons)
    except (ValueError, KeyError, TypeError):
        return text[:2000]
