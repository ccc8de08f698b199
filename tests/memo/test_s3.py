"""The S3 tier with a real HTTP store: shared, bounded, and however the store behaves at worst a miss."""

import contextlib
import logging
import socketserver
import sys
import threading
import time

import pytest
import torch

from skipstone.core.memo import status
from skipstone.core.memo.codec import decode
from skipstone.core.memo.errors import CorruptEntry, NotCacheable
from skipstone.core.memo.keys import key
from skipstone.core.memo.store import Store
from skipstone.core.memo.tiers import s3 as module
from skipstone.core.memo.tiers import s3_client
from skipstone.core.memo.tiers.base import LowerTier, Unavailable, Usage
from skipstone.core.memo.tiers.s3 import S3Tier
from skipstone.tests.memo.fakes import data, get
from skipstone.tests.memo.s3_store import CREDENTIALS, S3Store, needs_moto
from skipstone.tests.memo.test_codec import HOSTILE

A, B, C = (key("vae", name) for name in "abc")
TEXT = key("text", "a")


@pytest.fixture(autouse=True)
def credentials(monkeypatch, tmp_path):
    for name, value in {**CREDENTIALS, "AWS_CONFIG_FILE": str(tmp_path / "none")}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    made = S3Store(tmp_path_factory.mktemp("s3"))
    yield made
    made.stop()


@pytest.fixture
def bucket(shop):
    """The address of an empty bucket, and its endpoint."""
    return f"s3://{shop.bucket()}", shop.url


def tier(bucket, **more):
    address, endpoint = bucket
    return S3Tier(address, endpoint, **{"stall_timeout": 10.0} | more)


def connected(bucket, **more):
    one = tier(bucket, **more)
    one.probe()
    return one


def objects(shop, bucket):
    told = shop.client().list_objects_v2(Bucket=bucket[0].removeprefix("s3://"))
    return [about["Key"] for about in told.get("Contents", [])]


def raw(shop, bucket, name, body):
    shop.client().put_object(Bucket=bucket[0].removeprefix("s3://"), Key=name, Body=body)


def said(caplog):
    return [record.getMessage() for record in caplog.records if "encode cache" in record.getMessage()]


# a real store


@needs_moto
def test_what_one_put_another_gets(shop, bucket):
    assert isinstance(tier(bucket), LowerTier)
    one, other = connected(bucket), connected(bucket)
    assert get(other, A) is None
    latent = torch.randn(1, 16, 300, 300)  # 5.8 MB: more than one piece
    one.put(A, data(latent))
    assert objects(shop, bucket) == [f"1/vae/{A.digest}"]
    assert torch.equal(decode(A, get(other, A)).value, latent)
    one.delete(A)
    assert get(other, A) is None


@needs_moto
def test_a_prefix(shop, bucket):
    one = connected((bucket[0] + "/team/pictures/", bucket[1]))
    one.put(A, data())
    assert objects(shop, bucket) == [f"team/pictures/1/vae/{A.digest}"]
    assert get(one, A) == data() and get(connected(bucket), A) is None


@needs_moto
def test_a_put_is_conditional_and_a_value_is_renewed_all_the_same(shop, bucket):
    one = connected(bucket)
    one.put(A, data("first"))
    one.put(A, data("second"))
    assert decode(A, get(one, A)).value == "first"
    store = Store([tier(bucket)])
    assert store.ready(10)
    assert store.renew(A, lambda: "third") == "third"
    assert store.flush(10)
    assert store.get(A) == "third"
    store.close()


