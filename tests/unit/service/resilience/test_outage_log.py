"""What is logged about outages, by a clock that the test moves."""

from __future__ import annotations

from service.resilience.outage_log import OutageLogThrottle


class World:
    def __init__(self) -> None:
        self.now = 1000.0
        self.outage = OutageLogThrottle(every_s=60, clock=lambda: self.now)


def test_an_outage_and_its_recovery_are_logged_once() -> None:
    outage = World().outage
    assert not outage.recovered()
    assert [outage.failed() for _ in range(3)] == [True, False, False]
    assert outage.under_way
    assert [outage.recovered() for _ in range(3)] == [True, False, False]
    assert not outage.under_way


def test_outages_within_a_minute_are_one_line() -> None:
    world = World()
    logged = []
    for _ in range(30):
        logged.append(world.outage.failed())
        logged.append(world.outage.recovered())
        world.now += 1
    assert logged == [True, True] + [False, False] * 29
    world.now = 1060.0
    assert world.outage.failed()
    assert world.outage.times == 30


def test_an_unlogged_outage_that_lasts_is_logged_after_the_minute() -> None:
    world = World()
    world.outage.failed()
    world.outage.recovered()
    world.now += 10
    # The last line says that all is well, which is no longer true.
    assert not world.outage.failed()
    world.now += 49.9
    assert not world.outage.failed()
    world.now += 0.2
    assert world.outage.failed()
    assert world.outage.recovered()


def test_no_recovery_is_logged_after_an_unlogged_outage() -> None:
    world = World()
    world.outage.failed()
    world.outage.recovered()
    world.outage.failed()
    assert not world.outage.recovered()
    world.now += 3600
    assert not world.outage.recovered()
    assert world.outage.failed()
    assert world.outage.times == 2
