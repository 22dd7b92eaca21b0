// Opens other images in the viewer by replacing the content of the page. A new page would end the browser's full screen.

import { ApiError, messages, showError } from "./api.js";
import { finishSaving, hasChanges, isSaving } from "./review.js";

// A form of patient and study that was not saved has a separate address, which belongs to no page.
history.replaceState(null, "", location.href.replace(/\/identity(?=[?#]|$)/, ""));
let shownPath = location.pathname;
let startScripts = () => {};
let latest = 0; // number of the latest request for an image

/** Return whether another image is being opened. */
export function isOpening() {
  return document.querySelector("main").inert;
}

/** Open the image with this address. If it cannot be opened, the one before stays, with a message. */
export async function openImage(url, { isNewEntry = true } = {}) {
  const number = ++latest;
  const main = document.querySelector("main");
  main.inert = true; // a label that is chosen now is not meant for the image before
  let response;
  let text;
  try {
    response = await fetch(url);
    text = await response.text();
  } catch {
    if (number !== latest) return;
    main.inert = false;
    showError(document.getElementById("save-status"), messages.notOpened, new ApiError(messages.unreachable));
    return;
  }
  if (number !== latest) return;
  const page = new DOMParser().parseFromString(text, "text/html");
  if (!response.ok || response.redirected || !page.querySelector(".viewer-layout")) {
    location.assign(url); // an error, or the sign-in page
    return;
  }
  if (isNewEntry && url !== location.href) history.pushState(null, "", url);
  shownPath = location.pathname;
  document.title = page.title;
  for (const link of document.querySelectorAll(".header-actions a[hreflang]")) {
    link.href = page.querySelector(`.header-actions a[hreflang="${link.hreflang}"]`).getAttribute("href");
  }
  document.getElementById("notice").textContent = page.getElementById("notice").textContent; // that of the image's model
  main.replaceChildren(...document.adoptNode(page.querySelector("main")).childNodes);
  main.inert = false;
  main.focus({ preventScroll: true }); // screen readers begin with the new image
  startScripts();
  scrollTo(0, 0);
}

/** Open links to images by `openImage`, and call a function after each. */
export function keepPage(start) {
  startScripts = start;
  addEventListener("popstate", () => {
    if (location.pathname !== shownPath) openImage(location.href, { isNewEntry: false });
  });
  // Links wait for the pending save; if it fails, the page stays open with its message.
  document.addEventListener("click", async (event) => {
    const link = event.target.closest("a[href]");
    if (!link || link.target || event.ctrlKey || event.metaKey || event.shiftKey) return;
    const isImage = link.closest("main") && /^\/images\/[^/]+$/.test(link.pathname);
    if (!isImage && !isSaving()) return;
    event.preventDefault();
    if (!(await finishSaving())) return;
    if (isImage && !hasChanges()) openImage(link.href);
    else location.assign(link.href); // the browser asks before it drops unsaved changes
  });
}