@needs_moto
def test_usage_and_clear_touch_what_is_ours_alone(shop, bucket):
    one = connected(bucket)
    for foreign in ("other/1/vae/" + A.digest, "1/vae/strange", "1/vae2", "2/vae/" + A.digest):
        raw(shop, bucket, foreign, b"not ours")
    for name in (A, B, TEXT):
        one.put(name, data(name=name))
    size = len(data()) + 1
    assert one.usage() == {"vae": Usage(2, 2 * size), "text": Usage(1, len(data(name=TEXT)) + 1)}
    assert one.clear(older_than=3600.0) == Usage()
    assert one.clear("vae") == Usage(2, 2 * size)
    assert get(one, A) is None and get(one, TEXT) is not None
    assert one.clear().entries == 1
    assert one.usage() == {}
    assert len(objects(shop, bucket)) == 4


@needs_moto
def test_a_count_that_takes_too_long_is_given_up(shop, bucket, monkeypatch):
    one = connected(bucket)
    one.put(A, data())
    monkeypatch.setattr(module, "COUNTING", -1.0)
    with pytest.raises(Unavailable, match="too many entries"):
        one.usage()


@needs_moto
def test_a_count_is_not_asked_for_again_at_once(shop, bucket):
    one = connected(bucket)
    assert one.usage() == {}
    one.put(A, data())
    assert one.usage() == {}, "listing costs money"
    one._counted = None
    assert one.usage()["vae"].entries == 1


@needs_moto
def test_no_look_up_and_no_write_lists(shop, bucket):
    one = tier(bucket)
    store = Store([one])
    assert store.ready(10)
    calls = []
    one._client.meta.events.register("before-call.s3", lambda model, **_: calls.append(model.name))
    assert store.compute(A, lambda: 7) == 7
    assert store.flush(10)
    assert store.compute(A, lambda: 8) == 7
    assert set(calls) == {"GetObject", "PutObject"} and calls.count("PutObject") == 1
    store.close()


@needs_moto
def test_what_is_too_large_is_not_sent_and_not_fetched(shop, bucket):
    large = data("x" * 4000)
    small = connected(bucket, largest=2000)
    with pytest.raises(NotCacheable, match="larger than"):
        small.put(A, large)
    connected(bucket).put(A, large)
    assert get(small, A) is None


@needs_moto
def test_teams_and_signers_are_apart(shop, bucket):
    settings = [{}, {"namespace": "red"}, {"namespace": "blue"}, {"secret": "k"}, {"namespace": "red", "secret": "k"}]
    tiers = [connected(bucket, **more) for more in settings]
    for i, one in enumerate(tiers):
        one.put(A, data(i))
    assert [decode(A, get(one, A)).value for one in tiers] == [0, 1, 2, 3, 4]
    assert tiers[1].clear().entries == 1
    assert [get(one, A) is None for one in tiers] == [False, True, False, False, False]


@needs_moto
@pytest.mark.parametrize("forgery", ["unsigned", "another key", "another place", "changed", "cut"])
def test_only_signed_entries_are_taken(shop, bucket, forgery):
    ours, plain, other = (connected(bucket, secret=s) for s in ("our key", "", "their key"))
    name = f"1.signed/vae/{A.digest}"
    ours.put(A, data())
    stored = shop.client().get_object(Bucket=bucket[0].removeprefix("s3://"), Key=name)["Body"].read()
    with pytest.raises(CorruptEntry, match="wrongly signed"):
        get(other, A)
    if forgery == "unsigned":
        raw(shop, bucket, name, b"\0" + data())
    elif forgery == "another key":
        ours.delete(A)
        other.put(A, data())
    elif forgery == "another place":
        ours.put(B, data(name=B))
        store_name = f"1.signed/vae/{B.digest}"
        copied = shop.client().get_object(Bucket=bucket[0].removeprefix("s3://"), Key=store_name)["Body"].read()
        raw(shop, bucket, name, copied)
    else:
        raw(shop, bucket, name, stored[:-1] + b"?" if forgery == "changed" else stored[:-1])
    store = Store([tier(bucket, secret="our key")])
    assert store.ready(10)
    assert store.compute(A, lambda: "right") == "right"
    assert store.flush(10)
    assert store.get(A) == "right"
    store.close()
    assert get(plain, A) is None


