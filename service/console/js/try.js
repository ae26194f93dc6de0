// Try: one query, and everything that the service says about its answer.

import { Unreachable, call } from "./api.js";
import { announce, byId, copyButton, el, fill, pill, table, words } from "./dom.js";
import { ms, relevance } from "./format.js";
import { failure } from "./notices.js";
import { cacheWords, parseCacheStatus, parseServerTiming, waterfall } from "./timing.js";
import { listVersions, offer } from "./versions.js";

export const REASONS = {
  unfinished: ["Unfinished", "it ran out of tokens before its tag"],
  malformed: ["Malformed", "empty, too long, without a letter or digit, or one word over and over"],
  echo: ["Echo", "the query again, but for case, punctuation or a plural"],
  duplicate: ["Duplicate", "the same as a candidate with a higher relevance"],
  lost_number: ["Lost number", "drops or changes a number or unit of the query"],
  lost_size: ["Lost size", "drops or changes a size of the query"],
  added_number: ["Added number", "has a number that the query does not ask for"],
  added_size: ["Added size", "has a size that the query does not ask for"],
  lost_code: ["Lost code", "drops or changes a code (a model number) of the query"],
  changed_polarity: ["Changed polarity", "drops, turns round or adds an exclusion (without, no, -free)"],
  other_audience: ["Other audience", "is for somebody else than the query says"],
  expansion: ["Expansion", "says the whole query and adds words that nobody asked for"],
  lost_brand: ["Lost brand", "drops a brand of the query"],
  irrelevant: ["Irrelevant", "its relevance is below the least that was asked for"],
  no_results: ["No results", "finds no product of the version's catalogue"],
  no_gain: ["No gain", "finds only what the query finds in the version's catalogue"],
  blocked_term: ["Blocked term", "holds words that an override blocks"],
  surplus: ["Surplus", "good, but more than were asked for"],
};

const STATUS = {
  ok: ["good", "ok", ""],
  partial: ["warn", "partial", "The deadline passed: this is what was ready. The rest is finished in the background; ask again in a moment."],
  timeout: ["warn", "timeout", "The deadline passed before anything was ready. It is finished in the background: ask again in a moment, or allow a longer deadline."],
  none: ["warn", "none", "No candidate was good enough. Below is why; a lower least relevance lets more through."],
  fallback: ["bad", "fallback", "The engine cannot answer now (it is loading, or being replaced). See Health."],
};

const FIELDS = {
  max: ["try-max", "max_rewrites", Number],
  min: ["try-min", "min_relevance", Number],
  deadline: ["try-deadline", "deadline_ms", Number],
  version: ["try-version", "model_version", String],
  unit: ["try-unit", "unit_id", String],
};

export function mount() {
  const form = byId("try-form");
  const result = byId("try-result");
  let running = null;
  let lost = false;

  async function refreshVersions() {
    try {
      const { versions } = await listVersions();
      offer(byId("try-version"), versions, { none: "as routed" });
    } catch {
      // The list is a convenience; asking will tell what is wrong.
    }
  }

  /** The body of the request, as the form has it. */
  function requested() {
    const body = { query: byId("try-query").value };
    for (const [id, field, convert] of Object.values(FIELDS)) {
      const value = byId(id).value;
      if (value !== "") body[field] = convert(value);
    }
    return { ...body, explain: true };
  }

  function permalink() {
    const parameters = new URLSearchParams({ q: byId("try-query").value });
    for (const [name, [id]] of Object.entries(FIELDS)) {
      if (byId(id).value !== "") parameters.set(name, byId(id).value);
    }
    return `#try?${parameters}`;
  }

  async function run() {
    running?.abort();
    const mine = (running = new AbortController());
    const body = requested();
    history.replaceState(null, "", permalink());
    result.setAttribute("aria-busy", "true");
    if (!result.firstChild) fill(result, el("div", { class: "card" }, el("p", { class: "skeleton" }), el("p", { class: "skeleton" })));
    let content;
    lost = false;
    try {
      content = answered(body, await call("POST", "rewrite", { body, signal: mine.signal }));
    } catch (error) {
      if (mine.signal.aborted) return;
      lost = error instanceof Unreachable;
      content = [failure(error, run), requestCard(body)];
    }
    if (running !== mine) return;
    running = null;
    result.removeAttribute("aria-busy");
    fill(result, content);
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (form.reportValidity()) run();
  });
  fill(result, el("p", { class: "empty" }, "Rewrites, what was rejected and why, and where the time went will be here."));
  byId("try-query").focus({ preventScroll: true });

  return {
    show(parameters) {
      refreshVersions();
      if (!parameters.has("q")) return;
      byId("try-query").value = parameters.get("q");
      for (const [name, [id]] of Object.entries(FIELDS)) {
        const value = parameters.get(name) ?? "";
        if (name === "version") offer(byId(id), [], { none: "as routed", chosen: value });
        else byId(id).value = value;
      }
      byId("try-options").open = Object.keys(FIELDS).some((name) => parameters.get(name));
      if (form.checkValidity()) run();
    },
    recovered() {
      if (lost) run();
    },
    hash: () => (byId("try-query").value ? permalink() : "#try"),
  };
}

