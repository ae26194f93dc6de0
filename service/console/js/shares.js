// Shares of traffic in tenths of a percent, so that sums are exact.

export const WHOLE = 1000;

/**
 * `shares` with the one at `index` set to `value`, and the others scaled so that all sum to WHOLE.
 * Others that are all 0 get equal parts.
 */
export function rebalance(shares, index, value) {
  if (shares.length === 1) return [WHOLE];
  const wanted = Math.min(WHOLE, Math.max(0, Math.round(value)));
  const others = shares.map((share, i) => (i === index ? 0 : share));
  const sum = others.reduce((a, b) => a + b, 0);
  const parts = others.map((share, i) => {
    if (i === index) return 0;
    return sum ? share / sum : 1 / (shares.length - 1);
  });
  const result = apportion(parts, WHOLE - wanted, index);
  result[index] = wanted;
  return result;
}

/** Whole numbers in proportion to `parts` that sum to `whole`, by largest remainders. */
export function apportion(parts, whole, except = -1) {
  const exact = parts.map((part) => part * whole);
  const result = exact.map(Math.floor);
  const order = exact
    .map((value, i) => ({ i, rest: value - Math.floor(value) }))
    .filter(({ i }) => i !== except)
    .sort((a, b) => b.rest - a.rest || a.i - b.i);
  let missing = whole - result.reduce((a, b) => a + b, 0);
  for (let k = 0; missing > 0 && order.length; k = (k + 1) % order.length, missing -= 1) {
    result[order[k].i] += 1;
  }
  return result;
}

/** Shares of 1 as tenths of a percent that sum to WHOLE. */
export function tenths(shares) {
  const sum = shares.reduce((a, b) => a + b, 0);
  return sum ? apportion(shares.map((share) => share / sum), WHOLE) : shares.map(() => 0);
}
