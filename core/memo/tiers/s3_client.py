"""Clients of the package `boto3` for S3-compatible stores, with bounds on what is read from the store.

boto3 reads every response but the object of a GET into memory, however long it is, so error pages and listings are bounded here. It also
asks the store to answer "100 Continue" before it sends the object of a PUT. It waits a second for stores that do not, and reads without end
if the connection is closed within that answer. The request is therefore made without that header.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

SOCKET = 2.0  # seconds without a byte after which a thread of the background gives up on the store
PAGE = (
    4 << 20
)  # bytes of a response other than an object: a listing of 1,000 objects with the longest names has 3 to 4 MB
_PIECE = 64 << 10


def client(endpoint: str, region: str) -> Any:
    """A client for `endpoint`, or for Amazon's store if that is "".

    region: "" for the region that boto3's chain of settings gives, or us-east-1 for an endpoint. Raises ImportError, and what boto3 raises.
    """
    import boto3
    from botocore.config import Config

    session = boto3.session.Session()
    made = session.client(
        "s3",
        endpoint_url=endpoint or None,
        region_name=region or session.region_name or ("us-east-1" if endpoint else None),
        config=Config(
            connect_timeout=SOCKET,
            read_timeout=SOCKET,
            retries={"total_max_attempts": 1},  # the worker tries again later
            s3={"addressing_style": "path" if endpoint else "auto"},
            # entries have a digest of their own, and not every store knows Amazon's newer check sums
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
    made.meta.events.register_last("before-call.s3", _without_expect)
    _bound(made)
    return made


def _without_expect(params: Any, **_: Any) -> None:
    params["headers"].pop("Expect", None)


def _bound(made: Any) -> None:
    """Have a client raise OSError for a response of more than PAGE bytes, unless it is the object of a GET."""
    http = getattr(getattr(made, "_endpoint", None), "http_session", None)
    if http is None:  # a later version, which keeps it elsewhere
        return
    forward = http.send

    def send(request: Any, **_: Any) -> Any:
        is_object, request.stream_output = request.stream_output, True  # otherwise the response is read here, unbounded
        response = forward(request)
        if not is_object or response.status_code >= 300:
            response.raw = _Page(response.raw)
            response.content  # noqa: B018 - boto3 reads it outside of what it handles errors of
        return response

    made.meta.events.register("before-send.s3", send)


class _Page:
    """The body of a response, of which no more than PAGE bytes are read."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw

    def stream(self) -> Iterator[bytes]:
        size = 0
        for piece in self._raw.stream(_PIECE):
            size += len(piece)
            if size > PAGE:
                self._raw.close()
                raise OSError("a response that is longer than asked for")
            yield piece

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)
