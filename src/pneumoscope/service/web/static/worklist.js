// The worklist: keyboard navigation, and refreshing the list without losing the selection.

import { ignoresShortcut } from "./api.js";

const status = document.getElementById("status");
const rows = () => [...document.querySelectorAll("tr[data-id]")];
const rowOf = (id) => document.querySelector(`tr[data-id="${id}"]`);
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
  const response = await fetch(location.href).catch(() => null);
  if (!response?.ok || response.redirected) return;
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  const list = document.getElementById("list");
  const newList = document.adoptNode(page.getElementById("list"));
  const selectedRow = rows()[selected];
  const top = selectedRow?.getBoundingClientRect().top;
  const focusedLink = list.contains(document.activeElement) && document.activeElement.getAttribute("href");
  for (const row of newList.querySelectorAll("tr[data-id]")) {
    const oldRow = rowOf(row.dataset.id);
    if (!oldRow) continue;
    row.querySelector(".thumbnail").replaceWith(oldRow.querySelector(".thumbnail")); // keeps the loaded image
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

document.addEventListener("keydown", (event) => {
  if (ignoresShortcut(event)) return;
  const shortcuts = {
    j: () => moveSelection(1),
    k: () => moveSelection(-1),
  };
  const action = shortcuts[event.key];
  if (!action) return;
  event.preventDefault();
  action();
});
document.addEventListener("focusin", (event) => {
  const focused = event.target.closest("tr[data-id]");
  if (!focused) return;
  for (const row of rows()) row.classList.toggle("selected", row === focused);
  selected = rows().indexOf(focused);
});
storeList();
addEventListener("pageshow", (event) => event.persisted && refresh()); // back from the viewer: readings may be new
