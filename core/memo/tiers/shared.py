"""Base class of tiers on servers that several processes and machines share."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ...texts import Text, said
from ..errors import CorruptEntry, NotCacheable
from ..keys import Key
from ..reasons import LARGER_THAN, in_tier
from .base import Unavailable, Unreachable
from .signature import Envelope

NO_CONNECTION = Text("tier_no_connection", "no connection to {where}: entries are not shared")
KEEPS_NOTHING = Text("tier_keeps_nothing", "{where} does not keep values")
TOO_MANY_ENTRIES = Text("tier_too_many_entries", "has too many entries to count them")
NO_PACKAGE = Text("tier_no_package", "the package `{package}` is missing: pip install {requirement}")


class SharedTier:
    """A tier that holds each entry in an envelope (signature.py) under a name, and reaches its server through a client.

    A subclass defines `name` and the methods below that raise NotImplementedError, and sets `_client` when it has connected. where: the
    server as messages name it. largest: bytes of the largest entry, as stored. stall_timeout: seconds without progress after which a run
    stops waiting. read_only, secret: see Settings.
    """

    name: str

    def __init__(self, where: str, largest: int, stall_timeout: float, read_only: bool, secret: str) -> None:
        self.where, self.largest, self.stall_timeout = where, largest, stall_timeout
        self._read_only = read_only
        self._envelope = Envelope(secret)
        self._lock = threading.Lock()
        self._client: Any = None
        self._why: Unavailable = Unreachable(NO_CONNECTION.of(where=where))

    def put(self, key: Key, data: bytes) -> None:
        """Store an entry. Raises NotCacheable for one that is larger than `largest`."""
        if self._read_only:
            return
        name = self._name(key)
        if len(data) + self._envelope.overhead > self.largest:
            raise NotCacheable(in_tier(LARGER_THAN, self.name, mb=self.largest >> 20))
        with self._server() as client:
            self._write(client, name, self._envelope.wrap(name, data))

    def delete(self, key: Key) -> None:
        if self._read_only:
            return
        with self._server() as client:
            self._remove(client, self._name(key))

    def close(self) -> None:
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            with suppress(Exception):
                self._disconnect(client)

    @contextmanager
    def _server(self) -> Iterator[Any]:
        """The client. Its errors inside the context are raised as Unavailable, with the cause and the remedy."""
        with self._lock:
            client = self._client
        if client is None:
            # a copy: an exception that was raised keeps its frames alive
            raise type(self._why)(said(self._why), self._why.detail)
        with self._explaining():
            yield client

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except (Unavailable, CorruptEntry, NotCacheable, ImportError):
            raise
        except self._errors() as error:
            raise self._explained(error) from error

    def _errors(self) -> tuple[type[Exception], ...]:
        """The exceptions of the client that _explained() explains."""
        return (Exception,)

    def _explained(self, error: Exception) -> Unavailable:
        """The cause of an exception of the client and the remedy, without passwords."""
        raise NotImplementedError

    def _name(self, key: Key) -> str:
        """The name of an entry on the server."""
        raise NotImplementedError

    def _write(self, client: Any, name: str, data: bytes) -> None:
        raise NotImplementedError

    def _remove(self, client: Any, name: str) -> None:
        raise NotImplementedError

    def _disconnect(self, client: Any) -> None:
        raise NotImplementedError
