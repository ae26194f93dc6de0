"""Misses: every peer gets the same never-seen queries, round by round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from loadtests.bench.figures import Spread, ratios, spreads
from loadtests.bench.peers import PEERS, Peer, RequeryPeer, Turn, Work, closed_loop
from loadtests.bench.versions import CANDIDATES, BenchVersions, bench_name
from loadtests.processes import ServerFailed
from loadtests.report import Report, Row
from loadtests.runner import Context
from loadtests.summary import milliseconds, percentile

BATCH_CALLERS = 16
"""Concurrent callers of the mode ``batch``."""
_UNEQUAL = 0.05
"""Relative difference in generated tokens above which peers did unequal work."""
_MODES = {"single": 1, "batch": BATCH_CALLERS}


@dataclass(frozen=True, slots=True)
class MissesPlan:
    """Sizes.

    Attributes:
        single, batch: queries of one turn with one caller and with :data:`BATCH_CALLERS`.
        warm: queries before the first turn, not measured, with as many callers.
        rounds: of all peers in turn.
        together: keep all peers loaded and pause (SIGSTOP) all but one; else start each one for
            each of its turns, which takes longer and less memory.
    """

    single: int = 20
    batch: int = 96
    warm: int = 32
    rounds: int = 5
    together: bool = True

    def quick(self) -> MissesPlan:
        """See :class:`loadtests.runner.Plan`."""
        return replace(self, single=2, batch=8, warm=2, rounds=1, together=False)


@dataclass
class Record:
    """Measurements of a peer.

    Attributes:
        peer: the peer.
        rounds: by mode, for each round: requests and tokens of candidates per second, median
            latency in ms.
        latencies: by mode, of all rounds, in seconds.
        work: by mode, of all turns.
        failures: messages, in order.
        stages: by mode, seconds by stage of each request, if the peer reports them.
    """

    peer: Peer
    rounds: dict[str, list[dict[str, float]]] = field(
        default_factory=lambda: {m: [] for m in _MODES}
    )
    latencies: dict[str, list[float]] = field(default_factory=lambda: {m: [] for m in _MODES})
    work: dict[str, Work] = field(default_factory=lambda: dict.fromkeys(_MODES, Work()))
    failures: list[str] = field(default_factory=list)
    stages: dict[str, list[Mapping[str, float]]] = field(
        default_factory=lambda: {m: [] for m in _MODES}
    )

    def add(self, mode: str, turn: Turn, work: Work) -> None:
        """Add a turn.

        Raises:
            ServerFailed: nothing was answered.
        """
        self.failures += turn.failures
        median = percentile(turn.latencies, 50.0)
        if median is None:
            raise ServerFailed(f"nothing was answered: {' '.join(turn.failures[:1])}")
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

    def per_request(self, mode: str, kind: str) -> float:
        """Tokens of a kind of work per request; 0 without requests."""
        total = getattr(self.work[mode], kind)
        return float(total / max(1, len(self.latencies[mode])))

    def content(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "setup": self.peer.setup,
            "failures": len(self.failures),
            "first_failures": self.failures[:3],
            "modes": {
                mode: {
                    "callers": callers,
                    "requests": len(self.latencies[mode]),
                    "rounds": self.rounds[mode],
                    "over_rounds": {k: v.content() for k, v in spreads(self.rounds[mode]).items()},
                    "latency_ms": milliseconds(self.latencies[mode]),
                    **{
                        f"{name}_per_request": round(self.per_request(mode, kind), 2)
                        for name, kind in (
                            ("generated_tokens", "generated"),
                            ("prompt_tokens", "prompt"),
                            ("tagged_apart", "tagged"),
                        )
                    },
                }
                for mode, callers in _MODES.items()
            },
        }


async def run(
    plan: MissesPlan,
    context: Context,
    *,
    versions: BenchVersions,
    of: str,
    names: Sequence[str] | None = None,
) -> Report:
    """Make the bench version of a version and compare peers.

    Args:
        plan: sizes.
        context: of the run.
        versions: folder of bench versions.
        of: version with the weights.
        names: some of :data:`loadtests.bench.peers.PEERS`; default: all.
    """
    versions.make(of, [CANDIDATES])
    return await compare(plan, context, peers(context, versions, bench_name(CANDIDATES), names))


def peers(
    context: Context, versions: BenchVersions, version: str, names: Sequence[str] | None = None
) -> list[Peer]:
    """The named peers with a bench version, not started."""
    return [PEERS[name](versions, version, context.folder) for name in names or PEERS]


async def compare(plan: MissesPlan, context: Context, chosen: Sequence[Peer]) -> Report:
    """Measure every peer in turn, ``plan.rounds`` times.

    A peer that fails is reported and left out; the others go on.
    """
    queries = context.queries
    records = [Record(peer) for peer in chosen]
    broken: dict[str, str] = {}
    try:
        for number in range(plan.rounds):
            asked = {
                mode: [queries.unseen() for _ in range(getattr(plan, mode))]
                for mode in ("warm", *_MODES)
            }
            for record in records:
                peer = record.peer
                if peer.name in broken:
                    continue
                context.say(f"misses, round {number + 1} of {plan.rounds}: {peer.name}")
                try:
                    await _turns(record, asked, start=number == 0 or not plan.together)
                except (ServerFailed, OSError) as error:
                    broken[peer.name] = str(error)
                    context.say(f"{peer.name} cannot be measured: {error}")
                if peer.name in broken or not plan.together:
                    await peer.close()
                else:
                    peer.pause()
    finally:
        for record in records:
            await record.peer.close()
    return _report(records, broken)


async def _turns(record: Record, asked: Mapping[str, list[str]], *, start: bool) -> None:
    peer = record.peer
    if start:
        await peer.start()
        await closed_loop(peer.ask, asked["warm"], BATCH_CALLERS)
    else:
        peer.resume()
    for mode, callers in _MODES.items():
        before = await peer.work()
        turn = await closed_loop(peer.ask, asked[mode], callers)
        record.add(mode, turn, await peer.work() - before)


def own_share(answers: Sequence[Mapping[str, float]]) -> dict[str, Any] | None:
    """Time that the service adds to the engine's, by ``Server-Timing``; ``None`` without answers.

    This is the total less the stage ``generate``, which ends with the last candidate. The way from
    the socket to the stopwatch and back is not in it: compare the misses with the raw engine's.
    """
    whole = [a for a in answers if {"total", "generate"} <= a.keys()]
    if not whole:
        return None
    ratio = percentile([1 - a["generate"] / a["total"] for a in whole if a["total"]], 50.0)
    return {
        "own_ms": milliseconds([a["total"] - a["generate"] for a in whole]),
        "total_ms": milliseconds([a["total"] for a in whole]),
        "share_of_total": None if ratio is None else round(ratio, 5),
        "stages_ms": stage_medians(answers),
    }


def stage_medians(answers: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Median of each stage in ms, the total included; an answer without a stage counts as 0."""
    names = dict.fromkeys(name for stages in answers for name in stages)
    medians = {name: percentile([s.get(name, 0.0) for s in answers], 50.0) for name in names}
    return {name: round(1000 * (value or 0.0), 4) for name, value in medians.items()}


