// Uploads from the worklist: dropped, pasted or chosen files, a few at a time, with progress and retries.

import { ApiError, format, messages, problemError, showError } from "./api.js";
import { refresh, showStatus } from "./worklist.js";

const CONCURRENT_UPLOADS = 3;
const MAX_ATTEMPTS = 8; // while the service is busy
const byId = (id) => document.getElementById(id);
const dropzone = byId("dropzone");
const queue = byId("upload-queue");
const ageField = byId("age");
const maxBytes = Number(dropzone.dataset.maxBytes);
const waiting = [];
const failed = new Set(); // uploads that can be retried
const counts = { total: 0, done: 0, failed: 0, running: 0 };

/** Queue files for upload with the entered age. Hidden files and DICOM directories are skipped. */
function enqueue(files) {
  if (!ageField.reportValidity()) return showStatus(format(messages.invalidAge, { limit: ageField.max }));
  const age = ageField.value;
  ageField.value = ""; // the next files may be of another patient
  const images = files.filter(({ file }) => !file.name.startsWith(".") && file.name !== "DICOMDIR");
  showStatus(images.length ? "" : messages.noFiles);
  for (const { file, name } of images) {
    const row = addRow(age ? format(messages.withAge, { name, age }) : name);
    const upload = { file, name, age, row, attempts: 0 };
    counts.total += 1;
    if (file.size) waiting.push(upload);
    else fail(upload, new ApiError(messages.emptyFile), false);
  }
  byId("uploads").hidden = counts.total === 0;
  startUploads();
}

/** Return files with their names; files of a folder are named by their path. */
function named(files) {
  return [...files].map((file) => ({ file, name: file.webkitRelativePath || file.name }));
}

/** Append a row with a label to the upload queue. */
function addRow(text) {
  const row = document.createElement("li");
  const label = document.createElement("span");
  label.className = "filename";
  label.textContent = text;
  const state = document.createElement("span");
  state.className = "upload-state";
  state.textContent = messages.waiting;
  row.append(label, state);
  queue.append(row);
  return row;
}

/** Start waiting uploads up to the limit, and refresh the list when the last one ends. */
function startUploads() {
  while (counts.running < CONCURRENT_UPLOADS && waiting.length) {
    counts.running += 1;
    upload(waiting.shift()).finally(() => {
      counts.running -= 1;
      startUploads();
      if (!counts.running && !waiting.length) refresh();
    });
  }
  updateSummary();
}

/** Show the counts and the overall progress. */
function updateSummary() {
  byId("upload-summary").textContent = format(messages.progress, counts);
  const bar = byId("upload-progress");
  bar.max = Math.max(counts.total, 1);
  bar.value = counts.done + counts.failed;
  bar.hidden = bar.value === counts.total;
  byId("clear-finished").hidden = !finishedRows().length;
  byId("retry-failed").hidden = !failed.size;
  byId("retry-failed").textContent = format(messages.retryFailed, { n: failed.size });
}

/** Return the rows of uploads that are done or cannot be retried. */
function finishedRows() {
  return queue.querySelectorAll("[data-state=done], [data-state=failed]");
}

/** Upload one file; try again while the service is busy. */
async function upload(item) {
  if (item.file.size > maxBytes) return fail(item, new ApiError(messages.tooLarge), false);
  for (;;) {
    const { status, body, retryAfter } = await post(item);
    if (status === 201) return succeed(item, body.predictions[0]);
    if (status === 401) return pauseUntilSignIn(item);
    item.attempts += 1;
    if (![429, 503].includes(status) || !retryAfter || item.attempts >= MAX_ATTEMPTS) {
      const error = status ? problemError(body) : new ApiError(messages.unreachable);
      return fail(item, error, isTransient(status));
    }
    setState(item, messages.busy);
    await new Promise((resolve) => setTimeout(resolve, 1000 * retryAfter * (1 + Math.random())));
  }
}

/** Return true if an upload that failed with this status can succeed later; 0 is a failure of the network. */
function isTransient(status) {
  return status === 0 || status === 408 || status === 429 || status >= 500;
}

/** Stop all uploads because the session has expired; the files stay in the queue for a retry. */
function pauseUntilSignIn(item) {
  const error = new ApiError(messages.sessionExpired);
  for (const each of [...waiting.splice(0).reverse(), item]) fail(each, error, true);
  byId("session-expired").hidden = false;
}

