// The tab "Schema": tables, views and indexes, and the first rows of each.

import { rows } from "./api.js";
import { element, failure, fill, find, quoted, table } from "./elements.js";

const ROWS_SHOWN = 100;

const OBJECTS = "SELECT type, name, tbl_name, sql FROM sqlite_master " +
  "WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY type, name";

export async function show() {
  try {
    const found = await rows(OBJECTS);
    list(found.values || []);
  } catch (error) {
    fill(find("objects"), failure(error));
  }
}

function list(objects) {
  const kinds = [["table", "Tables"], ["view", "Views"], ["index", "Indexes"],
    ["trigger", "Triggers"]];
  const parts = [];
  for (const [kind, title] of kinds) {
    const those = objects.filter(([type]) => type === kind);
    if (those.length) parts.push(element("h3", title), ...those.map(entry));
  }
  fill(find("objects"), ...parts);
  if (!objects.length) fill(find("objects"), element("p", "The database is empty.", "soft"));
}

function entry(object) {
  const button = element("button", object[1]);
  button.addEventListener("click", () => {
    for (const other of find("objects").querySelectorAll("button")) {
      other.setAttribute("aria-current", String(other === button));
    }
    open(object);
  });
  return button;
}

async function open([type, name, of, sql]) {
  const parts = [element("h2", type === "table" || type === "view" ? name : `${name} on ${of}`)];
  parts.push(element("pre", sql || "(made by SQLite itself)"));
  if (type === "table" || type === "view") {
    try {
      const found = await rows(`SELECT * FROM ${quoted(name)} LIMIT ${ROWS_SHOWN}`);
      const count = found.values?.length || 0;
      const more = count === ROWS_SHOWN ? `The first ${count} rows` : `${count} rows`;
      parts.push(element("p", more, "soft"), table(found));
    } catch (error) {
      parts.push(failure(error));
    }
  }
  fill(find("object"), ...parts);
}
