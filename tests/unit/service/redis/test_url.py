from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis, RedisCluster, SentinelConnectionPool, SSLConnection

from service.redis.client import FAULTS, connect, disconnect
from service.redis.url import Target, parse

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("redis://cache", Target("single", (("cache", 6379),))),
        ("redis://cache:7000/3", Target("single", (("cache", 7000),), db=3)),
        ("redis://cache/3?db=4", Target("single", (("cache", 6379),), db=4)),
        ("redis://[::1]:7000/", Target("single", (("::1", 7000),))),
        ("redis://[::1]", Target("single", (("::1", 6379),))),
        ("redis://:p%40%2Fss@cache", Target("single", (("cache", 6379),),
                                             options={"password": "p@/ss"})),
        ("redis://u:p@cache?client_name=x", Target(
            "single", (("cache", 6379),),
            options={"username": "u", "password": "p", "client_name": "x"})),
        ("rediss://cache?ssl_ca_certs=/a%20b.pem&ssl_check_hostname=no", Target(
            "single", (("cache", 6379),), tls=True,
            options={"ssl_ca_certs": "/a b.pem", "ssl_check_hostname": False})),
        ("unix:///run/redis.sock?db=2", Target("unix", path="/run/redis.sock", db=2)),
        ("unix://u:p@/run/redis.sock", Target(
            "unix", path="/run/redis.sock", options={"username": "u", "password": "p"})),
        ("redis+sentinel://a,b:7000/main", Target(
            "sentinel", (("a", 26379), ("b", 7000)), service="main")),
        ("rediss+sentinel://u:p@a/main/2?ssl_ca_certs=ca&sentinel_password=q", Target(
            "sentinel", (("a", 26379),), service="main", tls=True, db=2,
            options={"username": "u", "password": "p", "ssl_ca_certs": "ca"},
            sentinel_options={"ssl_ca_certs": "ca", "password": "q"})),
        ("redis+cluster://a,b:7000", Target("cluster", (("a", 6379), ("b", 7000)))),
        ("rediss+cluster://p@a/0?ssl_cert_reqs=none", Target(
            "cluster", (("a", 6379),), tls=True,
            options={"username": "p", "ssl_cert_reqs": "none"})),
    ],
)  # fmt: skip
def test_every_form_is_read(url: str, target: Target) -> None:
    assert parse(url) == target


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("", "scheme"),
        ("cache:6379", "scheme"),
        ("http://cache", "scheme"),
        ("redis+proxy://cache", "scheme"),
        ("redis://", "host"),
        ("redis:///0", "host"),
        ("redis://:6379", "host"),
        ("redis+cluster://a,,b", "host"),
        ("redis://cache:port", "65535"),
        ("redis://cache:0", "65535"),
        ("redis://cache:65536", "65535"),
        ("redis://[::1", "bracket"),
        ("redis://[::1]7000", "IPv6"),
        ("redis://cache/main", "database is a number"),
        ("redis://cache/-1", "database is a number"),
        ("redis://cache?db=x", "database is a number"),
        ("redis://cache/1/2", "too many parts"),
        ("redis://a,b", "redis+sentinel"),
        (f"redis://:{SECRET}/x@cache", "percent-encode"),
        (f"redis://:{SECRET}#x@cache", "percent-encode"),
        (f"redis://:{SECRET}?{SECRET}@cache", "name=value"),
        (f"redis://cache?{SECRET}@cache", "percent-encode"),
        (f"redis://cache?{SECRET}=1", "client_name"),
        ("redis://cache?socket_timeout=9", "client_name"),
        ("redis://cache?ssl_ca_certs=x", "rediss"),
        ("redis://cache?sentinel_password=x", "client_name"),
        ("rediss://cache?ssl_cert_reqs=maybe", "none, optional, required"),
        ("rediss://cache?ssl_check_hostname=maybe", "true"),
        ("unix://", "path"),
        ("unix://run/redis.sock", "three slashes"),
        ("redis+sentinel://a", "name of the master"),
        ("redis+sentinel://a/main/x", "database is a number"),
        ("redis+sentinel://a/main/1/2", "too many parts"),
        ("redis+cluster://a/1", "no databases"),
        ("redis+cluster://a?db=1", "client_name"),
    ],
)
def test_a_malformed_url_is_refused_with_advice_and_without_its_secrets(
    url: str, advice: str
) -> None:
    with pytest.raises(ValueError, match="write redis://host:port/db") as caught:
        connect(url, max_connections=1, timeout_s=1)
    assert advice in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://u:p@127.0.0.1:1/2",
        "rediss://127.0.0.1:1?ssl_ca_certs=/nowhere",
        "unix:///nowhere?db=1",
        "redis+sentinel://127.0.0.1:1,127.0.0.2:1/main/3",
        "rediss+sentinel://127.0.0.1:1/main?ssl_cert_reqs=none&sentinel_username=u",
        "redis+cluster://127.0.0.1:1,127.0.0.2:1",
        "rediss+cluster://u:p@127.0.0.1:1?ssl_ca_certs=/nowhere&client_name=me",
    ],
)
async def test_clients_of_all_kinds_try_once_and_are_closed_whatever_happened(url: str) -> None:
    client = connect(url, max_connections=2, timeout_s=5)
    with pytest.raises(FAULTS):
        await client.get("x")
    await disconnect(client)
    await disconnect(client)


def test_the_url_decides_on_the_client() -> None:
    def client(url: str) -> Redis:
        made = connect(url, max_connections=7, timeout_s=0.5)
        assert isinstance(made, Redis)
        return made

    def connection(url: str) -> Any:
        return client(url).connection_pool.make_connection()  # type: ignore[no-untyped-call]

    assert client("redis://cache").connection_pool.max_connections == 7
    made = connection("redis://u:p@cache:7000/2")
    assert (made.db, made.username, made.password) == (2, "u", "p")
    assert (made.socket_timeout, made.socket_connect_timeout) == (0.5, 0.5)
    assert made.retry.get_retries() == 0
    secured = connection("rediss://cache?ssl_check_hostname=false")
    assert isinstance(secured, SSLConnection)
    assert not secured.check_hostname
    url = "rediss+sentinel://a/main/2"
    assert isinstance(client(url).connection_pool, SentinelConnectionPool)
    watched = connection(url)
    assert isinstance(watched, SSLConnection)
    assert watched.db == 2
    cluster = connect("rediss+cluster://a:7000,b:7001", max_connections=7, timeout_s=0.5)
    assert isinstance(cluster, RedisCluster)
    assert sorted(cluster.nodes_manager.startup_nodes) == ["a:7000", "b:7001"]
    assert cluster.retry.get_retries() == 0
