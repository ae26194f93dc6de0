// The routing plan: default, weights by slider, shadow. What is edited is a draft until confirmed.

import { ask } from "./dialogs.js";
import { byId, el, fill, words } from "./dom.js";
import { percent } from "./format.js";
import { WHOLE, rebalance, tenths } from "./shares.js";

/** What a plan changes of the one in force, in words. */
export function changes(before, after) {
  const found = [];
  const say = (name, was, is) => { if (was !== is) found.push(`${name}: ${was} → ${is}`); };
  say("Default", before.default, after.default);
  for (const name of new Set([...Object.keys(before.weights), ...Object.keys(after.weights)])) {
    say(`Weight of ${name}`, percent(before.weights[name] ?? 0), percent(after.weights[name] ?? 0));
  }
  say("Salt", before.salt, after.salt);
  const shadow = (plan) => (plan.shadow ? `${percent(plan.shadow.share)} to ${plan.shadow.version}` : "off");
  say("Shadow", shadow(before), shadow(after));
  return found;
}

export class RoutingForm {
  /** `node`: where it is drawn; `change`: makes a confirmed change. */
  constructor(node, change) {
    this.node = node;
    this.change = change;
    this.dirty = false;
    this.drawn = "";
  }

  /** Draw what is in force; with `keepDraft` a draft that somebody is making stays as it is. */
  show({ routing, etag, versions, keepDraft }) {
    const state = JSON.stringify([etag, routing, versions.map(({ name, state: s }) => [name, s])]);
    if (keepDraft && (this.dirty || state === this.drawn)) return;
    this.drawn = state;
    this.routing = routing;
    this.etag = etag;
    this.ready = versions.filter((one) => one.state === "ready").map((one) => one.name);
    const used = Object.keys(routing.weights);
    this.arms = [...new Set([...used, ...this.ready])];
    this.touched = false;
    this.shares = tenths(this.arms.map((name) => routing.weights[name] ?? 0));
    this.draw();
    this.edited();
  }

  draw() {
    const { routing } = this;
    const names = (more) => [...new Set([...this.ready, ...more])];
    const pick = (id, options, chosen) => {
      const node = el("select", { id }, options.map(([value, text]) => el("option", { value, selected: value === chosen }, text)));
      return node;
    };
    this.default = pick("routing-default", names([routing.default]).map((name) => [name, name]), routing.default);
    this.split = el("input", { type: "checkbox", id: "routing-split", checked: Object.keys(routing.weights).length > 0 });
    this.salt = el("input", { id: "routing-salt", type: "text", maxlength: "64", required: true, autocomplete: "off" });
    this.salt.value = routing.salt;
    const shadows = names(routing.shadow ? [routing.shadow.version] : []);
    this.shadow = pick("routing-shadow", [["", "off"], ...shadows.map((name) => [name, name])], routing.shadow?.version ?? "");
    this.shadowShare = el("input", { id: "routing-shadow-share", type: "number", min: "0", max: "100", step: "any" });
    this.shadowShare.value = routing.shadow ? Number((100 * routing.shadow.share).toFixed(4)) : 5;
    this.armRows = el("div", { class: "arms", role: "group", "aria-label": "Weights" });
    this.review = el("button", { type: "submit", class: "primary" }, "Review the change…");
    this.discard = el("button", { type: "button", on: { click: () => this.reset() } }, "Discard");
    this.note = el("span", { class: "muted small", role: "status" });
    const form = el("form", { id: "routing-form", on: { input: () => this.edited(), submit: (event) => this.submit(event) } },
      el("div", { class: "fields" },
        el("label", {}, "Default: requests without a unit", this.default),
        el("label", {}, "Shadow: asked too, answers thrown away", this.shadow),
        el("label", { id: "routing-shadow-label" }, "Share of requests to shadow, %", this.shadowShare)),
      el("label", { class: "check split" }, this.split, "Split requests that have a unit between versions"),
      this.armRows,
      el("label", { id: "routing-salt-label" }, "Salt: the experiment's name; another one draws all units anew", this.salt),
      el("div", { class: "actions" }, this.review, this.discard, this.note));
    fill(this.node, form);
    this.drawArms();
  }

  drawArms() {
    this.sliders = this.arms.map((name, i) => {
      const set = (value) => {
        this.touched = true;
        this.shares = rebalance(this.shares, i, value);
        this.syncArms();
      };
      const slider = el("input", { type: "range", min: "0", max: String(WHOLE), step: "5", "aria-label": `Weight of ${name}` });
      slider.addEventListener("input", () => set(Number(slider.value)));
      const exact = el("input", { type: "number", min: "0", max: "100", step: "0.1", "aria-label": `Weight of ${name} in percent` });
      exact.addEventListener("change", () => { set(Number(exact.value) * 10); this.edited(); });
      return { slider, exact };
    });
    fill(this.armRows, this.arms.map((name, i) =>
      el("div", { class: "arm" }, el("span", { class: "name" }, words(name),
        this.ready.includes(name) ? null : el("span", { class: "muted small" }, " (not ready)")),
      this.sliders[i].slider, this.sliders[i].exact, el("span", { class: "muted" }, "%"))));
    this.syncArms();
  }

  syncArms() {
    this.sliders.forEach(({ slider, exact }, i) => {
      slider.value = String(this.shares[i]);
      slider.setAttribute("aria-valuetext", `${this.shares[i] / 10} percent`);
      if (document.activeElement !== exact) exact.value = String(this.shares[i] / 10);
    });
  }

  /** The plan as the form has it. */
  plan() {
    // Shares that nobody has touched are sent as they were, to the last digit.
    const weights = this.touched || !Object.keys(this.routing.weights).length
      ? Object.fromEntries(this.arms.map((name, i) => [name, this.shares[i] / WHOLE]).filter(([, share]) => share))
      : this.routing.weights;
    return {
      default: this.default.value,
      weights: this.split.checked ? weights : {},
      salt: this.salt.value,
      shadow: this.shadow.value ? { version: this.shadow.value, share: Number(this.shadowShare.value) / 100 } : null,
    };
  }

  edited() {
    if (this.split.checked && this.shares.every((share) => share === 0)) {
      this.shares = rebalance(this.shares, Math.max(0, this.arms.indexOf(this.default.value)), WHOLE);
      this.syncArms();
    }
    this.armRows.hidden = !this.split.checked;
    byId("routing-salt-label").hidden = !this.split.checked;
    byId("routing-shadow-label").hidden = !this.shadow.value;
    this.dirty = changes(this.routing, this.plan()).length > 0;
    this.review.disabled = this.discard.disabled = !this.dirty;
    this.note.textContent = this.dirty ? "Not in force yet." : `Revision ${this.routing.revision} is in force.`;
  }

  reset() {
    this.touched = false;
    this.shares = tenths(this.arms.map((name) => this.routing.weights[name] ?? 0));
    this.draw();
    this.edited();
    this.default.focus();
  }

  async submit(event) {
    event.preventDefault();
    const plan = this.plan();
    const list = changes(this.routing, plan);
    if (!list.length) return;
    const sure = await ask({
      title: "Change the routing?",
      body: [
        el("ul", { class: "plain" }, list.map((line) => el("li", {}, words(line)))),
        el("p", { class: "muted small" }, this.routing.persistence === "redis"
          ? "In force on all replicas within a second." : "Without Redis it is in force in this process alone."),
      ],
      confirm: "Put into force",
    });
    if (!sure) return;
    await this.change("The routing is changed.", "PUT", "routing", { body: plan, ifMatch: this.etag });
  }
}
