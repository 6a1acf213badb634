// Parts of the page. Texts are set as text, never as HTML: what the database holds is not ours.

import { Digits } from "./api.js";

export const find = (id) => document.getElementById(id);

export function element(name, content, classes) {
  const made = document.createElement(name);
  if (classes) made.className = classes;
  for (const part of [content].flat()) {
    if (part !== undefined && part !== null) made.append(part);
  }
  return made;
}

export function fill(parent, ...children) {
  parent.replaceChildren(...children);
}

export function failure(error) {
  return element("p", error.message || String(error), "error");
}

// A table of a result with columns, types and values.
export function table(result) {
  const heads = result.columns.map((name, at) => {
    const type = result.types?.[at];
    const first = result.values?.find((row) => row[at] !== null);
    const classes = first && isNumber(first[at]) ? "number" : "";
    return element("th", [name, type ? element("small", type) : null], classes);
  });
  const lines = (result.values || []).map((row) => element("tr", row.map(cell)));
  const made = element("table", [element("thead", element("tr", heads)), element("tbody", lines)]);
  return element("div", made, "scroll");
}

function isNumber(value) {
  return typeof value === "number" || value instanceof Digits;
}

function cell(value) {
  if (value === null) return element("td", "NULL", "null");
  if (isNumber(value)) {
    return element("td", String(value), "number");
  }
  const shown = element("td", String(value));
  shown.title = String(value);
  return shown;
}

export function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  let value = Number(bytes);
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit ? value.toFixed(value < 10 ? 1 : 0) : value} ${units[unit]}`;
}

// An identifier for SQL.
export function quoted(name) {
  return '"' + name.replaceAll('"', '""') + '"';
}