@needs_moto
def test_poison_is_a_miss_and_is_replaced(shop, bucket):
    store = Store([tier(bucket)])
    assert store.ready(10)
    hostile = [HOSTILE[name] for name in ("pickle in disguise", "an unknown dtype", "more after the end")]
    for poison in (b"", b"\0", b"x" * 200, b"\1" + data(), b"\2" + data(), *(b"\0" + h for h in hostile)):
        raw(shop, bucket, f"1/vae/{A.digest}", poison)
        assert store.compute(A, lambda: "right") == "right"
        assert store.flush(10)
        assert store.get(A) == "right", poison[:100]
    store.close()


@needs_moto
def test_a_read_only_worker_changes_nothing(shop, bucket):
    connected(bucket).put(A, data())
    reader = connected(bucket, read_only=True)
    assert get(reader, A) == data()
    reader.put(B, data(name=B))
    reader.delete(A)
    assert reader.clear() == Usage()
    assert objects(shop, bucket) == [f"1/vae/{A.digest}"]


@needs_moto
def test_a_trial_writes_and_reads_and_leaves_nothing(shop, bucket):
    assert 0 < tier(bucket).trial() < 10
    assert objects(shop, bucket) == []
    store = Store([tier(bucket)])
    ok, (sentence,) = status.check_connections(store)
    assert ok and sentence.startswith("S3 works")
    store.close()


@needs_moto
def test_a_store_that_dies_is_used_again_when_it_is_back(tmp_path, caplog):
    own = S3Store(tmp_path)
    try:
        address = f"s3://{own.bucket()}", own.url
        store = Store([tier(address)])
        assert store.ready(10)
        assert store.compute(A, lambda: 7) == 7
        assert store.flush(10)
        own.stop()
        with caplog.at_level(logging.WARNING):
            assert [store.compute(key("vae", i), iter([i]).__next__) for i in range(20)] == list(range(20))
        assert len(said(caplog)) == 1 and "no connection" in said(caplog)[0]
        own.start()  # which keeps nothing over a restart
        own.client().create_bucket(Bucket=address[0].removeprefix("s3://"))
        assert store.ready(60)
        assert store.compute(B, lambda: 8) == 8
        store.close()
    finally:
        own.stop()


@needs_moto
def test_a_bucket_that_is_not_there_is_said(shop, caplog):
    with pytest.raises(Unavailable, match="does not exist"):
        connected(("s3://no-such-bucket", shop.url))


# stores that are none


class Answers:
    """An HTTP server that sends `answer`, bytes or pieces with pauses between, to each request, and notes the requests.

    early: it answers before it has read the request's body.
    """

    def __init__(self, *answers, early=False):
        self.asked: list[tuple[str, bytes]] = []
        noted = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                line = self.rfile.readline()
                headers = []
                while (header := self.rfile.readline()) not in (b"\r\n", b""):
                    headers.append(header)
                sizes = [int(h.split(b":")[1]) for h in headers if h.lower().startswith(b"content-length")]
                self.rfile.read(0 if early else sum(sizes))
                noted.asked.append((line.split()[0].decode(), b"".join(headers).lower()))
                answer = answers[min(len(noted.asked), len(answers)) - 1]
                try:
                    for piece in [answer] if isinstance(answer, bytes) else answer():
                        self.wfile.write(piece)
                except OSError:
                    pass

        socketserver.ThreadingTCPServer.daemon_threads = True
        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def http(status, body=b"", length=None, head=b""):
    size = len(body) if length is None else length
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\nConnection: close\r\n%s\r\n%s" % (status, size, head, body)


def error(status, code):
    return http(status, b"<Error><Code>%s</Code><Message>no</Message></Error>" % code)


MISSING = error(b"404 Not Found", b"NoSuchKey")


