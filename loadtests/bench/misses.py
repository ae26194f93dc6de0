"""Misses: the same never-seen queries for every peer, round by round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadtests.bench.engine_options import EngineOptions
from loadtests.bench.figures import Spread, ratios, spreads
from loadtests.bench.hf_peer import TransformersPeer
from loadtests.bench.openai_peer import OpenAiPeer
from loadtests.bench.peer import Peer, PeerFailed, Turn, Work, closed_loop
from loadtests.bench.plans import BATCH_CALLERS, CANDIDATES, MissesPlan
from loadtests.bench.raw_peer import RawEnginePeer
from loadtests.bench.requery_peer import RequeryPeer
from loadtests.bench.section import Row, Say, Section
from loadtests.bench.timing import own_share
from loadtests.bench.versions import BenchVersions, bench_name
from loadtests.queries import Queries
from loadtests.summary import milliseconds, percentile

_UNEQUAL = 0.05
"""Difference in tokens generated from which on peers did not do equal work."""
_MODES = {"single": 1, "batch": BATCH_CALLERS}
PEERS = ("requery", "raw", "plain", "server", "transformers")


@dataclass
class Record:
    """What a peer did.

    Attributes:
        peer: which.
        rounds: for each mode and round the requests and the tokens of candidates a second, and the
            median latency in ms.
        latencies: of all rounds by mode, in seconds.
        work, requests: of all turns, by mode.
        failures: what went wrong, in order.
        stages: seconds by stage of each request, by mode, from a peer that tells.
    """

    peer: Peer
    rounds: dict[str, list[dict[str, float]]] = field(
        default_factory=lambda: {mode: [] for mode in _MODES}
    )
    latencies: dict[str, list[float]] = field(default_factory=lambda: {mode: [] for mode in _MODES})
    work: dict[str, Work] = field(default_factory=lambda: dict.fromkeys(_MODES, Work()))
    requests: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_MODES, 0))
    failures: list[str] = field(default_factory=list)
    stages: dict[str, list[dict[str, float]]] = field(
        default_factory=lambda: {mode: [] for mode in _MODES}
    )

    def add(self, mode: str, turn: Turn, work: Work) -> None:
        """One turn.

        Raises:
            PeerFailed: nothing was answered.
        """
        self.failures += turn.failures
        median = percentile(turn.latencies, 50.0)
        if median is None:
            raise PeerFailed(f"nothing was answered: {' '.join(turn.failures[:1])}")
        self.rounds[mode].append(
            {
                "per_s": turn.per_s,
                "tokens_per_s": turn.per_s * work.generated / len(turn.latencies),
                "median_ms": 1000 * median,
            }
        )
        if isinstance(self.peer, RequeryPeer):
            self.stages[mode] += self.peer.stages[-len(turn.latencies) :]
        self.latencies[mode] += turn.latencies
        self.work[mode] += work
        self.requests[mode] += len(turn.latencies)

    def generated_per_request(self, mode: str) -> float:
        """Tokens of the candidates; 0 without requests."""
        requests = self.requests[mode]
        return self.work[mode].generated / requests if requests else 0.0

    def content(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "setup": self.peer.setup,
            "failures": len(self.failures),
            "first_failures": self.failures[:3],
            "modes": {
                mode: {
                    "callers": callers,
                    "requests": self.requests[mode],
                    "rounds": self.rounds[mode],
                    "over_rounds": {k: v.content() for k, v in spreads(self.rounds[mode]).items()},
                    "latency_ms": milliseconds(self.latencies[mode]),
                    "generated_tokens_per_request": round(self.generated_per_request(mode), 2),
                    "prompt_tokens_per_request": round(
                        self.work[mode].prompt / max(1, self.requests[mode]), 2
                    ),
                    "tagged_apart_per_request": round(
                        self.work[mode].tagged / max(1, self.requests[mode]), 2
                    ),
                }
                for mode, callers in _MODES.items()
            },
        }


def peers(
    versions: BenchVersions, folder: Path, names: Sequence[str] = PEERS, version: str = ""
) -> list[Peer]:
    """Those of :data:`PEERS` that are wanted, not started."""
    version = version or bench_name(CANDIDATES)
    makers: Mapping[str, Callable[[], Peer]] = {
        "requery": lambda: RequeryPeer(version, folder / "requery", versions.settings),
        "raw": lambda: RawEnginePeer(versions, version, folder),
        "plain": lambda: RawEnginePeer(versions, version, folder, extended=False),
        "server": lambda: OpenAiPeer(EngineOptions.of(*versions.find(version)), folder),
        "transformers": lambda: TransformersPeer(versions, version, folder),
    }
    return [makers[name]() for name in names]


async def run(plan: MissesPlan, chosen: Sequence[Peer], queries: Queries, say: Say) -> Section:
    """Every peer in turn, ``plan.rounds`` times.

    A peer that cannot be started, or breaks, is reported and left out; the others go on.
    """
    records = [Record(peer) for peer in chosen]
    broken: dict[str, str] = {}
    try:
        for number in range(plan.rounds):
            asked = {
                "warm": [queries.unseen() for _ in range(plan.warm)],
                "single": [queries.unseen() for _ in range(plan.single)],
                "batch": [queries.unseen() for _ in range(plan.batch)],
            }
            for record in records:
                peer = record.peer
                if peer.name in broken:
                    continue
                say(f"misses, round {number + 1} of {plan.rounds}: {peer.name}")
                try:
                    await _turns(record, asked, start=number == 0 or not plan.together)
                except (PeerFailed, OSError) as error:
                    broken[peer.name] = str(error)
                    say(f"{peer.name} cannot be measured: {error}")
                await _rest(plan, peer, ended=peer.name in broken)
    finally:
        for record in records:
            await record.peer.close()
    return _section(records, broken)


async def _turns(record: Record, asked: Mapping[str, list[str]], *, start: bool) -> None:
    peer = record.peer
    if start:
        await peer.start()
        await closed_loop(peer.ask, asked["warm"], BATCH_CALLERS)
    else:
        peer.thaw()
    for mode, callers in _MODES.items():
        before = await peer.work()
        turn = await closed_loop(peer.ask, asked[mode], callers)
        record.add(mode, turn, await peer.work() - before)


async def _rest(plan: MissesPlan, peer: Peer, *, ended: bool) -> None:
    if ended or not plan.together:
        await peer.close()
    else:
        peer.freeze()


def _section(records: Sequence[Record], broken: Mapping[str, str]) -> Section:
    first = records[0]
    # With one caller: with more, what waits for the event loop would count as the service's own.
    stages = next((r.stages["single"] for r in records if r.stages["single"]), [])
    figures: dict[str, Any] = {
        "peers": {r.peer.name: r.content() for r in records},
        "not_measured": dict(broken),
        "service_share": own_share(stages),
        "ratios_of_" + first.peer.name: {},
    }
    rows: list[Row] = []
    for record in records:
        for mode, callers in _MODES.items():
            row, ratio = _row(record, first, mode, callers)
            figures["ratios_of_" + first.peer.name][f"{record.peer.name}, {mode}"] = ratio
            rows.append(row)
        if record.peer.name in broken:
            rows.append(Row(record.peer.name, "not measured", note=broken[record.peer.name][:200]))
    share = figures["service_share"]
    if share is not None:
        rows.append(
            Row(
                "the service's own share of a miss (total less generation), median",
                f"{share['own_ms']['p50']:.2f} ms of {share['total_ms']['p50']:.1f} ms",
                f"{share['share_of_total']:.4f} of the whole",
            )
        )
    return Section("misses", figures, tuple(rows))


def _row(
    record: Record, first: Record, mode: str, callers: int
) -> tuple[Row, dict[str, Any] | None]:
    who = f"{record.peer.name}, {callers} caller{'s' if callers > 1 else ''}"
    key, unit = ("median_ms", "ms") if callers == 1 else ("per_s", "requests/s")
    found = Spread.of([one[key] for one in record.rounds[mode]])
    tokens = record.generated_per_request(mode)
    note = f"{tokens:.1f} tokens of candidates a request"
    if record.work[mode].tagged:
        note += ", tagged in a second pass"
    if abs(tokens - first.generated_per_request(mode)) > _UNEQUAL * tokens:
        note = f"INVALID: unequal work, {note}"
    if record.failures:
        note = f"INVALID: {len(record.failures)} failed; {note}"
    if found is None:
        return Row(who, "not measured", note=note), None
    if record is first:
        return Row(who, f"{found} {unit}", note=note), None
    # By tokens: who happened to draw longer candidates is not slower for it.
    compared = "median_ms" if callers == 1 else "tokens_per_s"
    pairs = [
        {"first": mine[compared], "this": other[compared]}
        for mine, other in zip(first.rounds[mode], record.rounds[mode], strict=False)
    ]
    # More requests a second are better, and fewer milliseconds: above 1, the first is ahead.
    ratio = ratios(pairs, "first", "this") if callers > 1 else ratios(pairs, "this", "first")
    text = "" if ratio is None else f"{first.peer.name} {ratio} times as fast"
    return Row(who, f"{found} {unit}", text, note), None if ratio is None else ratio.content()
