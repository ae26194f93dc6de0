// Health: the metrics of this replica, read every two seconds while somebody looks.

import { call } from "./api.js";
import { LineChart } from "./chart.js";
import { byId, el, fill, pill } from "./dom.js";
import { bytes, count, ms, percent, rate } from "./format.js";
import { failure } from "./notices.js";
import { between, read } from "./readings.js";

const POLL_MS = 2000;
const WINDOW_MS = 10_000; // what a point looks back on
const SPAN_MS = 5 * 60_000;

export function mount() {
  const charts = {
    latency: new LineChart("Latency of /rewrite", { series: ["p50", "p95", "p99"], write: ms, spanMs: SPAN_MS, least: 10 }),
    requests: new LineChart("Requests", { series: ["all", "cut by their deadline"], write: rate, spanMs: SPAN_MS, least: 1 }),
    hits: new LineChart("Answers from the cache", { series: ["hit ratio"], write: (v) => percent(v), spanMs: SPAN_MS, least: 1 }),
    refused: new LineChart("Shed and fallback", { series: ["shed", "fallback"], write: rate, spanMs: SPAN_MS, least: 1 }),
  };
  fill(byId("health-charts"), Object.values(charts).map((chart) => chart.node));
  fill(byId("health-tiles"), tiles(null, null));

  const pause = byId("health-pause");
  const version = byId("health-version");
  let readings = []; // [{t, text, reading}], of SPAN_MS and a window before
  let shown = false;
  let paused = false;
  let timer = null;
  let polling = null;

  const wanted = () => shown && !paused && !document.hidden;

  function schedule(delay) {
    clearTimeout(timer);
    timer = wanted() ? setTimeout(poll, delay) : null;
  }

  async function poll() {
    if (polling || !wanted()) return;
    polling = new AbortController();
    const started = performance.now();
    try {
      const { data } = await call("GET", "metrics", { signal: polling.signal, timeoutMs: 10_000 });
      take(started, read(data, version.value));
      fill(byId("health-notice"));
      state(`Read every ${POLL_MS / 1000} s; each point looks back ${WINDOW_MS / 1000} s.`);
    } catch (error) {
      if (!polling.signal.aborted) {
        fill(byId("health-notice"), failure(error));
        state("The metrics could not be read; trying again.");
      }
    }
    polling = null;
    schedule(Math.max(200, POLL_MS - (performance.now() - started)));
  }

  function take(t, reading) {
    readings.push({ t, reading });
    readings = readings.filter((one) => one.t >= t - SPAN_MS - WINDOW_MS);
    offerVersions(reading.versions);
    draw();
  }

  function draw() {
    const points = readings.flatMap((one, i) => {
      const before = readings.slice(0, i).find((other) => other.t >= one.t - WINDOW_MS - POLL_MS / 2);
      return before ? [{ t: one.t, ...between(one.reading, before.reading, (one.t - before.t) / 1000) }] : [];
    });
    const line = (...names) => points.map((point) => ({ t: point.t, values: names.map((name) => point[name]) }));
    charts.latency.update(line("p50", "p95", "p99"));
    charts.requests.update(line("requests", "late"));
    charts.hits.update(line("hits"));
    charts.refused.update(line("shed", "fallback"));
    fill(byId("health-tiles"), tiles(readings.at(-1)?.reading, points.at(-1)));
    byId("health-charts").dataset.points = String(points.length);
  }

  function offerVersions(names) {
    const known = [...version.options].slice(1).map((option) => option.value);
    if (known.join() === names.join()) return;
    const chosen = version.value;
    version.replaceChildren(el("option", { value: "" }, "all"), ...names.map((name) => el("option", { value: name }, name)));
    version.value = names.includes(chosen) ? chosen : "";
  }

  function state(text) {
    // Said only when it changes: a status is read out each time.
    if (byId("health-state").textContent !== text) byId("health-state").textContent = text;
  }

  function resume() {
    if (wanted()) schedule(0);
    else {
      clearTimeout(timer);
      if (shown) state(paused ? "Paused." : "Paused while this page is in the background.");
    }
  }

  pause.addEventListener("click", () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    pause.textContent = paused ? "Go on" : "Pause";
    resume();
  });
  version.addEventListener("change", () => {
    readings = []; // they were of other series
    draw();
    schedule(0);
  });
  document.addEventListener("visibilitychange", resume);

  return {
    show() {
      shown = true;
      resume();
    },
    hide() {
      shown = false;
      polling?.abort();
      clearTimeout(timer);
    },
    keyChanged: () => schedule(0),
    recovered: () => schedule(0),
    hash: () => "#health",
  };
}

function tiles(reading, point) {
  const tile = (name, value, detail = "") =>
    el("div", { class: "tile" }, el("dt", {}, name), el("dd", {}, value), el("dd", { class: "muted small" }, detail));
  const down = (reading?.up ?? []).filter(([, up]) => !up).map(([name]) => name);
  const engines = reading
    ? pill(down.length < reading.up.length ? `${reading.up.length - down.length} of ${reading.up.length} up` : "none up",
      down.length < reading.up.length ? "good" : "bad")
    : "–";
  return [
    tile("p50", ms(point?.p50), "last 10 s"),
    tile("p95", ms(point?.p95), "last 10 s"),
    tile("p99", ms(point?.p99), "last 10 s"),
    tile("Requests", rate(point ? point.requests : null), reading ? `${count(reading.requests ?? 0)} since the start` : ""),
    tile("Cache hits", percent(point?.hits), reading ? `${count(reading.entries)} entries in memory` : ""),
    tile("Shed", rate(point ? point.shed : null), reading ? `${count(reading.shed ?? 0)} since the start` : ""),
    tile("Fallback", rate(point ? point.fallback : null), reading ? `${count(reading.fallback ?? 0)} since the start` : ""),
    tile("Places in use", reading ? `${count(reading.inUse ?? 0)} of ${count(reading.limit ?? 0)}` : "–", "candidates, by the engine's measured speed"),
    tile("Engines", engines, down.length ? `not up: ${down.join(", ")}` : ""),
    tile("Memory", bytes(reading?.memory ?? NaN), "of the service, without its engines"),
  ];
}
