// What one reading of /metrics says about the service, and what two say about the time between.

import { bucketIncrease, buckets, increase, parse, quantile, select, total } from "./prometheus.js";

const LATENCY = "requery_request_duration_seconds";
const CACHED = ["memory", "redis"];
const ASKED = ["engine", "coalesced"];

/** A reading of one version, or of all if `version` is empty. */
export function read(text, version = "") {
  const samples = parse(text);
  const of = version ? { version } : {};
  const bySource = (sources) =>
    sources.reduce((sum, source) => sum + (total(samples, `${LATENCY}_count`, { ...of, source }) ?? 0), 0);
  return {
    latency: buckets(samples, LATENCY, of),
    requests: total(samples, `${LATENCY}_count`, of),
    cached: bySource(CACHED),
    asked: bySource(ASKED),
    shed: total(samples, "requery_shed_total", of),
    fallback: total(samples, `${LATENCY}_count`, { ...of, status: "fallback" }),
    late: ["timeout", "partial"].reduce(
      (sum, status) => sum + (total(samples, `${LATENCY}_count`, { ...of, status }) ?? 0), 0),
    replaced: total(samples, "requery_version_fallbacks_total", of),
    inFlight: total(samples, "requery_requests_in_flight"),
    generations: total(samples, "requery_generations_in_flight"),
    limit: total(samples, "requery_admission_limit", of),
    inUse: total(samples, "requery_admission_in_use", of),
    memory: total(samples, "requery_process_resident_memory_bytes"),
    entries: total(samples, "requery_cache_memory_entries"),
    localKill: total(samples, "requery_local_kill"),
    up: select(samples, "requery_engine_up", of).map(({ labels, value }) => [labels.version, value === 1]),
    versions: select(samples, "requery_engine_up").map(({ labels }) => labels.version).sort(),
    release: select(samples, "requery_build_info")[0]?.labels.release ?? null,
  };
}

/** Rates, shares and percentiles (ms) between two readings that are `seconds` apart. */
export function between(now, before, seconds) {
  const grown = (name) => increase(now[name], before[name]);
  const spread = bucketIncrease(now.latency, before.latency);
  const at = (q) => {
    const value = quantile(q, spread);
    return value === null ? null : value * 1000;
  };
  const looked = grown("cached") + grown("asked");
  return {
    p50: at(0.5),
    p95: at(0.95),
    p99: at(0.99),
    requests: grown("requests") / seconds,
    hits: looked ? grown("cached") / looked : null,
    shed: grown("shed") / seconds,
    fallback: grown("fallback") / seconds,
    late: grown("late") / seconds,
  };
}
