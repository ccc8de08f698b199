"""Addresses of Redis and Valkey, and clients for them: one server, a set of servers under Sentinel, or a Cluster.

    redis://[user:password@]host[:port][/db]                                  one server; rediss:// with TLS; unix:// a socket
    redis+sentinel://[user:password@]host[:port],host[:port].../service[/db]  the hosts are Sentinels
    redis+cluster://[user:password@]host[:port],host[:port]...                some nodes of a Cluster

rediss+sentinel:// and rediss+cluster:// use TLS, rediss+sentinel:// for the Sentinels too. Options follow a "?":
ssl_ca_certs, ssl_certfile, ssl_keyfile and ssl_password for TLS, sentinel_username and sentinel_password where the Sentinels have users
of their own. An address of one server takes every option of the package `redis`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, parse_qsl, unquote, urlsplit

SOCKET = 2.0  # time-out of sockets in seconds, for threads of the background
ESCAPES = "in a password, write / as %2F, ? as %3F, # as %23, @ as %40"
_SCHEMES = {
    **{"redis": ("server", False), "rediss": ("server", True), "unix": ("server", False)},
    **{"redis+sentinel": ("sentinel", False), "rediss+sentinel": ("sentinel", True)},
    **{"redis+cluster": ("cluster", False), "rediss+cluster": ("cluster", True)},
}
REPLY = 1 << 20  # bytes of the longest reply that is read: entries are requested in smaller pieces
_PORTS = {"server": 6379, "sentinel": 26379, "cluster": 6379}
_TLS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_password")
_SENTINELS = ("sentinel_username", "sentinel_password")


@dataclass(frozen=True)
class Address:
    """A parsed address. kind: "server", "sentinel" or "cluster". where: hosts and ports, for messages. service: the Sentinels' name of the
    master. login: user name and password. options: further options of connections."""

    kind: str
    where: str
    tls: bool
    url: str = field(repr=False)
    hosts: tuple[tuple[str, int], ...] = ()
    service: str = ""
    db: int = 0
    login: dict[str, Any] = field(default_factory=dict, repr=False)
    options: dict[str, Any] = field(default_factory=dict, repr=False)


def with_password(url: str) -> bool:
    """Whether an address contains a password, in any place in which the clients accept one."""
    try:
        parts = urlsplit(url)
        misplaced = parts.scheme != "unix" and "@" in f"{parts.path}?{parts.query}#{parts.fragment}"
        asked = any(name.endswith("password") for name in parse_qs(parts.query))
        return bool(parts.password) or asked or misplaced
    except ValueError:
        return "@" in url


def parsed(url: str) -> Address:
    """Parse a URL. Raises ValueError with a message that contains no part of the URL."""
    try:
        parts = urlsplit(url)
    except ValueError:  # its text may contain a part of the password
        raise ValueError(f"the address of Redis is no URL: {ESCAPES}") from None
    kind, tls = _SCHEMES.get(parts.scheme, ("", False))
    if not kind:
        raise ValueError(
            "the address of Redis begins with redis://, rediss:// (TLS) or unix://; redis+sentinel:// or redis+cluster:// for those"
        )
    if parts.scheme == "unix":
        return Address(kind, parts.path, tls, url)
    # an unescaped / ? or # in a password would end the host, and a part of the password be taken for the host
    if "@" in f"{parts.path}?{parts.query}#{parts.fragment}":
        raise ValueError(f"the address of Redis has an @ after the host: {ESCAPES}")
    named, _, places = parts.netloc.rpartition("@")
    hosts = tuple(_host(place, _PORTS[kind]) for place in places.split(","))
    where = ",".join(f"{host}:{port}" for host, port in hosts)
    if kind == "server":
        if len(hosts) > 1:
            raise ValueError(
                "the address of Redis names several hosts: begin it with redis+sentinel:// or redis+cluster://"
            )
        return Address(kind, where, tls, url, hosts)
    user, _, password = named.partition(":")
    login: dict[str, Any] = {n: unquote(v) for n, v in (("username", user), ("password", password)) if v}
    service, db = _service(parts.path) if kind == "sentinel" else _no_path(parts.path)
    options: dict[str, Any] = dict(parse_qsl(parts.query))
    known = (*(_TLS if tls else ()), *(_SENTINELS if kind == "sentinel" else ()))
    if not set(options) <= set(known):
        raise ValueError(f"the address of Redis has an option other than {', '.join(known) or 'none'}")
    return Address(kind, where, tls, url, hosts, service, db, login, options)


def _host(place: str, port: int) -> tuple[str, int]:
    try:
        found = urlsplit(f"//{place}")
        host, given = found.hostname, found.port
    except ValueError:
        raise ValueError(f"the address of Redis has a port that is no number: {ESCAPES}") from None
    if not host:
        raise ValueError("the address of Redis names no host")
    return host, given or port


def _service(path: str) -> tuple[str, int]:
    service, _, db = path.strip("/").partition("/")
    if not service or not (db or "0").isdigit():
        raise ValueError(
            "the address of Redis ends with the Sentinels' name of the service: .../service or .../service/db"
        )
    return unquote(service), int(db or 0)


def _no_path(path: str) -> tuple[str, int]:
    if path.strip("/") not in ("", "0"):
        raise ValueError("the address of Redis names a database, but a Cluster has none")
    return "", 0


# clients


def connected(address: Address, refused: Callable[[Exception], Any]) -> Any:
    """A client of the package `redis`, which may not have connected yet. Raises the exceptions of the package.

    refused is called with the error of a server that refuses the user: a client of several servers tries the next one, and raises the error
    of whichever it tried last.
    """
    import redis

    none = redis.retry.Retry(redis.backoff.NoBackoff(), 0)  # the worker tries again later
    usual: dict[str, Any] = {"socket_timeout": SOCKET, "socket_connect_timeout": SOCKET, "retry": none, "protocol": 2}
    if address.url.startswith("unix:"):
        unix = _watched(redis.UnixDomainSocketConnection, refused)
        return redis.Redis.from_url(address.url, **usual, connection_class=unix)
    usual["socket_keepalive"] = True
    tls: dict[str, Any] = {n: v for n, v in address.options.items() if n in _TLS}
    if address.tls:
        tls["ssl_check_hostname"] = True
    connection = _watched(redis.SSLConnection if address.tls else redis.Connection, refused)
    if address.kind == "server":
        return redis.Redis.from_url(address.url, **usual, **tls, connection_class=connection)
    if address.kind == "cluster":
        if int(redis.__version__.partition(".")[0]) < 6:
            usual["cluster_error_retry_attempts"] = 0
        (host, port), *others = address.hosts
        return redis.cluster.RedisCluster(
            url=f"redis://{f'[{host}]' if ':' in host else host}:{port}",  # connection_class is ignored without a URL
            startup_nodes=[redis.cluster.ClusterNode(*one) for one in others],
            connection_class=connection,
            **address.login,
            **usual,
            **tls,
        )
    if address.tls:
        tls["ssl"] = True
    own = {n.removeprefix("sentinel_"): v for n, v in address.options.items() if n in _SENTINELS}
    sentinels = redis.sentinel.Sentinel(address.hosts, sentinel_kwargs={**usual, **tls, **own})
    for one in sentinels.sentinels:
        one.connection_pool.connection_class = connection
    managed = redis.sentinel.SentinelManagedSSLConnection if address.tls else redis.sentinel.SentinelManagedConnection
    return sentinels.master_for(
        address.service, db=address.db, connection_class=_watched(managed, refused), **address.login, **usual, **tls
    )


def _watched(connection: Any, refused: Callable[[Exception], Any]) -> Any:
    """A subclass of a connection of the package `redis` that raises OSError for a reply of more than REPLY bytes, and calls refused with
    the error of a server that refuses the user."""
    from redis import exceptions

    refusals = (exceptions.AuthenticationError, exceptions.AuthorizationError, exceptions.NoPermissionError)
    try:
        from redis._parsers import _RESP2Parser
    except ImportError:  # a later version: its usual parser
        parser = {}
    else:
        # the parser in C allocates a list of as many elements as the server announces
        parser = {"parser_class": _RESP2Parser}

    class Watched(connection):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**parser, **options})

        def _connect(self) -> Any:
            return _BoundedSocket(super()._connect())

        def read_response(self, *args: Any, **options: Any) -> Any:
            if isinstance(self._sock, _BoundedSocket):
                self._sock.received = 0
            try:
                return super().read_response(*args, **options)
            except refusals as error:
                refused(error)
                raise

    return Watched


class _BoundedSocket:
    """A socket that raises OSError after REPLY bytes. received: bytes since the last reply."""

    def __init__(self, socket: Any) -> None:
        self._socket, self.received = socket, 0

    def recv(self, *args: Any) -> Any:
        data = self._socket.recv(*args)
        self._count(len(data))
        return data

    def recv_into(self, *args: Any) -> int:
        size = int(self._socket.recv_into(*args))
        self._count(size)
        return size

    def _count(self, size: int) -> None:
        self.received += size
        if self.received > REPLY:
            raise OSError("a reply that is longer than asked for")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


def answers(client: Any) -> None:
    """Send a short command of the kind that a run sends. Raises the exceptions of the package."""
    client.strlen("skipstone:probe")


def pool_of(client: Any, name: str) -> Any:
    """The pool of connections to the server that holds a name."""
    if hasattr(client, "connection_pool"):
        return client.connection_pool
    return client.get_redis_connection(client.get_node_from_key(name)).connection_pool


def disconnect(client: Any) -> None:
    """Close all connections, also those on which abandoned threads wait."""
    if hasattr(client, "connection_pool"):
        pools = [client.connection_pool]
        sentinels = getattr(client.connection_pool, "sentinel_manager", None)
        pools += [one.connection_pool for one in sentinels.sentinels] if sentinels else []
    else:
        pools = [node.redis_connection.connection_pool for node in client.get_nodes() if node.redis_connection]
    for pool in pools:
        pool.disconnect(inuse_connections=True)
