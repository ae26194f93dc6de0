// Overrides: what people decide by hand. Lists them, adds one, and ends one now or later.

import { Problem, call } from "./api.js";
import { ask } from "./dialogs.js";
import { announce, byId, el, fill, pill, table, words } from "./dom.js";
import { count, when } from "./format.js";
import { failure, notice } from "./notices.js";

const KINDS = { pin: "Pin", block_query: "Block query", block_term: "Block term" };

export function mount() {
  const form = byId("override-form");
  const field = (name) => byId(`override-${name}`);
  let known = null; // {overrides, ...}
  let etag = null;

  async function load() {
    try {
      const { data, headers } = await call("GET", "overrides");
      known = data;
      etag = headers.get("etag");
      draw();
    } catch (error) {
      known = null;
      fill(field("list"), failure(error, load));
    }
  }

  function draw() {
    if (!known) return;
    const wanted = field("filter").value.trim().toLowerCase();
    const shown = known.overrides.filter((one) => !wanted || JSON.stringify(one).toLowerCase().includes(wanted));
    const parts = [];
    if (known.file_problem) {
      parts.push(notice("warn", "The overrides file was not taken as it is now", known.file_problem));
    }
    if (!known.overrides.length) {
      parts.push(el("p", { class: "empty" }, "No override is in force: every answer is the model's own. Add one above."));
    } else if (!shown.length) {
      parts.push(el("p", { class: "empty" }, "Nothing matches; clear the field to see all."));
    } else {
      parts.push(table("Overrides", ["What", "About", "Rewrites", "Reason", "Ends", ["Hits", "number"], "Change"], shown.map(row)));
    }
    parts.push(el("p", { class: "muted small" }, `${known.overrides.length} in force. Hits are of this replica since its start. `,
      known.persistence === "redis" ? "Changes reach all replicas." : "Without Redis, changes are of this process alone."));
    fill(field("list"), parts);
  }

  function row(one) {
    const about = one.query ?? one.term;
    const end = el("button", { type: "button", class: "small", "aria-label": `End ${about}`, on: { click: () => askEnd(one) } }, "End…");
    return el("tr", {},
      el("td", {}, pill(KINDS[one.kind] || one.kind)),
      el("td", {}, words(about)),
      el("td", {}, one.rewrites ? el("ol", { class: "plain" }, one.rewrites.map((text) => el("li", {}, words(text)))) : "–"),
      el("td", {}, words(one.reason), el("p", { class: "muted small" }, words(one.author), one.created_at ? `, ${when(one.created_at)}` : "")),
      el("td", {}, one.expires_at ? when(one.expires_at) : "never"),
      el("td", { class: "number" }, count(one.hits)),
      el("td", {}, one.source === "api" ? end : el("span", { class: "muted small" }, "in the file")));
  }

  async function askEnd(one) {
    const about = one.query ?? one.term;
    const now = el("input", { type: "radio", name: "end-when", checked: true });
    const later = el("input", { type: "radio", name: "end-when" });
    const at = el("input", { type: "datetime-local", id: "end-at", "aria-label": "When it ends", step: "1" });
    const reason = el("input", { id: "end-reason", type: "text", maxlength: "500", dir: "auto", autocomplete: "off" });
    const sync = () => { at.required = later.checked; at.disabled = !later.checked; };
    for (const node of [now, later]) node.addEventListener("change", sync);
    sync();
    const given = await ask({
      title: "End this override?",
      body: [
        el("p", {}, `${KINDS[one.kind]}: `, words(about)),
        el("fieldset", {}, el("legend", {}, "When"),
          el("label", { class: "check" }, now, "now"),
          el("label", { class: "check" }, later, "at a time of yours:"), at),
        el("label", {}, "Reason, for the audit log", reason),
      ],
      confirm: "End it",
      danger: true,
      read: () => ({ now: now.checked, at: at.value, reason: reason.value.trim() }),
    });
    if (!given) return;
    const path = `overrides/${encodeURIComponent(one.id)}`;
    if (given.now) {
      const query = given.reason ? `?${new URLSearchParams({ reason: given.reason })}` : "";
      await change(`The override of “${about}” has ended.`, "DELETE", path + query);
    } else {
      const { kind, query, term, rewrites, author, created_at } = one;
      const body = { kind, query, term, rewrites, author, created_at,
        reason: given.reason || one.reason, expires_at: new Date(given.at).toISOString() };
      for (const name of Object.keys(body)) if (body[name] === null) delete body[name];
      await change(`The override of “${about}” will end ${when(body.expires_at)}.`, "PUT", path, body);
    }
  }

  /** Make a change to the list as it was read. */
  async function change(done, method, path, body) {
    try {
      await call(method, path, { body, ifMatch: etag });
      await load();
      fill(field("notice"), notice("good", done));
      announce(done);
    } catch (error) {
      if (error instanceof Problem && (error.status === 412 || error.status === 404)) {
        await load();
        fill(field("notice"), notice("warn", "Somebody else has changed the overrides meanwhile",
          "Your change was not made. Below is what is in force now: look at it, and decide again."));
      } else fill(field("notice"), failure(error));
    }
  }

  function syncKind() {
    const kind = field("kind").value;
    field("subject-label").textContent = kind === "block_term" ? "Word or phrase" : "Query";
    field("rewrites-label").hidden = kind !== "pin";
    field("rewrites").required = kind === "pin";
  }

  async function add() {
    const kind = field("kind").value;
    const body = { kind, reason: field("reason").value };
    body[kind === "block_term" ? "term" : "query"] = field("subject").value;
    if (kind === "pin") {
      body.rewrites = field("rewrites").value.split("\n").map((line) => line.trim()).filter(Boolean);
    }
    if (field("expires").value) body.expires_at = new Date(field("expires").value).toISOString();
    try {
      await call("POST", "overrides", { body });
      form.reset();
      syncKind();
      fill(field("form-notice"));
      await load();
      const done = `In force: ${KINDS[kind].toLowerCase()} “${body.query ?? body.term}”.`;
      fill(field("notice"), notice("good", done));
      announce(done);
    } catch (error) {
      fill(field("form-notice"), failure(error, error.wantsKey ? add : null));
    }
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (form.reportValidity()) add();
  });
  field("kind").addEventListener("change", syncKind);
  field("filter").addEventListener("input", draw);
  syncKind();

  const refresh = () => {
    fill(field("notice"));
    return load();
  };
  return { show: refresh, keyChanged: refresh, recovered: refresh, hash: () => "#overrides" };
}
