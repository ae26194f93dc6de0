// The audit log, newest first.

import { el, table, words } from "./dom.js";
import { when } from "./format.js";

const ACTIONS = {
  "routing.put": "Routing changed",
  "routing.kill": "Emergency switch on",
  "routing.revive": "Emergency switch off",
  "routing.kill_local": "Local emergency switch on",
  "routing.revive_local": "Local emergency switch off",
  "version.load": "Version loaded",
  "version.unload": "Version unloaded",
  "overrides.add": "Override added",
  "overrides.put": "Override replaced",
  "overrides.delete": "Override ended",
  "overrides.replace": "Overrides replaced",
  "cache.purge_query": "Query purged",
  "cache.purge_version": "Version purged",
};

/** Values that a change touched, one line each: what was, and what is. */
export function changed(before, after) {
  const names = [...new Set([...Object.keys(before ?? {}), ...Object.keys(after ?? {})])];
  return names
    .filter((name) => JSON.stringify(before?.[name] ?? null) !== JSON.stringify(after?.[name] ?? null))
    .map((name) => `${name}: ${written(before?.[name])} → ${written(after?.[name])}`);
}

function written(value) {
  if (value === undefined || value === null || value.length === 0) return "none";
  if (Array.isArray(value)) return value.map(written).join("; ");
  if (typeof value !== "object") return String(value);
  if (value.kind) return `${value.kind} “${value.query ?? value.term}”`;
  const members = Object.entries(value).map(([name, one]) => `${name} ${written(one)}`);
  return members.join(", ") || "none";
}

export function auditTable(entries) {
  if (!entries.length) return el("p", { class: "empty" }, "Nothing has been changed yet. Each change will be here, with who made it.");
  const rows = entries.map((entry) =>
    el("tr", {},
      el("td", { class: "nowrap" }, el("time", { datetime: entry.time }, when(entry.time))),
      el("td", {}, words(entry.author)),
      el("td", {}, ACTIONS[entry.action] || entry.action,
        entry.replica && el("span", { class: "muted small" }, ` (${entry.replica} alone)`)),
      el("td", {}, changed(entry.before, entry.after).map((line) => el("p", { class: "small" }, words(line))),
        entry.reason && el("p", { class: "small muted" }, "Reason: ", words(entry.reason)))));
  return table("Audit log", ["When", "Who", "What", "Change"], rows);
}
