// The review form of the viewer. Saves run one after another and never overwrite a review that the reviewer has not seen.
// Unsaved input is kept as a draft in the browser tab, so that it survives signing in again.

import { fetchPrediction, format, messages, putReview, showError, signingIn } from "./api.js";

const byId = (id) => document.getElementById(id);
const form = byId("review-form");
const fields = form.elements;
const status = byId("save-status");

/** The id of the prediction on this page. */
export const predictionId = form.dataset.id;

const draftKey = `draft ${form.dataset.reviewer} ${predictionId}`;
let saved = {
  agrees: [...fields.agrees].find((radio) => radio.defaultChecked)?.value ?? "",
  note: fields.note.defaultValue,
};
let seenAt = form.dataset.reviewedAt; // time of the latest review that the reviewer has seen; empty if there is none
let pendingSave = null; // promise of the latest save that has not finished

/** Return true if the form differs from the saved review. */
function hasChanges() {
  return (fields.agrees.value && fields.agrees.value !== saved.agrees) || fields.note.value !== saved.note;
}

/** Keep unsaved input in this tab. */
function storeDraft() {
  const draft = { agrees: fields.agrees.value, note: fields.note.value, seenAt };
  if (hasChanges()) sessionStorage.setItem(draftKey, JSON.stringify(draft));
  else sessionStorage.removeItem(draftKey);
}

/** Fill the form from the draft, if there is one. */
function restoreDraft() {
  const draft = JSON.parse(sessionStorage.getItem(draftKey));
  if (!draft) return;
  fields.note.value = draft.note;
  if (draft.agrees) fields.agrees.value = draft.agrees;
  if (!hasChanges()) return storeDraft(); // the save had succeeded
  seenAt = draft.seenAt;
  status.textContent = messages.draft;
}

/** Save the form after any pending save, so that the latest input wins. */
function save() {
  if (!form.reportValidity()) return;
  storeDraft();
  const previous = pendingSave;
  const current = (async () => {
    await previous;
    const succeeded = await saveNow();
    if (pendingSave === current) pendingSave = null;
    return succeeded;
  })();
  pendingSave = current;
}

/** Save the form unless another review was stored in the meantime. Returns true if it was saved. */
async function saveNow() {
  const [agrees, note] = [fields.agrees.value, fields.note.value];
  if (!agrees) return false; // a conflict cleared the choice
  status.textContent = messages.saving;
  try {
    const { review: stored, etag } = await fetchPrediction(predictionId);
    // The same review is stored already if only the response to an earlier save was lost.
    const same = stored?.reviewer === form.dataset.reviewer && stored.note === note && stored.agrees === (agrees === "yes");
    if (stored && stored.time !== seenAt && !same) {
      showConflict(stored);
      return false;
    }
    seenAt = (await putReview(predictionId, agrees === "yes", note, etag)).review.time;
  } catch (error) {
    showError(status, messages.notSaved, error);
    return false;
  }
  saved = { agrees, note };
  storeDraft(); // the form may have changed during the save
  byId("conflict").hidden = true;
  status.textContent = messages.saved;
  return true;
}

/** Show a review that was stored after the page was opened. The reviewer's own note stays; the choice is cleared. */
function showConflict(stored) {
  const ownNote = fields.note.value !== saved.note;
  saved = { agrees: stored.agrees ? "yes" : "no", note: stored.note };
  seenAt = stored.time;
  if (!ownNote) fields.note.value = stored.note;
  for (const radio of fields.agrees) radio.checked = false;
  storeDraft();
  const values = { reviewer: stored.reviewer, time: stored.time.slice(0, 16).replace("T", " ") };
  const reviewed = format(stored.reviewer === "local" ? messages.readOn : messages.readBy, values);
  byId("conflict-review").textContent = `${reviewed} – ${stored.agrees ? messages.agrees : messages.disagrees}`;
  byId("conflict-note").textContent = stored.note;
  byId("conflict").hidden = false;
  status.textContent = "";
}

/** Choose "yes" or "no" and save. */
export function chooseAndSave(value) {
  fields.agrees.value = value;
  save();
}

/** Drop unsaved changes, because the image was deleted. */
export function discardChanges() {
  saved = { agrees: fields.agrees.value, note: fields.note.value };
  storeDraft();
}

restoreDraft();
byId("review-fields").disabled = false; // disabled in the template: without this script nothing can be saved
form.addEventListener("input", storeDraft);
form.addEventListener("submit", (event) => {
  event.preventDefault();
  save();
});
for (const radio of fields.agrees) radio.addEventListener("change", save);
window.addEventListener("beforeunload", (event) => hasChanges() && !signingIn && event.preventDefault());
// Links wait for the pending save; if it fails, the page stays open with its message.
document.addEventListener("click", async (event) => {
  const link = event.target.closest("a[href]");
  if (!link || !pendingSave || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  while (pendingSave) if (!(await pendingSave)) return;
  location.assign(link.href);
});