def test_an_answer_of_gigabytes_is_read_no_further_than_the_largest_entry():
    read = []

    def endless():
        yield http(b"200 OK", length=1 << 40)
        for _ in range(64):
            read.append(1)
            yield b"\0" * (1 << 20)

    with Answers(MISSING, endless) as server:
        one = connected(("s3://bucket", server.url))
        assert get(one, A) is None
    assert len(read) < 32, "what the sockets hold, and no more"


@pytest.mark.parametrize(
    ("call", "status"),
    [
        ("probe", b"403 Forbidden"),
        ("put", b"500 Internal Server Error"),
        ("delete", b"200 OK"),
        ("clear", b"200 OK"),
    ],
)
@pytest.mark.parametrize(
    "head",
    [b"Content-Length: 1099511627776\r\n", b"Connection: close\r\n", b"Transfer-Encoding: chunked\r\n"],
    ids=["with a length", "without a length", "in chunks"],
)
def test_no_page_is_read_without_end(call, status, head):
    """Error pages and answers to everything but GET, which boto3 reads whole."""
    sent, piece = [], b"<" * (1 << 20)

    def endless():
        yield b"HTTP/1.1 %s\r\n%s\r\n" % (status, head)
        for _ in range(64):
            sent.append(1)
            yield b"%x\r\n%s\r\n" % (len(piece), piece) if b"chunked" in head else piece

    with Answers(*[] if call == "probe" else [MISSING], endless) as server:
        one = tier(("s3://bucket", server.url))
        with pytest.raises(Unavailable):
            one.probe()
            {"put": lambda: one.put(A, data()), "delete": lambda: one.delete(A), "clear": one.clear}[call]()
    assert len(sent) < 32, "what the sockets hold, and no more"


@pytest.mark.parametrize("beginning", [b"HTTP/1.1 100 Continue\r\n", b"HTTP/1.1 100 " + b"x" * 200_000])
def test_no_answer_before_the_body_holds_a_write_up(beginning):
    """boto3 would wait for "100 Continue", and read without end where the connection is closed within it."""

    def put():
        with contextlib.suppress(Unavailable):
            one.put(A, data())

    with Answers(MISSING, beginning, early=True) as server:
        one = connected(("s3://bucket", server.url))
        writer = threading.Thread(target=put, daemon=True)
        writer.start()
        writer.join(20)
        assert not writer.is_alive()


def test_an_answer_longer_than_it_says_is_read_as_far_as_it_says():
    body = b"\0" + data()
    with Answers(MISSING, http(b"200 OK", body + b"x" * 100000, length=len(body))) as server:
        assert get(connected(("s3://bucket", server.url)), A) == data()


@pytest.mark.parametrize(
    "answer",
    [
        http(b"200 OK", b"\0" + data(), length=len(data()) + 500),  # ends early
        http(b"200 OK", b"\0" + data()[:-1]),
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"\0" + data(),  # does not say its size
        b"garbage\r\n\r\n",
        b"",
        error(b"503 Slow Down", b"SlowDown"),
        error(b"500 Internal Server Error", b"InternalError"),
        http(b"200 OK", b"<html>a login page</html>"),
        http(b"404 Not Found", b"<html>not S3</html>"),
    ],
)
def test_a_bad_answer_is_a_miss(answer, caplog):
    with Answers(MISSING, answer) as server:
        store = Store([tier(("s3://bucket", server.url))])
        assert store.ready(10)
        assert store.compute(A, lambda: "right") == "right"
        store.close()


