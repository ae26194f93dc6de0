// Numbers, times and sizes as the console writes them.

/** Milliseconds with three digits that matter. */
export function ms(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value >= 9950) return `${(value / 1000).toFixed(1)} s`;
  if (value >= 99.5) return `${Math.round(value)} ms`;
  return `${value.toFixed(value >= 9.95 ? 1 : 2)} ms`;
}

/** A share of 1 as a percentage. */
export function percent(value, digits = 1) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  return `${Number((value * 100).toFixed(digits))} %`;
}

export function relevance(value) {
  return value === null || value === undefined ? "–" : value.toFixed(3);
}

export function count(value) {
  return Number.isFinite(value) ? Math.round(value).toLocaleString("en") : "–";
}

/** A rate per second. */
export function rate(value) {
  if (value === null || !Number.isFinite(value)) return "–";
  return `${value >= 9.95 ? Math.round(value) : Number(value.toFixed(2))}/s`;
}

export function bytes(value) {
  if (!Number.isFinite(value)) return "–";
  const units = ["B", "KB", "MB", "GB", "TB"];
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit && value < 9.95 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

/** An ISO time in the reader's own zone, to the second. */
export function when(iso) {
  if (!iso) return "–";
  const moment = new Date(iso);
  if (Number.isNaN(moment.getTime())) return String(iso);
  const two = (n) => String(n).padStart(2, "0");
  const day = `${moment.getFullYear()}-${two(moment.getMonth() + 1)}-${two(moment.getDate())}`;
  return `${day} ${two(moment.getHours())}:${two(moment.getMinutes())}:${two(moment.getSeconds())}`;
}
