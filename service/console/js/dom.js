// Builds elements. Text becomes text nodes only: nothing in the console parses a string as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes, event listeners (`on`) and children (nodes, texts, nested lists). */
export function el(tag, attributes = {}, ...children) {
  return furnish(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function svg(tag, attributes = {}, ...children) {
  return furnish(document.createElementNS(SVG, tag), attributes, children);
}

function furnish(node, { on = {}, ...attributes }, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) {
      node.setAttribute(name, String(value));
    }
  }
  for (const [event, listener] of Object.entries(on)) node.addEventListener(event, listener);
  node.append(...solid(children));
  return node;
}

function solid(children) {
  return children
    .flat(Infinity)
    .filter((child) => child !== null && child !== undefined && child !== false)
    .map((child) => (child instanceof Node ? child : String(child)));
}

/** Take these children instead of the present ones. */
export function fill(node, ...children) {
  node.replaceChildren(...solid(children));
}

export function byId(id) {
  return document.getElementById(id);
}

/** A shopper's or a model's text: shown as it is, in its own direction. */
export function words(text) {
  return el("bdi", { dir: "auto" }, text);
}

/** Say something to whoever cannot see that the page has changed. */
export function announce(text) {
  byId("announcer").textContent = text;
}

/** A table in a frame that scrolls by itself. `columns`: texts, or [text, class]. */
export function table(label, columns, rows) {
  const heads = columns.map((column) => {
    const [text, kind] = [column].flat();
    return el("th", { scope: "col", role: "columnheader", class: kind }, text);
  });
  for (const row of rows) {
    row.setAttribute("role", "row");
    [...row.children].forEach((one, i) => {
      one.setAttribute("role", one.scope === "row" ? "rowheader" : "cell");
      // On a narrow screen each cell stands on a line of its own and carries its column's name.
      if (one.scope !== "row" && i > 0) {
        one.setAttribute("data-label", heads[i].textContent);
        if (one.childNodes.length) one.replaceChildren(el("div", {}, [...one.childNodes]));
      }
    });
  }
  return el(
    "div",
    { class: "scroll", role: "region", "aria-label": label, tabindex: "0" },
    // The style makes blocks of tables on narrow screens: the roles keep what they are.
    el("table", { role: "table", "aria-label": label },
      el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, heads)),
      el("tbody", { role: "rowgroup" }, rows)),
  );
}

/** A short label with a tone (good, warn, bad) that its words say as well. */
export function pill(text, tone) {
  return el("span", { class: "pill", "data-tone": tone }, text);
}

/** A button that copies what `text()` gives. */
export function copyButton(name, text) {
  const button = el("button", { type: "button", class: "small" }, "Copy");
  button.setAttribute("aria-label", `Copy ${name}`);
  button.addEventListener("click", async () => {
    let said = "Copied";
    try {
      await navigator.clipboard.writeText(text());
    } catch {
      said = "Copy it by hand"; // browsers allow it on https and localhost only
    }
    button.textContent = said;
    announce(`${name}: ${said.toLowerCase()}`);
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
  return button;
}
