"""Redis as it is run: under Sentinel, as a Cluster, with TLS and client certificates, with ACL users. All servers are real ones."""

import contextlib
import logging
import re
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
import torch

from skipstone.core.memo.keys import key
from skipstone.core.memo.store import Store
from skipstone.core.memo.tiers.base import Unavailable, Usage
from skipstone.core.memo.tiers.redis import RedisTier
from skipstone.core.memo.tiers.redis_address import parsed, with_password
from skipstone.tests.memo.fakes import data, get
from skipstone.tests.memo.test_redis import PROGRAM, Server, free_port, redis, said

pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason="redis-server is missing (Debian: apt-get install redis-server)"
)
A, B = key("vae", "a"), key("text", "b")


def tier(url, **more):
    return RedisTier(url, **{"stall_timeout": 10.0} | more)  # the machine may be busy


@contextlib.contextmanager
def opened(url, seconds=60, **more):
    store = Store([tier(url, **more)])
    assert store.ready(seconds)
    yield store
    store.close(5)


class Fleet:
    """A master, a replica and a Sentinel that leads them. options: of the servers; sentinel: lines of the Sentinel's configuration."""

    def __init__(self, folder, options=(), sentinel=(), login=(), tls=False):
        self.folder, self.login = folder, dict(login)
        self.master = Server(folder, *options, tls=tls)
        self.replica = Server(folder, *options, "--replicaof", "127.0.0.1", str(self.master.port), tls=tls)
        self.port = free_port()
        ports = f"port 0\ntls-port {self.port}\ntls-replication yes" if tls else f"port {self.port}"
        watch = f"sentinel monitor fleet 127.0.0.1 {self.master.port} 1"
        times = "sentinel down-after-milliseconds fleet 500\nsentinel failover-timeout fleet 2000"
        self.configuration = folder / "sentinel.conf"
        self.configuration.write_text("\n".join([ports, "bind 127.0.0.1", f"dir {folder}", watch, times, *sentinel]))
        command = [str(PROGRAM), str(self.configuration), "--sentinel"]
        self.sentinel = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        for _ in range(1000):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                break
            time.sleep(0.01)

    @property
    def url(self):
        return f"redis+sentinel://127.0.0.1:1,127.0.0.1:{self.port}/fleet"  # the first Sentinel is not there

    def wait_for_replica(self):
        """Until the Sentinel knows the replica, and the replica has all that the master has."""
        client = redis.Redis(port=self.port, **self.login)
        for _ in range(300):
            if any(one["master-link-status"] == "ok" for one in client.sentinel_slaves("fleet")):
                break
            time.sleep(0.1)
        else:
            raise RuntimeError("the Sentinel knows no replica")

    def stop(self):
        self.sentinel.kill()
        self.sentinel.wait()
        self.master.stop()
        self.replica.stop()


@pytest.fixture
def fleet(tmp_path):
    with contextlib.ExitStack() as stack:

        def begin(**more):
            made = Fleet(tmp_path, **more)
            stack.callback(made.stop)
            return made

        yield begin


# Sentinel


def test_sentinel_names_the_master(fleet):
    made = fleet()
    one = tier(made.url)
    one.probe()
    one.put(A, data())
    assert get(one, A) == data()
    assert made.master.client().exists(f"skipstone:1:vae:{A.digest}")
    assert one.usage()["vae"].entries == 1 and one.trial() > 0
    assert one.clear() == Usage(1, len(data()) + 1)
    with opened(made.url + "/1") as store:  # another database
        store.put(A, "x", 1.0)
        assert store.flush()
    assert made.master.client(db=1).exists(f"skipstone:1:vae:{A.digest}")