def _report(records: Sequence[Record], broken: Mapping[str, str]) -> Report:
    first = records[0]
    # With one caller, because waiting for the event loop would count as the service's own.
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
    return Report("misses", figures, tuple(rows))


def _row(
    record: Record, first: Record, mode: str, callers: int
) -> tuple[Row, dict[str, Any] | None]:
    who = f"{record.peer.name}, {callers} caller{'s' if callers > 1 else ''}"
    key, unit = ("median_ms", "ms") if callers == 1 else ("per_s", "requests/s")
    found = Spread.of([one[key] for one in record.rounds[mode]])
    tokens = record.per_request(mode, "generated")
    note = f"{tokens:.1f} tokens of candidates per request"
    if record.work[mode].tagged:
        note += ", tagged in a second pass"
    if abs(tokens - first.per_request(mode, "generated")) > _UNEQUAL * tokens:
        note = f"INVALID: unequal work, {note}"
    if record.failures:
        note = f"INVALID: {len(record.failures)} failed; {note}"
    if found is None:
        return Row(who, "not measured", note=note), None
    if record is first:
        return Row(who, f"{found} {unit}", note=note), None
    # By tokens, because a peer that drew longer candidates is not slower for it.
    compared = "median_ms" if callers == 1 else "tokens_per_s"
    pairs = [
        {"first": mine[compared], "this": other[compared]}
        for mine, other in zip(first.rounds[mode], record.rounds[mode], strict=False)
    ]
    # Above 1, the first peer is ahead: more tokens per second or fewer milliseconds.
    ratio = ratios(pairs, "first", "this") if callers > 1 else ratios(pairs, "this", "first")
    text = "" if ratio is None else f"{first.peer.name} {ratio} times as fast"
    return Row(who, f"{found} {unit}", text, note), None if ratio is None else ratio.content()
