// Images on their way to the service: dropped, pasted or picked, a few at a time, each with its progress.

import { say, tell, why, words } from "./api.js";
import { announce, refresh } from "./worklist.js";

const AT_ONCE = 3;
const TRIES = 8; // while the service is busy
const EVERY = 3000; // milliseconds after which the list is drawn anew, while images are sent
const drop = document.getElementById("drop");
const queue = document.getElementById("queue");
const most = Number(drop.dataset.most);
const waiting = [];
const counts = { all: 0, done: 0, failed: 0, running: 0 };
let following = false;

/** Send files, each under its name or, from a folder, its path. */
function add(files) {
  const images = files.filter(({ file }) => !file.name.startsWith(".") && file.name !== "DICOMDIR");
  announce(images.length ? "" : words.none);
  for (const { file, name } of images) {
    const item = { file, name, row: row(name), tries: 0 };
    counts.all += 1;
    if (file.size) waiting.push(item);
    else fail(item, { message: words.empty }, false);
  }
  document.getElementById("sending").hidden = counts.all === 0;
  start();
}

function picked(files) {
  return [...files].map((file) => ({ file, name: file.webkitRelativePath || file.name }));
}

function row(name) {
  const made = document.createElement("li");
  const label = document.createElement("span");
  label.className = "name";
  label.textContent = name;
  const state = document.createElement("span");
  state.className = "state";
  state.textContent = words.waiting;
  made.append(label, state);
  queue.append(made);
  return made;
}

function start() {
  while (counts.running < AT_ONCE && waiting.length) {
    counts.running += 1;
    send(waiting.shift()).finally(() => {
      counts.running -= 1;
      start();
      if (!counts.running && !waiting.length) refresh();
    });
  }
  sum();
  follow();
}

/** Draw the list anew from time to time while images are sent. */
async function follow() {
  if (following) return;
  following = true;
  while (counts.running) {
    await new Promise((go) => setTimeout(go, EVERY));
    if (counts.running) await refresh();
  }
  following = false;
}

function sum() {
  const finished = counts.done + counts.failed;
  document.getElementById("sum").textContent = say(words.progress, { ...counts });
  const bar = document.getElementById("all");
  bar.max = Math.max(counts.all, 1);
  bar.value = finished;
  document.getElementById("clear").hidden = !cleared().length;
}

/** What is done with: an image that can be tried again is not. */
function cleared() {
  return queue.querySelectorAll("[data-done=yes], [data-done=no]");
}

async function send(item) {
  if (item.file.size > most) return fail(item, { message: words.large }, false);
  for (;;) {
    const { status, found, retry } = await post(item);
    if (status === 201) return done(item, found.predictions[0]);
    if (status === 401) return stop(item);
    item.tries += 1;
    if (status !== 503 || !retry || item.tries >= TRIES) {
      const reason = why(found) ? { message: why(found), lang: "en" } : { message: words.gone };
      return fail(item, reason, !(status >= 400 && status < 500));
    }
    state(item, words.busy);
    await new Promise((go) => setTimeout(go, 1000 * retry * (1 + Math.random())));
  }
}

/** Nobody is signed in any more: nothing is sent until they are, and the images stay here meanwhile. */
function stop(item) {
  for (const each of [...waiting.splice(0).reverse(), item]) fail(each, { message: words.expired }, true);
  document.getElementById("expired").hidden = false;
}

// XMLHttpRequest, because fetch does not tell how much of a body has gone.
function post(item) {
  return new Promise((answer) => {
    const request = new XMLHttpRequest();
    const form = new FormData();
    form.append("images", item.file, item.name);
    const bar = document.createElement("progress");
    bar.setAttribute("aria-label", `${words.sending}: ${item.name}`);
    bar.max = 1;
    bar.value = 0;
    state(item, bar);
    request.upload.onprogress = (event) => event.lengthComputable && (bar.value = event.loaded / event.total);
    request.upload.onload = () => state(item, words.judging);
    request.onload = () => {
      let found = null;
      try {
        found = JSON.parse(request.responseText);
      } catch {} // something between the page and the service answered
      answer({ status: request.status, found, retry: Number(request.getResponseHeader("Retry-After")) });
    };
    request.onerror = () => answer({ status: 0, found: null, retry: 0 });
    request.open("POST", "/v1/predictions");
    request.send(form);
  });
}

function state(item, shown) {
  item.row.querySelector(".state").replaceChildren(shown);
}

function done(item, prediction) {
  counts.done += 1;
  const link = document.createElement("a");
  link.href = `/images/${prediction.id}`;
  link.className = `decision ${prediction.decision}`;
  link.textContent = words[prediction.decision];
  state(item, link);
  item.row.dataset.done = "yes";
  queue.append(item.row); // those on their way stay in sight
  sum();
}

function fail(item, reason, again) {
  counts.failed += 1;
  item.row.dataset.done = again ? "again" : "no";
  const line = document.createElement("span");
  line.className = "why wrong";
  tell(line, `${words.failed}:`, reason);
  item.row.append(line);
  queue.prepend(item.row); // in sight
  sum();
  if (!again) return state(item, "");
  const button = document.createElement("button");
  button.textContent = words.again;
  button.onclick = () => {
    document.getElementById("expired").hidden = true;
    counts.failed -= 1;
    line.remove();
    delete item.row.dataset.done;
    waiting.push({ ...item, tries: 0 });
    state(item, words.waiting);
    start();
  };
  state(item, button);
}

async function dropped(transfer) {
  // Entries must be asked for before anything is awaited: the browser forgets them afterwards.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  add(entries.length ? (await Promise.all(entries.map(filesOf))).flat() : picked(transfer.files));
}

async function filesOf(entry) {
  const name = entry.fullPath.slice(1); // it begins with "/"
  if (entry.isFile) return new Promise((found) => entry.file((file) => found([{ file, name }]), () => found([])));
  const reader = entry.createReader();
  const all = [];
  for (;;) {
    const some = await new Promise((found) => reader.readEntries(found, () => found([]))); // at most 100 a call
    if (!some.length) return all;
    all.push(...(await Promise.all(some.map(filesOf))).flat());
  }
}

document.addEventListener("dragover", (event) => {
  event.preventDefault();
  drop.classList.add("over");
});
document.addEventListener("dragleave", () => drop.classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  dropped(event.dataTransfer);
});
document.addEventListener("paste", (event) => event.clipboardData.files.length && add(picked(event.clipboardData.files)));
for (const id of ["pick", "folder"]) {
  const input = document.getElementById(id);
  input.addEventListener("change", () => {
    add(picked(input.files));
    input.value = "";
  });
}
document.getElementById("resume").addEventListener("click", () => {
  for (const each of queue.querySelectorAll("[data-done=again] button")) each.click();
});
document.getElementById("clear").addEventListener("click", () => {
  const rows = cleared();
  for (const each of rows) each.remove();
  counts.all -= rows.length;
  counts.failed -= rows.length - counts.done;
  counts.done = 0;
  document.getElementById("sending").hidden = counts.all === 0;
  sum();
});
window.addEventListener("beforeunload", (event) => (counts.running || waiting.length) && event.preventDefault());
