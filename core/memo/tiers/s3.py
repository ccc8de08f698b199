"""A shared tier: a bucket of an S3-compatible object store. Needs the package `boto3` (skipstone[s3]).

    <prefix>/<format>/<kind>/<digest>      the entry in its envelope (signature.py)

With a namespace the format is followed by @<namespace>. Signed entries have names of their own, below <format>.signed, because an object is
never overwritten.

Bucket, endpoint and region come from the environment, never from a workflow. Credentials come from boto3's usual chain (environment,
profile, container, instance role), never from an address. A look-up is one GET and a write one conditional PUT. Objects are listed only to
count and to clear them. Entries do not expire by themselves: a lifecycle rule of the bucket removes them (docs/encode-cache-operators.md).

Responses of the store are not trusted: at most the size of the largest entry is read, and the store checks every entry. The time-outs set
here end threads of the background; tier_worker.py decides how long a run waits.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from ...texts import Text
from ..errors import CorruptEntry
from ..keys import FORMAT, Key, key
from .base import Progress, Unavailable, Unreachable, Usage
from .s3_client import client as made_client
from .shared import KEEPS_NOTHING, NO_CONNECTION, NO_PACKAGE, TOO_MANY_ENTRIES, SharedTier
from .signature import HEAD

STALL_TIMEOUT = (
    0.5  # seconds: the first byte of an object takes some tens of milliseconds, occasionally ten times as long
)
CHUNK = 1 << 20  # bytes that have to arrive within one stall_timeout
READING = 30.0  # seconds after which the background stops reading an object
CHECK = 60.0  # seconds between two checks of the connection
COUNTING = 4.0  # longest time for counting entries, in seconds
COUNTED = 60.0  # seconds for which a count is reused, because each request for a listing costs money

_NO_BUCKET = Text("s3_no_bucket", "{where} does not exist: create the bucket, or set another in SKIPSTONE_MEMO_S3")
_DENIES = Text(
    "s3_denies",
    "{where} denies access: allow s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket, without which a missing entry looks like "
    "a forbidden one",
)
_REFUSED = Text("s3_refused", "{where} does not accept the credentials")
_NO_CREDENTIALS = Text(
    "s3_no_credentials", "there are no credentials for {where}: boto3 looks for them in its usual places"
)
_NO_REGION = Text("s3_no_region", "the region of {where} is not known: set SKIPSTONE_MEMO_S3_REGION")
_TOO_MANY_REQUESTS = Text("s3_too_many_requests", "{where} receives too many requests at present")
_REJECTS = Text("s3_rejects", "{where} rejects a request")

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"([A-Za-z0-9_.=-]+(/[A-Za-z0-9_.=-]+)*)?")
_PROBE = key("none", "that is never kept")


class S3Tier(SharedTier):
    """Entries as objects below `address`, s3://bucket or s3://bucket/prefix.

    endpoint: http:// or https:// address of a store that is not Amazon's; "" for Amazon's. region: "" for the region of boto3's chain, or
    us-east-1 with an endpoint. largest: bytes of the largest entry, as stored. stall_timeout: seconds without progress after which a run
    stops waiting. namespace, read_only, secret: see Settings. Raises ValueError for an invalid address, with a message that does not
    contain the address.
    """

    name = "s3"

    def __init__(
        self,
        address: str,
        endpoint: str = "",
        region: str = "",
        largest: int = 256 << 20,
        stall_timeout: float = STALL_TIMEOUT,
        namespace: str = "",
        read_only: bool = False,
        secret: str = "",
    ) -> None:
        scheme, _, place = address.partition("://")
        bucket, _, prefix = place.partition("/")
        prefix = prefix.rstrip("/")
        if scheme != "s3" or not _BUCKET.fullmatch(bucket) or not _PREFIX.fullmatch(prefix):
            raise ValueError(
                "the address of S3 is s3://bucket or s3://bucket/prefix, of letters, digits and _ . = -; credentials are not part of it"
            )
        _check_endpoint(endpoint)
        self._bucket, self._endpoint, self._region = bucket, endpoint, region
        super().__init__(f"s3://{bucket}", largest, stall_timeout, read_only, secret)
        form = f"{FORMAT}{'@' if namespace else ''}{namespace}{'.signed' if secret else ''}"
        self._prefix = f"{prefix}{'/' if prefix else ''}{form}/"
        self._entry = re.compile(re.escape(self._prefix) + r"([a-z][a-z0-9-]{0,31})/[0-9a-f]{40}")
        self._conditional = True
        self._checked = 0.0
        self._counted: tuple[float, dict[str, Usage]] | None = None

    # entries

    def get(self, key: Key, on_progress: Progress) -> bytearray | None:
        name = self._name(key)
        with self._server() as client:
            found = self._object(client, name)
            if found is None:
                return None
            try:
                data = self._read(found["Body"], found.get("ContentLength"), on_progress)
            finally:
                found["Body"].close()  # the body may not have been read to its end: do not reuse its connection
        return None if data is None else self._envelope.unwrap(name, data)

    def clear(self, kind: str | None = None, older_than: float | None = None) -> Usage:
        """Remove entries. `older_than` counts from the time of writing, because uses are not recorded."""
        removed = Usage()
        if self._read_only:
            return removed
        with self._server() as client:
            for page in self._pages(client, kind):
                gone = [about for _, about in page if older_than is None or _age(about) >= older_than]
                for i in range(0, len(gone), 1000):
                    names = [{"Key": about["Key"]} for about in gone[i : i + 1000]]
                    told = client.delete_objects(Bucket=self._bucket, Delete={"Objects": names, "Quiet": True})
                    failed = {error.get("Key") for error in told.get("Errors", [])}
                    removed += sum(
                        (Usage(1, int(about["Size"])) for about in gone[i : i + 1000] if about["Key"] not in failed),
                        Usage(),
                    )
        self._counted = None
        return removed

    def usage(self) -> dict[str, Usage]:
        if self._counted is not None and time.monotonic() - self._counted[0] < COUNTED:
            return dict(self._counted[1])
        held: dict[str, Usage] = {}
        deadline = time.monotonic() + COUNTING
        with self._server() as client:
            for page in self._pages(client, None):
                for kind, about in page:
                    held[kind] = held.get(kind, Usage()) + Usage(1, int(about["Size"]))
                if time.monotonic() > deadline:
                    raise Unavailable(TOO_MANY_ENTRIES)
        self._counted = time.monotonic(), held
        return dict(held)

    # the connection

    def probe(self) -> None:
        """Make a client and look up an entry that does not exist, as a run would."""
        self.close()
        try:
            client = self._made()
            with self._explaining():
                self._object(client, self._name(_PROBE))
        except Unavailable as why:
            self._why = why
            raise
        with self._lock:
            self._client, self._checked = client, time.monotonic()

    def trial(self) -> float:
        """Seconds that the store takes to keep a short value and to return it, with a client of its own. Raises Unavailable."""
        client, name, word = self._made(), f"{self._prefix}trial/{secrets.token_hex(8)}", b"skipstone"
        with self._explaining():
            started = time.perf_counter()
            client.put_object(Bucket=self._bucket, Key=name, Body=word)
            found = self._object(client, name)
            same = found is not None and found["Body"].read(len(word) + 1) == word
            seconds = time.perf_counter() - started
            client.delete_object(Bucket=self._bucket, Key=name)
        if not same:
            raise Unavailable(KEEPS_NOTHING.of(where=self.where))
        return seconds

    def maintain(self) -> None:
        """Check the connection every CHECK seconds, so that a lost connection is noticed before a run needs it."""
        if time.monotonic() - self._checked > CHECK:
            self._checked = time.monotonic()
            with self._server() as client:
                self._object(client, self._name(_PROBE))

    def _made(self) -> Any:
        """A client. Raises Unavailable."""
        try:
            with self._explaining():
                return made_client(self._endpoint, self._region)
        except ImportError:
            raise Unavailable(NO_PACKAGE.of(package="boto3", requirement='"boto3>=1.36"')) from None

    def _object(self, client: Any, name: str) -> Any:
        """The response to GET, or None if the object does not exist."""
        try:
            return client.get_object(Bucket=self._bucket, Key=name)
        except Exception as error:
            if _code(error) == "NoSuchKey":
                return None
            raise

    def _read(self, body: Any, size: Any, on_progress: Progress) -> bytearray | None:
        """The body of an object of `size` bytes, as reported by the store. None if it is shorter."""
        on_progress()
        if not isinstance(size, int) or size > self.largest:
            return None
        head = bytes(body.read(min(HEAD, size)))
        if not self._envelope.plausible(head, size):
            raise CorruptEntry("not an entry")
        data, got = bytearray(size), len(head)
        data[:got] = head
        deadline = time.monotonic() + READING
        while got < size:
            piece = body.read(min(CHUNK, size - got))
            if not piece or len(piece) > size - got or time.monotonic() > deadline:
                return None
            data[got : got + len(piece)] = piece
            got += len(piece)
            on_progress()
        return data

    def _write(self, client: Any, name: str, data: bytes) -> None:
        """A conditional PUT, or a plain one if the store does not implement conditions.

        An existing entry is kept, because entries of one key are equal; delete() removes it.
        """
        about = {"Bucket": self._bucket, "Key": name, "Body": data, "ContentType": "application/octet-stream"}
        if self._conditional:
            try:
                client.put_object(**about, IfNoneMatch="*")
                return
            except Exception as error:
                if _code(error) in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409"):
                    return  # another process wrote it first
                if _code(error) not in ("NotImplemented", "501"):
                    raise
                self._conditional = False
        client.put_object(**about)

    def _remove(self, client: Any, name: str) -> None:
        client.delete_object(Bucket=self._bucket, Key=name)

    def _disconnect(self, client: Any) -> None:
        client.close()

    def _pages(self, client: Any, kind: str | None) -> Iterator[list[tuple[str, Any]]]:
        """The kinds and listings of our entries, up to a thousand at a time."""
        prefix = self._prefix + (f"{kind}/" if kind else "")
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix):
            found = [(self._entry.fullmatch(about["Key"]), about) for about in page.get("Contents", [])]
            yield [(match[1], about) for match, about in found if match]

    def _explained(self, error: Exception) -> Unavailable:
        code, kind = _code(error), type(error).__name__
        if code == "NoSuchBucket":
            return Unavailable(_NO_BUCKET.of(where=self.where))
        if code in ("AccessDenied", "403", "AllAccessDisabled"):
            return Unavailable(_DENIES.of(where=self.where))
        if code in (
            "InvalidAccessKeyId",
            "SignatureDoesNotMatch",
            "ExpiredToken",
            "InvalidToken",
            "TokenRefreshRequired",
        ):
            return Unavailable(_REFUSED.of(where=self.where), code)
        if kind in ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound"):
            return Unavailable(_NO_CREDENTIALS.of(where=self.where), kind)
        if kind == "NoRegionError":
            return Unavailable(_NO_REGION.of(where=self.where))
        if code in ("SlowDown", "503", "ServiceUnavailable", "RequestLimitExceeded"):
            return Unavailable(_TOO_MANY_REQUESTS.of(where=self.where), code)
        if code:
            return Unavailable(_REJECTS.of(where=self.where), code[:80])
        return Unreachable(NO_CONNECTION.of(where=self.where), kind)

    def _name(self, key: Key) -> str:
        return f"{self._prefix}{key.kind}/{key.digest}"


def _check_endpoint(endpoint: str) -> None:
    """Raises ValueError for an invalid address, with a message that does not contain it."""
    if not endpoint:
        return
    try:
        parts = urlsplit(endpoint)
        parts.port  # noqa: B018 - raises for a port that is no number
    except ValueError:
        raise ValueError("the endpoint of S3 is no URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in endpoint:
        raise ValueError("the endpoint of S3 is http://host or https://host; credentials are not part of it")


def _code(error: Exception) -> str:
    """The store's error code in an exception of botocore; "" for any other exception."""
    answer = getattr(error, "response", None)
    told = answer.get("Error", {}) if isinstance(answer, dict) else {}
    return str(told.get("Code", "")) if isinstance(told, dict) else ""


def _age(about: Any) -> float:
    """Seconds since an object of a listing was written, by this machine's clock."""
    return time.time() - float(about["LastModified"].timestamp())
