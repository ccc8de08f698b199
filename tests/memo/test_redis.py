"""The Redis tier with a real server: shared, bounded, and however the server behaves at worst a miss."""

import contextlib
import logging
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import pytest
import torch

from skipstone.core.memo.codec import decode
from skipstone.core.memo.errors import CorruptEntry, NotCacheable
from skipstone.core.memo.keys import key
from skipstone.core.memo.store import Store
from skipstone.core.memo.tiers import redis as redis_tier
from skipstone.core.memo.tiers import redis_address
from skipstone.core.memo.tiers.base import Unavailable, Usage
from skipstone.core.memo.tiers.memory import MemoryTier
from skipstone.core.memo.tiers.redis import RedisTier
from skipstone.core.memo.tiers.redis_address import with_password
from skipstone.tests.memo.fakes import data, get
from skipstone.tests.memo.test_codec import HOSTILE
from skipstone.tests.memo.test_earlier_versions import check

redis = pytest.importorskip("redis", reason='Redis\' package is missing: pip install "redis>=5"')
PROGRAM = shutil.which("redis-server") or shutil.which("valkey-server")
pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason="redis-server is missing (Debian: apt-get install redis-server)"
)

A, B, C = (key("vae", name) for name in "abc")
TEXT = key("text", "a")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """A redis-server of our own on a free port of this machine."""

    def __init__(self, folder, *options, tls=False):
        self.folder, self.options, self.tls, self.port = folder, options, tls, free_port()
        self.url = f"redis{'s' * tls}://127.0.0.1:{self.port}"
        self.start()

    def start(self):
        ports = ["--port", "0", "--tls-port"] if self.tls else ["--port"]
        quiet = ["--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--dir", str(self.folder)]
        command = [PROGRAM, *ports, str(self.port), *quiet, *self.options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        for _ in range(1000):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.01)
        raise RuntimeError("redis-server does not start")

    def stop(self):
        self.process.kill()
        self.process.wait()

    def client(self, **more):
        return redis.Redis(port=self.port, **more)


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def server(shared_server):
    """One that is empty."""
    shared_server.client().flushall()
    return shared_server


@pytest.fixture
def start(tmp_path):
    """Starts servers that are stopped again."""
    servers = []

    def begin(*options, **more):
        servers.append(Server(tmp_path, *options, **more))
        return servers[-1]

    yield begin
    for one in servers:
        one.process.send_signal(signal.SIGCONT)
        one.stop()


class Counting(RedisTier):
    """How often a run came to ask it."""

    asked = 0

    def get(self, key, on_progress):
        self.asked += 1
        return super().get(key, on_progress)


def tier(url, **more):
    return Counting(url, **{"stall_timeout": 10.0} | more)  # the machine may be busy


@contextlib.contextmanager
def store(*tiers, ready=True):
    opened = Store(tiers)
    assert not ready or opened.ready(10)
    yield opened
    opened.close(5)


def connected(url, **more):
    one = tier(url, **more)
    one.probe()
    return one


def place(name):
    return f"skipstone:1:{name.kind}:{name.digest}"


def latent():
    return torch.randn(1, 16, 64, 64, generator=torch.Generator().manual_seed(1))


# what it is for


def test_what_one_put_another_gets(server):
    one, other = connected(server.url), connected(server.url)
    one.put(A, data(latent()))
    assert get(other, A) == data(latent())
    assert get(other, B) is None
    one.delete(A)
    assert get(other, A) is None


def test_through_stores_and_back(server):
    big = {"samples": torch.randn(3, 500_000), "mask": torch.zeros(1 << 20, dtype=torch.bool)}
    with store(tier(server.url)) as one, store(MemoryTier(1 << 26, reserve=0), tier(server.url)) as other:
        one.compute(A, lambda: big)
        assert one.flush()
        found = other.get(A)
        assert torch.equal(found["samples"], big["samples"])
        assert torch.equal(found["mask"], big["mask"])
        found["samples"].zero_()
        assert torch.equal(other.get(A)["samples"], big["samples"])
        assert other.report()["tiers"]["memory"]["hits"] == 1


