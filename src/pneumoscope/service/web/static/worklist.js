// The worklist: keyboard navigation and review, and refreshing the list without losing the selection.

import { fetchPrediction, ignoresShortcut, messages, putReview, showError } from "./api.js";

const status = document.getElementById("status");
const rows = () => [...document.querySelectorAll("tr[data-id]")];
const rowOf = (id) => document.querySelector(`tr[data-id="${id}"]`);
const pendingSaves = new Map(); // latest save by prediction id
let reviewEvents = 0; // saves started and finished
let lastRefresh = Promise.resolve();
let selected = -1;

/** Store the ids of this list, in order, for the viewer's next and previous buttons. */
function storeList() {
  const images = rows().map((row) => ({
    id: row.dataset.id,
    name: row.dataset.name,
    available: !row.querySelector(".image-removed"),
  }));
  const list = { images, url: location.pathname + location.search, nextPage: document.getElementById("list").dataset.next };
  sessionStorage.setItem("list", JSON.stringify(list));
}

/** Show a message in the status line until the next one. */
export function showStatus(message) {
  status.classList.remove("visually-hidden");
  status.textContent = message;
}

/** Load the list again, after any refresh that is under way. */
export function refresh() {
  lastRefresh = lastRefresh.then(reloadList);
  return lastRefresh;
}

/** Replace the list by its current state; selection, focus and scroll position stay. */
async function reloadList() {
  const eventsBefore = reviewEvents;
  const response = await fetch(location.href).catch(() => null);
  if (!response?.ok || response.redirected) return;
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  if (reviewEvents !== eventsBefore) return reloadList(); // the response may not contain the latest review
  const list = document.getElementById("list");
  const newList = document.adoptNode(page.getElementById("list"));
  const selectedRow = rows()[selected];
  const top = selectedRow?.getBoundingClientRect().top;
  const focusedLink = list.contains(document.activeElement) && document.activeElement.getAttribute("href");
  for (const row of newList.querySelectorAll("tr[data-id]")) {
    const oldRow = rowOf(row.dataset.id);
    if (!oldRow) continue;
    row.querySelector(".thumbnail").replaceWith(oldRow.querySelector(".thumbnail")); // keeps the loaded image
    row.querySelector(".review").append(...oldRow.querySelectorAll(".not-saved"));
  }
  list.replaceWith(newList);
  selected = rows().findIndex((row) => row.dataset.id === selectedRow?.dataset.id);
  if (selected >= 0) {
    rows()[selected].classList.add("selected");
    scrollBy(0, rows()[selected].getBoundingClientRect().top - top);
  }
  if (focusedLink) {
    [...newList.querySelectorAll("a")]
      .find((link) => link.getAttribute("href") === focusedLink)
      ?.focus({ preventScroll: true });
  }
  storeList();
}

/** Select the row `step` rows further down. */
function moveSelection(step) {
  const all = rows();
  if (!all.length) return;
  all[selected]?.classList.remove("selected");
  selected = Math.min(Math.max(selected + step, 0), all.length - 1);
  all[selected].classList.add("selected");
  all[selected].querySelector("th a").focus();
}

/** Review the selected image. Saves of the same image run one after another, so that the latest one wins. */
function reviewSelected(agrees) {
  const id = rows()[selected]?.dataset.id;
  if (id) pendingSaves.set(id, (pendingSaves.get(id) ?? Promise.resolve()).then(() => save(id, agrees)));
}

/** Save a review with the note that is stored, and show the result in the row. */
async function save(id, agrees) {
  const mark = document.createElement("span");
  let failure = null;
  reviewEvents += 1;
  try {
    const stored = await fetchPrediction(id);
    await putReview(id, agrees, stored.review?.note ?? "", stored.etag);
  } catch (error) {
    failure = error;
  }
  reviewEvents += 1;
  const row = rowOf(id);
  const cell = row?.querySelector(".review");
  const name = row?.dataset.name ?? "";
  if (failure) {
    mark.className = "not-saved error";
    mark.textContent = messages.notSavedShort;
    cell?.querySelector(".not-saved")?.remove();
    cell?.append(mark);
    status.classList.remove("visually-hidden");
    return showError(status, messages.imageNotSaved, failure, { name });
  }
  const label = agrees ? messages.agrees : messages.disagrees;
  mark.className = agrees ? "agrees" : "disagrees";
  mark.textContent = `${agrees ? "✓" : "✗"} ${label}`;
  cell?.replaceChildren(mark);
  status.classList.add("visually-hidden"); // for screen readers; the row shows the result
  status.textContent = `${name}: ${label}`;
}

document.addEventListener("keydown", (event) => {
  if (ignoresShortcut(event)) return;
  const shortcuts = {
    j: () => moveSelection(1),
    k: () => moveSelection(-1),
    a: () => reviewSelected(true),
    d: () => reviewSelected(false),
  };
  const action = shortcuts[event.key];
  if (!action) return;
  event.preventDefault();
  if (event.repeat && "ad".includes(event.key)) return; // holding the key down saves once
  action();
});
document.addEventListener("focusin", (event) => {
  const focused = event.target.closest("tr[data-id]");
  if (!focused) return;
  for (const row of rows()) row.classList.toggle("selected", row === focused);
  selected = rows().indexOf(focused);
});
storeList();
