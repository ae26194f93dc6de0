// Model versions, as lists to choose from.

import { call } from "./api.js";
import { el } from "./dom.js";

/** The answer of GET /versions. */
export async function listVersions(signal) {
  return (await call("GET", "versions", { signal })).data;
}

/** Offer `versions` in a select; those that are not ready are shown and cannot be chosen. */
export function offer(select, versions, { none, chosen = select.value } = {}) {
  const options = versions.map((version) => {
    const ready = version.state === "ready";
    const option = el("option", { value: version.name, disabled: !ready });
    option.textContent = ready ? version.name : `${version.name} (${version.state})`;
    return option;
  });
  if (none !== undefined) options.unshift(el("option", { value: "" }, none));
  // A permalink may name what is not there any more: the service says so better than we could.
  if (chosen && !versions.some((version) => version.name === chosen)) {
    options.push(el("option", { value: chosen }, `${chosen} (unknown)`));
  }
  select.replaceChildren(...options);
  if (chosen || none !== undefined) select.value = chosen;
}