def test_an_answer_that_drips_costs_a_run_no_more_than_computing(monkeypatch):
    def dripping():
        yield http(b"200 OK", length=100000)
        for _ in range(100):
            yield b"\0"
            time.sleep(0.05)

    with Answers(MISSING, dripping) as server:
        store = Store([tier(("s3://bucket", server.url), stall_timeout=0.2)])
        assert store.ready(10)
        store._learn(A, 0.1)
        assert store.compute(A, lambda: "right") == "right"
        assert not store.serves("s3"), "and it rests"
        store.flush(20)  # what the write meets is said before the next test
        store.close()


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (error(b"403 Forbidden", b"AccessDenied"), "s3:ListBucket"),
        (error(b"403 Forbidden", b"InvalidAccessKeyId"), "credentials"),
        (error(b"400 Bad Request", b"ExpiredToken"), "credentials"),
        (error(b"404 Not Found", b"NoSuchBucket"), "does not exist"),
        (error(b"503 Slow Down", b"SlowDown"), "too many requests"),
    ],
)
def test_what_is_wrong_is_said_once(answer, sentence, caplog):
    with Answers(answer) as server, caplog.at_level(logging.WARNING):
        store = Store([tier(("s3://bucket", server.url))])
        assert not store.ready(1)
        assert store.compute(A, lambda: 7) == 7
        ok, (text,) = status.check_connections(store)
        assert not ok and sentence in text and "s3://bucket" not in text
        store.close()
    assert len(said(caplog)) == 1 and sentence in said(caplog)[0]


def test_a_store_without_conditional_writes_gets_plain_ones():
    with Answers(MISSING, error(b"501 Not Implemented", b"NotImplemented"), http(b"200 OK")) as server:
        one = connected(("s3://bucket", server.url))
        one.put(A, data())
        one.put(B, data(name=B))
    conditions = [b"if-none-match" in headers for method, headers in server.asked if method == "PUT"]
    assert conditions == [True, False, False]


def test_a_trial_finds_a_store_that_keeps_nothing():
    answers = http(b"200 OK"), http(b"200 OK", b"another"), http(b"204 No Content")
    with Answers(*answers) as server, pytest.raises(Unavailable, match="does not keep values"):
        tier(("s3://bucket", server.url)).trial()
    assert [method for method, _ in server.asked] == ["PUT", "GET", "DELETE"]


def test_a_lost_connection_is_noticed_before_a_run_needs_it(monkeypatch):
    with Answers(MISSING, error(b"403 Forbidden", b"AccessDenied")) as server:
        one = connected(("s3://bucket", server.url))
        one.maintain()
        assert len(server.asked) == 1, "not asked again so soon"
        monkeypatch.setattr(module, "CHECK", -1.0)
        with pytest.raises(Unavailable):
            one.maintain()
    assert len(server.asked) == 2


def test_a_write_that_came_second_is_no_failure():
    with Answers(MISSING, error(b"412 Precondition Failed", b"PreconditionFailed")) as server:
        connected(("s3://bucket", server.url)).put(A, data())


def test_without_the_package_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(Unavailable, match="pip install"):
        S3Tier("s3://bucket").probe()


def test_without_credentials_it_says_so(monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    with pytest.raises(Unavailable, match="no credentials"):
        S3Tier("s3://bucket", "http://127.0.0.1:1").probe()


@pytest.mark.parametrize(
    "address",
    [
        "",
        "bucket",
        "http://bucket",
        "s3://",
        "s3://s3c:ret@bucket",
        "s3://buc ket",
        "s3://bucket/../x y",
        "s3://bucket//x",
    ],
)
def test_an_address_that_is_none_is_refused_without_repeating_it(address):
    with pytest.raises(ValueError, match="address of S3") as raised:
        S3Tier(address)
    assert "s3c" not in str(raised.value)


@pytest.mark.parametrize("endpoint", ["host", "ftp://host", "http://", "http://s3c:ret@host", "http://host:port"])
def test_an_endpoint_that_is_none_is_refused_without_repeating_it(endpoint):
    with pytest.raises(ValueError, match="endpoint of S3") as raised:
        S3Tier("s3://bucket", endpoint)
    assert "s3c" not in str(raised.value)


def test_time_outs_are_shorter_than_who_waits_for_them():
    assert s3_client.SOCKET < module.READING
