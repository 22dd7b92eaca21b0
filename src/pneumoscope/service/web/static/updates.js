// Shows in the viewer what others have changed since it was opened. The reader's own form stays as it is.

import { messages } from "./api.js";
import { isOpening, openImage } from "./navigation.js";
import { predictionId } from "./review.js";

const byId = (id) => document.getElementById(id);
const layout = () => document.querySelector(".viewer-layout");

/** Update the page if it no longer shows the stored state. Returns "done", "failed", or "signed out". */
export async function updateShown() {
  const id = predictionId;
  let response;
  try {
    response = await fetch(`/images/${id}/state`);
  } catch {
    return "failed";
  }
  if (response.redirected) return "signed out";
  if (isOpening() || id !== predictionId) return "done"; // the next update is about the other image
  if (response.status === 404) byId("change-notice").textContent = messages.imageDeleted;
  if (!response.ok) return "failed";
  const { state } = await response.json();
  if (id !== predictionId || state === layout().dataset.state) return "done";
  return showChanges(id);
}

/** Load the page again, and replace the parts that others can change. */
async function showChanges(id) {
  let page;
  try {
    const response = await fetch(location.href);
    if (response.redirected) return "signed out";
    if (!response.ok) return "failed";
    page = new DOMParser().parseFromString(await response.text(), "text/html");
  } catch {
    return "failed";
  }
  if (isOpening() || id !== predictionId) return "done";
  if (outline(page) !== outline(document)) {
    await openImage(location.href, { isNewEntry: false });
    return "done";
  }
  const changed = [];
  for (const part of document.querySelectorAll("[data-part]")) {
    const newPart = page.querySelector(`[data-part="${part.dataset.part}"]`);
    const isSame = content(part) === content(newPart);
    if (!isSame) changed.push(part.dataset.part);
    if (!part.querySelector("details[open]")) replacePart(part, document.adoptNode(newPart));
    else if (isSame) etagOf(part).value = etagOf(newPart).value;
    else changed.push("open form");
  }
  layout().dataset.state = page.querySelector(".viewer-layout").dataset.state;
  if (changed.includes("open form")) showReloadNotice();
  else if (changed.length) byId("change-notice").textContent = messages.changed;
  return "done";
}

/** Return the field with the tag of the form of patient and study, which changes with them. */
function etagOf(part) {
  return part.querySelector("input[name=tag]");
}

/** Return what a part shows. */
function content(part) {
  const copy = part.cloneNode(true);
  etagOf(copy)?.remove();
  copy.querySelector("details")?.removeAttribute("open");
  return copy.innerHTML;
}

/** Return the names of the parts of a page, and whether its image was removed. */
function outline(page) {
  const names = [...page.querySelectorAll("[data-part]")].map((part) => part.dataset.part);
  return `${names} ${page.querySelector(".image-panel").className}`;
}

/** Replace a part of the page. A link that has the focus keeps it. */
function replacePart(part, newPart) {
  const focused = part.contains(document.activeElement) && document.activeElement.getAttribute("href");
  part.replaceWith(newPart);
  if (focused) newPart.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
}

/** Say that the form of patient and study, which is open, is out of date. */
function showReloadNotice() {
  const link = document.createElement("a");
  link.href = location.pathname;
  link.textContent = messages.reload;
  byId("change-notice").replaceChildren(messages.identityChanged, " ", link);
}
