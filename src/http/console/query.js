// The tab "Query": an editor, the results, and what was run before.

import { run } from "./api.js";
import { element, failure, fill, find, table } from "./elements.js";

const HISTORY = "wallaby.history";
const HISTORY_MAX = 50;

export function prepare() {
  find("run").addEventListener("click", submit);
  find("sql").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      submit();
    }
  });
  find("history").addEventListener("change", (event) => {
    if (event.target.value) find("sql").value = event.target.value;
    event.target.value = "";
    find("sql").focus();
  });
  remembered();
}

export function show() {
  find("sql").focus();
}

async function submit() {
  const text = find("sql").value.trim();
  if (!text) return;
  const button = find("run");
  button.disabled = true;
  // An empty line separates statements; what is in one paragraph runs as one text.
  const statements = text.split(/\n\s*\n/).map((part) => part.trim()).filter(Boolean);
  const options = { level: find("level").value, transaction: find("transaction").checked };
  try {
    const results = await run(statements, options);
    fill(find("results"), ...results.map((result, at) => shown(result, statements[at])));
    remember(text);
  } catch (error) {
    fill(find("results"), failure(error));
  } finally {
    button.disabled = false;
  }
}

function shown(result, statement) {
  const parts = [];
  const time = result.time === undefined ? "" : ` in ${(result.time * 1000).toFixed(2)} ms`;
  if (result.error) {
    parts.push(element("p", statement || "", "soft"), failure(new Error(result.error)));
  } else if (result.columns) {
    const count = result.values?.length || 0;
    parts.push(element("p", `${count} ${count === 1 ? "row" : "rows"}${time}`, "soft"));
    parts.push(table(result));
  } else {
    const count = result.rows_affected || 0;
    const last = result.last_insert_id ? `, last inserted row id ${result.last_insert_id}` : "";
    const rows = count === 1 ? "row" : "rows";
    parts.push(element("p", `${count} ${rows} affected${last}${time}`, "good"));
  }
  return element("div", parts, "result");
}

function read() {
  try {
    const kept = JSON.parse(localStorage.getItem(HISTORY) || "[]");
    return Array.isArray(kept) ? kept.filter((text) => typeof text === "string") : [];
  } catch {
    // No storage, or somebody else's: no history then.
    return [];
  }
}

function remember(text) {
  const kept = [text, ...read().filter((other) => other !== text)].slice(0, HISTORY_MAX);
  try {
    localStorage.setItem(HISTORY, JSON.stringify(kept));
  } catch {
    // A private window keeps nothing.
  }
  remembered();
}

function remembered() {
  const options = read().map((text) => {
    const option = element("option", text.replace(/\s+/g, " ").slice(0, 80));
    option.value = text;
    return option;
  });
  const none = element("option", `${options.length} kept`);
  none.value = "";
  fill(find("history"), none, ...options);
}
