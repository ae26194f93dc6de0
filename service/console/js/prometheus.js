// The Prometheus text format, and what two readings of it say about the time between them.

const LINE = /^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?\s*$/;
const LABEL = /([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"\s*(?:,|$)/g;
const ESCAPES = { n: "\n", "\\": "\\", '"': '"' };

/** Samples by metric name: Map of name to [{labels, value}]; lines that are none are left out. */
export function parse(text) {
  const samples = new Map();
  for (const line of text.split("\n")) {
    if (!line || line.startsWith("#")) continue;
    const match = LINE.exec(line);
    if (!match) continue;
    const labels = {};
    for (const [, name, raw] of (match[2] || "").matchAll(LABEL)) {
      labels[name] = raw.replace(/\\(.)/g, (_, letter) => ESCAPES[letter] ?? letter);
    }
    if (!samples.has(match[1])) samples.set(match[1], []);
    samples.get(match[1]).push({ labels, value: number(match[3]) });
  }
  return samples;
}

function number(text) {
  if (text === "+Inf" || text === "Inf") return Infinity;
  return text === "-Inf" ? -Infinity : Number(text);
}

/** Samples of a metric that have these labels. */
export function select(samples, name, labels = {}) {
  return (samples.get(name) || []).filter((sample) =>
    Object.entries(labels).every(([label, value]) => sample.labels[label] === value));
}

/** Sum over the series of a metric that have these labels; null if there is none. */
export function total(samples, name, labels = {}) {
  const found = select(samples, name, labels);
  return found.length ? found.reduce((sum, sample) => sum + sample.value, 0) : null;
}

/** How much a counter has grown from one reading to the next; it starts at 0 with its process. */
export function increase(now, before) {
  if (now === null) return 0;
  return before === null || now < before ? now : now - before;
}

/** Cumulative buckets of a histogram summed over its series: [{le, count}], by rising `le`. */
export function buckets(samples, name, labels = {}) {
  const counts = new Map();
  for (const sample of select(samples, `${name}_bucket`, labels)) {
    const le = number(sample.labels.le ?? "NaN");
    if (!Number.isNaN(le)) counts.set(le, (counts.get(le) || 0) + sample.value);
  }
  return [...counts].map(([le, value]) => ({ le, count: value })).sort((a, b) => a.le - b.le);
}

/** Buckets of what was observed from one reading to the next. */
export function bucketIncrease(now, before) {
  const last = (list) => (list.length ? list[list.length - 1].count : 0);
  if (last(now) < last(before)) return now; // the process has started anew
  const earlier = new Map(before.map(({ le, count }) => [le, count]));
  return now.map(({ le, count }) => ({ le, count: count - (earlier.get(le) || 0) }));
}

/**
 * The q-quantile by linear interpolation within its bucket, as PromQL's histogram_quantile has it;
 * null if nothing was observed. What is over the highest finite bound counts as that bound.
 */
export function quantile(q, cumulative) {
  const all = cumulative.length ? cumulative[cumulative.length - 1].count : 0;
  if (!(all > 0)) return null;
  const rank = q * all;
  const i = cumulative.findIndex(({ count }) => count >= rank && count > 0);
  const { le, count } = cumulative[i];
  if (le === Infinity) return i > 0 ? cumulative[i - 1].le : null;
  const [low, below] = i > 0 ? [cumulative[i - 1].le, cumulative[i - 1].count] : [0, 0];
  return count === below ? le : low + ((le - low) * (rank - below)) / (count - below);
}
