// The worklist: moved through and read by keys, and drawn anew when images have come.

import { elsewhere, record, review, tell, words } from "./api.js";

const said = document.getElementById("said");
const rows = () => [...document.querySelectorAll("tr[data-id]")];
const rowOf = (image) => document.querySelector(`tr[data-id="${image}"]`);
const saves = new Map(); // by image: the last one asked for
let changes = 0; // of readings, begun and ended
let drawing = Promise.resolve();
let at = -1;

/** Keep the images of this list in their order, and whether each is still there, for the viewer. */
function remember() {
  const images = rows().map((row) => [row.dataset.id, row.dataset.name, !row.querySelector(".gone")]);
  const list = { images, back: location.pathname + location.search, more: document.getElementById("list").dataset.next };
  sessionStorage.setItem("list", JSON.stringify(list));
}

/** Say something in sight, until the next time that something is said. */
export function announce(sentence, error = null) {
  said.classList.remove("hidden");
  if (error) tell(said, sentence, error);
  else said.textContent = sentence;
}

/** Draw the list anew, as it is now, once it has been drawn as it was. */
export function refresh() {
  drawing = drawing.then(draw);
  return drawing;
}

async function draw() {
  const before = changes;
  const answer = await fetch(location.href).catch(() => null);
  if (!answer?.ok || answer.redirected) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  if (changes !== before) return draw(); // a reading came meanwhile
  const list = document.getElementById("list");
  const fresh = document.adoptNode(page.getElementById("list"));
  const marked = rows()[at];
  const top = marked?.getBoundingClientRect().top;
  const focused = list.contains(document.activeElement) && document.activeElement.getAttribute("href");
  for (const row of fresh.querySelectorAll("tr[data-id]")) {
    const old = rowOf(row.dataset.id);
    if (!old) continue;
    row.querySelector(".picture").replaceWith(old.querySelector(".picture")); // it is not loaded again
    row.querySelector(".review").append(...old.querySelectorAll(".lost"));
  }
  list.replaceWith(fresh);
  at = rows().findIndex((row) => row.dataset.id === marked?.dataset.id);
  if (at >= 0) {
    rows()[at].classList.add("at");
    scrollBy(0, rows()[at].getBoundingClientRect().top - top); // it stays where the eyes are
  }
  if (focused) [...fresh.querySelectorAll("a")].find((link) => link.getAttribute("href") === focused)?.focus({ preventScroll: true });
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

/** Keep a reading of the image that is marked; of one image, one after another, so that the last one holds. */
function read(agrees) {
  const image = rows()[at]?.dataset.id;
  if (image) saves.set(image, (saves.get(image) ?? Promise.resolve()).then(() => save(image, agrees)));
}

async function save(image, agrees) {
  const mark = document.createElement("span");
  let error = null;
  changes += 1;
  try {
    const now = await record(image);
    await review(image, agrees, now.review?.note ?? ""); // the note that is there by now stays
  } catch (found) {
    error = found;
  }
  changes += 1;
  const row = rowOf(image);
  const cell = row?.querySelector(".review");
  if (error) {
    mark.className = "lost wrong";
    mark.textContent = words.lost;
    cell?.querySelector(".lost")?.remove();
    cell?.append(mark);
    return announce(`${row?.dataset.name ?? ""}: ${words.unsaved}`, error);
  }
  mark.className = `read ${agrees ? "agrees" : "disagrees"}`;
  mark.textContent = agrees ? `✓ ${words.agreed}` : `✗ ${words.disagreed}`;
  cell?.replaceChildren(mark);
  said.classList.add("hidden"); // for a screen reader: its row shows it
  said.textContent = `${row?.dataset.name ?? ""}: ${agrees ? words.agreed : words.disagreed}`;
}

document.addEventListener("keydown", (event) => {
  if (elsewhere(event)) return;
  const does = { j: () => move(1), k: () => move(-1), a: () => read(true), d: () => read(false) }[event.key];
  if (!does) return;
  event.preventDefault();
  if (event.repeat && "ad".includes(event.key)) return; // a key that is held is one reading
  does();
});
document.addEventListener("focusin", (event) => {
  const row = event.target.closest("tr[data-id]");
  if (!row) return;
  for (const each of rows()) each.classList.toggle("at", each === row);
  at = rows().indexOf(row);
});
remember();
