from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store.text import MAX_QUERY_CHARS, normalise
from service.errors import EngineUnavailable, InvalidQuery, UnknownVersion, VersionNotLoaded
from service.versions.registry import VersionRegistry
from service.versions.state import State
from service.versions.version import ModelVersion
from tests.support.versions import Engines, make_manifest, put_in

FOLDING = ModelVersion(make_manifest())
KEEPING = ModelVersion(
    make_manifest(
        prompt={
            "query": "a",
            "rewrite": "b",
            "relevant": "c",
            "irrelevant": "d",
            "fold_case": False,
        }
    )
)


@given(st.text(max_size=300) | st.text(st.characters(max_codepoint=127), max_size=300))
def test_the_normal_form_is_that_of_training(text: str) -> None:
    for version, fold_case in ((FOLDING, True), (KEEPING, False)):
        expected = normalise(text, fold_case=fold_case)
        if 1 <= len(expected) <= MAX_QUERY_CHARS:
            assert version.normal_form(text) == expected
        else:
            with pytest.raises(InvalidQuery):
                version.normal_form(text)


def test_a_default_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(UnknownVersion, match=r"'nobody'.*test-1"):
        VersionRegistry([FOLDING], default="nobody")


async def loaded(version: ModelVersion) -> None:
    await version.load(Engines(), lambda _prompt, _generated: None)


@pytest.fixture
def versions() -> VersionRegistry:
    """Versions ``a`` (the default), ``b`` and ``c``; none is loaded."""
    return VersionRegistry([ModelVersion(make_manifest(n)) for n in "abc"], default="a")


@pytest.mark.parametrize("state", State)
def test_the_default_is_routed_to_in_every_state(versions: VersionRegistry, state: State) -> None:
    put_in(versions.default, state)
    assert versions.route(None) is versions.default
    assert versions.serving("a") is versions.default


@pytest.mark.parametrize("state", [s for s in State if s is not State.READY])
def test_other_versions_are_routed_to_only_when_they_are_ready(
    versions: VersionRegistry, state: State
) -> None:
    version = versions.get("b")
    put_in(version, state)
    with pytest.raises(VersionNotLoaded, match="version b "):
        versions.route("b")
    put_in(version, State.READY)
    assert versions.route("b") is version


async def test_one_whose_engine_is_being_replaced_may_be_routed_to(
    versions: VersionRegistry,
) -> None:
    version = versions.get("b")
    await loaded(version)
    version.begin_load()
    assert versions.serving("b") is version
    assert versions.ready_names() == set()
    await loaded(version)
    assert versions.ready_names() == {"b"}
    # If there is no other engine for it, it is none that requests can be sent to.
    version.begin_load()
    version.fail(EngineUnavailable("no device"))
    with pytest.raises(VersionNotLoaded):
        versions.serving("b")


def test_an_unknown_name_is_told_as_plain_text(versions: VersionRegistry) -> None:
    for ask in (versions.get, versions.serving, versions.route, versions.set_default):
        with pytest.raises(UnknownVersion) as caught:
            ask("\u202e" + "x" * 1000)
        assert str(caught.value).isascii()
        assert len(str(caught.value)) < 200


async def test_ready_are_those_that_are_loaded_and_alive(versions: VersionRegistry) -> None:
    assert versions.ready_names() == set()
    engines = Engines()
    for name in "ab":
        await versions.get(name).load(engines, lambda _prompt, _generated: None)
    assert versions.ready_names() == {"a", "b"}
    engines["b"].alive = False
    assert versions.ready_names() == {"a"}


async def test_only_a_ready_version_can_be_made_the_default(versions: VersionRegistry) -> None:
    with pytest.raises(VersionNotLoaded):
        versions.set_default("b")
    assert versions.default.name == "a"
    await loaded(versions.get("b"))
    versions.set_default("b")
    assert versions.default.name == "b"
    assert versions.wanted_default == "b"


async def test_a_version_whose_engine_died_is_not_made_the_default(
    versions: VersionRegistry,
) -> None:
    engines = Engines()
    await versions.get("b").load(engines, lambda _prompt, _generated: None)
    engines["b"].alive = False
    with pytest.raises(VersionNotLoaded, match="died"):
        versions.set_default("b")


async def test_a_wanted_default_takes_over_when_it_is_ready(versions: VersionRegistry) -> None:
    await loaded(versions.get("a"))
    versions.want_default("b")
    assert (versions.default.name, versions.wanted_default) == ("a", "b")
    await loaded(versions.get("b"))
    versions.settle()
    assert versions.default.name == "b"
    # Going back is at once: it is still there.
    versions.want_default("a")
    assert versions.default.name == "a"


def test_before_anything_is_loaded_a_wanted_default_takes_over_at_once(
    versions: VersionRegistry,
) -> None:
    versions.want_default("b")
    assert versions.default.name == "b"


async def test_a_wanted_default_may_come_into_the_store_later(versions: VersionRegistry) -> None:
    await loaded(versions.get("a"))
    versions.want_default("z")
    assert versions.default.name == "a"
    new = versions.add(ModelVersion(make_manifest("z")))
    await loaded(new)
    versions.settle()
    assert versions.default is new


def test_a_version_that_is_known_is_not_replaced(versions: VersionRegistry) -> None:
    seen: list[str] = []
    versions.watch(lambda version: seen.append(version.name))
    assert seen == ["a", "b", "c"]
    known = versions.get("b")
    assert versions.add(ModelVersion(make_manifest("b"))) is known
    assert versions.get("b") is known
    versions.add(ModelVersion(make_manifest("d")))
    assert seen == ["a", "b", "c", "d"]
    assert "d" in versions


async def test_closing_stops_all_engines_even_if_one_fails(versions: VersionRegistry) -> None:
    engines = Engines()
    for name in "abc":
        await versions.get(name).load(engines, lambda _prompt, _generated: None)

    async def fails() -> None:
        raise OSError("cannot")

    engines["a"].close = fails  # type: ignore[method-assign]
    await versions.close()
    assert [engines[name].closed for name in "bc"] == [True, True]
    assert {version.state for version in versions} == {State.AVAILABLE}
