// The emergency switch: of all replicas, and of this one alone.

import { ask } from "./dialogs.js";
import { el, pill, words } from "./dom.js";

const PATHS = { all: "routing/kill", here: "routing/kill/local" };

export function killCard(routing, versions, change) {
  const on = [];
  if (routing.local_kill) on.push(active("here", "This replica alone", routing.local_kill, change));
  if (routing.kill) on.push(active("all", "All replicas", routing.kill, change));
  const stop = el("button", { type: "button", class: "danger", on: { click: () => askKill(versions, change) } }, "Stop rewriting…");
  if (on.length) return el("div", { class: "stack tight" }, on, el("div", {}, stop));
  return el("div", { class: "heading" },
    el("p", { class: "muted" }, pill("off", "good"), " Requests go where the routing says. The switch goes before everything, at once."),
    stop);
}

const what = (kill) => (kill.version === null ? "no rewrites at all" : `everything to ${kill.version}`);

function active(where, scope, kill, change) {
  const end = async () => {
    const sure = await ask({
      title: "End the emergency?",
      body: [el("p", {}, `${scope}: requests go where the routing says again.`)],
      confirm: "End it",
    });
    if (sure) change(`The emergency switch is off (${scope.toLowerCase()}).`, "DELETE", PATHS[where]);
  };
  return el("div", { class: "notice", "data-tone": "bad" },
    el("div", { class: "heading" },
      el("p", {}, el("strong", {}, `${scope}: ${what(kill)}`), el("span", { class: "small" }, " Reason: ", words(kill.reason))),
      el("button", { type: "button", on: { click: end } }, "End it…")));
}

async function askKill(versions, change) {
  const target = el("select", { id: "kill-version" },
    el("option", { value: "" }, "No rewrites at all"),
    versions.filter((version) => version.state === "ready")
      .map((version) => el("option", { value: version.name }, `Everything to ${version.name}`)));
  const everywhere = el("input", { type: "radio", name: "kill-where", value: "all", checked: true });
  const here = el("input", { type: "radio", name: "kill-where", value: "here" });
  const reason = el("input", { id: "kill-reason", type: "text", maxlength: "500", required: true, autocomplete: "off", dir: "auto" });
  const given = await ask({
    title: "Stop rewriting",
    body: [
      el("label", {}, "Instead", target),
      el("fieldset", {}, el("legend", {}, "Where"),
        el("label", { class: "check" }, everywhere, "all replicas"),
        el("label", { class: "check" }, here, "this replica alone (works without Redis)")),
      el("label", {}, "Reason, for those who come later", reason),
    ],
    confirm: "Stop now",
    danger: true,
    read: () => ({
      where: here.checked ? "here" : "all",
      body: { version: target.value || null, reason: reason.value },
    }),
  });
  if (!given) return;
  const scope = given.where === "here" ? "this replica alone" : "all replicas";
  change(`The emergency switch is on (${scope}): ${what(given.body)}.`, "PUT", PATHS[given.where], { body: given.body });
}
