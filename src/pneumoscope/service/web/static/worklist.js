// The worklist: filters, keyboard navigation, and refreshing the list without losing the selection.

import { format, ignoresShortcut, messages } from "./api.js";
import { keepLive } from "./live.js";

const status = document.getElementById("status");
const filters = document.getElementById("filters");
const rows = () => [...document.querySelectorAll("tr[data-id]")];
const rowOf = (id) => document.querySelector(`tr[data-id="${id}"]`);
let running = null; // the refresh that is under way
let queued = null; // the one after it
let selected = -1;
let typing = false; // a date that is typed is half a date at first
let appliedFilters = loadedQuery();

/** Store the ids of this list, in order, for the viewer's next and previous buttons; rejected images of a study follow it. */
function storeList() {
  const images = [...document.querySelectorAll(".worklist-table tbody")].flatMap((group) => {
    const listed = [...group.querySelectorAll("tr[data-id]")].map((row) => row.dataset.id);
    return [...listed, ...(group.dataset.unlisted?.split(" ") ?? [])].map((id) => ({ id }));
  });
  const list = { images, url: location.pathname + location.search, nextPage: document.getElementById("list").dataset.next };
  sessionStorage.setItem("list", JSON.stringify(list));
}

/** Show a message in the status line until the next one. */
export function showStatus(message) {
  status.classList.remove("visually-hidden");
  status.textContent = message;
}

/** Load the list again, after any refresh that is under way. Returns "done", "failed", or "signed out". */
export function refresh() {
  if (!running) {
    running = reloadList().finally(() => {
      running = null;
    });
    return running;
  }
  queued ??= running.then(() => {
    queued = null;
    return refresh();
  });
  return queued;
}

/** Replace the list by its current state; selection, focus and scroll position stay. */
async function reloadList() {
  const url = location.href;
  let response;
  let text;
  try {
    response = await fetch(url);
    text = await response.text();
  } catch {
    return "failed";
  }
  if (response.redirected) return "signed out";
  if (!response.ok) return "failed";
  if (location.href !== url) return "done"; // other filters were chosen, and the next refresh loads their list
  const page = new DOMParser().parseFromString(text, "text/html");
  replaceList(page);
  document.getElementById("search-filters").replaceWith(document.adoptNode(page.getElementById("search-filters")));
  for (const link of document.querySelectorAll(".header-actions a[hreflang]")) {
    link.href = page.querySelector(`.header-actions a[hreflang="${link.hreflang}"]`).getAttribute("href");
  }
  return "done";
}

/** Replace the list by that of another page. */
function replaceList(page) {
  const list = document.getElementById("list");
  const newList = document.adoptNode(page.getElementById("list"));
  const selectedRow = rows()[selected];
  const anchor = selectedRow ?? (list.getBoundingClientRect().top < 0 ? firstVisibleRow() : null);
  const top = anchor?.getBoundingClientRect().top;
  const focusedLink = list.contains(document.activeElement) && document.activeElement.getAttribute("href");
  for (const row of newList.querySelectorAll("tr[data-id]")) {
    const oldRow = rowOf(row.dataset.id);
    if (!oldRow) continue;
    row.querySelector(".thumbnail").replaceWith(oldRow.querySelector(".thumbnail")); // keeps the loaded image
  }
  list.replaceWith(newList);
  selected = rows().findIndex((row) => row.dataset.id === selectedRow?.dataset.id);
  if (selected >= 0) rows()[selected].classList.add("selected");
  const newAnchor = anchor && rowOf(anchor.dataset.id);
  if (newAnchor) scrollBy(0, newAnchor.getBoundingClientRect().top - top);
  if (focusedLink) {
    [...newList.querySelectorAll("a")]
      .find((link) => link.getAttribute("href") === focusedLink)
      ?.focus({ preventScroll: true });
  }
  storeList();
}

/** Return the first row that is not above the window. */
function firstVisibleRow() {
  return rows().find((row) => row.getBoundingClientRect().top >= 0);
}

/** Return the chosen filters as a query string. */
function filterQuery() {
  return new URLSearchParams([...new FormData(filters)].filter(([, value]) => value)).toString();
}

/** Return the filters of the page as it was loaded; others may have been chosen before this script ran. */
function loadedQuery() {
  const fields = [...filters.elements].filter((field) => field.name);
  const loaded = ({ options, defaultValue }) =>
    options ? ([...options].find((option) => option.defaultSelected) ?? options[0]).value : defaultValue;
  return new URLSearchParams(fields.map((field) => [field.name, loaded(field)]).filter(([, value]) => value)).toString();
}

/** Load the list of the chosen filters. The address follows, so that reloading the page keeps them. */
async function applyFilters() {
  const query = filterQuery();
  if (query === appliedFilters || !filters.checkValidity()) return;
  appliedFilters = query;
  history.replaceState(null, "", query ? `/?${query}` : "/");
  document.getElementById("list").setAttribute("aria-busy", "true");
  const outcome = await refresh();
  document.getElementById("list").removeAttribute("aria-busy");
  if (outcome === "done") {
    document.getElementById("filter-status").textContent = document.getElementById("total").textContent;
    showStatus("");
  } else {
    const error = outcome === "failed" ? messages.unreachable : messages.sessionExpired;
    showStatus(format(messages.listFailed, { error }));
    appliedFilters = null; // the same filters can be tried again
  }
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
const showFilters = document.getElementById("show-filters"); // on a phone, see style.css
function toggleFilters(shown) {
  showFilters.setAttribute("aria-expanded", shown);
  filters.classList.toggle("folded", !shown);
}
showFilters.addEventListener("click", () => toggleFilters(filters.classList.contains("folded")));
showFilters.hidden = false;
toggleFilters([...filters.elements].some((field) => field.type !== "hidden" && field.name !== "order" && field.value));

filters.addEventListener("keydown", (event) => {
  if (event.target.type !== "date") return;
  if (event.key === "Enter") {
    event.preventDefault();
    applyFilters();
  } else if (event.key !== "Tab") {
    typing = true;
  }
});
filters.addEventListener("pointerdown", () => {
  typing = false;
});
filters.addEventListener("change", () => typing || applyFilters());
filters.addEventListener("focusout", () => {
  typing = false;
  applyFilters();
});
storeList();
keepLive(refresh);
applyFilters();
addEventListener("pageshow", (event) => event.persisted && refresh()); // back from the viewer: readings may be new
