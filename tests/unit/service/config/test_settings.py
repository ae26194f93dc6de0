from __future__ import annotations

import pytest
from pydantic import ValidationError
from structlog.testing import capture_logs

from service.config.service_links import log_service_links, service_links
from service.config.settings import Settings

LINKS = {
    "REQUERY_PORT": "tcp://10.0.0.1:80",
    "REQUERY_SERVICE_HOST": "10.0.0.1",
    "REQUERY_SERVICE_PORT": "80",
    "REQUERY_SERVICE_PORT_HTTP": "80",
    "REQUERY_PORT_8000_TCP": "tcp://10.0.0.1:8000",
    "REQUERY_PORT_8000_TCP_PROTO": "tcp",
    "REQUERY_PORT_8000_TCP_PORT": "8000",
    "REQUERY_PORT_8000_TCP_ADDR": "10.0.0.1",
    "REQUERY_CANARY_PORT": "tcp://10.0.0.2:80",
}
"""As beside a Service ``requery`` and one ``requery-canary``."""


def test_every_option_says_what_it_is_for() -> None:
    silent = [name for name, field in Settings.model_fields.items() if not field.description]
    assert silent == []


def test_options_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUERY_PORT", "8123")
    monkeypatch.setenv("REQUERY_REDIS_URL", "redis://:secret@cache:6379/1")
    monkeypatch.setenv("REQUERY_DEFAULT_DEADLINE_MS", "")
    settings = Settings()
    assert settings.port == 8123
    assert settings.default_deadline_ms is None
    assert "secret" not in repr(settings)


def test_an_address_that_kubernetes_puts_into_the_port_is_ignored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in LINKS.items():
        monkeypatch.setenv(name, value)
    assert Settings().port == 8000
    assert Settings(port=9000).port == 9000
    assert set(service_links()) == LINKS.keys()
    with capture_logs() as logs:
        log_service_links()
    (note,) = logs
    assert (note["event"], note["variables"]) == ("service_links_ignored", sorted(LINKS))


@pytest.mark.parametrize("value", ["tcp", "80/tcp", "http://10.0.0.1:80", "tcp://10.0.0.1"])
def test_another_port_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("REQUERY_PORT", value)
    assert service_links() == []
    with pytest.raises(ValidationError):
        Settings()


def test_no_setting_looks_like_a_service_link() -> None:
    assert service_links({f"REQUERY_{name.upper()}": "1" for name in Settings.model_fields}) == []


def test_the_default_deadline_follows_the_device() -> None:
    assert Settings().deadline_ms(gpu=True) == 150
    assert Settings().deadline_ms(gpu=False) == 2000
    assert Settings(default_deadline_ms=80).deadline_ms(gpu=False) == 80


def test_sources_are_a_list() -> None:
    assert Settings(model_sources=" /a , s3://b/c,,").sources() == ["/a", "s3://b/c"]
    assert Settings().sources() == []


def test_warm_up_queries_are_a_list_that_can_be_empty() -> None:
    assert Settings(warm_queries=" lamp, 8 in.;; rug ;").warm_up() == ("lamp, 8 in.", "rug")
    assert Settings(warm_queries=";").warm_up() == ()
    assert len(Settings().warm_up()) >= 3


@pytest.mark.parametrize("query", ["x" * 257, "lamp; \u200b\u200d"])
def test_a_warm_up_query_that_no_version_can_take_is_refused(query: str) -> None:
    with pytest.raises(ValidationError, match="printable characters"):
        Settings(warm_queries=query)


@pytest.mark.parametrize(
    "wrong", [{"port": 70000}, {"log_queries": "all"}, {"cache_ttl_s": 0}, {"nonsense": 1}]
)
def test_options_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Settings(**wrong)  # type: ignore[arg-type]
