"""Replaces engines that died, hang or fail, without a person.

Every version that is ready is looked at several times a second.

- *Died*: the engine says itself that it cannot answer any more. It is replaced at once.
- *Hangs*: it has requests outstanding and shows no progress. After a short silence the version is
  *suspected*: new requests fall back at once instead of waiting for their deadlines. After a long
  one the engine is replaced. An engine with nothing to do never hangs.
- *Fails*: it says that it is well, and one generation after the other fails. It is suspected, too.

A suspected engine gets no requests that could clear it, so it is given one generation of a plain
query. Any progress clears an engine that was silent; the end of that generation clears one that
failed others, and its failure is what has the engine replaced: a query that no engine can answer
is no reason to replace this one.

What must not be taken for a hang:

- *A long queue.* Progress is a step of the whole batch, not the end of a request: with hundreds of
  requests on two cores each takes seconds, and a step much less.
- *A slow machine.* There, a step full of long prompts takes seconds too. As long as the engine
  computes, silence counts for a sixth: one that was stopped or waits for something does not
  compute, and one that computes for ever is found out later.
- *Time that did not pass for the engine.* Silence is counted in looks, each as one interval, and
  not read off a clock: neither a machine that was suspended, nor an event loop that was held up,
  nor a clock that was set makes an engine hang.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Literal, Protocol

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from service.engine.protocol import Engine
from service.errors import RequeryError
from service.resilience.backoff import Backoff
from service.resilience.metrics import BreakerMetrics
from service.resilience.metrics import State as BreakerState
from service.versions.registry import VersionRegistry
from service.versions.state import State
from service.versions.version import ModelVersion

_log = structlog.get_logger(component="supervisor")

Reason = Literal["died", "hung", "failing"]
REASONS: tuple[Reason, ...] = ("died", "hung", "failing")

_PROBE = "steel stake"
"""In the normal form of every version."""
_COMPUTING = 1 / 6
"""What silence counts while the engine computes."""
_OUTAGE_BUCKETS_S = (1, 2, 5, 10, 20, 30, 45, 60, 90, 120, 300, 600, 1800)


class SupervisorMetrics:
    """Engines that were suspected and replaced, and for how long there was none.

    Args:
        registry: where they are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._restarts = Counter(
            "requery_engine_restarts",
            "Engines replaced, by why: died, hung (work and no progress), failing",
            ["version", "reason"],
            registry=registry,
        )
        self._suspected = Gauge(
            "requery_engine_suspected",
            "1 while an engine calls itself healthy and gets no requests, since it does not answer",
            ["version"],
            registry=registry,
        )
        self._outage = Histogram(
            "requery_engine_outage_seconds",
            "From the loss of an engine (of a hung one: its last sign of life) until the version "
            "was ready again",
            ["version"],
            registry=registry,
            buckets=_OUTAGE_BUCKETS_S,
        )

    def watch(self, versions: VersionRegistry) -> None:
        """Show every version from the start, and read suspicion at every scrape."""
        versions.watch(self._watch)

    def restarted(self, version: str, reason: Reason) -> None:
        """An engine is being replaced."""
        self._restarts.labels(version, reason).inc()

    def back(self, version: str, seconds: float) -> None:
        """A version is ready again, after so many seconds."""
        self._outage.labels(version).observe(seconds)

    def _watch(self, version: ModelVersion) -> None:
        self._suspected.labels(version.name).set_function(partial(_suspected, version))
        self._outage.labels(version.name)
        for reason in REASONS:
            self._restarts.labels(version.name, reason)


