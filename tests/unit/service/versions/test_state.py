from __future__ import annotations

from collections.abc import Callable

import pytest

from service.errors import EngineUnavailable
from service.versions.state import ForbiddenTransition, State
from service.versions.version import ModelVersion
from tests.support.versions import make_manifest, put_in

ALLOWED = {
    "available": {"loading", "failed"},
    "loading": {"warming", "draining", "failed", "available"},
    "warming": {"ready", "draining", "failed", "available"},
    "ready": {"loading", "draining", "available"},
    "draining": {"available"},
    "failed": {"loading", "failed", "available"},
}


@pytest.mark.parametrize("after", State)
@pytest.mark.parametrize("before", State)
def test_only_the_transitions_of_the_table_are_allowed(before: State, after: State) -> None:
    if after in ALLOWED[before]:
        before.require_next(after)
    else:
        with pytest.raises(ForbiddenTransition, match=f"{before} cannot become {after}"):
            before.require_next(after)


@pytest.mark.parametrize(
    ("state", "change"),
    [
        (State.AVAILABLE, ModelVersion.begin_unload),
        (State.LOADING, ModelVersion.begin_load),
        (State.DRAINING, ModelVersion.begin_load),
        (State.READY, lambda version: version.fail(EngineUnavailable("no device"))),
    ],
)
def test_a_version_stays_as_it_is_when_a_transition_is_forbidden(
    state: State, change: Callable[[ModelVersion], None]
) -> None:
    version = ModelVersion(make_manifest())
    put_in(version, state)
    with pytest.raises(ForbiddenTransition):
        change(version)
    assert (version.state, version.reason, version.replacing) == (state, None, False)
