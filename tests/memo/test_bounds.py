"""Whatever bytes and servers do, a run waits for a bounded time and memory stays bounded."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
import tracemalloc

import pytest
import torch

from skipstone.core.memo.codec import HEADER, MAGIC, Entry, decode, encode
from skipstone.core.memo.errors import CorruptEntry
from skipstone.core.memo.keys import key
from skipstone.core.memo.stats import Stats
from skipstone.core.memo.store import UNKNOWN, Store
from skipstone.core.memo.tier_worker import TierWorker
from skipstone.core.memo.tiers import redis_address
from skipstone.core.memo.tiers.base import Unavailable
from skipstone.core.memo.tiers.disk import DAY
from skipstone.core.memo.tiers.redis import CHUNK, RedisTier
from skipstone.core.memo.tiers.redis_address import with_password
from skipstone.tests.memo.fakes import Fake
from skipstone.tests.memo.test_codec import sealed
from skipstone.tests.memo.test_disk import aged, data, get, tier

A, B = key("vae", "a"), key("vae", "b")


# entries (findings 9 and 16)


def bomb(size):
    """An entry whose JSON is many small lists."""
    about = {"format": 1, "key": str(A), "cost": 1.0, "created": 1.0, "value": ["l", *[["l"]] * (size // 5)]}
    header = json.dumps({"__metadata__": {"skipstone": json.dumps(about, separators=(",", ":"))}}).encode()
    return sealed(struct.pack("<Q", len(header)) + header)


def test_a_bomb_of_json_is_not_parsed():
    with pytest.raises(CorruptEntry):
        decode(A, bomb(4 << 20))
    tracemalloc.start()
    with contextlib.suppress(CorruptEntry):
        decode(A, bomb(HEADER // 2))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 << 20


def test_decoding_takes_no_more_than_the_entry_again():
    entry = encode(A, Entry(torch.rand(4 << 20), 1.0, 1.0))
    tracemalloc.start()
    value = decode(A, entry).value
    peak = tracemalloc.get_traced_memory()[1]  # torch's own memory is not in it
    tracemalloc.stop()
    assert value.nbytes == 16 << 20 and peak < 1 << 20


def test_a_file_that_is_larger_than_it_says_is_not_read(tmp_path):
    one = tier(tmp_path)
    one.put(A, data())
    path = one._path(A)
    with path.open("r+b") as file:
        file.truncate(1 << 30)  # sparse
    tracemalloc.start()
    with pytest.raises(CorruptEntry):
        get(one, A)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_a_header_that_promises_much_is_held_against_the_size(tmp_path):
    header = json.dumps(
        {"__metadata__": {"skipstone": "{}"}, "0": {"dtype": "U8", "shape": [1 << 30], "data_offsets": [0, 1 << 30]}}
    )
    path = tier(tmp_path)._path(A)
    path.parent.mkdir(parents=True)
    path.write_bytes(MAGIC + bytes(32) + struct.pack("<Q", len(header)) + header.encode() + bytes(1000))
    with pytest.raises(CorruptEntry):
        get(tier(tmp_path), A)


# a tier that is slow in all (findings 11, 12, 15)


@pytest.fixture
def worker():
    made = []

    def make(one):
        made.append(TierWorker(one, Stats()))
        assert made[-1].ready(10)
        return made[-1]

    yield make
    for each in made:
        each.close(1)


class Dripping(Fake):
    """Always gets on, and is never done."""

    def __init__(self):
        super().__init__(stall_timeout=5.0)
        self.stop = threading.Event()

    def get(self, key, on_progress):
        if "none" in str(key):
            return None
        while not self.stop.wait(0.005):
            on_progress()
        return None


def test_a_tier_that_drips_is_waited_for_no_longer_than_computing_takes(worker):
    one = Dripping()
    one.stall_timeout = 0.1
    read = worker(one)
    assert read.get(A, limit=0.2) is None
    assert not read.serves
    assert any("slower than computing" in what for _, what in read.stats.troubles)
    one.stop.set()


def test_a_store_waits_as_long_as_computing_took(monkeypatch):
    one = Dripping()
    one.stall_timeout = 0.05
    store = Store([one])
    assert store.ready(10)
    store.put(B, 1, 0.1)
    asked = []
    real = store._workers[0].get

    def noted(key, limit, waiting):
        asked.append(limit)
        return real(key, limit, waiting)

    monkeypatch.setattr(store._workers[0], "get", noted)
    assert store.compute(A, lambda: 7) == 7
    assert asked[0] == pytest.approx(0.1)
    one.stop.set()
    store.close(1)


def test_cancel_is_heard_while_a_tier_is_waited_for(worker):
    one = Dripping()
    read = worker(one)

    def cancelled():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read.get(A, limit=60.0, waiting=cancelled)
    assert read.serves, "nothing is wrong with the tier"
    one.stop.set()


def test_a_strangers_claim_without_an_estimate_is_waited_for_briefly():
    assert UNKNOWN <= 5.0


class FakeRedis:
    """Answers as a script says, on a port of its own."""

    def __init__(self, answer):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self.listener.getsockname()[1]}"
        self.answer = answer
        self.asked = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection):
        with contextlib.suppress(OSError, ValueError), connection.makefile("rb") as lines:
            while line := lines.readline():
                words = []
                for _ in range(int(line[1:])):
                    words.append(lines.read(int(lines.readline()[1:]) + 2)[:-2])
                self.asked.append(words)
                connection.sendall(self.answer([w.decode("latin-1") for w in words]))


def resp(value):
    if isinstance(value, int):
        return b":%d\r\n" % value
    if isinstance(value, list):
        return b"*%d\r\n%s" % (len(value), b"".join(map(resp, value)))
    return b"$%d\r\n%s\r\n" % (len(value), value)


def usual(words):
    name = words[0].upper()
    if name == "PING":
        return b"+PONG\r\n"
    if name in ("STRLEN", "PEXPIRE"):
        return resp(0)
    return b"+OK\r\n"


def test_a_server_that_answers_byte_by_byte_is_a_miss():
    entry = b"\0" + encode(A, Entry(torch.zeros(1 << 20), 1.0, 1.0))

    def answer(words):
        if words[0] == "STRLEN" and str(A.digest) in words[1]:
            return resp(len(entry))
        if words[0] == "GETRANGE":
            return resp(entry[int(words[2]) : int(words[2]) + 1])
        return usual(words)

    server = FakeRedis(answer)
    one = RedisTier(server.url)
    one.probe()
    assert one.get(A, lambda: None) is None
    assert sum(words[0] == b"GETRANGE" for words in server.asked) < 3
    one.close()


def cluster(port):
    """Answers as the only node of a Cluster does, which serves all slots."""
    keyed = [
        [name, arity, [], 1, 1, 1] for name, arity in ((b"strlen", 2), (b"getrange", 4), (b"pexpire", -3), (b"set", -3))
    ]

    def answer(words):
        if words[0] == "CLUSTER":
            return resp([[0, 16383, [b"127.0.0.1", port, b"0" * 40]]])
        return resp(keyed) if words[0] == "COMMAND" else usual(words)

    return answer


class Flood(FakeRedis):
    """Answers GETRANGE with 3 GB, as far as they are taken. sent: bytes."""

    sent = 0

    def _talk(self, connection):
        with contextlib.suppress(OSError), connection.makefile("rb") as lines:
            while line := lines.readline():
                words = [lines.read(int(lines.readline()[1:]) + 2)[:-2] for _ in range(int(line[1:]))]
                if words[0] != b"GETRANGE":
                    connection.sendall(self.answer([w.decode("latin-1") for w in words]))
                    continue
                connection.sendall(b"$3000000000\r\n")
                for _ in range(3000):
                    self.sent += connection.send(bytes(1_000_000))


@pytest.mark.parametrize("kind", ["redis", "redis+cluster"])
def test_an_answer_of_gigabytes_is_read_no_further_than_a_reply_may_be_long(kind, monkeypatch):
    monkeypatch.setattr(redis_address, "SOCKET", 0.2)
    server = Flood(usual)
    port = server.listener.getsockname()[1]
    server.answer = cluster(port) if kind == "redis+cluster" else usual
    one = RedisTier(f"{kind}://127.0.0.1:{port}")
    one.probe()
    with pytest.raises(Unavailable):
        one.get(A, lambda: None)
    one.close()
    assert 0 < server.sent < 100_000_000, "what the sockets hold, and no more"


class Endless(FakeRedis):
    """Answers every command with the beginning of a reply and then as many bytes of it as are taken. sent: bytes."""

    def __init__(self, beginning, more):
        self.beginning, self.more, self.sent = beginning, more, 0
        super().__init__(usual)

    def _talk(self, connection):
        with contextlib.suppress(OSError):
            connection.recv(1)
            connection.sendall(self.beginning)
            for _ in range(100):
                connection.sendall(self.more * (1_000_000 // len(self.more)))
                self.sent += 1_000_000


@pytest.mark.parametrize("kind", ["redis://{}", "redis+sentinel://{}/service", "redis+cluster://{}"])
@pytest.mark.parametrize(
    ("beginning", "more"),
    [(b"$3000000000\r\n", b"x"), (b"+", b"x"), (b"*1000000000\r\n", b":1\r\n")],
    ids=["a string", "a line", "a list"],
)
def test_no_reply_of_any_kind_of_server_is_read_without_end(kind, beginning, more, monkeypatch):
    monkeypatch.setattr(redis_address, "SOCKET", 0.2)
    server = Endless(beginning, more)
    with pytest.raises(Unavailable):
        RedisTier(kind.format(server.url.removeprefix("redis://"))).probe()
    assert server.sent < 60_000_000, "what the sockets of some attempts hold, and no more"


def test_pieces_are_asked_for_at_once():
    entry = b"\0" + encode(A, Entry(torch.rand(5 * CHUNK // 4), 1.0, 1.0))
    when = []

    def answer(words):
        when.append(words[0])
        if words[0] == "STRLEN" and str(A.digest) in words[1]:
            return resp(len(entry))
        if words[0] == "GETRANGE":
            return resp(entry[int(words[2]) : int(words[3]) + 1])
        return usual(words)

    server = FakeRedis(answer)
    one = RedisTier(server.url)
    one.probe()
    beats = []
    got = one.get(A, lambda: beats.append(1))
    assert got == entry[1:]
    assert len(beats) == when.count("GETRANGE") == 6
    assert one.get(A, lambda: None) == entry[1:], "the connection is as good as before"
    one.close()


def test_a_value_that_shrinks_meanwhile_is_a_miss_and_the_next_is_right():
    entry = b"\0" + encode(A, Entry(torch.rand(5 * CHUNK // 4), 1.0, 1.0))
    gone = [True]

    def answer(words):
        if words[0] == "STRLEN" and str(A.digest) in words[1]:
            return resp(len(entry))
        if words[0] == "GETRANGE":
            start, end = int(words[2]), int(words[3]) + 1
            return resp(b"" if gone[0] and start == 2 * CHUNK else entry[start:end])
        return usual(words)

    one = RedisTier(FakeRedis(answer).url)
    one.probe()
    assert one.get(A, lambda: None) is None
    gone[0] = False
    assert one.get(A, lambda: None) == entry[1:]
    one.close()


# addresses (findings 8 and 20)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:4711/x@h",
        "redis://s3cret/x@h",
        "rediss://:s3c?ret@h",
        "redis://:s3c#ret@h:1/0",
        "redis://",
        "redis://:1",
    ],
)
def test_a_password_that_is_not_escaped_is_never_taken_for_a_host(url):
    with pytest.raises(ValueError, match="address of Redis") as raised:
        RedisTier(url)
    assert "s3c" not in str(raised.value) and "4711" not in str(raised.value)
    assert with_password(url) == ("@" in url)


def test_a_unix_socket(tmp_path):
    from skipstone.tests.memo.test_redis import PROGRAM, Server

    if PROGRAM is None:
        pytest.skip("redis-server is missing")
    server = Server(tmp_path, "--unixsocket", str(tmp_path / "s"))
    try:
        one = RedisTier(f"unix://{tmp_path / 's'}")
        one.probe()
        one.put(A, data())
        assert one.get(A, lambda: None) == data()
        assert one.trial() >= 0
        one.close()
    finally:
        server.stop()


# the disk (findings 13, 14, 17)


def test_several_processes_keep_one_limit(tmp_path):
    """Each looks at the folder again after a share of the limit."""
    size = len(data())
    tiers = [tier(tmp_path, limit=100 * size) for _ in range(6)]
    for one in tiers:
        one.maintain()
    for i in range(600):
        one = tiers[i % 6]
        one.put(key("vae", i), data(name=key("vae", i)))
        one.maintain()
    assert sum(u.bytes for u in tiers[0].usage().values()) <= 1.4 * 100 * size


@pytest.mark.parametrize("which", ["kind", "shard"])
def test_a_linked_folder_is_refused(tmp_path, which):
    folder, elsewhere = tmp_path / "memo", tmp_path / "elsewhere"
    path = tier(folder)._path(A)
    linked = path.parent.parent if which == "kind" else path.parent
    linked.parent.mkdir(parents=True)
    elsewhere.mkdir()
    linked.symlink_to(elsewhere)
    one = tier(folder)
    with pytest.raises(Unavailable, match="linked folder"):
        one.put(A, data())
    assert list(elsewhere.rglob("*.memo")) == []
    target = elsewhere / path.relative_to(linked)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data())
    assert get(one, A) is None, "what is not counted is not given either"


@pytest.mark.parametrize("ahead", [40 * DAY, 3650 * DAY])
def test_a_process_that_starts_with_a_clock_ahead_empties_nothing(tmp_path, monkeypatch, ahead):
    one = tier(tmp_path)
    for name, days in ((A, 0), (B, 29)):
        one.put(name, data(name=name))
        aged(one, name, days * DAY)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + ahead)
    other = tier(tmp_path)
    other.maintain()
    assert get(other, A) is not None
    other._bytes = None  # another look, now that one was used
    other.maintain()
    assert get(other, B) is not None


def test_what_nobody_used_for_long_still_goes(tmp_path):
    one = tier(tmp_path)
    for name, days in ((A, 0), (B, 40)):
        one.put(name, data(name=name))
        aged(one, name, days * DAY)
    one.maintain()
    assert get(one, A) is not None and get(one, B) is None
