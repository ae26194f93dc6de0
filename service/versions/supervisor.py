"""Replaces engines that died, hang or fail.

Every ready version is checked several times a second.

- *Died*: the engine says that it cannot answer any more. It is replaced at once.
- *Hangs*: it has requests outstanding and makes no progress. After a short silence it is
  *suspected*: new requests fall back at once instead of waiting for their deadlines. After a long
  one it is replaced. An idle engine never hangs.
- *Fails*: it says that it is healthy, and one generation after the other fails. It is suspected.

A suspected engine gets no requests that could clear it, so it gets one generation of a plain query
as a probe. Any progress clears an engine that was silent. The end of the probe clears an engine
that failed others; only a failed probe has it replaced, because a query that no engine can answer
is no reason to replace this one.

These are no hangs:

- *A long queue.* Progress is a step of the whole batch, not the end of a request: with hundreds of
  requests on two cores each takes seconds, and a step much less.
- *A slow machine.* There, a step full of long prompts takes seconds too. While the engine uses CPU
  time, silence counts for a sixth: an engine that is stopped or blocked uses none, and one that
  computes for ever is found out later.
- *Time that did not pass for the engine.* Silence is counted in checks, each as one interval, and
  not by a clock: neither a suspended machine nor a blocked event loop nor a changed clock makes an
  engine hang.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Collection
from typing import Protocol

import structlog

from service.engine.protocol import Engine
from service.errors import RequeryError
from service.resilience.backoff import Backoff
from service.resilience.metrics import BreakerMetrics
from service.resilience.metrics import State as BreakerState
from service.versions.metrics import LossReason, SupervisorMetrics
from service.versions.registry import VersionRegistry
from service.versions.state import State
from service.versions.version import ModelVersion

_log = structlog.get_logger(component="supervisor")

_PROBE = "steel stake"
"""A query in the normal form of every version."""
_COMPUTING = 1 / 6
"""Weight of silence while the engine uses CPU time."""


class _Record:
    """What the checks so far have found of one version."""

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.progress = 0
        self.effort = 0.0
        self.silent_s = 0.0
        """Weighted time with work and without progress."""
        self.up_s = math.inf
        """Time since the last recovery; infinite if there was none."""
        self.probe: asyncio.Task[bool] | None = None
        self.lost: LossReason | None = None
        self.lost_at = 0.0
        self.suspicion_logged = False
        self.breaker: BreakerState | None = None
        """The state shown last; ``None`` if none was."""

    def restart(self, engine: Engine) -> None:
        """Start over with a new engine."""
        self.stop_probe()
        self.engine, self.progress, self.effort = engine, engine.progress, engine.effort
        self.silent_s, self.suspicion_logged = 0.0, False

    def stop_probe(self) -> None:
        """Cancel the probe."""
        if self.probe is not None:
            self.probe.cancel()
            self.probe = None


class EngineReplacer(Protocol):
    """The part of :class:`service.versions.loader.Loader` that a supervisor needs."""

    def busy(self, name: str, /) -> bool:
        """Whether the version's engine is being replaced."""

    def begin_load(self, name: str, /) -> object:
        """Begin to replace it.

        Raises:
            RequeryError: it cannot be replaced now.
        """