class _Watch:
    """What is known of one version from the looks before."""

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.progress = 0
        self.effort = 0.0
        self.silent_s = 0.0
        """How long it has had work and made no progress; less if it computed meanwhile."""
        self.up_s = math.inf
        """How long it has been up since it was lost; infinite if it never was."""
        self.probe: asyncio.Task[bool] | None = None
        self.lost: Reason | None = None
        self.lost_at = 0.0
        self.noted = False
        """Whether a suspicion has been logged."""
        self.breaker: BreakerState | None = None
        """What was shown last; ``None`` if it never was."""

    def meet(self, engine: Engine) -> None:
        """Start over with a new engine."""
        self.stop_probe()
        self.engine, self.progress, self.effort = engine, engine.progress, engine.effort
        self.silent_s, self.noted = 0.0, False

    def stop_probe(self) -> None:
        """Give up the generation that was to clear the engine."""
        if self.probe is not None:
            self.probe.cancel()
            self.probe = None


class Replaces(Protocol):
    """What a supervisor asks of a :class:`service.versions.loader.Loader`."""

    def busy(self, name: str, /) -> bool:
        """Whether the version's engine is being replaced."""

    def begin_load(self, name: str, /) -> object:
        """Begin to replace it.

        Raises:
            RequeryError: that cannot be done now.
        """


