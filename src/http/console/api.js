// Calls of this node. All paths are relative to the page, so it works behind a proxy as well.

const BASE = "../";

// JSON whose integers are kept exactly: what a double cannot hold stays text.
export function parse(text) {
  return JSON.parse(text, (key, value, context) => {
    const exact = typeof value !== "number" || Number.isSafeInteger(value) || !context?.source;
    return exact || !/^-?\d+$/.test(context.source) ? value : new Digits(context.source);
  });
}

// A number too large for a double.
export class Digits {
  constructor(text) { this.text = text; }
  toString() { return this.text; }
  toJSON() { return this.text; }
}

export async function get(path) {
  return parse(await text(path));
}

export async function text(path) {
  const response = await fetch(BASE + path);
  return checked(response, await response.text());
}

export async function post(path, body, type = "application/json") {
  const headers = { "Content-Type": type };
  const response = await fetch(BASE + path, { method: "POST", headers, body });
  return checked(response, await response.text());
}

export function address(path) {
  return new URL(BASE + path, document.baseURI).toString();
}

function checked(response, body) {
  if (response.ok) return body;
  let message = body.trim();
  try {
    message = JSON.parse(body).error || message;
  } catch {
    // Not every refusal is JSON.
  }
  if (!message) {
    message = {
      401: "You are not allowed to do this, or not logged in.",
      404: "This node does not offer this.",
    }[response.status] || response.statusText;
  }
  throw new Error(`${response.status}: ${message}`);
}

// Runs statements that may read and write; answers one result for each.
export async function run(statements, options) {
  const flags = new URLSearchParams({ level: options.level || "weak" });
  let query = flags.toString() + "&timings";
  if (options.transaction) query += "&transaction";
  const answer = parse(await post("db/request?" + query, JSON.stringify(statements)));
  if (answer.error) throw new Error(answer.error);
  return answer.results;
}

// The rows of one query.
export async function rows(sql) {
  const body = JSON.stringify([sql]);
  const answer = parse(await post("db/query?level=none", body));
  const result = answer.results[0];
  if (answer.error || result.error) throw new Error(answer.error || result.error);
  return result;
}
