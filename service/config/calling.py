"""How commands call a running service: its address, the API key, and proxies."""

from __future__ import annotations

import ipaddress
import os
from contextlib import suppress
from pathlib import Path
from urllib.request import getproxies_environment, proxy_bypass

import httpx

API_KEY = "REQUERY_API_KEY"
"""Environment variable of the API key that commands send."""
_MAX_KEY_BYTES = 4096


class CallInvalid(ValueError):
    """The address, the key or the proxy cannot be used; the message repeats no secret."""


def read_key(file: Path | None) -> str | None:
    """The API key of a file, else of ``REQUERY_API_KEY``; ``None`` if neither is given.

    Raises:
        CallInvalid: the file cannot be read, or holds no key.
    """
    source, key = API_KEY, os.environ.get(API_KEY, "")
    if file is not None:
        source = f"--key-file {file}"
        try:
            with file.open("rb") as opened:
                key = opened.read(_MAX_KEY_BYTES).decode("ascii", "replace")
        except OSError as error:
            raise CallInvalid(f"{source}: cannot be read ({error.strerror or error})") from None
    key = key.strip()
    if file is None and not key:
        return None
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise CallInvalid(f"{source} holds no API key; it is one line that begins with rq_")
    return key


def client(url: str, key: str | None, timeout: httpx.Timeout) -> httpx.AsyncClient:
    """A client of the service at ``url``.

    A name and password in the address are sent unless there is a key, and are no part of the
    client's ``base_url``. A loopback address is called directly, others through the proxy that the
    environment names.

    Raises:
        CallInvalid: the address or the proxy cannot be used.
    """
    try:
        given = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        # The message may repeat a password.
        why = "" if "@" in url else f"{error}; "
        raise CallInvalid(f"--url: {why}write http://host:port") from None
    if given.scheme not in ("http", "https") or not given.host:
        raise CallInvalid("--url is an address such as http://localhost:8000")
    auth = (given.username, given.password) if given.userinfo and not key else None
    proxy = _proxy(given)
    try:
        transport = httpx.AsyncHTTPTransport(proxy=proxy)
    except ImportError:
        raise CallInvalid(
            f"the proxy of the environment ({proxy.scheme if proxy else ''}) needs the package "
            f"'socksio' (pip install 'httpx[socks]'); or put {given.host} into NO_PROXY"
        ) from None
    except ValueError:
        raise CallInvalid(
            "the proxy of the environment (HTTP_PROXY, HTTPS_PROXY or ALL_PROXY) is none that can "
            f"be used; correct it, or put {given.host} into NO_PROXY"
        ) from None
    return httpx.AsyncClient(
        base_url=given.copy_with(username="", password=""),
        headers={"authorization": f"Bearer {key}"} if key else {},
        auth=auth,
        timeout=timeout,
        transport=transport,
    )


def refused(response: httpx.Response, *, key: bool) -> str | None:
    """What to do about a 401 or 403; ``None`` if the response is neither."""
    where = response.request.url.copy_with(path="/", query=None)
    if response.status_code == httpx.codes.UNAUTHORIZED:
        if key:
            return f"{where} refuses the API key (401): it is unknown, expired or revoked"
        return f"{where} needs an API key (401): set {API_KEY}, or give --key-file"
    if response.status_code == httpx.codes.FORBIDDEN:
        return f"{where} does not allow this with the API key (403); use one with another scope"
    return None


def _proxy(url: httpx.URL) -> httpx.URL | None:
    host = url.host
    if _loopback(host) or _excluded(host, url.port):
        return None
    named = getproxies_environment()
    proxy = named.get(url.scheme) or named.get("all")
    if not proxy:
        return None
    with suppress(httpx.InvalidURL, ValueError):
        address = httpx.URL(proxy if "://" in proxy else f"http://{proxy}")
        if address.host:
            return address
    raise CallInvalid(
        "the proxy of the environment (HTTP_PROXY, HTTPS_PROXY or ALL_PROXY) is no address; "
        f"correct it, or put {host} into NO_PROXY"
    )


def _loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def _excluded(host: str, port: int | None) -> bool:
    """Whether NO_PROXY names the host: as urllib reads it, and by networks (10.0.0.0/8)."""
    if proxy_bypass(host if port is None else f"{host}:{port}"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    for entry in getproxies_environment().get("no", "").split(","):
        with suppress(ValueError):
            if address in ipaddress.ip_network(entry.strip(), strict=False):
                return True
    return False