def test_a_failover_in_mid_run_gives_no_wrong_value_and_no_error(fleet, caplog):
    """Eight threads compute and read while the master is killed and the replica takes over."""
    made = fleet()
    made.wait_for_replica()
    names = [key("vae", i) for i in range(40)]
    wrong, errors, runs = [], [], [0]
    stop = threading.Event()

    def work(store, start):
        i = start
        while not stop.is_set():
            number = i % len(names)
            try:
                value = store.compute(names[number], lambda number=number: [number] * 100)
                if value != [number] * 100:
                    wrong.append((number, value))
            except Exception as error:
                errors.append(error)
            runs[0] += 1
            i += 1
            time.sleep(0.002)

    with caplog.at_level(logging.WARNING), opened(made.url) as one, opened(made.url) as other:
        threads = [threading.Thread(target=work, args=(s, i * 5)) for i, s in enumerate([one, other] * 4)]
        for thread in threads:
            thread.start()
        time.sleep(1.0)
        assert one.flush() and other.flush()
        before, hits = runs[0], one.stats.as_dict()["hits"]
        made.master.process.kill()
        made.master.process.wait()
        promoted = made.replica.client()
        for _ in range(300):
            if promoted.role()[0] == b"master":
                break
            time.sleep(0.1)
        else:
            raise RuntimeError("the replica was not promoted")
        assert one.ready(90) and other.ready(90), "both are connected to the new master"
        after = one.stats.as_dict()["hits"]
        time.sleep(1.0)
        stop.set()
        for thread in threads:
            thread.join()
        assert wrong == [] and errors == []
        assert runs[0] > before and one.stats.as_dict()["hits"] > after >= hits
        # what was written before the failover is still there: the replica had it
        assert sum(get(tier_of(one), name) is not None for name in names) == len(names)
        # and what is written now lies on the new master
        assert one.compute(B, lambda: 7) == 7 and one.flush()
        assert promoted.exists(f"skipstone:1:text:{B.digest}")
    assert all("no connection" in line or "no response" in line for line in said(caplog))


def tier_of(store):
    return store.tiers["redis"]


@pytest.mark.thorough
def test_what_is_computed_during_a_failover_is_written_after_it(fleet):
    made = fleet()
    made.wait_for_replica()
    with opened(made.url) as store:
        assert store.compute(A, lambda: 7) == 7 and store.flush()
        made.master.process.kill()
        made.master.process.wait()
        assert store.compute(B, lambda: 8) == 8
        assert store.ready(90)
        for _ in range(300):
            if made.replica.client().exists(f"skipstone:1:text:{B.digest}"):
                break
            time.sleep(0.1)
        else:
            raise AssertionError("the entry was lost")


def test_users_of_sentinels_and_servers_differ(fleet):
    options = ("--requirepass", "adm", "--masterauth", "adm", "--user", "team", "on", ">p@ss", "~skipstone:*", "+@all")
    made = fleet(
        options=options,
        sentinel=["sentinel auth-pass fleet adm", "user default on >watch ~* +@all"],
        login=[("password", "watch")],
    )
    url = f"redis+sentinel://team:p%40ss@127.0.0.1:{made.port}/fleet?sentinel_password=watch"
    with opened(url) as store:
        assert store.compute(A, lambda: 7) == 7 and store.flush()
        assert store.get(A) == 7
    several = url.replace("/fleet", ",127.0.0.1:1/fleet")  # the last Sentinel is down
    for bad in (url.replace("p%40ss", "no"), url.replace("=watch", "=no"), several.replace("=watch", "=no")):
        with pytest.raises(Unavailable, match="another user or password") as raised:
            tier(bad).probe()
        assert "watch" not in str(raised.value) and "p@ss" not in str(raised.value)


# Cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Three nodes without replicas, each with a third of the slots."""
    servers, buses = [], []
    try:
        for i in range(3):
            folder = tmp_path_factory.mktemp(f"node{i}")
            buses.append(str(free_port()))
            servers.append(Server(folder, "--cluster-enabled", "yes", "--cluster-port", buses[-1]))
        first = servers[0].client()
        for one, bus in zip(servers[1:], buses[1:], strict=True):
            first.execute_command("CLUSTER", "MEET", "127.0.0.1", one.port, bus)
        for i, one in enumerate(servers):
            one.client().execute_command("CLUSTER", "ADDSLOTSRANGE", i * 5461, 16383 if i == 2 else i * 5461 + 5460)
        for _ in range(300):
            if all(b"cluster_state:ok" in one.client().execute_command("CLUSTER", "INFO") for one in servers):
                break
            time.sleep(0.1)
        else:
            raise RuntimeError("the cluster does not form")
        yield servers
    finally:
        for one in servers:
            one.stop()


def cluster_url(servers):
    return f"redis+cluster://127.0.0.1:1,127.0.0.1:{servers[0].port},127.0.0.1:{servers[1].port}"


def test_a_cluster_holds_each_entry_and_its_lease_in_one_slot(cluster):
    one, other = tier(cluster_url(cluster)), tier(cluster_url(cluster))
    one.probe()
    other.probe()
    names = [key("vae", i) for i in range(30)]
    large = data(torch.rand(1 << 18), names[0])  # 1 MB: more than one piece
    one.put(names[0], large)
    for name in names[1:]:
        one.put(name, data(name=name))
        assert one.claim(name, 1.0).ours and not other.claim(name, 1.0).ours
    assert get(other, names[0]) == large
    assert all(get(other, name) == data(name=name) for name in names[1:])
    held = [set(server.client().keys()) for server in cluster]
    assert all(held), "every node has some"
    for name in names[1:]:
        entry = f"skipstone:1:vae:{{{name.digest}}}".encode()
        assert any({entry, entry + b":computing"} <= node for node in held), "on one node"
    assert one.usage()["vae"].entries == 30
    for name in names[1:]:
        one.renew(name)
        one.release(name)
        assert other.claim(name, 1.0).ours
        other.release(name)
    assert one.trial() > 0
    assert one.clear().entries == 30 and one.usage() == {}
    one.close()
    other.close()


def test_a_cluster_through_stores(cluster):
    with opened(cluster_url(cluster), namespace="red", secret="k") as one:
        assert [one.compute(key("vae", i), iter([i]).__next__) for i in range(20)] == list(range(20))
        assert one.flush()
        with opened(cluster_url(cluster), namespace="red", secret="k") as other:
            assert [other.get(key("vae", i)) for i in range(20)] == list(range(20))
        with opened(cluster_url(cluster), namespace="blue", secret="k") as third:
            assert third.get(key("vae", 0)) is None


def test_slots_that_move_are_followed(cluster):
    """The slot of an entry is moved to another node under a connected client."""
    one = tier(cluster_url(cluster))
    one.probe()
    one.put(A, data())
    name = f"skipstone:1:vae:{{{A.digest}}}"
    slot = cluster[0].client().execute_command("CLUSTER", "KEYSLOT", name)
    owner = min(slot // 5461, 2)
    source, target = cluster[owner], cluster[(owner + 1) % 3]
    ids = [one_.client().execute_command("CLUSTER", "MYID").decode() for one_ in (source, target)]
    target.client().execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
    source.client().execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
    source.client().execute_command("MIGRATE", "127.0.0.1", target.port, name, 0, 5000)
    for node in (target, source):
        node.client().execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[1])
    with opened(cluster_url(cluster)) as store:
        for _ in range(100):  # until the nodes have told each other
            with contextlib.suppress(Unavailable):
                if get(one, A) == data():
                    break
            time.sleep(0.1)
        assert get(one, A) == data()
        assert store.compute(A, lambda: "other") == "x"
    one.clear()
    one.close()


# users, with the rights that the operators' page names

PAGE = Path(__file__).resolve().parents[2] / "docs" / "encode-cache-operators.md"