def test_of_two_servers_one_computes(server):
    at_it, go, found = threading.Event(), threading.Event(), []

    def slow():
        at_it.set()
        go.wait(20)
        return 42

    def never():
        raise AssertionError("computed twice")

    with store(tier(server.url)) as one, store(tier(server.url)) as other:
        first = threading.Thread(target=one.compute, args=(A, slow))
        first.start()
        assert at_it.wait(10)
        second = threading.Thread(target=lambda: found.append(other.compute(A, never)))
        second.start()
        go.set()
        first.join(20)
        second.join(20)
        assert one.flush()
    assert found == [42]
    assert server.client().keys("*computing*") == []


def test_claims(server):
    one, other = connected(server.url), connected(server.url)
    assert one.claim(A, 2.5).ours
    assert one.claim(A, 2.5).ours
    claim = other.claim(A, None)
    assert (claim.ours, claim.estimate) == (False, 2.5)
    other.release(A)
    assert not other.claim(A, None).ours
    assert 0 < server.client().pttl(place(A) + ":computing") <= 5000
    server.client().pexpire(place(A) + ":computing", 100_000)
    one.renew(A)
    assert server.client().pttl(place(A) + ":computing") <= 5000
    one.release(A)
    assert other.claim(A, None).ours


FOREIGN = [
    b"",
    b"someone 1.000",
    b"0" * 16,
    b"0" * 16 + b" nan",
    b"0" * 16 + b" -1.000",
    b"0" * 16 + b" 1e9",
    b"\xff" * 5000,
]


@pytest.mark.parametrize("said", FOREIGN)
def test_a_claim_that_is_none_is_not_waited_for(server, said):
    server.client().set(place(A) + ":computing", said, px=4000)
    assert connected(server.url).claim(A, None).ours


def test_a_claim_that_never_lapses_is_not_waited_for(server):
    server.client().set(place(A) + ":computing", b"0" * 16 + b" 1.000")
    assert connected(server.url).claim(A, None).ours
    server.client().pexpire(place(A) + ":computing", 10**9)
    assert connected(server.url).claim(A, None).ours


WRITTEN = Path(__file__).parent / "written_by_b77e3a2"


@pytest.mark.parametrize("kind", ["vae", "text", "image", "loader", "node"])
def test_entries_of_earlier_versions_open(server, kind):
    name = key(kind, "written by the code at b77e3a2")
    server.client().set(place(name), (WRITTEN / f"{kind}.redis").read_bytes())
    check(kind, decode(name, get(connected(server.url), name)).value)


def test_deflated_entries_of_earlier_versions_are_misses_without_a_word(server, caplog):
    name = key("vae", "a mask, deflated")
    server.client().set(place(name), (WRITTEN / "mask.redis").read_bytes())
    with caplog.at_level(logging.WARNING), store(tier(server.url)) as opened:
        assert opened.compute(name, lambda: 7) == 7
        assert opened.flush()
        assert opened.get(name) == 7
    assert said(caplog) == []


def test_entries_live_on_while_they_are_used(server):
    one = connected(server.url, ttl=1000)
    one.put(A, data())
    assert 990_000 < server.client().pttl(place(A)) <= 1_000_000
    server.client().pexpire(place(A), 5000)
    get(one, A)
    assert server.client().pttl(place(A)) > 990_000


def test_usage_and_clear_touch_what_is_ours_alone(server):
    one, client = connected(server.url, ttl=1000), server.client()
    for name in (A, B, C, TEXT):
        one.put(name, data(name=name))
    theirs = ["x", "skipstone:1:vae:x", "skipstone:0:" + place(A)[12:], place(A) + "0", place(A) + ":computing"]
    for name in theirs:
        client.set(name, "mine")
    size = len(data()) + 1
    assert one.usage() == {"vae": Usage(3, 3 * size), "text": Usage(1, len(data(name=TEXT)) + 1)}
    client.pexpire(place(A), 900_000)  # unused for 100 s
    assert one.clear(older_than=50) == Usage(1, size)
    assert one.clear(kind="text").entries == 1
    assert one.clear(kind="none") == Usage()
    assert one.clear() == Usage(2, 2 * size)
    assert sorted(k.decode() for k in client.scan_iter()) == sorted(theirs)


