// The standard headers of an answer: Server-Timing as a waterfall, Cache-Status in words.

import { el } from "./dom.js";
import { ms } from "./format.js";

const STAGES = {
  prepare: "route, normalise, override",
  cache: "look in the cache",
  admit: "wait for a place",
  generate: "generate and tag",
  filter: "choose",
};

/** `Server-Timing` (W3C) as [{name, ms}], in order; what has no duration is left out. */
export function parseServerTiming(header) {
  return (header || "").split(",").flatMap((part) => {
    const [name, ...parameters] = part.split(";").map((piece) => piece.trim());
    const duration = parameters.find((parameter) => /^dur=/i.test(parameter));
    const value = duration ? Number(duration.slice(4).replaceAll('"', "")) : NaN;
    return name && Number.isFinite(value) ? [{ name, ms: value }] : [];
  });
}

/** `Cache-Status` (RFC 9211) of one cache as {hit, forwarded, detail, collapsed}. */
export function parseCacheStatus(header) {
  const [, ...parameters] = (header || "").split(";").map((piece) => piece.trim());
  const valueOf = (name) =>
    parameters.find((one) => one.startsWith(`${name}=`))?.slice(name.length + 1) ?? null;
  return {
    hit: parameters.includes("hit"),
    forwarded: valueOf("fwd"),
    detail: valueOf("detail"),
    collapsed: parameters.includes("collapsed"),
  };
}

/** A cache status in words. */
export function cacheWords(status) {
  if (status.hit) return `Cache hit (${status.detail || "cache"})`;
  if (status.forwarded === "bypass") return "Override: neither cache nor model was asked";
  if (status.collapsed) return "Cache miss, joined a generation under way";
  return status.forwarded === "miss" ? "Cache miss" : "No cache status";
}

/** Stages one after the other, and the time that passed outside the service. */
export function waterfall(stages, roundTripMs) {
  const total = stages.find((stage) => stage.name === "total")?.ms ?? 0;
  const whole = Math.max(roundTripMs, total) || 1;
  const rows = [];
  let offset = 0;
  for (const stage of stages.filter((one) => one.name !== "total")) {
    rows.push(row(stage.name, STAGES[stage.name] || "", offset, stage.ms, whole));
    offset += stage.ms;
  }
  if (total > offset) rows.push(row("rest", "read the request", offset, total - offset, whole));
  if (roundTripMs > total) {
    rows.push(row("network", "and this browser", total, roundTripMs - total, whole, "outside"));
  }
  return el("ol", { class: "waterfall" }, rows);
}

function row(name, detail, start, duration, whole, kind = "") {
  const bar = el("span", { class: `span ${kind}` });
  // Through the object model: the content security policy forbids style attributes.
  bar.style.setProperty("--start", `${(100 * start) / whole}%`);
  bar.style.setProperty("--length", `${(100 * duration) / whole}%`);
  return el("li", {},
    el("span", { class: "stage" }, name, " ", el("span", { class: "muted small" }, detail)),
    el("span", { class: "track", "aria-hidden": "true" }, bar),
    el("span", { class: "number" }, ms(duration)));
}