def rights(first):
    """The commands that the page lists, by the first of them."""
    found = re.search(rf"`({re.escape(first)}[^`]*)`", PAGE.read_text())
    assert found, first
    return found[1].split()


def allow(client, *words):
    client.execute_command("ACL", "SETUSER", "team", "reset", "on", ">pw", *words)


@pytest.mark.parametrize("namespace", ["", "red"])
def test_the_rights_that_the_page_names_are_enough(tmp_path, namespace, caplog):
    server = Server(tmp_path)
    try:
        keys = ["~skipstone:1@red:*", "~skipstone:probe", "~skipstone:trial:*"] if namespace else ["~skipstone:*"]
        allow(server.client(), *rights("+set"), *keys)
        url = server.url.replace("://", "://team:pw@")
        with caplog.at_level(logging.WARNING), opened(url, namespace=namespace) as store:
            assert store.compute(A, lambda: 7) == 7 and store.flush()
            assert store.get(A) == 7
            assert store.usage()["redis"]["vae"].entries == 1
            assert store.renew(A, lambda: 8) == 8 and store.flush()
            assert store.clear(older_than=3600.0)["redis"] == Usage()
            assert store.clear()["redis"].entries == 1
            assert store.tiers["redis"].trial() > 0
        allow(server.client(), *rights("+strlen"), *keys)
        with caplog.at_level(logging.WARNING), opened(url, namespace=namespace, read_only=True) as store:
            assert store.compute(A, lambda: 7) == 7 and store.flush()
            assert store.usage()["redis"] == {}
        assert said(caplog) == []
    finally:
        server.stop()


def test_the_rights_that_the_page_names_are_enough_in_a_cluster(cluster, caplog):
    for server in cluster:
        allow(server.client(), *rights("+set"), *rights("+cluster"), "~skipstone:*")
    with caplog.at_level(logging.WARNING), opened(cluster_url(cluster).replace("://", "://team:pw@")) as store:
        for i in range(20):
            assert store.compute(key("vae", i), iter([i]).__next__) == i
        assert store.flush()
        assert store.usage()["redis"]["vae"].entries == 20
        assert store.clear()["redis"].entries == 20
    assert said(caplog) == []


def test_why_a_cluster_cannot_be_used_is_said(cluster):
    with pytest.raises(Unavailable, match=r"no connection to 127\.0\.0\.1:1: entries are not shared"):
        tier("redis+cluster://127.0.0.1:1").probe()


@pytest.mark.parametrize("dead", ["first", "last"])
def test_a_refused_password_is_said_whichever_node_is_down(cluster, dead, monkeypatch):
    # the client shuffles the nodes, tries each, and raises the error of the last
    monkeypatch.setattr(
        "random.shuffle", lambda nodes: nodes.sort(key=lambda node: (node.port == 1) == (dead == "last"))
    )
    with pytest.raises(Unavailable, match="another user or password") as raised:
        tier(cluster_url(cluster).replace("://", "://team:wr0ng@")).probe()
    assert "wr0ng" not in str(raised.value)


def test_a_node_of_a_cluster_that_dies_costs_misses_alone(tmp_path, cluster):
    """The last test of this cluster: it stops a node."""
    with opened(cluster_url(cluster)) as store:
        names = [key("vae", i) for i in range(30)]
        for i, name in enumerate(names):
            assert store.compute(name, iter([i]).__next__) == i
        assert store.flush()
        cluster[2].process.kill()
        cluster[2].process.wait()
        for i, name in enumerate(names):
            assert store.compute(name, iter([i]).__next__) == i


# TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A CA of our own, a certificate of a server and one of a client, by it."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is missing")
    folder = tmp_path_factory.mktemp("tls")

    def run(*words):
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=folder)

    run(
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=ca",
        "-out",
        "ca.pem",
        "-keyout",
        "ca.key",
    )
    (folder / "san").write_text("subjectAltName=IP:127.0.0.1")
    for name in ("server", "client"):
        run(
            "req",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            f"/CN={name}",
            "-out",
            f"{name}.csr",
            "-keyout",
            f"{name}.key",
        )
        signer = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "san")
        run("x509", "-req", "-in", f"{name}.csr", *signer, "-out", f"{name}.pem")
    return folder