class Supervisor:
    """Supervises the engines of ready versions.

    It replaces engines by :meth:`Loader.begin_load`, the only way to start one. If that fails, the
    version has failed, and the reconciler tries again.

    Args:
        versions: whose engines are supervised.
        loader: replaces engines, one at a time.
        desired: names of the versions that should be loaded; no other is replaced.
        metrics: count losses.
        breakers: show, as ``engine:<version>``, whether requests reach an engine: closed, half open
            (suspected and probed), or open (lost).
        stall_s: an engine with work and without progress for so many seconds is replaced (six times
            as many if it uses CPU time), and suspected after a fifth of that, at least a second.
        interval_s: between two checks.
        steady_s: an engine that is lost sooner than this after a recovery waits for ``backoff``.
        backoff: when an engine that is lost repeatedly is replaced.
        clock: monotonic seconds, for the length of an outage only.
    """

    def __init__(
        self,
        *,
        versions: VersionRegistry,
        loader: EngineReplacer,
        desired: Callable[[], Collection[str]],
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
        self._desired = desired
        self._metrics = metrics
        self._breakers = breakers
        self._stall_s = stall_s
        self._suspect_s = min(max(stall_s / 5, 1.0), stall_s)
        self._interval_s = interval_s
        self._steady_s = steady_s
        self._backoff = backoff or Backoff(5.0, 300.0)
        self._clock = clock
        self._records: dict[str, _Record] = {}
        metrics.watch(versions)

    async def run(self) -> None:
        """Check until cancelled; never raises."""
        try:
            while True:
                await asyncio.sleep(self._interval_s)
                self.check()
        finally:
            probes = [record.probe for record in self._records.values() if record.probe is not None]
            for record in self._records.values():
                record.stop_probe()
            await asyncio.gather(*probes, return_exceptions=True)

    def check(self) -> None:
        """Check every version once, and replace what is lost; never blocks and never raises."""
        for version in self._versions:
            try:
                self._check(version, self._records.setdefault(version.name, _Record()))
            except Exception:  # noqa: BLE001 - the other versions need their supervisor
                _log.exception("engine_not_supervised", version=version.name)

    def _check(self, version: ModelVersion, record: _Record) -> None:
        if version.state in (State.AVAILABLE, State.DRAINING):
            self._forget(version, record)
            return
        engine = version.unchecked_engine
        if version.state is not State.READY or engine is None:
            return  # loading; if that fails, the reconciler tries again
        reason = self._diagnose(version, record, engine)
        if reason is not None:
            if record.lost is None:
                self._lost(version, record, reason)
            self._replace(version, reason)
        elif record.lost is not None:
            self._recovered(version, record)
        else:
            record.up_s += self._interval_s
        if record.lost is not None:
            self._show(version, record, "open")
        else:
            self._show(version, record, "half_open" if version.suspected else "closed")

    def _forget(self, version: ModelVersion, record: _Record) -> None:
        """Start over: it was unloaded on purpose, so its losses no longer count."""
        record.stop_probe()
        if record.breaker is not None:
            self._show(version, record, "closed")
        fresh = self._records[version.name] = _Record()
        fresh.breaker = record.breaker

    def _show(self, version: ModelVersion, record: _Record, state: BreakerState) -> None:
        before, record.breaker = record.breaker, state
        if self._breakers is None or state == before:
            return
        name = f"engine:{version.name}"
        if before is None:
            self._breakers.watch(name)
        if before is not None or state != "closed":
            self._breakers.moved(name, state)

    def _diagnose(
        self, version: ModelVersion, record: _Record, engine: Engine
    ) -> LossReason | None:
        """Why the engine must be replaced, if it must; suspects it and clears it on the way."""
        if engine is not record.engine:
            record.restart(engine)
        if not engine.healthy:
            return "died"
        if engine.progress != record.progress:
            record.progress, record.silent_s = engine.progress, 0.0
            record.effort = engine.effort
        elif engine.outstanding:
            before, record.effort = record.effort, engine.effort
            computing = record.effort > before
            record.silent_s += self._interval_s * (_COMPUTING if computing else 1)
        if record.probe is not None and record.probe.done():
            if not record.probe.result():
                # Keep the probe: the engine counts as failing until it is replaced.
                version.suspect()
                return "failing"
            record.probe = None
            version.clear()
        version.suspect(silent=record.silent_s >= self._suspect_s)
        if version.suspected:
            self._probe(version, record, engine)
        elif record.suspicion_logged:
            record.suspicion_logged = False
            _log.info("engine_cleared", version=version.name)
        return "hung" if record.silent_s >= self._stall_s else None

    def _probe(self, version: ModelVersion, record: _Record, engine: Engine) -> None:
        """Start the probe of a suspected engine."""
        if record.probe is None:
            record.probe = asyncio.create_task(_answers(engine), name=f"probe-{version.name}")
        if not record.suspicion_logged:
            record.suspicion_logged = True
            _log.warning(
                "engine_suspected",
                version=version.name,
                why="failing" if version.failing else "silent",
                outstanding=engine.outstanding,
            )

    def _lost(self, version: ModelVersion, record: _Record, reason: LossReason) -> None:
        record.lost, record.lost_at = reason, self._clock() - record.silent_s
        if record.up_s < self._steady_s:
            self._backoff.failed(version.name)
        else:
            self._backoff.forget(version.name)
        _log.warning(
            "engine_lost", version=version.name, reason=reason, in_flight=version.in_flight.count
        )

    def _replace(self, version: ModelVersion, reason: LossReason) -> None:
        """Begin to replace the engine, if the version is desired and the backoff is over."""
        name = version.name
        if name not in self._desired() or self._loader.busy(name) or not self._backoff.due(name):
            return
        try:
            self._loader.begin_load(name)
        except RequeryError as error:
            self._backoff.failed(name)
            _log.warning("engine_not_replaced", version=name, reason=str(error))
        else:
            self._metrics.restarted(name, reason)

    def _recovered(self, version: ModelVersion, record: _Record) -> None:
        seconds = self._clock() - record.lost_at
        self._metrics.recovered(version.name, seconds)
        _log.info(
            "engine_back", version=version.name, reason=record.lost, seconds=round(seconds, 3)
        )
        record.lost, record.up_s = None, 0.0


async def _answers(engine: Engine) -> bool:
    """Whether the engine generates without an error, however long it takes."""
    try:
        async for _candidate in engine.generate(_PROBE):
            pass
    except Exception:  # noqa: BLE001 - whatever it is, the engine is not well
        return False
    return True