def test_what_is_too_large_is_not_sent_and_not_fetched(server):
    small, large = connected(server.url, largest=1000), connected(server.url)
    with pytest.raises(NotCacheable, match="larger"):
        small.put(A, data(latent()))
    large.put(A, data(latent()))
    assert get(small, A) is None


# servers that are not what they should be


def computes(opened, names=range(5)):
    """What a run does: all misses are computed."""
    return [opened.compute(key("vae", "run", i), lambda: 7) for i in names] == [7] * len(names)


def said(caplog):
    return [r.getMessage() for r in caplog.records if r.getMessage().startswith("[Skipstone] encode cache: redis")]


def test_a_dead_server_is_never_asked_and_said_once(caplog):
    one = tier(f"redis://127.0.0.1:{free_port()}")
    with caplog.at_level(logging.WARNING), store(one, ready=False) as opened:
        assert computes(opened)
        assert opened.flush(10)
    assert one.asked == 0
    assert len(said(caplog)) == 1
    assert "no connection to 127.0.0.1:" in said(caplog)[0]


def test_a_server_that_dies_is_asked_once_more_and_used_again_when_it_is_back(start, caplog):
    server = start()
    one = tier(server.url)
    with caplog.at_level(logging.WARNING), store(one) as opened:
        opened.put(A, "x", 1.0)
        assert opened.flush()
        server.stop()
        one.asked = 0
        assert computes(opened)
        assert one.asked == 1
        server.start()
        assert opened.ready(30)
        opened.put(B, "y", 1.0)
        opened.flush()
        for _ in range(1000):
            if server.client().exists(place(B)):
                break
            time.sleep(0.01)
            opened.put(B, "y", 1.0)
        assert opened.get(B) == "y"
    assert len(said(caplog)) == 1
    assert "no connection to 127.0.0.1:" in said(caplog)[0]


def test_a_server_that_hangs_costs_one_patience(start, caplog):
    server = start()
    one = tier(server.url, stall_timeout=0.04)
    with caplog.at_level(logging.WARNING), store(one) as opened:
        server.process.send_signal(signal.SIGSTOP)
        assert computes(opened, range(20))
        assert one.asked == 1
        server.process.send_signal(signal.SIGCONT)
    assert any("40 ms" in line for line in said(caplog))


def test_a_full_server_is_said_and_still_read(start, caplog):
    server = start("--maxmemory-policy", "noeviction")
    with caplog.at_level(logging.WARNING), store(tier(server.url)) as opened:
        opened.put(A, "x", 1.0)
        assert opened.flush()
        server.client().config_set("maxmemory", "1mb")
        server.client().config_set("maxmemory", "1")
        assert computes(opened)
        assert opened.flush()
        assert opened.get(A) == "x"
        assert opened.report()["not_kept"]["redis: accepts no writes at present"] == 5
    assert len(said(caplog)) == 1
    assert "maxmemory-policy" in said(caplog)[0]


def test_a_replica_is_said_and_still_read(start, caplog):
    server = start()
    with caplog.at_level(logging.WARNING), store(tier(server.url)) as opened:
        opened.put(A, "x", 1.0)
        assert opened.flush()
        client = server.client()
        client.config_set("replica-serve-stale-data", "yes")
        client.execute_command("REPLICAOF", "127.0.0.1", str(free_port()))
        assert computes(opened)
        assert opened.flush()
        assert opened.get(A) == "x"
    assert len(said(caplog)) == 1
    assert "master" in said(caplog)[0]


