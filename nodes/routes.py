"""The server's routes for the pack's page parts.

A GET changes nothing; a POST has to be JSON, which forms of other sites cannot send. No path, address or program option is taken from a
request, and none is returned.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from aiohttp import web

from ..core.memo import metrics
from ..core.memo.status import check_connections, overview
from ..core.texts import Text, said
from ..patch.comfy_server import on_free, server
from ..patch.memo.instance import metrics_wanted, opened, settings_status
from ..patch.memo.lazy_encode import forget_held
from ..patch.step import calibration
from .memo import KINDS, OFF, TIERS, cleared
from .reporting import JOURNAL

_CHANGED = Text(
    "settings_changed",
    "the settings have changed since ComfyUI was started: restart it to use and to test them",
)
_FAILED = Text("request_failed", "The request failed; see ComfyUI's log.")
log = logging.getLogger(__name__)
_work = ThreadPoolExecutor(2, "skipstone-routes")  # a disk or a Redis that hangs keeps nobody else waiting
_WORDS = {kind: word for word, kind in KINDS.items()}

LARGEST = 64 << 10  # bytes of a request that are read
T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def register() -> bool:
    """Add the routes to ComfyUI's server before it starts; False without a server."""
    there = server()
    if there is not None:
        add(there.routes)
        on_free(_free)
    return there is not None


def add(routes: web.RouteTableDef) -> None:
    routes.get("/skipstone/memo")(_guarded(_memo))
    routes.post("/skipstone/memo/clear")(_guarded(_clear))
    routes.post("/skipstone/memo/test")(_guarded(_test))
    routes.get("/skipstone/reports")(_guarded(_reports))
    routes.get("/skipstone/calibration")(_guarded(_calibration))
    routes.post("/skipstone/calibration/forget")(_guarded(_forget))
    if metrics_wanted():
        routes.get("/skipstone/metrics")(_guarded(_metrics))


# the memo


def _free() -> None:
    """Handles ComfyUI's /free: drops the entries in memory and keeps those on disk and in Redis."""
    forget_held()
    memo = opened()
    if memo is not None:
        memo.free_memory()


async def _memo(request: web.Request) -> web.Response:
    return web.json_response(await _off_the_loop(_shown))


async def _metrics(request: web.Request) -> web.Response:
    """For Prometheus; empty where the cache is off."""
    memo = opened()
    told = "" if memo is None else await _off_the_loop(metrics.text, memo)
    return web.Response(body=told.encode(), headers={"Content-Type": metrics.CONTENT_TYPE})


async def _clear(request: web.Request) -> web.Response:
    asked = await _json(request)
    tier, kind = _one_of(asked, "tier", TIERS), _one_of(asked, "kind", KINDS)
    lines, removed = await _off_the_loop(cleared, tier, kind, 0.0)
    if not removed:
        raise _Refused(lines[0], web.HTTPConflict.status_code)
    return web.json_response({"text": "\n".join(lines), "removed": removed})


async def _test(request: web.Request) -> web.Response:
    await _json(request)  # nothing in it counts
    ok, sentences = await _off_the_loop(_checked)
    text = " ".join(f"{sentence[:1].upper()}{sentence[1:].removesuffix('.')}." for sentence in sentences)
    return web.json_response({"ok": ok, "text": text, "texts": [_told(sentence) for sentence in sentences]})


def _shown() -> dict[str, Any]:
    memo = opened()
    if memo is None:
        return {"state": "off", "text": OFF, **settings_status()}
    told = overview(memo)
    there = {tier["name"]: {**tier, "kinds": _named(tier.get("kinds", {}))} for tier in told["tiers"]}
    return {
        "state": "on",
        **told,
        **settings_status(),
        "kinds": _named(told["kinds"]),
        # S3 is set up by few: it is shown only where it is
        "tiers": [
            there.get(name, {"name": name, "state": "off"}) for name in TIERS[1:] if name in there or name != "s3"
        ],
    }


def _named(by_kind: dict[str, Any]) -> dict[str, Any]:
    """By the words of Memo Clear, in their order."""
    order = list(_WORDS)
    known = sorted((kind for kind in by_kind if kind in _WORDS), key=order.index)
    return {_WORDS[kind]: by_kind[kind] for kind in known}


def _checked() -> tuple[bool, list[str]]:
    memo = opened()
    if memo is None:
        return False, [OFF]
    ok, sentences = check_connections(memo)
    return ok, [*sentences, *([_CHANGED] if settings_status()["changed"] else [])]


# the timelines


async def _reports(request: web.Request) -> web.Response:
    """The last runs of the workflow with the front end's id `?workflow=`, oldest first. Prompts without an id have none."""
    workflow = request.query.get("workflow", "")
    return web.json_response(text=await _off_the_loop(_reports_of, workflow))


def _reports_of(workflow: str) -> str:
    entries = JOURNAL.of_workflow(workflow) if workflow else []
    return json.dumps([entry.as_dict() for entry in entries], allow_nan=False)


# what was recorded of the user's models


async def _calibration(request: web.Request) -> web.Response:
    """The number of setups that are recorded, and their bytes on disk."""
    return web.json_response(await _off_the_loop(_recorded))


async def _forget(request: web.Request) -> web.Response:
    """Deletes all recordings; the answer is that of `_calibration` afterwards."""
    await _json(request)  # nothing in it counts
    await _off_the_loop(calibration.forget)
    return web.json_response(await _off_the_loop(_recorded))


def _recorded() -> dict[str, int]:
    setups, size = calibration.stored()
    return {"setups": setups, "bytes": size}


# what all have in common


class _Refused(Exception):
    """An error with a sentence for the client and an HTTP status."""

    def __init__(self, text: str, status: int = web.HTTPBadRequest.status_code) -> None:
        super().__init__(text)
        self.status = status


def _guarded(handler: Handler) -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except _Refused as refused:
            return web.json_response({"error": str(refused), "told": _told(said(refused))}, status=refused.status)
        except web.HTTPException:
            raise
        except Exception:
            log.exception("[Skipstone] %s", request.path)
            return web.json_response({"error": _FAILED, "told": _told(_FAILED)}, status=500)

    return answer


def _told(sentence: str) -> dict[str, Any]:
    """A sentence for a page, with what it is translated by, if it is a Text."""
    return sentence.as_dict() if isinstance(sentence, Text) else {"text": sentence}


async def _off_the_loop(function: Callable[..., T], *args: Any) -> T:
    return await asyncio.get_running_loop().run_in_executor(_work, function, *args)


async def _json(request: web.Request) -> dict[str, Any]:
    if request.content_type != "application/json":
        raise _Refused("The Content-Type has to be application/json.", web.HTTPUnsupportedMediaType.status_code)
    try:
        body = bytearray()
        async for piece in request.content.iter_chunked(4096):  # after decompression
            body += piece
            if len(body) > LARGEST:
                raise _Refused(f"The request has more than {LARGEST >> 10} kB.")
        asked = json.loads(bytes(body).decode())
    except _Refused:
        raise
    except Exception:  # no JSON, no UTF-8, a broken compression, a connection that ends
        asked = None
    if not isinstance(asked, dict):
        raise _Refused("The request has to be a JSON object.")
    return asked


def _one_of(asked: dict[str, Any], name: str, known: Any) -> str:
    said = asked.get(name)
    if not isinstance(said, str) or said not in known:
        raise _Refused(f"{name} has to be one of {', '.join(known)}.")
    return said
