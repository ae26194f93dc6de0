"""Addresses, keys and proxies of commands that call a running service."""

from __future__ import annotations

import sys
from pathlib import Path

import httpx
import pytest

from service.config.calling import CallInvalid, client, read_key, refused

TIMEOUT = httpx.Timeout(5.0)
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PROXIES, *map(str.upper, PROXIES), "REQUERY_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def proxied(url: str) -> bool:
    pool = getattr(client(url, None, TIMEOUT)._transport, "_pool", None)
    return "Proxy" in type(pool).__name__


def test_the_key_is_in_the_environment_or_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_key(None) is None
    monkeypatch.setenv("REQUERY_API_KEY", " rq_environment\n")
    assert read_key(None) == "rq_environment"
    (tmp_path / "key").write_text("rq_file\n")
    assert read_key(tmp_path / "key") == "rq_file"
    for content in ("", "rq_a\nrq_b\n", "rq_\u00e9"):
        (tmp_path / "key").write_text(content)
        with pytest.raises(CallInvalid, match="holds no API key"):
            read_key(tmp_path / "key")
    with pytest.raises(CallInvalid, match="No such file"):
        read_key(tmp_path / "none")


async def test_a_password_in_the_address_is_sent_and_never_shown() -> None:
    made = client("http://shop:s3cret@away:81/in/", None, TIMEOUT)
    assert str(made.base_url) == "http://away:81/in/"
    assert isinstance(made.auth, httpx.BasicAuth)
    assert client("http://shop:s3cret@away", "rq_1", TIMEOUT).auth is None
    with pytest.raises(CallInvalid) as caught:
        client("http://shop:s3/cret@away", None, TIMEOUT)
    assert "s3" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "key", "said"),
    [
        (401, False, "needs an API key (401): set REQUERY_API_KEY, or give --key-file"),
        (401, True, "refuses the API key (401)"),
        (403, True, "does not allow this with the API key (403)"),
    ],
)
def test_refusals_are_told_as_such(status: int, key: bool, said: str) -> None:
    response = httpx.Response(status, request=httpx.Request("GET", "http://away/versions"))
    assert said in str(refused(response, key=key))
    assert refused(httpx.Response(200, request=response.request), key=key) is None


@pytest.mark.parametrize("proxy", ["socks5://away:1", "http://away:1", "socks5://[", "nonsense:x"])
def test_a_loopback_address_never_goes_through_a_proxy(
    proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    monkeypatch.setenv("NO_PROXY", "::1/128")
    for host in ("localhost", "127.0.0.1", "127.9.9.9", "[::1]"):
        assert not proxied(f"http://{host}:8000")


def test_others_go_through_it_unless_they_are_excluded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "localhost,::1/128,10.0.0.0/8,.inside.example")
    assert proxied("http://away.example:8000")
    assert proxied("http://[2001:db8::1]:8000")
    for host in ("10.1.2.3", "search.inside.example"):
        assert not proxied(f"http://{host}:8000")


@pytest.mark.parametrize("proxy", ["socks9://a:1", "http://", "http://u:s3cret@proxy:x"])
def test_a_proxy_that_cannot_be_used_is_told(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(CallInvalid, match="away into NO_PROXY") as caught:
        client("http://away:8000", None, TIMEOUT)
    assert "s3cret" not in str(caught.value)


def test_a_socks_proxy_without_its_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://u:s3cret@proxy:1")
    monkeypatch.setitem(sys.modules, "socksio", None)
    with pytest.raises(CallInvalid, match=r"socks5.*httpx\[socks\].*NO_PROXY") as caught:
        client("http://away:8000", None, TIMEOUT)
    assert "s3cret" not in str(caught.value)