class Supervisor:
    """Sees to it that versions that are ready stay so.

    It replaces engines by :meth:`Loader.begin_load`, so that there is one way to start an engine.
    If that fails, the version has failed, and the roster tries again.

    Args:
        versions: whose engines are watched.
        loader: replaces engines, one at a time.
        wanted: names of the versions that should be loaded; no other is replaced.
        metrics: where losses are counted.
        breakers: where it is shown, as ``engine:<version>``, whether requests are kept from an
            engine: closed, half open (suspected, and tried), or open (lost).
        stall_s: an engine that has work and shows no progress for so many seconds is replaced (six
            times as many if it computes); a fifth of that, at least a second, and it is suspected.
        interval_s: between two looks.
        steady_s: an engine that was lost so soon after the one before it waits for ``backoff``.
        backoff: when an engine that is lost again and again is replaced.
        clock: monotonic seconds, only to tell how long an outage lasted.
    """

    def __init__(
        self,
        *,
        versions: VersionRegistry,
        loader: Replaces,
        wanted: Callable[[], Collection[str]],
        metrics: SupervisorMetrics,
        breakers: BreakerMetrics | None = None,
        stall_s: float,
        interval_s: float = 0.2,
        steady_s: float = 300.0,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._versions = versions
        self._loader = loader
        self._wanted = wanted
        self._metrics = metrics
        self._breakers = breakers
        self._stall_s = stall_s
        self._suspect_s = min(max(stall_s / 5, 1.0), stall_s)
        self._interval_s = interval_s
        self._steady_s = steady_s
        self._backoff = backoff or Backoff(5.0, 300.0)
        self._clock = clock
        self._watches: dict[str, _Watch] = {}
        metrics.watch(versions)

    async def run(self) -> None:
        """Look again and again; ends when it is cancelled, and never raises."""
        try:
            while True:
                await asyncio.sleep(self._interval_s)
                self.look()
        finally:
            probes = [watch.probe for watch in self._watches.values() if watch.probe is not None]
            for watch in self._watches.values():
                watch.stop_probe()
            await asyncio.gather(*probes, return_exceptions=True)

    def look(self) -> None:
        """Look once at every version, and do what is to be done; never waits and never raises."""
        for version in self._versions:
            try:
                self._look_at(version, self._watches.setdefault(version.name, _Watch()))
            except Exception:  # noqa: BLE001 - the other versions need their supervisor
                _log.exception("engine_not_supervised", version=version.name)

    def _look_at(self, version: ModelVersion, watch: _Watch) -> None:
        if version.state in (State.AVAILABLE, State.DRAINING):
            self._forget(version, watch)
            return
        engine = version.unchecked_engine
        if version.state is not State.READY or engine is None:
            return  # on its way; if it fails, the roster tries again
        reason = self._diagnose(version, watch, engine)
        if reason is not None:
            if watch.lost is None:
                self._lost(version, watch, reason)
            self._replace(version, reason)
        elif watch.lost is not None:
            self._back(version, watch)
        else:
            watch.up_s += self._interval_s
        if watch.lost is not None:
            self._show(version, watch, "open")
        else:
            self._show(version, watch, "half_open" if version.suspected else "closed")

    def _forget(self, version: ModelVersion, watch: _Watch) -> None:
        """It was unloaded on purpose: what was lost is nobody's loss any more."""
        watch.stop_probe()
        if watch.breaker is not None:
            self._show(version, watch, "closed")
        fresh = self._watches[version.name] = _Watch()
        fresh.breaker = watch.breaker

    def _show(self, version: ModelVersion, watch: _Watch, state: BreakerState) -> None:
        before, watch.breaker = watch.breaker, state
        if self._breakers is None or state == before:
            return
        name = f"engine:{version.name}"
        if before is None:
            self._breakers.watch(name)
        if before is not None or state != "closed":
            self._breakers.moved(name, state)

    def _diagnose(self, version: ModelVersion, watch: _Watch, engine: Engine) -> Reason | None:
        """Why the engine must be replaced; suspects it, and clears it, on the way."""
        if engine is not watch.engine:
            watch.meet(engine)
        if not engine.healthy:
            return "died"
        if engine.progress != watch.progress:
            watch.progress, watch.silent_s = engine.progress, 0.0
            watch.effort = engine.effort
        elif engine.outstanding:
            before, watch.effort = watch.effort, engine.effort
            computes = watch.effort > before
            watch.silent_s += self._interval_s * (_COMPUTING if computes else 1)
        if watch.probe is not None and watch.probe.done():
            if not watch.probe.result():
                # The probe is kept: the engine stays found out until another takes its place.
                version.suspect()
                return "failing"
            watch.probe = None
            version.clear()
        version.suspect(silent=watch.silent_s >= self._suspect_s)
        if version.suspected:
            self._probe(version, watch, engine)
        elif watch.noted:
            watch.noted = False
            _log.info("engine_cleared", version=version.name)
        return "hung" if watch.silent_s >= self._stall_s else None

    def _probe(self, version: ModelVersion, watch: _Watch, engine: Engine) -> None:
        """Give a suspected engine something to clear itself with."""
        if watch.probe is None:
            watch.probe = asyncio.create_task(_answers(engine), name=f"probe-{version.name}")
        if not watch.noted:
            watch.noted = True
            _log.warning(
                "engine_suspected",
                version=version.name,
                why="failing" if version.failing else "silent",
                outstanding=engine.outstanding,
            )

    def _lost(self, version: ModelVersion, watch: _Watch, reason: Reason) -> None:
        watch.lost, watch.lost_at = reason, self._clock() - watch.silent_s
        if watch.up_s < self._steady_s:
            self._backoff.failed(version.name)
        else:
            self._backoff.forget(version.name)
        _log.warning(
            "engine_lost", version=version.name, reason=reason, in_flight=version.in_flight.count
        )

    def _replace(self, version: ModelVersion, reason: Reason) -> None:
        """Begin to replace the engine, if it is wanted and its time has come."""
        name = version.name
        if name not in self._wanted() or self._loader.busy(name) or not self._backoff.due(name):
            return
        try:
            self._loader.begin_load(name)
        except RequeryError as error:
            self._backoff.failed(name)
            _log.warning("engine_not_replaced", version=name, reason=str(error))
        else:
            self._metrics.restarted(name, reason)

    def _back(self, version: ModelVersion, watch: _Watch) -> None:
        seconds = self._clock() - watch.lost_at
        self._metrics.back(version.name, seconds)
        _log.info("engine_back", version=version.name, reason=watch.lost, seconds=round(seconds, 3))
        watch.lost, watch.up_s = None, 0.0


async def _answers(engine: Engine) -> bool:
    """Whether the engine generates without an error; nobody waits for it, so it may take long."""
    try:
        async for _candidate in engine.generate(_PROBE):
            pass
    except Exception:  # noqa: BLE001 - whatever it is, the engine is not well
        return False
    return True


def _suspected(version: ModelVersion) -> float:
    return float(version.suspected)