def test_a_password(start, caplog):
    server = start("--requirepass", "s3cret/@")
    right = server.url.replace("://", "://:s3cret%2F%40@")
    for url in (server.url, server.url.replace("://", "://:wr0ng@"), server.url.replace("://", "://some:wr0ng@")):
        caplog.clear()
        one = tier(url)
        with caplog.at_level(logging.DEBUG), store(one, ready=False) as opened:
            assert computes(opened)
            opened.flush()
            assert opened.report()["tiers"]["redis"]["hits"] == 0
        assert one.asked == 0
        assert any("another user or password" in line for line in said(caplog))
        assert "wr0ng" not in caplog.text
    with store(tier(right)) as opened:
        opened.put(A, "x", 1.0)
        assert opened.flush()
        assert opened.get(A) == "x"


def bomb():
    """64 MB that fit into 64 kB, and say so."""
    return b"\1" + struct.pack("<Q", 64 << 20) + zlib.compress(bytes(64 << 20), 9)


POISON = {f"{name}, plain": b"\0" + content for name, content in HOSTILE.items()}
POISON |= {
    f"{name}, deflated": b"\1" + struct.pack("<Q", len(content)) + zlib.compress(content, 1)
    for name, content in HOSTILE.items()
}
POISON |= {
    "a bomb": bomb(),
    "a bomb that says it is small": b"\1" + struct.pack("<Q", 100) + zlib.compress(bytes(64 << 20), 9),
    "a bomb of 2^63 bytes": b"\1" + struct.pack("<Q", 2**63) + zlib.compress(bytes(1 << 20), 9),
    "no zlib": b"\1" + struct.pack("<Q", 100) + b"garbage" * 20,
    "zlib cut short": b"\1" + struct.pack("<Q", len(data())) + zlib.compress(data())[:-9],
    "no size": b"\1abc",
    "another marker": b"\2" + data(),
    "no marker": data(),
    "one byte": b"\0",
}


def test_poison_is_a_miss_and_is_replaced(server):
    client = server.client()
    for what, poison in POISON.items():
        client.set(place(A), poison)
        with store(tier(server.url)) as opened:
            assert opened.compute(A, lambda: "right") == "right", what
            assert opened.flush()
            assert opened.get(A) == "right", what


def test_what_is_no_string_is_a_miss_and_is_replaced(server):
    server.client().rpush(place(A), "a", "b")
    with store(tier(server.url)) as opened:
        assert opened.compute(A, lambda: "right") == "right"
        assert opened.flush()
        assert opened.get(A) == "right"


def test_a_poisoned_server_is_not_asked_for_ever(server, caplog):
    names = [key("vae", i) for i in range(50)]
    for name in names:
        server.client().set(place(name), b"rubbish" * 1000)
    one = tier(server.url)
    with caplog.at_level(logging.WARNING), store(one) as opened:
        assert all(opened.get(name) is None for name in names)
        assert one.asked < 10
    assert len(said(caplog)) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"$999999999999\r\nx",
        b"*1000000000\r\n",
        b"-ERR no\r\n",
        b":" + b"9" * 9999,
    ],
    ids=lambda answer: repr(answer[:12]),
)
def test_what_is_no_redis_is_never_asked(answer, caplog, monkeypatch):
    """Accepts connections and says nothing, or something else."""
    monkeypatch.setattr(redis_address, "SOCKET", 0.2)
    listener = socket.create_server(("127.0.0.1", 0))
    open_ones = []

    def serve():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                open_ones.append(connection)
                if answer:
                    connection.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    one = tier(f"redis://127.0.0.1:{listener.getsockname()[1]}")
    with caplog.at_level(logging.WARNING), store(one, ready=False) as opened:
        assert computes(opened)
        opened.flush(5)
        listener.close()
        for connection in open_ones:
            connection.close()
    assert one.asked == 0
    assert said(caplog)


def test_tls_checks_the_certificate(start, tmp_path, caplog):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is missing")
    certificate, secret = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*make.split(), "-out", certificate, "-keyout", secret], check=True, capture_output=True)
    files = ["--tls-cert-file", certificate, "--tls-key-file", secret, "--tls-ca-cert-file", certificate]
    server = start(*map(str, files), "--tls-auth-clients", "no", tls=True)
    with store(tier(f"{server.url}?ssl_ca_certs={certificate}")) as opened:
        opened.put(A, "x", 1.0)
        assert opened.flush()
        assert opened.get(A) == "x"
    for url in (server.url, server.url.replace("127.0.0.1", "localhost") + f"?ssl_ca_certs={certificate}"):
        caplog.clear()
        one = tier(url)
        with caplog.at_level(logging.WARNING), store(one, ready=False) as opened:
            assert computes(opened)
            opened.flush()
        assert one.asked == 0
        assert said(caplog)


