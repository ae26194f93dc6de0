"""What is told of something that comes and goes, by a clock that the test moves."""

from __future__ import annotations

from service.resilience.outage_log import OutageLogThrottle


class World:
    def __init__(self) -> None:
        self.now = 1000.0
        self.outage = OutageLogThrottle(every_s=60, clock=lambda: self.now)


def test_a_loss_is_told_once_and_so_is_the_return() -> None:
    outage = World().outage
    assert not outage.back()
    assert [outage.lost() for _ in range(3)] == [True, False, False]
    assert outage.under_way
    assert [outage.back() for _ in range(3)] == [True, False, False]
    assert not outage.under_way


def test_losses_within_a_minute_are_one_line() -> None:
    world = World()
    told = []
    for _ in range(30):
        told.append(world.outage.lost())
        told.append(world.outage.back())
        world.now += 1
    assert told == [True, True] + [False, False] * 29
    world.now = 1060.0
    assert world.outage.lost()
    assert world.outage.times == 30


def test_a_loss_that_was_not_told_and_lasts_is_told_when_the_minute_is_over() -> None:
    world = World()
    world.outage.lost()
    world.outage.back()
    world.now += 10
    # The last line says that all is well, which is no longer true.
    assert not world.outage.lost()
    world.now += 49.9
    assert not world.outage.lost()
    world.now += 0.2
    assert world.outage.lost()
    assert world.outage.back()


def test_no_return_is_told_of_a_loss_that_was_not() -> None:
    world = World()
    world.outage.lost()
    world.outage.back()
    world.outage.lost()
    assert not world.outage.back()
    world.now += 3600
    assert not world.outage.back()
    assert world.outage.lost()
    assert world.outage.times == 2
