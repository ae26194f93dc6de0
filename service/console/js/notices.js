// What went wrong (or right), in words, with what to do next.

import { Problem, Unreachable } from "./api.js";
import { askKey } from "./dialogs.js";
import { announce, el, words } from "./dom.js";

/** A framed message; `tone` is good, warn or bad. */
export function notice(tone, title, details = [], actions = []) {
  const box = el("div", { class: "notice", "data-tone": tone, role: tone === "good" ? "status" : "alert" });
  box.append(el("p", {}, el("strong", {}, title)));
  for (const detail of [details].flat()) {
    box.append(detail instanceof Node ? detail : el("p", { class: "small" }, words(detail)));
  }
  if (actions.length) box.append(el("div", { class: "actions" }, actions));
  return box;
}

/** The notice about an error of `call`; `retry`, if given, does again what has failed. */
export function failure(error, retry) {
  const again = retry && el("button", { type: "button", on: { click: retry } }, "Try again");
  if (error instanceof Unreachable) {
    return notice("bad", "The service cannot be reached",
      "The page keeps trying, and goes on by itself once it answers.", again ? [again] : []);
  }
  if (!(error instanceof Problem)) throw error;
  const details = error.errors.length
    ? [el("ul", { class: "small" }, error.errors.map((one) => el("li", {}, words(`${one.field}: ${one.detail}`))))]
    : [error.detail];
  if (error.retryAfter) details.push(`It asks for a pause of ${error.retryAfter} s.`);
  const actions = [];
  if (error.wantsKey) {
    const enter = async () => { if ((await askKey()) && retry) retry(); };
    actions.push(el("button", { type: "button", class: "primary", on: { click: enter } }, "Enter a key"));
  } else if (again && error.status >= 429) actions.push(again);
  announce(error.title);
  return notice("bad", error.title, details, actions);
}
