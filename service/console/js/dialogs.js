// Modal questions: a change to confirm, and the key to use.

import { getCredentials, setCredentials } from "./api.js";
import { byId, el } from "./dom.js";

/**
 * Ask; resolves to true (or what `read()` gives) if it is confirmed, to null if not.
 *
 * `body` are nodes; those with `required` and the like are checked by the browser first.
 */
export function ask({ title, body = [], confirm, danger = false, read = () => true }) {
  return new Promise((resolve) => {
    let outcome = null;
    const cancel = el("button", { type: "button", on: { click: () => dialog.close() } }, "Cancel");
    const accept = el("button", { type: "submit", class: danger ? "danger" : "primary" }, confirm);
    const form = el("form", {}, body, el("div", { class: "actions" }, cancel, accept));
    const dialog = el("dialog", { "aria-labelledby": "dialog-title" });
    dialog.append(el("h2", { id: "dialog-title" }, title), form);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      outcome = read();
      dialog.close();
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(outcome);
    });
    document.body.append(dialog);
    dialog.showModal();
    // What is dangerous must not happen by Enter alone.
    (form.querySelector("input, select, textarea") || (danger ? cancel : accept)).focus();
  });
}

/** Ask for the key and for who is using it; both are forgotten with the page. */
export async function askKey() {
  const now = getCredentials();
  const key = el("input", {
    type: "password", id: "key-input", autocomplete: "off", spellcheck: "false",
    pattern: "[!-~]+", title: "A key has letters, digits and signs, without spaces.",
  });
  key.value = now.key;
  const author = el("input", {
    type: "text", id: "author-input", autocomplete: "off", maxlength: "64",
    pattern: "[A-Za-z0-9][A-Za-z0-9 ._@+\\-]*",
    title: "Starts with a letter or digit; then also spaces and . _ @ + -",
  });
  author.value = now.author;
  const given = await ask({
    title: "Key",
    body: [
      el("p", { class: "small muted" },
        "Needed once the service has keys: the scope admin for Traffic and Overrides, rewrite for ",
        "Try and Compare, metrics for Health. It stays in this page's memory until you close or ",
        "reload it."),
      el("label", {}, "API key (empty: none)", key),
      el("label", {}, "Who you are, for the audit log (optional)", author),
    ],
    confirm: "Use it",
    read: () => ({ key: key.value.trim(), author: author.value.trim() }),
  });
  if (given) {
    setCredentials(given);
    byId("key-button").textContent = given.key ? "Key: set" : "Key: none";
  }
  return given !== null;
}