def tls_options(folder):
    files = {"cert": "server.pem", "key": "server.key", "ca-cert": "ca.pem"}
    options = [w for n, file in files.items() for w in (f"--tls-{n}-file", str(folder / file))]
    return [*options, "--tls-auth-clients", "yes", "--tls-replication", "yes"]


def tls_query(folder):
    return f"?ssl_ca_certs={folder}/ca.pem&ssl_certfile={folder}/client.pem&ssl_keyfile={folder}/client.key"


def test_tls_with_a_ca_of_our_own_and_client_certificates(tmp_path, certificates, caplog):
    server = Server(tmp_path, *tls_options(certificates), tls=True)
    try:
        with opened(server.url + tls_query(certificates)) as store:
            assert store.compute(A, lambda: 7) == 7 and store.flush()
            assert store.get(A) == 7
        for query in ("", f"?ssl_ca_certs={certificates}/ca.pem"):  # an unknown CA; no certificate of the client's
            with pytest.raises(Unavailable):
                tier(server.url + query).probe()
    finally:
        server.stop()


def test_tls_under_sentinel(fleet, certificates):
    lines = [f"tls-{n}-file {certificates / file}" for n, file in (("cert", "server.pem"), ("key", "server.key"))]
    lines += [f"tls-ca-cert-file {certificates / 'ca.pem'}", "tls-auth-clients yes"]
    made = fleet(options=tls_options(certificates), sentinel=lines, tls=True)
    url = f"rediss+sentinel://127.0.0.1:{made.port}/fleet"
    with opened(url + tls_query(certificates)) as store:
        assert store.compute(A, lambda: 7) == 7 and store.flush()
        assert store.get(A) == 7
    with pytest.raises(Unavailable):
        tier(url).probe()


# addresses


def test_addresses():
    one = parsed("rediss+sentinel://me:a%2Fb@h1,h2:7/s/3?ssl_ca_certs=/ca&sentinel_password=x")
    assert one.hosts == (("h1", 26379), ("h2", 7)) and one.where == "h1:26379,h2:7"
    assert (one.kind, one.tls, one.service, one.db) == ("sentinel", True, "s", 3)
    assert one.login == {"username": "me", "password": "a/b"}
    assert one.options == {"ssl_ca_certs": "/ca", "sentinel_password": "x"}
    assert parsed("redis+cluster://h1,[::1]:7").hosts == (("h1", 6379), ("::1", 7))
    assert "a/b" not in repr(one) and "a%2Fb" not in repr(one)


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://:s3cret@h",
        "redis+sentinel://:s3cret@h/s/x",
        "redis+sentinel://:s3c/ret@h/s",
        "redis+cluster://:s3cret@h/3",
        "redis+cluster://:s3cret@h:s3cret",
        "redis+cluster://:s3cret@h,",
        "redis+cluster://:s3cret@h?socket_timeout=s3cret",
        "redis+cluster://:s3cret@h?ssl_ca_certs=s3cret",
        "redis://:s3cret@h1,h2",
        "redis+other://:s3cret@h",
    ],
)
def test_an_address_that_is_none_is_refused_without_repeating_it(url):
    with pytest.raises(ValueError, match="address of Redis") as raised:
        RedisTier(url)
    assert "s3c" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "holds"),
    [
        ("redis+sentinel://h/s", False),
        ("redis+sentinel://me:x@h1,h2/s", True),
        ("redis+sentinel://h/s?sentinel_password=x", True),
        ("rediss+cluster://h?ssl_password=x", True),
    ],
)
def test_which_addresses_hold_a_password(url, holds):
    assert with_password(url) == holds
