// The tabs "Backup" and "Restore".

import { address, parse, post } from "./api.js";
import { failure, fill, find, size } from "./elements.js";

export function prepare() {
  find("backup-form").addEventListener("submit", backup);
  find("restore-form").addEventListener("submit", restore);
  const drop = find("drop");
  for (const [event, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
    drop.addEventListener(event, (happened) => {
      happened.preventDefault();
      drop.classList.toggle("over", over);
      if (event === "drop" && happened.dataTransfer.files.length) {
        drop.querySelector("input").files = happened.dataTransfer.files;
      }
    });
  }
}

// The browser itself downloads, so that a large file never has to fit into this page's memory.
function backup(event) {
  event.preventDefault();
  const form = new FormData(event.target);
  const given = new URLSearchParams();
  for (const [name, value] of form) if (value) given.set(name, value === "on" ? "" : value);
  const link = document.createElement("a");
  link.href = address("db/backup?" + given);
  const ending = form.get("fmt") === "sql" ? "sql" : "sqlite";
  link.download = `backup.${ending}${form.get("compress") ? ".gz" : ""}`;
  link.click();
  find("backup-message").textContent = "The browser is downloading " + link.download + ".";
}

async function restore(event) {
  event.preventDefault();
  const form = new FormData(event.target);
  const file = form.get("file");
  const boots = form.get("way") === "boot";
  if (!confirm(`Replace the whole database by ${file.name} (${size(file.size)})?`)) return;
  const message = find("restore-message");
  const button = event.target.querySelector("button");
  button.disabled = true;
  message.className = "";
  message.textContent = "Restoring, please wait ...";
  try {
    const text = await post(boots ? "boot" : "db/load", file, "application/octet-stream");
    const answer = text.trim() ? parse(text) : {};
    const error = answer.error || answer.results?.find((result) => result.error)?.error;
    if (error) throw new Error(error);
    message.className = "good";
    message.textContent = "Restored.";
  } catch (error) {
    fill(message, failure(error));
  } finally {
    button.disabled = false;
  }
}
