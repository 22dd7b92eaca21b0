// A person's reading of the image on the page: saved in turn, never over another's unseen, and kept in the tab until it is.

import { leaving, record, review, say, tell, words } from "./api.js";

const id = (name) => document.getElementById(name);
const form = id("review");
export const here = form.dataset.id;
const fields = form.elements;
const drafted = `draft ${form.dataset.who} ${here}`;
let kept = { agrees: [...fields.agrees].find((each) => each.defaultChecked)?.value ?? "", note: fields.note.defaultValue };
let seen = form.dataset.read; // when the reading was made that the person has seen; empty where there was none
let saving = null; // the last save that is under way

function changed() {
  return (fields.agrees.value && fields.agrees.value !== kept.agrees) || fields.note.value !== kept.note;
}

/** Keep what is not saved in this tab, where it outlives signing in anew. */
function keep() {
  const draft = { agrees: fields.agrees.value, note: fields.note.value, seen };
  if (changed()) sessionStorage.setItem(drafted, JSON.stringify(draft));
  else sessionStorage.removeItem(drafted);
}

function restore() {
  const draft = JSON.parse(sessionStorage.getItem(drafted));
  if (!draft) return;
  fields.note.value = draft.note;
  if (draft.agrees) fields.agrees.value = draft.agrees;
  if (!changed()) return keep(); // it did arrive
  seen = draft.seen;
  id("saved").textContent = words.draft;
}

/** Save what the form has when its turn comes: one save after another, so that the last one holds. */
function save() {
  if (!form.reportValidity()) return;
  keep();
  const before = saving;
  const own = (async () => {
    await before;
    const done = await put();
    if (saving === own) saving = null;
    return done;
  })();
  saving = own;
}

/** Save, unless somebody read the image since; true where it is saved. */
async function put() {
  const [agrees, note] = [fields.agrees.value, fields.note.value];
  if (!agrees) return false; // another's reading came, and the person has not chosen anew
  id("saved").textContent = words.saving;
  try {
    const now = (await record(here)).review;
    // One's own may stand there already, where only the answer was lost.
    const same = now?.who === form.dataset.who && now.note === note && now.agrees === (agrees === "yes");
    if (now && now.at !== seen && !same) {
      show(now);
      return false;
    }
    seen = (await review(here, agrees === "yes", note)).review.at;
  } catch (error) {
    tell(id("saved"), words.unsaved, error);
    return false;
  }
  kept = { agrees, note };
  keep(); // what was typed meanwhile
  id("theirs").hidden = true;
  id("saved").textContent = words.saved;
  return true;
}

/** Show a reading that came after the page; the person's own note stays, and they choose anew. */
function show(theirs) {
  const own = fields.note.value !== kept.note;
  kept = { agrees: theirs.agrees ? "yes" : "no", note: theirs.note };
  seen = theirs.at;
  if (!own) fields.note.value = theirs.note;
  for (const radio of fields.agrees) radio.checked = false;
  keep();
  const values = { who: theirs.who, date: theirs.at.slice(0, 16).replace("T", " ") };
  const read = say(theirs.who === "local" ? words.on : words.by, values);
  id("theirs-read").textContent = `${read}: ${theirs.agrees ? words.agreed : words.disagreed}`;
  id("theirs-note").textContent = theirs.note;
  id("theirs").hidden = false;
  id("saved").textContent = "";
}

/** Agree ("yes") or not ("no"), and save it. */
export function read(value) {
  fields.agrees.value = value;
  save();
}

/** Nothing is to be saved any more: the image is gone. */
export function forget() {
  kept = { agrees: fields.agrees.value, note: fields.note.value };
  keep();
}

restore();
id("reading").disabled = false; // without this script, nothing could be saved
form.addEventListener("input", keep);
form.addEventListener("submit", (event) => {
  event.preventDefault();
  save();
});
for (const radio of fields.agrees) radio.addEventListener("change", save);
window.addEventListener("beforeunload", (event) => changed() && !leaving && event.preventDefault());
// A save under way is waited for; where it fails, the image and its message stay.
document.addEventListener("click", async (event) => {
  const link = event.target.closest("a[href]");
  if (!link || !saving || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  while (saving) if (!(await saving)) return;
  location.assign(link.href);
});
