// The tabs, and which of them is shown.

import { find } from "./elements.js";
import * as query from "./query.js";
import * as schema from "./schema.js";
import * as status from "./status.js";
import * as transfer from "./transfer.js";

const TABS = { status: status.show, schema: schema.show, query: query.show,
  backup: () => {}, restore: () => {} };
const REFRESH_MS = 5000;

let current = "status";

function open(tab) {
  current = tab in TABS ? tab : "status";
  for (const button of find("tabs").children) {
    const selected = button.dataset.tab === current;
    button.setAttribute("aria-selected", String(selected));
    find(button.dataset.tab).hidden = !selected;
  }
  history.replaceState(null, "", "#" + current);
  TABS[current]();
}

for (const button of find("tabs").children) {
  button.addEventListener("click", () => open(button.dataset.tab));
}
query.prepare();
transfer.prepare();
addEventListener("hashchange", () => open(location.hash.slice(1)));
open(location.hash.slice(1) || "status");
setInterval(() => {
  if (current === "status" && !document.hidden) status.show();
}, REFRESH_MS);
