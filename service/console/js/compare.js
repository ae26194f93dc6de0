// Compare: two versions side by side on a list of queries.

import { call } from "./api.js";
import { csv, download } from "./csv.js";
import { announce, byId, el, fill, pill, table, words } from "./dom.js";
import { percent, relevance } from "./format.js";
import { failure, notice } from "./notices.js";
import { bar } from "./try.js";
import { listVersions, offer } from "./versions.js";

const MOST = 200;
const CHUNK = 10; // so that there is something to see soon, and Stop stops soon

/** Queries of a pasted text: lines without blanks around, no empty ones, each once. */
export function readQueries(text) {
  return [...new Set(text.split(/[\r\n]+/).map((line) => line.trim()).filter(Boolean))];
}

/** Whether two answers differ: in what was rewritten, or in how it ended. */
export function differ(a, b) {
  const texts = (answer) => (answer.rewrites || []).map((one) => one.text).sort().join("\n");
  return (a.status !== b.status) || texts(a) !== texts(b);
}

/** The comparison as rows of a CSV file, one for each rewrite (or for none). */
export function asRows(names, results) {
  const header = ["query", "version", "status", "source", "rank", "rewrite", "relevance", "only_here", "problem"];
  const rows = results.flatMap(({ query, answers }) => answers.flatMap((answer, side) => {
    if (answer.type) return [[query, names[side], answer.status, "", "", "", "", "", answer.detail]];
    const others = new Set((answers[1 - side].rewrites || []).map((one) => one.text));
    const start = [query, names[side], answer.status, answer.source];
    if (!answer.rewrites.length) return [[...start, "", "", "", "", ""]];
    return answer.rewrites.map((one, i) =>
      [...start, i + 1, one.text, one.relevance, others.has(one.text) ? "no" : "yes", ""]);
  }));
  return [header, ...rows];
}

export function mount() {
  const form = byId("compare-form");
  const result = byId("compare-result");
  const stop = byId("compare-stop");
  const progress = byId("compare-progress");
  let running = null;

  async function refreshVersions() {
    const [a, b] = [byId("compare-a"), byId("compare-b")];
    try {
      const { default: first, versions } = await listVersions();
      const other = versions.find((one) => one.name !== first && one.state === "ready");
      offer(a, versions, { chosen: a.value || first });
      offer(b, versions, { chosen: b.value || (other ? other.name : first) });
      if (!result.firstChild || result.querySelector(".start")) fill(result, hint(versions));
    } catch (error) {
      fill(result, failure(error, refreshVersions));
    }
  }

  function hint(versions) {
    const ready = versions.filter((one) => one.state === "ready").length;
    return el("p", { class: "empty start" }, ready > 1
      ? "Both versions answer the same queries; what only one of them says is marked."
      : "Only one version is ready: load another in Traffic, to compare it with this one.");
  }

  async function run() {
    const queries = readQueries(byId("compare-queries").value);
    if (!queries.length || queries.length > MOST) {
      const title = queries.length ? `${queries.length} queries, and at most ${MOST} are taken` : "There is no query";
      fill(result, notice("warn", title, queries.length ? "Leave some out." : "Paste some, one a line."));
      byId("compare-queries").focus();
      return;
    }
    const names = [byId("compare-a").value, byId("compare-b").value];
    const shared = { explain: false };
    if (byId("compare-max").value) shared.max_rewrites = Number(byId("compare-max").value);
    if (byId("compare-min").value) shared.min_relevance = Number(byId("compare-min").value);
    const mine = (running = new AbortController());
    busy(true);
    const results = [];
    let out = null;
    let fault = null;
    try {
      while (results.length < queries.length) {
        progress.textContent = `${results.length} of ${queries.length}`;
        const chunk = queries.slice(results.length, results.length + CHUNK);
        const sides = await Promise.all(names.map((model_version) =>
          call("POST", "rewrite/batch", {
            body: { queries: chunk, model_version, ...shared }, signal: mine.signal,
          })));
        out ??= sheet(names, results);
        out.add(chunk.map((query, i) => ({ query, answers: sides.map(({ data }) => data.answers[i]) })));
      }
    } catch (error) {
      if (!mine.signal.aborted) fault = error;
      mine.abort(); // the other side, if only one has failed
    }
    busy(false);
    progress.textContent = results.length < queries.length ? `stopped after ${results.length} of ${queries.length}` : "";
    if (out) announce(result.querySelector("h2").textContent);
    else fill(result);
    if (fault) result.prepend(failure(fault, run));
  }

  function busy(yes) {
    byId("compare-submit").disabled = yes;
    stop.hidden = !yes;
    result.toggleAttribute("aria-busy", yes);
    if (yes) fill(result, el("div", { class: "card" }, el("p", { class: "skeleton" }), el("p", { class: "skeleton" })));
  }

  /** Where results are put as they come: `add` takes the next ones. */
  function sheet(names, results) {
    const only = el("input", { type: "checkbox", id: "compare-only" });
    const title = el("h2", {});
    const figures = el("div", {});
    const nothing = el("p", { class: "empty", hidden: true }, "No query differs.");
    const body = el("div", { class: "stack tight" }, nothing);
    const save = el("button", { type: "button", on: {
      click: () => download(`requery-${names.join("-")}.csv`, csv(asRows(names, results))),
    } }, "Export CSV");
    const differing = () => results.filter(({ answers }) => differ(...answers)).length;
    const filter = () => {
      body.classList.toggle("only-different", only.checked);
      nothing.hidden = !only.checked || differing() > 0;
    };
    only.addEventListener("change", filter);
    fill(result, el("section", { class: "card", "aria-label": "Summary" },
      el("div", { class: "heading" }, title,
        el("span", { class: "facts" }, el("label", { class: "check" }, only, "only these"), save)),
      figures), body);
    return {
      add(more) {
        results.push(...more);
        body.append(...more.map((one) => comparison(names, one)));
        title.textContent = `${differing()} of ${results.length} ${results.length === 1 ? "query differs" : "queries differ"}`;
        fill(figures, summary(names, results));
        filter();
      },
    };
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!form.reportValidity()) return;
    history.replaceState(null, "", "#compare");
    run();
  });
  stop.addEventListener("click", () => running?.abort());
  return { show: refreshVersions, keyChanged: refreshVersions, recovered: refreshVersions, hash: () => "#compare" };
}