# addresses


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1", "http://:s3cret@host", "file:///etc/passwd", "redis://:s3c/ret@host:1", "redis://:s3c[ret@host"],
)
def test_an_address_that_is_none_is_refused_without_repeating_it(url):
    with pytest.raises(ValueError, match="address of Redis") as raised:
        RedisTier(url)
    assert "s3c" not in str(raised.value)


def test_an_option_that_is_none_is_said_without_repeating_it():
    one = RedisTier("redis://:s3cret@127.0.0.1:1?s3cret=1")
    with pytest.raises(Unavailable) as raised:
        one.probe()
    assert "s3cret" not in str(raised.value)


def test_without_the_package_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "redis", None)
    one = RedisTier("redis://127.0.0.1")
    with pytest.raises(Unavailable, match="pip install"):
        one.probe()


def test_a_name_that_nobody_can_resolve_holds_nobody_up(monkeypatch, caplog):
    thinking, go = threading.Event(), threading.Event()

    def slow(*_, **__):
        thinking.set()
        go.wait(20)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    one = tier("redis://redis.invalid")
    with store(one, ready=False) as opened:
        assert thinking.wait(10)
        assert computes(opened)
        go.set()
    assert one.asked == 0


# trying the connection


def test_a_trial_writes_and_reads_and_leaves_nothing(server):
    one = RedisTier(server.url)
    assert 0 < one.trial() < 5
    (name,) = server.client().keys()
    assert server.client().pttl(name) > 0  # it goes by itself
    with pytest.raises(Unavailable, match="no connection"):
        one.usage()  # the trial had a connection of its own


def test_a_trial_finds_a_server_that_keeps_nothing(server, monkeypatch):
    """A proxy in front of another kind of server."""
    monkeypatch.setattr(redis.Redis, "set", lambda *args, **more: True)
    with pytest.raises(Unavailable, match="does not keep values"):
        RedisTier(server.url).trial()


def test_hundreds_of_entries_are_counted_and_cleared(server, monkeypatch):
    one = connected(server.url)
    for i in range(1100):
        server.client().set(place(key("vae", i)), b"x")
    assert one.usage()["vae"] == Usage(1100, 1100)
    monkeypatch.setattr(redis_tier, "COUNTING", -1.0)
    with pytest.raises(Unavailable, match="entries"):
        one.usage()
    assert one.clear().entries == 1100


def test_a_command_that_the_server_does_not_know_is_said(start):
    server = start("--rename-command", "SET", "no-such-command")
    with pytest.raises(Unavailable, match="rejects"):
        RedisTier(server.url).trial()


def test_a_trial_says_what_is_wrong(start):
    with pytest.raises(Unavailable, match=r"no connection to 127\.0\.0\.1:"):
        RedisTier(f"redis://127.0.0.1:{free_port()}").trial()
    with pytest.raises(Unavailable, match="another user or password"):
        RedisTier(start("--requirepass", "s3cret").url).trial()
    with pytest.raises(Unavailable, match="is full"):
        RedisTier(start("--maxmemory", "1", "--maxmemory-policy", "noeviction").url).trial()


@pytest.mark.parametrize(
    ("url", "holds"),
    [
        ("redis://there", False),
        ("redis://me@there:6379/1", False),
        ("redis://:s3cret@there", True),
        ("rediss://me:s3cret@there/0", True),
        ("redis://there?password=s3cret", True),
        ("unix:///run/redis.sock?db=1", False),
        ("redis://:s3[cret@there", True),
        ("redis://[", False),
    ],
)
def test_an_address_that_holds_a_password(url, holds):
    assert with_password(url) == holds


# several teams, read-only workers, signatures


