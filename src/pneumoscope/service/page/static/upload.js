// Films on their way to the service: dropped, pasted or picked, a few at a time, each with its progress.

import { say, signIn, why, words } from "./api.js";
import { refresh } from "./worklist.js";

const AT_ONCE = 3;
const TRIES = 8; // while the service is busy
const drop = document.getElementById("drop");
const queue = document.getElementById("queue");
const most = Number(drop.dataset.most);
const waiting = [];
const counts = { all: 0, done: 0, failed: 0, running: 0 };

function add(files) {
  const films = [...files].filter((file) => file.size && !file.name.startsWith(".") && file.name !== "DICOMDIR");
  if (!films.length) document.getElementById("said").textContent = words.none;
  for (const file of films) {
    counts.all += 1;
    waiting.push({ file, row: row(file.name), tries: 0 });
  }
  document.getElementById("sending").hidden = counts.all === 0;
  start();
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
  tell();
}

function tell() {
  const finished = counts.done + counts.failed;
  document.getElementById("sum").textContent = say(words.progress, { ...counts });
  const bar = document.getElementById("all");
  bar.max = Math.max(counts.all, 1);
  bar.value = finished;
  document.getElementById("clear").hidden = finished === 0;
}

async function send(item) {
  if (item.file.size > most) return fail(item, words.large, false);
  for (;;) {
    const { status, found, retry } = await post(item);
    if (status === 201) return done(item, found.predictions[0]);
    if (status === 401) return signIn();
    item.tries += 1;
    if (status !== 503 || !retry || item.tries >= TRIES) return fail(item, why(found) || words.gone, !(status >= 400 && status < 500));
    state(item, words.busy);
    await new Promise((go) => setTimeout(go, 1000 * retry * (1 + Math.random())));
  }
}

// XMLHttpRequest, because fetch does not tell how much of a body has gone.
function post(item) {
  return new Promise((answer) => {
    const request = new XMLHttpRequest();
    const form = new FormData();
    form.append("films", item.file, item.file.name);
    const bar = document.createElement("progress");
    bar.setAttribute("aria-label", `${words.sending}: ${item.file.name}`);
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
  link.href = `/films/${prediction.id}`;
  link.className = `decision ${prediction.decision}`;
  link.textContent = words[prediction.decision];
  state(item, link);
  item.row.dataset.done = "yes";
  tell();
}

function fail(item, reason, again) {
  counts.failed += 1;
  item.row.dataset.done = "no";
  const line = document.createElement("span");
  line.className = "why wrong";
  line.textContent = `${words.failed}: ${reason}`;
  item.row.append(line);
  queue.prepend(item.row); // in sight
  tell();
  if (!again) return state(item, "");
  const button = document.createElement("button");
  button.textContent = words.again;
  button.onclick = () => {
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
  add(entries.length ? (await Promise.all(entries.map(filesOf))).flat() : transfer.files);
}

async function filesOf(entry) {
  if (entry.isFile) return new Promise((found) => entry.file((file) => found([file]), () => found([])));
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
document.addEventListener("paste", (event) => event.clipboardData.files.length && add(event.clipboardData.files));
for (const id of ["pick", "folder"]) {
  const input = document.getElementById(id);
  input.addEventListener("change", () => {
    add(input.files);
    input.value = "";
  });
}
document.getElementById("clear").addEventListener("click", () => {
  for (const each of queue.querySelectorAll("[data-done]")) each.remove();
  counts.all -= counts.done + counts.failed;
  counts.done = counts.failed = 0;
  document.getElementById("sending").hidden = counts.all === 0;
  tell();
});
window.addEventListener("beforeunload", (event) => (counts.running || waiting.length) && event.preventDefault());
