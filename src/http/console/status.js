// The tab "Status": what this node says about itself and about the others.

import { get } from "./api.js";
import { element, failure, fill, find, size, table } from "./elements.js";

export async function show() {
  await Promise.all([own(), others()]);
}

async function own() {
  let status;
  try {
    status = await get("status");
  } catch (error) {
    fill(find("cards"), failure(error));
    return;
  }
  const { store, wallaby } = status;
  const trouble = wallaby.out_of_service || wallaby.checkpoint?.blocked;
  const state = element("span", store.raft.state, store.leader.addr ? "good" : "bad");
  fill(
    find("cards"),
    card("Node", store.node_id, store.addr),
    card("State", state, `term ${store.raft.term}`),
    card("Leader", store.leader.node_id || "none", store.leader.addr),
    card("Ready", store.ready ? element("span", "yes", "good") : element("span", "no", "bad"),
      trouble || `up ${status.node.uptime.replace(/\.\d+/, "")}`),
    card("Database", size(store.sqlite3.db_size), `${wallaby.page_count} pages`),
    card("WAL", size(store.sqlite3.wal_size), `checkpoint at ${wallaby.checkpoint.index}`),
    card("Log", size(wallaby.log_bytes), `${store.raft.last_log_index} entries so far`),
    card("Applied", store.raft.applied_index, `committed ${store.raft.commit_index}`),
    card("Version", status.build.version, `SQLite ${store.sqlite3.version || ""}`),
  );
  find("where").textContent = `${store.node_id} at ${status.cluster.api_addr}`;
  find("raw").textContent = JSON.stringify(status, null, 2);
}

async function others() {
  try {
    const { nodes } = await get("nodes?ver=2&nonvoters&timeout=3s");
    const columns = ["node", "HTTP", "Raft", "role", "answers", "version"];
    const values = nodes.map((node) => [
      node.id,
      node.api_addr || "",
      node.addr || "",
      node.leader ? "leader" : node.voter ? "voter" : "read replica",
      node.reachable ? node.time_s || "yes" : node.error || "no",
      node.version,
    ]);
    const made = table({ columns, values });
    made.querySelectorAll("tbody tr").forEach((line, at) => {
      line.children[4].className = nodes[at].reachable ? "good" : "bad";
    });
    fill(find("nodes"), made);
  } catch (error) {
    fill(find("nodes"), failure(error));
  }
}

function card(title, value, more) {
  const shown = element("dd", [value, element("small", more)]);
  return element("dl", [element("dt", title), shown], "card");
}
