// A small line chart in SVG: time to the right, values from 0, one line for each series.

import { el, fill, svg } from "./dom.js";

const HEIGHT = 150;
const EDGE = { left: 52, right: 8, top: 8, bottom: 20 };

/** The least of 1, 2, 2.5 or 5 times a power of ten that is not under `value`. */
export function niceCeiling(value) {
  if (!(value > 0) || !Number.isFinite(value)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  const step = [1, 2, 2.5, 5, 10].find((one) => one * power >= value * (1 - 1e-9));
  return step * power;
}

export class LineChart {
  /**
   * `series`: names, in order; `write`: a value as text; `least`: the scale reaches at least that.
   * `spanMs`: most time that fits; the axis begins with a minute and grows to that.
   */
  constructor(title, { series, write, spanMs, least = 0 }) {
    this.series = series;
    this.write = write;
    this.spanMs = spanMs;
    this.least = least;
    this.points = [];
    this.legend = el("ul", { class: "legend" });
    this.drawing = svg("svg", { role: "img", "aria-label": title, height: HEIGHT });
    this.title = title;
    this.node = el("figure", { class: "card chart" },
      el("figcaption", {}, el("h2", {}, title), this.legend), this.drawing);
    new ResizeObserver(() => this.draw()).observe(this.drawing);
  }

  /** `points`: [{t, values}], t in ms, a value for each series or null. */
  update(points) {
    this.points = points;
    this.draw();
  }

  draw() {
    const width = Math.round(this.drawing.clientWidth) || 320;
    const last = this.points.at(-1);
    const highest = Math.max(this.least, ...this.points.flatMap(({ values }) => values.filter(Number.isFinite)));
    const top = niceCeiling(highest);
    const end = last?.t ?? 0;
    const minutes = Math.ceil((end - (this.points[0]?.t ?? end)) / 60_000);
    const span = Math.min(this.spanMs, Math.max(1, minutes) * 60_000);
    const x = (t) => EDGE.left + (width - EDGE.left - EDGE.right) * (1 - (end - t) / span);
    const y = (value) => EDGE.top + (HEIGHT - EDGE.top - EDGE.bottom) * (1 - value / top);
    this.drawing.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    fill(this.drawing,
      [0, 0.5, 1].map((part) => grid(width, y(top * part), this.write(top * part))),
      svg("text", { x: EDGE.left, y: HEIGHT - 4 }, `${Math.round(span / 60_000)} min ago`),
      svg("text", { x: width - EDGE.right, y: HEIGHT - 4, "text-anchor": "end" }, "now"),
      this.series.map((_, i) => this.line(i, x, y)));
    fill(this.legend, this.series.map((name, i) => {
      const key = svg("svg", { width: 22, height: 8, "aria-hidden": "true" },
        svg("path", { class: `line series-${i + 1}`, d: "M0 4H22" }));
      return el("li", {}, key, ` ${name} `, el("strong", {}, this.write(last?.values[i] ?? null)));
    }));
    const said = this.series.map((name, i) => `${name} ${this.write(last?.values[i] ?? null)}`);
    this.drawing.setAttribute("aria-label", `${this.title}; now: ${said.join(", ")}`);
  }

  line(i, x, y) {
    let pen = "M";
    const path = [];
    let dots = [];
    this.points.forEach(({ t, values }, k) => {
      const value = values[i];
      if (!Number.isFinite(value) || x(t) < EDGE.left - 1) {
        pen = "M";
        return;
      }
      path.push(`${pen}${x(t).toFixed(1)} ${y(value).toFixed(1)}`);
      const alone = pen === "M" && !Number.isFinite(this.points[k + 1]?.values[i]);
      if (alone) dots.push(svg("circle", { class: `dot series-${i + 1}`, cx: x(t), cy: y(value), r: 2.5 }));
      pen = "L";
    });
    return [svg("path", { class: `line series-${i + 1}`, d: path.join("") }), dots];
  }
}

function grid(width, height, text) {
  return [
    svg("path", { class: "grid", d: `M${EDGE.left} ${height.toFixed(1)}H${width - EDGE.right}` }),
    svg("text", { x: EDGE.left - 6, y: height + 4, "text-anchor": "end" }, text),
  ];
}
