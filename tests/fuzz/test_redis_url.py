"""Any URL of a Redis: a target, or an error that gives no password away."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.redis.client import connect
from service.redis.url import Target, parse
from tests.fuzz.profile import fuzzed
from tests.fuzz.strategies import texts

SECRET = "hunter2-of-the-fleet"

pieces = st.sampled_from(
    ["redis", "rediss", "unix", "+sentinel", "+cluster", "://", ":", "@", "/", "?", "#", "%", "&",
     "=", "[", "]", "[::1]", "cache", "127.0.0.1", "6379", "99999", "9" * 5000, "0", "main", "user",
     "db", "password", "username", "client_name", "ssl_cert_reqs", "none", ",", "\u2100", "\uff20",
     "%ff%00", "%zz", "\ud800", "\n", "\t", " ", SECRET, SECRET]
)  # fmt: skip
jumbles = st.lists(pieces, max_size=14).map("".join)
# A password that nobody has escaped, wherever it can stand.
unescaped = st.tuples(
    st.sampled_from(["redis", "rediss", "unix", "redis+sentinel", "rediss+cluster", "http", ""]),
    texts,
    texts,
    st.sampled_from(["@cache", "@cache:70000", "@cache/x", "@[::1", "@", "?password=", "@a,b/m/0"]),
    texts,
).map(lambda p: f"{p[0]}://user:{p[1]}{SECRET}{p[2]}{p[3]}{p[4]}")


def _said(error: BaseException | None) -> str:
    """All that a traceback would show."""
    if error is None:
        return ""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return f"{error!r} {_said(before)}"


@fuzzed
@given(jumbles | unescaped | texts)
def test_any_url_is_a_target_or_an_error_without_secrets(url: str) -> None:
    try:
        target = parse(url)
    except ValueError as error:
        told = str(error)
    else:
        _require_usable(target)
        told = ""
    assert SECRET not in told


def _require_usable(target: Target) -> None:
    assert isinstance(target, Target)
    assert all(host and 0 < port < 65536 for host, port in target.hosts)
    assert target.hosts or target.path


@fuzzed
@given(st.text("abc%:@/?#[]&= é\u2100", max_size=12).filter(bool))
def test_a_password_that_is_escaped_arrives_as_it_is(password: str) -> None:
    url = f"rediss+sentinel://u:{quote(password, safe='')}@a:1,b/main/3"
    target = parse(url)
    assert target.options["password"] == password
    assert target.hosts == (("a", 1), ("b", 26379))
    connect(url, max_connections=1, timeout_s=1)


@pytest.mark.parametrize(
    "url",
    [
        f"redis://user:{SECRET}\u2100@cache",
        f"redis://:{SECRET}@[::1",
    ],
)
def test_what_python_says_of_a_url_is_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match="malformed") as caught:
        parse(url)
    assert SECRET not in _said(caught.value)
