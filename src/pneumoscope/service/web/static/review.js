// The review form of the viewer. Saves run one after another and never overwrite a review that the reviewer has not seen.
// Unsaved input is kept as a draft in the browser tab, so that it survives signing in again.

import { deleteReview, fetchPrediction, format, localTime, messages, putReview, showError, signingIn } from "./api.js";

const byId = (id) => document.getElementById(id);

/** The id of the prediction that is shown. */
export let predictionId = "";

let form;
let fields; // of the form
let status; // element with the outcome of the latest save
let draftKey;
let saved; // the stored review
let seenAt; // time of the latest review that the reviewer has seen; empty if there is none
let pendingSave = null; // promise of the latest save or withdrawal that has not finished; of true if it succeeded
let showPrediction; // is called when a prediction is no longer hidden

/** Return the review in the form; the finding belongs to one label only. */
function readForm() {
  const label = fields.label.value;
  return { label, finding: label === "other_finding" ? fields.finding.value.trim() : "", note: fields.note.value };
}

/** Return the reader's own review of a prediction. */
function ownReview(prediction) {
  return prediction.reviews.find((review) => review.reviewer === form.dataset.reviewer);
}

/** Return true if both have the same label, finding and note. */
function isSame(a, b) {
  return ["label", "finding", "note"].every((name) => a[name] === b[name]);
}

/** Return true if the form differs from the saved review. */
export function hasChanges() {
  const current = readForm();
  // Without a choice, after a conflict, only the note can be new.
  return current.label ? !isSame(current, saved) : current.note !== saved.note;
}

/** Show the field of the finding with its label only. */
function showFinding() {
  const shown = fields.label.value === "other_finding";
  byId("finding-field").hidden = !shown;
  fields.finding.required = shown;
}

/** Keep unsaved input in this tab. */
function storeDraft() {
  if (hasChanges()) sessionStorage.setItem(draftKey, JSON.stringify({ ...readForm(), seenAt }));
  else sessionStorage.removeItem(draftKey);
}

/** Fill the form from the draft, if there is one. */
function restoreDraft() {
  const draft = JSON.parse(sessionStorage.getItem(draftKey));
  if (!draft) return;
  fields.note.value = draft.note;
  fields.finding.value = draft.finding;
  if (draft.label) fields.label.value = draft.label;
  if (!hasChanges()) return storeDraft(); // the save had succeeded
  seenAt = draft.seenAt;
  status.textContent = messages.draft;
}

/** Save the form after any pending save, so that the latest input wins. */
function save() {
  showFinding();
  if (!form.reportValidity()) return;
  storeDraft();
  enqueue(saveNow);
}

/** Call a function after those that are under way. */
function enqueue(task) {
  const previous = pendingSave;
  const current = (async () => {
    await previous;
    const succeeded = await task();
    if (pendingSave === current) pendingSave = null;
    return succeeded;
  })();
  pendingSave = current;
}

/** Return whether a save has not finished. */
export function isSaving() {
  return pendingSave !== null;
}

/** Wait for pending saves. Returns false if one failed; its message is shown. */
export async function finishSaving() {
  while (pendingSave) if (!(await pendingSave)) return false;
  return true;
}

/** Save the form unless another review was stored in the meantime. Returns true if it was saved. */
async function saveNow() {
  const review = readForm();
  if (!review.label) return false; // a conflict cleared the choice
  status.textContent = messages.saving;
  try {
    const prediction = await fetchPrediction(predictionId);
    const stored = ownReview(prediction);
    // The same review is stored already if only the response to an earlier save was lost.
    if (stored && stored.time !== seenAt && !isSame(stored, review)) {
      showConflict(stored);
      return false;
    }
    seenAt = ownReview(await putReview(predictionId, review, prediction.etag)).time;
  } catch (error) {
    showError(status, messages.notSaved, error);
    return false;
  }
  saved = review;
  storeDraft(); // the form may have changed during the save
  byId("conflict").hidden = true;
  byId("withdraw").hidden = false;
  status.textContent = hasChanges() ? "" : messages.saved; // the form may have changed meanwhile
  if ("blinded" in form.dataset && !hasChanges()) setTimeout(showPrediction); // after this save has finished
  return true;
}

/** Withdraw the review, and empty the form. Returns true if it was withdrawn. */
async function withdraw() {
  byId("review-fields").disabled = true;
  try {
    await deleteReview(predictionId);
  } catch (error) {
    showError(status, messages.notSaved, error);
    return false;
  } finally {
    byId("review-fields").disabled = false;
  }
  saved = { label: "", finding: "", note: "" };
  seenAt = "";
  for (const radio of fields.label) radio.checked = false;
  fields.finding.value = fields.note.value = "";
  showFinding();
  storeDraft();
  byId("withdraw").hidden = byId("conflict").hidden = true;
  status.textContent = messages.withdrawn;
  return true;
}

/** Show a review that was stored after the page was opened. The reviewer's own note stays; the choice is cleared. */
function showConflict(stored) {
  const ownNote = fields.note.value !== saved.note;
  saved = { label: stored.label, finding: stored.finding, note: stored.note };
  seenAt = stored.time;
  if (!ownNote) fields.note.value = stored.note;
  for (const radio of fields.label) radio.checked = false;
  fields.finding.value = stored.finding;
  showFinding();
  storeDraft();
  const read = format(messages.readOn, { time: localTime(stored.time, messages.timeZone), zone: messages.timeZone });
  const finding = stored.finding ? `${messages.colon}${stored.finding}` : "";
  byId("conflict-review").textContent = `${read} – ${messages.labels[stored.label]}${finding}`;
  byId("conflict-note").textContent = stored.note;
  byId("conflict").hidden = false;
  status.textContent = "";
}

/** Choose a label and save; another finding is saved with Enter or the button. */
export function chooseLabel(label) {
  fields.label.value = label;
  choose();
}

/** React to a chosen label. */
function choose() {
  showFinding();
  storeDraft();
  if (fields.label.value !== "other_finding") return save();
  if (fields.finding.value) save();
  fields.finding.focus();
}

/** Drop unsaved changes, because the image was deleted. */
export function discardChanges() {
  saved = readForm();
  storeDraft();
}

/** Start the form of the image that is shown now. */
export function openReview(whenNoLongerHidden) {
  showPrediction = whenNoLongerHidden;
  form = byId("review-form");
  fields = form.elements;
  status = byId("save-status");
  predictionId = form.dataset.id;
  draftKey = `draft ${form.dataset.reviewer} ${predictionId}`;
  saved = {
    label: [...fields.label].find((radio) => radio.defaultChecked)?.value ?? "",
    finding: fields.finding.defaultValue,
    note: fields.note.defaultValue,
  };
  seenAt = form.dataset.reviewedAt;
  restoreDraft();
  showFinding();
  byId("review-fields").disabled = false; // disabled in the template: without this script nothing can be saved
  form.addEventListener("input", () => {
    storeDraft();
    if (hasChanges() && !pendingSave) status.textContent = ""; // "Saved." would be untrue
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    save();
    // The next key is a shortcut, such as that of the next image.
    if (document.activeElement === fields.finding && form.checkValidity()) fields.finding.blur();
  });
  form.addEventListener("keydown", (event) => event.key === "Escape" && event.target.blur());
  for (const radio of fields.label) radio.addEventListener("change", choose);
  byId("withdraw").addEventListener("click", () => enqueue(withdraw));
}

addEventListener("beforeunload", (event) => hasChanges() && !signingIn && event.preventDefault());