function answered(body, { data, headers, ms: roundTrip }) {
  const stages = parseServerTiming(headers.get("server-timing"));
  const [tone, status, advice] = STATUS[data.status] || ["warn", String(data.status), ""];
  const cache = cacheWords(parseCacheStatus(headers.get("cache-status")));
  const found = data.rewrites.length;
  announce(`${found} ${found === 1 ? "rewrite" : "rewrites"}, status ${status}, ${cache}`);
  return [
    el("section", { class: "card", "aria-label": "Rewrites" },
      el("div", { class: "heading" },
        el("h2", {}, "Rewrites of ", el("q", {}, words(data.query))),
        el("span", { class: "facts" }, pill(status, tone), " ", pill(cache), " ", pill(data.model_version))),
      advice && el("p", { class: "small advice" }, advice),
      found ? el("ol", { class: "rewrites" }, data.rewrites.map(rewriteRow)) : null),
    data.rejected?.length ? rejectedCard(data.rejected) : null,
    el("section", { class: "card", "aria-label": "Where the time went" },
      el("div", { class: "heading" }, el("h2", {}, "Where the time went"),
        el("span", { class: "muted small" }, `${ms(roundTrip)} as this browser sees it`)),
      waterfall(stages, roundTrip)),
    requestCard(body, data.request_id),
  ];
}

function rewriteRow(rewrite) {
  return el("li", {},
    el("span", { class: "text" }, words(rewrite.text)),
    bar(rewrite.relevance),
    el("span", { class: "number" }, el("span", { class: "visually-hidden" }, "relevance "), relevance(rewrite.relevance)));
}

/** A relevance as a bar; the number stands beside it. */
export function bar(value) {
  const level = el("span", { class: "level" });
  level.style.setProperty("--share", `${100 * Math.min(1, Math.max(0, value ?? 0))}%`);
  return el("span", { class: "relevance", "aria-hidden": "true" }, level);
}

function rejectedCard(rejected) {
  const rows = rejected.map((one) => {
    const [name, detail] = REASONS[one.reason] || [one.reason, ""];
    return el("tr", {},
      el("td", {}, words(one.text)),
      el("td", { class: "number" }, relevance(one.relevance)),
      el("td", {}, name, detail && el("span", { class: "muted" }, `: ${detail}`)));
  });
  return el("section", { class: "card", "aria-label": "Rejected candidates" },
    el("h2", {}, `Rejected candidates (${rejected.length})`),
    table("Rejected candidates", ["Candidate", ["Relevance", "number"], "Why"], rows));
}

/** The curl line of a request. The key is never written out: the shell has it in a variable. */
export function curl(body, origin) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  return `curl -s ${quoted(origin)} -H 'content-type: application/json' -d ${quoted(JSON.stringify(body))}`;
}

function requestCard(body, requestId) {
  const line = curl(body, new URL("rewrite", document.baseURI).href);
  const link = location.href;
  return el("section", { class: "card", "aria-label": "The same again" },
    el("h2", {}, "The same again"),
    el("div", { class: "copyable" }, el("span", { class: "muted small" }, "curl"),
      el("pre", { tabindex: "0", role: "group", "aria-label": "curl line" }, line), copyButton("curl line", () => line)),
    el("div", { class: "copyable" }, el("span", { class: "muted small" }, "link"),
      el("pre", { tabindex: "0", role: "group", "aria-label": "link" }, link), copyButton("link", () => link)),
    el("p", { class: "muted small" },
      "With keys add -H \"authorization: Bearer $KEY\" to the line.",
      requestId && ` Request ${requestId}.`));
}