function summary(names, results) {
  const rows = names.map((name, side) => {
    const answers = results.map((one) => one.answers[side]).filter((one) => !one.type);
    const rewrites = answers.flatMap((one) => one.rewrites);
    const mean = rewrites.reduce((sum, one) => sum + one.relevance, 0) / rewrites.length;
    const with_one = answers.filter((one) => one.rewrites.length).length;
    return el("tr", {},
      el("th", { scope: "row" }, `${"AB"[side]}: ${name}`),
      el("td", { class: "number" }, percent(with_one / results.length)),
      el("td", { class: "number" }, (rewrites.length / (answers.length || 1)).toFixed(2)),
      el("td", { class: "number" }, relevance(rewrites.length ? mean : null)),
      el("td", { class: "number" }, String(results.length - answers.length)));
  });
  return table("Summary", ["Version", ["Queries with a rewrite", "number"], ["Rewrites a query", "number"],
    ["Mean relevance", "number"], ["Problems", "number"]], rows);
}

function comparison(names, { query, answers }) {
  const different = differ(...answers);
  return el("section", { class: `card pair ${different ? "different" : ""}`, "aria-label": `Query ${query}` },
    el("div", { class: "heading" }, el("h3", {}, words(query)),
      different ? pill("≠ differs", "warn") : pill("= same")),
    el("div", { class: "sides" }, answers.map((answer, side) => {
      const others = new Set((answers[1 - side].rewrites || []).map((one) => one.text));
      return el("div", {}, el("p", { class: "muted small" }, `${"AB"[side]}: ${names[side]}`), column(answer, others, side));
    })));
}

function column(answer, others, side) {
  if (answer.type) return notice("bad", answer.title, answer.detail);
  if (!answer.rewrites.length) return el("p", { class: "empty" }, `No rewrites (${answer.status})`);
  return el("ol", { class: "rewrites" }, answer.rewrites.map((one) => {
    const alone = !others.has(one.text);
    return el("li", { class: alone ? "only" : "" },
      el("span", { class: "text" }, words(one.text), alone && el("span", { class: "mark" }, `only ${"AB"[side]}`)),
      bar(one.relevance),
      el("span", { class: "number" }, relevance(one.relevance)));
  }));
}