/** Post a file and show its progress. Uses XMLHttpRequest because fetch reports no upload progress. */
function post(item) {
  return new Promise((resolve) => {
    const request = new XMLHttpRequest();
    const form = new FormData();
    form.append("images", item.file, item.name);
    const bar = document.createElement("progress");
    bar.setAttribute("aria-label", `${messages.uploading}${messages.colon}${item.name}`);
    bar.max = 1;
    bar.value = 0;
    setState(item, bar);
    request.upload.onprogress = (event) => event.lengthComputable && (bar.value = event.loaded / event.total);
    request.upload.onload = () => setState(item, messages.processing);
    request.onload = () => {
      let body = null;
      try {
        body = JSON.parse(request.responseText);
      } catch {} // the response of a proxy, for example
      resolve({ status: request.status, body, retryAfter: Number(request.getResponseHeader("Retry-After")) });
    };
    request.onerror = () => resolve({ status: 0, body: null, retryAfter: 0 });
    request.open("POST", `/v1/predictions${item.age && `?${new URLSearchParams({ age: item.age })}`}`);
    request.send(form);
  });
}

/** Show the state of an upload: text or an element. */
function setState(item, content) {
  item.row.querySelector(".upload-state").replaceChildren(content);
}

/** Show the decision with a link to the image, and move the row to the end of the queue. */
function succeed(item, prediction) {
  counts.done += 1;
  const link = document.createElement("a");
  link.href = `/images/${prediction.id}`;
  link.textContent = messages.decisions?.[prediction.decision] ?? messages.received; // blind readers see no decision
  if (messages.decisions) link.className = `decision ${prediction.decision}`;
  setState(item, link);
  item.row.dataset.state = "done";
  queue.append(item.row);
  updateSummary();
}

/** Show an error at the top of the queue, with a button to retry if that can help. */
function fail(item, error, canRetry) {
  counts.failed += 1;
  item.row.dataset.state = canRetry ? "retry" : "failed";
  const line = document.createElement("span");
  line.className = "upload-error error";
  showError(line, messages.failed, error);
  item.row.append(line);
  queue.prepend(item.row);
  if (canRetry) {
    failed.add(item);
    const button = document.createElement("button");
    button.textContent = messages.retry;
    button.onclick = () => retry([item]);
    setState(item, button);
  } else {
    setState(item, "");
  }
  updateSummary();
}

/** Queue failed uploads again. */
function retry(items) {
  byId("session-expired").hidden = true;
  for (const item of items) {
    failed.delete(item);
    counts.failed -= 1;
    item.row.querySelector(".upload-error").remove();
    delete item.row.dataset.state;
    item.attempts = 0;
    waiting.push(item);
    setState(item, messages.waiting);
  }
  queue.focus(); // the button that was pressed is gone
  startUploads();
}

/** Queue the files and folders of a drop. */
async function enqueueDropped(transfer) {
  // The browser discards the entries after the first await.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  enqueue(entries.length ? (await Promise.all(entries.map(filesBelow))).flat() : named(transfer.files));
}

/** Return all files of a dropped entry, named by their path. */
async function filesBelow(entry) {
  const name = entry.fullPath.slice(1); // without the leading "/"
  if (entry.isFile) return new Promise((resolve) => entry.file((file) => resolve([{ file, name }]), () => resolve([])));
  const reader = entry.createReader();
  const files = [];
  for (;;) {
    const batch = await new Promise((resolve) => reader.readEntries(resolve, () => resolve([]))); // at most 100 per call
    if (!batch.length) return files;
    files.push(...(await Promise.all(batch.map(filesBelow))).flat());
  }
}

document.addEventListener("dragover", (event) => {
  event.preventDefault();
  dropzone.classList.add("active");
});
document.addEventListener("dragleave", () => dropzone.classList.remove("active"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  dropzone.classList.remove("active");
  enqueueDropped(event.dataTransfer);
});
document.addEventListener("paste", (event) => event.clipboardData.files.length && enqueue(named(event.clipboardData.files)));
for (const id of ["file-input", "folder-input"]) {
  const input = byId(id);
  input.addEventListener("change", () => {
    enqueue(named(input.files));
    input.value = "";
  });
}
byId("retry-failed").addEventListener("click", () => retry([...failed].reverse()));
byId("clear-finished").addEventListener("click", () => {
  const rows = finishedRows();
  for (const row of rows) row.remove();
  counts.total -= rows.length;
  counts.failed -= rows.length - counts.done;
  counts.done = 0;
  byId("uploads").hidden = counts.total === 0;
  updateSummary();
});
window.addEventListener("beforeunload", (event) => (counts.running || waiting.length) && event.preventDefault());
