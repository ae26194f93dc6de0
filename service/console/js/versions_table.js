// The versions of this replica, and the buttons that load and unload them.

import { ask } from "./dialogs.js";
import { el, pill, table, words } from "./dom.js";
import { bytes, count, ms, percent } from "./format.js";

const TONES = { ready: "good", failed: "bad", loading: "warn", warming: "warn", draining: "warn" };

export function versionsTable({ versions, memory, durable }, routing, change) {
  const rows = versions.map((version) =>
    el("tr", {},
      el("td", {}, el("strong", {}, words(version.name)),
        version.description && el("p", { class: "muted small" }, words(version.description))),
      el("td", {}, pill(version.state, TONES[version.state]),
        version.reason && el("p", { class: "small" }, words(version.reason))),
      el("td", {}, roles(version, routing)),
      el("td", { class: "number" }, count(version.requests), version.in_flight ? el("p", { class: "muted small" }, `${version.in_flight} under way`) : null),
      el("td", { class: "number" }, version.latency_ms ? `${ms(version.latency_ms.p50)} / ${ms(version.latency_ms.p95)}` : "–"),
      el("td", { class: "number" }, bytes(version.memory_bytes)),
      el("td", {}, action(version, { durable, change }))));
  const limit = memory.limit_bytes === null ? "" : ` of ${bytes(memory.limit_bytes)}`;
  return [
    table("Versions", ["Version", "State", "Used for", ["Answers", "number"], ["p50 / p95", "number"], ["Memory", "number"], "Change"], rows),
    el("p", { class: "muted small" }, `Engines take about ${bytes(memory.reserved_bytes)}${limit}. `,
      durable ? "Loading and unloading is followed by all replicas." : "Without Redis, changes are of this process alone and end with it."),
  ];
}

function roles(version, routing) {
  const found = [];
  if (version.default) found.push("default");
  if (routing.weights[version.name]) found.push(`${percent(routing.weights[version.name])} of units`);
  if (routing.shadow?.version === version.name) found.push("shadow");
  for (const kill of [routing.kill, routing.local_kill]) if (kill?.version === version.name) found.push("emergency");
  return found.length ? [...new Set(found)].join(", ") : "–";
}

function action(version, { durable, change }) {
  const load = ["available", "failed"].includes(version.state);
  if (!load && version.state !== "ready" && version.state !== "loading" && version.state !== "warming") return null;
  const verb = load ? "Load" : "Unload";
  const press = async () => {
    const where = durable ? "on all replicas" : "in this process";
    const sure = await ask({
      title: `${verb} ${version.name}?`,
      body: [el("p", {}, load
        ? `Its engine is started ${where} and takes about ${bytes(version.memory_bytes)}. No request goes to it until the routing says so.`
        : `No request is routed to it from now on, what is under way is waited for, then its engine ends ${where}.`)],
      confirm: verb,
      danger: !load,
    });
    const path = `versions/${encodeURIComponent(version.name)}/${verb.toLowerCase()}`;
    if (sure) change(`${version.name} is being ${verb.toLowerCase()}ed.`, "POST", path);
  };
  // The default is never unloaded: the service would refuse.
  if (!load && version.default) return null;
  return el("button", { type: "button", class: "small", "aria-label": `${verb} ${version.name}`, on: { click: press } }, `${verb}…`);
}