def test_teams_on_one_server_are_apart(server):
    one, other, none = (connected(server.url, namespace=n) for n in ("red", "blue", ""))
    one.put(A, data())
    other.put(B, data(name=B))
    none.put(C, data(name=C))
    for tier_, there in ((one, A), (other, B), (none, C)):
        assert [n for n in (A, B, C) if get(tier_, n) is not None] == [there]
        assert tier_.usage()["vae"].entries == 1
    assert one.clear().entries == 1 and get(other, B) is not None and get(none, C) is not None
    assert none.clear().entries == 1 and get(other, B) is not None
    assert all(each.claim(A, None).ours for each in (one, other, none))


def test_a_read_only_worker_changes_nothing(server):
    writer, reader = connected(server.url), connected(server.url, read_only=True)
    writer.put(A, data())
    server.client().pexpire(place(A), 5000)
    before = set(server.client().keys())
    assert get(reader, A) == data()
    assert server.client().pttl(place(A)) <= 5000, "not even the time of its use"
    reader.put(B, data(name=B))
    reader.delete(A)
    assert reader.clear() == Usage()
    assert reader.claim(C, 1.0).ours
    reader.renew(C)
    reader.release(C)
    assert set(server.client().keys()) == before
    with store(tier(server.url, read_only=True)) as opened:
        assert opened.compute(C, lambda: 7) == 7
        assert opened.flush()
    assert set(server.client().keys()) == before


def test_a_read_only_worker_needs_no_right_to_write(start, caplog):
    server = start()
    writer = connected(server.url)
    writer.put(A, data())
    admin = server.client()
    admin.acl_setuser(
        "reader", enabled=True, passwords=["+pw"], keys=["skipstone:*"], categories=["+@read", "+@connection"]
    )
    url = server.url.replace("://", "://reader:pw@")
    with caplog.at_level(logging.WARNING), store(tier(url, read_only=True)) as opened:
        assert opened.get(A) is not None
        assert opened.compute(B, lambda: 7) == 7
        assert opened.flush()
    assert said(caplog) == []


def test_an_acl_user_with_rights_on_its_keys_alone(start, caplog):
    server = start()
    server.client().acl_setuser(
        "team",
        enabled=True,
        passwords=["+pw"],
        keys=["skipstone:1@red:*", "skipstone:probe", "skipstone:trial:*"],
        categories=["+@all"],
    )
    url = server.url.replace("://", "://team:pw@")
    with caplog.at_level(logging.WARNING), store(tier(url, namespace="red")) as opened:
        assert opened.compute(A, lambda: 7) == 7
        assert opened.flush()
        assert opened.get(A) == 7
    assert said(caplog) == []
    assert RedisTier(url, namespace="red").trial() >= 0


@pytest.mark.parametrize("forgery", ["unsigned", "another key", "another place", "changed", "cut"])
def test_only_signed_entries_are_taken(server, forgery):
    ours, plain, other = (connected(server.url, secret=s) for s in ("our key", "", "their key"))
    ours.put(A, data())
    assert get(ours, A) == data()
    assert get(plain, A) is None
    with pytest.raises(CorruptEntry, match="wrongly signed"):
        get(other, A)
    client = server.client()
    if forgery == "unsigned":
        plain.put(A, data())
    elif forgery == "another key":
        other.put(A, data())
    elif forgery == "another place":
        ours.put(B, data(name=B))
        client.rename(place(B), place(A))
    else:
        stored = client.get(place(A))
        client.set(place(A), stored[:-1] + b"?" if forgery == "changed" else stored[:-1])
    with store(tier(server.url, secret="our key")) as opened:
        assert opened.compute(A, lambda: "right") == "right"
        assert opened.flush()
        assert opened.get(A) == "right"


def test_who_has_no_key_reads_no_signed_entries_and_says_nothing(server, caplog):
    connected(server.url, secret="our key").put(A, data())
    with caplog.at_level(logging.WARNING), store(tier(server.url)) as opened:
        assert opened.compute(A, lambda: 7) == 7
    assert said(caplog) == []
