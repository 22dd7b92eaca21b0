// The worklist: moved through and read by keys, and drawn anew when films have come.

import { ask, elsewhere, review, words } from "./api.js";

const said = document.getElementById("said");
const rows = () => [...document.querySelectorAll("tr[data-id]")];
let at = -1;

/** Keep the films of this list in their order, for the viewer's "next" and "previous". */
function remember() {
  const films = rows().map((row) => [row.dataset.id, row.dataset.name]);
  const list = { films, back: location.pathname + location.search, more: document.getElementById("list").dataset.next };
  sessionStorage.setItem("list", JSON.stringify(list));
}

/** Draw the list anew, as it is now. */
export async function refresh() {
  const answer = await fetch(location.href).catch(() => null);
  if (!answer?.ok || answer.redirected) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  document.getElementById("list").replaceWith(document.adoptNode(page.getElementById("list")));
  at = -1;
  remember();
}

function move(step) {
  const all = rows();
  if (!all.length) return;
  all[at]?.classList.remove("at");
  at = Math.min(Math.max(at + step, 0), all.length - 1);
  all[at].classList.add("at");
  all[at].querySelector("th a").focus();
}

async function read(agrees) {
  const row = rows()[at];
  if (!row) return;
  try {
    const now = await (await ask(`/v1/predictions/${row.dataset.id}`)).json();
    await review(row.dataset.id, agrees, now.review?.note ?? ""); // the note that is there by now stays
  } catch (error) {
    said.textContent = `${words.unsaved} ${error.message}`;
    said.classList.remove("hidden");
    return;
  }
  const cell = row.querySelector(".review");
  const mark = document.createElement("span");
  mark.className = `read ${agrees ? "agrees" : "disagrees"}`;
  mark.textContent = agrees ? `✓ ${words.agreed}` : `✗ ${words.disagreed}`;
  cell.replaceChildren(mark);
  said.textContent = `${row.dataset.name}: ${agrees ? words.agreed : words.disagreed}`;
}

document.addEventListener("keydown", (event) => {
  if (elsewhere(event)) return;
  const does = { j: () => move(1), k: () => move(-1), a: () => read(true), d: () => read(false) }[event.key];
  if (!does) return;
  event.preventDefault();
  does();
});
document.addEventListener("focusin", (event) => {
  const row = event.target.closest("tr[data-id]");
  if (!row) return;
  for (const each of rows()) each.classList.toggle("at", each === row);
  at = rows().indexOf(row);
});
remember();
