// The frame: tabs, the service's state in the header, and what to do when it is gone.

import { Problem, call, events } from "./api.js";
import { mount as mountCompare } from "./compare.js";
import { askKey } from "./dialogs.js";
import { announce, byId } from "./dom.js";
import { mount as mountHealth } from "./health.js";
import { mount as mountOverrides } from "./overrides.js";
import { mount as mountTraffic } from "./traffic.js";
import { mount as mountTry } from "./try.js";

const VIEWS = {
  try: mountTry,
  compare: mountCompare,
  traffic: mountTraffic,
  health: mountHealth,
  overrides: mountOverrides,
};
const LOOK_MS = 5000;
const LOOK_WHEN_LOST_MS = 1500;

const mounted = {};
let current = null;
let lost = false;
let timer = null;

function open(name, parameters = new URLSearchParams()) {
  if (current !== name) {
    if (current) mounted[current].hide?.();
    for (const other of Object.keys(VIEWS)) {
      const tab = byId(`tab-${other}`);
      tab.setAttribute("aria-selected", String(other === name));
      tab.tabIndex = other === name ? 0 : -1;
      byId(`panel-${other}`).hidden = other !== name;
    }
    current = name;
    document.title = `${byId(`tab-${name}`).textContent} · Requery console`;
    mounted[name] ??= VIEWS[name]();
  }
  mounted[name].show?.(parameters);
}

function openFromHash() {
  const [name, query = ""] = location.hash.slice(1).split(/\?(.*)/s);
  open(Object.hasOwn(VIEWS, name) ? name : "try", new URLSearchParams(query));
}

function select(name) {
  if (name === current) return;
  open(name);
  history.pushState(null, "", mounted[name].hash());
}

function onTabKey(event) {
  const names = Object.keys(VIEWS);
  const at = names.indexOf(current);
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: names.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  const name = names[(to + names.length) % names.length];
  byId(`tab-${name}`).focus();
  select(name);
}

/** Look whether the service would answer; in the background nobody sees it, so nothing is asked. */
async function look() {
  clearTimeout(timer);
  timer = null;
  if (!document.hidden) {
    try {
      const { data } = await call("GET", "readyz", { timeoutMs: 10_000 });
      state("good", `ready · ${data.model_version}`);
    } catch (error) {
      if (error instanceof Problem) state("warn", error.detail || error.title);
    }
  }
  clearTimeout(timer);
  timer = setTimeout(look, lost ? LOOK_WHEN_LOST_MS : LOOK_MS);
}

function state(tone, text) {
  const pill = byId("service-state");
  pill.dataset.tone = tone;
  if (pill.textContent !== text) pill.textContent = text;
}

function onLost() {
  state("bad", "cannot be reached");
  byId("banner").textContent =
    "The service cannot be reached. Is it running? This page keeps trying, and goes on once it answers.";
  byId("banner").hidden = false;
  if (!lost) {
    lost = true;
    clearTimeout(timer);
    timer = setTimeout(look, LOOK_WHEN_LOST_MS);
  }
}

function onFound() {
  if (!lost) return;
  lost = false;
  byId("banner").hidden = true;
  announce("The service answers again");
  look();
  mounted[current]?.recovered?.();
}

for (const name of Object.keys(VIEWS)) byId(`tab-${name}`).addEventListener("click", () => select(name));
document.querySelector("[role=tablist]").addEventListener("keydown", onTabKey);
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the hash is the view's
  byId("content").focus();
});
byId("key-button").addEventListener("click", askKey);
events.addEventListener("lost", onLost);
events.addEventListener("found", onFound);
events.addEventListener("key", () => mounted[current]?.keyChanged?.());
addEventListener("hashchange", openFromHash);
document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });

openFromHash();
look();
